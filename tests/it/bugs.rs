//! Bugs of our own: a panic in the work of an event costs that event a try, and nobody else anything (R26).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use workos_sync::clock::Clock;
use workos_sync::entities::Target;
use workos_sync::entities::organization::organization_id;
use workos_sync::inbox::{Capacity, Inbox, RecordError, Recorded, Source};
use workos_sync::metrics::Metrics;
use workos_sync::outbox::Outbox;

use crate::support::app::Options;
use crate::support::event::event_id;
use crate::support::{EventBuilder, NOW, TestApp, created, eventually, logs, updated};

/// Nobody works on anything, and nothing waits.
fn is_idle(inbox: &Inbox) -> bool {
    let load = inbox.load();
    (load.waiting, load.taken) == (0, 0)
}

/// A log that panics at the warning of a relink: in the middle of applying an event, and of that one only.
#[derive(Clone, Default)]
struct PanicAtRelink {
    mended: Arc<AtomicBool>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl<S: Subscriber> Layer<S> for PanicAtRelink {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let message = said(event, "message");
        let relink = message.contains("is relinked");
        assert!(
            !relink || self.mended.load(Ordering::SeqCst),
            "as this test wants"
        );
        if *event.metadata().level() == Level::ERROR {
            self.errors.lock().unwrap().push(message);
        }
    }
}

/// What an event of the log says in a field.
fn said(event: &Event<'_>, field: &'static str) -> String {
    struct Said(&'static str, String);

    impl Visit for Said {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            if field.name() == self.0 {
                self.1 = format!("{value:?}");
            }
        }
    }

    let mut said = Said(field, String::new());
    event.record(&mut said);
    said.1
}

/// R26: an event at which we panic is put off like any other that failed, says that the bug is ours, and is applied once
/// the bug is mended. The lanes of its batch are applied at once.
// On one thread, where the log is.
#[tokio::test]
async fn a_panic_puts_off_the_event_that_it_is_about() {
    let app = TestApp::new().await;
    app.apply(&created(1, "org_a", "Acme").external_id("shared"))
        .await;
    let log = PanicAtRelink::default();
    let _guard = logs::set_default(tracing_subscriber::registry().with(log.clone()));
    let replica = TestApp::on(Arc::clone(&app.db), Options::default());
    let mut events: Vec<EventBuilder> = (10..30)
        .map(|n| created(n, &format!("org_{n}"), "Name"))
        .collect();
    events.push(updated(30, "org_b", "B").external_id("shared"));
    // Recorded by one that begins nothing any more, so that the other finds them together.
    app.shutdown.cancel();
    for event in &events {
        app.record(event).await;
    }
    replica.settle().await;

    let put_off = replica.inbox_row(&event_id(30)).await;
    assert_eq!((put_off.status.as_str(), put_off.attempts), ("failed", 1));
    assert!(put_off.next_attempt_at > Some(NOW));
    let reason = put_off.last_error.clone().unwrap();
    assert_eq!(
        reason,
        "a bug in workos-sync, please report it: as this test wants"
    );
    let errors = log.errors.lock().unwrap().clone();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains(&event_id(30)) && errors[0].contains(&reason));
    for n in 10..30 {
        let row = replica.inbox_row(&event_id(n)).await;
        assert_eq!(
            (row.outcome.as_deref(), row.attempts),
            (Some("created"), 1),
            "event {n}"
        );
    }
    assert!(is_idle(&replica.inbox), "{:?}", replica.inbox.load());
    // Not before its time.
    replica.settle().await;
    assert_eq!(replica.inbox_row(&event_id(30)).await, put_off);

    log.mended.store(true, Ordering::SeqCst);
    replica.clock.advance(TimeDelta::seconds(301));
    replica.settle().await;
    let row = replica.inbox_row(&event_id(30)).await;
    assert_eq!((row.outcome.as_deref(), row.attempts), (Some("linked"), 2));
}

/// A log that panics at what sqlx says of an insert into the inbox, until that is mended.
struct PanicAtInsert(Arc<AtomicBool>);

impl<S: Subscriber> Layer<S> for PanicAtInsert {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let insert = said(event, "summary").contains("with events as materialized");
        assert!(
            !insert || self.0.load(Ordering::SeqCst),
            "as this test wants"
        );
    }
}

/// R23: a panic while events are stored ends no writer: their deliveries are refused, and the next are stored.
// On one thread, where the log is.
#[tokio::test]
async fn a_panic_of_the_recorder_refuses_a_delivery_and_stores_the_next() {
    let mended = Arc::new(AtomicBool::new(false));
    let log = PanicAtInsert(Arc::clone(&mended));
    let _guard = logs::set_default(tracing_subscriber::registry().with(log));
    let app = TestApp::new().await;
    let record = async |n: u64| {
        let body = created(n, "org_a", "Acme").body().into_bytes();
        let event = app.inbox.read(body, None, Source::Webhook).unwrap();
        let recorded = timeout(Duration::from_secs(10), app.inbox.record(event));
        recorded.await.unwrap().map(|receipt| receipt.recorded)
    };
    for n in 1..=4 {
        assert!(matches!(
            record(n).await,
            Err(RecordError::Unavailable { .. })
        ));
    }
    mended.store(true, Ordering::SeqCst);
    assert_eq!(record(5).await.unwrap(), Recorded::Accepted);
}

/// A clock that panics wherever a task of the service reads it; the test itself is none.
#[derive(Debug)]
struct PanickyClock {
    mended: AtomicBool,
}

impl Clock for PanickyClock {
    fn now(&self) -> DateTime<Utc> {
        let in_a_task = tokio::task::try_id().is_some();
        assert!(
            !in_a_task || self.mended.load(Ordering::SeqCst),
            "as this test wants"
        );
        NOW
    }
}

/// R24: panics outside of any event, more of them than there are workers, end no worker and keep no lane.
#[tokio::test(flavor = "multi_thread")]
async fn panics_use_up_no_workers_and_keep_no_lanes() {
    let app = TestApp::new().await;
    let clock = Arc::new(PanickyClock {
        mended: AtomicBool::new(false),
    });
    let inbox = Inbox::new(
        app.db.pool.clone(),
        clock.clone(),
        Outbox::new(
            app.db.pool.clone(),
            None,
            clock.clone(),
            Arc::new(app.host.clone()),
        ),
        Target {
            host: app.host.clone(),
            namespace: organization_id::default_namespace(),
            notifies: false,
        },
        Metrics::default(),
        Capacity {
            apply_connections: 5,
            lock_places: 6_400,
        },
        CancellationToken::new(),
    );
    let record = async |n: u64| {
        let body = created(n, "org_a", "Acme").body().into_bytes();
        let event = inbox.read(body, None, Source::Webhook).unwrap();
        inbox.record(event).await.unwrap();
        eventually("the lanes are idle", async || is_idle(&inbox)).await;
    };
    for n in 1..=4 {
        record(n).await;
        assert_eq!(app.inbox_row(&event_id(n)).await.status, "pending");
    }
    clock.mended.store(true, Ordering::SeqCst);
    // Nobody sweeps here.
    record(5).await;
    for n in 1..=5 {
        assert_eq!(app.inbox_row(&event_id(n)).await.status, "processed");
    }
}

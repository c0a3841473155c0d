//! An operator's pause: nothing is applied or written back, and everything is accepted (R49).

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use chrono::TimeDelta;
use sqlx::{Executor, PgConnection};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant};
use workos_sync::heal::trust;
use workos_sync::inbox::{DrainError, Recorded};
use workos_sync::operate::{Actor, OperateError, Pause, pausing, records};
use workos_sync::workos::WorkosClient;

use crate::support::app::Options;
use crate::support::event::event_id;
use crate::support::logs::Logs;
use crate::support::workos::FakeWorkos;
use crate::support::{TestApp, TestDatabase, created, eventually, put, release, updated};

const ACME: &str = "org_acme";

fn operator() -> Actor {
    Actor::User("ada".to_owned())
}

async fn pause(app: &TestApp, length: TimeDelta) -> Pause {
    let reason = Some("a restore");
    pausing::pause(&app.db.pool, length, reason, &operator())
        .await
        .unwrap()
}

async fn resume(app: &TestApp) {
    let ended = pausing::resume(&app.db.pool, &operator()).await.unwrap();
    assert!(ended.is_some());
}

/// R49: in every replica nothing is applied, whoever brings it, and everything is accepted; afterwards all of it is.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_applied_in_any_replica() {
    let one = TestApp::new().await;
    let two = TestApp::on(Arc::clone(&one.db), Options::default());
    one.apply(&created(1, "org_1", "One")).await;
    pause(&one, TimeDelta::hours(1)).await;
    for (n, app) in [(2, &one), (3, &two)] {
        let event = created(n, &format!("org_{n}"), "Name");
        let answer = app.deliver(&event.body()).await.assert(200).json();
        assert_eq!(answer["status"], "accepted");
        assert_eq!(app.record(&event).await, Recorded::Duplicate);
    }
    put(
        &one,
        &[created(4, "org_4", "Four"), updated(5, "org_1", "One too")],
    )
    .await;
    for app in [&one, &two] {
        app.settle().await;
        app.inbox.idle().await;
    }
    let names = async || -> Vec<String> {
        one.organizations()
            .await
            .into_iter()
            .map(|row| row.name)
            .collect()
    };
    assert_eq!(names().await, ["One"]);
    for n in 2..=5 {
        let row = one.inbox_row(&event_id(n)).await;
        assert_eq!((row.status.as_str(), row.attempts), ("pending", 0), "{n}");
    }
    resume(&two).await;
    two.settle().await;
    let mut after = names().await;
    after.sort();
    assert_eq!(after, ["Four", "Name", "Name", "One too"]);
}

/// R49: nothing more is applied once it has returned: what a replica was in the middle of is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_waits_for_what_is_under_way() {
    let app = TestApp::new().await;
    let other = TestApp::on(Arc::clone(&app.db), Options::default());
    // An insert is under way for as long as this lock is held.
    app.execute(
        "create function dawdle() returns trigger language plpgsql set lock_timeout = '14s' as $$
         begin perform pg_advisory_xact_lock_shared(42); return new; end $$;
         create trigger dawdle before insert on organization_metadata for each row execute function dawdle()",
    )
    .await;
    let holder = app.hold("select pg_advisory_xact_lock(42)").await;
    app.record(&created(1, ACME, "Acme")).await;
    eventually("it is under way", async || {
        app.db.blocked_sessions().await == 1
    })
    .await;
    let mut pausing = JoinSet::new();
    let pool = app.db.pool.clone();
    pausing.spawn(async move {
        pausing::pause(&pool, TimeDelta::hours(1), None, &operator())
            .await
            .unwrap()
    });
    eventually("the pause waits", async || {
        app.db.blocked_sessions().await == 2
    })
    .await;
    // It holds already.
    assert!(pausing::paused(&app.db.pool).await.unwrap().is_some());
    other.record(&created(2, "org_2", "Two")).await;
    other.settle().await;
    assert!(pausing.try_join_next().is_none());
    release(holder).await;
    pausing.join_all().await;
    let applied = app.organizations().await;
    assert_eq!(applied.len(), 1, "{applied:?}");
    assert_eq!(app.inbox_row(&event_id(1)).await.status, "processed");
    other.settle().await;
    assert_eq!(other.inbox_row(&event_id(2)).await.status, "pending");
}

/// R49: who claims in the moment between a pause's commit and its return is refused, too.
#[tokio::test]
async fn a_claim_that_was_begun_before_sees_the_pause() {
    async fn is_paused(connection: &mut PgConnection) -> bool {
        let ask = sqlx::query_scalar("select workos_sync.is_paused()");
        ask.fetch_one(connection).await.unwrap()
    }
    let db = TestDatabase::new().await;
    let mut begun = db.connect().await;
    // Its statements to come look anew; a stricter isolation would keep the old look.
    begun.execute("begin").await.unwrap();
    assert!(!is_paused(&mut begun).await);
    begun.execute("commit").await.unwrap();
    pausing::pause(&db.pool, TimeDelta::hours(1), None, &operator())
        .await
        .unwrap();
    begun.execute("begin").await.unwrap();
    assert!(is_paused(&mut begun).await);
    begun.execute("commit").await.unwrap();
    // While another pause waits for what is under way, nobody begins.
    pausing::resume(&db.pool, &operator()).await.unwrap();
    let mut holder = db.connect().await;
    holder
        .execute("begin; select pg_advisory_xact_lock(-1907399135, 0)")
        .await
        .unwrap();
    assert!(is_paused(&mut begun).await);
    release(holder).await;
    assert!(!is_paused(&mut begun).await);
}

/// R49: it ends by itself, by the database's clock, and what waited is applied at once; also where it is ended by hand.
#[tokio::test(flavor = "multi_thread")]
async fn what_waited_goes_on_by_itself() {
    let app = TestApp::new().await;
    let mut sweeping = JoinSet::new();
    sweeping.spawn(app.inbox.clone().run_sweeper());
    let is_applied = async |n| app.inbox_row(&event_id(n)).await.status == "processed";
    pause(&app, TimeDelta::seconds(2)).await;
    app.record(&created(1, ACME, "Acme")).await;
    assert!(!is_applied(1).await);
    eventually("it ends by itself", async || is_applied(1).await).await;
    assert_eq!(pausing::paused(&app.db.pool).await.unwrap(), None);
    pause(&app, TimeDelta::hours(1)).await;
    app.record(&updated(2, ACME, "Acme 2")).await;
    app.inbox.sweep().await.unwrap();
    assert!(!is_applied(2).await);
    resume(&app).await;
    eventually("it is ended by hand", async || is_applied(2).await).await;
    app.shutdown.cancel();
    sweeping.join_all().await;
}

/// R49: who wants to wait for the outcome is answered at once.
#[tokio::test]
async fn nobody_waits_for_an_outcome() {
    let app = TestApp::new().await;
    pause(&app, TimeDelta::hours(1)).await;
    let body = created(1, ACME, "Acme").body();
    let began = Instant::now();
    let request = app.delivery(&body).header("prefer", "wait=30");
    let answer = app
        .send(request.body(Body::from(body.clone())).unwrap())
        .await;
    assert_eq!(answer.assert(200).json()["status"], "accepted");
    assert!(began.elapsed() < Duration::from_secs(10));
    let waited = app.inbox.drain_events(vec![event_id(1)]).await;
    let Err(DrainError::Paused { waiting, pause, .. }) = waited else {
        panic!("{waited:?}");
    };
    assert_eq!((waiting, pause.actor.as_str()), (1, "ada"));
}

/// R49: saved events are stored, and wait; those of a type that isn't handled end as ever.
#[tokio::test]
async fn saved_events_are_stored() {
    let app = TestApp::new().await;
    pause(&app, TimeDelta::hours(1)).await;
    for round in 0..2 {
        let saved = (1..=3).map(|n| {
            let body = created(round * 10 + n, &format!("org_{n}"), "Name").body();
            app.inbox.read_saved(body.into_bytes()).unwrap()
        });
        for recorded in app.inbox.record_all(saved.collect()).await {
            let recorded = recorded.unwrap();
            assert_eq!(
                (recorded.recorded, recorded.outcome),
                (Recorded::Accepted, None)
            );
        }
    }
    assert_eq!(app.organizations().await, []);
    resume(&app).await;
    let ids = (1..=3).flat_map(|n| [event_id(n), event_id(10 + n)]);
    let results = app.inbox.drain_events(ids.collect()).await.unwrap();
    assert_eq!((results["created"], results["updated"]), (3, 3));
}

/// R49: nothing is written back either.
#[tokio::test]
async fn nothing_is_written_back() {
    let workos = FakeWorkos::start().await;
    workos.add_organization(ACME, None);
    let client = WorkosClient::new(workos.url(), "sk_test".into()).unwrap();
    let options = Options {
        client: Some(client),
        ..Options::default()
    };
    let app = TestApp::with(options).await;
    app.apply(&created(1, ACME, "Acme")).await;
    pause(&app, TimeDelta::hours(1)).await;
    assert_eq!(app.outbox.deliver_due().await.unwrap(), 0);
    assert!(workos.requests().is_empty());
    resume(&app).await;
    assert_eq!(app.outbox.deliver_due().await.unwrap(), 1);
    assert!(!workos.requests().is_empty());
}

/// R49: `readyz` stays 200 and names it; so do `status` and the record of actions.
#[tokio::test]
async fn a_pause_is_shown() {
    let app = TestApp::new().await;
    let paused = pause(&app, TimeDelta::hours(2)).await;
    assert_eq!(paused.until - paused.since, TimeDelta::hours(2));
    let ready = || Request::get("/readyz").body(Body::empty()).unwrap();
    let answer = app.send(ready()).await.assert(200).json();
    let condition = answer["conditions"][0].as_str().unwrap();
    assert!(
        condition.starts_with("paused by ada until 20"),
        "{condition}"
    );
    assert!(condition.ends_with("Z (a restore)"), "{condition}");
    let status = trust::status(&app.db.pool).await.unwrap();
    assert_eq!(status.paused_until, Some(paused.until));
    assert_eq!(status.pause_reason.as_deref(), Some("a restore"));
    // It is said once.
    let logs = Logs::capture();
    app.inbox.sweep().await.unwrap();
    app.inbox.sweep().await.unwrap();
    resume(&app).await;
    app.inbox.sweep().await.unwrap();
    let said = |what: &str| {
        logs.at("INFO")
            .iter()
            .filter(|line| line.contains(what))
            .count()
    };
    assert_eq!(
        (said("there is a pause"), said("the pause is over")),
        (1, 1)
    );
    let status = trust::status(&app.db.pool).await.unwrap();
    assert_eq!((status.paused_since, status.paused_until), (None, None));
    let actions = records::actions(&app.db.pool, 10).await.unwrap();
    let lines: Vec<_> = actions
        .iter()
        .map(|action| (action.action.as_str(), action.reason.as_deref()))
        .collect();
    assert_eq!(lines, [("resume", None), ("pause", Some("a restore"))]);
    assert_eq!(
        pausing::resume(&app.db.pool, &operator()).await.unwrap(),
        None
    );
}

/// R49: an hour by default, 24 at most; a second pause replaces the first.
#[tokio::test]
async fn a_pause_has_an_end() {
    let app = TestApp::new().await;
    for length in [
        TimeDelta::zero(),
        TimeDelta::hours(-1),
        TimeDelta::hours(24) + TimeDelta::seconds(1),
    ] {
        let refused = pausing::pause(&app.db.pool, length, None, &operator()).await;
        assert!(
            matches!(refused, Err(OperateError::PauseTooLong)),
            "{length}"
        );
    }
    assert_eq!(pausing::paused(&app.db.pool).await.unwrap(), None);
    let first = pause(&app, TimeDelta::hours(24)).await;
    let second = pause(&app, pausing::DEFAULT_LENGTH).await;
    assert_eq!(second.since, first.since);
    assert!(second.until < first.until);
    assert_eq!(pausing::paused(&app.db.pool).await.unwrap(), Some(second));
}

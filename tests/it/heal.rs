//! What finds missed events, and mends what differs (R36–R45), against an environment with the habits of the real one.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use workos_sync::clock::Clock;
use workos_sync::entities::Target;
use workos_sync::entities::organization::organization_id;
use workos_sync::heal::backfill::{self, Options as BackfillOptions};
use workos_sync::heal::key::KeyGuard;
use workos_sync::heal::poll::{Poll, Round};
use workos_sync::heal::reconcile::{self, Difference, Found, Options, Report};
use workos_sync::heal::{HealError, Means, Progress, Tally, catch_up, trust};
use workos_sync::operate::{Actor, pausing};

use crate::support::app::look_at;
use crate::support::event::rfc3339;
use crate::support::fake_workos::{Dates, FakeEnvironment, Habits, Lists};
use crate::support::logs::Logs;
use crate::support::workos::Answer;
use crate::support::{NOW, TestApp, deleted, eventually};

/// An environment, and the service that mirrors it.
struct Pair {
    app: TestApp,
    workos: FakeEnvironment,
}

impl Pair {
    async fn new() -> Self {
        let app = TestApp::new().await;
        let workos = FakeEnvironment::start(app.clock.clone()).await;
        Self { app, workos }
    }

    fn poll(&self) -> Poll {
        Poll::new(
            self.app.db.pool.clone(),
            self.app.inbox.clone(),
            self.workos.client(),
            self.app.clock.clone(),
            self.app.metrics.clone(),
            Duration::from_secs(60),
        )
    }

    /// A round, once it is due.
    async fn round(&self, poll: &Poll) -> Result<Round, HealError> {
        self.app.clock.advance(TimeDelta::minutes(1));
        let round = poll.round().await;
        self.app.settle().await;
        round
    }

    fn means(&self) -> Means {
        Means {
            pool: self.app.db.pool.clone(),
            options: self.app.db.options.clone(),
            inbox: self.app.inbox.clone(),
            client: self.workos.client(),
            clock: self.app.clock.clone(),
            target: self.target(),
        }
    }

    fn key_guard(&self) -> KeyGuard {
        KeyGuard::new(
            self.app.db.pool.clone(),
            self.target().host,
            self.workos.client(),
            self.app.clock.clone(),
        )
    }

    fn target(&self) -> Target {
        Target {
            host: look_at(&self.app.db),
            namespace: organization_id::default_namespace(),
            notifies: false,
        }
    }

    async fn backfill(&self) -> Result<Tally, HealError> {
        self.backfill_with(BackfillOptions::default()).await
    }

    async fn backfill_with(&self, options: BackfillOptions) -> Result<Tally, HealError> {
        let (_, tally) = backfill::run(&self.means(), options, |_| {}).await?;
        Ok(tally)
    }

    async fn reconcile(&self, options: Options) -> (Result<Report, HealError>, Vec<Found>) {
        let mut found = Vec::new();
        let tell = |difference: &Found| found.push(difference.clone());
        let report = reconcile::run(&self.means(), options, tell, |_| {}).await;
        (report, found)
    }

    /// Differences by organization, of a reconcile that writes nothing.
    async fn differences(&self) -> Vec<(Difference, String)> {
        let (report, found) = self.reconcile(Options::default()).await;
        let report = report.unwrap();
        assert_eq!(
            report.is_in_step(),
            !found.iter().any(|found| found.drift),
            "{found:?}"
        );
        let mut differences: Vec<_> = found
            .into_iter()
            .map(|found| (found.difference, found.workos_id))
            .collect();
        differences.sort_by_key(|(difference, id)| (format!("{difference:?}"), id.clone()));
        differences
    }

    async fn mend(&self) -> Report {
        let options = Options {
            apply: true,
            max_disable: None,
        };
        self.reconcile(options).await.0.unwrap()
    }

    fn later(&self, by: TimeDelta) {
        self.app.clock.advance(by);
    }

    async fn names(&self) -> Vec<String> {
        let rows = self.app.organizations().await;
        let mut names: Vec<_> = rows.into_iter().map(|row| row.name).collect();
        names.sort();
        names
    }

    async fn position(&self) -> Option<DateTime<Utc>> {
        sqlx::query_scalar("select position from event_poll")
            .fetch_one(&self.app.db.pool)
            .await
            .unwrap()
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&self.app.db.pool)
            .await
            .unwrap()
    }

    /// The value of a metric without labels.
    fn metric(&self, name: &str) -> String {
        let text = self.app.metrics.render_text().unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap_or_else(|| panic!("no {name}: {text}"));
        line.rsplit(' ').next().unwrap().to_owned()
    }
}

const BACKFILL: BackfillOptions = BackfillOptions {
    restart: false,
    dry_run: false,
};

/// R36: an event that no webhook brings comes by the poll; one that both bring is applied once.
#[tokio::test]
async fn the_poll_finds_what_webhooks_lose() {
    let pair = Pair::new().await;
    let id = pair.workos.create("Acme");
    pair.workos.emit("user.created");
    let poll = pair.poll();
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 1 });
    assert_eq!(pair.names().await, ["Acme"]);
    let event = &pair.workos.event_ids()[0];
    let row = pair.app.inbox_row(event).await;
    assert_eq!(
        (&*row.source, row.outcome.as_deref()),
        ("events_api", Some("created"))
    );
    assert!(
        row.payload.contains(r#""context":{"new":true}"#),
        "the element's text"
    );

    pair.workos.rename(&id, "Acme Corp");
    for body in pair.workos.take_deliveries() {
        pair.app.deliver(&body).await.assert(200);
    }
    pair.app.settle().await;
    // The first is read again, and known; so is the second.
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 0 });
    assert_eq!(pair.names().await, ["Acme Corp"]);
}

/// R36: an answer that holds other types than were asked for.
#[tokio::test]
async fn types_that_were_not_asked_for_are_left_out() {
    let pair = Pair::new().await;
    pair.workos.set_habits(Habits {
        shows_every_type: true,
        ..Habits::default()
    });
    pair.workos.emit("user.created");
    pair.workos.create("Acme");
    assert_eq!(
        pair.round(&pair.poll()).await.unwrap(),
        Round::Drained { new: 1 }
    );
    assert_eq!(pair.count("select count(*) from webhook_events").await, 1);
}

/// R36: a round that finds nothing new is a request and two transactions of two statements: the lease with what was missed,
/// and the page with the position.
#[tokio::test]
async fn a_round_that_finds_nothing_costs_little() {
    let pair = Pair::new().await;
    let poll = pair.poll();
    pair.workos.create("Acme");
    pair.round(&poll).await.unwrap();
    pair.later(TimeDelta::minutes(1));
    pair.workos.forget_requests();
    let logs = Logs::capture();
    assert_eq!(poll.round().await.unwrap(), Round::Drained { new: 0 });
    assert_eq!(pair.workos.requests().len(), 1);
    let text = logs.text();
    let statements: Vec<_> = text
        .lines()
        .filter(|line| line.contains("sqlx::query"))
        .collect();
    let commits = statements.iter().filter(|line| line.contains("COMMIT"));
    assert_eq!(commits.count(), 2, "{statements:#?}");
    assert_eq!(statements.len(), 6, "{statements:#?}");
}

/// R37: WorkOS hides fresh events; one that appears behind a position that has passed it is found all the same.
#[tokio::test]
async fn an_event_that_appears_late_is_found() {
    let pair = Pair::new().await;
    pair.workos.set_habits(Habits {
        hides_events_for: TimeDelta::minutes(8),
        ..Habits::default()
    });
    let poll = pair.poll();
    pair.workos.create("Acme");
    for _ in 0..7 {
        assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 0 });
    }
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 1 });
    let position = pair.position().await.unwrap();
    assert_eq!(position, pair.app.clock.now() - TimeDelta::minutes(10));
}

/// R37: only a drained round moves the position; one that was broken off goes on where it was.
#[tokio::test]
async fn a_round_that_is_broken_off_goes_on() {
    let pair = Pair::new().await;
    let poll = pair.poll();
    pair.round(&poll).await.unwrap();
    let position = pair.position().await;
    for n in 0..250 {
        pair.workos.create(&format!("Org {n}"));
    }
    pair.later(TimeDelta::minutes(1));
    let state = "select count(*) from event_poll where round_after is not null";
    // The first page is good, the second isn't.
    let held = pair.workos.hold_next();
    pair.workos.answer_next(Answer::status(503));
    held.release();
    pair.round(&poll).await.unwrap_err();
    assert_eq!(pair.count("select count(*) from webhook_events").await, 100);
    assert_eq!(pair.position().await, position);
    assert_eq!(pair.count(state).await, 1);

    pair.workos.forget_requests();
    assert_eq!(
        pair.round(&poll).await.unwrap(),
        Round::Drained { new: 150 }
    );
    let requests = pair.workos.requests();
    assert!(requests[0].contains("after=event_"), "{requests:?}");
    assert_eq!(requests.len(), 2);
    assert!(pair.position().await > position);
    assert_eq!(pair.count(state).await, 0);
}

/// R37: where WorkOS refuses to go on, the round begins anew; a 400 to the position itself is a failed round.
#[tokio::test]
async fn a_refused_page_begins_the_round_anew() {
    let pair = Pair::new().await;
    let poll = pair.poll();
    pair.workos.create("Acme");
    pair.app
        .execute("update event_poll set position = '2027-01-15T07:50:00Z', round_after = 'event_foreign'")
        .await;
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 1 });

    let position = pair.position().await;
    pair.workos.answer_next(Answer::status(400));
    let error = pair.round(&poll).await.unwrap_err();
    assert!(error.to_string().contains("400"), "{error}");
    assert_eq!(pair.position().await, position);
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 0 });
}

/// R36: one replica polls at a time, and one round an interval; the others take over when it is gone.
#[tokio::test]
async fn one_replica_polls_at_a_time() {
    let pair = Pair::new().await;
    let (one, other) = (pair.poll(), pair.poll());
    let held = pair.workos.hold_next();
    let mut rounds = JoinSet::new();
    rounds.spawn(async move { one.round().await });
    eventually("it asks", async || !pair.workos.requests().is_empty()).await;
    assert_eq!(other.round().await.unwrap(), Round::NotDue);
    held.release();
    assert_eq!(
        rounds.join_next().await.unwrap().unwrap().unwrap(),
        Round::Drained { new: 0 }
    );
    assert_eq!(other.round().await.unwrap(), Round::NotDue);
    assert!(matches!(
        pair.round(&other).await,
        Ok(Round::Drained { .. })
    ));

    // A replica died with the lease.
    pair.app
        .execute(
            "update event_poll set lease_owner = 'dead', lease_until = '2027-01-15T08:02:00Z', next_at = null",
        )
        .await;
    assert_eq!(other.round().await.unwrap(), Round::NotDue);
    pair.later(TimeDelta::minutes(1));
    assert!(matches!(other.round().await, Ok(Round::Drained { .. })));
}

/// R36: the events of a page and the position after it are one transaction: who has lost the lease stores nothing.
#[tokio::test]
async fn who_has_lost_the_lease_stores_nothing() {
    let pair = Pair::new().await;
    pair.workos.create("Acme");
    pair.later(TimeDelta::minutes(1));
    let held = pair.workos.hold_next();
    let poll = pair.poll();
    let mut rounds = JoinSet::new();
    rounds.spawn(async move { poll.round().await });
    eventually("it asks", async || !pair.workos.requests().is_empty()).await;
    pair.app
        .execute("update event_poll set lease_owner = 'another'")
        .await;
    held.release();
    let error = rounds.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, HealError::LeaseLost), "{error}");
    assert_eq!(pair.count("select count(*) from webhook_events").await, 0);
    let round = "select count(*) from event_poll where last_answer_at is not null";
    assert_eq!(pair.count(round).await, 0);
}

/// R37: the poll begins where the service did, however long WorkOS doesn't answer then.
#[tokio::test]
async fn an_outage_before_the_first_round_loses_nothing() {
    let pair = Pair::new().await;
    let poll = pair.poll();
    pair.workos.answer_all(Some(Answer::status(503)));
    pair.round(&poll).await.unwrap_err();
    pair.workos.create("Acme");
    for _ in 0..3 {
        pair.later(TimeDelta::hours(1));
        pair.round(&poll).await.unwrap_err();
    }
    pair.workos.answer_all(None);
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 1 });
}

/// R37: a WorkOS that never lets a round go on, or leads it in a circle, fails the round; it doesn't keep it for ever.
#[tokio::test]
async fn a_round_that_would_never_end_fails() {
    let pair = Pair::new().await;
    let poll = pair.poll();
    pair.round(&poll).await.unwrap();
    let position = pair.position().await;
    for n in 0..250 {
        pair.workos.create(&format!("Org {n}"));
    }
    pair.later(TimeDelta::minutes(1));
    pair.workos.set_habits(Habits {
        lists: Lists::RefuseToGoOn,
        ..Habits::default()
    });
    let error = pair.round(&poll).await.unwrap_err();
    assert!(error.to_string().contains("400"), "{error}");
    pair.workos.set_habits(Habits {
        lists: Lists::RunInCircles,
        ..Habits::default()
    });
    let error = pair.round(&poll).await.unwrap_err();
    assert!(matches!(error, HealError::Endless), "{error}");
    assert_eq!(pair.position().await, position);

    pair.workos.set_habits(Habits::default());
    pair.round(&poll).await.unwrap();
    assert_eq!(pair.names().await.len(), 250);
    assert!(pair.position().await > position);
}

/// R37: an answer without a readable `Date` leaves no position.
#[tokio::test]
async fn a_poll_without_a_date_fails() {
    let pair = Pair::new().await;
    pair.workos.set_habits(Habits {
        date: Dates::Unreadable,
        ..Habits::default()
    });
    let error = pair.round(&pair.poll()).await.unwrap_err();
    assert!(matches!(error, HealError::NoDate), "{error}");
}

/// R38, R45: a gap is read in windows of 30 days, as far as the API goes, and counted once; the mirror isn't trusted until
/// a reconcile has ended in step.
#[tokio::test]
async fn a_gap_is_read_in_windows() {
    let logs = Logs::capture();
    let pair = Pair::new().await;
    pair.workos.set_habits(Habits {
        keeps_events_for: TimeDelta::days(90),
        refuses_what_is_gone: true,
        ..Habits::default()
    });
    let poll = pair.poll();
    pair.round(&poll).await.unwrap();
    pair.workos.create("Gone");
    pair.later(TimeDelta::days(30));
    pair.workos.create("Lost");
    pair.later(TimeDelta::days(40));
    pair.workos.create("Found");
    pair.later(TimeDelta::days(40));
    pair.workos.create("Fresh");
    pair.workos.forget_requests();
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 3 });
    assert_eq!(pair.names().await, ["Found", "Fresh", "Lost"]);
    assert_eq!(
        pair.workos.requests().len(),
        4,
        "{:?}",
        pair.workos.requests()
    );
    assert_eq!(pair.metric("workos_sync_poll_gaps_total"), "1");
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 0 });
    assert_eq!(pair.metric("workos_sync_poll_gaps_total"), "1");
    let status = trust::status(&pair.app.db.pool).await.unwrap();
    assert!(
        status.reasons.iter().any(|reason| reason.contains("gap")),
        "{status:?}"
    );
    let warnings = logs.at("WARN");
    assert!(
        warnings.iter().any(|line| line.contains("are skipped")),
        "{warnings:?}"
    );

    pair.later(TimeDelta::minutes(5));
    assert!(pair.mend().await.is_in_step());
    assert_eq!(pair.names().await, ["Found", "Fresh", "Gone", "Lost"]);
    let status = trust::status(&pair.app.db.pool).await.unwrap();
    assert!(
        !status.reasons.iter().any(|reason| reason.contains("gap")),
        "{status:?}"
    );
}

/// R38: a gap whose reading is broken off is the same gap when it goes on.
#[tokio::test]
async fn a_gap_that_is_read_in_pieces_is_counted_once() {
    let pair = Pair::new().await;
    pair.workos.set_habits(Habits {
        keeps_events_for: TimeDelta::days(365),
        ..Habits::default()
    });
    let poll = pair.poll();
    pair.round(&poll).await.unwrap();
    for _ in 0..4 {
        pair.later(TimeDelta::days(29));
        pair.workos.create("Acme");
    }
    pair.later(TimeDelta::minutes(1));
    for _ in 0..2 {
        // A window is read, the next one isn't.
        pair.workos.hold_next().release();
        pair.workos.answer_next(Answer::status(503));
        pair.round(&poll).await.unwrap_err();
    }
    pair.round(&poll).await.unwrap();
    assert_eq!(pair.names().await.len(), 4);
    assert_eq!(pair.metric("workos_sync_poll_gaps_total"), "1");

    // The next one is another.
    pair.later(TimeDelta::days(40));
    pair.round(&poll).await.unwrap();
    assert_eq!(pair.metric("workos_sync_poll_gaps_total"), "2");
}

/// R38: a round that was broken off before a gap doesn't hide it.
#[tokio::test]
async fn a_gap_behind_a_broken_off_round_is_noticed() {
    let pair = Pair::new().await;
    pair.workos.set_habits(Habits {
        keeps_events_for: TimeDelta::days(365),
        ..Habits::default()
    });
    let poll = pair.poll();
    pair.round(&poll).await.unwrap();
    for n in 0..150 {
        pair.workos.create(&format!("Org {n}"));
    }
    pair.later(TimeDelta::minutes(1));
    pair.workos.hold_next().release();
    pair.workos.answer_next(Answer::status(503));
    pair.round(&poll).await.unwrap_err();
    pair.later(TimeDelta::days(50));
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 50 });
    assert_eq!(pair.metric("workos_sync_poll_gaps_total"), "1");
}

/// R39: an event that the poll stored and no delivery brings within two minutes is counted, once.
#[tokio::test]
async fn a_missed_delivery_is_counted_once() {
    let pair = Pair::new().await;
    let poll = pair.poll();
    pair.round(&poll).await.unwrap();
    pair.workos.create("Never delivered");
    pair.workos.create("Delivered late");
    pair.later(TimeDelta::seconds(10));
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 2 });
    let late = &pair.workos.take_deliveries()[1];
    pair.app.deliver(late).await.assert(200);
    let delivered = "select count(*) from webhook_events where delivered_at is not null";
    assert_eq!(pair.count(delivered).await, 1);
    assert_eq!(pair.metric("workos_sync_missed_deliveries_total"), "0");
    for _ in 0..4 {
        pair.round(&poll).await.unwrap();
    }
    assert_eq!(pair.metric("workos_sync_missed_deliveries_total"), "1");
}

/// R39: a delivery that comes while the event is being applied is none that was missed. The sender doesn't wait for it.
#[tokio::test]
async fn a_delivery_of_an_event_in_hand_is_not_missed() {
    let pair = Pair::new().await;
    let poll = pair.poll();
    pair.round(&poll).await.unwrap();
    pair.workos.create("Acme");
    pair.later(TimeDelta::seconds(10));
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 1 });
    let mut in_hand = pair.app.db.connect().await;
    sqlx::raw_sql("begin; select from webhook_events for update")
        .execute(&mut in_hand)
        .await
        .unwrap();
    let delivery = &pair.workos.take_deliveries()[0];
    pair.app.deliver(delivery).await.assert(200);
    let delivered = "select count(*) from webhook_events where delivered_at is not null";
    assert_eq!(pair.count(delivered).await, 0);
    sqlx::raw_sql("commit").execute(&mut in_hand).await.unwrap();
    eventually("it is noted", async || pair.count(delivered).await == 1).await;
    for _ in 0..4 {
        pair.round(&poll).await.unwrap();
    }
    assert_eq!(pair.metric("workos_sync_missed_deliveries_total"), "0");
}

/// R40: a reading by hand moves no position and counts no missed delivery.
#[tokio::test]
async fn a_period_is_read_by_hand() {
    let pair = Pair::new().await;
    pair.workos.create("Before");
    pair.later(TimeDelta::hours(1));
    let since = pair.app.clock.now();
    pair.workos.create("Acme");
    pair.later(TimeDelta::hours(1));
    let until = pair.app.clock.now();
    pair.later(TimeDelta::seconds(1));
    pair.workos.create("After");
    pair.later(TimeDelta::hours(1));
    let means = pair.means();
    let caught_up = catch_up::run(&means, since, Some(until)).await.unwrap();
    assert_eq!((caught_up.new, caught_up.known), (1, 0));
    assert_eq!(caught_up.tally.created, 1);
    assert_eq!(pair.names().await, ["Acme"]);
    assert_eq!(pair.position().await, None);

    let again = catch_up::run(&means, NOW - TimeDelta::days(70), None)
        .await
        .unwrap();
    assert_eq!((again.new, again.known, again.skipped), (2, 1, 0));
    let poll = pair.poll();
    for _ in 0..4 {
        pair.round(&poll).await.unwrap();
    }
    assert_eq!(pair.metric("workos_sync_missed_deliveries_total"), "0");
}

/// R38, R40: a reading by hand goes as far back as the API does.
#[tokio::test]
async fn a_period_that_is_gone_is_skipped() {
    let pair = Pair::new().await;
    pair.workos.set_habits(Habits {
        refuses_what_is_gone: true,
        ..Habits::default()
    });
    pair.workos.create("Gone");
    pair.later(TimeDelta::days(100));
    pair.workos.create("Acme");
    pair.later(TimeDelta::hours(1));
    let caught_up = catch_up::run(&pair.means(), NOW, None).await.unwrap();
    assert_eq!((caught_up.new, caught_up.skipped), (1, 3));
    assert_eq!(pair.names().await, ["Acme"]);
}

/// R41, R42: every organization, whatever events are long gone; the poll then begins where the backfill began.
#[tokio::test]
async fn a_backfill_brings_every_organization() {
    let pair = Pair::new().await;
    pair.workos.create_own(250);
    pair.later(TimeDelta::days(100));
    let began = pair.app.clock.now();
    let mut seen = Vec::new();
    let tell = |progress: Progress| seen.push((progress.pages, progress.seen));
    let (_, tally) = backfill::run(&pair.means(), BACKFILL, tell).await.unwrap();
    assert_eq!((tally.created, tally.dead, tally.unsettled), (250, 0, 0));
    assert_eq!(seen, [(1, 100), (2, 200), (3, 250)]);
    assert_eq!(pair.names().await, pair.workos.names());
    let sources = "select count(*) from webhook_events
                   where source = 'backfill' and event_type = 'organization.snapshot' and event_id like 'snapshot_%'";
    assert_eq!(pair.count(sources).await, 250);
    let position = pair.position().await.unwrap();
    assert!(
        position <= began - TimeDelta::minutes(10) && position > began - TimeDelta::minutes(11),
        "{position}"
    );

    // Again: nothing is made twice, and a position that the poll has is left alone.
    pair.later(TimeDelta::minutes(5));
    let tally = pair.backfill().await.unwrap();
    assert_eq!((tally.created, tally.updated), (0, 250));
    assert_eq!(pair.position().await, Some(position));
}

/// R41: after a kill it goes on where it was; `--restart`, or a position that WorkOS refuses, begins anew.
#[tokio::test]
async fn a_backfill_goes_on_where_it_was_broken_off() {
    let pair = Pair::new().await;
    for n in 0..250 {
        pair.workos.create(&format!("Org {n}"));
    }
    let held = pair.workos.hold_next();
    pair.workos.answer_next(Answer::status(401));
    held.release();
    let error = pair.backfill().await.unwrap_err();
    assert!(error.to_string().contains("API key"), "{error}");
    assert_eq!(pair.app.organizations().await.len(), 100);

    pair.workos.forget_requests();
    let tally = pair.backfill().await.unwrap();
    assert_eq!(tally.created, 250, "of both parts");
    let lists: Vec<_> = pair
        .workos
        .requests()
        .into_iter()
        .filter(|request| request.contains("limit="))
        .collect();
    assert_eq!(lists.len(), 2, "{lists:?}");
    assert!(lists[0].contains("after=org_"));

    for (broken_off, restart) in [("org_gone", false), ("org_any", true)] {
        sqlx::query(
            "insert into runs (kind, started_at, after, pages) values ('backfill', now(), $1, 1)",
        )
        .bind(broken_off)
        .execute(&pair.app.db.pool)
        .await
        .unwrap();
        pair.later(TimeDelta::minutes(5));
        let options = BackfillOptions {
            restart,
            ..BACKFILL
        };
        let tally = pair.backfill_with(options).await.unwrap();
        assert_eq!(tally.updated, 250, "{broken_off}");
    }
    let complete = "select count(*) from runs where kind = 'backfill' and status = 'complete'";
    assert_eq!(pair.count(complete).await, 3);
}

/// R37, R41: a poll that begins while a backfill is under way begins where that did, though it has no page yet.
#[tokio::test]
async fn the_first_poll_begins_where_a_backfill_began() {
    let pair = Pair::new().await;
    let began = pair.app.clock.now();
    let held = pair.workos.hold_next();
    let means = pair.means();
    let mut backfill = JoinSet::new();
    backfill.spawn(async move { backfill::run(&means, BACKFILL, |_| {}).await });
    eventually("it asks", async || !pair.workos.requests().is_empty()).await;
    pair.later(TimeDelta::hours(2));
    pair.workos.forget_requests();
    pair.round(&pair.poll()).await.unwrap();
    let asked = &pair.workos.requests()[0];
    let start = url::form_urlencoded::parse(asked.split('?').next_back().unwrap().as_bytes())
        .find(|(key, _)| key == "range_start")
        .map(|(_, start)| start.parse::<DateTime<Utc>>().unwrap());
    let start = start.unwrap();
    assert!(start <= began - TimeDelta::minutes(10), "{asked}");
    assert!(start > began - TimeDelta::minutes(11), "{asked}");
    held.release();
    backfill.join_next().await.unwrap().unwrap().unwrap();
}

/// R41: a WorkOS whose list never ends ends the run; it doesn't keep it for ever.
#[tokio::test]
async fn a_list_that_would_never_end_ends_the_run() {
    let pair = Pair::new().await;
    for n in 0..150 {
        pair.workos.create(&format!("Org {n:03}"));
    }
    pair.workos.set_habits(Habits {
        lists: Lists::RefuseToGoOn,
        ..Habits::default()
    });
    let error = pair.backfill().await.unwrap_err();
    assert!(matches!(error, HealError::ListRefused(_)), "{error}");
    let error = pair.reconcile(Options::default()).await.0.unwrap_err();
    assert!(matches!(error, HealError::ListRefused(_)), "{error}");

    pair.workos.set_habits(Habits {
        lists: Lists::RunInCircles,
        ..Habits::default()
    });
    let error = pair.backfill().await.unwrap_err();
    assert!(matches!(error, HealError::Endless), "{error}");
    let error = pair.reconcile(Options::default()).await.0.unwrap_err();
    assert!(matches!(error, HealError::Endless), "{error}");

    pair.workos.set_habits(Habits::default());
    let empty = r#"{"data":[],"list_metadata":{"after":"org_1"}}"#;
    pair.workos
        .answer_all(Some(Answer::status(200).body(empty)));
    let restart = BackfillOptions {
        restart: true,
        ..BACKFILL
    };
    let error = pair.backfill_with(restart).await.unwrap_err();
    assert!(matches!(error, HealError::Endless), "{error}");
    let whole = "select count(*) from runs where status = 'complete'";
    assert_eq!(pair.count(whole).await, 0);
}

/// R41: a second run of a kind is refused while one is under way; the lease ends with its connection.
#[tokio::test]
async fn one_run_of_a_kind_at_a_time() {
    let pair = Pair::new().await;
    pair.workos.create("Acme");
    let held = pair.workos.hold_next();
    let means = pair.means();
    let mut first = JoinSet::new();
    first.spawn(async move { backfill::run(&means, BACKFILL, |_| {}).await });
    eventually("it asks", async || !pair.workos.requests().is_empty()).await;
    let error = pair.backfill().await.unwrap_err();
    assert!(
        matches!(error, HealError::Busy { kind: "backfill" }),
        "{error}"
    );
    assert!(
        pair.reconcile(Options::default()).await.0.is_ok(),
        "another kind"
    );

    // A kill.
    first.shutdown().await;
    drop(held);
    eventually("the lease has ended", async || {
        pair.backfill().await.is_ok()
    })
    .await;
}

/// R41: a dry run says what it would do, and writes nothing.
#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let pair = Pair::new().await;
    pair.workos.create("Acme");
    pair.backfill().await.unwrap();
    pair.workos.create("Globex");
    pair.later(TimeDelta::minutes(5));
    let before = pair.count("select count(*) from webhook_events").await;
    let tally = pair
        .backfill_with(BackfillOptions {
            dry_run: true,
            ..BACKFILL
        })
        .await
        .unwrap();
    assert_eq!((tally.created, tally.updated), (1, 1));
    assert_eq!(
        pair.count("select count(*) from webhook_events").await,
        before
    );
    assert_eq!(pair.names().await, ["Acme"]);
    assert_eq!(pair.count("select count(*) from runs").await, 1);
}

/// R10, R41: an organization of which the list shows what a deletion has ended links and disables a row that waits for it,
/// and is counted so.
#[tokio::test]
async fn a_backfill_counts_what_it_disables() {
    let pair = Pair::new().await;
    let id = pair.workos.create_with("Acme", Some("acme"));
    let gone = deleted(1, &id);
    assert_eq!(pair.app.apply(&gone).await, "tombstoned");
    pair.app
        .execute(
            "insert into organization_metadata (id, name, slug) values ('acme', 'Acme', 'acme')",
        )
        .await;
    let tally = pair.backfill().await.unwrap();
    let expected = Tally {
        disabled: 1,
        ..Tally::default()
    };
    assert_eq!(tally, expected);
    let recorded = "select disabled from runs where status = 'complete'";
    assert_eq!(pair.count(recorded).await, 1);
}

/// R41, R42: what can't be applied is a dead letter; an answer without a `Date` ends the run.
#[tokio::test]
async fn a_dead_letter_ends_no_backfill_but_a_missing_date_does() {
    let pair = Pair::new().await;
    pair.workos.create("Acme");
    pair.workos.create("NUL\0");
    let tally = pair.backfill().await.unwrap();
    assert_eq!((tally.created, tally.dead), (1, 1));

    pair.workos.set_habits(Habits {
        date: Dates::Unreadable,
        ..Habits::default()
    });
    let error = pair.backfill().await.unwrap_err();
    assert!(matches!(error, HealError::NoDate), "{error}");
}

/// R41: commands wait as long as WorkOS wants, and ask again where it is in trouble.
#[tokio::test]
async fn a_command_outlasts_trouble() {
    let pair = Pair::new().await;
    pair.workos.create("Acme");
    pair.workos.answer_next(
        Answer::status(429)
            .header("retry-after", "1")
            .body(r#""Ratelimited""#),
    );
    pair.workos.answer_next(Answer::Cut);
    assert_eq!(pair.backfill().await.unwrap().created, 1);
}

/// Section 9: a key of another environment is refused before anything is written; one that knows any of the
/// organizations isn't.
#[tokio::test]
async fn a_key_of_another_environment_is_refused() {
    let pair = Pair::new().await;
    let ids: Vec<_> = (0..3)
        .map(|n| pair.workos.create(&format!("Org {n}")))
        .collect();
    pair.backfill().await.unwrap();
    for id in &ids[1..] {
        pair.workos.delete(id);
    }
    pair.backfill().await.unwrap();
    pair.workos.delete(&ids[0]);
    let rows = pair.app.organizations().await;
    let error = pair.backfill().await.unwrap_err();
    assert!(matches!(error, HealError::WrongKey { asked: 3 }), "{error}");
    let apply = Options {
        apply: true,
        max_disable: Some(100),
    };
    let dry_run = BackfillOptions {
        dry_run: true,
        ..BACKFILL
    };
    // Those that write nothing would tell nonsense, and a reconcile would ask for every row.
    for options in [apply, Options::default()] {
        pair.workos.forget_requests();
        let error = pair.reconcile(options).await.0.unwrap_err();
        assert!(matches!(error, HealError::WrongKey { .. }), "{error}");
        assert_eq!(pair.workos.requests().len(), 3);
    }
    let error = pair.backfill_with(dry_run).await.unwrap_err();
    assert!(matches!(error, HealError::WrongKey { .. }), "{error}");
    assert_eq!(pair.app.organizations().await, rows);

    pair.app
        .execute("update organization_metadata set disabled_at = now() where name = 'Org 0'")
        .await;
    pair.key_guard().check().await.expect("two tell nothing");
}

/// Section 9: `serve` neither polls nor writes back with such a key, and says so, also if WorkOS was away at first.
#[tokio::test]
async fn a_service_with_a_key_of_another_environment_says_so() {
    let logs = Logs::capture();
    let pair = Pair::new().await;
    for n in 0..3 {
        pair.workos.create(&format!("Org {n}"));
    }
    pair.backfill().await.unwrap();
    pair.workos.answer_all(Some(Answer::status(404)));
    pair.workos.answer_next(Answer::status(503));
    let stop = CancellationToken::new();
    let accepted = pair
        .key_guard()
        .accepted(pair.app.metrics.clone(), stop.clone());
    let watch = async {
        eventually("it says so", async || {
            let errors = logs.at("ERROR");
            errors
                .iter()
                .any(|line| line.contains("another WorkOS environment"))
        })
        .await;
        assert_eq!(pair.metric("workos_sync_workos_api_ok"), "0");
        pair.workos.answer_all(None);
    };
    let (accepted, ()) = tokio::join!(accepted, watch);
    assert!(accepted, "once it is good");
    let errors = logs.at("ERROR");
    assert!(errors.iter().any(|line| line.contains("503")), "{errors:?}");
}

/// R43: what differs, by kind.
#[tokio::test]
async fn a_reconcile_says_what_differs() {
    let pair = Pair::new().await;
    let ids = pair.workos.create_own(6);
    pair.backfill().await.unwrap();
    pair.later(TimeDelta::minutes(10));
    assert_eq!(pair.differences().await, []);

    pair.app
        .execute("delete from organization_metadata where id = 'own-0'")
        .await;
    pair.app
        .execute("update organization_metadata set name = 'Mine' where id = 'own-1'")
        .await;
    pair.workos.set_external_id(&ids[2], Some("foreign"));
    pair.workos.set_external_id(&ids[3], None);
    pair.workos.delete(&ids[4]);
    pair.app
        .execute("update organization_metadata set disabled_at = now() where id = 'own-5'")
        .await;
    pair.app
        .execute(
            "insert into organization_metadata (id, name, slug) values ('unlinked', 'Unlinked', 'unlinked')",
        )
        .await;
    let on_its_way = pair.workos.create("On its way");
    let differences = [
        (Difference::DeletedThere, ids[4].clone()),
        (Difference::DisabledHere, ids[5].clone()),
        (Difference::ExternalId, ids[2].clone()),
        (Difference::ExternalId, ids[3].clone()),
        (Difference::MissingHere, ids[0].clone()),
        (Difference::Name, ids[1].clone()),
    ];
    // What has changed within two minutes is on its way.
    assert_eq!(
        pair.differences().await,
        [
            differences[0].clone(),
            differences[1].clone(),
            differences[4].clone(),
            differences[5].clone()
        ]
    );
    pair.later(TimeDelta::minutes(3));
    let mut found = pair.differences().await;
    found.retain(|(_, id)| *id != on_its_way);
    assert_eq!(found, differences);
    assert_eq!(
        pair.count("select count(*) from run_organizations").await,
        0
    );
    assert_eq!(
        pair.names().await,
        ["Mine", "Org 2", "Org 3", "Org 4", "Org 5", "Unlinked"]
    );
}

/// R43, R44: what WorkOS knows and doesn't list is drift that nothing mends.
#[tokio::test]
async fn what_is_known_but_not_listed_is_left() {
    let pair = Pair::new().await;
    let id = pair.workos.create_with("Hidden", Some("hidden"));
    pair.workos.create_with("Acme", Some("acme"));
    pair.backfill().await.unwrap();
    pair.workos.set_habits(Habits {
        unlisted: [id.clone()].into(),
        ..Habits::default()
    });
    pair.later(TimeDelta::minutes(10));
    assert_eq!(
        pair.differences().await,
        [(Difference::MissingThere, id.clone())]
    );
    let report = pair.mend().await;
    assert_eq!((report.drift, report.left, report.missing_there), (1, 1, 1));
    assert!(!report.is_in_step());
    let rows = pair.app.organizations().await;
    assert!(rows.iter().all(|row| row.disabled_at.is_none()), "{rows:?}");
    let whole = "select count(*) from runs where is_whole and kind = 'reconcile'";
    assert_eq!(pair.count(whole).await, 0);
}

/// R43: an organization that the list shows twice, as it may while it changes, is compared once.
#[tokio::test]
async fn what_is_listed_twice_is_compared_once() {
    let pair = Pair::new().await;
    let there =
        json!({"id": "org_1", "name": "Acme", "updated_at": rfc3339(NOW - TimeDelta::days(1))});
    let page = json!({"data": [there, there], "list_metadata": {"after": null}}).to_string();
    pair.workos.answer_next(Answer::status(200).body(&page));
    assert_eq!(
        pair.differences().await,
        [(Difference::MissingHere, "org_1".to_owned())]
    );
}

/// R43: an organization that is made after the list was read isn't missing there, however long the rest takes.
#[tokio::test]
async fn what_is_made_after_the_list_was_read_is_not_missing_there() {
    let pair = Pair::new().await;
    // More than are looked at together.
    let ids: Vec<_> = (0..102)
        .map(|n| {
            pair.workos
                .create_with(&format!("Org {n:03}"), Some(&format!("own-{n:03}")))
        })
        .collect();
    pair.backfill().await.unwrap();
    // None of the first and the last, by which the key is tried.
    pair.workos.delete(&ids[50]);
    pair.workos.take_deliveries();
    pair.later(TimeDelta::minutes(10));
    pair.workos.forget_requests();
    // Whether the key is good, and two pages.
    for _ in 0..3 {
        pair.workos.hold_next().release();
    }
    let held = pair.workos.hold_next();
    let means = pair.means();
    let mut run = JoinSet::new();
    run.spawn(async move {
        let mut found = Vec::new();
        let tell = |difference: &Found| found.push(difference.difference);
        reconcile::run(&means, Options::default(), tell, |_| {})
            .await
            .unwrap();
        found
    });
    eventually("it asks for the one that isn't listed", async || {
        pair.workos.requests().len() == 4
    })
    .await;
    pair.workos.create_with("New", Some("new"));
    pair.app
        .deliver(&pair.workos.take_deliveries()[0])
        .await
        .assert(200);
    pair.app.settle().await;
    pair.later(TimeDelta::minutes(10));
    held.release();
    let found = run.join_next().await.unwrap().unwrap();
    assert_eq!(found, [Difference::DeletedThere]);
    assert_eq!(pair.workos.requests().len(), 5, "the new one was asked for");
}

/// R44: `--apply` mends it, and then all is in step.
#[tokio::test]
async fn a_reconcile_mends_what_differs() {
    let pair = Pair::new().await;
    let ids = pair.workos.create_own(4);
    pair.backfill().await.unwrap();
    pair.app
        .execute("delete from organization_metadata where id = 'own-0'")
        .await;
    pair.app
        .execute("update organization_metadata set name = 'Mine' where id = 'own-1'")
        .await;
    pair.workos.set_external_id(&ids[2], Some("foreign"));
    pair.workos.delete(&ids[3]);
    let new = pair.workos.create("New");
    pair.later(TimeDelta::minutes(10));

    let report = pair.mend().await;
    assert!(report.is_in_step(), "{report:?}");
    assert_eq!(report.drift, 5);
    let gone_at = pair.app.clock.now();
    assert_eq!(
        pair.names().await,
        ["New", "Org 0", "Org 1", "Org 2", "Org 3"]
    );
    let disabled: Vec<_> = pair
        .app
        .organizations()
        .await
        .into_iter()
        .filter_map(|row| Some((row.id, row.disabled_at?)))
        .collect();
    assert_eq!(disabled, [("own-3".to_owned(), gone_at)]);
    let conflict = "select count(*) from external_id_pushes where status = 'conflict' and organization_id = 'own-2'";
    assert_eq!(pair.count(conflict).await, 1);
    let sources = "select count(*) from webhook_events where source = 'reconcile'";
    assert_eq!(pair.count(sources).await, 5);

    // The write-back of the new one waits, and the conflict is information.
    pair.later(TimeDelta::minutes(10));
    assert_eq!(
        pair.differences().await,
        [
            (Difference::ExternalId, new.clone()),
            (Difference::ExternalIdConflict, ids[2].clone())
        ]
    );
    let derived = pair.app.organizations().await;
    let derived = derived.iter().find(|row| row.name == "New").unwrap();
    pair.workos.set_external_id(&new, Some(&derived.id));
    pair.later(TimeDelta::minutes(10));
    let whole = "select count(*) from runs where kind = 'reconcile' and is_whole";
    assert_eq!(pair.count(whole).await, 1);
    let (report, _) = pair.reconcile(Options::default()).await;
    assert!(report.unwrap().is_in_step());
    assert_eq!(pair.count(whole).await, 2);
}

/// R44: more than `--max-disable` are gone: asking stops, and nothing at all is written.
#[tokio::test]
async fn too_many_deletions_write_nothing() {
    let pair = Pair::new().await;
    let ids: Vec<_> = (0..20)
        .map(|n| pair.workos.create(&format!("Org {n:02}")))
        .collect();
    pair.backfill().await.unwrap();
    for id in &ids[..12] {
        pair.workos.delete(id);
    }
    pair.workos.rename(&ids[19], "Renamed");
    pair.later(TimeDelta::minutes(10));
    let before = pair.app.organizations().await;
    let apply = |max_disable| Options {
        apply: true,
        max_disable,
    };
    for (max, not_asked) in [
        (None, &ids[11..12]),
        (Some(3), &ids[5..12]),
        (Some(0), &ids[5..12]),
    ] {
        pair.workos.forget_requests();
        let error = pair.reconcile(apply(max)).await.0.unwrap_err();
        assert!(
            matches!(error, HealError::TooManyDeletions { .. }),
            "{error}"
        );
        let requests = pair.workos.requests();
        // The key was tried before, by the first five and the last five.
        for id in not_asked {
            assert!(
                !requests.iter().any(|request| request.ends_with(id)),
                "{requests:?}"
            );
        }
        assert_eq!(pair.app.organizations().await, before);
    }
    let report = pair.reconcile(apply(Some(12))).await.0.unwrap();
    assert!(report.is_in_step(), "{report:?}");
    let active = "select count(*) from organization_metadata where disabled_at is null";
    assert_eq!(pair.count(active).await, 8);
}

/// R44: an organization that was found to be gone, and is there after all, is enabled again by the next one.
#[tokio::test]
async fn what_was_found_gone_wrongly_comes_back() {
    let pair = Pair::new().await;
    pair.workos.create_with("Acme", Some("acme"));
    pair.backfill().await.unwrap();
    pair.later(TimeDelta::minutes(10));
    // WorkOS has a bad day.
    let empty = r#"{"data":[],"list_metadata":{"after":null}}"#;
    pair.workos.answer_next(Answer::status(200).body(empty));
    pair.workos.answer_next(Answer::status(404));
    assert!(pair.mend().await.is_in_step());
    assert!(pair.app.organization().await.disabled_at.is_some());

    pair.later(TimeDelta::minutes(10));
    // It was us who disabled it, so it is no information only.
    let (report, found) = pair.reconcile(Options::default()).await;
    assert!(!report.unwrap().is_in_step());
    assert_eq!(
        (found[0].difference, found[0].drift),
        (Difference::DisabledHere, true)
    );
    assert!(pair.mend().await.is_in_step());
    assert_eq!(pair.app.organization().await.disabled_at, None);
}

/// R45: when the mirror may be trusted, and what is missing when not.
#[tokio::test]
async fn the_mirror_is_trusted_when_nothing_is_missing() {
    let pair = Pair::new().await;
    // The view asks the database for the time.
    let now: DateTime<Utc> = sqlx::query_scalar("select now()")
        .fetch_one(&pair.app.db.pool)
        .await
        .unwrap();
    pair.app.clock.advance(now - NOW);
    let id = pair.workos.create_with("Acme", Some("acme"));
    let reasons = async || {
        let status = trust::status(&pair.app.db.pool).await.unwrap();
        assert_eq!(status.trusted, status.reasons.is_empty());
        status.reasons
    };
    assert_eq!(reasons().await.len(), 2, "no backfill, no poll");
    pair.backfill().await.unwrap();
    assert_eq!(
        reasons().await,
        ["the poll has not read all events recently"]
    );
    let poll = pair.poll();
    poll.round().await.unwrap();
    assert_eq!(reasons().await, [""; 0]);

    for (sql, reason) in [
        (
            "update event_poll set last_drained_at = now() - interval '11 minutes'",
            "the poll has not read",
        ),
        (
            "update event_poll set last_drained_at = now(), gap_at = now()",
            "since the poll had a gap",
        ),
        (
            "update event_poll set gap_at = null, poll_seconds = 0",
            "the poll is off",
        ),
        (
            "update event_poll set poll_seconds = 60;
             insert into webhook_events (event_id, event_type, payload, status, received_at, next_attempt_at)
             values ('event_1', 'organization.updated', '{}', 'failed', now() - interval '61 seconds', now())",
            "more than a minute",
        ),
    ] {
        pair.app.execute(sql).await;
        let found = reasons().await;
        assert!(found.iter().any(|found| found.contains(reason)), "{reason}: {found:?}");
    }
    pair.app
        .execute("delete from webhook_events where event_id = 'event_1'")
        .await;
    assert_eq!(reasons().await, [""; 0]);

    // Dead letters: one that is older than what was applied is no loss; nor is one that says nothing of any organization.
    for (at, id, status, trusted) in [
        (now - TimeDelta::days(1), Some(&*id), "dead", true),
        (now + TimeDelta::days(1), Some(&*id), "dead", false),
        (now + TimeDelta::days(1), Some(&*id), "discarded", false),
        (now + TimeDelta::days(1), Some("org_unknown"), "dead", false),
        (now + TimeDelta::days(1), None, "dead", true),
        (now + TimeDelta::days(1), None, "discarded", true),
    ] {
        let ms = u64::try_from(at.timestamp_millis()).unwrap();
        sqlx::query(
            "insert into webhook_events (event_id, event_type, organization_id, payload, status, processed_at)
             values ($1, 'organization.updated', $2, '{}', $3, now())",
        )
        .bind(format!("event_{}", ulid::Ulid::from_parts(ms, 1)))
        .bind(id)
        .bind(status)
        .execute(&pair.app.db.pool)
        .await
        .unwrap();
        assert_eq!(
            reasons().await.is_empty(),
            trusted,
            "{status} {}",
            rfc3339(at)
        );
        pair.app
            .execute("delete from webhook_events where payload::text = '{}'")
            .await;
    }
}

/// R49: during a pause the poll goes on, and a backfill stores what it has read, says how much waits, and goes on later.
#[tokio::test]
async fn what_is_read_during_a_pause_waits() {
    let pair = Pair::new().await;
    for n in 0..3 {
        pair.workos.create(&format!("Org {n}"));
    }
    let (database, actor) = (&pair.app.db.pool, Actor::Loopback);
    let hour = pausing::DEFAULT_LENGTH;
    pausing::pause(database, hour, None, &actor).await.unwrap();
    let poll = pair.poll();
    assert_eq!(pair.round(&poll).await.unwrap(), Round::Drained { new: 3 });
    let error = pair.backfill().await.unwrap_err();
    assert!(
        matches!(error, HealError::Paused { waiting: 3, .. }),
        "{error}"
    );
    let pending = "select count(*) from webhook_events where status = 'pending'";
    assert_eq!(pair.count(pending).await, 6);
    assert_eq!(pair.app.organizations().await, []);
    pausing::resume(database, &actor).await.unwrap();
    pair.app.settle().await;
    assert_eq!(pair.names().await, ["Org 0", "Org 1", "Org 2"]);
    pair.later(TimeDelta::minutes(5));
    let tally = pair.backfill().await.unwrap();
    assert_eq!((tally.created, tally.unsettled), (0, 0));
}

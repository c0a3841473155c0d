//! The built program against a WorkOS that we made, with the habits of the real one: what webhooks lose is found.

use std::sync::Arc;

use chrono::TimeDelta;
use serde_json::Value;
use workos_sync::clock::{Clock, ManualClock, SystemClock};

use crate::support::fake_workos::{FakeEnvironment, Habits};
use crate::support::{Answer, Finished, Folder, SECRET, Service, TestDatabase, eventually, run};

/// An environment, and a database that mirrors it.
struct Pair {
    folder: Folder,
    database: TestDatabase,
    workos: FakeEnvironment,
    /// WorkOS's. It may lag behind ours, as here.
    clock: Arc<ManualClock>,
}

impl Pair {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::new(SystemClock.now() - TimeDelta::minutes(30)));
        let workos = FakeEnvironment::start(clock.clone()).await;
        workos.set_habits(Habits {
            hides_events_for: TimeDelta::zero(),
            ..Habits::default()
        });
        Self {
            folder: Folder::new(),
            database: TestDatabase::empty().await,
            workos,
            clock,
        }
    }

    fn variables(&self) -> [(&str, &str); 7] {
        [
            ("DATABASE_URL", &self.database.url),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("WORKOS_API_KEY", "sk_test_the_key"),
            ("WORKOS_API_URL", self.workos.url().as_str()),
            ("WORKOS_API_RPS", "100"),
            ("EVENTS_POLL_SECONDS", "4"),
            ("LOG_LEVEL", "error"),
        ]
    }

    async fn run(&self, arguments: &[&str]) -> Finished {
        run(&self.folder, &self.variables(), arguments).await
    }

    /// The names of the rows that are active, in order.
    async fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            sqlx::query_scalar("select name from organization_metadata where disabled_at is null")
                .fetch_all(&self.database.pool)
                .await
                .unwrap();
        names.sort();
        names
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&self.database.pool)
            .await
            .unwrap()
    }
}

/// R36, R37, R41, R43, R45: a table that begins empty is filled and compared; then every webhook is lost, and with its next
/// round the poll has the table in step, and trusted.
#[tokio::test]
async fn a_table_is_in_step_though_every_webhook_is_lost() {
    let pair = Pair::new().await;
    let ids = pair.workos.create_own(1_000);
    pair.clock.advance(TimeDelta::minutes(5));
    let filled = pair.run(&["backfill"]).await.assert(0);
    assert!(filled.stdout.contains("1000 created"), "{filled:?}");
    pair.clock.advance(TimeDelta::minutes(5));
    let compared = pair.run(&["reconcile"]).await.assert(0);
    assert!(
        compared.stdout.contains("1000 organizations"),
        "{compared:?}"
    );
    assert!(compared.stdout.contains("in step"), "{compared:?}");

    let mut variables = pair.variables().to_vec();
    variables.retain(|(name, _)| *name != "LOG_LEVEL");
    let service = Service::start(&pair.folder, &variables).await;
    let polls = || {
        let requests = pair.workos.requests();
        // A round begins at a time, and goes on behind a page.
        let rounds = requests
            .iter()
            .filter(|asked| asked.contains("range_start="));
        rounds.count()
    };
    eventually("it polls", async || polls() > 0).await;

    for (n, id) in ids.iter().enumerate().take(70) {
        pair.workos.rename(id, &format!("Renamed {n}"));
    }
    for id in &ids[70..90] {
        pair.workos.delete(id);
    }
    for n in 0..10 {
        // Of these, the ids are to be written back.
        pair.workos.create(&format!("New {n}"));
    }
    pair.clock.advance(TimeDelta::minutes(1));
    let before = polls();
    let expected = pair.workos.names();
    eventually("the table is in step", async || {
        pair.names().await == expected
    })
    .await;
    let rounds = polls() - before;
    assert!(rounds <= 2, "one that had begun, and the next: {rounds}");
    eventually("what was written back has come back", async || {
        pair.clock.advance(TimeDelta::milliseconds(100));
        pair.count(
            "select count(*) from workos_sync.webhook_events
             where event_type = 'organization.updated' and status = 'processed'",
        )
        .await
            == 80
    })
    .await;
    let deliveries = "select count(*) from workos_sync.webhook_events where source = 'webhook'";
    assert_eq!(pair.count(deliveries).await, 0);

    let status = pair.run(&["status", "--json"]).await.assert(0);
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["trusted"], true, "{status}");
    assert_eq!(status["reasons"].as_array().map(Vec::len), Some(0));
    pair.clock.advance(TimeDelta::minutes(5));
    let compared = pair.run(&["reconcile", "--json"]).await.assert(0);
    assert!(
        compared.stdout.contains(r#""in_step":true"#),
        "{compared:?}"
    );
    service.terminate().await.assert(0);
}

/// R43, R44: drift is exit code 3, also where `--apply` leaves some, and then it says why.
#[tokio::test]
async fn drift_is_exit_code_3() {
    let pair = Pair::new().await;
    let hidden = pair.workos.create_with("Hidden", Some("hidden"));
    pair.workos.create_with("Acme", Some("acme"));
    pair.run(&["backfill"]).await.assert(0);
    pair.workos.set_habits(Habits {
        unlisted: [hidden].into(),
        ..Habits::default()
    });
    pair.workos.create_with("New", Some("new"));
    pair.clock.advance(TimeDelta::minutes(5));
    let drift = pair.run(&["reconcile"]).await.assert(3);
    assert!(drift.stdout.contains("missing here"), "{drift:?}");
    assert!(drift.stdout.contains("missing there"), "{drift:?}");
    assert!(drift.stdout.contains("--apply` mends them"), "{drift:?}");
    let left = pair.run(&["reconcile", "--apply"]).await.assert(3);
    assert!(
        left.stdout
            .contains("WorkOS knows 1 of them, but doesn't list them"),
        "{left:?}"
    );
    assert_eq!(pair.names().await, ["Acme", "Hidden", "New"]);
    let json = pair
        .run(&["reconcile", "--apply", "--json"])
        .await
        .assert(3);
    let summary: Value = serde_json::from_str(json.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(summary["summary"]["missing_there"], 1, "{summary}");
}

/// R41, R43: who only looks makes nothing. A database without the schema, or without a part of it, is left as it is, and one
/// line names the command that makes it. Of a comparison, its record is written (R45), and nothing else.
#[tokio::test]
async fn who_only_looks_makes_nothing() {
    let pair = Pair::new().await;
    pair.workos.create_own(2);
    pair.clock.advance(TimeDelta::minutes(5));
    let refused = async || {
        for looks in [&["backfill", "--dry-run"][..], &["reconcile"]] {
            let refused = pair.run(looks).await.assert(1);
            let line = refused.error_line();
            assert!(line.contains("run `workos-sync migrate`"), "{refused:?}");
            assert_eq!(refused.stdout, "");
        }
    };
    refused().await;
    let made = "select count(*) from pg_class where relname in ('organization_metadata', 'webhook_events')";
    assert_eq!(pair.count(made).await, 0);

    pair.run(&["migrate"]).await.assert(0);
    let dry = pair.run(&["backfill", "--dry-run"]).await.assert(0);
    assert!(dry.stdout.contains("2 would be created"), "{dry:?}");
    let runs = "select count(*) from workos_sync.runs";
    assert_eq!(pair.count(runs).await, 0);
    let compared = pair.run(&["reconcile"]).await.assert(3);
    assert!(compared.stdout.contains("missing here"), "{compared:?}");
    assert_eq!(pair.count(runs).await, 1);
    assert_eq!(pair.names().await, [""; 0]);
    let events = "select count(*) from workos_sync.webhook_events";
    assert_eq!(pair.count(events).await, 0);

    sqlx::raw_sql("alter table organization_metadata drop column workos_last_event_id")
        .execute(&pair.database.pool)
        .await
        .unwrap();
    refused().await;
    pair.run(&["migrate"]).await.assert(0);
    sqlx::raw_sql("delete from workos_sync.migrations where version = (select max(version) from workos_sync.migrations)")
        .execute(&pair.database.pool)
        .await
        .unwrap();
    refused().await;
}

/// Arguments and settings that can't be used: exit code 2, one line that names them, and nothing is asked or written.
#[tokio::test]
async fn what_cannot_be_used_is_said_in_one_line() {
    let pair = Pair::new().await;
    for (arguments, named) in [
        (&["catch-up", "--since", "yesterday"][..], "--since"),
        (&["catch-up", "--since", "2h", "--until", "soon"], "--until"),
        (&["catch-up", "--since", "2h", "--until", "3h"], "--until"),
        (&["catch-up", "--since", "2999-01-01T00:00:00Z"], "--since"),
        (&["catch-up", "--since", "0s"], "--since"),
    ] {
        let refused = pair.run(arguments).await.assert(2);
        assert!(refused.error_line().contains(named), "{refused:?}");
        assert_eq!(refused.stdout, "");
    }
    for command in [
        &["backfill"][..],
        &["reconcile", "--apply"],
        &["catch-up", "--since", "2h"],
    ] {
        let without_key: Vec<_> = pair
            .variables()
            .into_iter()
            .filter(|(name, _)| *name != "WORKOS_API_KEY")
            .collect();
        let refused = run(&pair.folder, &without_key, command).await.assert(2);
        assert!(
            refused.error_line().contains("WORKOS_API_KEY"),
            "{refused:?}"
        );
    }
    assert!(pair.workos.requests().is_empty());
    let schemas = "select count(*) from pg_namespace where nspname = 'workos_sync'";
    assert_eq!(pair.count(schemas).await, 0);
}

/// A WorkOS that isn't the one, or none: exit code 1, one line that says so, and no organization is written.
#[tokio::test]
async fn a_workos_that_cannot_be_used_is_said_in_one_line() {
    let pair = Pair::new().await;
    pair.run(&["migrate"]).await.assert(0);
    let state = "select count(*) from workos_sync.webhook_events";
    let refused = async |said: &str| {
        let all = tokio::join!(
            pair.run(&["backfill"]),
            pair.run(&["reconcile", "--apply"]),
            pair.run(&["catch-up", "--since", "2h"]),
        );
        for refused in <[Finished; 3]>::from(all) {
            let refused = refused.assert(1);
            assert!(refused.error_line().contains(said), "{refused:?}");
            assert_eq!(refused.stdout, "");
        }
        assert_eq!(pair.count(state).await, 0);
    };
    pair.workos.answer_all(Some(Answer::status(401)));
    refused("refuses the API key (401)").await;
    // Asked five times, for it may be a proxy's bad moment.
    pair.workos.answer_all(Some(Answer::status(200).body("[]")));
    refused("no page of a list").await;

    pair.workos.answer_all(None);
    sqlx::query(
        "insert into organization_metadata (id, name, slug, workos_id)
         select 'own-' || n, 'Foreign', 'foreign-' || n, 'org_' || n from generate_series(1, 3) as n",
    )
    .execute(&pair.database.pool)
    .await
    .unwrap();
    pair.workos.create("Of another environment");
    refused("another WorkOS environment").await;
    assert_eq!(pair.names().await, ["Foreign"; 3]);
}

//! What the service shares with the application, and its lanes with each other: rows, locks, connections (R18, R22, R24).

use std::fmt::Write as _;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Row};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::app::Options;
use crate::support::event::event_id;
use crate::support::logs::Logs;
use crate::support::{EventBuilder, TestApp, created, eventually, release, updated};

/// R24: rows that the application holds for a long time keep no other organization waiting, also none whose payload is
/// too long for a batch.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_held_delay_no_other_organization() {
    const HELD: u64 = 60;

    let app = TestApp::with(Options {
        max_connections: 20,
        ..Options::default()
    })
    .await;
    let mut rows = String::new();
    for n in 0..HELD + 20 {
        write!(rows, "('id-{n}', 'Name', 'slug-{n}', 'org_{n}'),").unwrap();
    }
    let rows = rows.trim_end_matches(',');
    sqlx::raw_sql(AssertSqlSafe(format!(
        "insert into organization_metadata (id, name, slug, workos_id) values {rows}"
    )))
    .execute(&app.db.pool)
    .await
    .unwrap();
    let holder = app
        .hold(
            "select from organization_metadata where substr(workos_id, 5)::integer < 60 for update",
        )
        .await;
    let sweeper = JoinSet::from_iter([app.inbox.clone().run_sweeper()]);
    for n in 0..HELD {
        app.record(&updated(n, &format!("org_{n}"), "Held")).await;
    }
    eventually("the held ones are met", async || {
        app.db.blocked_sessions().await > 0
    })
    .await;
    let begun = Instant::now();
    for n in HELD..HELD + 20 {
        let long = updated(n, &format!("org_{n}"), "Long").data("padding", "x".repeat(9_000));
        app.record(&long).await;
    }
    eventually("the long ones are applied", async || {
        let applied: i64 =
            sqlx::query_scalar("select count(*) from organization_metadata where name = 'Long'")
                .fetch_one(&app.db.pool)
                .await
                .unwrap();
        applied == 20
    })
    .await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    let waiting: i64 = sqlx::query_scalar(
        "select count(*) from webhook_events where status = 'pending' and attempts = 0",
    )
    .fetch_one(&app.db.pool)
    .await
    .unwrap();
    assert_eq!(waiting, i64::try_from(HELD).unwrap());

    release(holder).await;
    eventually("the held ones are applied", async || {
        let left: i64 =
            sqlx::query_scalar("select count(*) from webhook_events where status <> 'processed'")
                .fetch_one(&app.db.pool)
                .await
                .unwrap();
        left == 0
    })
    .await;
    app.shutdown.cancel();
    sweeper.join_all().await;
}

/// Notes, at each statement that creates organizations, how many advisory locks are held in this database.
const COUNT_LOCKS: &str = "
    create table locks (count bigint);
    create function count_locks() returns trigger language plpgsql as $$
    begin
        insert into locks
        select count(*) from pg_locks
        where locktype = 'advisory'
          and database = (select oid from pg_database where datname = current_database());
        return null;
    end $$;
    create trigger count_locks after insert on organization_metadata
        for each statement execute function count_locks()";

/// R22: however much is to be applied at once, a process takes no more than a tenth of the server's places for locks: in
/// a replay of creations, where each takes two, and in what waits in the inbox.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_takes_a_tenth_of_the_places_for_locks_at_most() {
    let app = TestApp::new().await;
    app.execute(COUNT_LOCKS).await;
    let places: i32 = sqlx::query("select current_setting('max_locks_per_transaction')::integer * current_setting('max_connections')::integer")
        .fetch_one(&app.db.pool)
        .await
        .unwrap()
        .get(0);
    let most = async || -> i64 {
        sqlx::query_scalar("select max(count) from locks")
            .fetch_one(&app.db.pool)
            .await
            .unwrap()
    };
    let saved = (0..4_000).map(|n| {
        let event = created(n, &format!("org_{n}"), &format!("Name {n}"));
        app.inbox.read_saved(event.body().into_bytes()).unwrap()
    });
    for replayed in app.inbox.record_all(saved.collect()).await {
        replayed.unwrap();
    }
    let held = most().await;
    assert!(held <= i64::from(places / 10), "{held} of {places}");
    assert!(held > 2, "{held}");

    app.execute(
        "truncate locks;
         insert into webhook_events (event_id, event_type, organization_id, payload)
         select 'more' || n, 'organization.created', 'org_more' || n,
                json_build_object('id', 'more' || n, 'event', 'organization.created', 'data',
                                  json_build_object('id', 'org_more' || n, 'name', 'More ' || n))
         from generate_series(1, 4000) n",
    )
    .await;
    app.settle().await;
    assert_eq!(app.organizations().await.len(), 8_000);
    let held = most().await;
    assert!(held <= i64::from(places / 10), "{held} of {places}");
}

/// R18, R24: a lane whose lock another session holds is tried again and again, and goes on by itself when it is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_met_a_lock_comes_again_by_itself() {
    let app = TestApp::new().await;
    let holder = app
        .hold("select pg_advisory_xact_lock(1061423321, hashtext('org_a'))")
        .await;
    let event: EventBuilder = created(1, "org_a", "Acme");
    app.record(&event).await;
    eventually("it waits", async || app.inbox.load().paused == 1).await;
    app.record(&updated(2, "org_a", "Acme 2")).await;
    release(holder).await;
    // Nobody sweeps here.
    eventually("both are applied", async || {
        app.inbox_row(&event_id(2)).await.status == "processed"
    })
    .await;
    assert_eq!(app.organization().await.name, "Acme 2");
    assert_eq!(
        app.inbox_row(&event_id(1)).await.outcome.as_deref(),
        Some("created")
    );
    eventually("nothing waits", async || app.inbox.load().paused == 0).await;
}

/// R24: while a transaction anywhere keeps old rows from being vacuumed, a look reads an index entry for each event that
/// was processed since: then looks are rare.
// On one thread, where the log is.
#[tokio::test]
async fn expensive_looks_are_rare() {
    let app = TestApp::new().await;
    let snapshot = app
        .hold("set transaction isolation level repeatable read; select 1")
        .await;
    app.execute(
        "insert into webhook_events (event_id, event_type, organization_id, payload)
         select 'e' || n, 'x', 'org_' || n, '{}' from generate_series(1, 200000) n",
    )
    .await;
    app.execute("update webhook_events set status = 'ignored'")
        .await;
    let logs = Logs::capture();
    let pause = || -> u128 {
        let text = logs.text();
        let (_, said) = text.rsplit_once("pause_ms=").unwrap();
        let digits = said.split(|c: char| !c.is_ascii_digit()).next();
        digits.unwrap().parse().unwrap()
    };
    app.inbox.sweep().await.unwrap();
    assert!(pause() > 1_000, "{}", logs.text());

    release(snapshot).await;
    app.execute("vacuum webhook_events").await;
    app.inbox.sweep().await.unwrap();
    assert_eq!(pause(), 1_000, "{}", logs.text());
}

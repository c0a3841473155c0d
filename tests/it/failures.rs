//! What fails, and what is said of it: causes, attempts, refusals of the host, conditions of the service (R26, R27).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use chrono::TimeDelta;
use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;

use crate::support::app::Options;
use crate::support::event::event_id;
use crate::support::logs::Logs;
use crate::support::{
    EventBuilder, TestApp, TestDatabase, created, deleted, eventually, put, updated,
};

/// Longer than the longest pause between two attempts.
const LONGEST_PAUSE: TimeDelta = TimeDelta::seconds(301);

/// What is kept of a failure.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
struct Failure {
    status: String,
    attempts: i32,
    cause: String,
    last_error: String,
}

async fn failure(app: &TestApp, n: u64) -> Failure {
    sqlx::query_as(
        "select status, attempts, coalesce(cause, '') as cause, coalesce(last_error, '') as last_error
         from webhook_events where event_id = $1",
    )
    .bind(event_id(n))
    .fetch_one(&app.db.pool)
    .await
    .unwrap()
}

/// The failed attempts that are kept of an event.
async fn attempts(app: &TestApp, n: u64) -> Vec<(i32, String, String)> {
    sqlx::query_as(
        "select attempt, cause, error from event_attempts where event_id = $1 order by attempt",
    )
    .bind(event_id(n))
    .fetch_all(&app.db.pool)
    .await
    .unwrap()
}

async fn result(app: &TestApp, n: u64) -> String {
    let row = app.inbox_row(&event_id(n)).await;
    row.outcome.unwrap_or(row.status)
}

/// Lets the next attempts be due, and makes them.
async fn try_again(app: &TestApp) {
    app.clock.advance(LONGEST_PAUSE);
    app.settle().await;
}

/// R26: a row of the host's that can't be decoded costs its own event a few tries, and its neighbours nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_can_not_be_decoded_costs_only_its_own_event() {
    let app = TestApp::new().await;
    app.execute(
        "alter table organization_metadata drop constraint organization_metadata_pkey;
         alter table organization_metadata alter column id drop not null;
         insert into organization_metadata (name, slug, workos_id) values ('Local', 'local', 'org_00')",
    )
    .await;
    let mut events: Vec<_> = (1..30)
        .map(|n| created(n, &format!("org_{n:02}"), &format!("Name {n}")))
        .collect();
    events.push(updated(30, "org_00", "Poison"));
    put(&app, &events).await;
    app.settle().await;
    for n in 1..30 {
        assert_eq!(result(&app, n).await, "created", "event {n}");
    }
    for tries in 1..5 {
        let failure = failure(&app, 30).await;
        assert_eq!(
            (failure.status.as_str(), failure.attempts),
            ("failed", tries)
        );
        assert!(failure.cause.starts_with("decode:"), "{failure:?}");
        assert!(
            failure.last_error.contains("decoding column"),
            "{failure:?}"
        );
        try_again(&app).await;
    }
    assert_eq!(failure(&app, 30).await.status, "dead");
}

/// R26: a trigger that keeps a row from being written is noticed, whatever is written: nothing is called applied that
/// isn't there. It is a refusal.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_the_host_suppresses_is_refused() {
    let app = TestApp::new().await;
    app.apply(&created(1, "org_updated", "Old").external_id("u"))
        .await;
    app.apply(&created(2, "org_deleted", "Old").external_id("d"))
        .await;
    app.execute(
        "create function suppress() returns trigger language plpgsql as
             $$ begin return case when new.name = 'Visible' then new end; end $$;
         create trigger suppress before insert or update on organization_metadata
             for each row execute function suppress()",
    )
    .await;
    let rows = app.organizations().await;
    put(
        &app,
        &[
            created(3, "org_created", "New").external_id("c"),
            updated(4, "org_updated", "New"),
            deleted(5, "org_deleted"),
            created(6, "org_visible", "Visible").external_id("v"),
        ],
    )
    .await;
    app.settle().await;
    assert_eq!(result(&app, 6).await, "created");
    for tries in 1..=5 {
        let status = if tries == 5 { "dead" } else { "failed" };
        for (n, cause, said) in [
            (3, "suppressed:insert", "kept row c from being inserted"),
            (4, "suppressed:update", "kept row u from being updated"),
            (5, "suppressed:disable", "kept row d from being disabled"),
        ] {
            let last_error = format!("a trigger or a policy of organization_metadata {said}");
            let expected = Failure {
                status: status.to_owned(),
                attempts: tries,
                cause: cause.to_owned(),
                last_error,
            };
            assert_eq!(failure(&app, n).await, expected);
        }
        try_again(&app).await;
    }
    let mut after = app.organizations().await;
    after.retain(|row| row.id != "v");
    assert_eq!(after, rows);
    assert_eq!(app.cursor("org_created").await, None);
}

/// R26, R27: each failure has a short and stable cause, and an error that names what refuses.
#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_they_are() {
    let raise = |code: &str| {
        format!(
            "create function gate() returns trigger language plpgsql as
                 $$ begin raise exception 'reserved: %', new.name using errcode = '{code}'; end $$;
             create trigger gate before insert on organization_metadata
                 for each row execute function gate()"
        )
    };
    for (rule, cause, said) in [
        (
            "alter table organization_metadata add constraint no_evil check (name <> 'Evil')"
                .to_owned(),
            "check:no_evil",
            "constraint no_evil",
        ),
        (
            "alter table organization_metadata add column plan text not null".to_owned(),
            "not_null:plan",
            "column plan",
        ),
        (
            "insert into organization_metadata (id, name, slug) values ('local', 'Evil', 'local');
             create unique index one_of_a_name on organization_metadata (name)"
                .to_owned(),
            "unique:one_of_a_name",
            "constraint one_of_a_name",
        ),
        (
            "create table plans (id text primary key);
             alter table organization_metadata add constraint has_a_plan foreign key (id) references plans"
                .to_owned(),
            "foreign_key:has_a_plan",
            "constraint has_a_plan",
        ),
        (
            "alter table organization_metadata
                 add constraint apart exclude using btree (name with =);
             insert into organization_metadata (id, name, slug) values ('local', 'Evil', 'local')"
                .to_owned(),
            "exclusion:apart",
            "constraint apart",
        ),
        (raise("P0001"), "sqlstate:P0001", "reserved: Evil (SQLSTATE P0001)"),
        (raise("ORG01"), "sqlstate:ORG01", "reserved: Evil (SQLSTATE ORG01)"),
        // What is raised is the host's word, also where the code is one of Postgres's own.
        (raise("42501"), "sqlstate:42501", "reserved: Evil (SQLSTATE 42501)"),
        (raise("55P03"), "sqlstate:55P03", "reserved: Evil (SQLSTATE 55P03)"),
        (raise("53000"), "sqlstate:53000", "reserved: Evil (SQLSTATE 53000)"),
        (raise("22023"), "sqlstate:22023", "reserved: Evil (SQLSTATE 22023)"),
    ] {
        let app = TestApp::new().await;
        sqlx::raw_sql(AssertSqlSafe(rule))
            .execute(&app.db.pool)
            .await
            .unwrap();
        app.apply(&created(1, "org_a", "Evil")).await;
        let failure = failure(&app, 1).await;
        assert_eq!(
            (failure.status.as_str(), failure.cause.as_str()),
            ("failed", cause),
            "{failure:?}"
        );
        assert!(failure.last_error.contains(said), "{failure:?}");
        let kept = attempts(&app, 1).await;
        assert_eq!(kept, [(1, cause.to_owned(), failure.last_error.clone())]);
        for _ in 0..4 {
            try_again(&app).await;
        }
        assert_eq!(self::failure(&app, 1).await.status, "dead", "{cause}");
        assert_eq!(attempts(&app, 1).await.len(), 5);
    }

    let app = TestApp::new().await;
    app.apply(&created(1, "org_a", "Evil").without("name"))
        .await;
    app.apply(&created(2, "org_a", "Evil").data("external_id", 7))
        .await;
    app.execute("alter table organization_metadata alter column name type varchar(10)")
        .await;
    app.apply(&created(3, "org_a", "A name that is too long"))
        .await;
    for (n, cause, said) in [
        (1, "decode:data.name", "`data.name` is missing"),
        (
            2,
            "decode:data.external_id",
            "`data.external_id` is not a valid",
        ),
        (3, "too_long:name", "column name of"),
    ] {
        let failure = failure(&app, n).await;
        assert_eq!(failure.cause, cause);
        assert!(failure.last_error.contains(said), "{failure:?}");
        assert_eq!(attempts(&app, n).await[0].1, cause);
    }
}

/// R27: of many attempts the first ten and the last ten are kept, and they go with the event. An event that was applied
/// in the end has no error any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_and_the_last_attempts_are_kept() {
    let app = TestApp::new().await;
    app.execute(
        "create function gate() returns trigger language plpgsql as
             $$ begin raise exception 'not now' using errcode = 'query_canceled'; end $$;
         create trigger gate before insert on organization_metadata
             for each row execute function gate()",
    )
    .await;
    app.apply(&created(1, "org_a", "Acme")).await;
    for _ in 1..25 {
        try_again(&app).await;
    }
    let failure = failure(&app, 1).await;
    assert_eq!((failure.status.as_str(), failure.attempts), ("failed", 25));
    let kept: Vec<_> = attempts(&app, 1)
        .await
        .into_iter()
        .map(|row| row.0)
        .collect();
    assert_eq!(kept, (1..=10).chain(16..=25).collect::<Vec<_>>());

    app.execute("drop trigger gate on organization_metadata")
        .await;
    try_again(&app).await;
    assert_eq!(result(&app, 1).await, "created");
    assert_eq!(self::failure(&app, 1).await.cause, "");
    app.clock.advance(TimeDelta::days(1));
    app.inbox.remove_ended(TimeDelta::hours(1)).await.unwrap();
    assert!(attempts(&app, 1).await.is_empty());
}

/// R54: the line of a failure, and that of a dead letter, name the event, its type and its organization.
// On one thread, where the log is.
#[tokio::test]
async fn failures_are_logged_with_their_organization() {
    let app = TestApp::new().await;
    let logs = Logs::capture();
    app.execute("alter table organization_metadata add constraint no_evil check (name <> 'Evil')")
        .await;
    app.apply(&created(1, "org_a", "Evil")).await;
    app.apply(&created(2, "org_b", "Dead").without("name"))
        .await;
    for (level, n, organization) in [("WARN", 1, "org_a"), ("ERROR", 2, "org_b")] {
        let lines = logs.at(level);
        assert_eq!(lines.len(), 1, "{lines:?}");
        for said in [
            &format!("event.id=\"{}\"", event_id(n)),
            "event.type=\"organization.created\"",
            &format!("workos.organization_id=\"{organization}\""),
            "cause=\"",
        ] {
            assert!(lines[0].contains(said), "{said}: {}", lines[0]);
        }
    }
}

/// R26: a column that is missing is a condition of the service while nothing is applied: it is said once, no event uses
/// up attempts, and all are applied once it is mended.
// On one thread, where the log is.
#[tokio::test]
async fn a_table_that_can_not_be_used_is_a_condition_of_the_service() {
    let app = TestApp::new().await;
    let logs = Logs::capture();
    let sweeper = JoinSet::from_iter([app.inbox.clone().run_sweeper()]);
    app.execute("alter table organization_metadata rename column name to title")
        .await;
    for n in 1..=12 {
        app.record(&created(n, &format!("org_{n}"), "Name")).await;
    }
    eventually("the condition is known", async || {
        app.inbox.unusable().is_some()
    })
    .await;
    // Tried again, and again.
    let asked = logs.text().matches("as organization").count();
    eventually("the table is asked for again", async || {
        logs.text().matches("as organization").count() > asked + 3
    })
    .await;
    let reason = app.inbox.unusable().unwrap();
    assert!(reason.contains("42703"), "{reason}");
    let waiting: i64 = sqlx::query_scalar(
        "select count(*) from webhook_events where status = 'pending' and attempts = 0",
    )
    .fetch_one(&app.db.pool)
    .await
    .unwrap();
    assert_eq!(waiting, 12);
    let errors = logs.at("ERROR");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("has no column name"), "{errors:?}");

    app.execute("alter table organization_metadata rename column title to name")
        .await;
    eventually("all are applied", async || {
        app.organizations().await.len() == 12
    })
    .await;
    assert_eq!(app.inbox.unusable(), None);
    app.shutdown.cancel();
    sweeper.join_all().await;
}

/// R33: what the catalog doesn't show is named by the probe and the metrics, too, once events have met it.
#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_events_have_met_is_named() {
    let app = TestApp::new().await;
    app.apply(&created(1, "org_first", "First")).await;
    app.execute(
        "create function gate() returns trigger language plpgsql as
             $$ begin perform from a_table_that_is_missing; return new; end $$;
         create trigger gate before insert or update on organization_metadata
             for each row execute function gate()",
    )
    .await;
    let get = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        app.send(request).await.assert(200)
    };
    let usable = async |value: u8| {
        let gauge = format!("\nworkos_sync_schema_usable {value}\n");
        get("/metrics").await.text.contains(&gauge)
    };
    assert!(get("/readyz").await.json().get("conditions").is_none());
    assert!(usable(1).await);
    app.record(&created(2, "org_a", "Acme")).await;
    eventually("the condition is known", async || usable(0).await).await;
    let conditions = get("/readyz").await.json()["conditions"].to_string();
    assert!(
        conditions.contains("a_table_that_is_missing"),
        "{conditions}"
    );

    app.execute("drop trigger gate on organization_metadata")
        .await;
    eventually("it is mended", async || usable(1).await).await;
    assert!(get("/readyz").await.json().get("conditions").is_none());
    assert_eq!(result(&app, 2).await, "created");
}

/// R26: of an event that fails with such an error while others are applied, it is a refusal like the rest.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_alone_is_no_condition_of_the_service() {
    let app = TestApp::new().await;
    app.execute(
        "create function gate() returns trigger language plpgsql as
             $$ begin
                 if new.name = 'Evil' then perform from a_table_that_is_missing; end if;
                 return new;
             end $$;
         create trigger gate before insert or update on organization_metadata
             for each row execute function gate()",
    )
    .await;
    let sweeper = JoinSet::from_iter([app.inbox.clone().run_sweeper()]);
    app.record(&created(1, "org_a", "Evil")).await;
    let mut n = 2;
    eventually("it is a dead letter", async || {
        // The others go on.
        app.record(&updated(n, "org_b", "Name")).await;
        n += 1;
        app.clock.advance(LONGEST_PAUSE);
        failure(&app, 1).await.status == "dead"
    })
    .await;
    let failure = failure(&app, 1).await;
    assert_eq!(
        (failure.attempts, failure.cause.as_str()),
        (5, "sqlstate:42P01")
    );
    assert!(failure.last_error.contains("a_table_that_is_missing"));
    eventually("the table is usable", async || {
        app.inbox.unusable().is_none()
    })
    .await;
    app.shutdown.cancel();
    sweeper.join_all().await;
}

/// R26: who waits for the inbox to be drained is told that the table can't be used, instead of waiting for ever.
#[tokio::test(flavor = "multi_thread")]
async fn draining_ends_where_the_table_can_not_be_used() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata rename column name to title")
        .await;
    put(
        &app,
        &[created(1, "org_a", "Acme"), created(2, "org_b", "B")],
    )
    .await;
    let drained = tokio::time::timeout(Duration::from_secs(30), app.inbox.drain()).await;
    let error = drained.unwrap().unwrap_err().to_string();
    assert!(error.contains("42703"), "{error}");
    app.execute("alter table organization_metadata rename column title to name")
        .await;
    eventually("both are applied", async || {
        app.organizations().await.len() == 2
    })
    .await;
}

/// R22, R26: what one replica fails on, another tries too; a row put there by hand for a replica counts like any other.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_of_two_replicas_are_counted_together() {
    let db = Arc::new(TestDatabase::new().await);
    let replicas = [
        TestApp::on(Arc::clone(&db), Options::default()),
        TestApp::on(db, Options::default()),
    ];
    replicas[0]
        .execute("alter table organization_metadata add constraint no_evil check (name <> 'Evil')")
        .await;
    let event: EventBuilder = created(1, "org_a", "Evil");
    put(&replicas[0], &[event]).await;
    for n in 0..5 {
        for replica in &replicas {
            replica.clock.advance(LONGEST_PAUSE);
        }
        replicas[n % 2].settle().await;
    }
    assert_eq!(failure(&replicas[0], 1).await.status, "dead");
    assert_eq!(attempts(&replicas[0], 1).await.len(), 5);
}

//! The inbox: durable, in order, exactly once in effect, never wedged (R13, R22–R28).

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use workos_sync::event::{Event, EventId};
use workos_sync::inbox::{Recorded, Source};

use crate::support::app::{InboxRow, Options};
use crate::support::event::event_id;
use crate::support::logs::Logs;
use crate::support::{
    EventBuilder, NOW, TestApp, TestDatabase, created, deleted, eventually, put, release, updated,
};

const ACME: &str = "org_01EHWNCE74X7JSDV0X3SZ3KJNY";
const OTHER: &str = "org_01EHWNFTAFCF3CQAE5A9Q0P1YB";

/// Longer than the longest pause between two attempts.
const LONGEST_PAUSE: TimeDelta = TimeDelta::seconds(301);

/// Writes down, in the transaction that does it, each write of an organization.
const AUDIT: &str = "
    create table audit (place bigint generated always as identity, event_id text, name text);
    create function audit() returns trigger language plpgsql as $$
    begin
        insert into audit (event_id, name) values (new.workos_last_event_id, new.name);
        return null;
    end $$;
    create trigger audit after insert or update on organization_metadata
        for each row execute function audit()";

/// Retries a dead letter by hand, as the documentation tells an operator to.
async fn retry_by_hand(app: &TestApp, event_id: &str) {
    let statement = include_str!("../../docs/operating.md")
        .lines()
        .find(|line| line.starts_with("update workos_sync.webhook_events set status = 'pending'"))
        .unwrap()
        .replace("event_…", event_id);
    let result = sqlx::query(AssertSqlSafe(statement))
        .execute(&app.db.pool)
        .await
        .unwrap();
    assert_eq!(result.rows_affected(), 1);
}

/// How many rows of the inbox meet a condition.
async fn count(app: &TestApp, condition: &str) -> i64 {
    let sql = format!("select count(*) from webhook_events where {condition}");
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(&app.db.pool)
        .await
        .unwrap()
}

/// The names that were written, in order; see [`AUDIT`].
async fn audited(app: &TestApp) -> Vec<String> {
    sqlx::query_scalar("select name from audit order by place")
        .fetch_all(&app.db.pool)
        .await
        .unwrap()
}

/// Lets the next attempts be due, and makes them.
async fn try_again(app: &TestApp) {
    app.clock.advance(LONGEST_PAUSE);
    app.settle().await;
}

async fn blocked(app: &TestApp, sessions: i64) {
    eventually("the service waits for a lock", async || {
        app.db.blocked_sessions().await == sessions
    })
    .await;
}

async fn has_status(app: &TestApp, event_id: &str, status: &str) -> InboxRow {
    eventually(status, async || {
        app.inbox_row(event_id).await.status == status
    })
    .await;
    app.inbox_row(event_id).await
}

/// R27: the body is kept as it was received, to the byte.
#[tokio::test(flavor = "multi_thread")]
async fn the_body_is_kept_exactly_as_received() {
    let app = TestApp::new().await;
    let body = "\r\n {\"event\" :\t\"organization.created\", \"z\":1.50, \"z\":1E400,\n\
         \"nul\":\"\\u0000\", \"half\":\"\\uD800\", \"\\u0069d\":\"event_01EHQMYV6MBK39QC5PZXHY59C3\",\
         \"data\":{\"name\":\"Caf\\u00e9 \u{1f980} \\/\",\"id\":\"org_1\",  \"a\":[ ],\"nul\":\"\\u0000\"}}  \n";
    app.deliver(body).await.assert(200);
    app.settle().await;
    let row = app.inbox_row("event_01EHQMYV6MBK39QC5PZXHY59C3").await;
    assert_eq!(row.payload, body);
    assert_eq!(row.outcome.as_deref(), Some("created"));
    assert_eq!(app.organization().await.name, "Café \u{1f980} /");
}

/// R23: an id that is there is acknowledged, and not processed again, whatever its body says now.
#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_not_processed_again() {
    let app = TestApp::new().await;
    let event = created(1, ACME, "Acme");
    assert_eq!(app.record(&event).await, Recorded::Accepted);
    app.settle().await;
    let (row, organization) = (
        app.inbox_row(event.event_id()).await,
        app.organization().await,
    );
    app.clock.advance(TimeDelta::seconds(1));
    for duplicate in [event, updated(1, ACME, "Changed")] {
        assert_eq!(app.record(&duplicate).await, Recorded::Duplicate);
        app.settle().await;
        assert_eq!(app.inbox_row(duplicate.event_id()).await, row);
        assert_eq!(app.organization().await, organization);
    }
}

/// R22, R23: of deliveries of one event that come at once, to several replicas, one is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn of_simultaneous_deliveries_one_is_accepted() {
    let db = Arc::new(TestDatabase::new().await);
    let replicas = [
        TestApp::on(Arc::clone(&db), Options::default()),
        TestApp::on(db, Options::default()),
    ];
    replicas[0].execute(AUDIT).await;
    let body = created(1, ACME, "Acme").body();
    let mut deliveries = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (inbox, body) = (replicas[n % 2].inbox.clone(), body.clone());
        deliveries.spawn(async move {
            let event = inbox.read(body.into_bytes(), None, Source::Webhook);
            inbox.record(event.unwrap()).await.unwrap().recorded
        });
    }
    let recorded = deliveries.join_all().await;
    let accepted = recorded.iter().filter(|r| **r == Recorded::Accepted);
    assert_eq!(accepted.count(), 1, "{recorded:?}");
    for replica in &replicas {
        replica.settle().await;
    }
    assert_eq!(audited(&replicas[0]).await, ["Acme"]);
}

/// R27: what each way through the inbox leaves in the columns.
#[tokio::test(flavor = "multi_thread")]
async fn each_way_leaves_its_columns() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add constraint no_evil check (name <> 'Evil')")
        .await;
    let row = async |event: &EventBuilder| {
        app.apply(event).await;
        let mut row = app.inbox_row(event.event_id()).await;
        assert_eq!(row.payload, event.body());
        row.payload.clear();
        row
    };
    let of_acme = InboxRow {
        status: "processed".into(),
        outcome: Some("created".into()),
        organization_id: Some(ACME.into()),
        attempts: 1,
        last_error: None,
        processed_at: Some(NOW),
        next_attempt_at: None,
        source: "webhook".into(),
        payload: String::new(),
    };
    assert_eq!(row(&created(1, ACME, "Acme")).await, of_acme);
    for (event, outcome) in [
        (updated(2, ACME, "Acme"), "updated"),
        (updated(1, ACME, "Acme").id("event_1"), "stale"),
        (deleted(3, ACME), "disabled"),
    ] {
        let expected = InboxRow {
            outcome: Some(outcome.into()),
            ..of_acme.clone()
        };
        assert_eq!(row(&event).await, expected);
    }
    let expected = InboxRow {
        organization_id: Some(OTHER.into()),
        outcome: Some("tombstoned".into()),
        ..of_acme.clone()
    };
    assert_eq!(row(&deleted(4, OTHER)).await, expected);
    // Ignored is final at once: no attempt is made.
    let expected = InboxRow {
        status: "ignored".into(),
        outcome: None,
        organization_id: None,
        attempts: 0,
        ..of_acme.clone()
    };
    assert_eq!(
        row(&EventBuilder::new(5, "user.created", "u")).await,
        expected
    );
    let expected = InboxRow {
        status: "dead".into(),
        outcome: None,
        last_error: Some("`data.name` is missing".into()),
        processed_at: None,
        ..of_acme.clone()
    };
    assert_eq!(row(&updated(6, ACME, "x").without("name")).await, expected);
    let failed = row(&created(7, "org_third", "Evil")).await;
    let expected = InboxRow {
        organization_id: Some("org_third".into()),
        status: "failed".into(),
        outcome: None,
        last_error: failed.last_error.clone(),
        processed_at: None,
        next_attempt_at: failed.next_attempt_at,
        ..of_acme.clone()
    };
    assert_eq!(failed, expected);
    assert!(failed.next_attempt_at > Some(NOW) && failed.last_error.is_some());

    let lock = app.hold("lock table workos_organization_syncs").await;
    app.record(&updated(8, ACME, "Acme")).await;
    blocked(&app, 1).await;
    let mut pending = app.inbox_row(&event_id(8)).await;
    pending.payload.clear();
    let expected = InboxRow {
        status: "pending".into(),
        outcome: None,
        attempts: 0,
        processed_at: None,
        ..of_acme
    };
    assert_eq!(pending, expected);
    release(lock).await;

    let (event_type, received_at): (String, DateTime<Utc>) =
        sqlx::query_as("select event_type, received_at from webhook_events where event_id = $1")
            .bind(event_id(3))
            .fetch_one(&app.db.pool)
            .await
            .unwrap();
    assert_eq!(
        (event_type.as_str(), received_at),
        ("organization.deleted", NOW)
    );
}

/// R13: a type that is not handled is final with its recording: nobody has to process anything.
#[tokio::test(flavor = "multi_thread")]
async fn an_ignored_event_is_settled_when_it_is_recorded() {
    let app = TestApp::new().await;
    app.shutdown.cancel();
    let event = EventBuilder::new(1, "organization_domain.created", "domain_1")
        .data("organization_id", ACME);
    assert_eq!(app.record(&event).await, Recorded::Ignored);
    let row = app.inbox_row(event.event_id()).await;
    assert_eq!(row.status, "ignored");
    assert_eq!(row.processed_at, Some(NOW));
    assert_eq!(app.record(&event).await, Recorded::Duplicate);
}

/// R26: what can't be applied because of what it contains is a dead letter after one attempt, and says what
/// is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_names_the_field() {
    let app = TestApp::new().await;
    let event = || created(1, ACME, "Acme");
    let raw = |from: &str, to: &str| {
        let body = event().body();
        assert!(body.contains(from), "{body}");
        body.replace(from, to)
    };
    for (n, (body, error)) in [
        (
            event().data("name", "Ac\0me").body(),
            "`data.name` contains a NUL character",
        ),
        (event().without("name").body(), "`data.name` is missing"),
        (event().data("name", Value::Null).body(), "`data.name` is missing"),
        (event().data("name", 7).body(), "`data.name` is not a valid string"),
        (
            event().data("name", json!({"en": "Acme"})).body(),
            "`data.name` is not a valid string",
        ),
        (
            raw(r#""name":"Acme""#, r#""name":"\ud800""#),
            "`data.name` is not a valid string",
        ),
        (event().without("id").body(), "`data.id` is missing"),
        (event().data("id", Value::Null).body(), "`data.id` is missing"),
        (event().data("id", 7).body(), "`data.id` is not a valid string"),
        (event().data("id", "").body(), "`data.id` is empty"),
        (
            event().data("id", "org_\0").body(),
            "`data.id` contains a NUL character",
        ),
        (
            event().data("id", "o".repeat(256)).body(),
            "`data.id` is longer than 255 bytes",
        ),
        (
            event().data("external_id", 7).body(),
            "`data.external_id` is not a valid string",
        ),
        (
            event().data("external_id", "e\0").body(),
            "`data.external_id` contains a NUL character",
        ),
        (
            event().data("external_id", "e".repeat(256)).body(),
            "`data.external_id` is longer than 255 bytes",
        ),
        (
            raw(r#""name":"Acme""#, r#""name":"Acme","name":"Acme""#),
            "`data` is unreadable: duplicate field `name`",
        ),
        (
            r#"{"id":"event_01BX5ZZKBKACTAV9WEVGEMMVRZ","event":"organization.updated"}"#.to_owned(),
            "`data` is missing",
        ),
        (
            r#"{"id":"event_01BX5ZZKBKACTAV9WEVGEMMVRZ","event":"organization.deleted","data":null}"#
                .to_owned(),
            "`data` is missing",
        ),
        (
            r#"{"id":"event_01BX5ZZKBKACTAV9WEVGEMMVRZ","event":"organization.created","data":["org_1"]}"#
                .to_owned(),
            "`data` is not an object",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let id = Event::parse(body.as_bytes()).unwrap().id.to_string();
        let body = body.replace(&id, &event_id(u64::try_from(n).unwrap()));
        app.deliver(&body).await.assert(200);
        app.settle().await;
        let row = app.inbox_row(&event_id(u64::try_from(n).unwrap())).await;
        assert_eq!((row.status.as_str(), row.attempts), ("dead", 1), "{body}");
        let reason = row.last_error.unwrap();
        assert!(reason.starts_with(error), "{reason} for {body}");
        assert_eq!((row.next_attempt_at, row.processed_at), (None, None));
        assert_eq!(row.payload, body);
    }
    assert!(app.organizations().await.is_empty());
}

/// R26: an event that failed or died holds nothing back; when it is tried again, the guard keeps the order.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_failed_or_died_holds_nothing_back() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add constraint no_evil check (name <> 'Evil')")
        .await;
    assert_eq!(app.apply(&created(1, ACME, "Evil")).await, "failed");
    assert_eq!(
        app.apply(&updated(2, ACME, "Acme").without("name")).await,
        "dead"
    );
    assert_eq!(app.apply(&updated(3, ACME, "Acme")).await, "created");
    try_again(&app).await;
    let late = app.inbox_row(&event_id(1)).await;
    assert_eq!(late.outcome.as_deref(), Some("stale"));
    assert_eq!((late.attempts, late.last_error), (2, None));
    assert_eq!(app.organization().await.name, "Acme");

    // R24: at once, by the lane itself: nobody sweeps here.
    put(&app, &[updated(5, ACME, "Acme 5")]).await;
    app.record(&updated(4, ACME, "Acme 4").without("name"))
        .await;
    has_status(&app, &event_id(5), "processed").await;
    assert_eq!(app.inbox_row(&event_id(4)).await.status, "dead");
}

/// R26: what the host's own rules refuse is tried a few times and is then a dead letter that names the rule.
/// Put back by an operator who has mended the rule, it is applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_refusal_of_the_host_is_a_dead_letter() {
    let trigger = "
        create function gate() returns trigger language plpgsql as $$
        begin
            if new.name = 'Evil' then raise exception 'gate says no'; end if;
            return new;
        end $$;
        create trigger gate before insert or update on organization_metadata
            for each row execute function gate()";
    let strict = "
        create table plans (name text primary key);
        create function plan() returns trigger language plpgsql as $$
        declare plan text;
        begin
            if new.name = 'Evil' then select name into strict plan from plans; end if;
            return new;
        end $$;
        create trigger plan before insert or update on organization_metadata
            for each row execute function plan()";
    for (rule, mended, named) in [
        (
            "alter table organization_metadata add constraint no_evil check (name <> 'Evil')",
            "alter table organization_metadata drop constraint no_evil",
            "(SQLSTATE 23514, constraint no_evil)",
        ),
        (
            "alter table organization_metadata add column plan text not null",
            "alter table organization_metadata drop column plan",
            r#"null value in column "plan""#,
        ),
        (
            "insert into organization_metadata (id, name, slug) values ('local', 'Evil', 'local');
             create unique index one_of_a_name on organization_metadata (name)",
            "drop index one_of_a_name; delete from organization_metadata where id = 'local'",
            "(SQLSTATE 23505, constraint one_of_a_name)",
        ),
        (
            trigger,
            "drop trigger gate on organization_metadata",
            "gate says no (SQLSTATE P0001)",
        ),
        (
            strict,
            "drop trigger plan on organization_metadata",
            "query returned no rows (SQLSTATE P0002)",
        ),
    ] {
        let app = TestApp::new().await;
        app.execute(rule).await;
        app.record(&created(1, ACME, "Evil")).await;
        app.settle().await;
        for attempts in 1..5 {
            let row = app.inbox_row(&event_id(1)).await;
            assert_eq!(
                (row.status.as_str(), row.attempts),
                ("failed", attempts),
                "{named}"
            );
            assert!(row.last_error.unwrap().contains(named), "{named}");
            try_again(&app).await;
        }
        let row = app.inbox_row(&event_id(1)).await;
        assert_eq!((row.status.as_str(), row.attempts), ("dead", 5), "{named}");
        assert!(row.last_error.unwrap().contains(named), "{named}");
        assert_eq!(row.next_attempt_at, None);
        // Dead is dead.
        try_again(&app).await;
        assert_eq!(app.inbox_row(&event_id(1)).await.attempts, 5);

        app.execute(mended).await;
        retry_by_hand(&app, &event_id(1)).await;
        app.settle().await;
        let row = app.inbox_row(&event_id(1)).await;
        assert_eq!(row.outcome.as_deref(), Some("created"), "{named}");
        assert_eq!((row.attempts, row.last_error), (6, None));
        assert_eq!(app.organization().await.name, "Evil");
    }
}

/// R26: the few tries of a dead letter are tries that were refused: what held the event up before doesn't count. Put
/// back by an operator, it has as many again.
#[tokio::test(flavor = "multi_thread")]
async fn only_refusals_make_a_dead_letter() {
    let app = TestApp::new().await;
    app.execute(
        "create function gate() returns trigger language plpgsql as $$
         begin raise exception 'too late' using errcode = 'query_canceled'; end $$;
         create trigger gate before insert on organization_metadata
             for each row execute function gate()",
    )
    .await;
    app.apply(&created(1, ACME, "Evil")).await;
    for _ in 0..5 {
        try_again(&app).await;
    }
    let row = app.inbox_row(&event_id(1)).await;
    assert_eq!((row.status.as_str(), row.attempts), ("failed", 6));

    app.execute(
        "drop trigger gate on organization_metadata;
         alter table organization_metadata add constraint no_evil check (name <> 'Evil')",
    )
    .await;
    for attempts in 7..=10 {
        try_again(&app).await;
        let row = app.inbox_row(&event_id(1)).await;
        assert_eq!((row.status.as_str(), row.attempts), ("failed", attempts));
    }
    try_again(&app).await;
    let row = app.inbox_row(&event_id(1)).await;
    assert_eq!((row.status.as_str(), row.attempts), ("dead", 11));
    assert!(row.last_error.unwrap().contains("constraint no_evil"));

    retry_by_hand(&app, &event_id(1)).await;
    app.settle().await;
    for attempts in 12..16 {
        let row = app.inbox_row(&event_id(1)).await;
        assert_eq!((row.status.as_str(), row.attempts), ("failed", attempts));
        try_again(&app).await;
    }
    let row = app.inbox_row(&event_id(1)).await;
    assert_eq!((row.status.as_str(), row.attempts), ("dead", 16));
}

/// R24: a row that somebody put there by hand is processed like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_inserted_by_hand_is_processed() {
    let app = TestApp::new().await;
    put(&app, &[created(1, ACME, "Acme")]).await;
    app.execute(
        r#"insert into webhook_events (event_id, event_type, organization_id, payload)
           values ('by-hand', 'organization.created', null, '{"no": "event"}')"#,
    )
    .await;
    app.settle().await;
    let row = app.inbox_row(&event_id(1)).await;
    assert_eq!(row.outcome.as_deref(), Some("created"));
    assert_eq!((row.attempts, row.processed_at), (1, Some(NOW)));
    let row = app.inbox_row("by-hand").await;
    assert_eq!(row.status, "dead");
    assert!(row.last_error.unwrap().contains("missing field `id`"));
}

/// R18: a row that somebody filed under no organization, or under another than its event is about, has neither the
/// mutex nor the lock of that organization: it is not applied, and says what is to be mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_in_a_wrong_lane_is_a_dead_letter() {
    let app = TestApp::new().await;
    put(&app, &[created(1, ACME, "Acme")]).await;
    put(&app, &[created(2, ACME, "Acme")]).await;
    put(&app, &[created(3, OTHER, "Other")]).await;
    for (n, filed) in [(1, event_id(1)), (2, "org_x".to_owned())] {
        sqlx::query("update webhook_events set lane = $2 where event_id = $1")
            .bind(event_id(n))
            .bind(filed)
            .execute(&app.db.pool)
            .await
            .unwrap();
    }
    app.settle().await;
    for n in [1, 2] {
        let row = app.inbox_row(&event_id(n)).await;
        assert_eq!((row.status.as_str(), row.attempts), ("dead", 1));
        let reason = row.last_error.unwrap();
        assert!(reason.contains("column lane") && reason.contains(ACME));
    }
    assert_eq!(app.organization().await.name, "Other");

    app.execute("update webhook_events set lane = organization_id where status = 'dead'")
        .await;
    retry_by_hand(&app, &event_id(1)).await;
    app.settle().await;
    let row = app.inbox_row(&event_id(1)).await;
    assert_eq!(row.outcome.as_deref(), Some("created"));
}

/// R26: an attempt that failed is repeated when its time has come, not before; the pauses grow.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_comes_at_its_time() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add constraint no_evil check (name <> 'Evil')")
        .await;
    app.apply(&created(1, ACME, "Evil")).await;
    let mut now = NOW;
    for (attempts, least, most) in [(1, 500, 1_000), (2, 1_000, 2_000), (3, 2_000, 4_000)] {
        let row = app.inbox_row(&event_id(1)).await;
        assert_eq!(row.attempts, attempts);
        let next = row.next_attempt_at.unwrap();
        let pause = (next - now).num_milliseconds();
        assert!((least..=most).contains(&pause), "{pause}");

        app.clock.advance(next - now - TimeDelta::microseconds(1));
        app.settle().await;
        assert_eq!(app.inbox_row(&event_id(1)).await, row);
        app.clock.advance(TimeDelta::microseconds(1));
        app.settle().await;
        now = next;
    }
    assert_eq!(app.inbox_row(&event_id(1)).await.attempts, 4);
}

/// R26: a row that somebody keeps locked is no failure of the event: it comes again, and is applied when the row is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_locked_row_ends() {
    let app = TestApp::new().await;
    app.execute(AUDIT).await;
    app.apply(&created(1, ACME, "Acme")).await;
    let lock = app
        .hold("select from organization_metadata for update")
        .await;
    app.record(&updated(2, ACME, "Acme 2")).await;
    eventually("it is put off", async || app.inbox.load().paused == 1).await;
    release(lock).await;
    let row = has_status(&app, &event_id(2), "processed").await;
    assert_eq!(row.outcome.as_deref(), Some("updated"));
    assert_eq!((row.attempts, row.last_error), (1, None));
    assert_eq!(audited(&app).await, ["Acme", "Acme 2"]);
}

/// R25, R26: a connection that is lost in the middle takes the attempt with it; the event is applied once.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_loses_no_event() {
    let app = TestApp::new().await;
    app.execute(AUDIT).await;
    app.apply(&created(1, ACME, "Acme")).await;
    // After the organization's row was written, before the transaction is committed.
    let lock = app
        .hold("lock table workos_organization_syncs in share mode")
        .await;
    app.record(&updated(2, ACME, "Acme 2")).await;
    blocked(&app, 1).await;
    app.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock'",
    )
    .await;
    eventually("nobody waits any more", async || {
        app.db.blocked_sessions().await == 0
    })
    .await;
    assert_eq!(app.inbox_row(&event_id(2)).await.processed_at, None);
    assert_eq!(app.organization().await.name, "Acme");
    release(lock).await;
    try_again(&app).await;
    assert_eq!(
        app.inbox_row(&event_id(2)).await.outcome.as_deref(),
        Some("updated")
    );
    assert_eq!(audited(&app).await, ["Acme", "Acme 2"]);
    let metrics = app.metrics.render().unwrap();
    let line = r#"events_total{source="webhook",type="organization.updated",outcome="updated"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
}

/// R24: what waits of one organization is applied in the order of the ULIDs of the event ids, whatever stands
/// before those, and none is stale.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_applied_in_the_order_of_event_ids() {
    let app = TestApp::new().await;
    for n in [4, 2, 7, 1, 6, 3, 5_u64] {
        let id = event_id(n);
        let ulid = id.strip_prefix("event_").unwrap();
        let id = match n % 4 {
            0 => id.clone(),
            1 => format!("evt_{ulid}"),
            2 => format!("evt_{}", ulid.to_lowercase()),
            _ => ulid.to_owned(),
        };
        put(&app, &[updated(n, ACME, &n.to_string()).id(&id)]).await;
    }
    app.settle().await;
    assert_eq!(app.organization().await.name, "7");
    assert_eq!(count(&app, "status = 'processed'").await, 7);
    assert_eq!(count(&app, "outcome = 'stale'").await, 0);
}

/// R7, R24: the order in the database is the order of the guard, for every pair that the guard compares.
#[tokio::test(flavor = "multi_thread")]
async fn the_database_orders_event_ids_as_the_guard_does() {
    let app = TestApp::new().await;
    let ids = [
        "event_01HX0000000000000000000000",
        "evt_01hx0000000000000000000000",
        "01HX0000000000000000000001",
        "a_b_01HXZZZZZZZZZZZZZZZZZZZZZZ",
        "zoé_7ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        "event_00000000000000000000000000",
        // No ULIDs: too great, foreign letters, too long, too short, something behind it.
        "event_8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        "event_01HXI000000000000000000000",
        "event_01HXL000000000000000000000",
        "event_01HXO000000000000000000000",
        "event_01HXU000000000000000000000",
        "event_01HX00000000000000000000000",
        "event_01HX000000000000000000000",
        "event_01HX0000000000000000000000\n",
        "event_01HX0000000000000000000000_",
        "event_0１HX000000000000000000000",
        "wh_2",
        "wh_10",
        "WH_10",
        "_",
        "é",
        "🦀",
    ];
    for id in ids {
        put(&app, &[EventBuilder::new(1, "user.created", "u").id(id)]).await;
    }
    let rows: Vec<(String, String)> =
        sqlx::query_as("select event_id, event_order from webhook_events")
            .fetch_all(&app.db.pool)
            .await
            .unwrap();
    assert_eq!(rows.len(), ids.len());
    for (a, order_of_a) in &rows {
        assert_eq!(&EventId::new(a).unwrap().order_key(), order_of_a);
        for (b, order_of_b) in &rows {
            let (a, b) = (EventId::new(a).unwrap(), EventId::new(b).unwrap());
            if let Some(order) = a.compare(&b) {
                assert_eq!(order_of_a.cmp(order_of_b), order, "{a:?} and {b:?}");
            }
        }
    }
}

/// R24: a row that another transaction holds is passed over, and is there again when that one is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_holds_is_passed_over() {
    let app = TestApp::new().await;
    put(&app, &[created(1, ACME, "One")]).await;
    let operator = app.hold("select from webhook_events for update").await;
    app.record(&updated(2, ACME, "Two")).await;
    let row = has_status(&app, &event_id(2), "processed").await;
    assert_eq!(row.outcome.as_deref(), Some("created"));
    assert_eq!(app.inbox_row(&event_id(1)).await.status, "pending");
    release(operator).await;
    app.settle().await;
    assert_eq!(
        app.inbox_row(&event_id(1)).await.outcome.as_deref(),
        Some("stale")
    );
}

/// R24: who waits for the inbox to settle, while somebody holds what is due, looks again at the sweeper's pace, and is
/// done when that is.
// On one thread, where the log is.
#[tokio::test]
async fn settling_waits_for_what_somebody_holds() {
    let app = TestApp::new().await;
    put(&app, &[created(1, ACME, "One")]).await;
    let operator = app.hold("select from webhook_events for update").await;
    let logs = Logs::capture();
    let begun = tokio::time::Instant::now();
    let looks_thrice_then_let_go = async {
        eventually("it looks three times", async || {
            logs.text().matches("summary=\"with recursive due").count() >= 3
        })
        .await;
        assert!(begun.elapsed() > Duration::from_millis(1_900));
        release(operator).await;
    };
    tokio::join!(app.settle(), looks_thrice_then_let_go);
    let row = app.inbox_row(&event_id(1)).await;
    assert_eq!(row.outcome.as_deref(), Some("created"));
}

/// R18, R22, R24: several replicas drain one inbox together; each event is applied once, none out of order.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_the_work() {
    let db = Arc::new(TestDatabase::new().await);
    let first = TestApp::on(Arc::clone(&db), Options::default());
    let second = TestApp::on(db, Options::default());
    first.execute(AUDIT).await;
    for n in 0..200 {
        let organization = format!("org_{}", n % 20);
        put(&first, &[updated(n, &organization, &organization)]).await;
    }
    tokio::join!(first.settle(), second.settle());
    // One replica's last event may still be in hand when the other finds nothing due.
    eventually("all are settled", async || {
        count(&first, "status = 'processed'").await == 200
    })
    .await;
    assert_eq!(
        count(
            &first,
            "attempts <> 1 or outcome not in ('created', 'updated')"
        )
        .await,
        0
    );
    // Several events of one organization may need one write only.
    assert!(audited(&first).await.len() >= 20);
}

/// R22: what a replica that died left is processed by another.
#[tokio::test(flavor = "multi_thread")]
async fn events_survive_the_replica_that_accepted_them() {
    let db = Arc::new(TestDatabase::new().await);
    let dying = TestApp::on(Arc::clone(&db), Options::default());
    dying.shutdown.cancel();
    for n in 1..=3 {
        dying.record(&updated(n, ACME, &n.to_string())).await;
    }
    drop(dying);
    let heir = TestApp::on(db, Options::default());
    let sweeper = tokio::task::JoinSet::from_iter([heir.inbox.clone().run_sweeper()]);
    has_status(&heir, &event_id(3), "processed").await;
    assert_eq!(heir.organization().await.name, "3");
    heir.shutdown.cancel();
    sweeper.join_all().await;
}

/// R24: one organization with a great many events hides no other: one look finds all, and its lane takes turns.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowded_lane_hides_no_other() {
    let app = TestApp::new().await;
    app.execute(
        "insert into webhook_events (event_id, event_type, organization_id, payload)
           select 'e' || n, 'user.created', 'org_' || greatest(n - 20000, 0),
                  json_build_object('id', 'e' || n, 'event', 'user.created')
           from generate_series(1, 20050) n",
    )
    .await;
    assert_eq!(app.inbox.sweep().await.unwrap(), 51);
    eventually("the others are processed", async || {
        count(&app, "status <> 'pending' and organization_id <> 'org_0'").await == 50
    })
    .await;
    let crowded = count(&app, "status = 'pending' and organization_id = 'org_0'").await;
    assert!(crowded > 10_000, "{crowded} are left of the crowded lane");
    app.shutdown.cancel();
    app.inbox.clone().run_sweeper().await;
}

/// R24: an organization with more events than a batch takes, or than it may have processed by itself before others
/// have their turn, is processed to the end all the same, without a look into the inbox.
#[tokio::test]
async fn a_crowded_lane_is_processed_to_its_end() {
    let app = TestApp::new().await;
    app.execute(
        "insert into webhook_events (event_id, event_type, organization_id, payload)
           select 'short' || n, 'user.created', 'org_short',
                  json_build_object('id', 'short' || n, 'event', 'user.created')
           from generate_series(1, 3000) n
           union all
           -- Too long for a batch.
           select 'long' || n, 'user.created', 'org_long',
                  json_build_object('id', 'long' || n, 'event', 'user.created', 'data', repeat('x', 9000))
           from generate_series(1, 100) n",
    )
    .await;
    app.record(&created(1, "org_short", "Short")).await;
    app.record(&created(2, "org_long", "Long")).await;
    eventually("all are processed", async || {
        count(&app, "status = 'pending'").await == 0
    })
    .await;
}

/// R24: a flood of more lanes than may wait in memory waits in the inbox, and is drained all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_waits_in_the_inbox() {
    const FLOOD: i64 = 51_000;

    let app = TestApp::new().await;
    app.execute(
        "insert into webhook_events (event_id, event_type, organization_id, payload)
           select 'e' || n, 'user.created', 'org_' || n,
                  json_build_object('id', 'e' || n, 'event', 'user.created')
           from generate_series(1, 51000) n;
           analyze webhook_events",
    )
    .await;
    // Looks go on, claims don't.
    let mut lock = app
        .hold("lock table webhook_events in exclusive mode")
        .await;
    for _ in 0..52 {
        assert!(app.inbox.sweep().await.unwrap() > 0);
    }
    let waiting = app.inbox.load().waiting;
    assert!((25_000..=50_000).contains(&waiting), "{waiting} lanes wait");
    // The holder settles most of it, as other replicas would meanwhile; the test has no time for all.
    lock.execute(
        "update webhook_events set status = 'ignored' where right(event_id, 2) not in ('00', '01')",
    )
    .await
    .unwrap();
    release(lock).await;
    app.settle().await;
    assert_eq!(count(&app, "status = 'ignored'").await, FLOOD);
}

/// Records the creation of Acme, and has it wait in its transaction until the lock that is returned is released.
async fn held_in_hand(app: &TestApp) -> PgConnection {
    let lock = app.hold("lock table workos_organization_syncs").await;
    app.record(&created(1, ACME, "Acme")).await;
    // Where it waits for as long as it takes: a batch would give up, and the lane be begun again.
    eventually("the lane is processed alone", async || {
        app.inbox.load().paused == 1
    })
    .await;
    blocked(app, 1).await;
    lock
}

/// R24: a lane that is in hand doesn't wait for another turn because a look finds the event that it has in hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_wakes_no_lane_that_is_in_hand() {
    let app = TestApp::new().await;
    let lock = held_in_hand(&app).await;
    assert_eq!(app.inbox.sweep().await.unwrap(), 1);
    assert_eq!(app.inbox.load().waiting, 0);
    release(lock).await;
    app.settle().await;
    assert_eq!(app.organization().await.name, "Acme");
}

/// R31: after the signal no event is begun, also not one that waited for its turn; what is in hand is finished.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_begun_after_shutdown() {
    let app = TestApp::new().await;
    let lock = held_in_hand(&app).await;
    app.record(&updated(2, ACME, "Acme 2")).await;
    app.shutdown.cancel();
    app.record(&created(3, OTHER, "Other")).await;
    app.inbox.sweep().await.unwrap();
    release(lock).await;
    // Returns when no lane runs or waits.
    app.inbox.clone().run_sweeper().await;
    assert_eq!(
        app.inbox_row(&event_id(1)).await.outcome.as_deref(),
        Some("created")
    );
    assert_eq!(app.organization().await.name, "Acme");
    assert_eq!(count(&app, "status = 'pending' and attempts = 0").await, 2);
}

/// R31: whoever waits for the inbox to settle isn't kept by a shutdown.
#[tokio::test(flavor = "multi_thread")]
async fn settling_ends_with_a_shutdown() {
    let app = TestApp::new().await;
    app.shutdown.cancel();
    app.record(&created(1, ACME, "Acme")).await;
    tokio::time::timeout(Duration::from_secs(10), app.settle())
        .await
        .unwrap();
    assert_eq!(app.inbox_row(&event_id(1)).await.status, "pending");
}

/// R28: retention removes what was settled before the age, in batches; dead letters, what waits, tombstones
/// and cursors stay.
#[tokio::test(flavor = "multi_thread")]
async fn retention_removes_what_is_settled_and_old() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    app.apply(&deleted(2, OTHER)).await;
    app.execute(
        "create table batches (size bigint);
         create function batch() returns trigger language plpgsql as $$
         begin
             insert into batches select count(*) from gone;
             return null;
         end $$;
         create trigger batch after delete on webhook_events
             referencing old table as gone for each statement execute function batch();

         insert into webhook_events
             (event_id, status, outcome, event_type, processed_at, next_attempt_at, received_at, payload)
         select status || n, status, case status when 'processed' then 'stale' end, 'x', processed_at,
                case status when 'failed' then to_timestamp(1900000000) end, to_timestamp(1500000000), '{}'
         from (values ('processed', to_timestamp(1800000000)), ('ignored', to_timestamp(1800000000)),
                      ('dead', null), ('failed', null), ('pending', null)) s (status, processed_at),
              generate_series(1, 1250) n;
         insert into webhook_events (event_id, status, event_type, processed_at, payload)
         values ('younger', 'ignored', 'x', to_timestamp(1800000001), '{}')",
    )
    .await;
    let age = TimeDelta::days(90);
    assert_eq!(app.inbox.remove_ended(age).await.unwrap(), 0);
    app.clock.advance(age);
    assert_eq!(
        app.inbox.remove_ended(age).await.unwrap(),
        0,
        "exactly the age"
    );
    app.clock.advance(TimeDelta::microseconds(1));
    assert_eq!(app.inbox.remove_ended(age).await.unwrap(), 2_502);
    assert_eq!(app.inbox.remove_ended(age).await.unwrap(), 0);
    let left = count(
        &app,
        "event_id = 'younger' or status in ('dead', 'failed', 'pending')",
    )
    .await;
    assert_eq!((left, count(&app, "true").await), (3_751, 3_751));
    let batches: Vec<i64> =
        sqlx::query_scalar("select size from batches where size > 0 order by size desc")
            .fetch_all(&app.db.pool)
            .await
            .unwrap();
    assert_eq!(batches, [1_000, 1_000, 502]);

    // R23: an event that retention has removed is accepted again, and stale by the cursors that stayed.
    app.execute("delete from webhook_events where status in ('failed', 'pending')")
        .await;
    assert_eq!(app.apply(&created(1, ACME, "Again")).await, "stale");
    assert_eq!(app.apply(&created(0, OTHER, "Back")).await, "stale");
    assert_eq!(app.cursor(OTHER).await, Some(event_id(2)));
}

/// R25: the write and the inbox row are one transaction: where the row can't be settled, nothing was applied.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_applied_that_can_not_be_settled() {
    let app = TestApp::new().await;
    app.execute(
        "create function gate() returns trigger language plpgsql as $$
         begin raise exception 'not now'; end $$;
         create trigger gate before update on webhook_events for each row
             when (new.status = 'processed') execute function gate()",
    )
    .await;
    assert_eq!(app.apply(&created(1, ACME, "Acme")).await, "failed");
    assert!(app.organizations().await.is_empty());
    assert_eq!(app.cursor(ACME).await, None);
    let pushes = "select count(*) from external_id_pushes";
    let recorded: i64 = sqlx::query_scalar(pushes)
        .fetch_one(&app.db.pool)
        .await
        .unwrap();
    assert_eq!(recorded, 0);

    app.execute("drop trigger gate on webhook_events").await;
    try_again(&app).await;
    assert_eq!(
        app.inbox_row(&event_id(1)).await.outcome.as_deref(),
        Some("created")
    );
    assert_eq!(
        app.organization().await.workos_last_event_id,
        Some(event_id(1))
    );
    assert_eq!(app.cursor(ACME).await, Some(event_id(1)));
    let recorded: i64 = sqlx::query_scalar(pushes)
        .fetch_one(&app.db.pool)
        .await
        .unwrap();
    assert_eq!(recorded, 1);
}

/// R25, R26: a transaction that fails at its very end, when it is committed, was none.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_commit_applies_nothing() {
    let app = TestApp::new().await;
    app.execute(
        "create table plans (id text primary key);
         alter table organization_metadata add constraint has_a_plan
             foreign key (id) references plans deferrable initially deferred",
    )
    .await;
    let event = created(1, ACME, "Acme").external_id("acme");
    assert_eq!(app.apply(&event).await, "failed");
    let reason = app.inbox_row(event.event_id()).await.last_error.unwrap();
    assert!(reason.contains("constraint has_a_plan"), "{reason}");
    assert!(app.organizations().await.is_empty());
    app.execute("insert into plans values ('acme')").await;
    try_again(&app).await;
    assert_eq!(
        app.inbox_row(event.event_id()).await.outcome.as_deref(),
        Some("created")
    );
    assert_eq!(
        app.organization().await.workos_last_event_id,
        Some(event_id(1))
    );
}

/// R24: a look into the inbox reads what is due, however many events wait for their time.
#[tokio::test]
async fn a_look_reads_only_what_is_due() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "insert into webhook_events (event_id, status, event_type, organization_id, attempts, next_attempt_at, payload)
           select 'e' || n, 'failed', 'user.created', 'org_' || n, 1,
                  to_timestamp(case when n % 1000 = 0 then 1800000000 else 1800000001 end),
                  json_build_object('id', 'e' || n, 'event', 'user.created')
           from generate_series(1, 5000) n;
         insert into webhook_events (event_id, event_type, organization_id, payload)
           select 'p' || n, 'user.created', 'org_p' || n,
                  json_build_object('id', 'p' || n, 'event', 'user.created')
           from generate_series(1, 3) n;
         analyze",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let logs = Logs::explained(&db).await;
    let app = TestApp::on(Arc::new(db), Options::default());
    assert_eq!(app.inbox.sweep().await.unwrap(), 8);
    app.settle().await;
    assert_eq!(count(&app, "status = 'ignored'").await, 8);
    let text = logs.text();
    let plans: Vec<_> = text.split("Query Text:").skip(1).collect();
    assert!(plans.len() > 5, "{} plans", plans.len());
    for plan in plans {
        let removed = plan.split("Rows Removed by Filter: ").skip(1);
        for rows in removed {
            let rows: String = rows.chars().take_while(char::is_ascii_digit).collect();
            assert!(rows.parse::<u32>().unwrap() < 100, "{plan}");
        }
    }
}

/// R9, R24, R28: on full tables, every statement of an event's way goes by an index; none reads a table through.
#[tokio::test]
async fn the_statements_of_an_event_go_by_indexes() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "insert into webhook_events
               (event_id, status, outcome, event_type, organization_id, processed_at, payload)
           select 'e' || n, 'processed', 'stale', 'organization.updated', 'org_' || n,
                  to_timestamp(1800000000 - n), '{}'
           from generate_series(1, 20000) n;
           insert into webhook_events (event_id, event_type, organization_id, payload)
           select 'p' || n, 'user.created', 'p' || n % 20,
                  json_build_object('id', 'p' || n, 'event', 'user.created')
           from generate_series(1, 400) n;
           insert into organization_metadata (id, name, slug, workos_id)
           select 'id-' || n, 'Name', 'name-' || n, 'org_' || n
           from generate_series(1, 20000) n;
           insert into workos_organization_syncs (workos_id, last_event_id, updated_at)
           select 'org_' || n, 'e0', now() from generate_series(1, 20000) n;
           insert into external_id_pushes (workos_id, status, organization_id, next_attempt_at, created_at, settled_at)
           select 'org_' || n, 'done', 'x', now(), now(), now() from generate_series(1, 20000) n;
           analyze",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let logs = Logs::explained(&db).await;
    let app = TestApp::on(Arc::new(db), Options::default());
    // Often enough that statements which were prepared have their generic plan.
    for n in 0..10 {
        let known = format!("org_{n}");
        for event in [
            created(n, &format!("new_{n}"), "Name"),
            updated(100 + n, &known, "Renamed"),
            deleted(200 + n, &known),
        ] {
            app.apply(&event).await;
            assert_eq!(app.record(&event).await, Recorded::Duplicate);
        }
        app.inbox
            .watch(EventId::new(event_id(n)).unwrap())
            .outcome(tokio::time::Instant::now() + Duration::from_secs(2))
            .await
            .unwrap();
    }
    assert_eq!(
        app.inbox
            .remove_ended(TimeDelta::seconds(19_000))
            .await
            .unwrap(),
        1_000
    );
    let text = logs.text();
    let plans: Vec<_> = text.split("Query Text:").skip(1).collect();
    let mut seen = std::collections::BTreeSet::new();
    for plan in &plans {
        for index in [
            "webhook_events_pkey",
            "webhook_events_lane_idx",
            "webhook_events_received_at_idx",
            "organization_metadata_pkey",
            "organization_metadata_workos_id_key",
            "organization_metadata_slug_key",
            "workos_organization_syncs_pkey",
        ] {
            if plan.contains(index) {
                seen.insert(index);
            }
        }
        assert!(!plan.contains("Seq Scan"), "{plan}");
    }
    assert!(plans.len() > 300, "{} plans", plans.len());
    assert_eq!(seen.len(), 7, "{seen:?}");
}

//! What operators do: looking at events, retrying, discarding and replaying them (R46–R48).

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use sqlx::PgPool;
use tokio::task::JoinSet;
use workos_sync::inbox::{Recorded, Status};
use workos_sync::operate::events::PENDING_LOOKED_AT;
use workos_sync::operate::{
    Actor, Filter, FilterTexts, OperateError, Page, Selection, Verb, bulk, events, organization,
    pausing, records,
};

use crate::support::event::{at, event_id};
use crate::support::logs::Logs;
use crate::support::{EventBuilder, NOW, TestApp, TestDatabase, created, deleted, updated};

const ACME: &str = "org_acme";

fn operator() -> Actor {
    Actor::User("ada".to_owned())
}

fn texts(parts: serde_json::Value) -> FilterTexts {
    serde_json::from_value(parts).unwrap()
}

fn filter(parts: serde_json::Value) -> Filter {
    texts(parts).read(NOW).unwrap()
}

fn by_filter(parts: serde_json::Value) -> Selection {
    Selection::of(Vec::new(), filter(parts)).unwrap()
}

fn named(ids: &[&str]) -> Selection {
    let ids = ids.iter().map(ToString::to_string).collect();
    Selection::of(ids, Filter::default()).unwrap()
}

/// The ids of a list.
async fn listed(pool: &PgPool, parts: serde_json::Value) -> Vec<String> {
    let listed = events::list(pool, &filter(parts), &Page::default()).await;
    let items = listed.unwrap().items;
    items.into_iter().map(|event| event.event_id).collect()
}

/// Events of every status: e1 to e6, received a minute after each other.
async fn one_of_each(pool: &PgPool) {
    sqlx::raw_sql(
        "insert into webhook_events
             (event_id, status, outcome, event_type, organization_id, source, attempts, cause, last_error, received_at,
              processed_at, next_attempt_at, payload)
         select 'e' || n, status, outcome, type, organization, source, attempts, cause, error,
                timestamptz '2027-01-15 07:00:00Z' + n * interval '1 minute', processed, next, '{}'
         from (values
           (1, 'processed', 'updated', 'organization.updated', 'org_a', 'webhook', 1, null, null, now(), null),
           (2, 'ignored', null, 'user.created', null, 'events_api', 0, null, null, now(), null),
           (3, 'failed', null, 'organization.updated', 'org_a', 'webhook', 2, 'lock', 'Lock Timeout', null, now()),
           (4, 'dead', null, 'organization.created', 'org_b', 'replay', 5, 'check:name', 'Name is 100% short', null, null),
           (5, 'pending', null, 'organization.updated', 'org_a', 'webhook', 0, null, null, null, null),
           (6, 'discarded', null, 'organization.created', 'org_b', 'webhook', 5, 'check:name', 'too short', now(), null)
         ) as rows (n, status, outcome, type, organization, source, attempts, cause, error, processed, next)",
    )
    .execute(pool)
    .await
    .unwrap();
}

/// R47: each filter selects what it says, alone and with others; newest received first.
#[tokio::test]
async fn each_filter_selects_what_it_says() {
    let db = TestDatabase::new().await;
    one_of_each(&db.pool).await;
    for (parts, expected) in [
        (json!({}), "e6 e5 e4 e3 e2 e1"),
        (json!({"status": "pending"}), "e5"),
        (json!({"status": "processed"}), "e1"),
        (json!({"status": "ignored"}), "e2"),
        (json!({"status": "failed"}), "e3"),
        (json!({"status": "dead"}), "e4"),
        (json!({"status": "discarded"}), "e6"),
        (json!({"type": "organization.created"}), "e6 e4"),
        (json!({"organization": "org_a"}), "e5 e3 e1"),
        (json!({"organization": "org_a", "status": "pending"}), "e5"),
        (json!({"organization": "org_a", "status": "failed"}), "e3"),
        (json!({"organization": "org_none"}), ""),
        (json!({"source": "events_api"}), "e2"),
        (json!({"cause": "check:name"}), "e6 e4"),
        (json!({"cause": "check:name", "status": "dead"}), "e4"),
        (json!({"error": "lock timeout"}), "e3"),
        (json!({"error": "100% s"}), "e4"),
        (json!({"error": "%"}), "e4"),
        (json!({"since": "2027-01-15T07:05:00Z"}), "e6 e5"),
        (json!({"until": "2027-01-15T07:03:00Z"}), "e2 e1"),
        (
            json!({"since": "2027-01-15T07:02:00Z", "until": "2027-01-15T07:06:00Z", "source": "webhook"}),
            "e5 e3",
        ),
        // NOW is 08:00.
        (
            json!({"since": "57m", "type": "organization.updated"}),
            "e5 e3",
        ),
    ] {
        let found = listed(&db.pool, parts.clone()).await.join(" ");
        assert_eq!(found, expected, "{parts}");
    }
}

/// R47: type, source and error alone look back 24 hours; other filters as far as there is anything.
#[tokio::test]
async fn wide_filters_look_back_a_day() {
    let db = TestDatabase::new().await;
    one_of_each(&db.pool).await;
    sqlx::raw_sql("update webhook_events set received_at = received_at - interval '25 hours'")
        .execute(&db.pool)
        .await
        .unwrap();
    for wide in [
        json!({"type": "organization.created"}),
        json!({"source": "replay"}),
        json!({"error": "short"}),
    ] {
        assert_eq!(listed(&db.pool, wide).await, [""; 0]);
    }
    let further = json!({"type": "organization.created", "since": "2d"});
    assert_eq!(listed(&db.pool, further).await, ["e6", "e4"]);
    assert_eq!(listed(&db.pool, json!({"cause": "lock"})).await, ["e3"]);
}

/// R47: pages are exact, also where many events have one time: each event once, in one order, whatever the page.
#[tokio::test]
async fn pages_are_exact_where_times_are_equal() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "insert into webhook_events (event_id, status, event_type, organization_id, received_at, processed_at, payload)
         select 'e' || n, case when n % 5 = 0 then 'pending' else 'ignored' end, 'x',
                case when n % 2 = 0 then 'org_a' end,
                timestamptz '2027-01-15 07:00:00Z' + n / 9 * interval '1 second', now(), '{}'
         from generate_series(1, 60) n",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    for (parts, count) in [(json!({}), 60), (json!({"organization": "org_a"}), 30)] {
        let filter = filter(parts);
        let whole: Vec<(DateTime<Utc>, String)> = sqlx::query_as(
            "select received_at, event_id from webhook_events
             where $1::text is null or organization_id = $1
             order by received_at desc, event_id desc",
        )
        .bind(&filter.organization)
        .fetch_all(&db.pool)
        .await
        .unwrap();
        assert_eq!(whole.len(), count);
        for limit in [1, 7, 30, 59] {
            let mut page = Page { limit, after: None };
            let mut found = Vec::new();
            loop {
                let listed = events::list(&db.pool, &filter, &page).await.unwrap();
                assert!(i64::try_from(listed.items.len()).unwrap() <= limit);
                let items = listed.items.into_iter();
                found.extend(items.map(|event| (event.received_at, event.event_id)));
                match listed.next {
                    Some(next) => page.after = Some(next),
                    None => break,
                }
            }
            assert_eq!(found, whole, "{limit}");
        }
    }
    let after = Some("nothing".to_owned());
    let page = Page { limit: 1, after };
    let error = events::list(&db.pool, &Filter::default(), &page)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "after: there is no event nothing");
    assert!(error.is_usage());
}

/// R47: all that is known of an event, with its failed attempts; the body only when it is asked for.
#[tokio::test]
async fn an_event_is_shown_whole() {
    let app = TestApp::new().await;
    app.execute(
        "alter table organization_metadata add constraint name_is_short check (length(name) < 9)",
    )
    .await;
    let event = created(1, ACME, "Much too long");
    app.record(&event).await;
    for _ in 0..5 {
        app.settle().await;
        app.clock.advance(TimeDelta::minutes(6));
    }
    let pool = &app.db.pool;
    let shown = events::show(pool, &event_id(1)).await.unwrap().unwrap();
    assert_eq!(shown.summary.status, "dead");
    assert_eq!(shown.summary.cause.as_deref(), Some("check:name_is_short"));
    assert_eq!((shown.summary.attempts, shown.failures.len()), (5, 5));
    assert_eq!(shown.failures[4].attempt, 5);
    assert_eq!(shown.lane, ACME);
    let json = serde_json::to_value(&shown).unwrap();
    assert_eq!(json["type"], "organization.created");
    assert_eq!(json["received_at"], "2027-01-15T08:00:00Z");
    assert_eq!(json["failures"][0]["cause"], "check:name_is_short");
    assert_eq!(json.get("payload"), None);
    let payload = events::payload(pool, &event_id(1)).await.unwrap();
    assert_eq!(payload, Some(event.body()));
    assert_eq!(events::show(pool, "none").await.unwrap(), None);
    assert_eq!(events::payload(pool, "none").await.unwrap(), None);
}

/// R27, R47: a stale event says which cursor and time refused it, or which deletion; whether it was delivered or replayed
/// from a file.
#[tokio::test]
async fn a_stale_event_says_what_refused_it() {
    let app = TestApp::new().await;
    for event in [
        updated(5, ACME, "Acme").external_id("acme"),
        created(1, ACME, "Old"),
        deleted(6, "org_gone"),
        updated(7, "org_gone", "Late"),
        // The row is another's, which is newer.
        created(2, "org_other", "Other").external_id("acme"),
    ] {
        app.apply(&event).await;
    }
    let saved = created(3, ACME, "Old too").body().into_bytes();
    let saved = app.inbox.read_saved(saved).unwrap();
    app.inbox.record_all(vec![saved]).await.remove(0).unwrap();
    let compared = async |n| {
        let shown = events::show(&app.db.pool, &event_id(n)).await.unwrap();
        shown.unwrap().compared
    };
    let newest =
        Some(json!({ "last_event_id": event_id(5), "updated_at": "2027-01-15T08:00:05Z" }));
    for n in [1, 2, 3] {
        assert_eq!(compared(n).await, newest, "{n}");
    }
    assert_eq!(
        compared(7).await.unwrap()["deleted_at"],
        "2027-01-15T08:00:06Z"
    );
    assert_eq!(compared(5).await, None);
    // It goes with the outcome.
    app.execute("delete from organization_metadata; delete from workos_organization_syncs")
        .await;
    bulk::replay(
        &app.db.pool,
        filter(json!({"organization": ACME})),
        &operator(),
        |_| {},
    )
    .await
    .unwrap();
    app.settle().await;
    assert_eq!(compared(1).await, None);
}

/// R47: failed events and dead letters, by what failed, the most frequent first.
#[tokio::test]
async fn causes_are_counted() {
    let db = TestDatabase::new().await;
    one_of_each(&db.pool).await;
    sqlx::raw_sql(
        "insert into webhook_events (event_id, status, event_type, cause, last_error, received_at, next_attempt_at, payload)
         select 'c' || n, case when n > 1 then 'dead' else 'failed' end, 'x', 'check:name', 'error ' || n,
                timestamptz '2027-01-15 07:30:00Z' + n * interval '1 minute', now(), '{}'
         from generate_series(1, 3) n;
         insert into webhook_events (event_id, status, event_type, received_at, payload)
         values ('hand', 'dead', 'x', '2027-01-15 06:00:00Z', '{}')",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let causes = events::causes(&db.pool).await.unwrap();
    let lines: Vec<_> = causes
        .iter()
        .map(|cause| {
            let name = cause.cause.as_deref().unwrap_or("-");
            let error = cause.example_error.as_deref().unwrap_or("-");
            let (failed, dead) = (cause.failed, cause.dead);
            format!("{name} {failed} {dead} {} {error}", cause.example)
        })
        .collect();
    assert_eq!(
        lines,
        [
            "check:name 1 3 c3 error 3",
            "lock 1 0 e3 Lock Timeout",
            "- 0 1 hand -"
        ]
    );
    assert_eq!(causes[0].first_at.to_rfc3339(), "2027-01-15T07:04:00+00:00");
    assert_eq!(causes[0].last_at.to_rfc3339(), "2027-01-15T07:33:00+00:00");
}

/// R47: an organization by either of its ids: row, cursor, write-back, its events with outcomes.
#[tokio::test]
async fn an_organization_is_found_by_either_id() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    app.apply(&updated(2, ACME, "Acme 2")).await;
    app.apply(&deleted(3, "org_gone")).await;
    app.execute(
        "insert into organization_metadata (id, name, slug) values ('signup', 'New', 'new')",
    )
    .await;
    let row = app.organizations().await.remove(0);
    let row = if row.id == "signup" {
        app.organizations().await.remove(1)
    } else {
        row
    };
    let find = async |id: &str| {
        organization::find(&app.db.pool, &app.host, id)
            .await
            .unwrap()
    };
    let found = find(ACME).await.unwrap();
    assert_eq!(find(&row.id).await.unwrap(), found);
    assert_eq!(found.workos_id.as_deref(), Some(ACME));
    let mapped = found.row.unwrap();
    assert_eq!(
        (mapped.name.as_deref(), mapped.slug.as_deref()),
        (Some("Acme 2"), Some("acme"))
    );
    assert_eq!(found.cursor.unwrap().last_event_id, event_id(2));
    assert_eq!(found.write_back.unwrap().organization_id, row.id);
    let outcomes: Vec<_> = found
        .events
        .items
        .iter()
        .map(|event| {
            (
                event.event_id.clone(),
                event.outcome.as_deref().unwrap_or("-"),
            )
        })
        .collect();
    assert_eq!(
        outcomes,
        [(event_id(2), "updated"), (event_id(1), "created")]
    );
    let gone = find("org_gone").await.unwrap();
    assert_eq!(gone.row, None);
    assert!(gone.cursor.unwrap().deleted_at.is_some());
    let unlinked = find("signup").await.unwrap();
    assert_eq!((unlinked.workos_id, unlinked.events.items), (None, vec![]));
    assert_eq!(find("nobody").await, None);
}

/// R48: a retry takes failed events and dead letters, keeps attempts and history, and gives as many tries as a new event
/// has; others that are named are reported and left alone. It is on record.
#[tokio::test]
async fn a_retry_keeps_attempts_and_history() {
    let app = TestApp::new().await;
    app.execute(
        "alter table organization_metadata add constraint name_is_short check (length(name) < 9)",
    )
    .await;
    app.record(&created(1, ACME, "Much too long")).await;
    app.apply(&created(2, "org_2", "Two")).await;
    for _ in 0..5 {
        app.settle().await;
        app.clock.advance(TimeDelta::minutes(6));
    }
    assert_eq!(app.inbox_row(&event_id(1)).await.status, "dead");
    app.execute("alter table organization_metadata drop constraint name_is_short")
        .await;
    let pool = &app.db.pool;
    let (dead, fine) = (event_id(1), event_id(2));
    let selection = named(&[&dead, &fine, "none", &dead]);
    assert_eq!(bulk::count(pool, Verb::Retry, &selection).await.unwrap(), 1);
    let done = bulk::retry(pool, selection, &operator(), |_| {})
        .await
        .unwrap();
    let left: Vec<_> = done
        .left
        .iter()
        .map(|left| (left.event_id.as_str(), left.status.as_deref()))
        .collect();
    assert_eq!(done.count, 1);
    assert_eq!(left, [(fine.as_str(), Some("processed")), ("none", None)]);
    let waiting = app.inbox_row(&dead).await;
    assert_eq!((waiting.status.as_str(), waiting.attempts), ("pending", 5));
    assert!(waiting.last_error.is_some());
    app.settle().await;
    let shown = events::show(pool, &dead).await.unwrap().unwrap();
    assert_eq!(shown.summary.outcome.as_deref(), Some("created"));
    assert_eq!((shown.summary.attempts, shown.failures.len()), (6, 5));
    let action = shown.action.unwrap();
    assert_eq!(
        (action.actor.as_str(), action.action.as_str(), action.count),
        ("ada", "retry", Some(1))
    );
    let recorded = records::actions(pool, 10).await.unwrap();
    assert_eq!(recorded, [action]);
    let ids = &recorded[0].filter.as_ref().unwrap()["ids"];
    assert_eq!(*ids, json!([dead, fine, "none", dead]));
}

/// R48: an event that an operator retries has as many tries as a new one, whether or not it was dead.
#[tokio::test]
async fn a_retried_event_has_all_its_tries() {
    let app = TestApp::new().await;
    app.execute(
        "alter table organization_metadata add constraint name_is_short check (length(name) < 9)",
    )
    .await;
    app.record(&created(1, ACME, "Much too long")).await;
    for _ in 0..4 {
        app.settle().await;
        app.clock.advance(TimeDelta::minutes(6));
    }
    let shown = async || {
        events::show(&app.db.pool, &event_id(1))
            .await
            .unwrap()
            .unwrap()
    };
    assert_eq!(
        (
            shown().await.summary.status.as_str(),
            shown().await.refusals
        ),
        ("failed", 4)
    );
    let selection = by_filter(json!({"status": "failed"}));
    bulk::retry(&app.db.pool, selection, &operator(), |_| {})
        .await
        .unwrap();
    app.settle().await;
    let after = shown().await;
    assert_eq!(
        (after.summary.status.as_str(), after.refusals),
        ("failed", 1)
    );
    assert_eq!(after.summary.attempts, 5);
}

/// R48: what is discarded is final: it isn't applied, a redelivery is a duplicate, and retention removes it in the end.
#[tokio::test]
async fn a_discard_is_final() {
    let app = TestApp::new().await;
    let pool = &app.db.pool;
    let poison = created(1, ACME, "A\0B");
    assert_eq!(app.apply(&poison).await, "dead");
    let waiting = event_id(2);
    crate::support::put(&app, &[created(2, "org_2", "Two")]).await;
    let selection = named(&[&event_id(1), &waiting]);
    for reason in ["", " \n"] {
        let refused = bulk::discard(pool, selection.clone(), reason, &operator(), |_| {}).await;
        assert!(matches!(refused, Err(OperateError::NoReason)));
    }
    assert_eq!(records::actions(pool, 10).await.unwrap(), []);
    let done = bulk::discard(pool, selection, "a test of theirs", &Actor::Token, |_| {})
        .await
        .unwrap();
    assert_eq!((done.count, done.left), (2, vec![]));
    app.settle().await;
    assert_eq!(app.organizations().await, []);
    assert_eq!(app.record(&poison).await, Recorded::Duplicate);
    app.settle().await;
    let shown = events::show(pool, &event_id(1)).await.unwrap().unwrap();
    assert_eq!(shown.summary.status, "discarded");
    assert!(shown.summary.last_error.is_some() && shown.summary.processed_at.is_some());
    let action = shown.action.unwrap();
    assert_eq!(
        (action.actor.as_str(), action.reason.as_deref()),
        ("token", Some("a test of theirs"))
    );
    let retried = bulk::retry(pool, named(&[&waiting]), &operator(), |_| {})
        .await
        .unwrap();
    assert_eq!(retried.left[0].status.as_deref(), Some("discarded"));
    app.execute(
        "update webhook_events set processed_at = to_timestamp(1800000000) - interval '2 days',
             received_at = to_timestamp(1800000000) - interval '2 days'",
    )
    .await;
    assert_eq!(app.inbox.remove_ended(TimeDelta::days(1)).await.unwrap(), 2);
}

/// R48: it is said which events are meant, and in one way.
#[test]
fn a_selection_says_one_thing() {
    let ids = vec!["e".to_owned()];
    let some = filter(json!({"status": "dead"}));
    let of = |ids: &Vec<String>, filter: &Filter| Selection::of(ids.clone(), filter.clone());
    let (none, everything) = (Vec::new(), Filter::default());
    assert!(matches!(
        of(&none, &everything),
        Err(OperateError::NothingSelected)
    ));
    assert!(matches!(of(&ids, &some), Err(OperateError::SelectedTwice)));
    assert!(of(&ids, &everything).is_ok() && of(&none, &some).is_ok());
}

/// Handlers of requests call the operations, on whichever thread.
#[tokio::test]
async fn operations_can_be_moved_between_threads() {
    fn is_send<T: Send>(_: T) {}
    let app = TestApp::new().await;
    let pool = &app.db.pool;
    is_send(events::list(pool, &Filter::default(), &Page::default()));
    is_send(events::show(pool, "e"));
    is_send(events::payload(pool, "e"));
    is_send(events::causes(pool));
    is_send(organization::find(pool, &app.host, "e"));
    is_send(records::actions(pool, 1));
    is_send(records::runs(pool, 1));
    let actor = operator();
    is_send(bulk::count(pool, Verb::Retry, &named(&["e"])));
    is_send(bulk::retry(pool, named(&["e"]), &actor, |_| {}));
    is_send(bulk::discard(pool, named(&["e"]), "test", &actor, |_| {}));
    is_send(bulk::replay(pool, Filter::default(), &actor, |_| {}));
    is_send(pausing::pause(pool, pausing::DEFAULT_LENGTH, None, &actor));
    is_send(pausing::resume(pool, &actor));
    is_send(pausing::paused(pool));
}

/// R48: everything that a filter selects, in batches, each event once, also where it is dead again before the next batch;
/// what comes meanwhile isn't meant.
#[tokio::test]
async fn a_filter_is_worked_through_in_batches() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "insert into webhook_events (event_id, status, event_type, organization_id, cause, received_at, payload)
         select 'e' || n, 'dead', 'x', case when n % 2 = 0 then 'org_a' end, 'c' || n % 2,
                now() - interval '1 hour', '{}'
         from generate_series(1, 2500) n;
         update webhook_events set status = 'failed', next_attempt_at = now() where event_id like '%3'",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    for (parts, count) in [
        // Of these, some have failed and aren't dead before they are retried.
        (json!({"type": "x", "since": "2026-01-01T00:00:00Z"}), 2_500),
        (json!({"status": "dead"}), 2_500),
        (json!({"cause": "c0"}), 1_250),
        (json!({"organization": "org_a"}), 1_250),
    ] {
        let selection = by_filter(parts.clone());
        let of = bulk::count(&db.pool, Verb::Retry, &selection)
            .await
            .unwrap();
        assert_eq!(of, count, "{parts}");
        let mut bulk = bulk::begin(&db.pool, Verb::Retry, selection, None, &operator())
            .await
            .unwrap();
        let (mut seen, mut batches) = (BTreeSet::new(), 0);
        while let Some(ids) = bulk.next().await.unwrap() {
            batches += 1;
            for id in &ids {
                assert!(seen.insert(id.clone()), "{id} twice");
            }
            // They fail again at once, and another comes.
            sqlx::query(
                "insert into webhook_events (event_id, status, event_type, organization_id, cause, payload)
                 select 'later', 'dead', 'x', 'org_a', 'c0', '{}' on conflict do nothing",
            )
            .execute(&db.pool)
            .await
            .unwrap();
            sqlx::query("update webhook_events set status = 'dead' where event_id = any ($1)")
                .bind(&ids)
                .execute(&db.pool)
                .await
                .unwrap();
        }
        assert_eq!(i64::try_from(seen.len()).unwrap(), count, "{parts}");
        assert_eq!(bulk.progress().count, count);
        assert!(batches >= 2 && !seen.contains("later"));
        sqlx::raw_sql("delete from webhook_events where event_id = 'later'")
            .execute(&db.pool)
            .await
            .unwrap();
        let recorded = records::actions(&db.pool, 1).await.unwrap().remove(0);
        assert_eq!(recorded.count, Some(count));
        assert_eq!(recorded.filter, Some(json!({ "filter": filter(parts) })));
    }
}

/// R48: pending events are discarded in batches too, with failed ones and dead letters, each once; of another type, none.
#[tokio::test]
async fn what_waits_is_discarded_in_batches() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "insert into webhook_events (event_id, status, event_type, organization_id, next_attempt_at, payload)
         select 'e' || n, (array['pending', 'pending', 'failed', 'dead'])[n % 4 + 1], case when n % 5 = 0 then 'y' else 'x' end,
                'org_' || n % 7, now(), '{}'
         from generate_series(1, 4000) n",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let selection = by_filter(json!({"type": "x", "since": "2026-01-01T00:00:00Z"}));
    let of = bulk::count(&db.pool, Verb::Discard, &selection)
        .await
        .unwrap();
    assert_eq!(of, 3_200);
    let done = bulk::discard(&db.pool, selection, "test", &operator(), |_| {})
        .await
        .unwrap();
    assert_eq!(done.count, 3_200);
    let left: Vec<String> = sqlx::query_scalar(
        "select event_type || ' ' || (status = 'discarded') || ' ' || count(*) from webhook_events
         group by event_type, status = 'discarded' order by 1",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert_eq!(left, ["x true 3200", "y false 800"]);
}

/// R48: an action waits for an event that is being applied, and takes what is left of it then: nothing.
#[tokio::test]
async fn a_discard_waits_for_what_is_being_applied() {
    let app = TestApp::new().await;
    crate::support::put(&app, &[created(1, ACME, "Acme")]).await;
    let holder = app
        .hold("update webhook_events set status = 'processed', outcome = 'created', processed_at = now()")
        .await;
    let pool = app.db.pool.clone();
    let mut discarding = JoinSet::new();
    discarding.spawn(async move {
        let selection = by_filter(json!({"status": "pending"}));
        bulk::discard(&pool, selection, "test", &operator(), |_| {})
            .await
            .unwrap()
    });
    crate::support::eventually("it waits", async || app.db.blocked_sessions().await == 1).await;
    crate::support::release(holder).await;
    assert_eq!(discarding.join_all().await[0].count, 0);
    assert_eq!(app.inbox_row(&event_id(1)).await.status, "processed");
}

/// An inbox in which little has failed.
async fn big_inbox(pool: &PgPool) {
    sqlx::raw_sql(
        "insert into webhook_events
             (event_id, status, outcome, event_type, organization_id, processed_at, received_at, payload)
         select 'e' || n, 'processed', 'stale', 'organization.updated', 'org_' || n % 5000, now(),
                timestamptz '2027-01-15 08:00:00Z' - n * interval '1 minute', '{}'
         from generate_series(1, 20000) n;
         insert into webhook_events (event_id, status, event_type, organization_id, cause, last_error, received_at, next_attempt_at, payload)
         select 'd' || n, case when n % 2 = 0 then 'dead' else 'failed' end, 'organization.updated', 'org_' || n,
                'cause ' || n % 5, 'x', timestamptz '2027-01-15 08:00:00Z' - n * interval '1 hour', now(), '{}'
         from generate_series(1, 100) n;
         analyze",
    )
    .execute(pool)
    .await
    .unwrap();
}

/// R47: on a big inbox, each list and each action goes by an index that serves it: none reads the table through.
#[tokio::test]
async fn lists_go_by_indexes() {
    let db = TestDatabase::new().await;
    big_inbox(&db.pool).await;
    let options = db.options.clone();
    for (parts, index) in [
        (json!({}), "webhook_events_received_at_idx"),
        (
            json!({"type": "organization.updated"}),
            "webhook_events_received_at_idx",
        ),
        (
            json!({"source": "replay"}),
            "webhook_events_received_at_idx",
        ),
        (json!({"since": "2h"}), "webhook_events_received_at_idx"),
        (json!({}), "webhook_events_lane_idx"),
        (json!({"status": "pending"}), "webhook_events_lane_idx"),
        (json!({"status": "dead"}), "webhook_events_status_idx"),
        // So few are sorted at once.
        (
            json!({"status": "failed"}),
            "webhook_events_next_attempt_at_idx",
        ),
        (json!({"status": "discarded"}), "webhook_events_status_idx"),
        (
            json!({"status": "processed"}),
            "webhook_events_received_at_idx",
        ),
        (
            json!({"status": "ignored"}),
            "webhook_events_received_at_idx",
        ),
        (
            json!({"status": "dead", "error": "y", "type": "x", "source": "replay"}),
            "webhook_events_status_idx",
        ),
        (json!({"cause": "cause 1"}), "webhook_events_cause_idx"),
        (
            json!({"organization": "org_7"}),
            "webhook_events_organization_idx",
        ),
        (json!({"organization": "org_7"}), "webhook_events_lane_idx"),
    ] {
        let logs = Logs::explained(&db).await;
        let pool = workos_sync::postgres::pool(options.clone(), 1);
        let filter = filter(parts.clone());
        events::list(&pool, &filter, &Page::default())
            .await
            .unwrap();
        let after = Some(
            if filter.organization.is_some() {
                "e7"
            } else {
                "d2"
            }
            .to_owned(),
        );
        events::list(&pool, &filter, &Page { limit: 5, after })
            .await
            .unwrap();
        pool.close().await;
        let text = logs.text();
        let plans: Vec<_> = text.split("Query Text:").skip(1).collect();
        let lists: Vec<_> = plans
            .iter()
            .filter(|plan| plan.contains("order by received_at desc"))
            .collect();
        assert_eq!(lists.len(), 2);
        for plan in lists {
            assert!(!plan.contains("Seq Scan"), "{parts} {plan}");
            assert!(plan.contains(index), "{parts} {index} {plan}");
            // `ignored` is rare here: a page looks at so many, and no more.
            let bound = if filter.status == Some(Status::Ignored) {
                10_010
            } else {
                1_500
            };
            assert!(read_in_vain(plan) < bound, "{parts} {plan}");
        }
    }
    let logs = Logs::explained(&db).await;
    let pool = workos_sync::postgres::pool(options, 1);
    events::causes(&pool).await.unwrap();
    for (verb, parts) in [
        (Verb::Retry, json!({"cause": "cause 1"})),
        (Verb::Discard, json!({"status": "dead"})),
        (Verb::Retry, json!({"organization": "org_3"})),
        (Verb::Replay, json!({"since": "1h"})),
    ] {
        let selection = by_filter(parts);
        bulk::count(&pool, verb, &selection).await.unwrap();
        let bulk = bulk::begin(&pool, verb, selection, Some("test"), &operator()).await;
        bulk.unwrap().finish(|_| {}).await.unwrap();
    }
    let text = logs.text();
    let plans: Vec<_> = text.split("Query Text:").skip(1).collect();
    assert!(plans.len() > 10);
    for plan in plans {
        assert!(!plan.contains("Seq Scan on webhook_events"), "{plan}");
    }
}

/// How many rows a plan has read and thrown away.
fn read_in_vain(plan: &str) -> u64 {
    let removed = plan.split("Rows Removed by Filter: ").skip(1);
    removed
        .map(|rows| {
            let rows: String = rows.chars().take_while(char::is_ascii_digit).collect();
            rows.parse::<u64>().unwrap()
        })
        .sum()
}

/// R47: what is rare is searched for page by page, each of which looks at no more than so many events; what is found is
/// exact, also where times are equal and where some wait.
#[tokio::test]
async fn what_is_rare_is_searched_for_page_by_page() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "insert into webhook_events
             (event_id, status, outcome, event_type, last_error, processed_at, received_at, payload)
         select 'e' || n, case when n % 1000 = 0 then 'pending' else 'processed' end, 'stale',
                case when n % 3000 = 0 or n in (15001, 24001) then 'rare' else 'common' end, 'Seen ' || n, now(),
                timestamptz '2027-01-15 08:00:00Z' - n / 4 * interval '1 minute', '{}'
         from generate_series(1, 25000) n;
         analyze",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    for (parts, limit, at_most) in [
        (json!({"type": "rare", "since": "90d"}), 50, 3),
        (json!({"type": "rare", "since": "90d"}), 2, 7),
        (
            json!({"type": "rare", "since": "90d", "status": "pending"}),
            50,
            1,
        ),
        (
            json!({"type": "rare", "since": "90d", "status": "processed"}),
            50,
            3,
        ),
        (json!({"error": "seen 24001", "since": "90d"}), 50, 3),
        (json!({"status": "ignored"}), 50, 3),
    ] {
        let filter = filter(parts.clone());
        let whole: Vec<String> = sqlx::query_scalar(
            "select event_id from webhook_events
             where ($1::text is null or event_type = $1)
               and ($2::text is null or status = $2)
               and ($3::text is null or lower(last_error) = $3)
             order by received_at desc, event_id desc",
        )
        .bind(&filter.event_type)
        .bind(filter.status.map(Status::as_str))
        .bind(&filter.error)
        .fetch_all(&db.pool)
        .await
        .unwrap();
        let mut page = Page { limit, after: None };
        let (mut found, mut pages) = (Vec::new(), 0);
        loop {
            let listed = events::list(&db.pool, &filter, &page).await.unwrap();
            pages += 1;
            let is_full = i64::try_from(listed.items.len()).unwrap() == limit;
            assert!(
                is_full || listed.next.is_some() == listed.searched_to.is_some(),
                "{parts}: {listed:?}"
            );
            assert!(!listed.pending_left_out);
            if let (Some(last), Some(at)) = (listed.items.last(), listed.searched_to) {
                assert!(last.received_at >= at);
            }
            found.extend(listed.items.into_iter().map(|event| event.event_id));
            match listed.next {
                Some(next) => page.after = Some(next),
                None => break,
            }
        }
        assert_eq!(found, whole, "{parts}");
        assert!(pages <= at_most, "{parts}: {pages} pages");
    }
}

/// R47: a list looks at a bounded number of pending events, and says so where there are more.
#[tokio::test]
async fn a_list_says_that_it_leaves_pending_events_out() {
    let db = TestDatabase::new().await;
    let sql = format!(
        "insert into webhook_events (event_id, event_type, organization_id, lane, event_order, payload)
         select 'e' || n, 'x', lane, lane, 'e' || n, '{{}}'
         from (select n, 'org_' || (n <= 5)::text as lane from generate_series(1, {PENDING_LOOKED_AT}) n) as n"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&db.pool)
        .await
        .unwrap();
    let leaves_out = async |parts| {
        let listed = events::list(&db.pool, &filter(parts), &Page::default()).await;
        listed.unwrap().pending_left_out
    };
    assert!(!leaves_out(json!({})).await);
    sqlx::raw_sql("insert into webhook_events (event_id, event_type, organization_id, payload) values ('one', 'x', 'org_true', '{}')")
        .execute(&db.pool)
        .await
        .unwrap();
    assert!(leaves_out(json!({})).await);
    assert!(leaves_out(json!({"status": "pending"})).await);
    assert!(!leaves_out(json!({"status": "dead"})).await);
    assert!(!leaves_out(json!({"organization": "org_true"})).await);
}

/// R46: replaying everything that is stored leaves every row and cursor as it was, and events with what they came to, but
/// for those that others overtook.
#[tokio::test]
async fn a_replay_of_everything_changes_no_row() {
    let app = TestApp::new().await;
    for event in [
        created(1, ACME, "Acme"),
        updated(2, ACME, "Acme 2"),
        created(3, "org_b", "Bee").external_id("shared"),
        deleted(4, "org_b"),
        created(5, "org_c", "Sea").external_id("shared"),
        deleted(6, "org_c"),
        deleted(7, "org_c"),
        deleted(8, "org_none"),
        updated(9, "org_none", "Late"),
        created(10, "org_odd", "Odd").id("wh_1"),
        updated(10, "org_odd", "Odd too"),
        EventBuilder::new(11, "user.created", "user_1"),
        created(12, "org_d", "Dee"),
    ] {
        app.apply(&event).await;
    }
    // A row that the application enabled by hand stays so.
    app.execute("update organization_metadata set disabled_at = null where id = 'shared'")
        .await;
    let cursors = async || -> Vec<(String, String, Option<DateTime<Utc>>)> {
        sqlx::query_as(
            "select workos_id, last_event_id, deleted_at from workos_organization_syncs order by workos_id",
        )
        .fetch_all(&app.db.pool)
        .await
        .unwrap()
    };
    let before = (app.organizations().await, cursors().await);
    for round in 0..3 {
        let done = bulk::replay(&app.db.pool, Filter::default(), &operator(), |_| {}).await;
        assert_eq!(done.unwrap().count, 13, "{round}");
        app.settle().await;
        assert_eq!(
            (app.organizations().await, cursors().await),
            before,
            "{round}"
        );
    }
    for (n, result) in [
        (1, "stale"),
        (2, "updated"),
        (6, "disabled"),
        (7, "stale"),
        (8, "tombstoned"),
        (9, "stale"),
        (11, "ignored"),
        (12, "updated"),
    ] {
        let row = app.inbox_row(&event_id(n)).await;
        assert_eq!(row.outcome.unwrap_or(row.status), result, "{n}");
    }
}

/// R46: a row that the application removed comes back; the deletion of an organization that had no row disables the one
/// that it has by now.
#[tokio::test]
async fn a_replay_brings_back_what_was_missing() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    app.apply(&updated(2, ACME, "Acme 2")).await;
    app.execute("delete from organization_metadata").await;
    assert_eq!(app.apply(&deleted(3, "org_gone")).await, "tombstoned");
    app.execute(
        "insert into organization_metadata (id, name, slug, workos_id) values ('late', 'Late', 'late', 'org_gone')",
    )
    .await;
    let everything = || bulk::replay(&app.db.pool, Filter::default(), &Actor::Loopback, |_| {});
    assert_eq!(everything().await.unwrap().count, 3);
    app.settle().await;
    let rows = app.organizations().await;
    let of = |workos_id: &str| {
        let found = rows
            .iter()
            .find(|row| row.workos_id.as_deref() == Some(workos_id));
        found.unwrap().clone()
    };
    assert_eq!(of(ACME).name, "Acme 2");
    assert_eq!(of("org_gone").disabled_at, Some(at(3)));
    // Once: the application may enable it again.
    app.execute("update organization_metadata set disabled_at = null")
        .await;
    everything().await.unwrap();
    app.settle().await;
    assert!(
        app.organizations()
            .await
            .iter()
            .all(|row| row.disabled_at.is_none())
    );
}

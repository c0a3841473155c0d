//! Commits that are shared: by deliveries that come together, and by lanes that are awake together.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use workos_sync::entities::Outcome;
use workos_sync::entities::organization::{OrganizationEvent, organization_id};
use workos_sync::event::Event;
use workos_sync::inbox::Recorded;

use crate::support::app::Answer;
use crate::support::event::{at, event_id};
use crate::support::{
    EventBuilder, NOW, TestApp, apply, created, deleted, eventually, insert, put, release, updated,
};

/// Delivers bodies in two inserts: the first body alone, the others together. Answers in the order of the bodies.
///
/// For a test on one thread: there the others have all come before the insert begins that takes them.
async fn deliver_together(app: &Arc<TestApp>, bodies: Vec<String>) -> Vec<Answer> {
    // Keeps everybody from writing into the inbox.
    let lock = app.hold("lock table webhook_events in share mode").await;
    let all = u64::try_from(bodies.len()).unwrap();
    let mut deliveries = JoinSet::new();
    for (place, body) in bodies.into_iter().enumerate() {
        let app_of_delivery = Arc::clone(app);
        deliveries.spawn(async move { (place, app_of_delivery.deliver(&body).await) });
        if place == 0 {
            inserts_wait(app, 1, 1).await;
        }
    }
    inserts_wait(app, 2, all).await;
    release(lock).await;
    let mut answers = deliveries.join_all().await;
    answers.sort_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Waits until so many inserts wait, with all of so many deliveries in them.
async fn inserts_wait(app: &TestApp, inserts: i64, deliveries: u64) {
    eventually("all are in inserts, and these wait", async || {
        let load = app.inbox.load();
        app.db.blocked_sessions().await == inserts
            && (load.recording, load.entered) == (0, deliveries)
    })
    .await;
}

async fn outcomes(app: &TestApp) -> Vec<(String, i32)> {
    sqlx::query_as(
        "select coalesce(outcome, status), attempts from webhook_events order by event_order",
    )
    .fetch_all(&app.db.pool)
    .await
    .unwrap()
}

/// R12, R24: many events of one organization are decided one by one, in order, and need one write. The first
/// chooses the slug.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_is_decided_event_by_event_and_written_once() {
    let app = TestApp::new().await;
    app.execute(
        "create table writes (name text);
         create function note() returns trigger language plpgsql as
             $$ begin insert into writes values (new.name); return new; end $$;
         create trigger note after insert or update on organization_metadata
             for each row execute function note()",
    )
    .await;
    let history = [
        updated(4, "org_a", "Four"),
        created(1, "org_a", "One"),
        updated(3, "org_a", "Three"),
        deleted(5, "org_a"),
        updated(2, "org_a", "Two"),
    ];
    put(&app, &history).await;
    app.settle().await;
    let row = app.organization().await;
    assert_eq!((row.name.as_str(), row.slug.as_str()), ("Four", "one"));
    assert_eq!(row.disabled_at, Some(at(5)));
    assert_eq!(row.workos_last_event_id, Some(event_id(5)));
    assert_eq!(app.cursor("org_a").await, Some(event_id(5)));
    let expected = ["created", "updated", "updated", "updated", "disabled"];
    assert_eq!(
        outcomes(&app).await,
        expected.map(|outcome| (outcome.to_owned(), 1))
    );
    let writes: Vec<String> = sqlx::query_scalar("select name from writes")
        .fetch_all(&app.db.pool)
        .await
        .unwrap();
    assert_eq!(writes, ["Four"]);
}

/// R2, R6, R19: organizations that meet in one row, in one transaction, take it from each other as they would in
/// transactions of their own.
#[tokio::test(flavor = "multi_thread")]
async fn organizations_that_share_a_row_take_turns_within_a_batch() {
    let app = TestApp::new().await;
    let bodies = [
        created(1, "org_a", "Alpha").external_id("shared").body(),
        created(2, "org_b", "B").external_id("shared").body(),
        created(3, "org_c", "C").external_id("shared").body(),
    ];
    let events = bodies.each_ref().map(|body| {
        let event = Event::parse(body.as_bytes()).unwrap();
        OrganizationEvent::decode(&event).unwrap()
    });
    let namespace = organization_id::default_namespace();
    let mut tx = app.db.pool.begin().await.unwrap();
    let statements = app.host.statements();
    let outcomes = apply(&mut tx, &statements, &events, &namespace, &[], NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        outcomes,
        [Outcome::Created, Outcome::Linked, Outcome::Linked]
    );
    let row = app.organization().await;
    assert_eq!(
        (row.id.as_str(), row.workos_id.as_deref()),
        ("shared", Some("org_c"))
    );
    assert_eq!((row.name.as_str(), row.slug.as_str()), ("C", "alpha"));
    for (n, workos_id) in [(1, "org_a"), (2, "org_b"), (3, "org_c")] {
        assert_eq!(app.cursor(workos_id).await, Some(event_id(n)));
    }
}

/// R18: a batch that a trigger of the host application holds up, whatever the lock timeout says, holds up no
/// other organization.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_held_up_holds_up_nobody() {
    let app = TestApp::new().await;
    app.execute(
        "create function hold_up() returns trigger language plpgsql as
             $$ begin
                 if new.name = 'Slow' then
                     perform set_config('lock_timeout', '0', true);
                     perform pg_advisory_xact_lock(42);
                 end if;
                 return new;
             end $$;
         create trigger hold_up before insert on organization_metadata
             for each row execute function hold_up()",
    )
    .await;
    let mut holder = app.db.pool.begin().await.unwrap();
    sqlx::raw_sql("select pg_advisory_xact_lock(42)")
        .execute(&mut *holder)
        .await
        .unwrap();
    app.record(&created(1, "org_slow", "Slow")).await;
    eventually("the batch is held up", async || {
        app.db.blocked_sessions().await == 1
    })
    .await;
    let blocked_since = async || -> DateTime<Utc> {
        sqlx::query_scalar(
            "select xact_start from pg_stat_activity
             where datname = current_database() and wait_event_type = 'Lock'",
        )
        .fetch_one(&app.db.pool)
        .await
        .unwrap()
    };
    let held_up = blocked_since().await;
    app.record(&created(2, "org_b", "B")).await;
    let status = async |n| app.inbox_row(&event_id(n)).await.status;
    eventually("the other organization is there", async || {
        status(2).await == "processed"
    })
    .await;
    // Still the same transaction: no timeout has ended the batch.
    assert_eq!(blocked_since().await, held_up);
    holder.rollback().await.unwrap();
    eventually("the one that was held up is there", async || {
        status(1).await == "processed"
    })
    .await;
}

/// R9, R20: creations of one name in one batch get slugs of their own, beside those that are taken.
#[tokio::test(flavor = "multi_thread")]
async fn creations_of_one_name_get_slugs_of_their_own() {
    let app = TestApp::new().await;
    app.execute("insert into organization_metadata (id, name, slug) values ('local', 'L', 'acme')")
        .await;
    let events: Vec<_> = (0..100)
        .map(|n| created(n, &format!("org_{n}"), "Acme"))
        .collect();
    put(&app, &events).await;
    app.settle().await;
    let rows = app.organizations().await;
    assert_eq!(rows.len(), 101);
    assert!(
        rows.iter()
            .all(|row| row.slug == "acme" || row.slug.starts_with("acme-"))
    );
}

/// R26: one event that the database refuses, and one that can't be read, cost the other lanes of their batch
/// nothing, not even an attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_costs_its_neighbours_nothing() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add constraint no_evil check (name <> 'Evil')")
        .await;
    let mut events: Vec<_> = (0..50)
        .map(|n| created(n, &format!("org_{n:02}"), &format!("Name {n}")))
        .collect();
    events[7] = created(7, "org_07", "Evil");
    events[9] = created(9, "org_09", "x").without("name");
    put(&app, &events).await;
    app.settle().await;
    for (n, (outcome, attempts)) in outcomes(&app).await.into_iter().enumerate() {
        let expected = match n {
            7 => "failed",
            9 => "dead",
            _ => "created",
        };
        assert_eq!((outcome.as_str(), attempts), (expected, 1), "event {n}");
    }
}

/// R23, R30: deliveries that share an insert with one that can't be stored are durable all the same, and each is
/// answered for itself.
#[tokio::test]
async fn a_body_that_can_not_be_stored_costs_its_neighbours_nothing() {
    let app = Arc::new(TestApp::new().await);
    let mut bodies: Vec<_> = (0..20)
        .map(|n| created(n, &format!("org_{n}"), "Acme").body())
        .collect();
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    bodies[11] = bodies[11].replace("\"metadata\":{}", &format!("\"metadata\":{nested}"));
    for (n, answer) in deliver_together(&app, bodies).await.iter().enumerate() {
        let expected = if n == 11 {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::OK
        };
        assert_eq!(answer.status, expected, "delivery {n}");
    }
    app.settle().await;
    assert_eq!(app.organizations().await.len(), 19);
}

/// R23: an id that comes many times in one insert is new once.
#[tokio::test]
async fn an_id_that_comes_twice_in_one_insert_is_new_once() {
    let app = Arc::new(TestApp::new().await);
    let bodies = (0..20)
        .map(|n| created(n % 4, "org_a", "Acme").body())
        .collect();
    let answers: Vec<_> = deliver_together(&app, bodies)
        .await
        .into_iter()
        .map(|answer| answer.assert(200).json()["status"].clone())
        .collect();
    let accepted = answers
        .iter()
        .filter(|status| *status == "accepted")
        .count();
    let duplicates = answers
        .iter()
        .filter(|status| *status == "duplicate")
        .count();
    assert_eq!((accepted, duplicates), (4, 16));
    app.settle().await;
    assert!(
        outcomes(&app)
            .await
            .iter()
            .all(|(_, attempts)| *attempts == 1)
    );
}

/// Records saved events, as a replay does.
async fn replay(app: &TestApp, events: &[EventBuilder]) -> Vec<Recorded> {
    let saved = events
        .iter()
        .map(|event| app.inbox.read_saved(event.body().into_bytes()).unwrap());
    let replayed = app.inbox.record_all(saved.collect()).await;
    let recorded = replayed
        .into_iter()
        .map(|replayed| replayed.unwrap().recorded);
    recorded.collect()
}

/// How the events stand, in the order of their ids.
async fn results(app: &TestApp) -> Vec<String> {
    let outcomes = outcomes(app).await;
    outcomes.into_iter().map(|(result, _)| result).collect()
}

/// R23, R25: saved events are stored as settled, by the transaction that applies them: no row of the inbox is
/// written twice. An id that comes twice, or is there, is a duplicate; what can't be applied is left to its lane.
#[tokio::test(flavor = "multi_thread")]
async fn saved_events_are_applied_as_they_are_stored() {
    use Recorded::{Accepted, Duplicate, Ignored};

    let app = TestApp::new().await;
    replay(&app, &[created(1, "org_a", "A")]).await;
    app.execute(
        "create function refuse() returns trigger language plpgsql as
             $$ begin raise 'written twice'; end $$;
         create trigger refuse before update on webhook_events
             for each row execute function refuse()",
    )
    .await;
    let saved = [
        updated(3, "org_a", "Three"),
        created(1, "org_a", "A"),
        updated(2, "org_a", "Two"),
        created(4, "org_b", "B"),
        created(4, "org_b", "B"),
        EventBuilder::new(5, "user.created", "user_a"),
        deleted(6, "org_b"),
        created(7, "org_c", "C").without("name"),
    ];
    assert_eq!(
        replay(&app, &saved).await,
        [
            Accepted, Duplicate, Accepted, Accepted, Duplicate, Ignored, Accepted, Accepted
        ]
    );
    let expected = [
        ("created", 1),
        ("updated", 1),
        ("updated", 1),
        ("created", 1),
        ("ignored", 0),
        ("disabled", 1),
        ("pending", 0),
    ];
    assert_eq!(
        outcomes(&app).await,
        expected.map(|(result, attempts)| (result.to_owned(), attempts))
    );
    for row in app.organizations().await {
        let is_a = row.workos_id.as_deref() == Some("org_a");
        assert_eq!(row.name, if is_a { "Three" } else { "B" });
        assert_eq!(row.disabled_at.is_none(), is_a);
    }
    app.execute("drop trigger refuse on webhook_events").await;
    app.settle().await;
    assert_eq!(results(&app).await[6], "dead");
}

/// R24: a saved event waits behind those of its organization that wait in the inbox.
#[tokio::test(flavor = "multi_thread")]
async fn a_saved_event_waits_behind_pending_ones() {
    let app = TestApp::new().await;
    put(&app, &[created(1, "org_a", "One")]).await;
    replay(
        &app,
        &[updated(2, "org_a", "Two"), created(3, "org_b", "B")],
    )
    .await;
    assert_eq!(results(&app).await, ["pending", "pending", "created"]);
    app.settle().await;
    assert_eq!(results(&app).await, ["created", "updated", "created"]);
}

/// R18: a saved event of an organization that another session works on is stored, without a wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_saved_event_waits_for_no_lock() {
    let app = TestApp::new().await;
    let mut holder = app.db.pool.begin().await.unwrap();
    sqlx::raw_sql("select pg_advisory_xact_lock(1061423321, hashtext('org_a'))")
        .execute(&mut *holder)
        .await
        .unwrap();
    let events = [created(1, "org_a", "A"), created(2, "org_b", "B")];
    // Sooner than who waits for a lock gives up.
    timeout(Duration::from_secs(4), replay(&app, &events))
        .await
        .unwrap();
    assert_eq!(results(&app).await, ["pending", "created"]);
    holder.rollback().await.unwrap();
    app.settle().await;
    assert_eq!(results(&app).await, ["created", "created"]);
}

/// R26: a saved event that the database refuses costs the others nothing: all are stored, and only that one fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_among_saved_events_costs_the_others_nothing() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add constraint no_evil check (name <> 'Evil')")
        .await;
    let mut events: Vec<_> = (0..50)
        .map(|n| created(n, &format!("org_{n}"), &format!("Name {n}")))
        .collect();
    events[7] = created(7, "org_7", "Evil");
    let recorded = replay(&app, &events).await;
    assert!(
        recorded
            .iter()
            .all(|recorded| *recorded == Recorded::Accepted)
    );
    app.settle().await;
    for (n, result) in results(&app).await.into_iter().enumerate() {
        assert_eq!(
            result,
            if n == 7 { "failed" } else { "created" },
            "event {n}"
        );
    }
}

/// R23: a saved event that a delivery brings at the same time is stored once, and the others with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_saved_event_that_is_delivered_meanwhile_is_stored_once() {
    let app = TestApp::new().await;
    let mut delivery = app.db.pool.begin().await.unwrap();
    let event = created(1, "org_a", "A");
    insert(&mut *delivery, &event).await;
    let events = [event, updated(2, "org_a", "Two")];
    let deliver = async {
        eventually("the replay waits for the delivery", async || {
            app.db.blocked_sessions().await == 1
        })
        .await;
        delivery.commit().await.unwrap();
    };
    let (recorded, ()) = tokio::join!(replay(&app, &events), deliver);
    assert_eq!(recorded, [Recorded::Duplicate, Recorded::Accepted]);
    app.settle().await;
    assert_eq!(results(&app).await, ["created", "updated"]);
}

//! What whoever listens hears of changes (R53).

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::postgres::PgListener;
use tokio::time::timeout;
use workos_sync::entities::organization::organization_id::{default_namespace, derive};
use workos_sync::event::WorkosId;

use crate::support::app::Options;
use crate::support::event::event_id;
use crate::support::{EventBuilder, TestApp, created, deleted, put, updated};

async fn app(notifies: bool) -> (TestApp, PgListener) {
    let app = TestApp::with(Options {
        notifies,
        ..Options::default()
    })
    .await;
    let mut listener = PgListener::connect_with(&app.db.pool).await.unwrap();
    listener.listen("workos_sync").await.unwrap();
    (app, listener)
}

/// What the listener has heard so far. A message of our own, which comes after all that was committed before, ends it.
async fn heard(app: &TestApp, listener: &mut PgListener) -> Vec<Value> {
    app.execute("select pg_notify('workos_sync', 'end')").await;
    let mut heard = Vec::new();
    loop {
        let next = timeout(Duration::from_secs(10), listener.recv()).await;
        let notification = next.expect("the end is heard").unwrap();
        match notification.payload() {
            "end" => return heard,
            payload => heard.push(serde_json::from_str(payload).unwrap()),
        }
    }
}

fn change(n: u64, organization_id: &str, workos_id: &str, outcome: &str) -> Value {
    json!({
        "organization_id": organization_id,
        "workos_id": workos_id,
        "outcome": outcome,
        "event_id": event_id(n),
    })
}

/// R53: each event that changes a row is told, in a transaction of its own or in a batch; one that changes nothing isn't.
#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_told_once() {
    let (app, mut listener) = app(true).await;
    let a = derive(&default_namespace(), &WorkosId::new("org_a").unwrap());
    app.deliver(&created(1, "org_a", "A").body())
        .await
        .assert(200);
    app.settle().await;
    assert_eq!(
        heard(&app, &mut listener).await,
        [change(1, a.as_str(), "org_a", "created")]
    );

    // In one batch: a change, a stale event, a linked row, a tombstone, a type that isn't handled.
    app.execute("insert into organization_metadata (id, name, slug) values ('local', 'L', 'l')")
        .await;
    put(
        &app,
        &[
            updated(3, "org_a", "A 3"),
            updated(2, "org_a", "A 2"),
            updated(4, "org_b", "B").external_id("local"),
            deleted(5, "org_none"),
            EventBuilder::new(6, "user.created", "user_1"),
        ],
    )
    .await;
    app.execute(
        "update webhook_events set event_order = 'Z' where payload->'data'->>'name' = 'A 2'",
    )
    .await;
    app.settle().await;
    let mut told = heard(&app, &mut listener).await;
    told.sort_by_key(|change| change["event_id"].to_string());
    assert_eq!(
        told,
        [
            change(3, a.as_str(), "org_a", "updated"),
            change(4, "local", "org_b", "linked"),
        ]
    );
    app.apply(&deleted(7, "org_a")).await;
    assert_eq!(
        heard(&app, &mut listener).await,
        [change(7, a.as_str(), "org_a", "disabled")]
    );
}

/// R14, R53: what is told is the id that the row has, though a trigger chose it.
#[tokio::test(flavor = "multi_thread")]
async fn the_id_is_that_of_the_row() {
    let (app, mut listener) = app(true).await;
    app.execute(
        "create function choose() returns trigger language plpgsql as
             $$ begin new.id := 'chosen'; return new; end $$;
         create trigger choose before insert on organization_metadata
             for each row execute function choose()",
    )
    .await;
    app.apply(&created(1, "org_a", "A")).await;
    assert_eq!(
        heard(&app, &mut listener).await,
        [change(1, "chosen", "org_a", "created")]
    );
}

/// R53: what is rolled back was not told, though it came as far as that.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_is_not_told() {
    let (app, mut listener) = app(true).await;
    // Checked after all statements of the transaction.
    app.execute(
        "create function refuse() returns trigger language plpgsql as
             $$ begin raise exception 'no' using errcode = 'P0001'; end $$;
         create constraint trigger refuse after insert on organization_metadata deferrable initially deferred
             for each row when (new.name = 'Refused') execute function refuse()",
    )
    .await;
    assert_eq!(app.apply(&created(1, "org_a", "Refused")).await, "failed");
    assert_eq!(app.apply(&created(2, "org_b", "Taken")).await, "created");
    let told = heard(&app, &mut listener).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["workos_id"], "org_b");
}

/// R53: it is off by default.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_unless_it_is_asked_for() {
    let (app, mut listener) = app(Options::default().notifies).await;
    assert_eq!(app.apply(&created(1, "org_a", "A")).await, "created");
    assert_eq!(heard(&app, &mut listener).await, Vec::<Value>::new());
}

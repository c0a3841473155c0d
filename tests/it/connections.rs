//! Connections that are of no use any more, though they answer (R35).

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;

use crate::support::app::Answer;
use crate::support::{EventBuilder, TestApp, created, eventually, updated};

/// What a delivery or a probe is answered: the status, and the code of a problem.
fn told(answer: &Answer) -> (u16, Option<String>) {
    let code = answer.json()["code"].as_str().map(str::to_owned);
    (answer.status.as_u16(), code)
}

async fn readyz(app: &TestApp) -> (u16, Option<String>) {
    told(
        &app.send(Request::get("/readyz").body(Body::empty()).unwrap())
            .await,
    )
}

async fn deliver_all(
    app: &Arc<TestApp>,
    events: impl IntoIterator<Item = EventBuilder>,
) -> Vec<Answer> {
    let mut deliveries = JoinSet::new();
    for event in events {
        let app = Arc::clone(app);
        deliveries.spawn(async move { app.deliver(&event.body()).await });
    }
    deliveries.join_all().await
}

/// Changes a default of the database, for the connections that are opened from now on. Those that are there stay as they
/// are, as they do when an endpoint is led to another server.
async fn set_default(app: &TestApp, change: &str) {
    let statement = format!(
        "do $$ begin execute format('alter database %I {change}', current_database()); end $$"
    );
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(&app.db.pool)
        .await
        .unwrap();
}

/// R35: connections that were opened while the endpoint led to a server that only reads aren't kept, though reading works
/// on them. While it lasts, deliveries and `readyz` say so; afterwards deliveries are stored at once.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_only_read_are_not_kept() {
    let app = Arc::new(TestApp::new().await);
    let events = |from: u64| (from..from + 20).map(|n| created(n, &format!("org_{n}"), "Acme"));
    set_default(&app, "set default_transaction_read_only = on").await;
    for answer in deliver_all(&app, events(0)).await {
        assert_eq!(told(&answer), (503, Some("not_durable".to_owned())));
    }
    let read_only = (503, Some("database_read_only".to_owned()));
    assert_eq!(readyz(&app).await, read_only);
    // Who only reads finds nothing wrong with a connection.
    assert_eq!(app.inbox.sweep().await.unwrap(), 0);

    set_default(&app, "reset default_transaction_read_only").await;
    let mut refused = 0;
    while app
        .deliver(&created(0, "org_0", "Acme").body())
        .await
        .status
        != 200
    {
        refused += 1;
    }
    assert!(
        refused <= 1,
        "the first to fail ends all connections that only read: {refused}"
    );
    for answer in deliver_all(&app, events(0)).await {
        answer.assert(200);
    }
    eventually("it is ready", async || readyz(&app).await == (200, None)).await;
    app.settle().await;
    assert_eq!(app.organizations().await.len(), 20);
}

/// R26, R35: the type of columns changes, of the application's table or, as by a newer version's migration, of ours, while
/// every connection of the pool has plans of it. No event waits for another attempt.
#[tokio::test(flavor = "multi_thread")]
async fn plans_of_a_column_of_another_type_are_not_kept() {
    let app = Arc::new(TestApp::new().await);
    let events =
        |from: u64| (from..from + 60).map(|n| updated(n, &format!("org_{}", n % 30), "Acme"));
    for round in 0..4 {
        deliver_all(&app, events(round * 60)).await;
        app.settle().await;
    }
    app.execute(
        "alter table organization_metadata
             alter column slug type varchar(100),
             alter column id type varchar(100),
             alter column workos_last_event_id type varchar(100);
         alter table webhook_events alter column event_type type varchar(100)",
    )
    .await;
    deliver_all(&app, events(240)).await;
    app.settle().await;
    let others: Vec<(String, i32, Option<String>)> = sqlx::query_as(
        "select status, attempts, last_error from webhook_events
         where status <> 'processed' or attempts <> 1",
    )
    .fetch_all(&app.db.pool)
    .await
    .unwrap();
    assert_eq!(others, []);
}

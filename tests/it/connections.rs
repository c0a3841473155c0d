//! Connections that are of no use any more, though they answer (R35).

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::task::JoinSet;
use workos_sync::postgres::{self, Session};

use crate::support::app::{Answer, Options};
use crate::support::{EventBuilder, TestApp, TestDatabase, created, eventually, release, updated};

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

/// R26, R35: the type of columns changes while many connections of the pool have plans of the table, of ours and of a trigger
/// of the application's. No event waits for another attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_another_type_is_no_matter() {
    let app = Arc::new(
        TestApp::with(Options {
            max_connections: 20,
            ..Options::default()
        })
        .await,
    );
    app.execute(
        "create function watch() returns trigger language plpgsql as $$
         begin
             if new.id <> old.id or new.slug <> old.slug then
                 raise 'moved';
             end if;
             return new;
         end $$;
         create trigger watch before update on organization_metadata for each row execute function watch()",
    )
    .await;
    let events =
        |from: u64| (from..from + 60).map(|n| updated(n, &format!("org_{}", n % 30), "Acme"));
    deliver_all(&app, events(0)).await;
    app.settle().await;
    // All that may apply events at once have written rows, and wait.
    let held = app
        .hold("lock table workos_organization_syncs in exclusive mode")
        .await;
    deliver_all(&app, events(60)).await;
    eventually("many connections wait", async || {
        app.db.blocked_sessions().await > 5
    })
    .await;
    release(held).await;
    app.settle().await;
    app.execute(
        "alter table organization_metadata
             alter column slug type varchar(100),
             alter column id type varchar(100),
             alter column workos_last_event_id type varchar(100)",
    )
    .await;
    deliver_all(&app, events(120)).await;
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

/// R35: who meets the plan of a table that has changed ends all connections of the pool that are as old.
#[tokio::test]
async fn old_plans_are_met_once() {
    const CONNECTIONS: usize = 5;

    let database = TestDatabase::new().await;
    let pool = postgres::pool(database.options.clone(), 5);
    let look = async |connection: &mut PgConnection| {
        sqlx::query("select cause from workos_sync.webhook_events")
            .fetch_all(connection)
            .await
    };
    let look_on_all = async || {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(pool.acquire().await.unwrap());
        }
        for connection in &mut connections {
            look(connection).await.unwrap();
        }
    };
    look_on_all().await;
    let change = "alter table webhook_events alter column cause type varchar(100)";
    sqlx::query(change).execute(&database.pool).await.unwrap();

    let error = postgres::transaction(&pool, postgres::PATIENCE, look).await;
    let error = error.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "0A000");
    look_on_all().await;
}

/// R35: who makes transactions one after the other keeps a connection, but not where nobody else would get one, and not
/// where it is of no use any more.
#[tokio::test]
async fn a_connection_is_kept_while_there_are_more() {
    let database = TestDatabase::new().await;
    let pool = postgres::pool(database.options.clone(), 2);
    let backend = async |connection: &mut PgConnection| {
        sqlx::query_scalar::<_, i32>("select pg_backend_pid()")
            .fetch_one(connection)
            .await
    };
    let mut session = Session::new(&pool);
    let first = session.transaction(postgres::PATIENCE, backend).await;
    let first = first.unwrap();
    assert_eq!((pool.size(), pool.num_idle()), (1, 0), "it is kept");
    let other = pool.acquire().await.unwrap();
    let again = session.transaction(postgres::PATIENCE, backend).await;
    assert_eq!(again.unwrap(), first);
    // The pool has no other: whoever wants one gets this.
    let mut given_back = pool.acquire().await.unwrap();
    assert_eq!(backend(&mut given_back).await.unwrap(), first);
    drop((given_back, other));

    let mut session = Session::new(&pool);
    let ended = async |connection: &mut PgConnection| {
        sqlx::query("select pg_terminate_backend(pg_backend_pid())")
            .execute(connection)
            .await
    };
    let error = session.transaction(postgres::PATIENCE, ended).await;
    error.unwrap_err();
    let next = session.transaction(postgres::PATIENCE, backend).await;
    next.unwrap();
}

//! The probes: what `readyz` says of a database that is well, gone, silent or behind (section 7).

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::routing::get;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use workos_sync::entities::organization::Host;
use workos_sync::entities::organization::host::{HostTable, Kind};
use workos_sync::http::health::{Health, NotReady, healthz, readyz};
use workos_sync::postgres;

use crate::support::{TestApp, TestDatabase, created, eventually, release};

/// How long a test waits for what should happen within a second or two.
const SOON: Duration = Duration::from_secs(10);

fn health(database: &PgConnectOptions) -> Health {
    Health::new(CancellationToken::new(), database.clone(), host(), None)
}

/// A table that was good when it was last looked at.
fn host() -> Host {
    let table = HostTable {
        name: "public.organization_metadata".to_owned(),
        schema: "public".to_owned(),
        kind: Kind::Table,
        columns: Vec::new(),
        unique: Vec::new(),
        unfilled: Vec::new(),
        findings: Vec::new(),
    };
    Host::new(table, None)
}

async fn get_path(health: Health, path: &str) -> (u16, String, Option<String>) {
    let (status, body) = get_body(health, path).await;
    let text = |key: &str| body[key].as_str().map(str::to_owned);
    let code = text("code");
    (status, text("status").unwrap_or_default(), code)
}

async fn get_body(health: Health, path: &str) -> (u16, serde_json::Value) {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(health);
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let headers = response.headers();
    let type_expected = if status == 200 {
        "application/json"
    } else {
        assert_eq!(headers[RETRY_AFTER], "1");
        "application/problem+json"
    };
    assert_eq!(headers[CONTENT_TYPE], type_expected);
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

/// Ready, whatever the pool is busy with: the probe has a connection of its own.
#[tokio::test]
async fn a_current_database_is_ready() {
    let TestDatabase {
        options: database, ..
    } = &TestDatabase::new().await;
    let pool = postgres::pool(database.clone(), 1);
    let _busy = pool.acquire().await.unwrap();
    let ready = (200, "ready".to_owned(), None);
    assert_eq!(get_path(health(database), "/readyz").await, ready);
}

/// A database that nobody has migrated is told apart from one that is away.
#[tokio::test]
async fn pending_migrations_are_not_ready() {
    let database = TestDatabase::empty().await;
    let health = health(&database.options);
    assert_eq!(health.check().await, Err(NotReady::Schema));
    let (status, _, code) = get_path(health, "/readyz").await;
    assert_eq!((status, code.as_deref()), (503, Some("schema_outdated")));
}

const NO_SLUG: &str = "public.organization_metadata has no column slug: it has to have one, of type text, varchar, citext or char(n)";

/// R33: a table that can't work, in a database where none ever has, is not ready, and says why. Once it is mended, it is
/// ready, though nobody restarts it or tells it so.
#[tokio::test]
async fn a_table_that_never_worked_is_not_ready() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata drop column slug")
        .await;
    app.host.refresh(&app.db.pool).await.unwrap();
    let health = Health::new(
        CancellationToken::new(),
        app.db.options.clone(),
        app.host.clone(),
        None,
    );
    let (status, body) = get_body(health.clone(), "/readyz").await;
    assert_eq!(
        (status, body["code"].as_str(), body["detail"].as_str()),
        (503, Some("schema_unusable"), Some(NO_SLUG)),
    );

    app.execute("alter table organization_metadata add column slug text unique")
        .await;
    // It looks again every 15 seconds.
    timeout(Duration::from_secs(60), async {
        while health.check().await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(app.host.findings(), []);
}

/// R33: where events have been applied, it is a condition: ready, because they are accepted, and named wherever somebody
/// looks.
#[tokio::test]
async fn a_table_that_stopped_working_is_a_condition() {
    let app = TestApp::new().await;
    assert_eq!(app.apply(&created(1, "org_a", "Acme")).await, "created");
    let get = async |path| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        app.send(request).await.assert(200)
    };
    let ready = async || get("/readyz").await.json();
    let gauge = async || {
        let metrics = get("/metrics").await.text;
        let lines = metrics.lines().filter(|line| !line.starts_with('#'));
        let mut gauge = lines.filter_map(|line| line.strip_prefix("workos_sync_schema_usable "));
        gauge.next().map(str::to_owned)
    };
    assert_eq!(ready().await, serde_json::json!({ "status": "ready" }));
    assert_eq!(gauge().await.as_deref(), Some("1"));

    app.execute("alter table organization_metadata drop column slug, add column plan text not null default ''").await;
    app.execute("alter table organization_metadata alter column plan drop default")
        .await;
    app.host.refresh(&app.db.pool).await.unwrap();
    let named = ready().await;
    assert_eq!(named["conditions"], serde_json::json!([NO_SLUG]));
    assert!(
        named["warnings"][0]
            .as_str()
            .unwrap()
            .starts_with("column plan of "),
        "{named}"
    );
    assert_eq!(gauge().await.as_deref(), Some("0"));
}

/// R26: what only an event finds out is a condition too, and ends with the first that is applied.
#[tokio::test]
async fn what_only_events_find_out_is_a_condition() {
    let app = TestApp::new().await;
    assert_eq!(app.apply(&created(1, "org_a", "Acme")).await, "created");
    app.execute(
        "create function audit() returns trigger language plpgsql as $$ begin insert into nowhere values (1); return new; end $$;
         create trigger audit after insert on organization_metadata for each row execute function audit()",
    )
    .await;
    app.record(&created(2, "org_b", "Globex")).await;
    eventually("it is found out", async || app.inbox.unusable().is_some()).await;
    let get = async |path| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        app.send(request).await.assert(200)
    };
    let named = get("/readyz").await.json();
    assert!(
        named["conditions"][0].as_str().unwrap().contains("nowhere"),
        "{named}"
    );
    assert!(
        get("/metrics")
            .await
            .text
            .contains("workos_sync_schema_usable 0")
    );

    app.execute("create table nowhere (n integer)").await;
    eventually("it is mended", async || {
        get("/readyz").await.json()["conditions"].is_null()
    })
    .await;
    assert!(
        get("/metrics")
            .await
            .text
            .contains("workos_sync_schema_usable 1")
    );
}

/// Somebody who alters the table, for however long, takes nothing out of service.
#[tokio::test]
async fn a_table_that_is_being_altered_is_what_it_was() {
    let app = TestApp::new().await;
    app.execute("create unique index lower_slugs on organization_metadata (lower(slug))")
        .await;
    let health = Health::new(
        CancellationToken::new(),
        app.db.options.clone(),
        app.host.clone(),
        None,
    );
    let altering = app
        .hold("lock table organization_metadata in access exclusive mode")
        .await;
    let probes = async {
        loop {
            assert_eq!(health.check().await, Ok(()));
            sleep(Duration::from_millis(20)).await;
        }
    };
    let until_it_looks = timeout(Duration::from_secs(60), async {
        while app.db.blocked_sessions().await == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    });
    tokio::select! {
        () = probes => {}
        looked = until_it_looks => looked.unwrap(),
    }
    assert_eq!(health.check().await, Ok(()));
    release(altering).await;
}

/// R31: not ready from the moment of the signal, whatever was found just before.
#[tokio::test]
async fn a_service_that_shuts_down_is_not_ready() {
    let database = TestDatabase::new().await;
    let stop = CancellationToken::new();
    let health = Health::new(stop.clone(), database.options.clone(), host(), None);
    assert_eq!(health.check().await, Ok(()));
    stop.cancel();
    let (status, _, code) = get_path(health, "/readyz").await;
    assert_eq!((status, code.as_deref()), (503, Some("shutting_down")));
}

/// `healthz` touches nothing; `readyz` names the database.
#[tokio::test]
async fn without_a_database_the_process_lives_but_is_not_ready() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let health = health(&PgConnectOptions::new().host("127.0.0.1").port(port));
    let ok = (200, "ok".to_owned(), None);
    assert_eq!(get_path(health.clone(), "/healthz").await, ok);
    let (status, _, code) = get_path(health, "/readyz").await;
    assert_eq!(
        (status, code.as_deref()),
        (503, Some("database_unavailable"))
    );
}

/// A database that says nothing is waited for once, however many ask.
#[tokio::test]
async fn probes_of_a_silent_database_share_one_wait() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let health = health(&PgConnectOptions::new().host("127.0.0.1").port(port));
    let start = Instant::now();
    let mut probes = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let health = health.clone();
        probes.spawn(async move { health.check().await });
    }
    for verdict in timeout(SOON, probes.join_all()).await.unwrap() {
        assert_eq!(verdict, Err(NotReady::Database));
    }
    assert!(start.elapsed() < Duration::from_secs(2), "one wait, not 50");
    let _first = silent.accept().await.unwrap();
    let second = timeout(Duration::from_millis(50), silent.accept()).await;
    assert!(second.is_err(), "one connection, not 50");
}

/// A connection that died between two probes is replaced: the database is ready all the time.
#[tokio::test]
async fn a_lost_connection_is_replaced_unnoticed() {
    let database = TestDatabase::new().await;
    let pool = &database.pool;
    let health = health(&database.options.clone().application_name("the probe's"));
    assert_eq!(health.check().await, Ok(()));
    let killed = backend(pool).await.expect("the probe keeps its connection");
    sqlx::query("select pg_terminate_backend($1)")
        .bind(killed)
        .execute(pool)
        .await
        .unwrap();
    timeout(SOON, async {
        // The verdict holds for a second; after it, the next probe connects anew.
        while backend(pool).await.is_none_or(|pid| pid == killed) {
            assert_eq!(health.check().await, Ok(()));
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
}

async fn backend(pool: &PgPool) -> Option<i32> {
    sqlx::query_scalar(
        "select pid from pg_stat_activity
          where datname = current_database() and application_name = 'the probe''s'",
    )
    .fetch_optional(pool)
    .await
    .unwrap()
}

//! The service inside somebody else's application: `examples/embed.rs`, as it stands.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use workos_sync::WorkosSync;
use workos_sync::clock::{Clock, SystemClock};
use workos_sync::service::BuildError;
use workos_sync::signature;

use crate::support::app::SECRET;
use crate::support::{TestDatabase, created, eventually};

#[path = "../../examples/embed.rs"]
#[expect(dead_code, reason = "a test has no main")]
mod example;

/// A request over a connection of its own: status and body.
async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    ask(address, &request).await
}

async fn deliver(address: SocketAddr, body: &str, signature: &str) -> (u16, String) {
    let length = body.len();
    let request = format!(
        "POST /webhooks/workos HTTP/1.1\r\nHost: test\r\nConnection: close\r\nPrefer: wait=30\r\n\
         Content-Length: {length}\r\nWorkOS-Signature: {signature}\r\n\r\n{body}"
    );
    ask(address, &request).await
}

/// The application keeps its routes, its fallback and its health check; the webhook works beside them, on a database
/// that had nothing of ours; and `run` ends when it is asked to, with what was acknowledged applied.
#[tokio::test]
async fn an_application_has_it_inside() {
    let db = TestDatabase::empty().await;
    let pool = PgPool::connect_lazy_with(db.options.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let application = async {
        let served = example::serve(pool, SECRET.into(), listener, stop.clone()).await;
        served.unwrap();
    };
    let client = async {
        let (status, body) = get(address, "/").await;
        assert_eq!((status, &*body), (200, "the application"));
        let (status, body) = get(address, "/healthz").await;
        assert_eq!((status, &*body), (200, "the application is well"));
        let (status, body) = get(address, "/nowhere").await;
        assert_eq!((status, &*body), (404, "the application has no such page"));

        assert_eq!(get(address, "/workos-sync/healthz").await.0, 200);
        assert_eq!(get(address, "/workos-sync/readyz").await.0, 200);
        let (status, metrics) = get(address, "/workos-sync/metrics").await;
        assert_eq!(status, 200);
        assert!(
            metrics.contains("workos_sync_deliveries_total"),
            "{metrics}"
        );

        let body = created(1, "org_a", "Acme").body();
        let signature = signature::sign(&SECRET.into(), body.as_bytes(), SystemClock.now());
        let (status, answer) = deliver(address, &body, &signature).await;
        assert_eq!(status, 200, "{answer}");
        assert!(answer.contains(r#""outcome":"created""#), "{answer}");
        let (status, answer) = deliver(address, &body, "t=1, v1=00").await;
        assert_eq!(status, 401, "{answer}");
        assert!(answer.contains(r#""code":"signature_"#), "{answer}");
        let (status, _) = get(address, "/webhooks/workos").await;
        assert_eq!(status, 405);

        stop.cancel();
    };
    tokio::join!(application, client);
    let names: Vec<String> = sqlx::query_scalar("select name from organization_metadata")
        .fetch_all(&db.pool)
        .await
        .unwrap();
    assert_eq!(names, ["Acme"]);
}

/// Both routers can be merged into one that has a fallback and no route of the same name, in any order.
#[tokio::test]
async fn the_routers_bring_no_fallback() {
    let db = TestDatabase::new().await;
    let sync = WorkosSync::builder(db.pool.clone())
        .webhook_secret(SECRET)
        .webhook_path("/in/from/workos")
        .build()
        .await
        .unwrap();
    let app = axum::Router::new()
        .merge(sync.probes_router())
        .fallback(async || "mine")
        .merge(sync.webhook_router());
    for (path, status) in [("/healthz", 200), ("/other", 200), ("/in/from/workos", 405)] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = app.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
}

/// R33: a table that can't work is an error before anything runs, and so is an old schema where nobody may migrate.
#[tokio::test]
async fn a_database_that_cannot_work_is_refused() {
    let db = TestDatabase::empty().await;
    let build = async |migrate| {
        let builder = WorkosSync::builder(db.pool.clone()).webhook_secret(SECRET);
        builder.migrate(migrate).build().await
    };
    let refused = build(false).await.unwrap_err();
    assert!(matches!(refused, BuildError::Outdated), "{refused}");
    sqlx::query("create table public.organization_metadata (id integer primary key)")
        .execute(&db.pool)
        .await
        .unwrap();
    let refused = build(true).await.unwrap_err();
    assert!(matches!(refused, BuildError::Unusable(_)), "{refused}");
}

/// A host that drops the future, as a test or a supervisor does, is left with no task of ours.
#[tokio::test]
async fn what_runs_ends_with_its_future() {
    let db = TestDatabase::new().await;
    let sync = WorkosSync::builder(db.pool.clone())
        .webhook_secret(SECRET)
        .build()
        .await
        .unwrap();
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    {
        let running = sync.run(CancellationToken::new());
        let begun = tokio::time::timeout(Duration::from_millis(50), running).await;
        assert!(begun.is_err(), "it runs until it is asked to end");
    }
    eventually("no task is left", async || {
        metrics.num_alive_tasks() <= before
    })
    .await;
}

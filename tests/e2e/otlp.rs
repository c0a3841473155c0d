//! Traces, for a collector (R54): built with the feature `otlp`.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;

use crate::support::serving::serve;
use crate::support::{Folder, Kind, SECRET, Service, TestDatabase, event, eventually};

/// What a collector was sent: the type of the body, and the body.
type Received = Arc<Mutex<Vec<(String, Bytes)>>>;

async fn receive(State(received): State<Received>, headers: HeaderMap, body: Bytes) {
    let kind = headers["content-type"].to_str().unwrap().to_owned();
    received.lock().unwrap().push((kind, body));
}

/// R54: the spans of an event's way reach the collector that OTEL_* names, whatever the level of the log; no secret does.
#[tokio::test]
async fn the_way_of_an_event_is_traced() {
    let received = Received::default();
    let router = Router::new()
        .route("/v1/traces", post(receive))
        .with_state(Arc::clone(&received));
    let (address, _serving) = serve(router).await;
    let collector = format!("http://{address}");

    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", SECRET),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.as_str()),
        ("OTEL_SERVICE_NAME", "the-mirror"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let service = Service::start(&folder, &variables).await;
    let body = event(1, Kind::Created, "org_a", "Acme");
    assert_eq!(service.apply(&body).await["outcome"], "created");
    let has = |text: &str| {
        let received = received.lock().unwrap();
        let text = text.as_bytes();
        received
            .iter()
            .any(|(_, body)| body.windows(text.len()).any(|part| part == text))
    };
    eventually("the spans are sent", async || {
        ["request", "record", "apply"].into_iter().all(has)
    })
    .await;
    assert!(has("the-mirror"), "its name");
    assert!(!has(SECRET), "a secret");
    for (kind, _) in received.lock().unwrap().iter() {
        assert_eq!(kind, "application/x-protobuf");
    }
    // What isn't sent yet is sent at the end.
    let before = received.lock().unwrap().len();
    let body = event(2, Kind::Updated, "org_a", "Acme 2");
    service.apply(&body).await;
    let ended = service.terminate().await.assert(0);
    assert!(received.lock().unwrap().len() > before, "{ended:?}");
}

/// R54: a collector that is away costs no event, and no end.
#[tokio::test]
async fn a_collector_that_is_away_is_no_matter() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", SECRET),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
    ];
    let service = Service::start(&folder, &variables).await;
    let body = event(1, Kind::Created, "org_a", "Acme");
    assert_eq!(service.apply(&body).await["outcome"], "created");
    service.terminate().await.assert(0);
}

//! Traces, for a collector (R54): built with the feature `otlp`.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;

use crate::support::service::answer;
use crate::support::serving::serve;
use crate::support::{Folder, Kind, SECRET, Service, TestDatabase, event, eventually};

/// What a collector was sent: the type of the body, and the body.
type Received = Arc<Mutex<Vec<(String, Bytes)>>>;

async fn receive(State(received): State<Received>, headers: HeaderMap, body: Bytes) {
    let kind = headers["content-type"].to_str().unwrap().to_owned();
    received.lock().unwrap().push((kind, body));
}

fn collector(received: &Received) -> Router {
    Router::new()
        .route("/v1/traces", post(receive))
        .with_state(Arc::clone(received))
}

/// Starts the service, which sends its traces there.
async fn traced(folder: &Folder, database: &TestDatabase, collector: &str) -> Service {
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", SECRET),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector),
        ("OTEL_SERVICE_NAME", "the-mirror"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    Service::start(folder, &variables).await
}

/// Says whether a collector was sent these bytes, in whatever field.
fn has(received: &Received, bytes: &[u8]) -> bool {
    let received = received.lock().unwrap();
    received
        .iter()
        .any(|(_, body)| body.windows(bytes.len()).any(|part| part == bytes))
}

/// R54: the spans of an event's way reach the collector that OTEL_* names, whatever the level of the log; no secret does.
#[tokio::test]
async fn the_way_of_an_event_is_traced() {
    let (folder, database, received) = (
        Folder::new(),
        TestDatabase::empty().await,
        Received::default(),
    );
    let (address, _serving) = serve(collector(&received)).await;
    let service = traced(&folder, &database, &format!("http://{address}")).await;
    let body = event(1, Kind::Created, "org_a", "Acme");
    assert_eq!(service.apply(&body).await["outcome"], "created");
    let has = |text: &str| has(&received, text.as_bytes());
    eventually("the spans are sent", async || {
        ["request", "record", "apply"].into_iter().all(has)
    })
    .await;
    assert!(has("the-mirror"), "its name");
    // Attributes, after the length of their names.
    assert!(has("\u{6}events") && has("\u{5}lanes"), "how many");
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

/// R54: a delivery that says which trace it belongs to is a part of that; one that says it badly is taken all the same.
#[tokio::test]
async fn a_delivery_is_part_of_the_callers_trace() {
    let (folder, database, received) = (
        Folder::new(),
        TestDatabase::empty().await,
        Received::default(),
    );
    let (address, _serving) = serve(collector(&received)).await;
    let service = traced(&folder, &database, &format!("http://{address}")).await;
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    for (number, traceparent) in [
        (1, format!("00-{trace}-{parent}-01")),
        (2, "00-all-wrong-01".to_owned()),
    ] {
        let body = event(number, Kind::Updated, "org_a", "Acme");
        let delivery = service.delivery(&body).header("traceparent", traceparent);
        assert_eq!(answer(delivery).await["status"], "accepted");
    }
    // In a span, they are bytes: its trace, and its parent.
    for (field, id) in [(0x0a, trace), (0x22, parent)] {
        let mut bytes = hex::decode(id).unwrap();
        bytes.splice(0..0, [field, u8::try_from(bytes.len()).unwrap()]);
        eventually("the caller's ids are sent", async || has(&received, &bytes)).await;
    }
    service.terminate().await.assert(0);
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

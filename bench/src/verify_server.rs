//! A server that does what comes before Postgres, and nothing else: the limit that HTTP, signature and parser
//! set on this machine.

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use workos_sync::event::Event;
use workos_sync::signature;

use crate::events::{PATH, SECRET};

const TOLERANCE: std::time::Duration = std::time::Duration::from_secs(180);

pub(crate) async fn run() -> anyhow::Result<()> {
    let address = std::env::var("LISTEN_ADDR").context("LISTEN_ADDR")?;
    let secrets: [SecretString; 1] = [SECRET.into()];
    let app = Router::new()
        .route("/readyz", get(async || StatusCode::OK))
        .route(
            PATH,
            post(async move |headers: HeaderMap, body: Bytes| receive(&headers, &body, &secrets)),
        );
    let mut stop = signal(SignalKind::terminate())?;
    axum::serve(TcpListener::bind(address).await?, app)
        .with_graceful_shutdown(async move {
            stop.recv().await;
        })
        .await?;
    Ok(())
}

fn receive(headers: &HeaderMap, body: &Bytes, secrets: &[SecretString]) -> Response {
    let header = headers.get(signature::HEADER).map(HeaderValue::as_bytes);
    if let Err(error) = signature::verify(header, body, secrets, TOLERANCE, chrono::Utc::now()) {
        return (StatusCode::UNAUTHORIZED, error.to_string()).into_response();
    }
    match Event::parse(body) {
        Ok(event) => {
            let answer = format!(r#"{{"event_id":"{}","status":"accepted"}}"#, event.id);
            ([(header::CONTENT_TYPE, "application/json")], answer).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

//! HTTP: the way in for events, and the probes (section "HTTP" of `docs/design.md`).

pub mod body;
pub mod health;
pub mod listener;
pub mod problem;
mod slots;
mod socket;
mod webhook;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, State};
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderName, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use secrecy::SecretString;
use tokio::sync::Semaphore;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::trace::TraceLayer;
use tracing::{Span, debug, error, info_span};
use uuid::{Builder, Uuid};

use crate::clock::Clock;
use crate::inbox::Inbox;
use crate::panics;
use crate::telemetry::Metrics;
use health::Health;
use problem::Problem;

/// How many bodies are in memory at once.
const BODIES_AT_ONCE: usize = 256;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id of a sender's that is taken.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// What the handlers need. Cloning is cheap: axum does it for each request.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    inbox: Inbox,
    health: Health,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    secrets: Vec<SecretString>,
    tolerance: Duration,
    max_body_bytes: usize,
    bodies: Semaphore,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("inbox", &self.inner.inbox)
            .finish_non_exhaustive()
    }
}

impl FromRef<App> for Health {
    fn from_ref(app: &App) -> Self {
        app.inner.health.clone()
    }
}

impl App {
    /// `tolerance`: how far a signature's time may differ from the clock; zero switches the check off.
    #[must_use]
    pub fn new(
        inbox: Inbox,
        health: Health,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        secrets: Vec<SecretString>,
        tolerance: Duration,
        max_body_bytes: usize,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                inbox,
                health,
                clock,
                metrics,
                secrets,
                tolerance,
                max_body_bytes,
                bodies: Semaphore::new(BODIES_AT_ONCE),
            }),
        }
    }
}

/// The routes, with what surrounds them.
pub fn router(app: App, webhook_path: &str) -> Router {
    // From outside in: the id first, so that the span has it; the span next, so that a panic is logged in it.
    let layers = ServiceBuilder::new()
        .map_request(without_odd_id)
        .layer(SetRequestIdLayer::new(REQUEST_ID, RandomId))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                .on_request(())
                .on_response(answered)
                // What went wrong is logged where it is known.
                .on_failure(()),
        )
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(CatchPanicLayer::custom(panicked));

    Router::new()
        .route(webhook_path, post(webhook::receive))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .with_state(app)
        .layer(layers)
}

/// A sender's id goes to the log and back to the sender: only what is short and printable is taken, else the
/// request gets one of ours.
fn without_odd_id<B>(mut request: Request<B>) -> Request<B> {
    let ids = request.headers().get_all(REQUEST_ID);
    let sane = |id: &HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
            && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    if !ids.iter().all(sane) {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}

/// Random UUIDs, of a generator in user space: they are to be told apart, not to be secret.
#[derive(Debug, Clone, Copy)]
struct RandomId;

impl MakeRequestId for RandomId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let id = Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
        let mut text = Uuid::encode_buffer();
        let id = HeaderValue::from_str(id.hyphenated().encode_lower(&mut text));
        id.ok().map(RequestId::new)
    }
}

fn span<B>(request: &Request<B>) -> Span {
    let id = request.extensions().get::<RequestId>();
    let id = id.and_then(|id| id.header_value().to_str().ok());
    // Without the path's unguessable part: the log is read by more people than may post events.
    info_span!("request", method = %request.method(), request_id = id)
}

fn answered<B>(response: &Response<B>, latency: Duration, _: &Span) {
    let latency_ms = latency.as_secs_f64() * 1_000.0;
    debug!(status = response.status().as_u16(), latency_ms, "answered");
}

/// A panic is a bug: it is logged, and the sender is told nothing about it.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panics::message(&*panic).unwrap_or("no message");
    error!(panic = message, "a request panicked: {message}");
    Problem::internal().into_response()
}

async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    let text = app
        .inner
        .metrics
        .render()
        .map_err(|_| Problem::internal())?;
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, HeaderValue::from_static(format))], text).into_response())
}

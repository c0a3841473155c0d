//! HTTP: the way in for events, and the probes (section "HTTP" of `docs/design.md`).

pub mod body;
pub mod health;
pub mod listener;
mod metrics;
pub mod problem;
mod slots;
mod socket;
#[cfg(feature = "otlp")]
mod traceparent;
mod webhook;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, State};
use axum::http::header::HeaderValue;
use axum::http::{HeaderMap, HeaderName, Method, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use secrecy::SecretString;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::trace::TraceLayer;
use tracing::{Span, debug, error, info_span, warn};
use uuid::{Builder, Uuid};

use crate::clock::Clock;
use crate::inbox::{Inbox, Recorded};
use crate::metrics::Metrics;
use crate::panics;
use crate::signature;
use body::Bodies;
use health::Health;
use problem::Problem;

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
    bodies: Bodies,
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
        metrics.expect_deliveries(Recorded::ALL.map(Recorded::as_str));
        metrics.expect_deliveries(Problem::DELIVERY_CODES);
        metrics.expect_secrets(secrets.len());
        Self {
            inner: Arc::new(Inner {
                inbox,
                health,
                clock,
                metrics,
                secrets,
                tolerance,
                bodies: Bodies::new(max_body_bytes),
            }),
        }
    }

    /// How many bytes bodies take of the memory.
    #[must_use]
    pub fn body_bytes_held(&self) -> usize {
        self.inner.bodies.held()
    }
}

/// All routes, and the answer to every other path.
pub fn router(app: App, webhook_path: &str) -> Router {
    let routes = webhook_routes(webhook_path).merge(probe_routes());
    served(app, routes.fallback(not_found))
}

/// The route that receives webhooks.
pub fn webhook_router(app: App, webhook_path: &str) -> Router {
    served(app, webhook_routes(webhook_path))
}

/// The probes and the metrics.
pub fn probes_router(app: App) -> Router {
    served(app, probe_routes())
}

fn webhook_routes(path: &str) -> Router<App> {
    let router = Router::new().route(path, post(webhook::receive));
    if path.ends_with('/') {
        return router;
    }
    // Not a redirect: WorkOS follows none.
    router.route(&format!("{path}/"), post(webhook::receive))
}

fn probe_routes() -> Router<App> {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
}

fn served(app: App, routes: Router<App>) -> Router {
    let routes = routes.method_not_allowed_fallback(async || Problem::method_not_allowed());
    surrounded(routes.with_state(app))
}

/// What surrounds the routes of every listener: request ids, the log, and a net under panics.
pub(crate) fn surrounded(router: Router) -> Router {
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
    router.layer(layers)
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
    let span = info_span!("request", method = %request.method(), request_id = id);
    #[cfg(feature = "otlp")]
    traceparent::follow(&span, request.headers());
    span
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

/// A signed request that goes astray is a mistake in a configuration, here or in WorkOS: nobody else would notice it.
/// Neither path is logged, for either may hold the unguessable part.
async fn not_found(State(app): State<App>, method: Method, headers: HeaderMap) -> Problem {
    let problem = Problem::not_found();
    if headers.contains_key(signature::HEADER) {
        app.inner.metrics.delivery(problem.code());
        warn!(
            %method,
            "a {method} request with a signature is answered 404: its path is not WEBHOOK_PATH; correct the endpoint's URL in WorkOS, or the setting",
        );
    }
    problem
}

//! The operator's page and the admin API, on a listener of their own (R50).
//!
//! Both only present what [`operate`](crate::operate) does; nothing is asked of the database here. Who may ask is decided
//! before anything else (`security`).

mod api;
mod assets;
mod form;
mod page;
mod questions;
mod security;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::net::{TcpListener, TcpSocket};

use crate::clock::Clock;
use crate::entities::organization::Host;
use crate::http::listener::{self, Limits};
use crate::http::problem::Problem;
use crate::http::surrounded;
use crate::operate::Actor;
use crate::postgres;
use security::Guard;

/// Where the page is if nobody says so, where there is one: beside a private database.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

/// Connections that are served at once: operators are few.
pub const MAX_CONNECTIONS: u32 = 64;

/// Connections to the database, beside those of the service: what an operator asks can't hold up what is received.
pub const DATABASE_CONNECTIONS: u32 = 2;

/// What clients may take.
#[must_use]
pub fn limits() -> Limits {
    Limits {
        max_connections: MAX_CONNECTIONS as usize,
        ..Limits::default()
    }
}

/// How long a statement may take that answers a question.
const STATEMENT_LIMIT: Duration = Duration::from_secs(2);

/// How many of the latest runs and actions are shown.
const RECORDS: i64 = 50;

/// An address of ours, before anybody is let in.
#[derive(Debug)]
pub struct Port {
    socket: TcpSocket,
    /// Nobody asked for this address.
    is_default: bool,
}

impl Port {
    /// Makes the address ours. Without one, there is none, or the default one if `has_default`; should that be taken, any.
    ///
    /// # Errors
    /// The address is taken, not ours, or not allowed.
    pub fn bind(address: Option<SocketAddr>, has_default: bool) -> io::Result<Option<Self>> {
        let socket = match address {
            Some(address) => listener::bind(address)?,
            None if has_default => listener::bind(DEFAULT_ADDRESS).or_else(|_| any_port())?,
            None => return Ok(None),
        };
        Ok(Some(Self {
            socket,
            is_default: address.is_none(),
        }))
    }

    /// Lets connections in.
    ///
    /// # Errors
    /// Another process listens on the address by now.
    pub fn listen(self) -> io::Result<TcpListener> {
        match listener::listen(self.socket) {
            Err(error) if self.is_default && error.kind() == io::ErrorKind::AddrInUse => {
                listener::listen(any_port()?)
            }
            listening => listening,
        }
    }
}

fn any_port() -> io::Result<TcpSocket> {
    listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

/// What the handlers need. Cloning is cheap: axum does it for each request.
#[derive(Debug, Clone)]
pub struct Admin(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    guard: Guard,
    clock: Arc<dyn Clock>,
    /// Of the operators alone.
    pool: PgPool,
    host: Host,
    /// Where the database is, as the page says it.
    database: String,
}

/// What the page is about, and who may ask.
#[derive(Debug)]
pub struct Options {
    /// Where the database is.
    pub database: PgConnectOptions,
    /// The same, as the page says it.
    pub database_name: String,
    /// The application's table.
    pub host: Host,
    /// The token that is asked for. Without one, only this machine is to reach the listener.
    pub token: Option<SecretString>,
    /// Every change is refused.
    pub read_only: bool,
}

impl Admin {
    /// Connects when first asked.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, options: Options) -> Self {
        Self(Arc::new(Inner {
            guard: Guard::new(options.token, options.read_only),
            clock,
            pool: postgres::pool(options.database, DATABASE_CONNECTIONS),
            host: options.host,
            database: options.database_name,
        }))
    }

    fn guard(&self) -> &Guard {
        &self.0.guard
    }

    fn now(&self) -> DateTime<Utc> {
        self.0.clock.now()
    }

    fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    fn host(&self) -> &Host {
        &self.0.host
    }

    fn may_change(&self) -> bool {
        !self.guard().read_only
    }

    /// Who asks, if anybody may.
    fn actor(&self) -> Actor {
        if self.guard().has_token() {
            Actor::Token
        } else {
            Actor::Loopback
        }
    }

    fn database(&self) -> &str {
        &self.0.database
    }

    /// Refuses a request: programs get a problem, people a page, or the form that lets them in.
    fn refuse(&self, request: &Request, problem: Problem) -> Response {
        let (uri, headers) = (request.uri(), request.headers());
        if is_api(uri.path()) {
            return problem.into_response();
        }
        if problem.status() == StatusCode::UNAUTHORIZED {
            let next = uri.path_and_query().map_or("/", PathAndQuery::as_str);
            let next = if request.method() == Method::GET {
                next
            } else {
                "/"
            };
            let is_from_elsewhere = headers
                .get("sec-fetch-site")
                .is_some_and(|site| site == "cross-site" || site == "same-site");
            let is_detour = is_from_elsewhere && request.method() == Method::GET;
            return page::login(self, next, false, is_detour);
        }
        page::failure(self, &problem)
    }
}

/// The routes, with what surrounds them.
pub fn router(admin: Admin) -> Router {
    let routes = page::routes()
        .nest(API, api::routes())
        .route("/assets/{name}", get(assets::serve))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .with_state(admin.clone());
    // Around a router, not in it: there, a refusal would name the methods of a path that exists.
    let guarded = Router::new()
        .fallback_service(routes)
        .layer(from_fn(within_limit))
        .layer(from_fn_with_state(admin, security::admit));
    // Outermost: a panic's answer has them, too.
    surrounded(guarded).layer(map_response(with_headers))
}

/// Where the API is.
const API: &str = "/api/v1";

fn is_api(path: &str) -> bool {
    path == "/api" || path.starts_with("/api/")
}

/// Bounds each statement of a question. What changes something is done to its end.
async fn within_limit(request: Request, next: Next) -> Response {
    let is_question = [Method::GET, Method::HEAD].contains(request.method());
    let answer = next.run(request);
    if is_question {
        postgres::with_statement_limit(STATEMENT_LIMIT, answer).await
    } else {
        answer.await
    }
}

async fn unknown(State(admin): State<Admin>, request: Request) -> Response {
    admin.refuse(&request, Problem::not_found())
}

async fn not_allowed(State(admin): State<Admin>, request: Request) -> Response {
    admin.refuse(&request, Problem::method_not_allowed())
}

async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in security::HEADERS {
        // Assets say for themselves how long they may be kept.
        headers
            .entry(HeaderName::from_static(name))
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

//! `workos-sync` keeps a Postgres table of organizations in step with `WorkOS`. It is a program, described in the README;
//! and it is this library, for an application in Rust that wants it inside.
//!
//! # In your application
//!
//! [`WorkosSync::builder`] takes a pool, [`webhook_router`](WorkosSync::webhook_router) is a route for your router, and
//! [`run`](WorkosSync::run) is what goes on in the background:
//!
//! ```no_run
//! use axum::Router;
//! use sqlx::PgPool;
//! use tokio::net::TcpListener;
//! use tokio_util::sync::CancellationToken;
//! use workos_sync::WorkosSync;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = PgPool::connect("postgres://app@db.internal/app").await?;
//! let sync = WorkosSync::builder(pool)
//!     .webhook_secret("the secret of the webhook endpoint")
//!     .api_key("sk_…")
//!     .build()
//!     .await?;
//!
//! let app = Router::new()
//!     // … your routes …
//!     .merge(sync.webhook_router());
//! let listener = TcpListener::bind("0.0.0.0:8080").await?;
//!
//! let stop = CancellationToken::new();
//! tokio::select! {
//!     served = axum::serve(listener, app) => served?,
//!     ended = sync.run(stop.clone()) => ended?,
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `examples/embed.rs` ends both in order. Nothing belongs to the process: no logger, panic hook, signal handler or TLS
//! provider is installed. It logs by `tracing`; without a subscriber, it says nothing.
//!
//! Before 1.0 any release may change the library; the changelog says how. What the program promises (its tables, settings,
//! routes and exit codes) changes as `docs/upgrading.md` says.
//!
//! # How it is built
//!
//! The modules, in the order of an event's way: a request comes in ([`http`]), its signature is verified
//! ([`signature`]), its envelope read ([`event`]); the event is made durable and acknowledged, and waits
//! for its turn in its organization's lane ([`inbox`], one worker a lane: [`keyed_mutex`]), is decided and written ([`entities`]), and leaves an
//! intention to tell `WorkOS` the organization id ([`outbox`], [`workos`]). Around them: the database
//! ([`postgres`]), time ([`clock`]), the end of the process ([`shutdown`]), the log ([`telemetry`]), what is measured
//! ([`metrics`]), what asks `WorkOS` for what was missed ([`heal`]), what operators do ([`operate`], [`pause`]), their page
//! ([`admin`]), what puts them together ([`service`]), what looks for mistakes of the setup ([`doctor`]), and what starts it
//! all ([`config`], [`dotenv`], [`cli`]).
//!
//! Arrows go one way: `cli → service → http → inbox → entities → event`; `entities` records in `outbox` and knows no more of it.

// The way of an event, in its order. (rustfmt sorts what no blank line parts.)

pub mod http;

pub mod signature;

pub mod event;

pub mod inbox;

pub mod keyed_mutex;

pub mod entities;

pub mod outbox;

pub mod workos;

// Beside it.

pub mod admin;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod dotenv;
pub mod heal;
pub mod operate;
pub mod service;

// What all of them use.

mod backoff;
pub mod clock;
pub mod metrics;
mod panics;
pub mod pause;
pub mod postgres;
mod repeats;
pub mod shutdown;
pub mod telemetry;

pub use service::WorkosSync;

/// The version of the program, with the commit where the build knows it.
pub const VERSION: &str = env!("WORKOS_SYNC_VERSION");

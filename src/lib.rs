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
//! The modules, in the order in which one meets them on the way from the program's start to an event's row. Each knows
//! only those that come after it, and those that know no other. `tests/it/architecture.rs` checks both, this list too.
//!
//! - The program: the command line ([`cli`]) with its `.env` file ([`dotenv`]), the log ([`telemetry`]), what looks for
//!   mistakes of the setup ([`doctor`]), the operators' page ([`admin`]), what puts the parts together ([`service`]), as they
//!   are set ([`config`]), and the end of the process ([`shutdown`]).
//! - Beside an event's way: what operators do ([`operate`]), and what asks `WorkOS` for what was missed ([`heal`]).
//! - An event's way: a request comes in ([`http`]), its signature is verified ([`signature`]), its envelope read ([`event`]);
//!   the event is made durable and acknowledged, and waits for its turn in its organization's lane ([`inbox`], one worker a
//!   lane: [`keyed_mutex`]), is decided and written ([`entities`]), and leaves an intention to tell `WorkOS` the organization
//!   id ([`outbox`], [`workos`]).
//! - What they all use: what is measured ([`metrics`]), whether applying is paused ([`pause`]), time ([`clock`]), panics as
//!   errors (`panics`), the log's repeated lines (`repeats`), the wait between tries (`backoff`), and the database
//!   ([`postgres`]).

// The program.
pub mod cli;
pub mod dotenv;
pub mod telemetry;
pub mod doctor;
pub mod admin;
pub mod service;
pub mod config;
pub mod shutdown;

// Beside an event's way.
pub mod operate;
pub mod heal;

// An event's way.
pub mod http;
pub mod signature;
pub mod event;
pub mod inbox;
pub mod keyed_mutex;
pub mod entities;
pub mod outbox;
pub mod workos;

// What they all use.
pub mod metrics;
pub mod pause;
pub mod clock;
mod panics;
mod repeats;
mod backoff;
pub mod postgres;

pub use service::WorkosSync;

/// The version of the program, with the commit where the build knows it.
pub const VERSION: &str = env!("WORKOS_SYNC_VERSION");

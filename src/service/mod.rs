//! The service without its process: what `serve` runs, and what an application of yours can run itself.
//!
//! Nothing here belongs to the process: no logger, no panic hook, no signal handler, no TLS provider is installed. It
//! logs by `tracing`, whose subscriber is yours.

mod builder;
mod engine;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use chrono::TimeDelta;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

pub use builder::{BuildError, Builder};
pub use engine::Engine;

use crate::clock::DatabaseClock;
use crate::entities::organization::Host;
use crate::heal::key::KeyGuard;
use crate::heal::poll::Poll;
use crate::http::{self, App};
use crate::inbox::Inbox;
use crate::metrics::{Metrics, gauges};
use crate::shutdown::{Exit, Shutdown};
use crate::workos::{Priority, WorkosClient};

/// A service on a database: its routes, and what goes on in the background.
///
/// The crate's own documentation has an example.
#[derive(Debug)]
pub struct WorkosSync {
    engine: Engine,
    clock: Arc<DatabaseClock>,
    client: Option<WorkosClient>,
    http: App,
    webhook_path: String,
    poll_interval: Option<Duration>,
    inbox_retention: Option<TimeDelta>,
    shutdown_grace: Duration,
    shutdown: Arc<Shutdown>,
}

/// A background task ended that nobody asked to; the others were ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the background task {0} ended by itself; what it had in hand is still in the inbox: run the service again"
)]
pub struct TaskEnded(pub &'static str);

impl WorkosSync {
    /// The settings of a service on a database. Half of the pool's connections apply events, the other half records
    /// them; [`postgres::pool`](crate::postgres::pool) makes one as `serve` has it. It is best not shared with handlers
    /// of yours that are busy.
    pub fn builder(pool: PgPool) -> Builder {
        Builder::new(pool)
    }

    /// The route that receives webhooks, with what surrounds it: request ids, the access log, panics that are caught.
    /// It has no fallback, and can be merged into any router.
    ///
    /// What the listener of `serve` does against slow and idle clients is left to your server, or to the proxy before it.
    pub fn webhook_router(&self) -> Router {
        http::webhook_router(self.http.clone(), &self.webhook_path)
    }

    /// `GET /healthz`, `/readyz` and `/metrics`. Nest it under a path of its own where your router has one of these.
    pub fn probes_router(&self) -> Router {
        http::probes_router(self.http.clone())
    }

    /// All of it, and the answer to every other path.
    pub(crate) fn router(&self) -> Router {
        http::router(self.http.clone(), &self.webhook_path)
    }

    /// The application's table.
    pub(crate) const fn host(&self) -> &Host {
        &self.engine.target.host
    }

    /// The inbox, for events that come by other ways.
    #[must_use]
    pub const fn inbox(&self) -> &Inbox {
        &self.engine.inbox
    }

    /// What is counted and measured, to be rendered beside metrics of yours.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.engine.metrics
    }

    /// Applies events, and asks and tells WorkOS, until `stop` is cancelled; then finishes what it has in hand, within
    /// the grace period. Cancel `stop` when your server takes no more requests: a delivery that comes later is
    /// recorded, and applied at the next start. Where the future is dropped, what runs is asked to end, and not waited
    /// for.
    ///
    /// # Errors
    /// A background task ended by itself, which is a bug.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskEnded> {
        let _ended_when_dropped = self.shutdown.soft().clone().drop_guard();
        self.spawn_tasks();
        // Both arms only wait.
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.shutdown.ending().cancelled() => {}
        }
        self.shutdown.request();
        let finish = self.shutdown.finish(Duration::ZERO, self.shutdown_grace);
        match finish.await {
            Exit::Failed(task) => Err(TaskEnded(task)),
            Exit::Clean | Exit::GraceExceeded | Exit::Forced => Ok(()),
        }
    }

    /// Begins what goes on in the background, whether or not anybody sends anything.
    pub(crate) fn spawn_tasks(&self) {
        let shutdown = &self.shutdown;
        let stop = || shutdown.soft().clone();
        let Engine {
            pool,
            inbox,
            metrics,
            ..
        } = &self.engine;
        shutdown.spawn("database clock", {
            let (clock, pool, stop) = (Arc::clone(&self.clock), pool.clone(), stop());
            async move { clock.keep(pool, stop).await }
        });
        shutdown.spawn("sweeper", inbox.clone().run_sweeper());
        shutdown.spawn(
            "gauges",
            gauges::keep(
                pool.clone(),
                Arc::clone(&self.engine.clock),
                metrics.clone(),
                stop(),
            ),
        );
        if let Some(age) = self.inbox_retention {
            shutdown.spawn("retention", inbox.clone().run_retention(age));
        }
        if let Some(client) = &self.client {
            let client = client.with_priority(Priority::Poll);
            let asking = ask(self.engine.clone(), client, self.poll_interval, stop());
            shutdown.spawn("WorkOS", asking);
        }
    }
}

/// Polls WorkOS and writes back, once the key is known to be of the environment of this database.
async fn ask(
    engine: Engine,
    client: WorkosClient,
    poll_interval: Option<Duration>,
    stop: CancellationToken,
) {
    let Engine {
        pool,
        clock,
        target,
        metrics,
        outbox,
        inbox,
    } = engine;
    let guard = KeyGuard::new(
        pool.clone(),
        target.host,
        client.clone(),
        Arc::clone(&clock),
    );
    if !guard.accepted(metrics.clone(), stop.clone()).await {
        return;
    }
    let polling = async {
        if let Some(interval) = poll_interval {
            Poll::new(pool, inbox, client, clock, metrics, interval)
                .run(stop.clone())
                .await;
        }
    };
    tokio::join!(polling, outbox.run(stop.clone()));
}

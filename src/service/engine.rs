//! Inbox and outbox, put together.

use std::sync::Arc;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, DatabaseClock};
use crate::entities::Target;
use crate::inbox::{Capacity, Inbox};
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::postgres;
use crate::workos::WorkosClient;

/// What records events, applies them, and remembers what WorkOS is to be told. `serve`, the commands beside it and the
/// tests have the same one.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Of the database.
    pub pool: PgPool,
    /// The time that replicas compare.
    pub clock: Arc<dyn Clock>,
    /// Where organizations are written to.
    pub target: Target,
    /// What is counted.
    pub metrics: Metrics,
    /// What WorkOS is to be told.
    pub outbox: Outbox,
    /// The events.
    pub inbox: Inbox,
}

impl Engine {
    /// An engine on a database whose server has so many places for locks (see [`postgres::lock_places`]). Without a
    /// client, what WorkOS is to be told is recorded, and left to a process that has one. No event is begun after
    /// `shutdown`.
    #[must_use]
    pub fn new(
        pool: PgPool,
        clock: Arc<dyn Clock>,
        target: Target,
        client: Option<WorkosClient>,
        metrics: Metrics,
        lock_places: usize,
        shutdown: CancellationToken,
    ) -> Self {
        let ids = Arc::new(target.host.clone());
        let outbox = Outbox::new(pool.clone(), client, Arc::clone(&clock), ids);
        // The other half records, answers probes and delivers the outbox: lanes that all wait for locks can't
        // keep a delivery from being made durable.
        let apply_connections = pool.options().get_max_connections() / 2;
        let capacity = Capacity {
            apply_connections: usize::try_from(apply_connections).unwrap_or(usize::MAX),
            lock_places,
        };
        let inbox = Inbox::new(
            pool.clone(),
            Arc::clone(&clock),
            outbox.clone(),
            target.clone(),
            metrics.clone(),
            capacity,
            shutdown,
        );
        Self {
            pool,
            clock,
            target,
            metrics,
            outbox,
            inbox,
        }
    }

    /// The same, with the time and the places for locks that the server has. The clock is to be kept
    /// ([`DatabaseClock::keep`]) where the engine is used for long.
    ///
    /// # Errors
    /// The database doesn't answer.
    pub async fn on(
        pool: PgPool,
        target: Target,
        client: Option<WorkosClient>,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Result<(Self, Arc<DatabaseClock>), sqlx::Error> {
        let ask = async |connection: &mut sqlx::PgConnection| {
            let clock = DatabaseClock::ask(connection).await?;
            Ok::<_, sqlx::Error>((clock, postgres::lock_places(connection).await?))
        };
        let (clock, places) = postgres::transaction(&pool, postgres::PATIENCE, ask).await?;
        let clock = Arc::new(clock);
        let engine = Self::new(
            pool,
            clock.clone(),
            target,
            client,
            metrics,
            places,
            shutdown,
        );
        Ok((engine, clock))
    }
}

//! A key of another environment must do no harm.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::HealError;
use crate::backoff::backoff;
use crate::clock::Clock;
use crate::entities::organization::Host;
use crate::event::WorkosId;
use crate::metrics::Metrics;
use crate::postgres;
use crate::workos::{Lookup, WorkosClient};

/// How many organizations are asked for at most: so many of the first, and of the last.
const MOST: i64 = 5;

/// From how many on it is no coincidence that WorkOS knows none of them.
const ENOUGH: usize = 3;

/// How long a key that was refused isn't asked about again.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Asks WorkOS for some of the organizations that are linked here, before anything is written that the key tells.
#[derive(Debug, Clone)]
pub struct KeyGuard {
    pool: PgPool,
    host: Host,
    client: WorkosClient,
    clock: Arc<dyn Clock>,
}

impl KeyGuard {
    /// The guard of a client's key.
    #[must_use]
    pub const fn new(
        pool: PgPool,
        host: Host,
        client: WorkosClient,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            pool,
            host,
            client,
            clock,
        }
    }

    /// Asks whether the key is of the environment of this database.
    ///
    /// # Errors
    /// [`HealError::WrongKey`] if WorkOS knows none of the organizations; WorkOS or the database doesn't answer.
    pub async fn check(&self) -> Result<(), HealError> {
        let ids = self.some_linked().await?;
        if ids.len() < ENOUGH {
            return Ok(());
        }
        for id in &ids {
            let found = self.client.look_up(id, self.clock.now()).await?;
            if matches!(found, Lookup::Found(_)) {
                return Ok(());
            }
        }
        Err(HealError::WrongKey { asked: ids.len() })
    }

    async fn some_linked(&self) -> Result<Vec<WorkosId>, sqlx::Error> {
        let statements = self.host.statements();
        postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            statements.some_active(connection, MOST).await
        })
        .await
    }

    /// Waits until the key is known to be of the environment of this database, or until shutdown; says which. A key that
    /// isn't is an error in the log, and `workos_api_ok` is 0.
    pub async fn accepted(self, metrics: Metrics, shutdown: CancellationToken) -> bool {
        let (mut tries, mut said) = (0, None);
        loop {
            let checked = tokio::select! {
                checked = self.check() => checked,
                () = shutdown.cancelled() => return false,
            };
            let Err(trouble) = checked else {
                if tries > 0 {
                    info!("WORKOS_API_KEY is good for this database: WorkOS is read and written");
                }
                return true;
            };
            if !matches!(trouble, HealError::Database(_)) {
                metrics.workos_ok(false);
            }
            tries += 1;
            let reason = trouble.to_string();
            // Once for each reason: an outage can hide a wrong key.
            if said.as_ref() != Some(&reason) {
                error!(reason, "WorkOS is neither read nor written: {reason}");
                said = Some(reason);
            }
            let own = backoff(tries, LONGEST_PAUSE, fastrand::f64());
            let pause = std::cmp::max(own, trouble.retry_after().unwrap_or_default());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return false,
            }
        }
    }
}

//! A key of another environment must do no harm.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{HealError, patiently};
use crate::backoff::backoff;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::postgres;
use crate::sync::mirror;
use crate::workos::{Lookup, WorkosClient};

/// How many organizations are asked for at most.
const MOST: i64 = 10;

/// From how many on it is no coincidence that WorkOS knows none of them.
const ENOUGH: usize = 3;

/// How long a key that was refused isn't asked about again.
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_mins(1);

/// Asks WorkOS for some of the organizations that are linked here, before anything is written that the key tells.
///
/// # Errors
/// [`HealError::WrongKey`] if it knows none of them; WorkOS or the database doesn't answer.
pub async fn check(
    pool: &PgPool,
    client: &WorkosClient,
    clock: &dyn Clock,
) -> Result<(), HealError> {
    let rows = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        mirror::active_rows_after(connection, "", MOST).await
    })
    .await?;
    if rows.len() < ENOUGH {
        return Ok(());
    }
    for row in &rows {
        let now: DateTime<Utc> = clock.now();
        let found = patiently(async || client.look_up(&row.workos_id, now).await).await?;
        if matches!(found, Lookup::Found(_)) {
            return Ok(());
        }
    }
    Err(HealError::WrongKey { asked: rows.len() })
}

/// Waits until the key is known to be of the environment of this database, or until shutdown; says which. A key that
/// isn't is an error in the log, and `workos_api_ok` is 0.
pub async fn accepted(
    pool: &PgPool,
    client: &WorkosClient,
    clock: &dyn Clock,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> bool {
    let mut tries = 0;
    loop {
        let checked = tokio::select! {
            checked = check(pool, client, clock) => checked,
            () = shutdown.cancelled() => return false,
        };
        let Err(trouble) = checked else {
            if tries > 0 {
                info!("WORKOS_API_KEY is good for this database: WorkOS is read and written");
            }
            return true;
        };
        metrics.workos_ok(false);
        tries += 1;
        if tries == 1 {
            let reason = trouble.to_string();
            error!(reason, "WorkOS is neither read nor written: {reason}");
        }
        let own = backoff(tries, LONGEST_PAUSE, fastrand::f64());
        let pause = std::cmp::max(own, trouble.retry_after().unwrap_or_default());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return false,
        }
    }
}

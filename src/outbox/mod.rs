//! Writes organization ids to WorkOS as `external_id`, after the row that they point at is committed (R14–R17).
//!
//! The intention is a row of `external_id_pushes`, recorded in the transaction that writes the organization.
//! Any process may claim it when it is due; a claim is a lease, not a lock. A delivery reads before it writes:
//!
//! | WorkOS answers | the intention is | next |
//! | --- | --- | --- |
//! | read: the organization id | `done` | |
//! | read: another `external_id` | `conflict` | nothing is overwritten |
//! | read: none; write: done | `done` | `organization.updated` comes back with an `external_id`, so nothing is recorded (R17) |
//! | 404, 409, 422, 400 | `rejected` | |
//! | 401, 403 | `pending` | the outbox pauses for a minute |
//! | 429 | `pending` | the outbox pauses as long as `Retry-After` says, else twice as long each time |
//! | 5xx, nothing, half an answer | `pending` | the same; a row that fails while WorkOS takes others backs off by itself |
//!
//! After a pause, and at the start, one request goes ahead alone (`pace`): a delivery, or a cheap one where none is due.
//!
//! The next event of the organization that still comes without `external_id` records the intention anew,
//! whatever became of it (R16). A delivery under way is then overtaken: it ends nothing.

mod deliver;
mod pace;
mod store;
mod verdict;

pub(crate) use store::record;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::pace::Pace;
use crate::clock::Clock;
use crate::postgres::{self, error::describe};
use crate::workos::WorkosClient;

/// How many deliveries go out at once. As many are claimed, so that none waits for its turn while its lease
/// runs. At 100 ms a request that is 4,800 requests a minute; WorkOS limits them to 6,000, and its 429 pauses us.
const AT_ONCE: u32 = 8;

/// How long a claim holds: a delivery is two requests of 15 s at most, and the clocks of two replicas may differ
/// by as much again.
const LEASE: TimeDelta = TimeDelta::seconds(60);

/// How often to look without being woken: for what another process recorded, what backed off, and what a
/// process that died had claimed. After a database error, how long to wait.
const POLL: Duration = Duration::from_secs(1);

/// Knows which organization ids are the same: the type of the application's key decides (R15).
pub trait SameId: fmt::Debug + Send + Sync {
    /// Says whether two ids name one row.
    fn is_same(&self, a: &str, b: &str) -> bool;
}

/// The outbox of this process. Cloning is cheap; clones are the same outbox.
#[derive(Debug, Clone)]
pub struct Outbox {
    pool: PgPool,
    /// Without an API key there is none, and the intentions wait (R16).
    client: Option<WorkosClient>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn SameId>,
    /// Keeps one permit: a wake-up between looking and waiting is not lost.
    notify: Arc<Notify>,
    /// A `std` mutex: it is held for a look, never across an `.await`.
    pace: Arc<Mutex<Pace>>,
}

impl Outbox {
    /// The outbox of the database behind `pool`.
    #[must_use]
    pub fn new(
        pool: PgPool,
        client: Option<WorkosClient>,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn SameId>,
    ) -> Self {
        Self {
            pool,
            client,
            clock,
            ids,
            notify: Arc::default(),
            pace: Arc::new(Mutex::new(Pace::new())),
        }
    }

    /// Says that an intention was recorded, and committed.
    pub fn wake(&self) {
        self.notify.notify_one();
    }

    /// Delivers until `shutdown`, whatever the database and WorkOS do. What is in hand then is finished, in two
    /// requests' time at most; a caller who doesn't wait for it may drop the future, and the lease ends.
    pub async fn run(self, shutdown: CancellationToken) {
        let Some(client) = &self.client else {
            shutdown.cancelled().await;
            return;
        };
        let mut database_fails = false;
        while !shutdown.is_cancelled() {
            match self.deliver_due().await {
                Ok(delivered) => {
                    if database_fails {
                        info!("the outbox has its database again");
                    }
                    database_fails = false;
                    if delivered > 0 {
                        continue;
                    }
                    if self.pace().wants_check(self.clock.now()) {
                        // Nothing is lost when either is dropped.
                        tokio::select! {
                            () = self.check(client) => {}
                            () = shutdown.cancelled() => {}
                        }
                    }
                }
                Err(error) => {
                    // Once an outage: it can take hours, at a try a second.
                    if !database_fails {
                        error!(
                            error = describe(&error),
                            "the outbox waits for its database: {}",
                            describe(&error),
                        );
                    }
                    database_fails = true;
                }
            }
            // All three are cancel-safe: a permit that isn't taken here stays.
            tokio::select! {
                // An intention was recorded. While the database fails, that is no reason to hurry.
                () = self.notify.notified(), if !database_fails => {}
                () = sleep(POLL) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Claims what is due, up to eight, and delivers it; says how much that was. Nothing while the outbox pauses;
    /// one at the start and after a pause.
    ///
    /// # Errors
    /// The database can't be asked, or told what became of a delivery; the lease then ends by itself, and the
    /// delivery is repeated.
    pub async fn deliver_due(&self) -> Result<usize, sqlx::Error> {
        let Some(client) = &self.client else {
            return Ok(0);
        };
        let now = self.clock.now();
        let limit = self.pace().allows(AT_ONCE, now);
        if limit == 0 {
            return Ok(0);
        }
        let claimed = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::claim_due(connection, limit, now, now + LEASE).await
        })
        .await?;

        let count = claimed.len();
        // Tasks of their own, which end with this future: not even an abort leaves one behind.
        let mut deliveries = JoinSet::new();
        for claimed in claimed {
            let (outbox, client) = (self.clone(), client.clone());
            deliveries.spawn(async move { outbox.deliver(&client, claimed).await });
        }
        let mut result = Ok(count);
        while let Some(joined) = deliveries.join_next().await {
            match joined {
                Ok(Ok(())) => {}
                // The others are finished first.
                Ok(Err(error)) => result = Err(error),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => unreachable!("nobody aborts a delivery but the end of this future"),
                },
            }
        }
        result
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Finds what nobody has in hand: events that a crashed process left, retries that are due, wake-ups that
//! found no room, and settled events that are old enough to go.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use chrono::TimeDelta;
use tracing::info;

use super::lanes::Wake;
use super::{Inbox, store};
use crate::postgres;

/// How often the inbox is looked through. A look costs an index probe when nothing is due.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How many lanes a look names, and how many failed events it takes up.
const PAGE: i64 = 1_000;

/// How often what waits is measured. With the time that the database takes, the gauges are less than 15 s old (R51).
const BACKLOG_INTERVAL: Duration = Duration::from_secs(10);

/// How often retention runs.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3_600);

/// How many rows retention removes at once, so that no transaction is long.
const RETENTION_BATCH: i64 = 1_000;

/// Where the last look ended: the next goes on behind it, so that no lane is passed over for ever.
#[derive(Debug, Default)]
pub(super) struct Position(Mutex<String>);

impl Inbox {
    /// Sweeps until shutdown. Ends then, when the events in hand are done.
    pub async fn run_sweeper(self) {
        let shutdown = &self.inner.shutdown;
        while !shutdown.is_cancelled() {
            match self.sweep().await {
                Ok(_) => self.database_answered(),
                Err(error) => self.database_failed(&error),
            }
            // Each arm may be dropped at any time: a wake-up that is lost is one sweep later.
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(SWEEP_INTERVAL) => {}
                () = self.inner.lanes.wanted.notified() => {}
            }
        }
        self.inner.lanes.idle().await;
    }

    /// Takes up the failed events whose time has come, and wakes the lanes that have events to process; says how many
    /// lanes those are, at most a page.
    ///
    /// # Errors
    /// The database doesn't answer.
    pub async fn sweep(&self) -> Result<usize, sqlx::Error> {
        let inner = &self.inner;
        let now = inner.clock.now();
        let after = inner.position.take();
        let (taken_up, lanes) =
            postgres::transaction(&inner.pool, postgres::PATIENCE, async |connection| {
                // Asked first: a look that finds nothing writes nothing.
                let taken_up = if store::has_failed_due(&mut *connection, now).await? {
                    store::take_up_failed(&mut *connection, PAGE, now).await?
                } else {
                    0
                };
                let mut lanes = store::due_lanes(&mut *connection, &after, PAGE).await?;
                if lanes.is_empty() && !after.is_empty() {
                    lanes = store::due_lanes(connection, "", PAGE).await?;
                }
                Ok::<_, sqlx::Error>((taken_up, lanes))
            })
            .await?;
        let found = lanes.len();
        let is_full = |found: u64| found == PAGE.unsigned_abs();
        let page_is_full = u64::try_from(found).is_ok_and(is_full);
        let mut position = after;
        let mut woken = false;
        for lane in lanes {
            match self.wake_found(lane.clone()) {
                Wake::Woken => woken = true,
                Wake::Awake => {}
                Wake::NoRoom => {
                    // The lanes tell when they want more, and the next look goes on here.
                    inner.position.set(position);
                    return Ok(found);
                }
            }
            position = lane;
        }
        if page_is_full {
            inner.position.set(position);
        }
        if (page_is_full && woken) || is_full(taken_up) {
            // There may be more that nobody has in hand.
            inner.lanes.expect_more();
        }
        Ok(found)
    }

    /// Measures what waits, now and then, until shutdown.
    pub async fn run_backlog_gauges(self) {
        let shutdown = &self.inner.shutdown;
        loop {
            // An outage is logged by the sweeper; until it ends, the gauges keep their values.
            let _ = self.measure_backlog().await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(BACKLOG_INTERVAL) => {}
            }
        }
    }

    /// Measures what waits: in the inbox, and to be written to WorkOS.
    ///
    /// # Errors
    /// The database doesn't answer; the gauges keep their values.
    pub async fn measure_backlog(&self) -> Result<(), sqlx::Error> {
        let inner = &self.inner;
        let backlog = postgres::transaction(&inner.pool, postgres::PATIENCE, async |connection| {
            store::backlog(connection).await
        })
        .await?;
        inner.metrics.backlog(&backlog, inner.clock.now());
        Ok(())
    }

    /// Removes settled events that are older than `age`, until shutdown (R28).
    pub async fn run_retention(self, age: TimeDelta) {
        let shutdown = &self.inner.shutdown;
        loop {
            match self.remove_settled(age).await {
                Ok(0) => {}
                Ok(removed) => info!(removed, "retention removed {removed} settled events"),
                Err(error) => self.database_failed(&error),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETENTION_INTERVAL) => {}
            }
        }
    }

    /// Removes settled events that are older than `age`, batch by batch; says how many.
    ///
    /// # Errors
    /// The database doesn't answer; what was removed stays removed.
    pub async fn remove_settled(&self, age: TimeDelta) -> Result<u64, sqlx::Error> {
        let inner = &self.inner;
        let cutoff = inner.clock.now() - age;
        let mut removed = 0;
        while !inner.shutdown.is_cancelled() {
            let batch =
                postgres::transaction(&inner.pool, postgres::PATIENCE, async |connection| {
                    store::remove_settled(connection, cutoff, RETENTION_BATCH).await
                })
                .await?;
            removed += batch;
            if batch < RETENTION_BATCH.unsigned_abs() {
                break;
            }
        }
        Ok(removed)
    }
}

impl Position {
    fn take(&self) -> String {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, lane: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = lane;
    }
}

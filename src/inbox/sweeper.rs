//! Finds what nobody has in hand: events that a crashed process left, retries that are due, wake-ups that
//! found no room, and events that ended long enough ago to go.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::conditions::Conditions;
use super::lanes::Lanes;
use super::outcomes::Outcomes;
use super::queue::Wake;
use super::store;
use crate::clock::Clock;
use crate::pause;
use crate::postgres;

/// How often the inbox is looked through, where a look is cheap.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The longest time between two looks.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// A pause is at least this many times as long as the server took for the look: while a transaction anywhere keeps old
/// rows from being vacuumed, a look reads an index entry for each event since, and is to take no more than a hundredth
/// of the server's time.
const PAUSE_PER_LOOK: f64 = 100.0;

/// How many lanes a look names, and how many failed events it takes up.
const PAGE: i64 = 1_000;

/// How often retention runs.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3_600);

/// How many rows retention removes at once, so that no transaction is long.
const RETENTION_BATCH: i64 = 1_000;

#[derive(Debug)]
pub(super) struct Sweeper {
    pub(super) pool: PgPool,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) lanes: Arc<Lanes>,
    pub(super) conditions: Arc<Conditions>,
    pub(super) outcomes: Arc<Outcomes>,
    pub(super) shutdown: CancellationToken,
    /// Where the last look ended: the next goes on behind it, so that no lane is passed over for ever.
    pub(super) position: Mutex<String>,
}

/// What a look came to.
#[derive(Debug)]
pub(super) struct Look {
    /// How many lanes have something to do, at most a page.
    pub(super) found: usize,
    /// How long to wait before the next.
    pause: Duration,
}

/// How long to wait after a look that took the server this many seconds.
fn pause_after(look: f64) -> Duration {
    let pause = Duration::try_from_secs_f64(look * PAUSE_PER_LOOK).unwrap_or(LONGEST_INTERVAL);
    pause.clamp(SWEEP_INTERVAL, LONGEST_INTERVAL)
}

impl Sweeper {
    /// Sweeps until shutdown. Ends then, when the events in hand are done.
    pub(super) async fn run(&self) {
        while !self.shutdown.is_cancelled() {
            let pause = match self.sweep().await {
                Ok(look) => {
                    self.conditions.database_answered();
                    look.pause
                }
                Err(error) => {
                    self.conditions.database_failed(&error);
                    SWEEP_INTERVAL
                }
            };
            // Each arm may be dropped at any time: a wake-up that is lost is one sweep later.
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
                () = self.lanes.wanted() => {}
            }
        }
        self.lanes.idle().await;
        self.outcomes.summarize_all();
    }

    /// Takes up the failed events whose time has come, and wakes the lanes that have events to process; during a pause,
    /// neither.
    pub(super) async fn sweep(&self) -> Result<Look, sqlx::Error> {
        self.outcomes.summarize();
        let now = self.clock.now();
        let after = self.take_position();
        let looked = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            if pause::current(&mut *connection).await?.is_some() {
                return Ok(None);
            }
            // Asked first: a look that finds nothing writes nothing.
            let taken_up = if store::has_failed_due(&mut *connection, now).await? {
                store::take_up_failed(&mut *connection, PAGE, now).await?
            } else {
                0
            };
            let (mut lanes, mut took) = store::due_lanes(&mut *connection, &after, PAGE).await?;
            if lanes.is_empty() && !after.is_empty() {
                (lanes, took) = store::due_lanes(connection, "", PAGE).await?;
            }
            Ok::<_, sqlx::Error>(Some((taken_up, lanes, took)))
        })
        .await?;
        let Some((taken_up, lanes, took)) = looked else {
            self.conditions.pause_met();
            return Ok(Look {
                found: 0,
                pause: SWEEP_INTERVAL,
            });
        };
        self.conditions.pause_is_over();
        let found = lanes.len();
        let look = Look {
            found,
            pause: pause_after(took),
        };
        let pause_ms = look.pause.as_millis();
        debug!(found, taken_up, pause_ms, "the inbox was looked through");
        let is_full = |found: u64| found == PAGE.unsigned_abs();
        let page_is_full = u64::try_from(found).is_ok_and(is_full);
        let mut position = after;
        let mut woken = false;
        for lane in lanes {
            match self.lanes.wake_found(lane.clone()) {
                Wake::Woken => woken = true,
                Wake::Awake => {}
                Wake::NoRoom => {
                    // The lanes tell when they want more, and the next look goes on here.
                    self.set_position(position);
                    return Ok(look);
                }
            }
            position = lane;
        }
        if page_is_full {
            self.set_position(position);
        }
        if (page_is_full && woken) || is_full(taken_up) {
            // There may be more that nobody has in hand.
            self.lanes.expect_more();
        }
        Ok(look)
    }

    fn take_position(&self) -> String {
        std::mem::take(&mut self.position.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_position(&self, lane: String) {
        *self.position.lock().unwrap_or_else(PoisonError::into_inner) = lane;
    }

    /// Removes events that ended before `age`, until shutdown (R28).
    pub(super) async fn run_retention(&self, age: TimeDelta) {
        loop {
            match self.remove_ended(age).await {
                Ok(0) => {}
                Ok(removed) => info!(removed, "retention removed {removed} events"),
                Err(error) => self.conditions.database_failed(&error),
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(RETENTION_INTERVAL) => {}
            }
        }
    }

    /// Removes events that ended before `age`, batch by batch; says how many.
    pub(super) async fn remove_ended(&self, age: TimeDelta) -> Result<u64, sqlx::Error> {
        let cutoff = self.clock.now() - age;
        let mut removed = 0;
        while !self.shutdown.is_cancelled() {
            let batch = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
                store::remove_ended(connection, cutoff, RETENTION_BATCH).await
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

#[cfg(test)]
mod tests {
    use super::*;

    /// R24: looks take a hundredth of the time at most, however many dead entries an index has; and one comes a minute.
    #[test]
    fn an_expensive_look_is_followed_by_a_longer_pause() {
        for (look, pause) in [
            (0.0, 1),
            (0.01, 1),
            (0.05, 5),
            (0.5, 50),
            (0.9, 60),
            (1e30, 60),
        ] {
            assert_eq!(pause_after(look), Duration::from_secs(pause), "{look}");
        }
    }
}

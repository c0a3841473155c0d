//! Lanes: the events of one organization are processed one after the other, those of different organizations
//! side by side (R18, R24).
//!
//! A lane that is woken is *waiting* until it holds its key's mutex and a permit; from then on it finds every
//! event that was recorded before. So at most one task a lane runs and one waits, a wake-up is never lost, and
//! none is wasted on a lane that waits already.
//!
//! What waits in memory is the names of lanes, and a bounded number of them. A flood waits in the inbox: a
//! wake-up that finds no room is dropped, and the sweeper finds the lane when there is room again.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;

use super::Inbox;
use super::process::Step;
use crate::keyed_mutex::KeyedMutex;

/// How many lanes may wait; about a kilobyte each.
const MAX_WAITING: usize = 10_000;

/// How many events a lane processes before it queues up again behind the others.
const SLICE: usize = 64;

pub(super) struct Lanes {
    mutex: KeyedMutex<String>,
    /// The lanes that were woken and don't run yet. A `std` mutex: never held across an `.await`.
    waiting: Mutex<HashSet<String>>,
    /// One a running lane.
    permits: Semaphore,
    /// Every lane that runs or waits. Closed from the start, which only means that it can be waited for.
    tracker: TaskTracker,
    /// Told when a wake-up has been dropped and there is room again.
    pub(super) room: Notify,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes")
            .field("in_use", &self.mutex.keys_in_use())
            .field("permits", &self.permits.available_permits())
            .finish_non_exhaustive()
    }
}

impl Lanes {
    pub(super) fn new(permits: usize) -> Self {
        let tracker = TaskTracker::new();
        tracker.close();
        Self {
            mutex: KeyedMutex::default(),
            waiting: Mutex::default(),
            permits: Semaphore::new(permits),
            tracker,
            room: Notify::new(),
        }
    }

    /// Returns when no lane runs or waits.
    pub(super) async fn idle(&self) {
        self.tracker.wait().await;
    }

    /// A panic can't leave the set half changed, so a poisoned lock is as good as any.
    fn waiting(&self) -> MutexGuard<'_, HashSet<String>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    /// Has a lane look for due events. Says whether there was room for it.
    pub(super) fn wake(&self, lane: String) -> bool {
        let lanes = &self.inner.lanes;
        {
            let mut waiting = lanes.waiting();
            if waiting.contains(&lane) {
                return true;
            }
            if waiting.len() >= MAX_WAITING {
                return false;
            }
            waiting.insert(lane.clone());
        }
        lanes.tracker.spawn(self.clone().run_lane(lane));
        true
    }

    async fn run_lane(self, lane: String) {
        let lanes = &self.inner.lanes;
        let shutdown = &self.inner.shutdown;

        // Waits for the lane's own predecessor first, so that it holds no permit meanwhile.
        let turn = async {
            (
                lanes.mutex.lock(lane.clone()).await,
                lanes.permits.acquire().await,
            )
        };
        // Cancel-safe: both locks give up their place when dropped. What isn't begun stays in the inbox.
        let turn = tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            turn = turn => Some(turn),
        };
        let left = {
            let mut waiting = lanes.waiting();
            waiting.remove(&lane);
            waiting.len()
        };
        if left == MAX_WAITING / 2 {
            lanes.room.notify_one();
        }
        let Some(turn) = turn else { return };

        for _ in 0..SLICE {
            if shutdown.is_cancelled() {
                return;
            }
            match self.process_next(&lane).await {
                Ok(Step::Processed) => self.database_answered(),
                Ok(Step::Idle) => return self.database_answered(),
                // The event is in the inbox; the sweeper wakes the lane when the database answers.
                Err(error) => return self.database_failed(&error),
            }
        }
        drop(turn);
        self.wake(lane);
    }
}

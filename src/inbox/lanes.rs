//! Lanes: the events of one organization are processed one after the other, those of different organizations
//! side by side (R18, R24), and many lanes in one transaction.
//!
//! A lane that is woken *waits*, until a worker takes it, with others that wait, and holds its key's mutex; from
//! then on it finds every event that was recorded before. A lane whose mutex is held goes on waiting, aside, and
//! is put back when the mutex is released. So a wake-up is never lost, and none is wasted on a lane that waits.
//!
//! A batch never waits for anybody. Lanes that somebody else is in the way of (another replica's lock, a row that
//! the application holds), and all lanes of a batch that failed, are processed alone, an event a transaction: what
//! one event or one organization meets costs its neighbours nothing.
//!
//! What waits in memory is the names of lanes, and a bounded number of them. A flood waits in the inbox: a
//! wake-up that finds no room is dropped, and the sweeper finds the lane when few wait again.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::error;

use super::process::{Done, Step, caught};
use super::{HELD_UP, Inbox, MAX_HELD_UP};
use crate::keyed_mutex::{KeyedMutex, KeyedMutexGuard};

/// How many lanes may wait; some hundred bytes each.
const MAX_WAITING: usize = 50_000;

/// When so few wait, the sweeper is to look for more, if there are more.
const FEW_WAITING: usize = 2_000;

/// The most lanes of a batch.
const BATCH_LANES: usize = 256;

/// How many batches there may be beside the first, where whole batches wait and no delivery does: while one waits for
/// its commit, the others keep the processors busy.
const MAX_BESIDE: usize = 2;

/// The longest time that deliveries go first between two batches. They do for as long as the batch took: an
/// application that is a moment late costs nobody anything, and makes fuller batches; a sender that isn't answered
/// comes again.
const DELIVERIES_FIRST: Duration = Duration::from_millis(100);

/// Fewer deliveries during a batch don't ask for a rest.
const FEW_DELIVERIES: u64 = 8;

/// Events that waited longer wait for no delivery.
const LONGEST_LAG: TimeDelta = TimeDelta::milliseconds(1_000);

/// How many events a lane that is processed alone may have processed before it queues up again.
const SLICE: usize = 64;

/// How many lanes may be processed alone, or wait for it. The sweeper finds the others.
const MAX_ALONE: usize = 1_000;

/// A lane that somebody works on.
#[derive(Debug)]
pub(super) struct HeldLane {
    pub(super) name: String,
    guard: KeyedMutexGuard<String>,
}

/// What became of a wake-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// The lane waits now.
    Woken,
    /// It did before.
    Awake,
    /// Too many lanes wait; the sweeper will find it.
    NoRoom,
}

#[derive(Default)]
struct Queue {
    /// Next in line.
    ready: VecDeque<String>,
    /// Woken while somebody else holds them.
    aside: HashSet<String>,
    /// `ready` and `aside`.
    waiting: HashSet<String>,
    workers: usize,
    /// How many batches are held up.
    held_up: usize,
    /// How many lanes are processed alone, or wait for a permit.
    alone: usize,
    /// There are lanes in the inbox that don't wait here: a wake-up was dropped, or a look wasn't the last.
    more: bool,
}

impl Queue {
    fn wake(&mut self, lane: String) -> Wake {
        if self.waiting.contains(&lane) {
            return Wake::Awake;
        }
        if self.waiting.len() >= MAX_WAITING {
            self.more = true;
            return Wake::NoRoom;
        }
        self.waiting.insert(lane.clone());
        self.ready.push_back(lane);
        Wake::Woken
    }
}

pub(super) struct Lanes {
    mutex: KeyedMutex<String>,
    /// A `std` mutex: never held across an `.await`.
    queue: Mutex<Queue>,
    /// [`MAX_HELD_UP`], if there are connections.
    max_held_up: usize,
    /// One a lane that is processed alone.
    permits: Semaphore,
    /// Everything that the lanes and the recorder do. Closed from the start, which only means that it can be
    /// waited for.
    tracker: TaskTracker,
    /// Told when few lanes wait here and more do in the inbox.
    pub(super) wanted: Notify,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes")
            .field("lanes_waiting", &self.queue().waiting.len())
            .field("in_use", &self.mutex.keys_in_use())
            .field("permits", &self.permits.available_permits())
            .finish_non_exhaustive()
    }
}

impl Lanes {
    /// Lanes that take so many connections at once.
    pub(super) fn new(connections: usize) -> Self {
        let tracker = TaskTracker::new();
        tracker.close();
        let max_held_up = std::cmp::min(MAX_HELD_UP, connections / 2);
        Self {
            mutex: KeyedMutex::default(),
            queue: Mutex::default(),
            max_held_up,
            permits: Semaphore::new(std::cmp::max(
                connections.saturating_sub(1 + max_held_up),
                1,
            )),
            tracker,
            wanted: Notify::new(),
        }
    }

    /// Returns when nothing is worked on.
    pub(super) async fn idle(&self) {
        self.tracker.wait().await;
    }

    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tracker.spawn(task)
    }

    /// A panic can't leave the queue half changed, so a poisoned lock is as good as any.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes those of the lanes that nobody holds, in the order given.
    pub(super) fn hold<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<HeldLane> {
        let held = names.into_iter().filter_map(|name| {
            let name = name.to_owned();
            let guard = self.mutex.try_lock(name.clone())?;
            Some(HeldLane { name, guard })
        });
        held.collect()
    }

    /// There are more lanes in the inbox: has the sweeper look for them, at once if few wait here, else when few do.
    /// Until then it would find those that wait.
    pub(super) fn expect_more(&self) {
        let mut queue = self.queue();
        queue.more = true;
        self.ask_for_more(&mut queue);
    }

    fn ask_for_more(&self, queue: &mut Queue) {
        if queue.more && queue.waiting.len() <= FEW_WAITING {
            queue.more = false;
            self.wanted.notify_one();
        }
    }

    /// Takes the next lanes; nothing, and the worker ends, if none is ready. Both under one lock, so that no lane
    /// is woken between the look and the end.
    fn take(&self) -> Option<Vec<HeldLane>> {
        let mut queue = self.queue();
        let mut batch = Vec::new();
        while batch.len() < BATCH_LANES
            && let Some(name) = queue.ready.pop_front()
        {
            if let Some(guard) = self.mutex.try_lock(name.clone()) {
                queue.waiting.remove(&name);
                batch.push(HeldLane { name, guard });
            } else {
                queue.aside.insert(name);
            }
        }
        self.ask_for_more(&mut queue);
        if batch.is_empty() {
            queue.workers -= 1;
            return None;
        }
        // The order of every lock that a batch takes.
        batch.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Some(batch)
    }
}

impl Inbox {
    /// Has a lane look for due events.
    pub(super) fn wake(&self, lane: String) -> Wake {
        let lanes = &self.inner.lanes;
        let mut queue = lanes.queue();
        let wake = queue.wake(lane);
        if wake == Wake::Woken {
            self.start_worker(queue);
        }
        wake
    }

    /// Has a lane that was found in the inbox look for due events, unless it is in hand: its events may be just those.
    pub(super) fn wake_found(&self, lane: String) -> Wake {
        if self.inner.lanes.mutex.is_locked(&lane) {
            return Wake::Awake;
        }
        self.wake(lane)
    }

    /// Releases lanes, and has those look again that were woken meanwhile, or have more.
    pub(super) fn release(&self, held: Vec<HeldLane>, again: bool) {
        let mut queue = self.inner.lanes.queue();
        for HeldLane { name, guard } in held {
            drop(guard);
            if queue.aside.remove(&name) || (again && queue.waiting.insert(name.clone())) {
                queue.ready.push_back(name);
            }
        }
        self.start_worker(queue);
    }

    /// Starts a worker if there is something for it to do.
    fn start_worker(&self, mut queue: MutexGuard<'_, Queue>) {
        let max_held_up = self.inner.lanes.max_held_up;
        let beside = if self.inner.recorder.is_idle() {
            let batches = queue.ready.len() / BATCH_LANES;
            let connections = max_held_up.saturating_sub(queue.held_up);
            std::cmp::min(batches, std::cmp::min(connections, MAX_BESIDE))
        } else {
            0
        };
        let wanted = usize::from(!queue.ready.is_empty()) + beside;
        if queue.workers < wanted && queue.held_up <= max_held_up {
            queue.workers += 1;
            drop(queue);
            self.inner.lanes.spawn(self.clone().work());
        }
    }

    /// Processes what waits, batch by batch.
    async fn work(self) {
        while let Some(batch) = self.inner.lanes.take() {
            if self.inner.shutdown.is_cancelled() {
                // What isn't begun stays in the inbox.
                self.release(batch, false);
                continue;
            }
            let started = Instant::now();
            let entered = self.inner.recorder.entered();
            let mut processing = pin!(self.process(batch));
            let Ok(done) = timeout(HELD_UP, &mut processing).await else {
                self.step_aside();
                let done = processing.await;
                self.inner.lanes.queue().held_up -= 1;
                self.finish(done);
                return;
            };
            // A lane that has more than a batch takes is behind already, and its batches come one after the other.
            let late = done.lag > LONGEST_LAG || !done.unfinished.is_empty();
            self.finish(done);
            if !late && self.inner.recorder.entered() - entered >= FEW_DELIVERIES {
                sleep(std::cmp::min(started.elapsed(), DELIVERIES_FIRST)).await;
            }
        }
    }

    /// Leaves the queue to another worker, for as long as a batch is held up and for good.
    fn step_aside(&self) {
        let mut queue = self.inner.lanes.queue();
        queue.workers -= 1;
        queue.held_up += 1;
        self.start_worker(queue);
    }

    fn finish(&self, done: Done) {
        self.release(done.finished, false);
        self.release(done.unfinished, true);
        for lane in done.alone {
            self.process_alone(lane);
        }
        match done.error {
            None => self.database_answered(),
            Some(error) => self.database_failed(&error),
        }
    }

    /// Processes a lane by itself, where it can wait for as long as it takes.
    fn process_alone(&self, lane: HeldLane) {
        {
            let mut queue = self.inner.lanes.queue();
            if queue.alone >= MAX_ALONE {
                drop(queue);
                return self.release(vec![lane], false);
            }
            queue.alone += 1;
        }
        let inbox = self.clone();
        self.inner.lanes.spawn(async move {
            let done = caught(Box::pin(inbox.run_alone(&lane.name))).await;
            let more = done.unwrap_or_else(|panic| {
                let name = &lane.name;
                error!(
                    lane = name,
                    panic,
                    "a bug in workos-sync, please report it: {panic}: the events of {name} wait",
                );
                false
            });
            inbox.inner.lanes.queue().alone -= 1;
            inbox.release(vec![lane], more);
        });
    }

    /// Says whether there is more to do.
    async fn run_alone(&self, lane: &str) -> bool {
        let shutdown = &self.inner.shutdown;
        // Cancel-safe: a place in the line is given up when dropped. What isn't begun stays in the inbox.
        let permit = tokio::select! {
            biased;
            () = shutdown.cancelled() => return false,
            permit = self.inner.lanes.permits.acquire() => permit,
        };
        for _ in 0..SLICE {
            if shutdown.is_cancelled() {
                return false;
            }
            match self.process_next(lane).await {
                Ok(Step::Processed) => self.database_answered(),
                Ok(Step::Idle) => {
                    self.database_answered();
                    return false;
                }
                // The event is in the inbox; the sweeper wakes the lane when the database answers.
                Err(error) => {
                    self.database_failed(&error);
                    return false;
                }
            }
        }
        drop(permit);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R24: the sweeper is asked for more lanes when few wait, and not before: it would find those that do.
    #[tokio::test]
    async fn more_lanes_are_asked_for_when_few_wait() {
        let lanes = Lanes::new(4);
        let asked = async || {
            timeout(Duration::ZERO, lanes.wanted.notified())
                .await
                .is_ok()
        };
        let waiting = || lanes.queue().waiting.len();

        // A look that wasn't the last.
        for n in 0..=FEW_WAITING {
            assert_eq!(lanes.queue().wake(n.to_string()), Wake::Woken);
        }
        lanes.expect_more();
        assert!(!asked().await);
        assert_eq!(lanes.take().map(|batch| batch.len()), Some(BATCH_LANES));
        assert!(asked().await);
        lanes.take();
        assert!(!asked().await, "there are no more");
        lanes.expect_more();
        assert!(asked().await);

        // A wake-up that found no room.
        let mut names = (0..).map(|n: u32| format!("another {n}"));
        let no_room = names.find(|name| lanes.queue().wake(name.clone()) == Wake::NoRoom);
        assert!(no_room.is_some());
        assert_eq!(waiting(), MAX_WAITING);
        while waiting() > FEW_WAITING {
            assert!(!asked().await);
            lanes.take();
        }
        assert!(asked().await);
    }
}

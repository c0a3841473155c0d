//! Lanes: the events of one organization are processed one after the other, those of different organizations
//! side by side (R18, R24), and many lanes in one transaction.
//!
//! A woken lane is queued. A worker takes queued lanes in batches and locks each one; from then on the batch sees every
//! event recorded so far.
//!
//! A batch never waits for anybody. Lanes that somebody else is in the way of (another replica's lock, a row that
//! the application holds), and all lanes of a batch that failed, are processed alone, an event a transaction: what
//! one event or one organization meets costs its neighbours nothing. A lane that meets a lock alone gives its permit
//! back after a moment, and comes again after a pause, through a door of its own: those that wait take nothing from
//! those that could go on.
//!
//! A flood waits in the inbox: a wake-up that finds no room is dropped, and the sweeper finds the lane when few wait.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use super::attempts::{Attempts, Step};
use super::conditions::Conditions;
use super::crew::{Crew, MAX_SLOW, SLOW};
use super::failure::AttemptError;
use super::pulse::{CROWD, Pulse};
use super::queue::{Queue, Wake};
use super::store::Wait;
use super::transaction::{Fate, Transactions};
use crate::backoff::backoff;
use crate::keyed_mutex::{KeyedMutex, KeyedMutexGuard};
use crate::panics;
use crate::postgres::Session;
use crate::postgres::error::{FailureClass, is_an_outage};

/// The most lanes of a batch.
const BATCH_LANES: usize = 256;

/// How many extra batches may run while full batches are queued and no delivery is pending: while one waits for its
/// commit, the others use the CPU, and the last waits for the places of locks with its connection. With two, `create` ran at
/// 0.96 times the rate; without any, at 0.85, and `update` at 0.86.
const MAX_BESIDE: usize = 3;

/// How long deliveries go first between two batches while they crowd: this many times as long as the batch took. An
/// application that is a moment late costs nobody anything, and makes fuller batches; a sender that isn't answered
/// comes again. With one, `update-64` was acknowledged at 0.95 times the rate, and applied at 0.92; crowd or not,
/// `half-rate` was applied a second late instead of 5 ms.
const DELIVERIES_FIRST: u32 = 2;

/// And how long at most.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How many events a lane that is processed alone may have processed before it queues up again.
const SLICE: usize = 64;

/// How many lanes may be processed alone, or wait for it. The sweeper finds the others.
const MAX_ALONE: usize = 1_000;

/// How many lanes may come again. The sweeper finds the others.
const MAX_PAUSED: usize = 1_000;

/// How many lanes that met a lock are tried at the same time.
const MAX_RETURNING: usize = 2;

/// The longest pause of a lane that met a lock, or can't be applied. The first is a quarter of a second at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// While the host's table can't be used, a batch is one lane, and comes this often: to see whether it can.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The connections that process events, and how many are for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hands {
    /// Slow batches, beside the one that is worked on.
    slow: usize,
    /// Lanes that are processed alone.
    alone: usize,
    /// Of lanes that met a lock and come again.
    returning: usize,
}

impl Hands {
    pub(super) fn new(connections: usize) -> Self {
        let slow = std::cmp::min(MAX_SLOW, connections / 2);
        let returning = (connections / 4).clamp(1, MAX_RETURNING);
        let alone = std::cmp::max(connections.saturating_sub(1 + slow + returning), 1);
        Self {
            slow,
            alone,
            returning,
        }
    }

    /// How many transactions of a single lane there may be.
    pub(super) const fn single(self) -> usize {
        self.alone + self.returning
    }
}

#[derive(Debug)]
struct State {
    queue: Queue,
    crew: Crew,
    /// How many lanes are processed alone for the first time, or wait for it.
    alone: usize,
    /// How many lanes met a lock, or can't be applied, and come again.
    paused: usize,
}

#[derive(Debug)]
pub(super) struct Lanes {
    mutex: KeyedMutex<String>,
    /// A `std` mutex: never held across an `.await`.
    state: Mutex<State>,
    hands: Hands,
    /// For lanes that are processed alone.
    permits: Semaphore,
    /// For those of them that met a lock.
    returning: Semaphore,
    /// The last batch failed for want of a right, a table or a column.
    table_failed: AtomicBool,
    /// Told when few lanes wait here and more do in the inbox.
    wanted: Notify,
    transactions: Arc<Transactions>,
    attempts: Attempts,
    conditions: Arc<Conditions>,
    pulse: Arc<Pulse>,
    tracker: TaskTracker,
    /// Nothing is begun after this.
    shutdown: CancellationToken,
}

/// A lane that somebody works on, until it is dropped: then it looks again if it was woken meanwhile, or has more.
#[derive(Debug)]
pub(super) struct TakenLane {
    guard: Option<KeyedMutexGuard<String>>,
    has_more: bool,
    lanes: Arc<Lanes>,
}

impl TakenLane {
    pub(super) fn name(&self) -> &str {
        let guard = self.guard.as_ref();
        guard.expect("it is there until the drop").key()
    }

    /// Has the lane look again when it is released, if it has more.
    const fn look_again(&mut self, has_more: bool) {
        self.has_more = has_more;
    }
}

impl Drop for TakenLane {
    fn drop(&mut self) {
        let mut state = self.lanes.state();
        if let Some(guard) = self.guard.take() {
            let name = guard.key().clone();
            drop(guard);
            state.queue.released(&name, self.has_more);
        }
        self.lanes.start_worker(state);
    }
}

impl Lanes {
    pub(super) fn new(
        hands: Hands,
        transactions: Arc<Transactions>,
        attempts: Attempts,
        conditions: Arc<Conditions>,
        pulse: Arc<Pulse>,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            mutex: KeyedMutex::default(),
            state: Mutex::new(State {
                queue: Queue::default(),
                crew: Crew::new(hands.slow),
                alone: 0,
                paused: 0,
            }),
            hands,
            permits: Semaphore::new(hands.alone),
            returning: Semaphore::new(hands.returning),
            table_failed: AtomicBool::new(false),
            wanted: Notify::new(),
            transactions,
            attempts,
            conditions,
            pulse,
            tracker,
            shutdown,
        }
    }

    /// A panic can't leave the state half changed, so a poisoned lock is as good as any.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many lanes wait for a worker.
    pub(super) fn waiting(&self) -> usize {
        self.state().queue.waiting()
    }

    /// How many lanes somebody works on.
    pub(super) fn taken(&self) -> usize {
        self.mutex.keys_in_use()
    }

    /// How many lanes met a lock, or can't be applied, and come again.
    pub(super) fn paused(&self) -> usize {
        self.state().paused
    }

    /// Returns when nothing is worked on.
    pub(super) async fn idle(&self) {
        self.tracker.wait().await;
    }

    /// Returns when few lanes wait here and more do in the inbox.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// There are more lanes in the inbox: has the sweeper look for them, at once if few wait here, else when few do.
    pub(super) fn expect_more(&self) {
        let mut state = self.state();
        state.queue.expect_more();
        self.ask_for_more(&mut state);
    }

    fn ask_for_more(&self, state: &mut State) {
        if state.queue.wants_more() {
            self.wanted.notify_one();
        }
    }

    /// Has a lane look for due events. During a pause they stay in the inbox, where the sweeper finds them after it.
    pub(super) fn wake(self: &Arc<Self>, lane: String) -> Wake {
        if self.conditions.is_paused() {
            return Wake::Awake;
        }
        let mut state = self.state();
        let wake = state.queue.wake(lane);
        if wake == Wake::Woken {
            self.start_worker(state);
        }
        wake
    }

    /// Has a lane that was found in the inbox look for due events, unless somebody works on it: its events may be just
    /// those.
    pub(super) fn wake_found(self: &Arc<Self>, lane: String) -> Wake {
        if self.mutex.is_locked(&lane) {
            return Wake::Awake;
        }
        self.wake(lane)
    }

    /// Takes those of the lanes that nobody works on, in the order given.
    pub(super) fn take_all<'a>(
        self: &Arc<Self>,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Vec<TakenLane> {
        let guards = names
            .into_iter()
            .filter_map(|name| self.mutex.try_lock(&name.to_owned()));
        guards.map(|guard| self.taken_by(guard)).collect()
    }

    fn taken_by(self: &Arc<Self>, guard: KeyedMutexGuard<String>) -> TakenLane {
        TakenLane {
            guard: Some(guard),
            has_more: false,
            lanes: Arc::clone(self),
        }
    }

    /// Takes the next lanes; nothing, and the worker ends, if none is ready. Both under one lock, so that no lane
    /// is woken between the look and the end.
    fn take(self: &Arc<Self>) -> Option<Vec<TakenLane>> {
        let limit = if self.is_probing() {
            1
        } else {
            self.batch_lanes()
        };
        let mut state = self.state();
        let guards = state.queue.take(limit, |lane| self.mutex.try_lock(lane));
        self.ask_for_more(&mut state);
        if guards.is_empty() {
            state.crew.leave();
            return None;
        }
        drop(state);
        let mut batch: Vec<_> = guards
            .into_iter()
            .map(|guard| self.taken_by(guard))
            .collect();
        // The order of every lock that a batch takes.
        batch.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        Some(batch)
    }

    /// How many lanes a full batch has.
    fn batch_lanes(&self) -> usize {
        std::cmp::min(BATCH_LANES, self.transactions.most_lanes())
    }

    /// The host's table can't be used, as far as is known: batches only look whether it can.
    fn is_probing(&self) -> bool {
        self.table_failed.load(Ordering::Relaxed) && self.conditions.is_unusable()
    }

    /// Starts a worker if there is something for it to do.
    fn start_worker(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let ready = state.queue.ready();
        let beside = if self.pulse.is_idle() && !self.is_probing() {
            let batches = ready / self.batch_lanes();
            std::cmp::min(batches, std::cmp::min(state.crew.spare(), MAX_BESIDE))
        } else {
            0
        };
        if state.crew.hire(usize::from(ready > 0) + beside) {
            drop(state);
            self.tracker.spawn(Arc::clone(self).work());
        }
    }

    /// Processes what waits, batch by batch.
    async fn work(self: Arc<Self>) {
        let mut session = self.transactions.session();
        while let Some(batch) = self.take() {
            if self.shutdown.is_cancelled() || self.conditions.is_paused() {
                // What isn't begun stays in the inbox.
                continue;
            }
            let started = Instant::now();
            let entered = self.pulse.entered();
            let is_behind = {
                let mut processing = pin!(self.process_caught(&mut session, batch));
                let Ok(is_behind) = timeout(SLOW, &mut processing).await else {
                    self.step_aside();
                    processing.await;
                    return self.end_slow();
                };
                is_behind
            };
            let crowd = self.pulse.entered() - entered >= CROWD as u64;
            let rest = async {
                if self.is_probing() {
                    session.release();
                    sleep(PROBE_INTERVAL).await;
                } else if crowd && !is_behind {
                    let longest = std::cmp::min(started.elapsed() * DELIVERIES_FIRST, LONGEST_REST);
                    let _calm_or_long_enough = timeout(longest, self.pulse.calm()).await;
                }
            };
            self.shutdown.run_until_cancelled(rest).await;
        }
    }

    /// Leaves the queue to another worker, for as long as a batch is slow and for good.
    fn step_aside(self: &Arc<Self>) {
        let mut state = self.state();
        state.crew.step_aside();
        self.start_worker(state);
    }

    /// A slow batch has ended.
    fn end_slow(self: &Arc<Self>) {
        let mut state = self.state();
        state.crew.end_slow();
        self.start_worker(state);
    }

    /// A panic costs the batch its turn: the sweeper finds the lanes.
    async fn process_caught(
        self: &Arc<Self>,
        session: &mut Session<'_>,
        batch: Vec<TakenLane>,
    ) -> bool {
        let lanes = batch.len();
        panics::caught(Box::pin(self.process(session, batch))).await.unwrap_or_else(|panic| {
            error!(
                panic,
                lanes,
                "bug in workos-sync (please report it): {panic}; events of {lanes} lanes stay queued until the next sweep",
            );
            false
        })
    }

    /// Processes what is due in a batch of lanes; says whether one of them has more: the next batch is not to wait then.
    async fn process(
        self: &Arc<Self>,
        session: &mut Session<'_>,
        mut batch: Vec<TakenLane>,
    ) -> bool {
        let names: Vec<_> = batch.iter().map(TakenLane::name).collect();
        let fates = match self.transactions.batch(session, &names).await {
            Ok(fates) => fates,
            Err(failure) => {
                match failure.error {
                    AttemptError::Database(error) if is_an_outage(&error) => {
                        self.conditions.database_failed(&error);
                    }
                    AttemptError::Paused => self.conditions.pause_met(),
                    // One of the events, or somebody else's lock: each lane for itself finds out.
                    error => {
                        let table_failed = error.class() == FailureClass::Unusable;
                        self.table_failed.store(table_failed, Ordering::Relaxed);
                        let lanes = batch.len();
                        debug!(%error, lanes, "a batch is split: {error}");
                        for lane in batch {
                            self.process_alone(lane);
                        }
                    }
                }
                return false;
            }
        };
        self.conditions.database_answered();
        self.table_failed.store(false, Ordering::Relaxed);
        // A lane that has more than a batch takes is behind already, and its batches come one after the other.
        let is_behind = fates.contains(&Fate::Unfinished);
        for (mut lane, fate) in batch.drain(..).zip(fates) {
            match fate {
                Fate::Finished => {}
                Fate::Unfinished => lane.look_again(true),
                Fate::Alone => self.process_alone(lane),
            }
        }
        is_behind
    }

    /// Processes a lane by itself, where it can wait for as long as it takes.
    fn process_alone(self: &Arc<Self>, mut lane: TakenLane) {
        let Some(place) = Place::take(self, |state| &mut state.alone, MAX_ALONE) else {
            return;
        };
        let lanes = Arc::clone(self);
        self.tracker.spawn(async move {
            let done = panics::caught(Box::pin(lanes.run_alone(lane.name(), place))).await;
            match done {
                Ok(has_more) => lane.look_again(has_more),
                Err(panic) => {
                    let name = lane.name();
                    error!(
                        workos.organization_id = name,
                        panic,
                        "bug in workos-sync (please report it): {panic}; events of {name} stay queued until the next sweep",
                    );
                }
            }
        });
    }

    /// Says whether there is more to do.
    async fn run_alone(self: &Arc<Self>, lane: &str, place: Place) -> bool {
        let mut failing_since = None;
        let Some(permit) = self.turn(&self.permits).await else {
            return false;
        };
        if let Some(more) = self.slice(lane, Wait::Briefly, &mut failing_since).await {
            return more;
        }
        drop((permit, place));
        if failing_since.is_none() {
            warn!(
                workos.organization_id = lane,
                "another session holds a lock that events of {lane} need: they wait",
            );
        }
        let Some(_place) = Place::take(self, |state| &mut state.paused, MAX_PAUSED) else {
            return false;
        };
        for pauses in 1.. {
            let pause = backoff(pauses, LONGEST_PAUSE * 4, fastrand::f64()) / 4;
            // What met a lock is in hand, and goes on for as long as the grace period lasts (R31). What can't be applied
            // is given up. Both arms only wait.
            tokio::select! {
                () = self.shutdown.cancelled(), if failing_since.is_some() => return false,
                () = sleep(pause) => {}
            }
            let Ok(_permit) = self.returning.acquire().await else {
                return false;
            };
            // Where few come again, there is time to stand in the line for a row that is never free for long.
            let wait = if self.paused() <= self.hands.returning {
                Wait::Long
            } else {
                Wait::Briefly
            };
            if let Some(more) = self.slice(lane, wait, &mut failing_since).await {
                return more;
            }
        }
        false
    }

    /// Waits for a turn; none comes after shutdown. What isn't begun stays in the inbox.
    async fn turn<'s>(&self, turns: &'s Semaphore) -> Option<SemaphorePermit<'s>> {
        // Cancel-safe: a place in the line is given up when dropped.
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            permit = turns.acquire() => permit.ok(),
        }
    }

    /// Processes events of a lane one by one, and says whether there is more to do; `None` if it is to come again after a
    /// pause.
    async fn slice(
        &self,
        lane: &str,
        wait: Wait,
        failing_since: &mut Option<DateTime<Utc>>,
    ) -> Option<bool> {
        let mut session = self.transactions.session();
        for _ in 0..SLICE {
            let next = self.attempts.next(&mut session, lane, wait, *failing_since);
            let step = next.await;
            match &step {
                Ok(_) => self.conditions.database_answered(),
                Err(error) => self.conditions.database_failed(error),
            }
            match step {
                // What isn't begun stays in the inbox.
                Ok(Step::Processed) if self.shutdown.is_cancelled() => return Some(false),
                Ok(Step::Processed) => *failing_since = None,
                Ok(Step::InTheWay) => return None,
                Ok(Step::FailingSince(since)) => {
                    *failing_since = Some(since);
                    return None;
                }
                // After an outage or a pause, the sweeper wakes the lane.
                Ok(Step::Idle) | Err(_) => return Some(false),
            }
        }
        Some(true)
    }
}

/// A place among a bounded number of lanes, until it is dropped.
struct Place {
    lanes: Arc<Lanes>,
    count: fn(&mut State) -> &mut usize,
}

impl Place {
    /// Takes one, if there is one.
    fn take(lanes: &Arc<Lanes>, count: fn(&mut State) -> &mut usize, most: usize) -> Option<Self> {
        let mut state = lanes.state();
        let taken = count(&mut state);
        if *taken >= most {
            return None;
        }
        *taken += 1;
        drop(state);
        let lanes = Arc::clone(lanes);
        Some(Self { lanes, count })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *(self.count)(&mut self.lanes.state()) -= 1;
    }
}

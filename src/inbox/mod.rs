//! The inbox: every accepted event is durable here before it is acknowledged, and stays until it has ended
//! (R23–R28).
//!
//! | status | how a row gets there | what becomes of it |
//! | --- | --- | --- |
//! | `pending` | recorded, or due again | a lane takes it at once; the sweeper wakes the lane, if that process died |
//! | `failed` | an attempt failed, for a reason that may pass | the sweeper makes it pending at `next_attempt_at` |
//! | `processed` | applied; `outcome` says how | removed by retention |
//! | `ignored` | its type is not handled | removed by retention |
//! | `dead` | it can't be applied, or was refused too often; `last_error` says why | an operator retries or discards it |
//! | `discarded` | an operator gave it up | removed by retention |
//!
//! There is no status for "being processed": a claim is a row lock, and dies with its connection.
//!
//! The parts, in the order of an event's way; each has its own fields, and knows those below it:
//!
//! | part | what it does |
//! | --- | --- |
//! | `page` | stores a page of events together with what is written beside it |
//! | `bulk` | stores saved events, and applies them as it stores them |
//! | `record` | inserts an event, with whichever others come at the same time, and wakes its lane |
//! | `sweeper` | wakes the lanes whose events nobody has in hand |
//! | `watch` | waits for an outcome |
//! | `lanes` | processes the lanes that are awake, together, or one alone; `queue` is who waits, `crew` who works, `pulse` whether deliveries come |
//! | `attempts` | tries one event until it is applied or put off; `retry` judges |
//! | `transaction` | claims, applies and marks events in one transaction |
//! | `conditions`, `outcomes`, `counts`, `request_ids` | say what is wrong with the whole, and how events ended |
//! | `store` | the SQL |

mod attempts;
mod bulk;
mod conditions;
mod counts;
mod crew;
mod failure;
mod lanes;
mod outcomes;
mod page;
mod pulse;
mod queue;
mod record;
mod request_ids;
mod retry;
mod status;
mod store;
mod sweeper;
mod transaction;
mod watch;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use chrono::TimeDelta;
use sqlx::PgPool;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::entities::Target;
use crate::event::{EnvelopeError, EventId};
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::pause;
use crate::postgres;
use crate::postgres::locks::LockBudget;
use attempts::Attempts;
use bulk::Bulk;
pub use bulk::{Replayed, SavedEvent};
use conditions::Conditions;
use lanes::{Hands, Lanes};
use outcomes::Outcomes;
use page::Pages;
pub use page::{Beside, StoredPage};
use pulse::Pulse;
use record::{Recorder, Stored};
pub use status::{DrainError, Ended, EventName, Receipt, RecordError, Recorded, Source, Status};
pub use store::NewEvent;
use sweeper::Sweeper;
use transaction::Transactions;
pub use watch::Watch;

/// How often it is remembered that a delivery came.
const WEBHOOK_NOTE_SECONDS: i64 = 10;

/// What the inbox may take of what it shares with others.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// How many connections of the pool apply events. It must have some left for recording.
    pub apply_connections: usize,
    /// How many places for locks the server has: see [`postgres::lock_places`].
    pub lock_places: usize,
}

/// What is in the memory of an inbox.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Events that came to be stored, ever.
    pub entered: u64,
    /// Events that wait to be stored.
    pub recording: usize,
    /// Inserts that are slow.
    pub slow_inserts: usize,
    /// Lanes that wait to be processed.
    pub waiting: usize,
    /// Lanes that are processed.
    pub taken: usize,
    /// Those of them that met a lock, or can't be applied, and come again.
    pub paused: usize,
}

/// The handle of the inbox. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Inbox {
    pool: PgPool,
    clock: Arc<dyn Clock>,
    outcomes: Arc<Outcomes>,
    conditions: Arc<Conditions>,
    pulse: Arc<Pulse>,
    lanes: Arc<Lanes>,
    recorder: Arc<Recorder>,
    sweeper: Arc<Sweeper>,
    bulk: Bulk,
    pages: Pages,
    /// The second of the last delivery that was remembered.
    webhook_noted: Arc<AtomicI64>,
    shutdown: CancellationToken,
}

impl Inbox {
    /// An inbox on a database. No event is begun after `shutdown`.
    #[must_use]
    pub fn new(
        pool: PgPool,
        clock: Arc<dyn Clock>,
        outbox: Outbox,
        target: Target,
        metrics: Metrics,
        capacity: Capacity,
        shutdown: CancellationToken,
    ) -> Self {
        // Closed from the start, which only means that it can be waited for.
        let tracker = TaskTracker::new();
        tracker.close();
        metrics.watch_connections(&pool);
        let hands = Hands::new(capacity.apply_connections);
        let outcomes = Arc::new(Outcomes::new(Arc::clone(&clock), metrics));
        let conditions = Arc::new(Conditions::default());
        let transactions = Arc::new(Transactions {
            pool: pool.clone(),
            clock: Arc::clone(&clock),
            outbox,
            target,
            outcomes: Arc::clone(&outcomes),
            conditions: Arc::clone(&conditions),
            locks: LockBudget::new(capacity.lock_places, hands.single()),
        });
        let attempts = Attempts {
            clock: Arc::clone(&clock),
            transactions: Arc::clone(&transactions),
            outcomes: Arc::clone(&outcomes),
            conditions: Arc::clone(&conditions),
        };
        let pulse = Arc::new(Pulse::default());
        let lanes = Arc::new(Lanes::new(
            hands,
            Arc::clone(&transactions),
            attempts,
            Arc::clone(&conditions),
            Arc::clone(&pulse),
            tracker.clone(),
            shutdown.clone(),
        ));
        let recorder = Arc::new(Recorder::new(
            pool.clone(),
            Arc::clone(&pulse),
            Arc::clone(&lanes),
            Arc::clone(&outcomes),
            tracker.clone(),
        ));
        let sweeper = Arc::new(Sweeper {
            pool: pool.clone(),
            clock: Arc::clone(&clock),
            lanes: Arc::clone(&lanes),
            conditions: Arc::clone(&conditions),
            outcomes: Arc::clone(&outcomes),
            shutdown: shutdown.clone(),
            position: Mutex::default(),
        });
        let pages = Pages {
            pool: pool.clone(),
            lanes: Arc::clone(&lanes),
            outcomes: Arc::clone(&outcomes),
        };
        let bulk = Bulk {
            recorder: Arc::clone(&recorder),
            lanes: Arc::clone(&lanes),
            transactions,
            conditions: Arc::clone(&conditions),
            tracker,
        };
        Self {
            pool,
            clock,
            outcomes,
            conditions,
            pulse,
            lanes,
            recorder,
            sweeper,
            bulk,
            pages,
            webhook_noted: Arc::default(),
            shutdown,
        }
    }

    /// Reads an event, to be recorded. `place` is what its body takes of the memory: free when the body is gone.
    ///
    /// # Errors
    /// The body is no event.
    pub fn read(
        &self,
        body: Vec<u8>,
        place: Option<OwnedSemaphorePermit>,
        source: Source,
    ) -> Result<NewEvent, EnvelopeError> {
        let (event, ()) = NewEvent::read(body, place, source, self.clock.now(), |_| ())?;
        Ok(event)
    }

    /// Makes an event durable, and has it processed at once (R23, R24).
    ///
    /// # Errors
    /// The event is not durable: the sender must not be told that it is. It may be durable all the same if the
    /// answer of the database got lost; then it will be processed, and the next delivery is a duplicate.
    pub fn record(
        &self,
        event: NewEvent,
    ) -> impl Future<Output = Result<Receipt, RecordError>> + '_ {
        let ignored = event.ignored;
        if event.source == Source::Webhook {
            self.note_webhook();
        }
        let storing = self.recorder.store(event);
        async move {
            let (recorded, detail) = match storing.await? {
                Stored::New => (Recorded::new(true, ignored), None),
                Stored::Duplicate(detail) => (Recorded::Duplicate, detail),
            };
            Ok(Receipt { recorded, detail })
        }
    }

    /// Reads a saved event.
    ///
    /// # Errors
    /// The body is no event.
    pub fn read_saved(&self, body: Vec<u8>) -> Result<SavedEvent, EnvelopeError> {
        self.read_saved_from(body, Source::Replay)
    }

    /// Reads an event from elsewhere than a file.
    ///
    /// # Errors
    /// The body is no event.
    pub fn read_saved_from(
        &self,
        body: Vec<u8>,
        source: Source,
    ) -> Result<SavedEvent, EnvelopeError> {
        SavedEvent::read(body, source, self.clock.now())
    }

    /// Makes saved events durable, and has those applied that nobody is in the way of;
    /// [`drain_events`](Self::drain_events) does the rest. Of an organization, they are best given in the order of their
    /// ids.
    ///
    /// # Errors
    /// For each event, those of [`record`](Self::record).
    pub async fn record_all(&self, events: Vec<SavedEvent>) -> Vec<Result<Replayed, RecordError>> {
        self.bulk.record_all(events).await
    }

    /// Makes a page of events durable, and what is written beside them, in one transaction; then has them processed. An
    /// event that can't be stored costs its neighbours nothing.
    ///
    /// # Errors
    /// Nothing is stored: the database doesn't answer, or `beside` failed.
    pub async fn record_page<B: Beside>(
        &self,
        events: Vec<NewEvent>,
        beside: &B,
    ) -> Result<StoredPage, B::Error> {
        self.pages.record(events, beside).await
    }

    /// Remembers that a delivery came, every 10 seconds at most; nobody waits for it.
    fn note_webhook(&self) {
        let now = self.clock.now();
        let second = now.timestamp();
        let before = self.webhook_noted.load(Ordering::Relaxed);
        let is_due = second >= before.saturating_add(WEBHOOK_NOTE_SECONDS);
        let order = Ordering::Relaxed;
        let noted = &self.webhook_noted;
        if is_due && noted.compare_exchange(before, second, order, order).is_ok() {
            let pool = self.pool.clone();
            self.bulk.tracker.spawn(async move {
                // Another one notes it, should this fail.
                let _ = postgres::transaction(&pool, postgres::PATIENCE, async |connection| {
                    store::note_webhook(connection, now).await
                })
                .await;
            });
        }
    }

    /// Begins to listen for outcomes; to be called before the event is recorded.
    #[must_use]
    pub fn watch(&self, event_id: EventId) -> Watch {
        Watch {
            event_id,
            ended: self.outcomes.subscribe(),
            pool: self.pool.clone(),
            lanes: Arc::clone(&self.lanes),
            conditions: Arc::clone(&self.conditions),
            shutdown: self.shutdown.clone(),
        }
    }

    /// Processes everything that is due, and returns when nothing is, or on shutdown, when the events in hand
    /// are done: for tests. What somebody else holds is waited for, at the sweeper's pace.
    ///
    /// # Errors
    /// The database doesn't answer, or nothing can be applied to the host's table.
    pub async fn drain(&self) -> Result<(), DrainError> {
        let mut before = self.outcomes.steps();
        while self.sweeper.sweep().await?.found > 0 {
            // Both arms only wait.
            tokio::select! {
                () = self.lanes.idle() => {}
                reason = self.conditions.until_unusable() => return Err(DrainError::Unusable(reason)),
            }
            // From then on lanes begin nothing, so what is due stays due.
            if self.shutdown.is_cancelled() {
                break;
            }
            let now = self.outcomes.steps();
            if now == before {
                // Both arms only wait.
                tokio::select! {
                    () = self.shutdown.cancelled() => break,
                    () = tokio::time::sleep(sweeper::SWEEP_INTERVAL) => {}
                }
            }
            before = now;
        }
        Ok(())
    }

    /// Has the given events processed, and returns when none of them waits, or on shutdown. Says how they ended, or
    /// where they stand, with counts. What somebody else holds is waited for, at the sweeper's pace.
    ///
    /// # Errors
    /// The database doesn't answer, nothing can be applied to the host's table, or there is a pause.
    pub async fn drain_events(
        &self,
        mut event_ids: Vec<String>,
    ) -> Result<BTreeMap<String, u64>, DrainError> {
        let mut results = BTreeMap::new();
        let mut waited = usize::MAX;
        loop {
            let ask = async |connection: &mut sqlx::PgConnection| {
                store::progress(connection, &event_ids).await
            };
            let progress = postgres::transaction(&self.pool, postgres::PATIENCE, ask).await?;
            let stopped = self.shutdown.is_cancelled();
            let mut waiting = Vec::new();
            for event in progress {
                if event.result == Status::Pending.as_str() && !stopped {
                    waiting.push(event);
                } else {
                    *results.entry(event.result).or_default() += 1;
                }
            }
            if waiting.is_empty() {
                return Ok(results);
            }
            if self.conditions.is_paused() {
                if let Some(pause) = pause::ask(&self.pool).await? {
                    return Err(DrainError::Paused {
                        ended: results,
                        waiting: u64::try_from(waiting.len()).unwrap_or(u64::MAX),
                        pause,
                    });
                }
                self.conditions.pause_is_over();
            }
            if waiting.len() == waited {
                if let Some(reason) = self.unusable() {
                    return Err(DrainError::Unusable(reason));
                }
                // Somebody else is in the way. Both arms only wait.
                tokio::select! {
                    () = self.shutdown.cancelled() => {}
                    () = tokio::time::sleep(sweeper::SWEEP_INTERVAL) => {}
                }
            }
            waited = waiting.len();
            let lanes: HashSet<_> = waiting.iter().map(|event| &event.lane).collect();
            for lane in lanes {
                self.lanes.wake(lane.clone());
            }
            event_ids = waiting.into_iter().map(|event| event.event_id).collect();
            // Not for longer: a flood may keep one of the lanes busy for ever.
            let _ = timeout(sweeper::SWEEP_INTERVAL, self.lanes.idle()).await;
        }
    }

    /// Returns when nothing is worked on: after a shutdown, when what was in hand is done.
    pub async fn idle(&self) {
        self.lanes.idle().await;
        self.outcomes.summarize_all();
    }

    /// An event could not be made durable, and its sender is told so: the log says it, once for many (R54).
    pub fn not_durable(&self, event: &EventName, reason: &str) {
        self.outcomes.not_durable(event, reason);
    }

    /// Why nothing can be applied to the host's table, while that is so (R26, R33).
    #[must_use]
    pub fn unusable(&self) -> Option<String> {
        self.conditions.unusable()
    }

    /// What is in memory.
    #[doc(hidden)]
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            entered: self.pulse.entered(),
            recording: self.recorder.waiting(),
            slow_inserts: self.recorder.slow(),
            waiting: self.lanes.waiting(),
            taken: self.lanes.taken(),
            paused: self.lanes.paused(),
        }
    }

    /// Sweeps until shutdown. Ends then, when the events in hand are done.
    pub async fn run_sweeper(self) {
        self.sweeper.run().await;
    }

    /// Takes up the failed events whose time has come, and wakes the lanes that have events to process; says how many
    /// lanes those are, at most a page.
    ///
    /// # Errors
    /// The database doesn't answer.
    pub async fn sweep(&self) -> Result<usize, sqlx::Error> {
        Ok(self.sweeper.sweep().await?.found)
    }

    /// Removes events that ended before `age`, until shutdown (R28).
    pub async fn run_retention(self, age: TimeDelta) {
        self.sweeper.run_retention(age).await;
    }

    /// Removes events that ended before `age`, batch by batch; says how many.
    ///
    /// # Errors
    /// The database doesn't answer; what was removed stays removed.
    pub async fn remove_ended(&self, age: TimeDelta) -> Result<u64, sqlx::Error> {
        self.sweeper.remove_ended(age).await
    }
}

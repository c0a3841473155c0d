//! The inbox: every accepted event is durable here before it is acknowledged, and stays until it is settled
//! (R23–R28).
//!
//! | status | how a row gets there | what becomes of it |
//! | --- | --- | --- |
//! | `pending` | recorded, or due again | a lane takes it at once; the sweeper wakes the lane, if that process died |
//! | `failed` | an attempt failed, for a reason that may pass | the sweeper makes it pending at `next_attempt_at` |
//! | `processed` | applied; `outcome` says how | removed by retention |
//! | `ignored` | its type is not handled | removed by retention |
//! | `dead` | it can't be applied, or was refused too often; `last_error` says why | an operator retries or discards it |
//!
//! There is no status for "being processed": a claim is a row lock, and dies with its connection.
//!
//! The way of an event through here: [`Inbox::record`] inserts it, with whichever others come at the same time
//! (`record`), and wakes its lane; the lanes that are awake are processed together (`lanes`), in one transaction
//! (`process`); what went wrong is judged (`retry`); the sweeper (`sweeper`) wakes the lanes whose events nobody
//! has in hand. The SQL is in `store`.

mod bulk;
mod counts;
mod lanes;
mod process;
mod record;
mod retry;
mod store;
mod sweeper;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use uuid::Uuid;

use crate::clock::Clock;
use crate::event::{EnvelopeError, Event, EventId};
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::postgres::{self, error};
use crate::sync::Outcome;
use lanes::Lanes;
use record::{Recorder, Stored};

pub use bulk::{Replayed, SavedEvent};
pub use store::NewEvent;

/// When an insert or a batch counts as held up, by the database or by somebody's lock: then another one is begun
/// beside it. Otherwise one at a time is the fastest, unless many wait already: what comes during a commit shares
/// the next.
const HELD_UP: Duration = Duration::from_millis(100);

/// How many inserts, and how many batches, that are held up there may be beside the one that is worked on.
const MAX_HELD_UP: usize = 3;

/// How often somebody who waits for an outcome looks into the database: another replica may have settled it.
const OUTCOME_POLL: Duration = Duration::from_millis(250);

/// The status of an inbox row (R27).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Recorded.
    Pending,
    /// Applied.
    Processed,
    /// Of a type that is not handled.
    Ignored,
    /// Will be tried again.
    Failed,
    /// Will not be tried again by itself.
    Dead,
}

impl Status {
    /// The status as the database and the API have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processed => "processed",
            Self::Ignored => "ignored",
            Self::Failed => "failed",
            Self::Dead => "dead",
        }
    }
}

/// Where an event came from (R27).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A delivery by WorkOS.
    Webhook,
    /// `workos-sync replay`.
    Replay,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 2] = [Self::Webhook, Self::Replay];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Replay => "replay",
        }
    }
}

/// What recording an event did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is new, and will be applied.
    Accepted,
    /// It was there already.
    Duplicate,
    /// It is new, and of a type that is not handled.
    Ignored,
}

impl Recorded {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Duplicate, Self::Ignored];

    const fn new(is_new: bool, ignored: bool) -> Self {
        match (is_new, ignored) {
            (false, _) => Self::Duplicate,
            (true, false) => Self::Accepted,
            (true, true) => Self::Ignored,
        }
    }

    /// The word for it in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Ignored => "ignored",
        }
    }
}

/// What is answered to whoever brought an event.
#[derive(Debug)]
pub struct Receipt {
    /// What recording it did.
    pub recorded: Recorded,
    /// Of a duplicate, if another event is stored under its id: which.
    pub detail: Option<String>,
}

/// Why an event could not be made durable.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Postgres can't store this body, now or ever.
    #[error("the event can't be stored: {0}")]
    Unstorable(String),
    /// The database is away or overloaded; the sender should come back.
    #[error("the event could not be made durable: {reason}")]
    Unavailable {
        /// What the database said.
        reason: String,
    },
}

/// How an event ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The event.
    pub event_id: String,
    /// `processed`, `ignored` or `dead`.
    pub status: Status,
    /// How it was applied, if it was.
    pub outcome: Option<Outcome>,
    /// Why it is dead, if it is.
    pub error: Option<String>,
}

/// The handle of the inbox. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Inbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: PgPool,
    clock: Arc<dyn Clock>,
    outbox: Outbox,
    /// Of derived organization ids.
    namespace: Uuid,
    metrics: Metrics,
    recorder: Recorder,
    lanes: Lanes,
    position: sweeper::Position,
    /// How many events were settled or put off.
    steps: AtomicU64,
    /// Tells those who wait for an outcome; nobody has to listen.
    settled: broadcast::Sender<Settled>,
    /// No event is begun after this.
    shutdown: CancellationToken,
    /// The database did not answer last time: an outage is logged when it begins and when it ends.
    outage: AtomicBool,
}

impl Inbox {
    /// An inbox on a database. `lanes` is how many events are applied at once; each takes a connection of the
    /// pool, which must have some left for recording.
    #[must_use]
    pub fn new(
        pool: PgPool,
        clock: Arc<dyn Clock>,
        outbox: Outbox,
        namespace: Uuid,
        metrics: Metrics,
        lanes: usize,
        shutdown: CancellationToken,
    ) -> Self {
        counts::expect(&metrics);
        metrics.watch_connections(&pool);
        Self {
            inner: Arc::new(Inner {
                pool,
                clock,
                outbox,
                namespace,
                metrics,
                recorder: Recorder::default(),
                lanes: Lanes::new(lanes),
                position: sweeper::Position::default(),
                steps: AtomicU64::new(0),
                settled: broadcast::Sender::new(1_024),
                shutdown,
                outage: AtomicBool::new(false),
            }),
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
        let (event, ()) = self.read_with(body, place, source, |_| ())?;
        Ok(event)
    }

    /// Reads an event, and takes from it what is needed beside.
    fn read_with<T>(
        &self,
        body: Vec<u8>,
        place: Option<OwnedSemaphorePermit>,
        source: Source,
        take: impl FnOnce(&Event<'_>) -> T,
    ) -> Result<(NewEvent, T), EnvelopeError> {
        let mut body = String::from_utf8(body).map_err(|_| EnvelopeError::NotUtf8)?;
        let event = Event::parse(body.as_bytes())?;
        let taken = take(&event);
        let mark = body.len() - event.body.len();
        let mut event = NewEvent {
            event_type: event.event_type.clone(),
            organization_id: event.workos_id.as_ref().map(ToString::to_string),
            ignored: event.organization_event_type().is_none(),
            received_at: self.inner.clock.now(),
            source,
            event_id: event.id,
            body: String::new(),
            _place: place,
        };
        body.drain(..mark);
        event.body = body;
        Ok((event, taken))
    }

    /// Makes an event durable, and has it processed at once (R23, R24).
    ///
    /// # Errors
    /// The event is not durable: the sender must not be told that it is. It may be durable all the same if the
    /// answer of the database got lost; then it will be processed, and the next delivery is a duplicate.
    pub async fn record(&self, event: NewEvent) -> Result<Receipt, RecordError> {
        let ignored = event.ignored;
        let (recorded, detail) = match self.store(event).await? {
            Stored::New => (Recorded::new(true, ignored), None),
            Stored::Duplicate(detail) => (Recorded::Duplicate, detail),
        };
        Ok(Receipt { recorded, detail })
    }

    /// Begins to listen for outcomes; to be called before the event is recorded.
    #[must_use]
    pub fn watch(&self, event_id: EventId) -> Watch {
        Watch {
            inbox: self.clone(),
            event_id,
            settled: self.inner.settled.subscribe(),
        }
    }

    /// Processes everything that is due, and returns when nothing is, or on shutdown, when the events in hand
    /// are done: for tests. What somebody else holds is waited for, at the sweeper's pace.
    ///
    /// # Errors
    /// The database doesn't answer.
    pub async fn settle(&self) -> Result<(), sqlx::Error> {
        let Inner {
            lanes,
            steps,
            shutdown,
            ..
        } = &*self.inner;
        let mut before = steps.load(Ordering::Relaxed);
        while self.sweep().await? > 0 {
            lanes.idle().await;
            // From then on lanes begin nothing, so what is due stays due.
            if shutdown.is_cancelled() {
                break;
            }
            let now = steps.load(Ordering::Relaxed);
            if now == before {
                // Both arms only wait.
                tokio::select! {
                    () = shutdown.cancelled() => break,
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
    /// The database doesn't answer.
    pub async fn settle_events(
        &self,
        mut event_ids: Vec<String>,
    ) -> Result<BTreeMap<String, u64>, sqlx::Error> {
        let Inner {
            pool,
            lanes,
            shutdown,
            ..
        } = &*self.inner;
        let mut results = BTreeMap::new();
        let mut waited = usize::MAX;
        loop {
            let progress = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
                store::progress(connection, &event_ids).await
            });
            let stopped = shutdown.is_cancelled();
            let mut waiting = Vec::new();
            for event in progress.await? {
                if event.result == Status::Pending.as_str() && !stopped {
                    waiting.push(event);
                } else {
                    *results.entry(event.result).or_default() += 1;
                }
            }
            if waiting.is_empty() {
                return Ok(results);
            }
            if waiting.len() == waited {
                // Somebody else is in the way. Both arms only wait.
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep(sweeper::SWEEP_INTERVAL) => {}
                }
            }
            waited = waiting.len();
            for lane in waiting
                .iter()
                .map(|event| &event.lane)
                .collect::<HashSet<_>>()
            {
                self.wake(lane.clone());
            }
            event_ids = waiting.into_iter().map(|event| event.event_id).collect();
            // Not for longer: a flood may keep one of the lanes busy for ever.
            let _ = timeout(sweeper::SWEEP_INTERVAL, lanes.idle()).await;
        }
    }

    /// Returns when nothing is worked on: after a shutdown, when what was in hand is done.
    pub async fn idle(&self) {
        self.inner.lanes.idle().await;
    }

    fn database_answered(&self) {
        if self.inner.outage.swap(false, Ordering::Relaxed) {
            info!("the database answers again: processing goes on");
        }
    }

    fn database_failed(&self, cause: &sqlx::Error) {
        if !self.inner.outage.swap(true, Ordering::Relaxed) {
            error!(
                error = error::describe(cause),
                "the database doesn't answer: events wait in the inbox until it does",
            );
        }
    }
}

/// Waits for the outcome of one event.
#[derive(Debug)]
pub struct Watch {
    inbox: Inbox,
    event_id: EventId,
    settled: broadcast::Receiver<Settled>,
}

impl Watch {
    /// How the event ended, or `None` at the deadline. On shutdown, the end of what is in hand is a deadline.
    pub async fn outcome(mut self, deadline: Instant) -> Option<Settled> {
        let inner = Arc::clone(&self.inbox.inner);
        let stopped = async {
            inner.shutdown.cancelled().await;
            inner.lanes.idle().await;
        };
        // Both arms only watch.
        tokio::select! {
            settled = tokio::time::timeout_at(deadline, self.settled()) => settled.ok(),
            // The event may have been the last that was in hand: both arms are ready then.
            () = stopped => tokio::time::timeout_at(deadline, self.look_up()).await.ok()?,
        }
    }

    async fn settled(&mut self) -> Settled {
        let mut look = tokio::time::interval_at(Instant::now() + OUTCOME_POLL, OUTCOME_POLL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Both are cancel-safe.
            tokio::select! {
                settled = self.settled.recv() => match settled {
                    Ok(settled) if settled.event_id == self.event_id.as_str() => return settled,
                    // Another's, at the speed of the lanes: no need to ask the database.
                    Ok(_) => continue,
                    // Missed some.
                    Err(_) => {}
                },
                // Another replica may have settled it.
                _ = look.tick() => {}
            }
            if let Some(settled) = self.look_up().await {
                return settled;
            }
        }
    }

    async fn look_up(&self) -> Option<Settled> {
        // A database that doesn't answer is asked again: the deadline is the caller's.
        let pool = &self.inbox.inner.pool;
        let standing = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
            store::standing(connection, &self.event_id).await
        })
        .await
        .ok()??;
        let status = [Status::Processed, Status::Ignored, Status::Dead]
            .into_iter()
            .find(|status| status.as_str() == standing.status)?;
        Some(Settled {
            event_id: self.event_id.to_string(),
            status,
            outcome: standing.outcome.as_deref().and_then(Outcome::parse),
            error: standing.last_error,
        })
    }
}

//! Processes events: one transaction for a batch, or for one; retries, dead letters (R24–R26).

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use tracing::{debug, error, info, warn};

use super::lanes::HeldLane;
use super::retry::{Verdict, judge};
use super::store::{self, Claimed, NewEvent};
use super::{Inbox, Settled, Status, counts};
use crate::event::{DecodeError, EnvelopeError, Event, OrganizationEvent, WorkosId};
use crate::postgres;
use crate::postgres::error::{self, DatabaseCause, FailureClass};
use crate::sync::{self, ApplyError, Outcome, Patience, TwoRows};
use crate::telemetry::panic_message;

/// How often an event is tried again at once when another writer was in the way.
const CONFLICTS: u32 = 5;

/// How long an attempt may take. Beyond every timeout of the database: it ends the wait for one that doesn't
/// even answer that.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a look into a lane came to.
#[derive(Debug)]
pub(super) enum Step {
    /// An event was settled, or put off.
    Processed,
    /// Nothing is due.
    Idle,
}

/// Why an attempt came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    /// The body is no event. Recorded events were parsed, so somebody else put it there.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// What the event contains can't be applied.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Recorded events are in the lane of their organization, so somebody else put it there.
    #[error(
        "the event is about {0}, which is not what the column organization_id says: set it, then retry"
    )]
    WrongLane(WorkosId),
    #[error("another writer changed the row between fetch and write")]
    Conflict,
    /// The organization has two rows.
    #[error(transparent)]
    TwoRows(TwoRows),
    /// Its body is longer than the transaction takes.
    #[error("the body is too long for a batch")]
    TooLong,
    #[error("{}", error::describe(.0))]
    Database(#[from] sqlx::Error),
    /// We panicked.
    #[error("a bug in workos-sync, please report it: {0}")]
    Bug(String),
}

impl From<ApplyError> for AttemptError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Conflict => Self::Conflict,
            ApplyError::TwoRows(rows) => Self::TwoRows(rows),
            ApplyError::Database(error) => Self::Database(error),
        }
    }
}

impl DatabaseCause for AttemptError {
    fn database_cause(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Database(error) => Some(error),
            _ => None,
        }
    }
}

impl AttemptError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Envelope(_)
            | Self::Decode(_)
            | Self::WrongLane(_)
            | Self::TwoRows(_)
            | Self::TooLong => FailureClass::Permanent,
            Self::Conflict => FailureClass::Conflict,
            Self::Database(error) => error::classify(error),
            // It waits for the version that mends it.
            Self::Bug(_) => FailureClass::Transient,
        }
    }

    /// The class once trying again at once didn't help: what still refuses isn't a race.
    fn lasting_class(&self) -> FailureClass {
        match self {
            Self::Database(error) => error::classify_lasting(error),
            Self::Conflict => FailureClass::Refused,
            _ => self.class(),
        }
    }
}

/// What became of a batch of lanes.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Nothing more is due in these.
    pub(super) finished: Vec<HeldLane>,
    /// There may be more in these.
    pub(super) unfinished: Vec<HeldLane>,
    /// These need a transaction for each event: somebody or something is in the way.
    pub(super) alone: Vec<HeldLane>,
    /// The database didn't answer.
    pub(super) error: Option<sqlx::Error>,
    /// How long the event that waited longest had waited.
    pub(super) lag: TimeDelta,
}

/// How a transaction takes events.
#[derive(Debug, Clone, Copy)]
struct Terms {
    patience: Patience,
    /// The most events of a lane.
    events: i64,
    /// Longer bodies are left where they are.
    longest_payload: i32,
}

/// One event, whatever it takes.
const ALONE: Terms = Terms {
    patience: Patience::Wait,
    events: 1,
    longest_payload: i32::MAX,
};

/// About how many events a batch takes; of a single lane, no more than that.
const BATCH_EVENTS: usize = 1_024;

/// Of a lane it takes so many in any case: more events of one organization are less work each.
const LANE_EVENTS: usize = 16;

/// The longest body that is processed in a batch, in bytes: with the number of events it bounds the memory.
const BATCH_PAYLOAD: i32 = 8 * 1_024;

/// What is told of an event that was settled.
#[derive(Debug)]
pub(super) struct Settling<'a> {
    event_id: &'a str,
    event_type: &'a str,
    lane: &'a str,
    source: &'a str,
    /// With the one that settled it.
    attempts: i32,
    received_at: DateTime<Utc>,
}

impl<'a> Settling<'a> {
    fn of_claimed(event: &'a Claimed) -> Self {
        Self {
            event_id: &event.event_id,
            event_type: &event.event_type,
            lane: &event.lane,
            source: &event.source,
            attempts: event.attempts + 1,
            received_at: event.received_at,
        }
    }

    /// Of an event that was applied as it was stored.
    pub(super) fn of_new(event: &'a NewEvent) -> Self {
        let event_id = event.event_id.as_str();
        Self {
            event_id,
            event_type: &event.event_type,
            lane: event.organization_id.as_deref().unwrap_or(event_id),
            source: event.source.as_str(),
            attempts: 1,
            received_at: event.received_at,
        }
    }
}

/// What a transaction did.
#[derive(Debug, Default)]
struct Attempt {
    /// The places of the events that were settled, among the claimed, with their outcomes.
    settled: Vec<(usize, Option<Outcome>)>,
    /// The outbox has something to do.
    push_recorded: bool,
    /// The lanes that had no event, or had all their events settled.
    quiet: HashSet<String>,
    /// The lanes that had as many events as were taken.
    full: HashSet<String>,
    /// How long the event that waited longest had waited.
    lag: TimeDelta,
}

impl Inbox {
    /// Processes what is due in a batch of lanes, in one transaction.
    pub(super) async fn process(&self, lanes: Vec<HeldLane>) -> Done {
        let names: Vec<_> = lanes.iter().map(|lane| lane.name.clone()).collect();
        let events = std::cmp::max(BATCH_EVENTS / std::cmp::max(names.len(), 1), LANE_EVENTS);
        let terms = Terms {
            patience: Patience::Try,
            events: i64::try_from(events).unwrap_or(i64::MAX),
            longest_payload: BATCH_PAYLOAD,
        };
        let mut claimed = Vec::new();
        let result = self.ask(&names, terms, &mut claimed).await;
        let mut done = Done::default();
        match result {
            Ok(attempt) => {
                done.lag = attempt.lag;
                for lane in lanes {
                    let place = if attempt.full.contains(&lane.name) {
                        &mut done.unfinished
                    } else if attempt.quiet.contains(&lane.name) {
                        &mut done.finished
                    } else {
                        &mut done.alone
                    };
                    place.push(lane);
                }
            }
            Err(AttemptError::Database(error)) if error::is_an_outage(&error) => {
                done.finished = lanes;
                done.error = Some(error);
            }
            // One of the events, or somebody else's lock: each lane for itself finds out.
            Err(error) => {
                debug!(%error, lanes = names.len(), "a batch is split: {error}");
                done.alone = lanes;
            }
        }
        done
    }

    /// Processes the next due event of a lane; the caller holds the lane.
    ///
    /// # Errors
    /// The database doesn't answer. Nothing is lost: the event is as it was.
    pub(super) async fn process_next(&self, lane: &str) -> Result<Step, sqlx::Error> {
        let lanes = [lane.to_owned()];
        let mut conflicts = 0;
        loop {
            let mut claimed = Vec::new();
            let result = self.ask(&lanes, ALONE, &mut claimed).await;
            return match (result, claimed.pop()) {
                (Ok(_), None) => Ok(Step::Idle),
                (Ok(_), Some(_)) => Ok(Step::Processed),
                (Err(error), Some(_))
                    if error.class() == FailureClass::Conflict && conflicts < CONFLICTS =>
                {
                    conflicts += 1;
                    continue;
                }
                (Err(error), Some(claimed)) => {
                    self.put_off(&claimed, &error).await?;
                    Ok(Step::Processed)
                }
                (Err(AttemptError::Database(error)), None) if error::is_lock_timeout(&error) => {
                    warn!(
                        lane,
                        "another session holds the lock of {lane}: its events wait"
                    );
                    Ok(Step::Idle)
                }
                (Err(AttemptError::Database(error)), None) => Err(error),
                // A bug, before there is an event to put off.
                (Err(error), None) => Err(sqlx::Error::Protocol(error.to_string())),
            };
        }
    }

    async fn ask(
        &self,
        lanes: &[String],
        terms: Terms,
        claimed: &mut Vec<Claimed>,
    ) -> Result<Attempt, AttemptError> {
        let started = Instant::now();
        let attempt = self
            .within(async |tx: &mut PgConnection| self.attempt(tx, lanes, terms, claimed).await)
            .await?;
        if attempt.push_recorded {
            self.inner.outbox.wake();
        }
        if !attempt.settled.is_empty() {
            self.inner.metrics.apply(started.elapsed());
        }
        self.count_steps(attempt.settled.len());
        for &(place, outcome) in &attempt.settled {
            self.tell(&Settling::of_claimed(&claimed[place]), outcome);
        }
        Ok(attempt)
    }

    /// Has an attempt made in a transaction, and ends it where the database doesn't answer, or the attempt panics.
    pub(super) async fn within<T>(
        &self,
        attempt: impl AsyncFnOnce(&mut PgConnection) -> Result<T, AttemptError>,
    ) -> Result<T, AttemptError> {
        caught(postgres::transaction(
            &self.inner.pool,
            ATTEMPT_TIMEOUT,
            attempt,
        ))
        .await
        .unwrap_or_else(|panic| Err(AttemptError::Bug(panic)))
    }

    /// Claims, applies and settles events in one transaction (R25).
    async fn attempt(
        &self,
        tx: &mut PgConnection,
        lanes: &[String],
        terms: Terms,
        claimed: &mut Vec<Claimed>,
    ) -> Result<Attempt, AttemptError> {
        let inner = &self.inner;
        let now = inner.clock.now();
        let locked = sync::lock_organizations(tx, lanes, terms.patience).await?;
        let Terms {
            events,
            longest_payload,
            ..
        } = terms;
        *claimed = store::claim(tx, &locked, events, longest_payload).await?;
        let oldest = claimed.iter().map(|claimed| claimed.received_at).min();
        let mut attempt = Attempt {
            quiet: locked.into_iter().collect(),
            lag: oldest.map_or(TimeDelta::zero(), |oldest| now - oldest),
            ..Attempt::default()
        };
        if claimed.is_empty() {
            return Ok(attempt);
        }

        let alone = terms.patience == Patience::Wait;
        let mut read = Vec::with_capacity(claimed.len());
        for (place, claimed) in claimed.iter().enumerate() {
            // Behind an event that is left, the others of its lane are left too: they come after it (R24).
            if !attempt.quiet.contains(&claimed.lane) {
                continue;
            }
            match self::read(claimed) {
                Ok(event) => read.push((place, event)),
                Err(error) if alone => return Err(error),
                Err(_) => drop(attempt.quiet.remove(&claimed.lane)),
            }
        }
        let events: Vec<_> = read.iter().filter_map(|(_, event)| event.clone()).collect();
        let applied = sync::apply(tx, &events, &inner.namespace, now).await?;
        let mut outcomes = applied.outcomes.into_iter();
        attempt.push_recorded = applied.push_recorded;
        attempt.settled = read
            .into_iter()
            .map(|(place, event)| (place, event.and_then(|_| outcomes.next())))
            .collect();
        let (ids, outcomes): (Vec<_>, Vec<_>) = attempt
            .settled
            .iter()
            .map(|&(place, outcome)| (claimed[place].event_id.as_str(), outcome))
            .unzip();
        if !ids.is_empty() {
            store::settle(tx, &ids, &outcomes, now).await?;
        }

        let mut counts = HashMap::<&str, i64>::new();
        for &(place, _) in &attempt.settled {
            *counts.entry(&claimed[place].lane).or_default() += 1;
        }
        for (lane, count) in counts {
            if count >= terms.events {
                attempt.full.insert(lane.to_owned());
            }
        }
        Ok(attempt)
    }

    /// Records that an attempt failed, and when the next one is, if there is one.
    async fn put_off(&self, claimed: &Claimed, cause: &AttemptError) -> Result<(), sqlx::Error> {
        let inner = &self.inner;
        let class = cause.lasting_class();
        let attempts = claimed.attempts.saturating_add(1);
        let refused = class == FailureClass::Refused;
        let refusals = claimed.refusals.saturating_add(refused.into());
        let verdict = judge(
            class,
            attempts,
            refusals,
            inner.clock.now(),
            fastrand::f64(),
        );
        let (retry_at, refusals) = match verdict {
            Verdict::RetryAt(at) => (Some(at), refusals),
            // Retried by an operator, it has as many tries as a new one.
            Verdict::Dead => (None, 0),
        };
        let reason = cause.to_string();
        let failed = postgres::transaction(&inner.pool, postgres::PATIENCE, async |connection| {
            store::fail(connection, &claimed.event_id, retry_at, refusals, &reason).await
        });
        if !failed.await? {
            // Settled after all: the answer to our COMMIT got lost, or another replica was quicker.
            return Ok(());
        }
        self.count_steps(1);
        counts::failed(&inner.metrics, class, cause);
        let Claimed {
            event_id,
            event_type,
            source,
            ..
        } = claimed;
        if let (Some(retry_at), AttemptError::Bug(_)) = (retry_at, cause) {
            error!(
                event.id = event_id, event.r#type = event_type, source, attempts, reason, %retry_at,
                "{event_type} {event_id} will be tried again: {reason}",
            );
        } else if let Some(retry_at) = retry_at {
            warn!(
                event.id = event_id, event.r#type = event_type, source, attempts, reason, %retry_at,
                "{event_type} {event_id} will be tried again: {reason}",
            );
        } else {
            counts::dead(&inner.metrics, source, event_type);
            error!(
                event.id = event_id,
                event.r#type = event_type,
                source,
                attempts,
                reason,
                "{event_type} {event_id} is a dead letter, to be retried or discarded by hand: {reason}",
            );
            // Nobody has to listen.
            let _ = inner.settled.send(Settled {
                event_id: event_id.clone(),
                status: Status::Dead,
                outcome: None,
                error: Some(reason),
            });
        }
        Ok(())
    }

    /// So many events were settled, or put off.
    pub(super) fn count_steps(&self, events: usize) {
        let events = u64::try_from(events).unwrap_or(u64::MAX);
        self.inner.steps.fetch_add(events, Ordering::Relaxed);
    }

    /// Tells of an event that was settled: the log, and whoever waits for it.
    pub(super) fn tell(&self, event: &Settling<'_>, outcome: Option<Outcome>) {
        let status = if outcome.is_some() {
            Status::Processed
        } else {
            Status::Ignored
        };
        let lag = self.inner.clock.now() - event.received_at;
        let lag_ms = lag.num_milliseconds();
        let result = outcome.map_or(status.as_str(), Outcome::as_str);
        let Settling {
            event_id,
            event_type,
            source,
            attempts,
            lane,
            ..
        } = *event;
        counts::settled(&self.inner.metrics, source, event_type, outcome, lag);
        info!(
            event.id = event_id,
            event.r#type = event_type,
            workos.organization_id = lane,
            source,
            attempts,
            outcome = result,
            lag_ms,
            "{event_type} {event_id}: {result}",
        );
        if self.inner.settled.receiver_count() > 0 {
            // Nobody has to listen.
            let _ = self.inner.settled.send(Settled {
                event_id: event_id.to_owned(),
                status,
                outcome,
                error: None,
            });
        }
    }
}

/// Does some work; a panic in it is an error, and says what the panic said. It costs the work what it holds, among that
/// its connection to the database.
pub(super) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = pin!(work);
    poll_fn(|context| {
        // Work that panicked is dropped, and never polled again.
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => {
                let text = panic_message(&*panic).unwrap_or("a panic without a message");
                // It may quote an event, and no column holds a NUL.
                Poll::Ready(Err(text.replace('\0', "\u{fffd}")))
            }
        }
    })
    .await
}

/// Reads a claimed event; nothing is to be applied of a type that is not handled.
fn read(claimed: &Claimed) -> Result<Option<OrganizationEvent>, AttemptError> {
    let payload = claimed.payload.as_ref().ok_or(AttemptError::TooLong)?;
    let event = Event::parse(payload.as_bytes())?;
    if event.organization_event_type().is_none() {
        return Ok(None);
    }
    let event = event.organization()?;
    // What is held are the mutex and the lock of the lane (R18).
    if event.workos_id.as_str() != claimed.lane {
        return Err(AttemptError::WrongLane(event.workos_id));
    }
    Ok(Some(event))
}

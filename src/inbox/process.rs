//! Processes one event: one transaction, retries, dead letters (R24–R26).

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tracing::{error, info, warn};

use super::retry::{Verdict, judge};
use super::store::{self, Claimed};
use super::{Inbox, Settled, Status};
use crate::event::{DecodeError, EnvelopeError, Event, WorkosId};
use crate::postgres;
use crate::postgres::error::{self, FailureClass};
use crate::sync::{self, ApplyError, Outcome};

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
enum AttemptError {
    /// The body is no event. Recorded events were parsed, so somebody else put it there.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// What the event contains can't be applied.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("another writer changed the row between fetch and write")]
    Conflict,
    #[error("{}", error::describe(.0))]
    Database(#[from] sqlx::Error),
}

impl From<ApplyError> for AttemptError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Conflict => Self::Conflict,
            ApplyError::Database(error) => Self::Database(error),
        }
    }
}

impl AttemptError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Envelope(_) | Self::Decode(_) => FailureClass::Permanent,
            Self::Conflict => FailureClass::Conflict,
            Self::Database(error) => error::classify(error),
        }
    }

    /// The class once trying again at once didn't help: a unique index that still refuses isn't a race.
    fn lasting_class(&self) -> FailureClass {
        match self {
            Self::Database(error) if error::is_unique_violation(error) => FailureClass::Refused,
            _ => self.class(),
        }
    }
}

impl Inbox {
    /// Processes the next due event of a lane; the caller holds the lane.
    ///
    /// # Errors
    /// The database doesn't answer. Nothing is lost: the event is as it was.
    pub(super) async fn process_next(&self, lane: &str) -> Result<Step, sqlx::Error> {
        let mut conflicts = 0;
        loop {
            let mut claimed = None;
            let attempt = postgres::ask(&self.inner.pool, ATTEMPT_TIMEOUT, async |connection| {
                // An attempt that failed leaves a connection that is as good as before.
                Ok(self.attempt(connection, lane, &mut claimed).await)
            });
            let result = attempt.await.unwrap_or_else(|error| Err(error.into()));
            return match (result, claimed) {
                (Ok(()), None) => Ok(Step::Idle),
                (Ok(()), Some(_)) => Ok(Step::Processed),
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
                // Nothing else can be wrong before there is an event.
                (Err(error), None) => Err(sqlx::Error::Protocol(error.to_string())),
            };
        }
    }

    /// Claims, applies and settles an event in one transaction (R25). An error rolls it back.
    async fn attempt(
        &self,
        connection: &mut PgConnection,
        lane: &str,
        claimed: &mut Option<Claimed>,
    ) -> Result<(), AttemptError> {
        let inner = &self.inner;
        let now = inner.clock.now();
        let mut tx = connection.begin().await?;
        sync::lock_organization(&mut tx, lane).await?;
        *claimed = store::claim_next(&mut tx, lane, now).await?;
        let Some(claimed) = claimed.as_ref() else {
            return Ok(());
        };

        let event = Event::parse(claimed.payload.as_bytes())?;
        let applied = match event.organization_event_type() {
            Some(_) => {
                let event = event.organization()?;
                Some(sync::apply(&mut tx, &event, &inner.namespace, now).await?)
            }
            None => None,
        };
        let outcome = applied.as_ref().map(|applied| applied.outcome);
        store::settle(&mut tx, &claimed.event_id, outcome, now).await?;
        tx.commit().await?;

        if applied.is_some_and(|applied| applied.push_recorded) {
            inner.outbox.wake();
        }
        self.tell(claimed, &event, outcome);
        Ok(())
    }

    /// Records that an attempt failed, and when the next one is, if there is one.
    async fn put_off(&self, claimed: &Claimed, cause: &AttemptError) -> Result<(), sqlx::Error> {
        let inner = &self.inner;
        let attempts = claimed.attempts.saturating_add(1);
        let verdict = judge(
            cause.lasting_class(),
            attempts,
            inner.clock.now(),
            fastrand::f64(),
        );
        let retry_at = match verdict {
            Verdict::RetryAt(at) => Some(at),
            Verdict::Dead => None,
        };
        let reason = cause.to_string();
        let failed = postgres::ask(&inner.pool, postgres::PATIENCE, async |connection| {
            store::fail(connection, &claimed.event_id, retry_at, &reason).await
        });
        if !failed.await? {
            // Settled after all: the answer to our COMMIT got lost, or another replica was quicker.
            return Ok(());
        }
        let Claimed {
            event_id,
            event_type,
            source,
            ..
        } = claimed;
        if let Some(retry_at) = retry_at {
            inner.metrics.failure();
            warn!(
                event.id = event_id, event.r#type = event_type, source, attempts, reason, %retry_at,
                "{event_type} {event_id} will be tried again: {reason}",
            );
        } else {
            inner.metrics.event(Status::Dead.as_str());
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

    /// Tells of an event that was settled: the log, and whoever waits for it.
    fn tell(&self, claimed: &Claimed, event: &Event<'_>, outcome: Option<Outcome>) {
        let status = if outcome.is_some() {
            Status::Processed
        } else {
            Status::Ignored
        };
        let lag_ms = (self.inner.clock.now() - claimed.received_at).num_milliseconds();
        let result = outcome.map_or(status.as_str(), Outcome::as_str);
        self.inner.metrics.event(result);
        let Claimed {
            event_id,
            event_type,
            source,
            attempts,
            ..
        } = claimed;
        info!(
            event.id = event_id,
            event.r#type = event_type,
            workos.organization_id = event.workos_id.as_ref().map(WorkosId::as_str),
            source,
            attempts = attempts + 1,
            outcome = result,
            lag_ms,
            "{event_type} {event_id}: {result}",
        );
        // Nobody has to listen.
        let _ = self.inner.settled.send(Settled {
            event_id: event_id.clone(),
            status,
            outcome,
            error: None,
        });
    }
}

//! Tries one event until it is applied, put off, or somebody is in the way (R26).

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tracing::error;

use super::conditions::Conditions;
use super::failure::{AttemptError, Failure};
use super::outcomes::Outcomes;
use super::retry::{Verdict, judge};
use super::store::{self, Claimed, Wait};
use super::transaction::Transactions;
use crate::clock::Clock;
use crate::postgres::error::{self, FailureClass};
use crate::postgres::{self, Session};

/// How often an event is tried again at once when another writer was in the way.
const CONFLICTS: u32 = 5;

/// What a look into a lane came to.
#[derive(Debug)]
pub(super) enum Step {
    /// An event was applied, or put off.
    Processed,
    /// Nothing is due, or there is a pause.
    Idle,
    /// Somebody holds a lock that it needs: it is to come again.
    InTheWay,
    /// It failed in a way that may be the service's condition, not the event's fault: it is to come again, and to say
    /// since when it fails so.
    FailingSince(DateTime<Utc>),
}

#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) transactions: Arc<Transactions>,
    pub(super) outcomes: Arc<Outcomes>,
    pub(super) conditions: Arc<Conditions>,
}

impl Attempts {
    /// Processes the next due event of a lane, which the caller holds.
    ///
    /// # Errors
    /// The database doesn't answer. Nothing is lost: the event is as it was.
    pub(super) async fn next(
        &self,
        session: &mut Session<'_>,
        lane: &str,
        wait: Wait,
        failing_since: Option<DateTime<Utc>>,
    ) -> Result<Step, sqlx::Error> {
        let mut conflicts = 0;
        let mut refused = Vec::new();
        let Failure { event, error } = loop {
            match self.transactions.next(session, lane, wait, &refused).await {
                Ok(true) => return Ok(Step::Processed),
                Ok(false) => return Ok(Step::Idle),
                Err(failure)
                    if failure.error.class() == FailureClass::Conflict && conflicts < CONFLICTS =>
                {
                    conflicts += 1;
                    refused.extend(failure.error.refused().map(str::to_owned));
                }
                Err(failure) => break failure,
            }
        };
        let error = match error {
            AttemptError::Database(error) if error::is_an_outage(&error) => return Err(error),
            AttemptError::Paused => {
                self.conditions.pause_met();
                return Ok(Step::Idle);
            }
            error => error,
        };
        if let AttemptError::Database(cause) = &error
            && error::is_lock_timeout(cause)
        {
            return Ok(Step::InTheWay);
        }
        let class = error.lasting_class();
        let Some(event) = event else {
            // It failed before there was an event: our own tables, or a bug.
            return Ok(self.not_applied(lane, class, &error, failing_since));
        };
        if class != FailureClass::Unusable {
            return self.put_off(session, &event, class, &error).await;
        }
        // What failed so before, and fails again although others were applied meanwhile, is at fault itself.
        let since = match failing_since {
            Some(since) => Some(since),
            None => self.failed_at(session, &event, &error).await?,
        };
        if since.is_some_and(|since| self.conditions.applied_since(since)) {
            return self
                .put_off(session, &event, FailureClass::Refused, &error)
                .await;
        }
        Ok(self.not_applied(lane, class, &error, failing_since))
    }

    /// Nothing was applied, and no event is known to be at fault. The second time, with nothing applied in between, it is
    /// the service's condition.
    fn not_applied(
        &self,
        lane: &str,
        class: FailureClass,
        error: &AttemptError,
        failing_since: Option<DateTime<Utc>>,
    ) -> Step {
        self.outcomes.not_applied(class, error);
        if class != FailureClass::Unusable {
            error!(
                workos.organization_id = lane,
                cause = error.cause(),
                "events of {lane} wait: {error}",
            );
        } else if failing_since.is_some() {
            let is_said = self.transactions.table_is_unusable();
            self.conditions.table_failed(&error.to_string(), is_said);
        }
        Step::FailingSince(failing_since.unwrap_or_else(|| self.clock.now()))
    }

    /// When an attempt of this event last failed of the same cause.
    async fn failed_at(
        &self,
        session: &mut Session<'_>,
        event: &Claimed,
        error: &AttemptError,
    ) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
        let cause = error.cause();
        let ask = async |connection: &mut sqlx::PgConnection| {
            store::last_attempt(connection, &event.event_id, &cause).await
        };
        session.transaction(postgres::PATIENCE, ask).await
    }

    /// Records that an attempt failed, and when the next one is, if there is one.
    async fn put_off(
        &self,
        session: &mut Session<'_>,
        event: &Claimed,
        class: FailureClass,
        error: &AttemptError,
    ) -> Result<Step, sqlx::Error> {
        let now = self.clock.now();
        let attempts = event.attempts.saturating_add(1);
        let refused = class == FailureClass::Refused;
        let refusals = event.refusals.saturating_add(refused.into());
        let (retry_at, refusals) = match judge(class, attempts, refusals, now, fastrand::f64()) {
            Verdict::RetryAt(at) => (Some(at), refusals),
            // Retried by an operator, it has as many tries as a new one.
            Verdict::Dead => (None, 0),
        };
        let failed = store::Failed {
            event_id: &event.event_id,
            at: now,
            retry_at,
            refusals,
            cause: &error.cause(),
            error: &error.to_string(),
        };
        let fail =
            async |connection: &mut sqlx::PgConnection| store::fail(connection, &failed).await;
        // If it ended after all, the answer to our COMMIT got lost, or another replica was quicker.
        if session.transaction(postgres::PATIENCE, fail).await? {
            self.outcomes.failed(event, class, error, retry_at);
        }
        Ok(Step::Processed)
    }
}

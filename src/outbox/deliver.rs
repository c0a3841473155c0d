//! Delivers one intention: reads, writes, and settles by the answer (R15, R16).

use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::{debug, error, info, warn};

use super::store::{self, Claimed, Settlement};
use super::{Outbox, later};
use crate::backoff::backoff;
use crate::clock::Clock;
use crate::postgres;
use crate::workos::{WorkosClient, WorkosError, shorten};

/// How long the outbox pauses after a 401 or 403. A key is replaced by a restart, but it can be given a
/// permission, or WorkOS can be mistaken.
const UNAUTHORIZED_PAUSE: Duration = Duration::from_mins(1);

/// The longest wait of a row that backs off.
const LONGEST_WAIT: Duration = Duration::from_mins(10);

/// No pause is longer, whatever `Retry-After` says.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// Nor shorter: "Retry-After: 0" would make a busy loop.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// How a delivery went well, or not so well.
enum Pushed {
    /// WorkOS has it, and had it not before.
    Written,
    /// WorkOS had it.
    AlreadyThere,
    /// WorkOS holds another `external_id`.
    Conflict { held: String },
}

/// Reads before it writes (R15). Between the two somebody else may write: WorkOS has no conditional PUT.
async fn push(
    client: &WorkosClient,
    claimed: &Claimed,
    clock: &dyn Clock,
) -> Result<Pushed, WorkosError> {
    let id = &claimed.organization_id;
    match client
        .get_external_id(&claimed.workos_id, clock.now())
        .await?
    {
        Some(held) if held == id.as_str() => Ok(Pushed::AlreadyThere),
        Some(held) => Ok(Pushed::Conflict { held }),
        None => client
            .put_external_id(&claimed.workos_id, id, clock.now())
            .await
            .map(|()| Pushed::Written),
    }
}

impl Outbox {
    /// Delivers an intention and records what became of it; logs it if the intention was still the same.
    pub(super) async fn deliver(
        &self,
        client: &WorkosClient,
        claimed: Claimed,
    ) -> Result<(), sqlx::Error> {
        let answer = push(client, &claimed, &*self.clock).await;
        if !matches!(
            answer,
            Err(WorkosError::Unauthorized { .. }
                | WorkosError::RateLimited { .. }
                | WorkosError::Unavailable { .. })
        ) {
            self.pace().taken(self.clock.now());
        }

        let (id, workos_id) = (&claimed.organization_id, &claimed.workos_id);
        match answer {
            Ok(Pushed::Written) => {
                if self.settle(&claimed, Settlement::Done, None).await? {
                    info!(
                        organization_id = %id,
                        workos.organization_id = %workos_id,
                        "WorkOS organization {workos_id} has external_id {id} now",
                    );
                }
            }
            Ok(Pushed::AlreadyThere) => {
                if self.settle(&claimed, Settlement::Done, None).await? {
                    info!(
                        organization_id = %id,
                        workos.organization_id = %workos_id,
                        "WorkOS organization {workos_id} had external_id {id} already",
                    );
                }
            }
            Ok(Pushed::Conflict { held }) => {
                let held = shorten(&held);
                let reason =
                    format!("WorkOS holds external_id {held}, which is not overwritten with {id}");
                if self
                    .settle(&claimed, Settlement::Conflict, Some(&reason))
                    .await?
                {
                    warn!(
                        organization_id = %id,
                        workos.organization_id = %workos_id,
                        workos.external_id = held,
                        "WorkOS organization {workos_id}: {reason}",
                    );
                }
            }
            Err(
                refusal @ (WorkosError::NotFound
                | WorkosError::ExternalIdAlreadyUsed
                | WorkosError::Rejected { .. }),
            ) => {
                let reason = match refusal {
                    WorkosError::NotFound => format!(
                        "{refusal}: it was deleted meanwhile, it comes from a sample event of the \
                         dashboard, or WORKOS_API_KEY belongs to another environment"
                    ),
                    _ => refusal.to_string(),
                };
                if self
                    .settle(&claimed, Settlement::Rejected, Some(&reason))
                    .await?
                {
                    warn!(
                        organization_id = %id,
                        workos.organization_id = %workos_id,
                        "WorkOS organization {workos_id} is not given external_id {id}: {reason}",
                    );
                }
            }
            Err(refusal @ WorkosError::Unauthorized { .. }) => {
                self.pause(&claimed, UNAUTHORIZED_PAUSE, &refusal).await?;
            }
            Err(refusal @ WorkosError::RateLimited { retry_after }) => {
                let pause = retry_after.unwrap_or_else(|| {
                    let pauses = self.pace().pauses();
                    backoff(pauses.saturating_add(1), LONGEST_WAIT, fastrand::f64())
                });
                self.pause(&claimed, pause, &refusal).await?;
            }
            Err(failure @ WorkosError::Unavailable { .. }) => {
                let wait = backoff(claimed.attempts, LONGEST_WAIT, fastrand::f64());
                let until = later(self.clock.now(), wait);
                if self
                    .postpone(&claimed, until, true, &failure.to_string())
                    .await?
                {
                    warn!(
                        organization_id = %id,
                        workos.organization_id = %workos_id,
                        attempt = claimed.attempts,
                        "WorkOS organization {workos_id} is not given external_id {id} yet, next try in \
                         {:.1} s: {failure}",
                        wait.as_secs_f64(),
                    );
                }
            }
        }
        Ok(())
    }

    /// Pauses the outbox, because the refusal is about us: the next organization would meet it too. The attempt
    /// doesn't count against the one that met it.
    async fn pause(
        &self,
        claimed: &Claimed,
        pause: Duration,
        refusal: &WorkosError,
    ) -> Result<(), sqlx::Error> {
        let pause = pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        let now = self.clock.now();
        let until = later(now, pause);
        // Once a pause, not once a row.
        if self.pace().pause(until, now) {
            let (id, workos_id) = (&claimed.organization_id, &claimed.workos_id);
            let seconds = pause.as_secs_f64();
            if matches!(refusal, WorkosError::Unauthorized { .. }) {
                error!(
                    organization_id = %id,
                    workos.organization_id = %workos_id,
                    "WORKOS_API_KEY is wrong or lacks a permission: {refusal}, asked for organization \
                     {workos_id}; no external_id is written until that is mended, next try in {seconds:.0} s",
                );
            } else {
                warn!(
                    organization_id = %id,
                    workos.organization_id = %workos_id,
                    "{refusal}, asked for organization {workos_id}; no external_id is written for \
                     {seconds:.1} s",
                );
            }
        }
        self.postpone(claimed, until, false, &refusal.to_string())
            .await
            .map(drop)
    }

    async fn settle(
        &self,
        claimed: &Claimed,
        settlement: Settlement,
        reason: Option<&str>,
    ) -> Result<bool, sqlx::Error> {
        let now = self.clock.now();
        let settled = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::settle(connection, claimed, settlement, reason, now).await
        })
        .await?;
        log_overtaken(claimed, settled);
        Ok(settled)
    }

    async fn postpone(
        &self,
        claimed: &Claimed,
        until: DateTime<Utc>,
        counts: bool,
        reason: &str,
    ) -> Result<bool, sqlx::Error> {
        let postponed = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::postpone(connection, claimed, until, counts, reason).await
        })
        .await?;
        log_overtaken(claimed, postponed);
        Ok(postponed)
    }
}

/// Nothing is wrong: the newer intention is due, and tells its own story.
fn log_overtaken(claimed: &Claimed, recorded: bool) {
    if !recorded {
        debug!(
            organization_id = %claimed.organization_id,
            workos.organization_id = %claimed.workos_id,
            "the delivery for WorkOS organization {} was overtaken by a newer intention",
            claimed.workos_id,
        );
    }
}

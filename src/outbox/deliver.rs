//! Delivers one intention: reads, writes, and does what the answer means (R15, R16).

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tracing::{debug, error, info, warn};

use super::Outbox;
use super::pace::Pause;
use super::store::{self, Claimed};
use super::verdict::{Ending, Pushed, Verdict, asked_pause, verdict};
use crate::backoff::backoff;
use crate::clock::Clock;
use crate::postgres;
use crate::workos::{WorkosClient, WorkosError};

/// The longest wait of an intention that fails while WorkOS takes others.
const LONGEST_WAIT: Duration = Duration::from_mins(10);

/// How long after a pause an intention that met it is due: another one goes ahead first, or the cheap request. If WorkOS
/// takes that, it was this intention's own failure.
const BEHIND: TimeDelta = TimeDelta::seconds(1);

/// Reads before it writes (R15). Between the two somebody else may write: WorkOS has no conditional PUT.
async fn push(
    client: &WorkosClient,
    claimed: &Claimed,
    clock: &dyn Clock,
) -> Result<Pushed, WorkosError> {
    let Claimed {
        workos_id,
        organization_id,
        ..
    } = claimed;
    if let Some(held) = client.get_external_id(workos_id, clock.now()).await? {
        return Ok(Pushed::Held(held));
    }
    client
        .put_external_id(workos_id, organization_id, clock.now())
        .await?;
    Ok(Pushed::Written)
}

impl Outbox {
    /// Delivers an intention, and records what became of it.
    pub(super) async fn deliver(
        &self,
        client: &WorkosClient,
        claimed: Claimed,
    ) -> Result<(), sqlx::Error> {
        let answer = push(client, &claimed, &*self.clock).await;
        let id = &claimed.organization_id;
        let is_ours = |held: &str| self.ids.is_same(held, id.as_str());
        match verdict(answer, id, is_ours) {
            Verdict::Finish(ending) => {
                self.taken();
                self.finish(&claimed, &ending).await
            }
            Verdict::Pause(refusal) => {
                let until = self.pause(&refusal, claimed.workos_id.as_str()).until;
                self.postpone(&claimed, until, false, &refusal).await
            }
            Verdict::Retry(failure) => {
                let pause = self.pause(&failure, claimed.workos_id.as_str());
                // While WorkOS fails everybody, a failure says nothing about this one. One that meets WorkOS in good
                // health waits longer each time.
                let wait = if pause.from_full {
                    backoff(claimed.attempts, LONGEST_WAIT, fastrand::f64())
                } else {
                    Duration::ZERO
                };
                let wait = TimeDelta::from_std(wait).expect("LONGEST_WAIT at most");
                let until = std::cmp::max(pause.until + BEHIND, self.clock.now() + wait);
                self.postpone(&claimed, until, pause.from_full, &failure)
                    .await
            }
        }
    }

    /// Asks WorkOS for next to nothing, to see whether it takes our requests.
    pub(super) async fn check(&self, client: &WorkosClient) {
        match client.check(self.clock.now()).await {
            Ok(()) => self.taken(),
            Err(trouble) => drop(self.pause(&trouble, "the list of organizations")),
        }
    }

    fn taken(&self) {
        if self.pace().taken(self.clock.now()) {
            info!("WorkOS takes requests again: external_ids are written");
        }
    }

    /// Pauses all deliveries; says so once a pause, not once a row.
    fn pause(&self, trouble: &WorkosError, asked_about: &str) -> Pause {
        let now = self.clock.now();
        let pause = self
            .pace()
            .pause(asked_pause(trouble), now, fastrand::f64());
        if pause.begins {
            let seconds = (pause.until - now).as_seconds_f64();
            if matches!(trouble, WorkosError::Unauthorized { .. }) {
                error!(
                    "WORKOS_API_KEY is wrong or lacks a permission: {trouble}, asked about {asked_about}; no \
                     external_id is written until that is mended, next try in {seconds:.0} s",
                );
            } else {
                warn!(
                    "{trouble}, asked about {asked_about}; no external_id is written for {seconds:.1} s",
                );
            }
        }
        pause
    }

    /// Ends the intention, and logs how, if it was still the same.
    async fn finish(&self, claimed: &Claimed, ending: &Ending) -> Result<(), sqlx::Error> {
        let now = self.clock.now();
        let finished = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::finish(connection, claimed, ending, now).await
        })
        .await?;
        if !finished {
            log_overtaken(claimed);
            return Ok(());
        }
        let (id, workos_id) = (&claimed.organization_id, &claimed.workos_id);
        match ending {
            Ending::Written => info!(
                organization_id = %id,
                workos.organization_id = %workos_id,
                "WorkOS organization {workos_id} has external_id {id} now",
            ),
            Ending::AlreadyThere => info!(
                organization_id = %id,
                workos.organization_id = %workos_id,
                "WorkOS organization {workos_id} had external_id {id} already",
            ),
            Ending::Conflict(reason) | Ending::Rejected(reason) => warn!(
                organization_id = %id,
                workos.organization_id = %workos_id,
                "WorkOS organization {workos_id} is not given external_id {id}: {reason}",
            ),
        }
        Ok(())
    }

    /// Makes the intention due again at a later time.
    async fn postpone(
        &self,
        claimed: &Claimed,
        until: DateTime<Utc>,
        counts: bool,
        trouble: &WorkosError,
    ) -> Result<(), sqlx::Error> {
        let reason = trouble.to_string();
        let postponed = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::postpone(connection, claimed, until, counts, &reason).await
        })
        .await?;
        if !postponed {
            log_overtaken(claimed);
        }
        Ok(())
    }
}

/// Nothing is wrong: the newer intention is due, and tells its own story.
fn log_overtaken(claimed: &Claimed) {
    debug!(
        organization_id = %claimed.organization_id,
        workos.organization_id = %claimed.workos_id,
        "the delivery for WorkOS organization {} was overtaken by a newer intention",
        claimed.workos_id,
    );
}

//! Waits for the outcome of one event.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::broadcast;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::conditions::Conditions;
use super::lanes::Lanes;
use super::status::{Ended, Status};
use super::store;
use crate::entities::Outcome;
use crate::event::EventId;
use crate::postgres;

/// How often to look into the database: another replica may have processed the event.
const OUTCOME_POLL: Duration = Duration::from_millis(250);

/// Waits for the outcome of one event.
#[derive(Debug)]
pub struct Watch {
    pub(super) event_id: EventId,
    pub(super) ended: broadcast::Receiver<Ended>,
    pub(super) pool: PgPool,
    pub(super) lanes: Arc<Lanes>,
    pub(super) conditions: Arc<Conditions>,
    pub(super) shutdown: CancellationToken,
}

impl Watch {
    /// How the event ended, or `None` at the deadline. On shutdown, the end of what is in hand is a deadline; so is a
    /// pause, at once.
    pub async fn outcome(mut self, deadline: Instant) -> Option<Ended> {
        let (shutdown, lanes) = (self.shutdown.clone(), Arc::clone(&self.lanes));
        let conditions = Arc::clone(&self.conditions);
        let stopped = async {
            shutdown.cancelled().await;
            lanes.idle().await;
        };
        // All arms only watch.
        tokio::select! {
            () = conditions.until_paused() => None,
            ended = tokio::time::timeout_at(deadline, self.ended()) => ended.ok(),
            // The event may have been the last that was in hand: both arms are ready then.
            () = stopped => tokio::time::timeout_at(deadline, self.look_up()).await.ok()?,
        }
    }

    async fn ended(&mut self) -> Ended {
        let mut look = tokio::time::interval_at(Instant::now() + OUTCOME_POLL, OUTCOME_POLL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Both are cancel-safe.
            tokio::select! {
                ended = self.ended.recv() => match ended {
                    Ok(ended) if ended.event_id == self.event_id.as_str() => return ended,
                    // Another's, at the speed of the lanes: no need to ask the database.
                    Ok(_) => continue,
                    // Missed some.
                    Err(_) => {}
                },
                // Another replica may have processed it.
                _ = look.tick() => {}
            }
            if let Some(ended) = self.look_up().await {
                return ended;
            }
        }
    }

    async fn look_up(&self) -> Option<Ended> {
        // A database that doesn't answer is asked again: the deadline is the caller's.
        let standing = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::standing(connection, &self.event_id).await
        })
        .await
        .ok()??;
        let status = [
            Status::Processed,
            Status::Ignored,
            Status::Dead,
            Status::Discarded,
        ]
        .into_iter()
        .find(|status| status.as_str() == standing.status)?;
        Some(Ended {
            event_id: self.event_id.to_string(),
            status,
            outcome: standing.outcome.as_deref().and_then(Outcome::parse),
            error: standing.last_error,
        })
    }
}

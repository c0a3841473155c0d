//! What is wrong with the whole and not with an event: a database that doesn't answer, a host's table that can't be
//! used (R26); and a pause (R49). Each is logged once, when it begins and when it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tracing::{error, info};

use crate::entities::TABLE;
use crate::postgres::error;

#[derive(Debug, Default)]
pub(super) struct Conditions {
    /// The database did not answer last time.
    outage: AtomicBool,
    /// When an event last changed the host's table.
    last_applied: Mutex<Option<DateTime<Utc>>>,
    /// Why the host's table can't be used, while nothing is applied to it.
    unusable: watch::Sender<Option<String>>,
    /// There was a pause when it was last asked for. Who applies finds it; the sweeper sees its end.
    paused: watch::Sender<bool>,
}

impl Conditions {
    pub(super) fn database_answered(&self) {
        if self.outage.swap(false, Ordering::Relaxed) {
            info!("the database answers again: processing goes on");
        }
    }

    pub(super) fn database_failed(&self, cause: &sqlx::Error) {
        if !self.outage.swap(true, Ordering::Relaxed) {
            error!(
                error = error::describe(cause),
                "the database doesn't answer: events wait in the inbox until it does",
            );
        }
    }

    /// There is a pause.
    pub(super) fn pause_met(&self) {
        if !self.paused.send_replace(true) {
            info!("there is a pause: events are accepted, and wait for its end");
        }
    }

    /// There is none.
    pub(super) fn pause_is_over(&self) {
        if self.is_paused() && self.paused.send_replace(false) {
            info!("the pause is over: processing goes on");
        }
    }

    /// Whether there was a pause when it was last asked for.
    pub(super) fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Returns when there is a pause.
    pub(super) async fn until_paused(&self) {
        let mut watch = self.paused.subscribe();
        let met = watch.wait_for(|paused| *paused).await;
        met.expect("the sender is a field of self");
    }

    /// Events changed the host's table: it can be used.
    pub(super) fn applied(&self, now: DateTime<Utc>) {
        let mut last = self
            .last_applied
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = std::cmp::max(*last, Some(now));
        drop(last);
        if self
            .unusable
            .send_if_modified(|reason| reason.take().is_some())
        {
            info!("{TABLE} can be used again: processing goes on");
        }
    }

    /// Whether events have changed the host's table since then: what failed at that time is at fault itself.
    pub(super) fn applied_since(&self, since: DateTime<Utc>) -> bool {
        let last = self
            .last_applied
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last > since)
    }

    /// The host's table can't be used. `is_said`: the log has it already, with the cure.
    pub(super) fn table_failed(&self, reason: &str, is_said: bool) {
        let is_new = self.unusable.send_if_modified(|unusable| {
            let is_new = unusable.is_none();
            *unusable = Some(reason.to_owned());
            is_new
        });
        if is_new && !is_said {
            error!(
                reason,
                "{TABLE} can't be used: events wait in the inbox until it can: {reason}",
            );
        }
    }

    /// Why the host's table can't be used, if it can't.
    pub(super) fn unusable(&self) -> Option<String> {
        self.unusable.borrow().clone()
    }

    /// Whether the host's table can't be used.
    pub(super) fn is_unusable(&self) -> bool {
        self.unusable.borrow().is_some()
    }

    /// Returns when the host's table can't be used, and says why.
    pub(super) async fn until_unusable(&self) -> String {
        let mut watch = self.unusable.subscribe();
        let reason = watch.wait_for(Option::is_some).await;
        let reason = reason.expect("the sender is a field of self");
        reason.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    /// R26: what fails while others are applied is at fault itself; the condition ends with the first that is applied.
    #[tokio::test]
    async fn the_condition_ends_with_what_is_applied() {
        let conditions = Conditions::default();
        let at = |seconds| DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds);
        assert!(!conditions.applied_since(at(0)));
        conditions.applied(at(2));
        // A commit that was slower to say so.
        conditions.applied(at(1));
        assert!(conditions.applied_since(at(1)) && !conditions.applied_since(at(2)));
        conditions.table_failed("as this test wants", false);
        assert_eq!(conditions.until_unusable().await, "as this test wants");
        assert!(conditions.is_unusable());
        conditions.applied(at(3));
        assert_eq!(conditions.unusable(), None);
    }
}

//! Finds what was missed, and mends it (R36–R46).
//!
//! Webhooks get lost: WorkOS gives up after three days, an endpoint is switched off, a firewall changes. What is here asks
//! WorkOS instead, and puts what it finds into the same inbox: events that no delivery brought, and snapshots, which
//! are objects of a list taken as events. The guard makes harmless what was there already.

pub mod backfill;
pub mod catch_up;
mod intake;
pub mod key;
mod lease;
mod list;
mod means;
pub mod poll;
mod reading;
pub mod reconcile;
mod runs;
pub mod snapshot;
mod store;
pub mod trust;
mod window;

pub use intake::Tally;
pub use means::{Means, Progress};

use std::time::Duration;

use tracing::warn;

use crate::backoff::backoff;
use crate::entities::organization::ApplyError;
use crate::inbox::DrainError;
use crate::pause::Pause;
use crate::postgres::error::{DatabaseCause, describe};
use crate::workos::{Endless, WorkosError};

/// How often a command asks again where WorkOS is in trouble, before it gives up.
const TRIES: u32 = 5;

/// The longest pause of our own choice between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why something that was missed couldn't be looked for.
#[derive(Debug, thiserror::Error)]
pub enum HealError {
    /// WorkOS doesn't answer, or refuses.
    #[error(transparent)]
    Workos(#[from] WorkosError),
    /// The database doesn't answer.
    #[error("{}", describe(.0))]
    Database(#[from] sqlx::Error),
    /// Its answers can't be put in order with events.
    #[error(
        "the answer of WorkOS has no readable Date: what it shows can't be put in order with events"
    )]
    NoDate,
    /// It has taken over.
    #[error("another replica polls meanwhile")]
    LeaseLost,
    /// Nothing can be applied to the host's table.
    #[error("organization_metadata can't be used, so what was read waits in the inbox: {0}")]
    Unusable(String),
    /// An operator wants nothing to be applied now.
    #[error("{waiting} events that were read wait in the inbox: {pause}; run it again then")]
    Paused {
        /// How many of those that were read last.
        waiting: u64,
        /// Until when.
        pause: Pause,
    },
    /// One run of a kind at a time.
    #[error("another {kind} is under way on this database")]
    Busy {
        /// Of this kind.
        kind: &'static str,
    },
    /// WorkOS knows none of the organizations here.
    #[error(
        "WORKOS_API_KEY belongs to another WorkOS environment than this database: WorkOS knows none of {asked} \
         organizations that are linked here"
    )]
    WrongKey {
        /// How many were asked for.
        asked: usize,
    },
    /// What was found couldn't be made durable.
    #[error("what was read could not be stored: {0}")]
    NotStored(String),
    /// The list can't be read on.
    #[error("WorkOS refuses where its list of organizations was to go on ({0}): run it again")]
    ListRefused(#[source] WorkosError),
    /// What is read has no end.
    #[error(
        "WorkOS shows pages without an end: one is empty and not the last, or leads back to where the reading was"
    )]
    Endless,
    /// More organizations are gone than may be disabled.
    #[error(
        "more than {most} organizations are deleted in WorkOS, so nothing is written: look at what `reconcile` \
         says without --apply, then raise --max-disable"
    )]
    TooManyDeletions {
        /// How many may be.
        most: usize,
    },
    /// What is here can't be compared.
    #[error(transparent)]
    Compare(#[from] ApplyError),
}

impl HealError {
    /// How long WorkOS wants to be left alone.
    const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Workos(
                WorkosError::RateLimited { retry_after }
                | WorkosError::Unavailable { retry_after, .. },
            ) => *retry_after,
            _ => None,
        }
    }
}

impl DatabaseCause for HealError {
    fn database_cause(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Database(error) | Self::Compare(ApplyError::Database(error)) => Some(error),
            _ => None,
        }
    }
}

impl From<DrainError> for HealError {
    fn from(error: DrainError) -> Self {
        match error {
            DrainError::Database(error) => Self::Database(error),
            DrainError::Unusable(reason) => Self::Unusable(reason),
            DrainError::Paused { waiting, pause, .. } => Self::Paused { waiting, pause },
        }
    }
}

impl From<Endless> for HealError {
    fn from(_: Endless) -> Self {
        Self::Endless
    }
}

impl From<snapshot::NoDate> for HealError {
    fn from(_: snapshot::NoDate) -> Self {
        Self::NoDate
    }
}

/// The patience of a command with WorkOS: it waits as long as WorkOS wants where that limits the rate, and asks a few times
/// where it is in trouble.
#[derive(Debug, Default)]
struct Patience {
    tries: u32,
}

impl Patience {
    /// Asks WorkOS, and again as long as that may help.
    ///
    /// # Errors
    /// The last answer.
    async fn ask<T, F: Future<Output = Result<T, WorkosError>>>(
        ask: impl Fn() -> F,
    ) -> Result<T, WorkosError> {
        let mut patience = Self::default();
        loop {
            match ask().await {
                Err(trouble) => patience.wait_after(trouble).await?,
                answer => return answer,
            }
        }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// There is none: asking again wouldn't help, or has been tried often enough.
    async fn wait_after(&mut self, trouble: WorkosError) -> Result<(), WorkosError> {
        let asked = match &trouble {
            WorkosError::RateLimited { retry_after } => *retry_after,
            WorkosError::Unavailable { retry_after, .. } if self.tries + 1 < TRIES => *retry_after,
            _ => return Err(trouble),
        };
        self.tries += 1;
        let own = backoff(self.tries, LONGEST_PAUSE, fastrand::f64());
        let pause = asked.unwrap_or(own);
        warn!("{trouble}; next try in {:.1} s", pause.as_secs_f64());
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

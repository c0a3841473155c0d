//! The time, as a value that can be injected: nothing else in the crate reads a system clock.

use std::fmt::Debug;
use std::sync::Mutex;
use std::sync::PoisonError;

use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::postgres;

/// How often [`DatabaseClock`] asks for the time: two good clocks drift apart by some microseconds in between.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

/// Tells the time, in whole microseconds: what Postgres can store.
pub trait Clock: Debug + Send + Sync {
    /// The current time.
    fn now(&self) -> DateTime<Utc>;
}

/// The clock of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the system clock"
    )]
    fn now(&self) -> DateTime<Utc> {
        Utc::now().trunc_subsecs(6)
    }
}

/// The clock of the database, for the times that replicas compare: leases, retries, retention (R22). It is asked now
/// and then, and runs on by this process's monotonic clock in between, so the host's idea of the time doesn't matter.
#[derive(Debug)]
pub struct DatabaseClock(Mutex<Reading>);

/// What the database's clock showed, and when.
#[derive(Debug, Clone, Copy)]
struct Reading {
    shown: DateTime<Utc>,
    at: Instant,
}

impl Reading {
    async fn take(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let shown = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#)
            .fetch_one(connection)
            .await?;
        Ok(Self {
            shown,
            at: Instant::now(),
        })
    }
}

impl DatabaseClock {
    /// Asks the database for the time.
    ///
    /// # Errors
    /// The database doesn't answer.
    pub async fn ask(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        Reading::take(connection).await.map(Mutex::new).map(Self)
    }

    /// Asks again now and then, until shutdown. While the database doesn't answer, the clock runs on.
    pub async fn keep(&self, pool: PgPool, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(ASK_INTERVAL) => {}
            }
            let asked = postgres::transaction(&pool, postgres::PATIENCE, Reading::take).await;
            // An outage is told by those who have work to do.
            if let Ok(reading) = asked {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reading;
            }
        }
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> DateTime<Utc> {
        let Reading { shown, at } = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = TimeDelta::from_std(at.elapsed()).unwrap_or(TimeDelta::MAX);
        shown
            .checked_add_signed(passed)
            .unwrap_or(shown)
            .trunc_subsecs(6)
    }
}

/// A clock that stands still until it is told to move, for tests.
#[derive(Debug)]
pub struct ManualClock(Mutex<DateTime<Utc>>);

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn new(now: DateTime<Utc>) -> Self {
        Self(Mutex::new(now.trunc_subsecs(6)))
    }

    /// Moves the clock forward by `by`.
    pub fn advance(&self, by: chrono::TimeDelta) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

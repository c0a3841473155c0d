//! Reads the events of a time by hand (R40).

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::intake::Tally;
use super::lease::RunLease;
use super::reading::{self, Reader};
use super::runs::{self, Ending, Kind};
use super::window::Window;
use super::{HealError, Means, Patience};
use crate::inbox::{Beside, Source};
use crate::postgres;
use crate::workos::{Page, ReadFrom, WorkosError};

/// What a reading came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaughtUp {
    /// How many events were not in the inbox.
    pub new: i64,
    /// How many were.
    pub known: i64,
    /// How the new ones ended.
    pub tally: Tally,
    /// How many windows WorkOS doesn't show any more.
    pub skipped: i64,
}

/// Reads the events of a time, in windows as WorkOS wants it; moves no position.
///
/// # Errors
/// Another one is under way, the key is of another environment, WorkOS or the database doesn't answer. What was read is
/// kept.
pub async fn run(
    means: &Means,
    since: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
) -> Result<CaughtUp, HealError> {
    let mut lease = RunLease::take(means, Kind::CatchUp).await?;
    let now = means.clock.now();
    let run = postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
        runs::begin(connection, Kind::CatchUp, false, None, now).await
    })
    .await?;
    let mut reader = ByHand {
        means,
        lease: &mut lease,
        total: CaughtUp::default(),
    };
    let result = reading::read(&mut reader, &*means.clock, since, until, None).await;
    let result = result.map(|()| reader.total);
    lease
        .end_run(means, &run, result, |_| Ending::default())
        .await
}

/// Reads for whoever waits for the events to be applied.
struct ByHand<'a> {
    means: &'a Means,
    lease: &'a mut RunLease,
    total: CaughtUp,
}

impl Reader for ByHand<'_> {
    async fn ask(&self, from: ReadFrom<'_>, window: &Window) -> Result<Page, WorkosError> {
        let Means { client, clock, .. } = self.means;
        Patience::ask(|| reading::list_events(client, from, window, clock.now())).await
    }

    async fn begin(&mut self, _: &Window) -> Result<(), HealError> {
        Ok(())
    }

    async fn keep(&mut self, page: &Page, _: &Window) -> Result<(), HealError> {
        let (inbox, total) = (&self.means.inbox, &mut self.total);
        let stored = reading::store_page(inbox, &page.elements, Source::CatchUp, &Nothing).await?;
        total.new += i64::try_from(stored.new.len()).unwrap_or(i64::MAX);
        total.known += i64::try_from(stored.known).unwrap_or(i64::MAX);
        for (result, count) in inbox.drain_events(stored.new).await? {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            total.tally.add(&result, count);
        }
        self.lease.check().await
    }

    async fn skip(&mut self, _: &Window) -> Result<(), HealError> {
        self.total.skipped += 1;
        Ok(())
    }
}

/// Nothing is written beside a page: no position moves.
struct Nothing;

impl Beside for Nothing {
    type Error = HealError;

    async fn write(&self, _: &mut PgConnection) -> Result<(), HealError> {
        Ok(())
    }
}

//! Reads the events of a time by hand (R40).

use chrono::{DateTime, Utc};
use tracing::warn;

use super::intake::Tally;
use super::lease::RunLease;
use super::poll::{Nothing, Place, WINDOW, at, read_page, store_page};
use super::runs::{self, Kind};
use super::{HealError, Means, Patience};
use crate::inbox::Source;
use crate::postgres;
use crate::workos::{Page, Trail, WorkosError};

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
    let mut lease = RunLease::take(&means.options, Kind::CatchUp).await?;
    means.check_key().await?;
    let now = means.clock.now();
    let run = postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
        runs::begin(connection, Kind::CatchUp, false, None, now).await
    })
    .await?;
    let result = read(means, since, until, &mut lease).await;
    let status = if result.is_ok() { "complete" } else { "failed" };
    let now = means.clock.now();
    postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
        runs::end(connection, run.id, status, false, 0, now).await
    })
    .await?;
    lease.end().await;
    result
}

async fn read(
    means: &Means,
    since: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
    lease: &mut RunLease,
) -> Result<CaughtUp, HealError> {
    let mut position = since;
    let mut place = Place::default();
    let mut total = CaughtUp::default();
    let (mut trail, mut has_begun_anew) = (Trail::default(), false);
    loop {
        let end = position + WINDOW;
        let is_last = until.unwrap_or_else(|| means.clock.now()) <= end;
        place.until = if is_last { until } else { Some(end) };
        let page = match ask_for_page(means, position, &place).await {
            Err(refusal) if refusal.is_rejected() && place.after.is_some() && !has_begun_anew => {
                warn!("WorkOS refuses where the reading was to go on, it begins anew: {refusal}");
                has_begun_anew = true;
                trail = Trail::default();
                place.after = None;
                continue;
            }
            // As far as the API goes (R38).
            Err(WorkosError::Rejected {
                status: 400,
                message,
            }) if place.after.is_none() && !is_last => {
                warn!(
                    "WorkOS refuses to show events from {} to {}, which are skipped: {message}",
                    at(position),
                    at(end),
                );
                total.skipped += 1;
                position = end;
                continue;
            }
            page => page?,
        };
        let stored = store_page(&means.inbox, &page.elements, Source::CatchUp, &Nothing).await?;
        total.new += i64::try_from(stored.new.len()).unwrap_or(i64::MAX);
        total.known += i64::try_from(stored.known).unwrap_or(i64::MAX);
        for (result, count) in means.inbox.drain_events(stored.new).await? {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            total.tally.add(&result, count);
        }
        lease.check().await?;
        place.after = page.after;
        if let Some(after) = &place.after {
            trail.go_on(after)?;
            continue;
        }
        if is_last {
            return Ok(total);
        }
        position = end;
    }
}

async fn ask_for_page(
    means: &Means,
    position: DateTime<Utc>,
    place: &Place,
) -> Result<Page, WorkosError> {
    let Means { client, clock, .. } = means;
    Patience::ask(|| read_page(client, position, place, clock.now())).await
}

//! Reads all organizations of WorkOS, and applies each as a snapshot (R41).

use serde_json::value::RawValue;
use tracing::{error, info, warn};

use super::intake::{Tally, take_in};
use super::lease::RunLease;
use super::list::List;
use super::poll::OVERLAP;
use super::runs::{self, Kind, Run};
use super::snapshot::{Shown, event_of};
use super::{HealError, Means, Progress};
use crate::inbox::Source;
use crate::postgres;

/// How a backfill is to go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Begin anew, whatever was broken off.
    pub restart: bool,
    /// Write nothing, and say what would be done.
    pub dry_run: bool,
}

/// Reads all organizations. Where an earlier run was broken off, this one goes on.
///
/// # Errors
/// Another run is under way, the key is of another environment, WorkOS or the database doesn't answer. What was read is
/// kept.
pub async fn run(
    means: &Means,
    options: Options,
    mut progress: impl FnMut(Progress),
) -> Result<(Progress, Tally), HealError> {
    let mut lease = RunLease::take(&means.options, Kind::Backfill).await?;
    means.check_key().await?;
    let result = if options.dry_run {
        dry_run(means, &mut progress).await
    } else {
        read_all(means, options, &mut lease, &mut progress).await
    };
    lease.end().await;
    result
}

async fn read_all(
    means: &Means,
    options: Options,
    lease: &mut RunLease,
    progress: &mut impl FnMut(Progress),
) -> Result<(Progress, Tally), HealError> {
    let pool = &means.pool;
    let mut run = open(means, options).await?;
    let mut list = List::from(means, run.after.clone());
    let mut has_begun_anew = false;
    loop {
        let page = match list.next().await {
            Err(HealError::ListRefused(reason)) if !has_begun_anew => {
                warn!("WorkOS refuses where the list was to go on, it is read anew: {reason}");
                has_begun_anew = true;
                run = begin(means, run.is_whole).await?;
                list = List::from(means, None);
                continue;
            }
            page => page?,
        };
        let shown = Shown::of(page.answered)?;
        // The poll reads by WorkOS's clock, which may be behind ours.
        let asked_at = shown.asked_at() - OVERLAP;
        run.boundary = Some(
            run.boundary
                .map_or(asked_at, |at| std::cmp::min(at, asked_at)),
        );
        let bodies = snapshots(&shown, &page.elements);
        let mut tally = take_in(&means.inbox, &bodies, Source::Backfill).await?;
        tally.dead += i64::try_from(page.elements.len() - bodies.len()).unwrap_or(i64::MAX);
        run.pages += 1;
        run.seen += i64::try_from(page.elements.len()).unwrap_or(i64::MAX);
        run.after = page.after;
        lease.check().await?;
        postgres::transaction(pool, postgres::PATIENCE, async |connection| {
            runs::turn_page(connection, &run, &tally).await
        })
        .await?;
        progress(Progress {
            pages: run.pages,
            seen: run.seen,
        });
        if run.after.is_none() {
            break;
        }
    }
    let now = means.clock.now();
    let tally = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        runs::complete_backfill(connection, &run, now).await?;
        runs::tally(connection, run.id).await
    })
    .await?;
    let done = Progress {
        pages: run.pages,
        seen: run.seen,
    };
    Ok((done, tally))
}

/// The run that was broken off, or a new one.
async fn open(means: &Means, options: Options) -> Result<Run, HealError> {
    let statements = means.statements();
    let (broken_off, is_whole) =
        postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
            let broken_off = runs::broken_off(connection, Kind::Backfill).await?;
            let is_whole = !statements.has_linked(connection).await?;
            Ok::<_, sqlx::Error>((broken_off, is_whole))
        })
        .await?;
    let Some(run) = broken_off.filter(|_| !options.restart) else {
        return Ok(begin(means, is_whole).await?);
    };
    if run.pages > 0 {
        info!(
            pages = run.pages,
            organizations = run.seen,
            "the backfill goes on behind {} organizations",
            run.seen,
        );
    }
    Ok(run)
}

async fn begin(means: &Means, is_whole: bool) -> Result<Run, sqlx::Error> {
    let now = means.clock.now();
    // Where the poll is to begin: before anything of this is read, as far back as a round reads.
    let boundary = Some(now - OVERLAP);
    postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
        runs::begin(connection, Kind::Backfill, is_whole, boundary, now).await
    })
    .await
}

/// The bodies of the snapshots of a page.
fn snapshots(shown: &Shown, elements: &[Box<RawValue>]) -> Vec<String> {
    elements
        .iter()
        .filter_map(|element| match shown.snapshot(element) {
            Ok(snapshot) => Some(snapshot.body),
            Err(reason) => {
                error!("{reason}");
                None
            }
        })
        .collect()
}

async fn dry_run(
    means: &Means,
    progress: &mut impl FnMut(Progress),
) -> Result<(Progress, Tally), HealError> {
    let (mut done, mut total) = (Progress::default(), Tally::default());
    let mut list = List::from(means, None);
    loop {
        let page = list.next().await?;
        let shown = Shown::of(page.answered)?;
        let bodies = snapshots(&shown, &page.elements);
        let events: Vec<_> = bodies.iter().filter_map(|body| event_of(body)).collect();
        total.dead += i64::try_from(page.elements.len() - events.len()).unwrap_or(i64::MAX);
        for outcome in means.preview(events).await? {
            total.add(outcome.as_str(), 1);
        }
        done.pages += 1;
        done.seen += i64::try_from(page.elements.len()).unwrap_or(i64::MAX);
        progress(done);
        if page.after.is_none() {
            return Ok((done, total));
        }
    }
}

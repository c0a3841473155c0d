//! Reads all organizations of WorkOS, and applies each as a snapshot (R41).

use tracing::{error, info, warn};

use super::intake::{Tally, take_in};
use super::lease::RunLease;
use super::list::{List, ListPage};
use super::poll::OVERLAP;
use super::runs::{self, Ending, Kind, Run};
use super::snapshot::event_of;
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
    let mut lease = RunLease::take(means, Kind::Backfill).await?;
    let result = if options.dry_run {
        dry_run(means, &mut progress).await
    } else {
        fill(means, options, &mut lease, &mut progress).await
    };
    lease.end().await;
    result
}

async fn fill(
    means: &Means,
    options: Options,
    lease: &mut RunLease,
    progress: &mut impl FnMut(Progress),
) -> Result<(Progress, Tally), HealError> {
    let mut run = open(means, options).await?;
    read_all(means, &mut run, lease, progress).await?;
    let ending = Ending {
        is_whole: run.is_whole,
        drift: 0,
    };
    let now = means.clock.now();
    let tally = postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
        runs::end(connection, run.id, "complete", ending, now).await?;
        runs::begin_poll_at(connection, run.boundary).await?;
        runs::tally(connection, run.id).await
    })
    .await?;
    Ok((run.progress(), tally))
}

/// Reads all that the run hasn't read. Where that is broken off, the next one goes on.
async fn read_all(
    means: &Means,
    run: &mut Run,
    lease: &mut RunLease,
    progress: &mut impl FnMut(Progress),
) -> Result<(), HealError> {
    let mut list = List::from(means, run.after.clone());
    let mut has_begun_anew = false;
    loop {
        let pages = match list.next().await {
            Err(HealError::ListRefused(reason)) if !has_begun_anew => {
                warn!("WorkOS refuses where the list was to go on, it is read anew: {reason}");
                has_begun_anew = true;
                *run = begin(means, run.is_whole).await?;
                list = List::from(means, None);
                continue;
            }
            pages => pages?,
        };
        let Some(pages) = pages else {
            return Ok(());
        };
        let (mut bodies, mut unusable) = (Vec::new(), 0);
        let before = run.progress();
        for page in &pages {
            // The poll reads by WorkOS's clock, which may be behind ours.
            let asked_at = page.shown.asked_at() - OVERLAP;
            run.boundary = Some(
                run.boundary
                    .map_or(asked_at, |at| std::cmp::min(at, asked_at)),
            );
            let snapshots = snapshots(page);
            unusable += page.len() - i64::try_from(snapshots.len()).unwrap_or(i64::MAX);
            bodies.extend(snapshots);
            run.pages += 1;
            run.seen += page.len();
            run.after.clone_from(&page.after);
        }
        let mut tally = take_in(&means.inbox, bodies, Source::Backfill).await?;
        tally.dead += unusable;
        lease.check().await?;
        postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
            runs::turn_page(connection, run, &tally).await
        })
        .await?;
        before.go_on(&pages, progress);
    }
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
fn snapshots(page: &ListPage) -> Vec<String> {
    page.elements
        .iter()
        .filter_map(|element| match page.shown.snapshot(element) {
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
    while let Some(pages) = list.next().await? {
        let events: Vec<_> = pages
            .iter()
            .flat_map(snapshots)
            .filter_map(|body| event_of(&body))
            .collect();
        let all: i64 = pages.iter().map(ListPage::len).sum();
        total.dead += all - i64::try_from(events.len()).unwrap_or(i64::MAX);
        for outcome in means.preview(events).await? {
            total.add(outcome.as_str(), 1);
        }
        done = done.go_on(&pages, progress);
    }
    Ok((done, total))
}

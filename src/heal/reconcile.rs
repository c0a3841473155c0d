//! Compares all organizations of WorkOS with the rows, and mends what differs (R43, R44).

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::error;

use super::intake::{Tally, take_in};
use super::lease::RunLease;
use super::list::{List, ListPage};
use super::runs::{self, Ending, Kind, Run};
use super::snapshot::{Shown, Snapshot, event_of};
use super::{HealError, Means, Patience, Progress};
use crate::entities::Outcome;
use crate::entities::organization::Host;
use crate::entities::organization::mirror::LinkedRow;
use crate::entities::organization::{self, OrganizationEvent};
use crate::event::parse_timestamp;
use crate::inbox::Source;
use crate::outbox::{self, SameId};
use crate::postgres;
use crate::workos::{Lookup, Object};

/// What changed in WorkOS so shortly before the answer may be on its way here.
const ON_ITS_WAY: TimeDelta = TimeDelta::minutes(2);

/// How many rows are looked at together.
const ROWS: i64 = 1_000;

/// How many snapshots are taken in hand at once: each may be as long as an organization is.
const SNAPSHOTS: i64 = 100;

/// How many organizations `--apply` disables without being told to.
const FEW: usize = 10;

/// How a reconcile is to go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Mend what differs.
    pub apply: bool,
    /// How many organizations may be disabled; `None`: ten, or 5 % of the rows if that is more.
    pub max_disable: Option<usize>,
}

/// In what way a row and an organization differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The organization has no row.
    MissingHere,
    /// The names differ.
    Name,
    /// The `external_id` is none, or isn't the row's id.
    ExternalId,
    /// WorkOS doesn't know the row's organization any more.
    DeletedThere,
    /// WorkOS knows the row's organization, but doesn't list it.
    MissingThere,
    /// The row is disabled. No drift, unless a reconcile has disabled it.
    DisabledHere,
    /// The `external_id` is a recorded conflict. No drift.
    ExternalIdConflict,
}

impl Difference {
    /// Whether it is drift as such; otherwise it is for information.
    #[must_use]
    pub const fn is_drift(self) -> bool {
        !matches!(self, Self::DisabledHere | Self::ExternalIdConflict)
    }

    /// The words for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MissingHere => "missing here",
            Self::Name => "name",
            Self::ExternalId => "external_id",
            Self::DeletedThere => "deleted there",
            Self::MissingThere => "missing there",
            Self::DisabledHere => "disabled here",
            Self::ExternalIdConflict => "external_id conflict",
        }
    }
}

/// Something that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// In what way.
    pub difference: Difference,
    /// Whether it counts as drift.
    pub drift: bool,
    /// The WorkOS organization.
    pub workos_id: String,
    /// The row.
    pub organization_id: Option<String>,
    /// What the row has.
    pub here: Option<String>,
    /// What WorkOS has.
    pub there: Option<String>,
}

impl Found {
    fn new(
        difference: Difference,
        workos_id: &str,
        row: Option<&LinkedRow>,
        here: Option<String>,
        there: Option<String>,
    ) -> Self {
        Self {
            difference,
            drift: difference.is_drift(),
            workos_id: workos_id.to_owned(),
            organization_id: row.map(|row| row.id.to_string()),
            here,
            there,
        }
    }
}

/// What a reconcile came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many organizations WorkOS has.
    pub organizations: i64,
    /// How many differences are drift.
    pub drift: i64,
    /// How many of them are left; with `--apply`, how many organizations.
    pub left: i64,
    /// How many of those WorkOS knows, but doesn't list: nothing mends them.
    pub missing_there: i64,
    /// How many differences are for information.
    pub information: i64,
}

impl Report {
    /// Nothing differs, or not any more.
    #[must_use]
    pub const fn is_in_step(&self) -> bool {
        self.left == 0
    }
}

/// An organization, as far as it is compared.
#[derive(Deserialize)]
struct There {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    external_id: Option<String>,
    #[serde(default)]
    updated_at: Option<String>,
}

impl There {
    fn read(object: &RawValue) -> Self {
        // What can't be read differs from what is here.
        serde_json::from_str(object.get()).unwrap_or(Self {
            name: None,
            external_id: None,
            updated_at: None,
        })
    }

    /// Whether it changed so shortly before a look at it, or after, that word of it may be on its way here.
    fn is_on_its_way(&self, seen_at: DateTime<Utc>) -> bool {
        let updated_at = self.updated_at.as_deref().and_then(parse_timestamp);
        updated_at.is_some_and(|updated_at| updated_at > seen_at - ON_ITS_WAY)
    }
}

/// What differs so far.
struct Comparison<F> {
    report: Report,
    tell: F,
}

impl<F: FnMut(&Found)> Comparison<F> {
    fn tell(&mut self, found: &Found) {
        if found.drift {
            self.report.drift += 1;
            self.report.left += 1;
        } else {
            self.report.information += 1;
        }
        if found.difference == Difference::MissingThere {
            self.report.missing_there += 1;
        }
        (self.tell)(found);
    }
}

/// Compares, tells what differs as it is found, and mends it where `options` say so.
///
/// # Errors
/// Another run is under way, the key is of another environment, WorkOS or the database doesn't answer, or more would be
/// disabled than may be: then nothing is written.
pub async fn run(
    means: &Means,
    options: Options,
    tell: impl FnMut(&Found),
    mut progress: impl FnMut(Progress),
) -> Result<Report, HealError> {
    let mut lease = RunLease::take(means, Kind::Reconcile).await?;
    let now = means.clock.now();
    let run = postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
        let run = runs::begin(connection, Kind::Reconcile, false, None, now).await?;
        runs::forget_others(connection, run.id).await?;
        Ok::<_, sqlx::Error>(run)
    })
    .await?;
    let mut comparison = Comparison {
        report: Report::default(),
        tell,
    };
    let result = compare_and_mend(
        means,
        options,
        &run,
        &mut lease,
        &mut comparison,
        &mut progress,
    )
    .await;
    let result = result.map(|()| comparison.report);
    let ending = |report: &Report| Ending {
        is_whole: report.is_in_step(),
        drift: report.left,
    };
    lease.end_run(means, &run, result, ending).await
}

async fn compare_and_mend(
    means: &Means,
    options: Options,
    run: &Run,
    lease: &mut RunLease,
    comparison: &mut Comparison<impl FnMut(&Found)>,
    progress: &mut impl FnMut(Progress),
) -> Result<(), HealError> {
    let mut done = Progress::default();
    let mut list = List::from(means, None);
    let mut listed_at = None;
    while let Some(pages) = list.next().await? {
        listed_at = pages.last().map(|last| last.shown.asked_at());
        compare_listed(means, run, &pages, comparison).await?;
        done = done.go_on(&pages, progress);
        comparison.report.organizations = done.seen;
        lease.check().await?;
    }
    let listed_at = listed_at.expect("a list has a page, be it an empty one");
    let deletions = compare_rows(means, options, run, listed_at, lease, comparison).await?;
    if options.apply {
        let left = mend(means, run, &deletions, lease).await?;
        comparison.report.left = comparison.report.missing_there + left;
    }
    Ok(())
}

/// An organization of the list, and the event that it makes.
struct Listed {
    shown: Shown,
    snapshot: Snapshot,
    event: Option<OrganizationEvent>,
    there: There,
}

/// The organizations of some pages, each once: one that changes its place while the list is read may be on two.
fn listed(pages: &[ListPage]) -> Vec<Listed> {
    let mut listed = BTreeMap::new();
    for ListPage {
        shown, elements, ..
    } in pages
    {
        for element in elements {
            match shown.snapshot(element) {
                Ok(snapshot) => {
                    let id = snapshot.workos_id.to_string();
                    let organization = Listed {
                        shown: *shown,
                        event: event_of(&snapshot.body),
                        snapshot,
                        there: There::read(element),
                    };
                    listed.insert(id, organization);
                }
                Err(reason) => error!("{reason}"),
            }
        }
    }
    listed.into_values().collect()
}

async fn compare_listed(
    means: &Means,
    run: &Run,
    pages: &[ListPage],
    comparison: &mut Comparison<impl FnMut(&Found)>,
) -> Result<(), HealError> {
    let listed = listed(pages);
    let ids: Vec<_> = listed
        .iter()
        .map(|listed| listed.snapshot.workos_id.as_str())
        .collect();
    let events: Vec<_> = listed
        .iter()
        .filter_map(|listed| listed.event.clone())
        .collect();
    let statements = means.statements();
    let now = means.clock.now();
    let (rows, outcomes, conflicts, found_gone) =
        postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
            let rows = statements.linked_rows(connection, &ids).await?;
            let outcomes = organization::preview(
                connection,
                &statements,
                &events,
                &means.target.namespace,
                now,
            )
            .await?;
            let conflicts = outbox::conflicts(connection, &ids).await?;
            let found_gone = runs::found_gone(connection, &ids).await?;
            Ok::<_, HealError>((rows, outcomes, conflicts, found_gone))
        })
        .await?;
    let rows: HashMap<_, _> = rows
        .iter()
        .map(|row| (row.workos_id.as_str(), row))
        .collect();
    let outcomes: HashMap<_, _> = events
        .iter()
        .map(|event| event.workos_id.as_str())
        .zip(outcomes)
        .collect();
    let conflicts: HashSet<_> = conflicts.iter().map(String::as_str).collect();

    let mut snapshots = Vec::with_capacity(listed.len());
    for Listed {
        shown,
        snapshot,
        there,
        ..
    } in &listed
    {
        let id = snapshot.workos_id.as_str();
        let row = rows.get(id).copied();
        // One that can't be decoded has no outcome: it differs, and mending it makes a dead letter that says why.
        let is_older = outcomes.get(id) == Some(&Outcome::Stale);
        let is_judged = !is_older && !there.is_on_its_way(shown.date);
        let known = Known {
            is_conflict: conflicts.contains(id),
            was_found_gone: found_gone.iter().any(|gone| gone == id),
        };
        let host = &means.target.host;
        let differs = is_judged && compare(host, id, row, there, known, comparison);
        // One that is there after all is to be lifted, even if the application has enabled its row.
        let mends = differs || (is_judged && known.was_found_gone);
        snapshots.push(mends.then_some(snapshot.body.as_str()));
    }
    postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
        runs::see(connection, run.id, &ids, &snapshots).await
    })
    .await?;
    Ok(())
}

/// What is known of an organization beside its row.
#[derive(Clone, Copy)]
struct Known {
    /// That its `external_id` isn't the row's id is a recorded conflict.
    is_conflict: bool,
    /// A reconcile before this one found that WorkOS doesn't know it.
    was_found_gone: bool,
}

/// Compares an organization with its row; says whether there is drift.
fn compare(
    host: &Host,
    id: &str,
    row: Option<&LinkedRow>,
    there: &There,
    known: Known,
    comparison: &mut Comparison<impl FnMut(&Found)>,
) -> bool {
    let before = comparison.report.drift;
    let found = |difference, here, there| Found::new(difference, id, row, here, there);
    let Some(row) = row else {
        comparison.tell(&found(Difference::MissingHere, None, there.name.clone()));
        return true;
    };
    if there.name.as_ref() != Some(&row.name) {
        let here = Some(row.name.clone());
        comparison.tell(&found(Difference::Name, here, there.name.clone()));
    }
    let external_id = there.external_id.as_deref().filter(|id| !id.is_empty());
    if external_id.is_none_or(|id| !host.is_same(id, row.id.as_str())) {
        let difference = if external_id.is_some() && known.is_conflict {
            Difference::ExternalIdConflict
        } else {
            Difference::ExternalId
        };
        let here = Some(row.id.to_string());
        comparison.tell(&found(difference, here, external_id.map(str::to_owned)));
    }
    if let Some(since) = row.disabled_at {
        let here = Some(since.to_rfc3339());
        comparison.tell(&Found {
            // It was us, and wrongly (R44).
            drift: known.was_found_gone,
            ..found(Difference::DisabledHere, here, None)
        });
    }
    comparison.report.drift > before
}

/// Looks for rows whose organization the list lacks; gives the deletions that mend them, where that is wanted.
async fn compare_rows(
    means: &Means,
    options: Options,
    run: &Run,
    listed_at: DateTime<Utc>,
    lease: &mut RunLease,
    comparison: &mut Comparison<impl FnMut(&Found)>,
) -> Result<Vec<String>, HealError> {
    let pool = &means.pool;
    let statements = means.statements();
    let most = match options.max_disable {
        _ if !options.apply => usize::MAX,
        Some(most) => most,
        None => {
            let rows = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
                statements.count_active(connection).await
            })
            .await?;
            std::cmp::max(FEW, usize::try_from(rows / 20).unwrap_or(FEW))
        }
    };
    let mut deletions = Vec::new();
    let mut after = String::new();
    loop {
        let (rows, unseen) = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
            let rows = statements
                .active_rows_after(connection, &after, ROWS)
                .await?;
            let ids: Vec<_> = rows.iter().map(|row| row.workos_id.as_str()).collect();
            let unseen = runs::unseen(connection, run.id, &ids).await?;
            Ok::<_, sqlx::Error>((rows, HashSet::<String>::from_iter(unseen)))
        })
        .await?;
        let Some(last) = rows.last() else {
            return Ok(deletions);
        };
        // A server that was started anew has forgotten what was seen.
        lease.check().await?;
        after = last.workos_id.to_string();
        for row in rows
            .iter()
            .filter(|row| unseen.contains(row.workos_id.as_str()))
        {
            let Some(deletion) = compare_unlisted(means, row, listed_at, comparison).await? else {
                continue;
            };
            if options.apply {
                deletions.push(deletion);
            }
            if deletions.len() > most {
                return Err(HealError::TooManyDeletions { most });
            }
        }
    }
}

/// Asks for the organization of a row that the list lacks; gives the deletion that mends it, if that is what it needs.
async fn compare_unlisted(
    means: &Means,
    row: &LinkedRow,
    listed_at: DateTime<Utc>,
    comparison: &mut Comparison<impl FnMut(&Found)>,
) -> Result<Option<String>, HealError> {
    let id = row.workos_id.as_str();
    let Means { client, clock, .. } = means;
    match Patience::ask(|| client.look_up(&row.workos_id, clock.now())).await? {
        Lookup::Gone(answered) => {
            let deletion = Shown::of(answered)?.deletion(&row.workos_id);
            if is_older(means, &deletion).await? {
                return Ok(None);
            }
            let here = Some(row.name.clone());
            comparison.tell(&Found::new(
                Difference::DeletedThere,
                id,
                Some(row),
                here,
                None,
            ));
            Ok(Some(deletion.body))
        }
        Lookup::Found(Object { text, answered }) => {
            let shown = Shown::of(answered)?;
            let there = There::read(&text);
            let is_older = match shown.snapshot(&text) {
                Ok(snapshot) => is_older(means, &snapshot).await?,
                Err(_) => false,
            };
            // What was made after the list was read isn't in it.
            if !is_older && !there.is_on_its_way(listed_at) {
                let here = Some(row.name.clone());
                let difference = Difference::MissingThere;
                comparison.tell(&Found::new(difference, id, Some(row), here, there.name));
            }
            Ok(None)
        }
    }
}

/// Whether something newer was applied of the organization.
async fn is_older(means: &Means, snapshot: &Snapshot) -> Result<bool, HealError> {
    let Some(event) = event_of(&snapshot.body) else {
        return Ok(false);
    };
    Ok(means.preview(vec![event]).await? == [Outcome::Stale])
}

/// Applies the snapshots and the deletions; says how many organizations that didn't mend.
async fn mend(
    means: &Means,
    run: &Run,
    deletions: &[String],
    lease: &mut RunLease,
) -> Result<i64, HealError> {
    let mut total = Tally::default();
    let mut after = String::new();
    loop {
        let batch = postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
            runs::snapshots_after(connection, run.id, &after, SNAPSHOTS).await
        })
        .await?;
        let Some((last, _)) = batch.last() else {
            break;
        };
        after.clone_from(last);
        lease.check().await?;
        let bodies: Vec<_> = batch.into_iter().map(|(_, body)| body).collect();
        let (inbox, source) = (&means.inbox, Source::Reconcile);
        total.add_all(&take_in(inbox, bodies.iter().cloned(), source).await?);
        record_conflicts(means, &bodies).await?;
    }
    for bodies in deletions.chunks(usize::try_from(SNAPSHOTS).unwrap_or(1)) {
        lease.check().await?;
        let (inbox, source) = (&means.inbox, Source::Reconcile);
        total.add_all(&take_in(inbox, bodies.iter().cloned(), source).await?);
    }
    Ok(total.dead + total.unsettled)
}

/// An `external_id` that isn't the row's id is never overwritten (R15), so it is recorded as a conflict.
async fn record_conflicts(means: &Means, bodies: &[String]) -> Result<(), HealError> {
    let told: Vec<_> = bodies
        .iter()
        .filter_map(|body| {
            let event = event_of(body)?;
            Some((event.workos_id, event.external_id?))
        })
        .collect();
    if told.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = told.iter().map(|(id, _)| id.as_str()).collect();
    let statements = means.statements();
    let host = &means.target.host;
    let now = means.clock.now();
    postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
        let rows = statements.linked_rows(connection, &ids).await?;
        for row in &rows {
            let held = told.iter().find(|(id, _)| *id == row.workos_id);
            if let Some((_, held)) =
                held.filter(|(_, held)| !host.is_same(held.as_str(), row.id.as_str()))
            {
                outbox::record_conflict(connection, &row.workos_id, &row.id, held, now).await?;
            }
        }
        Ok::<_, sqlx::Error>(())
    })
    .await?;
    Ok(())
}

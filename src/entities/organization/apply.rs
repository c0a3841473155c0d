//! Applies events in the caller's transaction: fetch, decide, write.
//!
//! Events come in batches, because a commit costs as much for one as for a hundred. What the rules say is decided
//! event by event, in order, on a [`Ledger`]; what that holds in the end is written.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::decide::{Compared, candidate_id};
use super::ledger::Ledger;
use super::notify::Change;
use super::statements::{NewRow, Statements};
use super::store;
use super::{ApplyError, OrganizationEvent, Write, slug};
use crate::entities::outcome::Outcome;
use crate::event::{OrganizationId, WorkosId};
use crate::outbox;
use crate::postgres::locks::Places;

/// How many slug candidates are asked for at once. The second is free in practice; the rest cost nothing.
const SLUGS_AT_ONCE: usize = 5;

/// What a transaction is to know for what it chooses itself, which are the slugs of new rows.
#[derive(Debug)]
pub struct Choices<'a> {
    /// None of these is chosen: they were refused before.
    pub refused: &'a [String],
    /// Where the places for the locks of what is chosen are taken from.
    pub places: &'a mut Places,
}

impl<'a> Choices<'a> {
    /// None was refused yet.
    #[must_use]
    pub const fn any(places: &'a mut Places) -> Self {
        Self {
            refused: &[],
            places,
        }
    }
}

/// Events that are decided on what the database holds, and not written yet.
#[derive(Debug)]
pub struct Decided<'e> {
    statements: Arc<Statements>,
    events: Vec<&'e OrganizationEvent>,
    ledger: Ledger<'e>,
    outcomes: Vec<Outcome>,
}

/// Decides events, one after the other, on what the database holds; writes nothing. The caller holds the locks of all the
/// organizations, and gives the events of each in order.
///
/// # Errors
/// What the database holds can't be decided on; database errors as they are.
pub async fn decide<'e>(
    connection: &mut PgConnection,
    statements: Arc<Statements>,
    events: Vec<&'e OrganizationEvent>,
    namespace: &Uuid,
    now: DateTime<Utc>,
) -> Result<Decided<'e>, ApplyError> {
    let candidates: Vec<_> = events
        .iter()
        .map(|event| statements.spell(candidate_id(event, namespace)))
        .collect();
    let mut ledger = fetch(connection, &statements, &events, &candidates).await?;
    let outcomes = events
        .iter()
        .zip(candidates)
        .map(|(event, candidate)| ledger.apply(event, candidate, now))
        .collect();
    Ok(Decided {
        statements,
        events,
        ledger,
        outcomes,
    })
}

impl Decided<'_> {
    /// The outcome of each event, as the inbox records it, in the order of the events.
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// The places of the stale events among them, and what each was compared with.
    #[must_use]
    pub fn compared(&self) -> &[(usize, Compared)] {
        self.ledger.compared()
    }

    /// Writes the rows, advances the cursors, and records the intentions to write organization ids back (R14); the caller
    /// commits. Says whether the outbox has something to do then. Where `notifies`, whoever listens is told what each event
    /// did to a row, once it is committed (R53).
    ///
    /// The locks of slugs are taken as late as can be, for who waits for one waits for the commit.
    ///
    /// # Errors
    /// [`ApplyError::Unwritten`] when another writer was in the way, [`ApplyError::SlugRefused`] when the only new row is
    /// to have another slug; what can't be applied for what it contains; database errors as they are. In any case the
    /// transaction is to be rolled back.
    pub async fn write(
        mut self,
        connection: &mut PgConnection,
        choices: Choices<'_>,
        now: DateTime<Utc>,
        notifies: bool,
    ) -> Result<bool, ApplyError> {
        write(connection, &self.statements, &mut self.ledger, choices, now).await?;
        self.ledger.log();
        let push_recorded = !self.ledger.pushes().is_empty();
        if push_recorded {
            outbox::record(connection, self.ledger.pushes(), now).await?;
        }
        if notifies {
            self.notify(connection).await?;
        }
        Ok(push_recorded)
    }

    async fn notify(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let results = self.ledger.changed().iter().zip(&self.outcomes);
        let payloads: Vec<_> = self
            .events
            .iter()
            .zip(results)
            .filter_map(|(event, (changed, outcome))| {
                let id = changed.as_ref()?;
                Some(Change::new(id, &event.workos_id, *outcome, &event.id).payload())
            })
            .collect();
        if payloads.is_empty() {
            return Ok(());
        }
        store::notify(connection, &payloads).await
    }
}

/// Says what applying the events would do; writes nothing, and takes no lock.
///
/// # Errors
/// As [`decide`].
pub async fn preview(
    connection: &mut PgConnection,
    statements: &Arc<Statements>,
    events: &[OrganizationEvent],
    namespace: &Uuid,
    now: DateTime<Utc>,
) -> Result<Vec<Outcome>, ApplyError> {
    let (statements, events) = (Arc::clone(statements), events.iter().collect());
    let decided = decide(connection, statements, events, namespace, now).await?;
    Ok(decided.outcomes)
}

/// Reads all that the events are decided on.
async fn fetch<'e>(
    connection: &mut PgConnection,
    statements: &Statements,
    events: &[&'e OrganizationEvent],
    candidates: &[OrganizationId],
) -> Result<Ledger<'e>, ApplyError> {
    let mut workos_ids: BTreeSet<_> = events
        .iter()
        .map(|event| event.workos_id.as_str())
        .collect();
    let by_workos_id = statements
        .rows_by_workos_id(connection, &list(&workos_ids))
        .await?;
    // Mostly none: an organization that is linked is known by the id of its row.
    let mut ids: BTreeSet<_> = candidates
        .iter()
        .map(OrganizationId::as_str)
        .filter(|id| statements.can_be_key(id))
        .collect();
    for named in &by_workos_id {
        ids.remove(named.row.id.as_str());
    }
    let by_id = match &*list(&ids) {
        [] => Vec::new(),
        ids => statements.rows_by_id(connection, ids).await?,
    };
    // Whether the organization that has such a row is deleted decides who gets it (R6).
    workos_ids.extend(
        by_id
            .iter()
            .filter_map(|named| Some(named.row.workos_id.as_ref()?.as_str())),
    );
    let cursors = store::fetch_cursors(connection, &list(&workos_ids)).await?;
    Ok(Ledger::new(
        by_workos_id,
        by_id,
        cursors,
        statements.precision(),
    )?)
}

fn list<'a>(set: &BTreeSet<&'a str>) -> Vec<&'a str> {
    set.iter().copied().collect()
}

/// Writes what the ledger holds.
async fn write(
    connection: &mut PgConnection,
    statements: &Statements,
    ledger: &mut Ledger<'_>,
    choices: Choices<'_>,
    now: DateTime<Utc>,
) -> Result<(), ApplyError> {
    let updated = ledger.updated();
    if !updated.is_empty() {
        let written = statements.update(connection, &updated, now).await?;
        all_written(Write::Update, updated.iter().map(|row| row.id), written)?;
    }
    let enabled = ledger.enabled();
    if !enabled.is_empty() {
        let written = statements.enable(connection, &enabled, now).await?;
        all_written(Write::Enable, enabled.iter().map(|row| row.id), written)?;
    }
    let disabled = ledger.disabled();
    if !disabled.is_empty() {
        let written = statements.disable(connection, &disabled, now).await?;
        all_written(Write::Disable, disabled.iter().map(|row| row.id), written)?;
    }
    let cursors = ledger.moved_cursors();
    if !cursors.is_empty() {
        store::advance_cursors(connection, &cursors, now).await?;
    }
    let created = ledger.created();
    if !created.is_empty() {
        let slugs = take_slugs(connection, statements, &created, choices).await?;
        let inserted = statements.insert(connection, &created, &slugs, now).await?;
        let ids = created.iter().map(|row| row.id.as_str());
        all_written(Write::Insert, ids, inserted.len())?;
        for (workos_id, id) in inserted {
            ledger.rename(&WorkosId::from_database(workos_id), id);
        }
    }
    Ok(())
}

fn all_written<'a>(
    write: Write,
    mut ids: impl ExactSizeIterator<Item = &'a str>,
    written: usize,
) -> Result<(), ApplyError> {
    let all = ids.len() == written;
    match ids.next() {
        // Of several, which it is shows when each event has a transaction of its own.
        Some(id) if !all => Err(ApplyError::Unwritten {
            write,
            id: id.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Waits for the other creators of the rows' base slugs, then finds a slug for each row that is free (R4, R9, R20).
/// A local writer can still take one before the INSERT; that is a unique violation, and the events start over
/// (R21).
async fn take_slugs(
    connection: &mut PgConnection,
    statements: &Statements,
    rows: &[NewRow<'_>],
    Choices { refused, places }: Choices<'_>,
) -> Result<Vec<String>, sqlx::Error> {
    let max_length = statements.slug_length();
    let bases: Vec<_> = rows
        .iter()
        .map(|row| slug::base(row.slug_of.0, row.slug_of.1, max_length))
        .collect();
    let locks: BTreeSet<_> = bases.iter().map(String::as_str).collect();
    places.take_slugs(locks.len()).await;
    store::lock_slugs(connection, &list(&locks)).await?;

    let mut candidates: Vec<_> = rows
        .iter()
        .zip(&bases)
        .map(|(row, base)| slug::candidates(base, row.id, max_length))
        .collect();
    let mut slugs = vec![None; rows.len()];
    let mut chosen: HashSet<_> = refused.iter().cloned().collect();
    while slugs.iter().any(Option::is_none) {
        let batches: Vec<Vec<String>> = slugs
            .iter()
            .zip(&mut candidates)
            .map(|(slug, candidates)| match slug {
                None => candidates.by_ref().take(SLUGS_AT_ONCE).collect(),
                Some(_) => Vec::new(),
            })
            .collect();
        let asked: Vec<_> = batches.iter().flatten().map(String::as_str).collect();
        let taken = statements.taken_slugs(connection, &asked).await?;
        let taken: HashSet<_> = taken.into_iter().collect();
        for (slug, batch) in slugs.iter_mut().zip(batches) {
            if slug.is_none() {
                *slug = batch
                    .into_iter()
                    .find(|slug| !taken.contains(slug) && chosen.insert(slug.clone()));
            }
        }
    }
    Ok(slugs.into_iter().flatten().collect())
}

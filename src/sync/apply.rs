//! Applies events in the caller's transaction: fetch, decide, write.
//!
//! Events come in batches, because a commit costs as much for one as for a hundred. What the rules say is decided
//! event by event, in order, on a [`Ledger`]: the rows and cursors as they are in the database, and then as each
//! event leaves them. Written is what the ledger holds in the end, once a row.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tracing::{info, warn};
use uuid::Uuid;

use super::decide::{Decision, Found, Link, OrganizationRow, SyncCursor, candidate_id, decide};
use super::store::{self, DisabledRow, NewCursor, NewRow, UpdatedRow};
use super::{ApplyError, Outcome, Write, slug};
use crate::event::{Change, EventId, OrganizationEvent, OrganizationId, WorkosId};
use crate::outbox;

/// How many slug candidates are asked for at once. The second is free in practice; the rest cost nothing.
const SLUGS_AT_ONCE: usize = 5;

/// What applying events did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The outcome of each event, as the inbox records it, in the order of the events.
    pub outcomes: Vec<Outcome>,
    /// An intention was recorded to write an organization id to WorkOS: once this is committed, the outbox has
    /// something to do.
    pub push_recorded: bool,
}

/// Applies events to the rows of their organizations, advances the cursors, and records the intentions to write
/// organization ids back (R14). The caller holds the locks of all the organizations, gives the events of each in
/// order, and commits.
///
/// # Errors
/// [`ApplyError::Unwritten`] when another writer was in the way; database errors as they are. Either way the
/// transaction is to be rolled back.
pub async fn apply(
    connection: &mut PgConnection,
    events: &[OrganizationEvent],
    namespace: &Uuid,
    now: DateTime<Utc>,
) -> Result<Applied, ApplyError> {
    let candidates: Vec<_> = events
        .iter()
        .map(|event| candidate_id(event, namespace))
        .collect();
    let mut ledger = Ledger::fetch(connection, events, &candidates).await?;
    let outcomes = events
        .iter()
        .zip(candidates)
        .map(|(event, candidate)| ledger.apply(event, candidate, now))
        .collect();
    ledger.write(connection, now).await?;

    let push_recorded = !ledger.pushes.is_empty();
    if push_recorded {
        outbox::record(connection, &ledger.pushes, now).await?;
    }
    Ok(Applied {
        outcomes,
        push_recorded,
    })
}

/// The rows and cursors that a batch is about: as found, then as decided.
#[derive(Debug, Default)]
struct Ledger<'e> {
    rows: HashMap<OrganizationId, Entry<'e>>,
    by_workos_id: HashMap<WorkosId, OrganizationId>,
    cursors: HashMap<WorkosId, SyncCursor>,
    /// The organizations whose cursor moved, in order, so that concurrent batches write them in the same order.
    moved: BTreeMap<&'e str, Option<DateTime<Utc>>>,
    /// What is to be written to WorkOS.
    pushes: BTreeMap<&'e str, OrganizationId>,
}

/// A row, and what is to be written of it.
#[derive(Debug)]
struct Entry<'e> {
    row: OrganizationRow,
    origin: Origin,
    /// The name that the last event brought, if any did.
    name: Option<&'e str>,
    disabled_at: Option<DateTime<Utc>>,
}

#[derive(Debug)]
enum Origin {
    /// In the database, and linked to this WorkOS organization there.
    Found { linked_to: Option<WorkosId> },
    /// New. The first event chooses the slug, whatever name the later ones bring (R12).
    Created { slug_base: String },
}

impl<'e> Ledger<'e> {
    async fn fetch(
        connection: &mut PgConnection,
        events: &[OrganizationEvent],
        candidates: &[OrganizationId],
    ) -> Result<Self, sqlx::Error> {
        let workos_ids: HashSet<_> = events
            .iter()
            .map(|event| event.workos_id.as_str())
            .collect();
        let workos_ids: Vec<_> = workos_ids.into_iter().collect();
        let mut rows = store::rows_by_workos_id(connection, &workos_ids).await?;
        // Mostly none: an organization that is linked is known by the id of its row.
        let mut ids: HashSet<_> = candidates.iter().map(OrganizationId::as_str).collect();
        for row in &rows {
            ids.remove(row.id.as_str());
        }
        if !ids.is_empty() {
            let ids: Vec<_> = ids.into_iter().collect();
            rows.extend(store::rows_by_id(connection, &ids).await?);
        }
        let cursors = store::fetch_cursors(connection, &workos_ids).await?;

        let mut ledger = Self {
            cursors: cursors.into_iter().collect(),
            ..Self::default()
        };
        for row in rows {
            if let Some(workos_id) = &row.workos_id {
                ledger
                    .by_workos_id
                    .insert(workos_id.clone(), row.id.clone());
            }
            let origin = Origin::Found {
                linked_to: row.workos_id.clone(),
            };
            let entry = Entry {
                row,
                origin,
                name: None,
                disabled_at: None,
            };
            ledger.rows.insert(entry.row.id.clone(), entry);
        }
        Ok(ledger)
    }

    fn found(&self, workos_id: &WorkosId, candidate: &OrganizationId) -> Found {
        let row = |id| self.rows.get(id).map(|entry| entry.row.clone());
        Found {
            by_workos_id: self.by_workos_id.get(workos_id).and_then(row),
            by_candidate_id: row(candidate),
            cursor: self.cursors.get(workos_id).cloned(),
        }
    }

    /// Decides an event, and enters what it does.
    fn apply(
        &mut self,
        event: &'e OrganizationEvent,
        candidate: OrganizationId,
        now: DateTime<Utc>,
    ) -> Outcome {
        // When it was deleted, in WorkOS's time where that is known: the same whenever the event is applied.
        let disabled_at = event.created_at.unwrap_or(now);
        let found = self.found(&event.workos_id, &candidate);
        let (outcome, written) = match decide(&found, candidate, event) {
            Decision::Stale => return Outcome::Stale,
            Decision::Tombstone => (Outcome::Tombstoned, None),
            Decision::Disable { id } => {
                let entry = self
                    .rows
                    .get_mut(&id)
                    .expect("decide() names rows that were found");
                entry.row.last_event_id = Some(event.id.clone());
                entry.disabled_at.get_or_insert(disabled_at);
                (Outcome::Disabled, None)
            }
            Decision::Create { id, name, disabled } => {
                let entry = Entry {
                    row: row_after(event, id.clone()),
                    origin: Origin::Created {
                        slug_base: slug::base(name, &event.workos_id),
                    },
                    name: Some(name),
                    disabled_at: disabled.then_some(disabled_at),
                };
                self.rows.insert(id.clone(), entry);
                (Outcome::Created, Some(id))
            }
            Decision::Update {
                id,
                name,
                link,
                disable,
                not_followed,
            } => {
                log_link(event, &id, &link, not_followed.as_ref());
                let entry = self
                    .rows
                    .get_mut(&id)
                    .expect("decide() names rows that were found");
                entry.row = row_after(event, id.clone());
                entry.name = Some(name);
                if disable {
                    entry.disabled_at.get_or_insert(disabled_at);
                }
                if let Link::Relinked { from } = &link {
                    self.by_workos_id.remove(from);
                }
                let outcome = if link == Link::Kept {
                    Outcome::Updated
                } else {
                    Outcome::Linked
                };
                (outcome, Some(id))
            }
        };

        let deleted = event.change == Change::Delete;
        let cursor = SyncCursor {
            last_event_id: event.id.clone(),
            last_event_updated_at: event.updated_at,
            deleted: deleted || found.cursor.is_some_and(|cursor| cursor.deleted),
        };
        self.cursors.insert(event.workos_id.clone(), cursor);
        let moved = self.moved.entry(event.workos_id.as_str()).or_default();
        if deleted {
            moved.get_or_insert(disabled_at);
        }
        if let Some(id) = written {
            if matches!(
                event.change,
                Change::Upsert {
                    external_id: None,
                    ..
                }
            ) {
                self.pushes.insert(event.workos_id.as_str(), id.clone());
            }
            self.by_workos_id.insert(event.workos_id.clone(), id);
        }
        outcome
    }

    /// Writes what was entered.
    async fn write(
        &self,
        connection: &mut PgConnection,
        now: DateTime<Utc>,
    ) -> Result<(), ApplyError> {
        // Sorted, so that concurrent batches lock rows in the same order.
        let mut entries: Vec<_> = self.rows.values().collect();
        entries.sort_unstable_by_key(|entry| entry.row.id.as_str());

        let updated: Vec<_> = entries
            .iter()
            .filter_map(|entry| {
                Some(UpdatedRow {
                    found_linked_to: match &entry.origin {
                        Origin::Found { linked_to } => linked_to.as_ref().map(WorkosId::as_str),
                        Origin::Created { .. } => return None,
                    },
                    id: entry.row.id.as_str(),
                    name: entry.name?,
                    workos_id: entry.workos_id(),
                    updated_at: entry.row.updated_at,
                    last_event_id: entry.last_event_id(),
                })
            })
            .collect();
        if !updated.is_empty() {
            let written = store::update(connection, &updated, now).await?;
            all_written(Write::Update, updated.iter().map(|row| row.id), written)?;
        }
        let disabled: Vec<_> = entries
            .iter()
            .filter(|entry| matches!(entry.origin, Origin::Found { .. }))
            .filter_map(|entry| {
                Some(DisabledRow {
                    id: entry.row.id.as_str(),
                    workos_id: entry.workos_id(),
                    last_event_id: entry.last_event_id(),
                    disabled_at: entry.disabled_at?,
                })
            })
            .collect();
        if !disabled.is_empty() {
            let written = store::disable(connection, &disabled, now).await?;
            all_written(Write::Disable, disabled.iter().map(|row| row.id), written)?;
        }
        let created: Vec<_> = entries
            .iter()
            .filter_map(|entry| match &entry.origin {
                Origin::Created { slug_base } => Some((*entry, slug_base.as_str())),
                Origin::Found { .. } => None,
            })
            .collect();
        if !created.is_empty() {
            let wanted: Vec<_> = created
                .iter()
                .map(|(entry, base)| (&entry.row.id, *base))
                .collect();
            let slugs = take_slugs(connection, &wanted).await?;
            let rows: Vec<_> = created
                .iter()
                .zip(&slugs)
                .map(|((entry, _), slug)| NewRow {
                    id: entry.row.id.as_str(),
                    name: entry.name.unwrap_or_default(),
                    slug,
                    workos_id: entry.workos_id(),
                    updated_at: entry.row.updated_at,
                    last_event_id: entry.last_event_id(),
                    disabled_at: entry.disabled_at,
                })
                .collect();
            let written = store::insert(connection, &rows, now).await?;
            all_written(Write::Insert, rows.iter().map(|row| row.id), written)?;
        }

        let cursors: Vec<_> = self
            .moved
            .iter()
            .filter_map(|(workos_id, deleted_at)| {
                let cursor = self
                    .cursors
                    .get(&WorkosId::from_database((*workos_id).to_owned()))?;
                Some(NewCursor {
                    workos_id,
                    last_event_id: cursor.last_event_id.as_str(),
                    last_event_updated_at: cursor.last_event_updated_at,
                    deleted_at: *deleted_at,
                })
            })
            .collect();
        if !cursors.is_empty() {
            store::advance_cursors(connection, &cursors, now).await?;
        }
        Ok(())
    }
}

impl Entry<'_> {
    /// Rows that are written are linked: the event that wrote them did it.
    fn workos_id(&self) -> &str {
        self.row.workos_id.as_ref().map_or("", WorkosId::as_str)
    }

    fn last_event_id(&self) -> &str {
        self.row.last_event_id.as_ref().map_or("", EventId::as_str)
    }
}

/// A row as an upsert leaves it.
fn row_after(event: &OrganizationEvent, id: OrganizationId) -> OrganizationRow {
    OrganizationRow {
        id,
        workos_id: Some(event.workos_id.clone()),
        last_event_id: Some(event.id.clone()),
        updated_at: event.updated_at,
    }
}

fn all_written<'a>(
    write: Write,
    ids: impl ExactSizeIterator<Item = &'a str>,
    written: u64,
) -> Result<(), ApplyError> {
    let all = usize::try_from(written).is_ok_and(|written| written == ids.len());
    let id = ids.into_iter().next();
    match id.filter(|_| !all) {
        None => Ok(()),
        // Of several, whose it is shows when each event has a transaction of its own.
        Some(id) => Err(ApplyError::Unwritten {
            write,
            id: id.to_owned(),
        }),
    }
}

/// Waits for the other creators of these base slugs, then finds a slug for each row that is free (R4, R9, R20).
/// A local writer can still take one before the INSERT; that is a unique violation, and the events start over
/// (R21).
async fn take_slugs(
    connection: &mut PgConnection,
    wanted: &[(&OrganizationId, &str)],
) -> Result<Vec<String>, sqlx::Error> {
    let bases: BTreeSet<_> = wanted.iter().map(|(_, base)| *base).collect();
    store::lock_slugs(connection, &bases.into_iter().collect::<Vec<_>>()).await?;

    let mut candidates: Vec<_> = wanted
        .iter()
        .map(|(id, base)| slug::candidates(base, id))
        .collect();
    let mut slugs = vec![None; wanted.len()];
    let mut chosen = HashSet::new();
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
        let taken: HashSet<_> = store::taken_slugs(connection, &asked)
            .await?
            .into_iter()
            .collect();
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

/// R6
fn log_link(
    event: &OrganizationEvent,
    id: &OrganizationId,
    link: &Link,
    not_followed: Option<&OrganizationId>,
) {
    if let Link::Relinked { from } = link {
        warn!(
            event.id = %event.id,
            organization_id = %id,
            workos.organization_id = %event.workos_id,
            workos.previous_organization_id = %from,
            "organization {id} is relinked from WorkOS organization {from} to {}", event.workos_id,
        );
    }
    if let Some(other) = not_followed {
        info!(
            event.id = %event.id,
            organization_id = %id,
            workos.organization_id = %event.workos_id,
            workos.external_id = %other,
            "WorkOS organization {} keeps organization id {id}, though its external_id is {other}",
            event.workos_id,
        );
    }
}

//! The rows and cursors that a batch of events is about: as they are in the database, and then as each event, decided
//! in order, leaves them. What is to be written is what the ledger holds in the end. No I/O.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, SecondsFormat, Utc};
use tracing::{info, warn};

use super::decide::{Compared, Decision, Found, Link, OrganizationRow, SyncCursor, decide};
use super::precision::RowPrecision;
use super::statements::{DisabledRow, EnabledRow, Held, Named, NewRow, UpdatedRow};
use super::store::NewCursor;
use super::{Change, OrganizationEvent, TwoRows};
use crate::entities::guard::Replay;
use crate::entities::outcome::Outcome;
use crate::event::{EventId, OrganizationId, WorkosId};

/// Rows and cursors are kept in order, so that concurrent batches write them in the same order.
#[derive(Debug)]
pub(super) struct Ledger<'e> {
    rows: BTreeMap<OrganizationId, Entry<'e>>,
    /// The rows of the events' organizations.
    by_workos_id: HashMap<WorkosId, OrganizationId>,
    /// The rows that an id names which is spelled otherwise.
    by_other_spelling: HashMap<OrganizationId, OrganizationId>,
    /// How exact the times of a row are.
    precision: RowPrecision,
    cursors: BTreeMap<WorkosId, Cursor>,
    /// The organization ids that are to be written to WorkOS (R14).
    pushes: BTreeMap<&'e str, OrganizationId>,
    /// Of each event so far, the row that it changed, if it did.
    changed: Vec<Option<OrganizationId>>,
    /// The places of the stale events among them, and what each was compared with.
    compared: Vec<(usize, Compared)>,
    /// What the log is to say.
    notes: Vec<Note<'e>>,
}

/// A row, and what is to be written of it.
#[derive(Debug)]
struct Entry<'e> {
    /// As the events so far leave it: what the next one is decided on.
    row: OrganizationRow,
    origin: Origin<'e>,
}

#[derive(Debug)]
enum Origin<'e> {
    /// It is in the database.
    Found(Changes<'e>),
    /// It is to be inserted.
    Created {
        upsert: Upsert<'e>,
        /// The name and the WorkOS organization of the first event: they choose the slug, whatever later events
        /// bring (R12).
        slug_of: (&'e str, &'e WorkosId),
    },
}

/// What is to be written of a row that was found.
#[derive(Debug)]
struct Changes<'e> {
    found: OrganizationRow,
    upsert: Option<Upsert<'e>>,
    /// The `disabled_at` that a relink clears.
    cleared: Option<DateTime<Utc>>,
    /// That of the row's organization.
    deletion: Option<Deletion<'e>>,
}

/// What WorkOS owns of a row, by the last event that brought it.
#[derive(Debug)]
struct Upsert<'e> {
    name: &'e str,
    workos_id: &'e WorkosId,
    updated_at: Option<DateTime<Utc>>,
    /// Of that event, or of a later deletion.
    last_event_id: &'e EventId,
}

#[derive(Debug)]
struct Deletion<'e> {
    workos_id: &'e WorkosId,
    at: DateTime<Utc>,
}

#[derive(Debug)]
struct Cursor {
    cursor: SyncCursor,
    /// It is to be written.
    moved: bool,
}

impl<'e> Ledger<'e> {
    /// Takes the rows of the events' organizations, other rows that the events name, and the cursors of all their
    /// organizations.
    pub(super) fn new(
        by_workos_id: Vec<Named>,
        by_id: Vec<Named>,
        cursors: Vec<(WorkosId, SyncCursor)>,
        precision: RowPrecision,
    ) -> Result<Self, TwoRows> {
        let mut ledger = Self {
            rows: BTreeMap::new(),
            by_workos_id: HashMap::with_capacity(by_workos_id.len()),
            by_other_spelling: HashMap::new(),
            precision,
            cursors: BTreeMap::new(),
            pushes: BTreeMap::new(),
            changed: Vec::new(),
            compared: Vec::new(),
            notes: Vec::new(),
        };
        for Named { asked, row } in by_workos_id {
            let workos_id = WorkosId::from_database(asked);
            let id = row.id.clone();
            let other = ledger.by_workos_id.insert(workos_id.clone(), id.clone());
            if let Some(other) = other {
                let mut ids = [other, id];
                ids.sort();
                return Err(TwoRows { workos_id, ids });
            }
            ledger.rows.insert(id, Entry::found(row));
        }
        for Named { asked, row } in by_id {
            if asked != row.id.as_str() {
                let asked = OrganizationId::from_database(asked);
                ledger.by_other_spelling.insert(asked, row.id.clone());
            }
            ledger.rows.insert(row.id.clone(), Entry::found(row));
        }
        let unmoved = |cursor| Cursor {
            cursor,
            moved: false,
        };
        ledger.cursors = cursors
            .into_iter()
            .map(|(workos_id, cursor)| (workos_id, unmoved(cursor)))
            .collect();
        Ok(ledger)
    }

    fn found(&self, workos_id: &WorkosId, candidate: &OrganizationId) -> Found {
        let by_workos_id = self.by_workos_id.get(workos_id);
        let by_candidate_id = self.row(self.by_other_spelling.get(candidate).unwrap_or(candidate));
        let predecessor = by_candidate_id.and_then(|row| row.workos_id.as_ref());
        Found {
            by_workos_id: by_workos_id.and_then(|id| self.row(id)).cloned(),
            by_candidate_id: by_candidate_id.cloned(),
            cursor: self.cursor(workos_id).cloned(),
            predecessor_deleted_at: predecessor
                .and_then(|workos_id| self.cursor(workos_id))
                .and_then(|cursor| cursor.deleted_at),
        }
    }

    fn row(&self, id: &OrganizationId) -> Option<&OrganizationRow> {
        self.rows.get(id).map(|entry| &entry.row)
    }

    fn cursor(&self, workos_id: &WorkosId) -> Option<&SyncCursor> {
        self.cursors.get(workos_id).map(|known| &known.cursor)
    }

    /// Decides an event, and enters what it does.
    pub(super) fn apply(
        &mut self,
        event: &'e OrganizationEvent,
        candidate: OrganizationId,
        now: DateTime<Utc>,
    ) -> Outcome {
        let found = self.found(&event.workos_id, &candidate);
        let (outcome, changed) = match decide(&found, candidate, event) {
            Decision::Stale => {
                let place = self.changed.len();
                self.changed.push(None);
                // It stays on record that it disabled the row: it does so once (R46).
                if event.replay == Replay::AfterDisabling {
                    return Outcome::Disabled;
                }
                self.compared.push((place, found.refusal(event)));
                return Outcome::Stale;
            }
            Decision::Tombstone => (Outcome::Tombstoned, None),
            Decision::Disable { id, deleted_at } => {
                let at = deleted_at.unwrap_or_else(|| deletion_time(event, now));
                self.entry(&id).disable(event, at);
                self.by_workos_id
                    .insert(event.workos_id.clone(), id.clone());
                (Outcome::Disabled, Some(id))
            }
            Decision::Create { id, name } => {
                let entry = Entry::created(event, id.clone(), name, self.precision);
                self.rows.insert(id.clone(), entry);
                self.linked(event, id.clone());
                (Outcome::Created, Some(id))
            }
            Decision::Update {
                id,
                name,
                link,
                not_followed,
            } => {
                self.entry(&id).upsert(event, name);
                let outcome = self.link(event, &id, link);
                if let Some(external_id) = not_followed {
                    self.note(event, &id, What::NotFollowed { external_id });
                }
                self.linked(event, id.clone());
                (outcome, Some(id))
            }
        };
        self.changed.push(changed);
        self.advance_cursor(event, now);
        outcome
    }

    fn entry(&mut self, id: &OrganizationId) -> &mut Entry<'e> {
        self.rows
            .get_mut(id)
            .expect("decide() names rows that were found")
    }

    /// Enters how a row came to the organization of the event that updates it.
    fn link(&mut self, event: &'e OrganizationEvent, id: &OrganizationId, link: Link) -> Outcome {
        match link {
            Link::Kept => return Outcome::Updated,
            Link::Returned { clears_disabled_at } => {
                self.entry(id).is_gone_no_more(clears_disabled_at);
                let disabled_since = self.entry(id).row.disabled_at;
                self.note(event, id, What::Returned { disabled_since });
                return Outcome::Updated;
            }
            Link::Linked => {
                if let Some(since) = self.entry(id).row.disabled_at {
                    self.note(event, id, What::LinkedDisabled { since });
                }
            }
            Link::Relinked {
                from,
                clears_disabled_at,
            } => {
                self.by_workos_id.retain(|_, row| row != id);
                self.entry(id).is_gone_no_more(clears_disabled_at);
                let disabled_since = self.entry(id).row.disabled_at;
                self.note(
                    event,
                    id,
                    What::Relinked {
                        from,
                        clears_disabled_at,
                        disabled_since,
                    },
                );
            }
        }
        Outcome::Linked
    }

    /// A row is the event's organization's.
    fn linked(&mut self, event: &'e OrganizationEvent, id: OrganizationId) {
        if event.external_id.is_none() {
            self.pushes.insert(event.workos_id.as_str(), id.clone());
        }
        self.by_workos_id.insert(event.workos_id.clone(), id);
    }

    fn note(&mut self, event: &'e OrganizationEvent, id: &OrganizationId, what: What) {
        let id = id.clone();
        self.notes.push(Note { event, id, what });
    }

    /// Moves the cursor to the event, never backwards (R11), and remembers a deletion (R10).
    fn advance_cursor(&mut self, event: &OrganizationEvent, now: DateTime<Utc>) {
        let known = self.cursor(&event.workos_id);
        let lifts = known.is_some_and(|known| known.deletion_lifted_by(event).is_some());
        let confirms = known.is_some_and(|known| known.deletion_confirmed_by(event));
        let deletion = known.filter(|_| !lifts);
        let mut cursor = match known {
            Some(known) if !lifts && !known.admits(event) => known.clone(),
            _ => SyncCursor {
                last_event_id: event.id.clone(),
                last_event_updated_at: event.updated_at,
                deleted_at: deletion.and_then(|known| known.deleted_at),
                deletion_is_inferred: deletion.is_some_and(|known| known.deletion_is_inferred),
            },
        };
        if event.change == Change::Delete && cursor.deleted_at.is_none() {
            cursor.deleted_at = Some(deletion_time(event, now));
            cursor.deletion_is_inferred = event.id.is_snapshot();
        } else if confirms {
            cursor.deletion_is_inferred = false;
        }
        if self.cursor(&event.workos_id) != Some(&cursor) {
            let moved = true;
            self.cursors
                .insert(event.workos_id.clone(), Cursor { cursor, moved });
        }
    }

    /// The rows that are to be updated with what WorkOS owns (R5).
    pub(super) fn updated(&self) -> Vec<UpdatedRow<'_>> {
        self.changes()
            .filter_map(|(_, changes)| {
                let upsert = changes.upsert.as_ref()?;
                Some(UpdatedRow {
                    id: changes.found.id.as_str(),
                    held: Held::of(&changes.found),
                    name: upsert.name,
                    workos_id: upsert.workos_id.as_str(),
                    updated_at: upsert.updated_at,
                    last_event_id: upsert.last_event_id.as_str(),
                })
            })
            .collect()
    }

    /// The rows that are to be enabled, once they are updated (R6).
    pub(super) fn enabled(&self) -> Vec<EnabledRow<'_>> {
        self.changes()
            .filter_map(|(_, changes)| {
                Some(EnabledRow {
                    id: changes.found.id.as_str(),
                    held: changes.upsert.as_ref()?.held(),
                    disabled_at: changes.cleared?,
                })
            })
            .collect()
    }

    /// The rows that are to be disabled, once they are updated and enabled (R10).
    pub(super) fn disabled(&self) -> Vec<DisabledRow<'_>> {
        self.changes()
            .filter_map(|(row, changes)| {
                let deletion = changes.deletion.as_ref()?;
                let upsert = changes.upsert.as_ref();
                Some(DisabledRow {
                    id: changes.found.id.as_str(),
                    held: upsert.map_or_else(|| Held::of(&changes.found), Upsert::held),
                    workos_id: deletion.workos_id.as_str(),
                    last_event_id: row.last_event_id.as_ref().map(EventId::as_str),
                    disabled_at: deletion.at,
                })
            })
            .collect()
    }

    fn changes(&self) -> impl Iterator<Item = (&OrganizationRow, &Changes<'e>)> {
        self.rows.values().filter_map(|entry| match &entry.origin {
            Origin::Found(changes) => Some((&entry.row, changes)),
            Origin::Created { .. } => None,
        })
    }

    /// The rows that are to be inserted (R4).
    pub(super) fn created(&self) -> Vec<NewRow<'_>> {
        self.rows
            .values()
            .filter_map(|entry| match &entry.origin {
                Origin::Created { upsert, slug_of } => Some(NewRow {
                    id: &entry.row.id,
                    name: upsert.name,
                    slug_of: *slug_of,
                    workos_id: upsert.workos_id.as_str(),
                    updated_at: upsert.updated_at,
                    last_event_id: upsert.last_event_id.as_str(),
                    disabled_at: entry.row.disabled_at,
                }),
                Origin::Found(_) => None,
            })
            .collect()
    }

    /// The cursors that moved (R11).
    pub(super) fn moved_cursors(&self) -> Vec<NewCursor<'_>> {
        self.cursors
            .iter()
            .filter(|(_, cursor)| cursor.moved)
            .map(|(workos_id, Cursor { cursor, .. })| NewCursor {
                workos_id: workos_id.as_str(),
                last_event_id: cursor.last_event_id.as_str(),
                last_event_updated_at: cursor.last_event_updated_at,
                deleted_at: cursor.deleted_at,
                deletion_is_inferred: cursor.deletion_is_inferred,
            })
            .collect()
    }

    /// The organization ids that are to be written to WorkOS (R14), by WorkOS organization.
    pub(super) fn pushes(&self) -> &BTreeMap<&'e str, OrganizationId> {
        &self.pushes
    }

    /// Of each event, in order, the row that it changed, if it did.
    pub(super) fn changed(&self) -> &[Option<OrganizationId>] {
        &self.changed
    }

    /// The places of the stale events, and what each was compared with.
    pub(super) fn compared(&self) -> &[(usize, Compared)] {
        &self.compared
    }

    /// A new row has another id than it was given (R14).
    pub(super) fn rename(&mut self, workos_id: &WorkosId, id: OrganizationId) {
        let given = self.by_workos_id.get(workos_id);
        if let Some(given) = given.filter(|given| **given != id) {
            for changed in self.changed.iter_mut().flatten() {
                if changed == given {
                    changed.clone_from(&id);
                }
            }
        }
        if let Some(push) = self.pushes.get_mut(workos_id.as_str()) {
            *push = id;
        }
    }

    /// Says what an operator should know.
    pub(super) fn log(&self) {
        for note in &self.notes {
            note.log();
        }
    }
}

/// When the organization was deleted, in WorkOS's time where that is known: the same whenever the event is applied.
fn deletion_time(event: &OrganizationEvent, now: DateTime<Utc>) -> DateTime<Utc> {
    event.created_at.unwrap_or(now)
}

impl<'e> Entry<'e> {
    fn found(row: OrganizationRow) -> Self {
        let changes = Changes {
            found: row.clone(),
            upsert: None,
            cleared: None,
            deletion: None,
        };
        Self {
            row,
            origin: Origin::Found(changes),
        }
    }

    fn created(
        event: &'e OrganizationEvent,
        id: OrganizationId,
        name: &'e str,
        precision: RowPrecision,
    ) -> Self {
        Self {
            row: OrganizationRow {
                id,
                workos_id: Some(event.workos_id.clone()),
                last_event_id: Some(event.id.clone()),
                updated_at: event.updated_at.map(|at| precision.updated_at.round(at)),
                disabled_at: None,
                precision,
            },
            origin: Origin::Created {
                upsert: Upsert::new(event, name),
                slug_of: (name, &event.workos_id),
            },
        }
    }

    /// The event brings what WorkOS owns (R5).
    fn upsert(&mut self, event: &'e OrganizationEvent, name: &'e str) {
        self.row.workos_id = Some(event.workos_id.clone());
        self.row.last_event_id = Some(event.id.clone());
        self.row.updated_at = event
            .updated_at
            .map(|at| self.row.precision.updated_at.round(at));
        let upsert = Upsert::new(event, name);
        match &mut self.origin {
            Origin::Found(changes) => changes.upsert = Some(upsert),
            Origin::Created { upsert: before, .. } => *before = upsert,
        }
    }

    /// The row has another organization now, or its own has returned: the deletion is no matter of its any more (R6, R44).
    fn is_gone_no_more(&mut self, clears_disabled_at: bool) {
        if let Origin::Found(changes) = &mut self.origin {
            // A deletion of this batch isn't written yet, so it is dropped, not cleared.
            let was_written = changes.deletion.take().is_none();
            if clears_disabled_at && was_written {
                changes.cleared = self.row.disabled_at;
            }
        }
        if clears_disabled_at {
            self.row.disabled_at = None;
        }
    }

    /// The event's organization is deleted: the row is linked to it, if it wasn't, and disabled (R10).
    fn disable(&mut self, event: &'e OrganizationEvent, at: DateTime<Utc>) {
        let is_newer = self.row.admits(event);
        self.row.workos_id = Some(event.workos_id.clone());
        let disabled_at = self.row.precision.disabled_at.round(at);
        self.row.disabled_at.get_or_insert(disabled_at);
        if is_newer {
            self.row.last_event_id = Some(event.id.clone());
        }
        let upsert = match &mut self.origin {
            Origin::Found(changes) => {
                let workos_id = &event.workos_id;
                changes.deletion = Some(Deletion { workos_id, at });
                changes.upsert.as_mut()
            }
            Origin::Created { upsert, .. } => Some(upsert),
        };
        if let Some(upsert) = upsert.filter(|_| is_newer) {
            upsert.last_event_id = &event.id;
        }
    }
}

impl<'e> Upsert<'e> {
    fn new(event: &'e OrganizationEvent, name: &'e str) -> Self {
        Self {
            name,
            workos_id: &event.workos_id,
            updated_at: event.updated_at,
            last_event_id: &event.id,
        }
    }

    /// What the row holds once this is written.
    fn held(&self) -> Held<'e> {
        Held {
            workos_id: Some(self.workos_id.as_str()),
            last_event_id: Some(self.last_event_id.as_str()),
        }
    }
}

/// Something that an operator should know of an event.
#[derive(Debug)]
struct Note<'e> {
    event: &'e OrganizationEvent,
    id: OrganizationId,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A row that is linked is disabled, and stays so.
    LinkedDisabled { since: DateTime<Utc> },
    /// R44
    Returned {
        disabled_since: Option<DateTime<Utc>>,
    },
    /// R6
    Relinked {
        from: WorkosId,
        clears_disabled_at: bool,
        disabled_since: Option<DateTime<Utc>>,
    },
    /// R6
    NotFollowed { external_id: OrganizationId },
}

impl Note<'_> {
    fn log(&self) {
        let Self { event, id, what } = self;
        let workos_id = &event.workos_id;
        match what {
            What::LinkedDisabled { since } => warn!(
                event.id = %event.id,
                event.r#type = event.event_type.as_str(),
                organization_id = %id,
                workos.organization_id = %workos_id,
                "organization {id} is linked to WorkOS organization {workos_id}{}",
                still_disabled(*since),
            ),
            What::Returned { disabled_since } => warn!(
                event.id = %event.id,
                event.r#type = event.event_type.as_str(),
                organization_id = %id,
                workos.organization_id = %workos_id,
                "WorkOS organization {workos_id}, which reconcile had found to be gone, is there: organization {id} is {}",
                disabled_since.map_or_else(
                    || "enabled again".to_owned(),
                    |since| format!("updated{}", still_disabled(since))
                ),
            ),
            What::Relinked {
                from,
                clears_disabled_at,
                disabled_since,
            } => {
                let rest = match disabled_since {
                    _ if *clears_disabled_at => {
                        format!("; disabled_at, set when {from} was deleted, is cleared")
                    }
                    Some(since) => still_disabled(*since),
                    None => String::new(),
                };
                warn!(
                    event.id = %event.id,
                    event.r#type = event.event_type.as_str(),
                event.r#type = event.event_type.as_str(),
                    organization_id = %id,
                    workos.organization_id = %workos_id,
                    workos.previous_organization_id = %from,
                    "organization {id} is relinked from WorkOS organization {from} to {workos_id}{rest}",
                );
            }
            What::NotFollowed { external_id } => info!(
                event.id = %event.id,
                event.r#type = event.event_type.as_str(),
                organization_id = %id,
                workos.organization_id = %workos_id,
                workos.external_id = %external_id,
                "WorkOS organization {workos_id} keeps organization id {id}, though its external_id is {external_id}",
            ),
        }
    }
}

/// The application set it, so only the application may clear it.
fn still_disabled(since: DateTime<Utc>) -> String {
    let since = since.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    format!(", and has been disabled since {since}: if it is in use again, clear its disabled_at")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::OrganizationEventType;
    use super::super::decide::candidate_id;
    use super::super::organization_id::default_namespace;
    use super::*;

    /// What happens next in WorkOS: to which of a few organizations, which `external_id` it wants, whether it is deleted.
    type Step = (usize, Option<usize>, bool);

    /// The events of a history as WorkOS has them: an `external_id` belongs to one living organization, and stays with it;
    /// a deleted organization comes back as another one.
    fn history(steps: &[Step]) -> Vec<OrganizationEvent> {
        let mut generations = [0; 3];
        let mut held: [Option<usize>; 3] = [None; 3];
        let mut events = Vec::new();
        for (n, &(place, wanted, is_deletion)) in steps.iter().enumerate() {
            if held[place].is_none() && wanted.is_some() && !held.contains(&wanted) {
                held[place] = wanted;
            }
            let at = DateTime::from_timestamp(i64::try_from(n).unwrap(), 0);
            let id = ulid::Ulid(u128::try_from(n).unwrap() + 1);
            let external_id =
                held[place].map(|id| OrganizationId::new(format!("id_{id}")).unwrap());
            let (event_type, change) = if is_deletion {
                (OrganizationEventType::Deleted, Change::Delete)
            } else {
                let name = format!("Name {n}");
                (OrganizationEventType::Updated, Change::Upsert { name })
            };
            events.push(OrganizationEvent {
                id: EventId::new(format!("event_{id}")).unwrap(),
                event_type,
                workos_id: WorkosId::new(format!("org_{place}_{}", generations[place])).unwrap(),
                external_id,
                change,
                created_at: at,
                updated_at: at,
                replay: Replay::No,
            });
            if is_deletion {
                generations[place] += 1;
                held[place] = None;
            }
        }
        events
    }

    fn apply(ledger: &mut Ledger<'_>, event: &OrganizationEvent) -> Outcome {
        // The ledger of a batch lives no longer than its events.
        let event: &'static OrganizationEvent = Box::leak(Box::new(event.clone()));
        let candidate = candidate_id(event, &default_namespace());
        ledger.apply(event, candidate, DateTime::UNIX_EPOCH)
    }

    fn state(ledger: &Ledger<'_>) -> (Vec<OrganizationRow>, Vec<SyncCursor>) {
        let rows = ledger.rows.values().map(|entry| entry.row.clone());
        let cursors = ledger.cursors.values().map(|cursor| cursor.cursor.clone());
        (rows.collect(), cursors.collect())
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let wanted = proptest::option::of(0..2_usize);
        proptest::collection::vec((0..3_usize, wanted, prop::bool::weighted(0.2)), 1..10)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// R46: whatever happened, and in whatever order it was applied: deciding all of it again leaves every row and
        /// cursor as it was, as often as it is done, and a row that the application enabled meanwhile stays enabled. Only an
        /// organization that had lost its row to another one may get one again.
        #[test]
        fn a_replay_of_everything_changes_nothing(
            (steps, order) in steps().prop_flat_map(|steps| {
                let order: Vec<_> = (0..steps.len()).collect();
                (Just(steps), Just(order).prop_shuffle())
            }),
            again in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
            enable in any::<bool>(),
        ) {
            let mut events = history(&steps);
            let mut ledger =
                Ledger::new(Vec::new(), Vec::new(), Vec::new(), RowPrecision::FULL).unwrap();
            let mut decided = |ledger: &mut Ledger<'_>, n: usize| {
                let outcome = apply(ledger, &events[n]);
                events[n].replay = match outcome {
                    Outcome::Disabled => Replay::AfterDisabling,
                    _ => Replay::Again,
                };
            };
            for n in order {
                decided(&mut ledger, n);
            }
            if enable {
                for entry in ledger.rows.values_mut() {
                    entry.row.disabled_at = None;
                }
            }
            let (rows, cursors) = state(&ledger);
            for n in (0..steps.len()).chain(again.iter().map(|again| again.index(steps.len()))) {
                decided(&mut ledger, n);
                let after = state(&ledger);
                prop_assert_eq!(&after.1, &cursors, "{}", n);
                for row in &rows {
                    prop_assert!(after.0.contains(row), "{}: {:?} is none of {:?}", n, row, after.0);
                }
            }
        }
    }
}

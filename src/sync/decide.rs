//! The decision: given what the database holds and an event, what to write. No I/O; the rules live here.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::organization_id;
use crate::event::{Change, EventId, OrganizationEvent, OrganizationId, WorkosId};

/// What the decision needs to know of a row of `organization_metadata`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganizationRow {
    /// `id`
    pub id: OrganizationId,
    /// `workos_id`
    pub workos_id: Option<WorkosId>,
    /// `workos_last_event_id`: the row's event cursor.
    pub last_event_id: Option<EventId>,
    /// `workos_updated_at`
    pub updated_at: Option<DateTime<Utc>>,
}

/// A row of `workos_organization_syncs`: what was applied of a WorkOS organization, with or without a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncCursor {
    /// The newest event applied.
    pub last_event_id: EventId,
    /// What that event counts as updated at.
    pub last_event_updated_at: Option<DateTime<Utc>>,
    /// A deletion was applied (with no row: a tombstone).
    pub deleted: bool,
}

/// What the database holds when an event is decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The row with the event's WorkOS organization id.
    pub by_workos_id: Option<OrganizationRow>,
    /// The row whose `id` is the [`candidate_id`].
    pub by_candidate_id: Option<OrganizationRow>,
    /// The cursor of the WorkOS organization.
    pub cursor: Option<SyncCursor>,
}

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'e> {
    /// INSERT a row (R4).
    Create {
        /// Its organization id.
        id: OrganizationId,
        /// The name that the event brings.
        name: &'e str,
        /// The organization is known to be deleted: the row is born disabled (R12).
        disabled: bool,
    },
    /// UPDATE what WorkOS owns of a row (R5).
    Update {
        /// Its organization id.
        id: OrganizationId,
        /// The name that the event brings.
        name: &'e str,
        /// How the row comes to this WorkOS organization.
        link: Link,
        /// The organization is known to be deleted: the row is disabled as well (R12).
        disable: bool,
        /// The payload carries this other organization id, which is not followed (R6).
        not_followed: Option<OrganizationId>,
    },
    /// Set `disabled_at` and the cursor of a row (R10).
    Disable {
        /// Its organization id.
        id: OrganizationId,
    },
    /// Remember the deletion of an organization that has no row (R10).
    Tombstone,
    /// Nothing: the guard refuses the event (R7).
    Stale,
}

/// How a row that is updated comes to the WorkOS organization of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// It was found by it (R1).
    Kept,
    /// It had none (R2, R3).
    Linked,
    /// It was another's (R6).
    Relinked {
        /// The WorkOS organization that loses the row.
        from: WorkosId,
    },
}

/// The organization id that the row will have if none is found by the WorkOS organization id: the payload's
/// `external_id` (R2), else the derived one (R3). It is known before any I/O, so the shell can fetch
/// everything that [`decide`] needs at once.
#[must_use]
pub fn candidate_id(event: &OrganizationEvent, namespace: &Uuid) -> OrganizationId {
    match &event.change {
        Change::Upsert {
            external_id: Some(id),
            ..
        } => id.clone(),
        Change::Upsert {
            external_id: None, ..
        }
        | Change::Delete => organization_id::derive(namespace, &event.workos_id),
    }
}

/// The guard (R7): is the event newer than what was already applied?
///
/// The event id is the order. Timestamps stand in for it where there is no cursor, or where only one of the
/// two ids has a ULID, so that an odd id can't freeze a row; without a timestamp on either side the event is
/// applied.
#[must_use]
pub fn should_process_event(
    row_last_event_id: Option<&EventId>,
    row_updated_at: Option<DateTime<Utc>>,
    event_id: &EventId,
    event_updated_at: Option<DateTime<Utc>>,
) -> bool {
    match row_last_event_id.and_then(|last| event_id.compare(last)) {
        Some(order) => order.is_gt(),
        None => match (event_updated_at, row_updated_at) {
            (Some(event), Some(row)) => event >= row,
            _ => true,
        },
    }
}

/// Decides what an event writes (R1–R7, R10).
#[must_use]
pub fn decide<'e>(
    found: &Found,
    candidate_id: OrganizationId,
    event: &'e OrganizationEvent,
) -> Decision<'e> {
    // What was applied of this WorkOS organization counts wherever the row went meanwhile: it may have been
    // relinked, removed by the application, or never have been there (a tombstone).
    let overtaken = found.cursor.as_ref().is_some_and(|cursor| {
        let last = Some(&cursor.last_event_id);
        !should_process_event(
            last,
            cursor.last_event_updated_at,
            &event.id,
            event.updated_at,
        )
    });
    if overtaken {
        return Decision::Stale;
    }
    let is_fresh = |row: &OrganizationRow| {
        let last = row.last_event_id.as_ref();
        should_process_event(last, row.updated_at, &event.id, event.updated_at)
    };

    match &event.change {
        Change::Upsert { name, external_id } => {
            let deleted = found.cursor.as_ref().is_some_and(|cursor| cursor.deleted);
            let update = |row: &OrganizationRow, link, not_followed| Decision::Update {
                id: row.id.clone(),
                name,
                link,
                disable: deleted,
                not_followed,
            };
            match (&found.by_workos_id, &found.by_candidate_id) {
                // R1, R6: never remapped.
                (Some(row), _) if is_fresh(row) => update(
                    row,
                    Link::Kept,
                    external_id.clone().filter(|id| *id != row.id),
                ),
                (Some(_), _) => Decision::Stale,
                // R2, R3, R6
                (None, Some(row)) => match &row.workos_id {
                    // The dead don't take from the living.
                    Some(_) if deleted => Decision::Stale,
                    // The row's cursor belongs to the other organization: it doesn't count.
                    Some(from) => update(row, Link::Relinked { from: from.clone() }, None),
                    None if is_fresh(row) => update(row, Link::Linked, None),
                    None => Decision::Stale,
                },
                // R4
                (None, None) => Decision::Create {
                    id: candidate_id,
                    name,
                    disabled: deleted,
                },
            }
        }
        // R10
        Change::Delete => match &found.by_workos_id {
            Some(row) if is_fresh(row) => Decision::Disable { id: row.id.clone() },
            Some(_) => Decision::Stale,
            None => Decision::Tombstone,
        },
    }
}

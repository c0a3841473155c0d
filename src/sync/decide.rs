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

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> EventId {
        EventId::new(format!("event_{}", ulid::Ulid(n))).unwrap()
    }

    fn at(seconds: i64) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(seconds, 0)
    }

    /// R7: the whole table of the guard.
    #[test]
    fn the_guard() {
        let odd = |text: &str| EventId::new(text).unwrap();
        let (one, two) = (id(1), id(2));
        let other_prefix = odd(&one.as_str().replace("event_", "evt_"));
        for (row_id, row_at, event_id, event_at, applies, why) in [
            (None, None, &one, None, true, "nothing to compare with"),
            (None, at(5), &one, None, true, "no time of the event"),
            (None, None, &one, at(5), true, "no time of the row"),
            (None, at(5), &one, at(4), false, "older"),
            (None, at(5), &one, at(5), true, "as old"),
            (None, at(5), &one, at(6), true, "newer"),
            (
                Some(&one),
                at(9),
                &two,
                at(1),
                true,
                "a greater id, whatever the time",
            ),
            (
                Some(&two),
                at(1),
                &one,
                at(9),
                false,
                "a smaller id, whatever the time",
            ),
            (Some(&one), None, &one, at(9), false, "the same id"),
            (
                Some(&one),
                None,
                &other_prefix,
                at(9),
                false,
                "the same id behind another prefix",
            ),
            (
                Some(&odd("wh_1")),
                at(9),
                &odd("wh_2"),
                at(1),
                true,
                "whole strings",
            ),
            (
                Some(&odd("wh_2")),
                at(1),
                &odd("wh_10"),
                at(9),
                false,
                "whole strings, bytewise",
            ),
            (
                Some(&odd("wh_1")),
                at(5),
                &one,
                at(4),
                false,
                "one ULID: older",
            ),
            (
                Some(&odd("wh_1")),
                at(5),
                &one,
                at(5),
                true,
                "one ULID: as old",
            ),
            (
                Some(&one),
                at(5),
                &odd("wh_1"),
                at(4),
                false,
                "one ULID: older",
            ),
            (
                Some(&one),
                at(5),
                &odd("wh_1"),
                at(6),
                true,
                "one ULID: newer",
            ),
            (
                Some(&one),
                at(5),
                &odd("wh_1"),
                None,
                true,
                "one ULID, no time",
            ),
        ] {
            assert_eq!(
                should_process_event(row_id, row_at, event_id, event_at),
                applies,
                "{why}"
            );
        }
    }

    fn upsert(external_id: Option<&str>) -> OrganizationEvent {
        OrganizationEvent {
            id: id(5),
            workos_id: WorkosId::new("org_1").unwrap(),
            change: Change::Upsert {
                name: "Acme".to_owned(),
                external_id: external_id.map(|id| OrganizationId::new(id).unwrap()),
            },
            created_at: at(5),
            updated_at: at(5),
        }
    }

    fn row(row_id: &str, workos_id: Option<&str>, last: Option<u128>) -> OrganizationRow {
        OrganizationRow {
            id: OrganizationId::new(row_id).unwrap(),
            workos_id: workos_id.map(|id| WorkosId::new(id).unwrap()),
            last_event_id: last.map(id),
            updated_at: None,
        }
    }

    fn cursor(last: u128, deleted: bool) -> SyncCursor {
        SyncCursor {
            last_event_id: id(last),
            last_event_updated_at: None,
            deleted,
        }
    }

    fn decide_upsert<'e>(found: &Found, event: &'e OrganizationEvent) -> Decision<'e> {
        decide(
            found,
            candidate_id(event, &organization_id::default_namespace()),
            event,
        )
    }

    /// R2, R3: the candidate is the payload's `external_id`, else derived.
    #[test]
    fn the_candidate_is_known_before_any_io() {
        let namespace = organization_id::default_namespace();
        assert_eq!(
            candidate_id(&upsert(Some("acme")), &namespace).as_str(),
            "acme"
        );
        let event = upsert(None);
        let derived = organization_id::derive(&namespace, &event.workos_id);
        assert_eq!(candidate_id(&event, &namespace), derived);
    }

    /// R1, R2: a row found by `workos_id` wins over one found by the candidate id.
    #[test]
    fn the_row_of_the_workos_id_comes_first() {
        let event = upsert(Some("two"));
        let found = Found {
            by_workos_id: Some(row("one", Some("org_1"), Some(4))),
            by_candidate_id: Some(row("two", None, None)),
            cursor: Some(cursor(4, false)),
        };
        let expected = Decision::Update {
            id: OrganizationId::new("one").unwrap(),
            name: "Acme",
            link: Link::Kept,
            disable: false,
            not_followed: Some(OrganizationId::new("two").unwrap()),
        };
        assert_eq!(decide_upsert(&found, &event), expected);
    }

    /// R6: the relink names who loses the row; R12: a deleted organization takes none.
    #[test]
    fn a_relink_names_both_and_is_for_the_living() {
        let event = upsert(Some("shared"));
        let mut found = Found {
            by_candidate_id: Some(row("shared", Some("org_2"), Some(9))),
            ..Found::default()
        };
        let Decision::Update { link, .. } = decide_upsert(&found, &event) else {
            panic!("it is relinked")
        };
        assert_eq!(
            link,
            Link::Relinked {
                from: WorkosId::new("org_2").unwrap()
            }
        );
        found.cursor = Some(cursor(4, true));
        assert_eq!(decide_upsert(&found, &event), Decision::Stale);
    }

    /// R10, R11: the cursor of the organization counts without a row too, and a deletion that it remembers
    /// disables the row that comes after it.
    #[test]
    fn what_was_applied_counts_without_a_row() {
        let event = upsert(None);
        let tombstone = |last| Found {
            cursor: Some(cursor(last, true)),
            ..Found::default()
        };
        assert_eq!(decide_upsert(&tombstone(6), &event), Decision::Stale);
        assert_eq!(decide_upsert(&tombstone(5), &event), Decision::Stale);
        assert!(matches!(
            decide_upsert(&tombstone(4), &event),
            Decision::Create { disabled: true, .. }
        ));
    }
}

//! The decision: given what the database holds and an event, what to write. No I/O; the rules live here.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::precision::RowPrecision;
use super::{Change, OrganizationEvent, organization_id};
use crate::entities::guard::{Replay, is_admitted};
use crate::event::{EventId, OrganizationId, WorkosId};

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
    /// `disabled_at`
    pub disabled_at: Option<DateTime<Utc>>,
    /// How exact its times are: what they are compared with is rounded alike.
    pub precision: RowPrecision,
}

impl OrganizationRow {
    /// Says whether an event is newer than what the row has of it (R7).
    #[must_use]
    pub fn admits(&self, event: &OrganizationEvent) -> bool {
        let last = self.last_event_id.as_ref();
        let event_updated_at = event
            .updated_at
            .map(|at| self.precision.updated_at.round(at));
        is_admitted(
            last,
            self.updated_at,
            &event.id,
            event_updated_at,
            event.replay,
        )
    }

    /// Says whether it was the deletion of an organization that disabled the row, and not the application (R6).
    fn is_disabled_by(&self, deleted_at: DateTime<Utc>) -> bool {
        self.disabled_at == Some(self.precision.disabled_at.round(deleted_at))
    }
}

/// A row of `workos_organization_syncs`: what was applied of a WorkOS organization, with or without a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncCursor {
    /// The newest event applied.
    pub last_event_id: EventId,
    /// What that event counts as updated at.
    pub last_event_updated_at: Option<DateTime<Utc>>,
    /// When the organization was deleted, once that was applied (with no row: a tombstone).
    pub deleted_at: Option<DateTime<Utc>>,
    /// No event told the deletion: `reconcile` found that WorkOS doesn't know the organization any more (R44).
    pub deletion_is_inferred: bool,
}

impl SyncCursor {
    /// Says whether an event is newer than what was applied of its organization (R7).
    #[must_use]
    pub fn admits(&self, event: &OrganizationEvent) -> bool {
        let last = Some(&self.last_event_id);
        is_admitted(
            last,
            self.last_event_updated_at,
            &event.id,
            event.updated_at,
            event.replay,
        )
    }

    /// Says whether the event is the newest that was applied.
    fn is_at(&self, event: &OrganizationEvent) -> bool {
        event.id.is_same(&self.last_event_id)
    }

    /// When the organization was found to be gone, if the event shows that it isn't (R44): it tells of later.
    #[must_use]
    pub fn deletion_lifted_by(&self, event: &OrganizationEvent) -> Option<DateTime<Utc>> {
        let deleted_at = self.deleted_at.filter(|_| self.deletion_is_inferred)?;
        let is_later = event.told_at().is_some_and(|told| told > deleted_at);
        (is_later && event.change != Change::Delete).then_some(deleted_at)
    }

    /// Says whether the organization was there later than a deletion that was found (R44): what would have lifted that, had
    /// it come after it, makes it stale.
    #[must_use]
    pub fn outlives(&self, found: &OrganizationEvent) -> bool {
        let times = self.last_event_id.told_at().zip(found.created_at);
        times.is_some_and(|(told, found)| told > found)
    }

    /// Says whether an event tells the deletion that was only found so far (R44): then it is final (R10).
    #[must_use]
    pub fn deletion_confirmed_by(&self, event: &OrganizationEvent) -> bool {
        self.deletion_is_inferred && event.change == Change::Delete && !event.id.is_snapshot()
    }
}

/// What the database holds when an event is decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The row with the event's WorkOS organization id.
    pub by_workos_id: Option<OrganizationRow>,
    /// The row whose `id` is the [`candidate_id`], by what the key's type means by equal; `by_workos_id` may be the same.
    pub by_candidate_id: Option<OrganizationRow>,
    /// The cursor of the WorkOS organization.
    pub cursor: Option<SyncCursor>,
    /// When the organization was deleted that `by_candidate_id` is linked to, if that is known.
    pub predecessor_deleted_at: Option<DateTime<Utc>>,
}

/// What a stale event was compared with: the cursor and the time that refused it, or the deletion (R27).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// The newest event applied: to the organization, or else to the row that the event found.
    pub last_event_id: Option<String>,
    /// What that counts as updated at.
    pub updated_at: Option<DateTime<Utc>>,
    /// When the organization was deleted, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<DateTime<Utc>>,
}

impl Found {
    /// What refused an event that is stale.
    #[must_use]
    pub fn refusal(&self, event: &OrganizationEvent) -> Compared {
        let refuses = |cursor: &&SyncCursor| cursor.deleted_at.is_some() || !cursor.admits(event);
        if let Some(cursor) = self.cursor.as_ref().filter(refuses) {
            return Compared {
                last_event_id: Some(cursor.last_event_id.to_string()),
                updated_at: cursor.last_event_updated_at,
                deleted_at: cursor.deleted_at,
            };
        }
        let row = self.by_workos_id.as_ref().or(self.by_candidate_id.as_ref());
        let last_event_id = row.and_then(|row| row.last_event_id.as_ref());
        Compared {
            last_event_id: last_event_id.map(ToString::to_string),
            updated_at: row.and_then(|row| row.updated_at),
            deleted_at: None,
        }
    }

    fn cursor_admits(&self, event: &OrganizationEvent) -> bool {
        let cursor = self.cursor.as_ref();
        cursor.is_none_or(|cursor| cursor.admits(event))
    }

    /// Says whether an event is newer than everything that was applied of its organization.
    fn admits(&self, event: &OrganizationEvent) -> bool {
        let row = self.by_workos_id.as_ref();
        self.cursor_admits(event) && row.is_none_or(|row| row.admits(event))
    }

    /// The row that R2 or R3 finds, if no organization has it.
    fn unlinked(&self) -> Option<&OrganizationRow> {
        match (&self.by_workos_id, &self.by_candidate_id) {
            (None, Some(row)) if row.workos_id.is_none() => Some(row),
            _ => None,
        }
    }
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
    },
    /// UPDATE what WorkOS owns of a row (R5).
    Update {
        /// Its organization id.
        id: OrganizationId,
        /// The name that the event brings.
        name: &'e str,
        /// How the row comes to this WorkOS organization.
        link: Link,
        /// The payload carries this other organization id, which is not followed (R6).
        not_followed: Option<OrganizationId>,
    },
    /// Link a row, if it isn't, and set its `disabled_at`, unless it is set, and its cursor, if the event is newer (R10).
    Disable {
        /// Its organization id.
        id: OrganizationId,
        /// When the organization was deleted, where that was applied before; otherwise it is this event that deletes it.
        deleted_at: Option<DateTime<Utc>>,
    },
    /// Remember the deletion of an organization that has no row (R10).
    Tombstone,
    /// Nothing: the event is refused (R6, R7, R10).
    Stale,
}

/// How a row that is updated comes to the WorkOS organization of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// It was found by it (R1).
    Kept,
    /// It was found by it, and a deletion that `reconcile` had found is lifted (R44).
    Returned {
        /// That deletion had disabled the row: `disabled_at` is cleared.
        clears_disabled_at: bool,
    },
    /// It had none (R2, R3).
    Linked,
    /// It was another's (R6).
    Relinked {
        /// The WorkOS organization that loses the row.
        from: WorkosId,
        /// The deletion of that one had disabled the row: `disabled_at` is cleared.
        clears_disabled_at: bool,
    },
}

/// The organization id that the row will have if none is found by the WorkOS organization id: the payload's
/// `external_id` (R2), else the derived one (R3), for a deletion too (R10). It is known before any I/O, so the shell
/// can fetch everything that [`decide`] needs at once.
#[must_use]
pub fn candidate_id(event: &OrganizationEvent, namespace: &Uuid) -> OrganizationId {
    event
        .external_id
        .clone()
        .unwrap_or_else(|| organization_id::derive(namespace, &event.workos_id))
}

/// Decides what an event writes (R1–R7, R10, R46).
#[must_use]
pub fn decide<'e>(
    found: &Found,
    candidate_id: OrganizationId,
    event: &'e OrganizationEvent,
) -> Decision<'e> {
    let cursor = found.cursor.as_ref();
    let deleted_at = cursor.and_then(|cursor| cursor.deleted_at);
    let lifted = cursor.and_then(|cursor| cursor.deletion_lifted_by(event));
    let is_confirmed = cursor.is_some_and(|cursor| cursor.deletion_confirmed_by(event));
    let disable = |row: &OrganizationRow| Decision::Disable {
        id: row.id.clone(),
        deleted_at,
    };
    match &event.change {
        Change::Upsert { name } if lifted.is_some() => {
            decide_upsert(found, candidate_id, event, name, lifted)
        }
        // R46: a deletion that was the last word, and found no row to disable, looks for one again.
        Change::Delete
            if deleted_at.is_some()
                && event.replay == Replay::Again
                && cursor.is_some_and(|cursor| cursor.is_at(event)) =>
        {
            delete(found, disable)
        }
        // R10: a deletion is final. The dead take nothing from the living, but no row of theirs stays active.
        _ if deleted_at.is_some() && !is_confirmed => {
            found.unlinked().map_or(Decision::Stale, disable)
        }
        // What `reconcile` missed is no news once something newer was applied (R44).
        Change::Delete
            if event.id.is_snapshot()
                && (!found.admits(event)
                    || cursor.is_some_and(|cursor| cursor.outlives(event))) =>
        {
            Decision::Stale
        }
        Change::Delete => delete(found, disable),
        Change::Upsert { name } => decide_upsert(found, candidate_id, event, name, None),
    }
}

/// R10, for a deletion that counts.
fn delete<'e>(found: &Found, disable: impl Fn(&OrganizationRow) -> Decision<'e>) -> Decision<'e> {
    let row = found.by_workos_id.as_ref().or_else(|| found.unlinked());
    row.map_or(Decision::Tombstone, disable)
}

/// R1–R7, for an organization that isn't deleted, or whose deletion the event lifts.
fn decide_upsert<'e>(
    found: &Found,
    candidate_id: OrganizationId,
    event: &OrganizationEvent,
    name: &'e str,
    lifted: Option<DateTime<Utc>>,
) -> Decision<'e> {
    // What was applied of this WorkOS organization counts wherever the row went meanwhile: it may have been relinked,
    // or removed by the application.
    if lifted.is_none() && !found.cursor_admits(event) {
        return Decision::Stale;
    }
    let update = |row: &OrganizationRow, link, not_followed| Decision::Update {
        id: row.id.clone(),
        name,
        link,
        not_followed,
    };
    match (&found.by_workos_id, &found.by_candidate_id) {
        // R1, R6: never remapped.
        (Some(row), _) if lifted.is_some() || row.admits(event) => {
            let names_it = |other: &OrganizationRow| other.id == row.id;
            let is_followed = found.by_candidate_id.as_ref().is_some_and(names_it);
            let not_followed = event.external_id.clone().filter(|_| !is_followed);
            let link = lifted.map_or(Link::Kept, |deleted_at| Link::Returned {
                clears_disabled_at: row.is_disabled_by(deleted_at),
            });
            update(row, link, not_followed)
        }
        (Some(_), _) => Decision::Stale,
        // R2, R3, R6
        (None, Some(row)) => match (&row.workos_id, found.predecessor_deleted_at) {
            // The cursor of a row that belongs to the dead doesn't count.
            (Some(from), deleted_at) if deleted_at.is_some() || row.admits(event) => {
                let link = Link::Relinked {
                    from: from.clone(),
                    clears_disabled_at: deleted_at.is_some_and(|at| row.is_disabled_by(at)),
                };
                update(row, link, None)
            }
            (None, _) if row.admits(event) => update(row, Link::Linked, None),
            _ => Decision::Stale,
        },
        // R4
        (None, None) => Decision::Create {
            id: candidate_id,
            name,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entities::organization::OrganizationEventType;

    fn id(n: u128) -> EventId {
        EventId::new(format!("event_{}", ulid::Ulid(n))).unwrap()
    }

    fn at(seconds: i64) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(seconds, 0)
    }

    fn event(external_id: Option<&str>, change: Change) -> OrganizationEvent {
        OrganizationEvent {
            id: id(5),
            event_type: OrganizationEventType::Updated,
            workos_id: WorkosId::new("org_1").unwrap(),
            external_id: external_id.map(|id| OrganizationId::new(id).unwrap()),
            change,
            created_at: at(5),
            updated_at: at(5),
            replay: Replay::No,
        }
    }

    fn upsert(external_id: Option<&str>) -> OrganizationEvent {
        let name = "Acme".to_owned();
        event(external_id, Change::Upsert { name })
    }

    fn deletion(external_id: Option<&str>) -> OrganizationEvent {
        event(external_id, Change::Delete)
    }

    fn row(row_id: &str, workos_id: Option<&str>, last: Option<u128>) -> OrganizationRow {
        OrganizationRow {
            id: OrganizationId::new(row_id).unwrap(),
            workos_id: workos_id.map(|id| WorkosId::new(id).unwrap()),
            last_event_id: last.map(id),
            updated_at: None,
            disabled_at: None,
            precision: RowPrecision::FULL,
        }
    }

    fn cursor(last: u128, deleted_at: Option<DateTime<Utc>>) -> SyncCursor {
        SyncCursor {
            last_event_id: id(last),
            last_event_updated_at: None,
            deleted_at,
            deletion_is_inferred: false,
        }
    }

    fn decided<'e>(found: &Found, event: &'e OrganizationEvent) -> Decision<'e> {
        let namespace = organization_id::default_namespace();
        decide(found, candidate_id(event, &namespace), event)
    }

    /// R2, R3, R10: the candidate is the payload's `external_id`, else derived, whatever the event says.
    #[test]
    fn the_candidate_is_known_before_any_io() {
        let namespace = organization_id::default_namespace();
        for make in [upsert, deletion] {
            let named = candidate_id(&make(Some("acme")), &namespace);
            assert_eq!(named.as_str(), "acme");
            let event = make(None);
            let derived = organization_id::derive(&namespace, &event.workos_id);
            assert_eq!(candidate_id(&event, &namespace), derived);
        }
    }

    /// R1, R2: a row found by `workos_id` wins over one found by the candidate id.
    #[test]
    fn the_row_of_the_workos_id_comes_first() {
        let event = upsert(Some("two"));
        let found = Found {
            by_workos_id: Some(row("one", Some("org_1"), Some(4))),
            by_candidate_id: Some(row("two", None, None)),
            cursor: Some(cursor(4, None)),
            ..Found::default()
        };
        let expected = Decision::Update {
            id: OrganizationId::new("one").unwrap(),
            name: "Acme",
            link: Link::Kept,
            not_followed: Some(OrganizationId::new("two").unwrap()),
        };
        assert_eq!(decided(&found, &event), expected);
    }

    /// R6: whose the row is that another organization has. The event is number 5.
    #[test]
    fn a_row_of_another_organization() {
        let event = upsert(Some("shared"));
        for (last, disabled_at, predecessor_deleted_at, expected, why) in [
            (
                Some(4),
                None,
                None,
                Some(false),
                "newer than the row's cursor",
            ),
            (Some(6), None, None, None, "older"),
            (None, None, None, Some(false), "the row has no cursor"),
            (
                Some(6),
                None,
                at(6),
                Some(false),
                "older, but the other one is deleted",
            ),
            (
                Some(6),
                at(6),
                at(6),
                Some(true),
                "its deletion disabled the row",
            ),
            (
                Some(6),
                at(3),
                at(6),
                Some(false),
                "the application disabled the row",
            ),
            (
                Some(4),
                at(4),
                None,
                Some(false),
                "nobody knows of a deletion",
            ),
        ] {
            let found = Found {
                by_candidate_id: Some(OrganizationRow {
                    disabled_at,
                    ..row("shared", Some("org_2"), last)
                }),
                predecessor_deleted_at,
                ..Found::default()
            };
            let relinked = match decided(&found, &event) {
                Decision::Update {
                    link:
                        Link::Relinked {
                            from,
                            clears_disabled_at,
                        },
                    ..
                } => {
                    assert_eq!(from.as_str(), "org_2");
                    Some(clears_disabled_at)
                }
                Decision::Stale => None,
                other => panic!("{why}: {other:?}"),
            };
            assert_eq!(relinked, expected, "{why}");
        }
    }

    /// R10: which row a deletion disables: its own, or an unlinked one that it names. No guard is asked.
    #[test]
    fn a_deletion_resolves_its_row() {
        let event = deletion(Some("named"));
        let own = Some(row("own", Some("org_1"), Some(9)));
        let unlinked = Some(row("named", None, Some(9)));
        let anothers = Some(row("named", Some("org_2"), Some(1)));
        for (by_workos_id, by_candidate_id, expected) in [
            (own.clone(), None, Some("own")),
            (own.clone(), unlinked.clone(), Some("own")),
            (own.clone(), anothers.clone(), Some("own")),
            (None, unlinked.clone(), Some("named")),
            (None, anothers.clone(), None),
            (None, None, None),
        ] {
            for cursor in [None, Some(cursor(9, None))] {
                let found = Found {
                    by_workos_id: by_workos_id.clone(),
                    by_candidate_id: by_candidate_id.clone(),
                    cursor,
                    ..Found::default()
                };
                let expected = expected.map_or(Decision::Tombstone, |id| Decision::Disable {
                    id: OrganizationId::new(id).unwrap(),
                    deleted_at: None,
                });
                assert_eq!(decided(&found, &event), expected, "{found:?}");
            }
        }
    }

    /// R10: after its deletion, every event of an organization is stale, whatever its id; but an unlinked row that one
    /// of them finds is disabled, as of the deletion.
    #[test]
    fn a_deletion_is_final() {
        for event in [upsert(Some("named")), deletion(Some("named"))] {
            for last in [4, 6] {
                let found = |by_workos_id, by_candidate_id| Found {
                    by_workos_id,
                    by_candidate_id,
                    cursor: Some(cursor(last, at(4))),
                    ..Found::default()
                };
                let own = Some(row("own", Some("org_1"), None));
                let unlinked = Some(row("named", None, None));
                let anothers = Some(row("named", Some("org_2"), None));
                for found in [
                    found(own.clone(), None),
                    found(own, unlinked.clone()),
                    found(None, anothers),
                    found(None, None),
                ] {
                    assert_eq!(decided(&found, &event), Decision::Stale, "{found:?}");
                }
                let expected = Decision::Disable {
                    id: OrganizationId::new("named").unwrap(),
                    deleted_at: at(4),
                };
                assert_eq!(decided(&found(None, unlinked), &event), expected);
            }
        }
    }

    /// R11: what was applied of an organization counts without a row too.
    #[test]
    fn what_was_applied_counts_without_a_row() {
        let event = upsert(None);
        for (last, is_stale) in [(6, true), (5, true), (4, false)] {
            let found = Found {
                cursor: Some(cursor(last, None)),
                ..Found::default()
            };
            let decision = decided(&found, &event);
            assert_eq!(decision == Decision::Stale, is_stale, "{decision:?}");
        }
    }
}

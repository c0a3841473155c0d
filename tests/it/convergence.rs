//! R12: whatever the order and however often events are delivered, the same rows come of them. First on the
//! decision alone, with a store in memory, over many random histories; then a few on a real database, through
//! the inboxes of two replicas.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, LazyLock};

use chrono::{DateTime, Utc};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use sqlx::PgConnection;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use ulid::Ulid;
use uuid::Uuid;
use workos_sync::entities::Outcome;
use workos_sync::entities::guard::should_process_event;
use workos_sync::entities::organization::decide::{
    Decision, Found, Link, OrganizationRow, SyncCursor, candidate_id, decide,
};
use workos_sync::entities::organization::precision::RowPrecision;
use workos_sync::entities::organization::statements::Statements;
use workos_sync::entities::organization::{Change, OrganizationEvent, organization_id, slug};
use workos_sync::event::{Event, EventId, OrganizationId, WorkosId};

use crate::support::app::{Options, Organization};
use crate::support::event::{at, rfc3339};
use crate::support::{
    EventBuilder, NOW, TestApp, TestDatabase, apply, created, deleted, look_at, updated,
};

static NAMESPACE: LazyLock<Uuid> = LazyLock::new(organization_id::default_namespace);

/// When the application disabled the rows that it did.
const DISABLED_BY_THE_APPLICATION: DateTime<Utc> =
    DateTime::from_timestamp(1_500_000_000, 0).unwrap();

/// The organizations that have one row, one after the other: an `external_id` may be given again once the organization
/// that had it is deleted (R6).
#[derive(Debug, Clone)]
struct Tenant {
    external_id: ExternalId,
    before: Before,
    /// All but the last are deleted.
    histories: Vec<History>,
}

/// Whether WorkOS knows an `external_id`.
#[derive(Debug, Clone)]
enum ExternalId {
    /// Never.
    None,
    /// From this event on: the derived one, which we wrote there (R14).
    WrittenBack { from: Index },
    /// From the start: the application's own.
    Own(OrganizationId),
}

/// The row that the application made before every event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Active,
    Disabled,
}

/// What happened to one organization, in order.
#[derive(Debug, Clone)]
struct History {
    workos_id: WorkosId,
    changes: Vec<Upsert>,
    /// WorkOS sends nothing about an organization after its deletion.
    deletion: Option<Deletion>,
}

#[derive(Debug, Clone)]
struct Upsert {
    ulid: Ulid,
    name: String,
    /// Any: the id is the order, the time only stands in for it (R7).
    updated_at: DateTime<Utc>,
}

#[derive(Debug, Clone)]
struct Deletion {
    ulid: Ulid,
    /// No two are deleted at the same time.
    number: u64,
    /// It carries the `external_id`.
    names_row: bool,
}

/// Histories, and their events as they are delivered.
#[derive(Debug, Clone)]
struct Case {
    tenants: Vec<Tenant>,
    deliveries: Vec<EventBuilder>,
}

impl Tenant {
    /// The organization id that the row has in the end.
    fn id(&self) -> OrganizationId {
        match &self.external_id {
            ExternalId::None | ExternalId::WrittenBack { .. } => {
                organization_id::derive(&NAMESPACE, &self.histories[0].workos_id)
            }
            ExternalId::Own(id) => id.clone(),
        }
    }

    /// The row before every event.
    fn row(&self) -> Option<Row> {
        let row = Row {
            name: "Local".to_owned(),
            organization: OrganizationRow {
                id: self.id(),
                workos_id: None,
                last_event_id: None,
                updated_at: None,
                disabled_at: self.disabled_at(),
                precision: RowPrecision::FULL,
            },
        };
        (self.before != Before::Nothing).then_some(row)
    }

    /// When the application disabled the row, if it did.
    fn disabled_at(&self) -> Option<DateTime<Utc>> {
        (self.before == Before::Disabled).then_some(DISABLED_BY_THE_APPLICATION)
    }

    /// Every event, once, in order.
    fn events(&self) -> Vec<EventBuilder> {
        self.histories
            .iter()
            .flat_map(|history| self.events_of(history))
            .collect()
    }

    fn events_of(&self, history: &History) -> Vec<EventBuilder> {
        let workos_id = history.workos_id.as_str();
        let named_from = match &self.external_id {
            ExternalId::None => usize::MAX,
            ExternalId::WrittenBack { from } => from.index(history.changes.len()),
            ExternalId::Own(_) => 0,
        };
        let upserts = history.changes.iter().enumerate().map(|(place, change)| {
            let event = match place {
                0 => created(0, workos_id, &change.name),
                _ => updated(0, workos_id, &change.name),
            };
            let event = event
                .id(&format!("event_{}", change.ulid))
                .data("updated_at", rfc3339(change.updated_at));
            if place >= named_from {
                event.external_id(self.id().as_str())
            } else {
                event
            }
        });
        let deletion = history.deletion.iter().map(|deletion| {
            let event = deleted(deletion.number, workos_id).id(&format!("event_{}", deletion.ulid));
            if deletion.names_row && named_from != usize::MAX {
                event.external_id(self.id().as_str())
            } else {
                event
            }
        });
        upserts.chain(deletion).collect()
    }
}

impl History {
    /// The newest event.
    fn last(&self) -> Ulid {
        let upserts = self.changes.iter().map(|change| change.ulid);
        let deletion = self.deletion.iter().map(|deletion| deletion.ulid);
        upserts.chain(deletion).max().unwrap()
    }

    fn deleted_at(&self) -> Option<DateTime<Utc>> {
        self.deletion.as_ref().map(|deletion| at(deletion.number))
    }
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        // Names that want each other's slugs.
        4 => prop::sample::select(vec!["Acme", "ACME!", "acme", "Acme 2", "Umbrella", "!!!"])
            .prop_map(str::to_owned),
        1 => "[^\0]{0,12}",
    ]
}

fn befores() -> impl Strategy<Value = Before> {
    prop::sample::select(vec![Before::Nothing, Before::Active, Before::Disabled])
}

/// Event ids that grow: from event to event the time goes on by so many milliseconds, or only the random part is
/// greater.
fn ulids(count: usize) -> impl Strategy<Value = std::vec::IntoIter<Ulid>> {
    (vec(0..2_u64, count), any::<u64>()).prop_map(|(pauses, random)| {
        let mut ms = u64::try_from(NOW.timestamp_millis()).unwrap();
        let mut random = u128::from(random);
        let ulids = pauses.into_iter().map(|pause| {
            ms += pause;
            random += 1;
            Ulid::from_parts(ms, random)
        });
        ulids.collect::<Vec<_>>().into_iter()
    })
}

/// Organizations as they are within one WorkOS environment: no two living ones have one `external_id`.
fn tenants(most: usize, events: usize) -> impl Strategy<Value = Vec<Tenant>> {
    const SUCCESSORS: usize = 3;
    let external_id = prop_oneof![
        1 => Just(ExternalId::None),
        1 => any::<Index>().prop_map(|from| ExternalId::WrittenBack { from }),
        3 => Just(ExternalId::Own(OrganizationId::new("own").unwrap())),
    ];
    let history = (
        vec((names(), 0..9_u64), 1..events),
        any::<bool>(),
        any::<bool>(),
    );
    let tenant = (external_id, befores(), vec(history, 1..=SUCCESSORS));
    let ulids = ulids(most * SUCCESSORS * events);
    (vec(tenant, 1..=most), ulids).prop_map(|(raw, mut ulids)| {
        let mut next = || ulids.next().unwrap();
        let mut number = 0;
        let tenants = raw.into_iter().enumerate();
        tenants
            .map(|(place, (mut external_id, before, mut histories))| {
                match &mut external_id {
                    ExternalId::Own(id) => {
                        *id = OrganizationId::new(format!("own-{place}")).unwrap();
                    }
                    // A derived id is of one organization.
                    ExternalId::None | ExternalId::WrittenBack { .. } => histories.truncate(1),
                }
                let last = histories.len() - 1;
                let histories = histories.into_iter().enumerate();
                let histories = histories.map(|(place, (changes, is_deleted, names_row))| {
                    number += 1;
                    let upsert = |(name, time)| Upsert {
                        ulid: next(),
                        name,
                        updated_at: at(time),
                    };
                    History {
                        workos_id: WorkosId::new(format!("org_{number}")).unwrap(),
                        changes: changes.into_iter().map(upsert).collect(),
                        deletion: (is_deleted || place < last).then(|| Deletion {
                            ulid: next(),
                            number,
                            names_row,
                        }),
                    }
                });
                Tenant {
                    histories: histories.collect(),
                    external_id,
                    before,
                }
            })
            .collect()
    })
}

/// Organizations of one `external_id` whose events mingle, as WorkOS doesn't have them; up to `deletions` of them are
/// deleted in the end.
fn rivals(deletions: impl Strategy<Value = usize>) -> impl Strategy<Value = Tenant> {
    const RIVALS: usize = 3;
    const EVENTS: usize = 12;
    let upserts = vec((names(), 0..9_u64, 0..RIVALS), 1..EVENTS - RIVALS);
    (upserts, befores(), deletions, any::<bool>(), ulids(EVENTS)).prop_map(
        |(upserts, before, deletions, names_row, mut ulids)| {
            let mut histories: Vec<_> = (0..RIVALS)
                .map(|number| History {
                    workos_id: WorkosId::new(format!("org_{number}")).unwrap(),
                    changes: Vec::new(),
                    deletion: None,
                })
                .collect();
            for (name, time, rival) in upserts {
                histories[rival].changes.push(Upsert {
                    ulid: ulids.next().unwrap(),
                    name,
                    updated_at: at(time),
                });
            }
            histories.retain(|history| !history.changes.is_empty());
            for (history, number) in histories.iter_mut().take(deletions).zip(1..) {
                history.deletion = Some(Deletion {
                    ulid: ulids.next().unwrap(),
                    number,
                    names_row,
                });
            }
            Tenant {
                external_id: ExternalId::Own(OrganizationId::new("shared").unwrap()),
                before,
                histories,
            }
        },
    )
}

/// The events of the histories in any order, some of them several times. A repetition may have another prefix,
/// so that it gets past the primary key of the inbox.
fn cases(tenants: impl Strategy<Value = Vec<Tenant>>) -> impl Strategy<Value = Case> {
    let repeated = vec((any::<Index>(), any::<bool>()), 0..8);
    (tenants, repeated)
        .prop_flat_map(|(tenants, repeated)| {
            let mut events: Vec<_> = tenants.iter().flat_map(Tenant::events).collect();
            let once = events.len();
            for (index, other_prefix) in repeated {
                let event = events[index.index(once)].clone();
                let id = event.event_id().replace("event_", "evt_");
                events.push(if other_prefix { event.id(&id) } else { event });
            }
            (Just(tenants), Just(events).prop_shuffle())
        })
        .prop_map(|(tenants, deliveries)| Case {
            tenants,
            deliveries,
        })
}

fn decode(event: &EventBuilder) -> OrganizationEvent {
    OrganizationEvent::decode(&Event::parse(event.body().as_bytes()).unwrap()).unwrap()
}

/// A row, as far as R12 goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    name: String,
    organization: OrganizationRow,
}

/// The two tables in memory. Does what a [`Decision`] says, as the service does in SQL, and refuses what the
/// database would refuse.
#[derive(Debug, Default)]
struct Memory {
    rows: Vec<Row>,
    cursors: HashMap<WorkosId, SyncCursor>,
}

impl Memory {
    fn of(case: &Case) -> Self {
        Self {
            rows: case.tenants.iter().filter_map(Tenant::row).collect(),
            cursors: HashMap::new(),
        }
    }

    fn find(&self, found: impl Fn(&OrganizationRow) -> bool) -> Option<OrganizationRow> {
        let mut rows = self.rows.iter().map(|row| &row.organization);
        rows.find(|row| found(row)).cloned()
    }

    fn row(&mut self, id: &OrganizationId) -> &mut Row {
        let mut rows = self.rows.iter_mut();
        rows.find(|row| row.organization.id == *id).unwrap()
    }

    fn deleted_at(&self, workos_id: &WorkosId) -> Option<DateTime<Utc>> {
        self.cursors.get(workos_id)?.deleted_at
    }

    fn apply(&mut self, event: &OrganizationEvent) -> Outcome {
        let candidate = candidate_id(event, &NAMESPACE);
        let workos_id = Some(&event.workos_id);
        let by_candidate_id = self.find(|row| row.id == candidate);
        let predecessor = by_candidate_id
            .as_ref()
            .and_then(|row| row.workos_id.as_ref());
        let found = Found {
            by_workos_id: self.find(|row| row.workos_id.as_ref() == workos_id),
            cursor: self.cursors.get(&event.workos_id).cloned(),
            predecessor_deleted_at: predecessor.and_then(|id| self.deleted_at(id)),
            by_candidate_id,
        };
        let outcome = match decide(&found, candidate, event) {
            Decision::Stale => return Outcome::Stale,
            Decision::Tombstone => Outcome::Tombstoned,
            Decision::Disable { id, deleted_at } => {
                let row = &mut self.row(&id).organization;
                assert!(
                    row.workos_id.is_none() || row.workos_id.as_ref() == workos_id,
                    "another's row"
                );
                row.workos_id = workos_id.cloned();
                let deleted_at = deleted_at.or(event.created_at).unwrap();
                row.disabled_at.get_or_insert(deleted_at);
                if row.admits(event) {
                    row.last_event_id = Some(event.id.clone());
                }
                Outcome::Disabled
            }
            Decision::Create { id, name } => {
                assert!(self.find(|row| row.id == id).is_none(), "{id} is taken");
                self.rows.push(Row {
                    name: name.to_owned(),
                    organization: OrganizationRow {
                        id,
                        workos_id: workos_id.cloned(),
                        last_event_id: Some(event.id.clone()),
                        updated_at: event.updated_at,
                        disabled_at: None,
                        precision: RowPrecision::FULL,
                    },
                });
                Outcome::Created
            }
            Decision::Update {
                id,
                name,
                link,
                not_followed: _,
            } => {
                let row = self.row(&id);
                name.clone_into(&mut row.name);
                let row = &mut row.organization;
                let (linked_to, outcome) = match &link {
                    Link::Kept => (workos_id, Outcome::Updated),
                    Link::Returned { .. } => panic!("no deletion is inferred here"),
                    Link::Linked => (None, Outcome::Linked),
                    Link::Relinked {
                        from,
                        clears_disabled_at,
                    } => {
                        if *clears_disabled_at {
                            row.disabled_at = None;
                        }
                        (Some(from), Outcome::Linked)
                    }
                };
                assert_eq!(row.workos_id.as_ref(), linked_to, "not as it was found");
                row.workos_id = workos_id.cloned();
                row.updated_at = event.updated_at;
                row.last_event_id = Some(event.id.clone());
                outcome
            }
        };
        self.advance_cursor(event);
        let linked = |row: &&Row| row.organization.workos_id.as_ref() == workos_id;
        assert!(self.rows.iter().filter(linked).count() <= 1, "two rows");
        outcome
    }

    /// R11: never backwards. A deletion is remembered for good.
    fn advance_cursor(&mut self, event: &OrganizationEvent) {
        let deletion = (event.change == Change::Delete)
            .then_some(event.created_at)
            .flatten();
        let newest = SyncCursor {
            last_event_id: event.id.clone(),
            last_event_updated_at: event.updated_at,
            deleted_at: deletion,
            deletion_is_inferred: false,
        };
        let cursor = self
            .cursors
            .entry(event.workos_id.clone())
            .or_insert_with(|| newest.clone());
        let deleted_at = cursor.deleted_at.or(deletion);
        if cursor.admits(event) {
            *cursor = newest;
        }
        cursor.deleted_at = deleted_at;
    }
}

/// Checks the rows against what the histories say, whatever was delivered when: of a tenant, the last organization's
/// last event is the row, if that organization lives. Otherwise the tenant is gone, and no row of its is active.
fn check(
    tenants: &[Tenant],
    rows: &[Row],
    cursors: &HashMap<WorkosId, SyncCursor>,
) -> Result<(), TestCaseError> {
    for tenant in tenants {
        let id = tenant.id();
        let row = rows.iter().find(|row| row.organization.id == id);
        let current = tenant.histories.last().unwrap();
        if current.deletion.is_some() {
            prop_assert!(tenant.row().is_none() || row.is_some(), "{} is lost", id);
            if let Some(row) = row {
                let mut possible = vec![tenant.disabled_at()];
                if possible == [None] {
                    possible = tenant.histories.iter().map(History::deleted_at).collect();
                }
                let disabled_at = row.organization.disabled_at;
                prop_assert!(possible.contains(&disabled_at), "{:?}", row);
                let linked_to = row.organization.workos_id.as_ref();
                let known = |history: &History| linked_to == Some(&history.workos_id);
                prop_assert!(tenant.histories.iter().any(known), "{:?}", row);
            }
        } else {
            let change = current.changes.last().unwrap();
            let last_event_id = row.and_then(|row| row.organization.last_event_id.clone());
            let ulid = last_event_id.as_ref().and_then(EventId::ulid);
            prop_assert_eq!(ulid, Some(change.ulid), "{:?}", row);
            let expected = Row {
                name: change.name.clone(),
                organization: OrganizationRow {
                    id,
                    workos_id: Some(current.workos_id.clone()),
                    updated_at: Some(change.updated_at),
                    // The prefix may be another's.
                    last_event_id,
                    disabled_at: tenant.disabled_at(),
                    precision: RowPrecision::FULL,
                },
            };
            prop_assert_eq!(row, Some(&expected));
        }
        for history in &tenant.histories {
            let cursor = cursors.get(&history.workos_id);
            let last = cursor.and_then(|cursor| cursor.last_event_id.ulid());
            prop_assert_eq!(last, Some(history.last()));
            let deleted_at = cursor.and_then(|cursor| cursor.deleted_at);
            prop_assert_eq!(deleted_at, history.deleted_at());
        }
    }
    // No row comes from nowhere.
    let ids: HashSet<_> = tenants.iter().map(Tenant::id).collect();
    let known = |row: &Row| ids.contains(&row.organization.id);
    prop_assert!(rows.iter().all(known), "{:?}", rows);
    Ok(())
}

/// R10, R12: a deleted organization has no active row.
fn check_the_dead(memory: &Memory) -> Result<(), TestCaseError> {
    for Row { organization, .. } in &memory.rows {
        let deleted_at = organization
            .workos_id
            .as_ref()
            .and_then(|id| memory.deleted_at(id));
        let is_active = organization.disabled_at.is_none();
        prop_assert!(!is_active || deleted_at.is_none(), "{:?}", organization);
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config::with_cases(2_000))]

    /// R6, R10, R11, R12
    #[test]
    fn every_order_of_delivery_comes_to_the_same(case in cases(tenants(3, 5))) {
        let mut memory = Memory::of(&case);
        for event in &case.deliveries {
            memory.apply(&decode(event));
            check_the_dead(&memory)?;
        }
        check(&case.tenants, &memory.rows, &memory.cursors)?;

        // In order, once each, nothing is stale.
        let mut memory = Memory::of(&case);
        for event in case.tenants.iter().flat_map(Tenant::events) {
            prop_assert_ne!(memory.apply(&decode(&event)), Outcome::Stale);
        }
        check(&case.tenants, &memory.rows, &memory.cursors)?;
    }

    /// R12: delivered a second time, in another order, everything is stale.
    #[test]
    fn what_was_applied_is_never_applied_again(case in cases(tenants(2, 5)), rotation: Index) {
        let mut memory = Memory::of(&case);
        for event in &case.deliveries {
            memory.apply(&decode(event));
        }
        let rows = memory.rows.clone();
        let mut again = case.deliveries;
        let middle = rotation.index(again.len());
        again.rotate_left(middle);
        for event in again.iter().rev() {
            prop_assert_eq!(memory.apply(&decode(event)), Outcome::Stale);
        }
        prop_assert_eq!(memory.rows, rows);
    }

    /// R6: of living organizations that share a row, the newest event decides.
    #[test]
    fn of_living_rivals_the_newest_event_has_the_row(
        case in cases(rivals(Just(0)).prop_map(|rivals| vec![rivals]))
    ) {
        let mut memory = Memory::of(&case);
        for event in &case.deliveries {
            memory.apply(&decode(event));
        }
        let histories = case.tenants[0].histories.iter();
        let newest = histories.max_by_key(|history| history.last()).unwrap();
        let [row] = &memory.rows[..] else {
            return Err(TestCaseError::fail(format!("{:?}", memory.rows)));
        };
        prop_assert_eq!(&row.name, &newest.changes.last().unwrap().name);
        prop_assert_eq!(row.organization.workos_id.as_ref(), Some(&newest.workos_id));
        prop_assert_eq!(row.organization.disabled_at, case.tenants[0].disabled_at());
    }

    /// R6, R10, R12: where rivals are deleted, the order decides who has the row in the end; but it never is the active
    /// row of a deleted one, and where all are deleted, it isn't active.
    #[test]
    fn of_a_shared_row_a_deleted_organization_is_never_the_active_owner(
        case in cases(rivals(1..=3_usize).prop_map(|rivals| vec![rivals]))
    ) {
        let mut memory = Memory::of(&case);
        for event in &case.deliveries {
            memory.apply(&decode(event));
            check_the_dead(&memory)?;
            prop_assert!(memory.rows.len() <= 1);
        }
        if case.tenants[0].histories.iter().all(|history| history.deletion.is_some()) {
            prop_assert!(memory.find(|row| row.disabled_at.is_none()).is_none(), "{:?}", memory.rows);
        } else {
            prop_assert!(!memory.rows.is_empty());
        }
    }
}

/// R6, R10: a deleted organization does not take a row from a living one, should WorkOS ever send something about
/// it after its deletion.
#[test]
fn the_dead_do_not_take_from_the_living() {
    let mut memory = Memory::default();
    for (event, outcome) in [
        (deleted(1, "org_dead"), Outcome::Tombstoned),
        (
            created(2, "org_living", "Living").external_id("shared"),
            Outcome::Created,
        ),
        (
            updated(3, "org_dead", "Dead").external_id("shared"),
            Outcome::Stale,
        ),
    ] {
        assert_eq!(memory.apply(&decode(&event)), outcome, "{event:?}");
    }
    let [row] = &memory.rows[..] else {
        panic!("{:?}", memory.rows)
    };
    assert!(row.name == "Living" && row.organization.disabled_at.is_none());
}

/// Ids with a ULID, not a few of them equal, behind any prefix, in either case.
fn ulid_event_ids() -> impl Strategy<Value = EventId> {
    let ulid = prop_oneof![0..4_u128, any::<u128>(), (u128::MAX - 3)..=u128::MAX];
    let prefix = prop::sample::select(vec!["event_", "evt_", "", "a_b_", "ÿ_"]);
    (prefix, ulid, any::<bool>()).prop_map(|(prefix, ulid, lower)| {
        let ulid = Ulid(ulid).to_string();
        let ulid = if lower { ulid.to_lowercase() } else { ulid };
        EventId::new(format!("{prefix}{ulid}")).unwrap()
    })
}

/// Ids without, such as those of old samples, and some that only look as if they had one.
fn odd_event_ids() -> impl Strategy<Value = EventId> {
    prop_oneof![
        "wh_[0-9]{1,3}",
        "[^\0]{1,9}",
        "event_[89A-Z][0-9A-HJKMNP-TV-Z]{25}",
        "event_[0-7][ILOU][0-9A-HJKMNP-TV-Z]{24}",
        "event_[0-7][0-9A-HJKMNP-TV-Z]{24}",
        "[0-7][0-9A-HJKMNP-TV-Z]{25}_",
    ]
    .prop_map(|id| EventId::new(id).unwrap())
    .prop_filter("has a ULID", |id| id.ulid().is_none())
}

fn times() -> impl Strategy<Value = Option<DateTime<Utc>>> {
    prop::option::of((0..3_u64).prop_map(at))
}

/// Says whether three ids are in a total order.
fn check_order(ids: [&EventId; 3]) -> Result<(), TestCaseError> {
    for a in ids {
        prop_assert_eq!(a.compare(a), Some(Ordering::Equal));
        for b in ids {
            prop_assert_eq!(a.compare(b), b.compare(a).map(Ordering::reverse));
            prop_assert!(a.compare(b).is_some());
            for c in ids {
                let (Some(ab), Some(bc), Some(ac)) = (a.compare(b), b.compare(c), a.compare(c))
                else {
                    return Err(TestCaseError::fail("not total"));
                };
                if ab == bc || bc.is_eq() {
                    prop_assert_eq!(ac, ab, "{} {} {}", a, b, c);
                }
            }
        }
    }
    Ok(())
}

proptest! {
    /// R7: ids that have a ULID are in a total order, and so are those that have none; across, there is none.
    #[test]
    fn event_ids_of_a_kind_are_in_a_total_order(
        [a, b, c] in prop::array::uniform3(ulid_event_ids()),
        [x, y, z] in prop::array::uniform3(odd_event_ids()),
    ) {
        check_order([&a, &b, &c])?;
        check_order([&x, &y, &z])?;
        prop_assert_eq!(a.compare(&x), None);
        prop_assert_eq!(x.compare(&a), None);
    }

    /// R7: of two events of a kind exactly one overtakes the other, whatever their times say; of an event and
    /// its repetition, neither. Across kinds, the times decide as if there were no cursor.
    #[test]
    fn the_guard_never_lets_both_pass(
        [a, b] in prop::array::uniform2(ulid_event_ids()),
        [x, y] in prop::array::uniform2(odd_event_ids()),
        [t, u] in prop::array::uniform2(times()),
    ) {
        let passes = |last: &EventId, at, event: &EventId, event_at| {
            should_process_event(Some(last), at, event, event_at)
        };
        for (a, b) in [(&a, &b), (&x, &y)] {
            prop_assert!(!passes(a, t, a, u));
            let same = a.compare(b) == Some(Ordering::Equal);
            let (after, before) = (passes(a, t, b, u), passes(b, u, a, t));
            prop_assert!(!(after && before));
            prop_assert_eq!(after || before, !same);
        }
        let (after, before) = (passes(&a, t, &x, u), passes(&x, u, &a, t));
        prop_assert_eq!(after, should_process_event(None, t, &x, u));
        if let (Some(t), Some(u)) = (t, u) {
            prop_assert_eq!((after, before), (u >= t, t >= u));
        } else {
            prop_assert!(after && before);
        }
    }
}

/// R24: the database sorts event ids as the guard compares them.
#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_sorts_as_the_guard_compares() {
    let app = TestApp::new().await;
    let mut runner = TestRunner::new(Config {
        cases: 16,
        failure_persistence: None,
        ..Config::default()
    });
    for odd in [false, true] {
        let ids = if odd {
            odd_event_ids().boxed()
        } else {
            ulid_event_ids().boxed()
        };
        let result = runner.run(&vec(ids, 2..80), |ids| {
            let ids: Vec<_> = ids.iter().map(EventId::as_str).collect();
            let rows: Vec<(String, String)> = block_in_place(|| {
                Handle::current().block_on(async {
                    app.execute("truncate webhook_events cascade").await;
                    sqlx::query(
                        "insert into webhook_events (event_id, event_type, payload)
                         select id, 'x', '{}' from unnest($1::text[]) as ids (id)
                         on conflict do nothing",
                    )
                    .bind(&ids)
                    .execute(&app.db.pool)
                    .await
                    .unwrap();
                    sqlx::query_as(
                        "select event_id, event_order from webhook_events order by event_order",
                    )
                    .fetch_all(&app.db.pool)
                    .await
                    .unwrap()
                })
            });
            for pair in rows.windows(2) {
                let [(a, a_order), (b, b_order)] = pair else {
                    unreachable!()
                };
                let [x, y] = [a, b].map(|id| EventId::new(id).unwrap());
                prop_assert_eq!(x.compare(&y), Some(a_order.cmp(b_order)), "{:?} {:?}", a, b);
            }
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// R12, R18, R22: the same on a real database: the events in any order through two inboxes at once, several
/// lanes each.
#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_come_to_what_the_histories_say() {
    let db = Arc::new(TestDatabase::new().await);
    let app = TestApp::on(Arc::clone(&db), Options::default());
    let replica = TestApp::on(db, Options::default());
    let mut runner = TestRunner::new(Config {
        cases: 12,
        max_shrink_iters: 64,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&cases(tenants(3, 5)), |case| {
        block_in_place(|| Handle::current().block_on(converges(&app, &replica, &case)))
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// The rows that the application made before every event.
async fn insert_rows(connection: &mut PgConnection, case: &Case) {
    for row in case.tenants.iter().filter_map(Tenant::row) {
        sqlx::query(
            "insert into organization_metadata (id, name, slug, disabled_at) values ($1, $2, $1, $3)",
        )
        .bind(row.organization.id.as_str())
        .bind(row.name)
        .bind(row.organization.disabled_at)
        .execute(&mut *connection)
        .await
        .unwrap();
    }
}

async fn rows(connection: &mut PgConnection) -> Vec<Row> {
    let rows: Vec<Organization> = sqlx::query_as(
        "select id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at
         from organization_metadata order by id",
    )
    .fetch_all(connection)
    .await
    .unwrap();
    rows.into_iter()
        .map(|row| Row {
            name: row.name,
            organization: OrganizationRow {
                id: OrganizationId::from_database(row.id),
                workos_id: row.workos_id.map(WorkosId::from_database),
                last_event_id: row.workos_last_event_id.map(EventId::from_database),
                updated_at: row.workos_updated_at,
                disabled_at: row.disabled_at,
                precision: RowPrecision::FULL,
            },
        })
        .collect()
}

async fn cursors(connection: &mut PgConnection) -> HashMap<WorkosId, SyncCursor> {
    type Cursor = (String, String, Option<DateTime<Utc>>, Option<DateTime<Utc>>);
    let cursors: Vec<Cursor> = sqlx::query_as(
        "select workos_id, last_event_id, last_event_updated_at, deleted_at from workos_organization_syncs",
    )
    .fetch_all(connection)
    .await
    .unwrap();
    cursors
        .into_iter()
        .map(
            |(workos_id, last_event_id, last_event_updated_at, deleted_at)| {
                let cursor = SyncCursor {
                    last_event_id: EventId::from_database(last_event_id),
                    last_event_updated_at,
                    deleted_at,
                    deletion_is_inferred: false,
                };
                (WorkosId::from_database(workos_id), cursor)
            },
        )
        .collect()
}

async fn converges(app: &TestApp, replica: &TestApp, case: &Case) -> Result<(), TestCaseError> {
    app.execute(
        "truncate organization_metadata, workos_organization_syncs, webhook_events, external_id_pushes cascade",
    )
    .await;
    let mut connection = app.db.connect().await;
    insert_rows(&mut connection, case).await;

    // By turns, each at its own pace.
    let record = async |app: &TestApp, turn: usize| {
        for event in case.deliveries.iter().skip(turn).step_by(2) {
            app.record(event).await;
        }
        app.settle().await;
    };
    tokio::join!(record(app, 0), record(replica, 1));
    tokio::join!(app.settle(), replica.settle());

    let unsettled: Vec<(String, String, i32, Option<String>)> = sqlx::query_as(
        "select event_id, status, attempts, last_error from webhook_events
         where status <> 'processed' or attempts <> 1",
    )
    .fetch_all(&app.db.pool)
    .await
    .unwrap();
    prop_assert!(unsettled.is_empty(), "{:?}", unsettled);

    for row in app.organizations().await {
        let of_row = |tenant: &&Tenant| tenant.id().as_str() == row.id;
        let Some(tenant) = case.tenants.iter().find(of_row) else {
            continue;
        };
        // R5: the application's own row keeps its slug; R4: any other got that of a name that it once had.
        let named = |history: &History, change: &Upsert| {
            let base = slug::base(&change.name, &history.workos_id, slug::MAX_LENGTH);
            slug::candidates(&base, &tenant.id(), slug::MAX_LENGTH)
                .take(5)
                .any(|slug| slug == row.slug)
        };
        let kept = if tenant.row().is_some() {
            row.slug == row.id
        } else {
            tenant
                .histories
                .iter()
                .any(|history| history.changes.iter().any(|change| named(history, change)))
        };
        prop_assert!(kept, "{:?}", row);
    }
    let rows = rows(&mut connection).await;
    let cursors = cursors(&mut connection).await;
    check(&case.tenants, &rows, &cursors)
}

/// R12, R24: a batch comes to what its events come to, each in a transaction of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_comes_to_what_its_events_come_to() {
    let db = TestDatabase::new().await;
    let statements = look_at(&db).statements();
    let mut runner = TestRunner::new(Config {
        cases: 48,
        max_shrink_iters: 256,
        failure_persistence: None,
        ..Config::default()
    });
    let rivals = rivals(0..=3_usize).prop_map(|rivals| vec![rivals]);
    let tenants = prop_oneof![tenants(3, 5), rivals];
    let result = runner.run(&cases(tenants), |case| {
        block_in_place(|| {
            Handle::current().block_on(async {
                let events: Vec<_> = case.deliveries.iter().map(decode).collect();
                let together = applied(&db, &statements, &case, &events, events.len()).await;
                let one_by_one = applied(&db, &statements, &case, &events, 1).await;
                prop_assert_eq!(together, one_by_one);
                Ok(())
            })
        })
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// What events come to, so many at a time; nothing of it stays.
async fn applied(
    db: &TestDatabase,
    statements: &Arc<Statements>,
    case: &Case,
    events: &[OrganizationEvent],
    at_a_time: usize,
) -> impl PartialEq + Debug + use<> {
    let mut tx = db.pool.begin().await.unwrap();
    insert_rows(&mut tx, case).await;
    let mut outcomes = Vec::new();
    for batch in events.chunks(at_a_time) {
        outcomes.extend(
            apply(&mut tx, statements, batch, &NAMESPACE, &[], NOW)
                .await
                .unwrap(),
        );
    }
    let pushes: Vec<(String, String)> = sqlx::query_as(
        "select workos_id, organization_id from external_id_pushes order by workos_id",
    )
    .fetch_all(&mut *tx)
    .await
    .unwrap();
    (
        outcomes,
        pushes,
        rows(&mut tx).await,
        cursors(&mut tx).await,
    )
}

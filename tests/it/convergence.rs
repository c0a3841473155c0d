//! R12: whatever the order and however often events are delivered, the same rows come of them. First on the
//! decision alone, with a store in memory, over many random histories; then a few on a real database, through
//! the inboxes of two replicas.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use chrono::{DateTime, Utc};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use ulid::Ulid;
use uuid::Uuid;
use workos_sync::event::{Change, Event, EventId, OrganizationEvent, OrganizationId, WorkosId};
use workos_sync::sync::Outcome;
use workos_sync::sync::decide::{
    Decision, Found, Link, OrganizationRow, SyncCursor, candidate_id, decide, should_process_event,
};
use workos_sync::sync::{organization_id, slug};

use crate::support::app::Options;
use crate::support::event::{at, rfc3339};
use crate::support::{EventBuilder, NOW, TestApp, TestDatabase, created, deleted, updated};

static NAMESPACE: LazyLock<Uuid> = LazyLock::new(organization_id::default_namespace);

/// Whether WorkOS knows an `external_id`.
#[derive(Debug, Clone)]
enum ExternalId {
    /// Never.
    None,
    /// From this event on: the derived one, which we wrote there (R14).
    WrittenBack { from: Index },
    /// From the start: the application's own; its row is there already, or not.
    Own { row_exists: bool },
    /// From the start: that of other organizations too (R6).
    Shared,
}

/// What happened to one organization, in order.
#[derive(Debug, Clone)]
struct History {
    workos_id: WorkosId,
    external_id: ExternalId,
    changes: Vec<Upsert>,
    /// WorkOS sends nothing about an organization after its deletion.
    deletion: Option<Ulid>,
}

#[derive(Debug, Clone)]
struct Upsert {
    ulid: Ulid,
    name: String,
    /// Any: the id is the order, the time only stands in for it (R7).
    updated_at: DateTime<Utc>,
}

/// Histories, and their events as they are delivered.
#[derive(Debug, Clone)]
struct Case {
    histories: Vec<History>,
    deliveries: Vec<EventBuilder>,
}

impl History {
    /// The organization id that the row has in the end.
    fn id(&self) -> OrganizationId {
        match self.external_id {
            ExternalId::None | ExternalId::WrittenBack { .. } => self.derived_id(),
            ExternalId::Own { .. } => {
                OrganizationId::new(format!("own-{}", self.workos_id)).unwrap()
            }
            ExternalId::Shared => OrganizationId::new("shared").unwrap(),
        }
    }

    fn derived_id(&self) -> OrganizationId {
        organization_id::derive(&NAMESPACE, &self.workos_id)
    }

    fn row_exists(&self) -> bool {
        matches!(self.external_id, ExternalId::Own { row_exists: true })
    }

    /// The newest event.
    fn last(&self) -> Ulid {
        let upserts = self.changes.iter().map(|change| change.ulid);
        upserts.chain(self.deletion).max().unwrap()
    }

    /// Every event, once, in order.
    fn events(&self) -> Vec<EventBuilder> {
        let workos_id = self.workos_id.as_str();
        let written_back = match &self.external_id {
            ExternalId::None => usize::MAX,
            ExternalId::WrittenBack { from } => from.index(self.changes.len()),
            ExternalId::Own { .. } | ExternalId::Shared => 0,
        };
        let upserts = self.changes.iter().enumerate().map(|(place, change)| {
            let event = match place {
                0 => created(0, workos_id, &change.name),
                _ => updated(0, workos_id, &change.name),
            };
            let event = event
                .id(&format!("event_{}", change.ulid))
                .data("updated_at", rfc3339(change.updated_at));
            if place >= written_back {
                event.external_id(self.id().as_str())
            } else {
                event
            }
        });
        let deletion = self
            .deletion
            .map(|ulid| deleted(0, workos_id).id(&format!("event_{ulid}")));
        upserts.chain(deletion).collect()
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

fn histories(
    organizations: usize,
    events: usize,
    external_ids: impl Strategy<Value = ExternalId>,
) -> impl Strategy<Value = Vec<History>> {
    let upsert = (names(), 0..9_u64);
    let history = (vec(upsert, 1..events), external_ids, any::<bool>());
    // From event to event the time goes on by so many milliseconds, or only the random part is greater.
    let pauses = vec(0..2_u64, organizations * events);
    (vec(history, 1..=organizations), pauses, any::<u64>()).prop_map(|(raw, pauses, random)| {
        let mut ms = u64::try_from(NOW.timestamp_millis()).unwrap();
        let mut random = u128::from(random);
        let mut ulids = pauses.into_iter().map(move |pause| {
            ms += pause;
            random += 1;
            Ulid::from_parts(ms, random)
        });
        let organizations = raw.into_iter().enumerate();
        organizations
            .map(|(n, (changes, external_id, is_deleted))| {
                let mut next = || ulids.next().unwrap();
                History {
                    workos_id: WorkosId::new(format!("org_{n}")).unwrap(),
                    external_id,
                    changes: changes
                        .into_iter()
                        .map(|(name, time)| Upsert {
                            ulid: next(),
                            name,
                            updated_at: at(time),
                        })
                        .collect(),
                    deletion: is_deleted.then(next),
                }
            })
            .collect()
    })
}

/// The events of the histories in any order, some of them several times. A repetition may have another prefix,
/// so that it gets past the primary key of the inbox.
fn cases(histories: impl Strategy<Value = Vec<History>>) -> impl Strategy<Value = Case> {
    let repeated = vec((any::<Index>(), any::<bool>()), 0..8);
    (histories, repeated)
        .prop_flat_map(|(histories, repeated)| {
            let mut events: Vec<_> = histories.iter().flat_map(History::events).collect();
            let once = events.len();
            for (index, other_prefix) in repeated {
                let event = events[index.index(once)].clone();
                let id = event.event_id().replace("event_", "evt_");
                events.push(if other_prefix { event.id(&id) } else { event });
            }
            (Just(histories), Just(events).prop_shuffle())
        })
        .prop_map(|(histories, deliveries)| Case {
            histories,
            deliveries,
        })
}

/// External ids as they are within one WorkOS environment: unique.
fn unique_external_ids() -> impl Strategy<Value = ExternalId> {
    prop_oneof![
        Just(ExternalId::None),
        any::<Index>().prop_map(|from| ExternalId::WrittenBack { from }),
        any::<bool>().prop_map(|row_exists| ExternalId::Own { row_exists }),
    ]
}

fn decode(event: &EventBuilder) -> OrganizationEvent {
    Event::parse(event.body().as_bytes())
        .unwrap()
        .organization()
        .unwrap()
}

/// A row, as far as R12 goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    id: OrganizationId,
    name: String,
    workos_id: Option<WorkosId>,
    updated_at: Option<DateTime<Utc>>,
    last_event_id: Option<EventId>,
    disabled: bool,
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
        let existing = case.histories.iter().filter(|history| history.row_exists());
        Self {
            rows: existing
                .map(|history| Row {
                    id: history.id(),
                    name: "Local".to_owned(),
                    workos_id: None,
                    updated_at: None,
                    last_event_id: None,
                    disabled: false,
                })
                .collect(),
            cursors: HashMap::new(),
        }
    }

    fn find(&self, found: impl Fn(&Row) -> bool) -> Option<OrganizationRow> {
        let row = self.rows.iter().find(|row| found(row))?;
        Some(OrganizationRow {
            id: row.id.clone(),
            workos_id: row.workos_id.clone(),
            last_event_id: row.last_event_id.clone(),
            updated_at: row.updated_at,
        })
    }

    fn row(&mut self, id: &OrganizationId) -> &mut Row {
        self.rows.iter_mut().find(|row| row.id == *id).unwrap()
    }

    fn apply(&mut self, event: &OrganizationEvent) -> Outcome {
        let candidate = candidate_id(event, &NAMESPACE);
        let workos_id = Some(&event.workos_id);
        let found = Found {
            by_workos_id: self.find(|row| row.workos_id.as_ref() == workos_id),
            by_candidate_id: self.find(|row| row.id == candidate),
            cursor: self.cursors.get(&event.workos_id).cloned(),
        };
        let outcome = match decide(&found, candidate, event) {
            Decision::Stale => return Outcome::Stale,
            Decision::Tombstone => Outcome::Tombstoned,
            Decision::Disable { id } => {
                let row = self.row(&id);
                assert_eq!(row.workos_id.as_ref(), workos_id, "another's row");
                row.disabled = true;
                row.last_event_id = Some(event.id.clone());
                Outcome::Disabled
            }
            Decision::Create { id, name, disabled } => {
                assert!(self.rows.iter().all(|row| row.id != id), "{id} is taken");
                self.rows.push(Row {
                    id,
                    name: name.to_owned(),
                    workos_id: workos_id.cloned(),
                    updated_at: event.updated_at,
                    last_event_id: Some(event.id.clone()),
                    disabled,
                });
                Outcome::Created
            }
            Decision::Update {
                id,
                name,
                link,
                disable,
                not_followed: _,
            } => {
                let row = self.row(&id);
                let (linked_to, outcome) = match &link {
                    Link::Kept => (workos_id, Outcome::Updated),
                    Link::Linked => (None, Outcome::Linked),
                    Link::Relinked { from } => (Some(from), Outcome::Linked),
                };
                assert_eq!(row.workos_id.as_ref(), linked_to, "not as it was found");
                name.clone_into(&mut row.name);
                row.workos_id = workos_id.cloned();
                row.updated_at = event.updated_at;
                row.last_event_id = Some(event.id.clone());
                row.disabled |= disable;
                outcome
            }
        };
        self.advance_cursor(event);
        let linked = |row: &&Row| row.workos_id.as_ref() == workos_id;
        assert!(self.rows.iter().filter(linked).count() <= 1, "two rows");
        outcome
    }

    /// R11: never backwards, nor on the spot.
    fn advance_cursor(&mut self, event: &OrganizationEvent) {
        let last = self.cursors.get(&event.workos_id);
        assert!(
            last.is_none_or(|last| event.id.compare(&last.last_event_id) == Some(Ordering::Greater)),
            "{} after {last:?}",
            event.id
        );
        let cursor = SyncCursor {
            last_event_id: event.id.clone(),
            last_event_updated_at: event.updated_at,
            deleted: event.change == Change::Delete || last.is_some_and(|last| last.deleted),
        };
        self.cursors.insert(event.workos_id.clone(), cursor);
    }
}

/// Checks the rows against what the histories say, whatever was delivered when: a living organization is what
/// its last event says, a deleted one is gone.
fn check(
    histories: &[History],
    rows: &[Row],
    cursors: &HashMap<WorkosId, SyncCursor>,
) -> Result<(), TestCaseError> {
    for history in histories {
        let linked = |row: &&Row| row.workos_id.as_ref() == Some(&history.workos_id);
        let row = rows.iter().find(linked);
        let last = history.last();
        if history.deletion.is_some() {
            prop_assert!(row.is_none_or(|row| row.disabled), "active: {:?}", row);
        } else {
            let change = history.changes.last().unwrap();
            let row = row.cloned();
            let ulid = row
                .as_ref()
                .and_then(|row| row.last_event_id.clone()?.ulid());
            prop_assert_eq!(ulid, Some(last), "{:?}", row);
            let expected = Row {
                id: history.id(),
                name: change.name.clone(),
                workos_id: Some(history.workos_id.clone()),
                updated_at: Some(change.updated_at),
                // The prefix may be another's.
                last_event_id: row.as_ref().and_then(|row| row.last_event_id.clone()),
                disabled: false,
            };
            prop_assert_eq!(row, Some(expected));
        }
        let cursor = cursors.get(&history.workos_id);
        prop_assert_eq!(
            cursor.and_then(|cursor| cursor.last_event_id.ulid()),
            Some(last)
        );
        prop_assert_eq!(
            cursor.map(|cursor| cursor.deleted),
            Some(history.deletion.is_some())
        );
    }
    // No row comes from nowhere.
    let ids: HashSet<_> = histories.iter().map(History::id).collect();
    prop_assert!(rows.iter().all(|row| ids.contains(&row.id)), "{:?}", rows);
    prop_assert!(rows.len() <= histories.len());
    Ok(())
}

proptest! {
    #![proptest_config(Config::with_cases(1_000))]

    /// R11, R12
    #[test]
    fn every_order_of_delivery_comes_to_the_same(
        case in cases(histories(5, 8, unique_external_ids()))
    ) {
        let mut memory = Memory::of(&case);
        for event in &case.deliveries {
            memory.apply(&decode(event));
        }
        check(&case.histories, &memory.rows, &memory.cursors)?;

        // In order, once each, nothing is stale.
        let mut memory = Memory::of(&case);
        for event in case.histories.iter().flat_map(History::events) {
            prop_assert_ne!(memory.apply(&decode(&event)), Outcome::Stale);
        }
        check(&case.histories, &memory.rows, &memory.cursors)?;
    }

    /// R12: delivered a second time, in another order, everything is stale.
    #[test]
    fn what_was_applied_is_never_applied_again(
        case in cases(histories(3, 6, unique_external_ids())),
        rotation: Index,
    ) {
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

    /// R6, R10, R12: where several organizations share an `external_id`, the order decides whose the row is; but
    /// never is it an active row of a deleted one, and no living one is without a row unless another has it.
    #[test]
    fn of_a_shared_row_a_deleted_organization_is_never_the_active_owner(
        case in cases(histories(3, 4, Just(ExternalId::Shared)))
    ) {
        let mut memory = Memory::default();
        for event in &case.deliveries {
            memory.apply(&decode(event));
            prop_assert!(memory.rows.len() <= 1);
        }
        for history in &case.histories {
            let owned = memory
                .rows
                .iter()
                .find(|row| row.workos_id.as_ref() == Some(&history.workos_id));
            if history.deletion.is_some() {
                prop_assert!(owned.is_none_or(|row| row.disabled), "{:?}", owned);
            } else {
                prop_assert!(!memory.rows.is_empty());
            }
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
    assert_eq!(memory.rows.len(), 1);
    assert!(memory.rows[0].name == "Living" && !memory.rows[0].disabled);
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
    let result = runner.run(&cases(histories(3, 6, unique_external_ids())), |case| {
        block_in_place(|| Handle::current().block_on(converges(&app, &replica, &case)))
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

async fn converges(app: &TestApp, replica: &TestApp, case: &Case) -> Result<(), TestCaseError> {
    app.execute(
        "truncate organization_metadata, workos_organization_syncs, webhook_events, external_id_pushes cascade",
    )
    .await;
    for history in case.histories.iter().filter(|history| history.row_exists()) {
        sqlx::query("insert into organization_metadata (id, name, slug) values ($1, 'Local', $1)")
            .bind(history.id().as_str())
            .execute(&app.db.pool)
            .await
            .unwrap();
    }

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

    let organizations = app.organizations().await;
    for row in &organizations {
        let history = case
            .histories
            .iter()
            .find(|history| history.id().as_str() == row.id);
        let Some(history) = history else { continue };
        // R5: the application's own row keeps its slug; R4: any other got that of a name that it once had.
        let named = |change: &Upsert| {
            let base = slug::base(&change.name, &history.workos_id);
            slug::candidates(&base, &history.id())
                .take(5)
                .any(|slug| slug == row.slug)
        };
        let kept = if history.row_exists() {
            row.slug == row.id
        } else {
            history.changes.iter().any(named)
        };
        prop_assert!(kept, "{:?}", row);
    }
    let rows: Vec<_> = organizations
        .into_iter()
        .map(|row| Row {
            id: OrganizationId::from_database(row.id),
            name: row.name,
            workos_id: row.workos_id.map(WorkosId::from_database),
            updated_at: row.workos_updated_at,
            last_event_id: row.workos_last_event_id.map(EventId::from_database),
            disabled: row.disabled_at.is_some(),
        })
        .collect();
    let cursors: Vec<(String, String, Option<DateTime<Utc>>, bool)> = sqlx::query_as(
        "select workos_id, last_event_id, last_event_updated_at, deleted_at is not null
         from workos_organization_syncs",
    )
    .fetch_all(&app.db.pool)
    .await
    .unwrap();
    let cursors = cursors
        .into_iter()
        .map(
            |(workos_id, last_event_id, last_event_updated_at, deleted)| {
                let cursor = SyncCursor {
                    last_event_id: EventId::from_database(last_event_id),
                    last_event_updated_at,
                    deleted,
                };
                (WorkosId::from_database(workos_id), cursor)
            },
        )
        .collect();
    check(&case.histories, &rows, &cursors)
}

//! R7, R12, R42, R44: snapshots between events. First on the decision alone, over many random histories; then through
//! the inbox.

use std::time::Duration;

use chrono::{DateTime, Utc};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;
use workos_sync::entities::organization::decide::{
    Decision, Found, Link, OrganizationRow, SyncCursor, candidate_id, decide,
};
use workos_sync::entities::organization::precision::RowPrecision;
use workos_sync::entities::organization::{Change, OrganizationEvent, organization_id};
use workos_sync::event::{Event, WorkosId};
use workos_sync::heal::snapshot::Shown;
use workos_sync::workos::Answered;

use crate::support::event::{event_id, rfc3339};
use crate::support::{TestApp, created, deleted, updated};

const ORG: &str = "org_1";

fn second(n: u64) -> DateTime<Utc> {
    crate::support::event::at(n)
}

fn shown(at: u64, took_ms: u64) -> Shown {
    Shown::of(Answered {
        date: Some(second(at)),
        took: Duration::from_millis(took_ms),
    })
    .unwrap()
}

fn snapshot(at: u64, took_ms: u64, name: &str, updated_at: DateTime<Utc>) -> String {
    let object = json!({
        "object": "organization",
        "id": ORG,
        "name": name,
        "external_id": null,
        "updated_at": rfc3339(updated_at),
    });
    let object = serde_json::value::to_raw_value(&object).unwrap();
    shown(at, took_ms).snapshot(&object).unwrap().body
}

fn inferred_deletion(at: u64) -> String {
    let id = WorkosId::new(ORG).unwrap();
    shown(at, 0).deletion(&id).body
}

/// One organization in memory, as the decision leaves it.
#[derive(Default)]
struct Memory {
    row: Option<(String, OrganizationRow)>,
    cursor: Option<SyncCursor>,
}

impl Memory {
    fn apply(&mut self, event: &OrganizationEvent) {
        let candidate = candidate_id(event, &organization_id::default_namespace());
        let found = Found {
            by_workos_id: self.row.as_ref().map(|(_, row)| row.clone()),
            cursor: self.cursor.clone(),
            ..Found::default()
        };
        let lifts = found
            .cursor
            .as_ref()
            .is_some_and(|cursor| cursor.deletion_lifted_by(event).is_some());
        match decide(&found, candidate, event) {
            Decision::Stale => return,
            Decision::Tombstone => {}
            Decision::Disable { deleted_at, .. } => {
                let (_, row) = self.row.as_mut().unwrap();
                row.disabled_at = row.disabled_at.or(deleted_at).or(event.created_at);
                if row.admits(event) {
                    row.last_event_id = Some(event.id.clone());
                }
            }
            Decision::Create { id, name } => {
                let row = OrganizationRow {
                    id,
                    workos_id: Some(event.workos_id.clone()),
                    last_event_id: Some(event.id.clone()),
                    updated_at: event.updated_at,
                    disabled_at: None,
                    precision: RowPrecision::FULL,
                };
                self.row = Some((name.to_owned(), row));
            }
            Decision::Update { name, link, .. } => {
                let (held, row) = self.row.as_mut().unwrap();
                name.clone_into(held);
                row.last_event_id = Some(event.id.clone());
                row.updated_at = event.updated_at;
                match link {
                    Link::Kept => {}
                    Link::Returned { clears_disabled_at } => {
                        assert!(clears_disabled_at);
                        row.disabled_at = None;
                    }
                    Link::Linked | Link::Relinked { .. } => panic!("{link:?}"),
                }
            }
        }
        self.advance(event, lifts);
    }

    fn advance(&mut self, event: &OrganizationEvent, lifts: bool) {
        let before = self.cursor.take().filter(|_| !lifts);
        let confirms = before
            .as_ref()
            .is_some_and(|before| before.deletion_confirmed_by(event));
        let mut cursor = match &before {
            Some(before) if !before.admits(event) => before.clone(),
            _ => SyncCursor {
                last_event_id: event.id.clone(),
                last_event_updated_at: event.updated_at,
                deleted_at: before.as_ref().and_then(|before| before.deleted_at),
                deletion_is_inferred: before.is_some_and(|before| before.deletion_is_inferred),
            },
        };
        if event.change == Change::Delete && cursor.deleted_at.is_none() {
            cursor.deleted_at = event.created_at;
            cursor.deletion_is_inferred = event.id.is_snapshot();
        } else if confirms {
            cursor.deletion_is_inferred = false;
        }
        self.cursor = Some(cursor);
    }

    /// The name of the active row.
    fn name(&self) -> Option<&str> {
        let (name, row) = self.row.as_ref()?;
        row.disabled_at.is_none().then_some(name)
    }
}

/// What is told of an organization, and when.
#[derive(Debug, Clone)]
enum Told {
    /// The change of this number, by an event that was made so many seconds after it.
    Event(usize, u64),
    /// A list showed it, ten seconds times this after the start, and the request took so many milliseconds.
    Snapshot(u64, u64),
}

#[derive(Debug, Clone)]
struct Case {
    /// When it changed, in tens of seconds.
    changes: Vec<u64>,
    is_deleted: bool,
    /// `reconcile` found it gone, rightly or not.
    found_gone: Option<u64>,
    told: Vec<Told>,
    order: Vec<Index>,
}

fn case() -> impl Strategy<Value = Case> {
    (
        prop::collection::btree_set(1_u64..60, 1..8),
        any::<bool>(),
        prop::option::weighted(0.4, 1_u64..70),
        vec(
            prop_oneof![
                (any::<Index>(), prop_oneof![Just(0), Just(6)])
                    .prop_map(|(index, late)| Told::Event(index.index(8), late)),
                (1_u64..70, 0_u64..2_000).prop_map(|(at, took)| Told::Snapshot(at, took)),
            ],
            1..12,
        ),
        vec(any::<Index>(), 1..24),
    )
        .prop_map(|(changes, is_deleted, found_gone, told, order)| Case {
            changes: changes.into_iter().collect(),
            is_deleted,
            found_gone,
            told,
            order,
        })
}

impl Case {
    /// What is delivered: the number of the change that it tells, when it tells it, and the body.
    fn deliveries(&self) -> Vec<(usize, u64, String)> {
        // Tens of seconds, and the state five seconds after, so that no two things are at one time.
        let changed = |number: usize| self.changes[number] * 10 + 5;
        let last = self.changes.len() - 1;
        let mut deliveries = Vec::new();
        for told in &self.told {
            match *told {
                Told::Event(number, late) => {
                    let number = std::cmp::min(number, last);
                    let n = changed(number) + late;
                    let name = format!("name {number}");
                    let event = if self.is_deleted && number == last {
                        deleted(n, ORG)
                    } else {
                        let changed_at = rfc3339(second(changed(number)));
                        updated(n, ORG, &name).data("updated_at", changed_at)
                    };
                    deliveries.push((number, n, event.body()));
                }
                Told::Snapshot(at, took) => {
                    let at = at * 10;
                    let known = self.changes.iter().filter(|&&change| change * 10 + 5 < at);
                    let Some(number) = known.count().checked_sub(1) else {
                        continue;
                    };
                    if !(self.is_deleted && number == last) {
                        let name = format!("name {number}");
                        let body = snapshot(at, took, &name, second(changed(number)));
                        deliveries.push((number, at, body));
                    }
                }
            }
        }
        deliveries
    }
}

proptest! {
    /// R12, R42: snapshots and events, lost, late and doubled, in any order: the row is the newest state that was told. An
    /// organization whose deletion was told is gone; one that was found to be gone is gone until something later is told.
    #[test]
    fn any_interleaving_ends_as_the_newest_state_that_was_told(case in case()) {
        let deliveries = case.deliveries();
        let mut bodies: Vec<_> = deliveries.iter().map(|(_, _, body)| body.clone()).collect();
        bodies.extend(case.found_gone.map(|at| inferred_deletion(at * 10)));
        prop_assume!(!bodies.is_empty());

        let mut memory = Memory::default();
        let repeated = case.order.iter().map(|index| index.get(&bodies).clone());
        // All of them are told in the end, whatever came twice before.
        let all: Vec<_> = repeated.chain(bodies.iter().cloned()).collect();
        for body in &all {
            let event = Event::parse(body.as_bytes()).unwrap();
            let event = OrganizationEvent::decode(&event).unwrap();
            memory.apply(&event);
        }

        let newest = deliveries.iter().map(|(number, _, _)| *number).max();
        let deletion_told = case.is_deleted && newest == Some(case.changes.len() - 1);
        let gone = case.found_gone.is_some_and(|at| {
            !deliveries.iter().any(|(_, told_at, _)| *told_at > at * 10)
        });
        let expected = newest.filter(|_| !deletion_told && !gone);
        let expected = expected.map(|number| format!("name {number}"));
        prop_assert_eq!(memory.name(), expected.as_deref());
    }
}

/// R7, R42: within the minute before a snapshot, `updated_at` tells which of the two is newer.
#[tokio::test]
async fn within_a_snapshots_minute_updated_at_decides() {
    for (updated_at, expected) in [(second(90), "told by the event"), (second(110), "shown")] {
        let app = TestApp::new().await;
        // The snapshot was read at 120 s: its id is of 60 s.
        let event = updated(100, ORG, "told by the event");
        let snapshot = snapshot(120, 0, "shown", updated_at);
        for body in [&snapshot, &event.body()] {
            app.record_body(body).await;
            app.settle().await;
        }
        assert_eq!(app.organization().await.name, expected);
    }
}

/// R10, R12: the deletion that an event tells is final, whatever snapshots show, of the time before or after.
#[tokio::test]
async fn a_late_snapshot_brings_nobody_back() {
    let app = TestApp::new().await;
    app.apply(&created(1, ORG, "Acme")).await;
    app.apply(&deleted(100, ORG)).await;
    for snapshot in [
        snapshot(99, 0, "Acme", second(1)),
        snapshot(300, 0, "Acme", second(200)),
    ] {
        app.record_body(&snapshot).await;
        app.settle().await;
    }
    let row = app.organization().await;
    assert_eq!(row.disabled_at, Some(second(100)));
    assert_eq!(row.workos_last_event_id, Some(event_id(100)));
}

/// R44: a deletion that `reconcile` found disables the row; what WorkOS made later lifts it, and says so.
#[tokio::test]
async fn a_deletion_that_was_found_is_lifted_by_what_comes_later() {
    let logs = crate::support::logs::Logs::capture();
    let app = TestApp::new().await;
    app.apply(&created(1, ORG, "Acme")).await;
    app.record_body(&inferred_deletion(200)).await;
    app.settle().await;
    assert_eq!(app.organization().await.disabled_at, Some(second(200)));

    assert_eq!(app.apply(&updated(150, ORG, "Before")).await, "stale");
    assert_eq!(app.organization().await.disabled_at, Some(second(200)));

    app.record_body(&snapshot(300, 0, "Acme", second(1))).await;
    app.settle().await;
    let row = app.organization().await;
    assert_eq!((row.disabled_at, &*row.name), (None, "Acme"));
    let warnings = logs.at("WARN");
    assert!(
        warnings.iter().any(|line| line.contains("is there")),
        "{warnings:?}"
    );

    // A row that the application had disabled stays so.
    app.execute("update organization_metadata set disabled_at = '2020-01-01T00:00:00Z'")
        .await;
    app.record_body(&inferred_deletion(500)).await;
    app.settle().await;
    app.record_body(&snapshot(600, 0, "Acme", second(1))).await;
    app.settle().await;
    assert!(app.organization().await.disabled_at.is_some());
}

/// R10, R44: what WorkOS tells makes a deletion that was found final: no event lifts it, however late it comes.
#[tokio::test]
async fn a_deletion_that_was_found_and_then_told_is_final() {
    for has_row in [true, false] {
        let app = TestApp::new().await;
        if has_row {
            app.apply(&created(1, ORG, "Acme")).await;
        }
        app.record_body(&inferred_deletion(200)).await;
        app.settle().await;
        let (told, again) = if has_row {
            ("disabled", "stale")
        } else {
            ("tombstoned", "stale")
        };
        assert_eq!(app.apply(&deleted(300, ORG)).await, told);
        assert_eq!(app.apply(&updated(250, ORG, "Late")).await, again);
        assert_eq!(app.apply(&updated(400, ORG, "Later")).await, again);
        let disabled = app
            .organizations()
            .await
            .into_iter()
            .map(|row| row.disabled_at);
        assert!(disabled.eq(has_row.then_some(Some(second(200)))));
    }
}

/// R44: a deletion that was found is no news once something newer was applied.
#[tokio::test]
async fn a_deletion_that_was_found_yields_to_newer_events() {
    let app = TestApp::new().await;
    app.apply(&created(1, ORG, "Acme")).await;
    app.apply(&updated(201, ORG, "Still here")).await;
    app.record_body(&inferred_deletion(200)).await;
    app.settle().await;
    assert_eq!(app.organization().await.disabled_at, None);
}

/// R7, R12, R44: what tells that WorkOS had an organization after it was found to be gone counts, whatever the order: a
/// snapshot of the state that an earlier event told, or an event that was sent late.
#[tokio::test]
async fn a_deletion_that_was_found_yields_to_what_was_told_later() {
    let state = rfc3339(second(195));
    let event = updated(195, ORG, "Acme").body();
    let found_gone = inferred_deletion(200);
    let seen = snapshot(210, 0, "Acme", second(195));
    let late = updated(205, ORG, "Acme").data("updated_at", state).body();
    for later in [seen, late] {
        for order in [
            [&event, &later, &found_gone],
            [&event, &found_gone, &later],
            [&later, &event, &found_gone],
            [&later, &found_gone, &event],
            [&found_gone, &event, &later],
            [&found_gone, &later, &event],
        ] {
            let app = TestApp::new().await;
            for body in order {
                app.record_body(body).await;
                app.settle().await;
            }
            let organization = app.organization().await;
            assert_eq!(organization.name, "Acme");
            assert_eq!(organization.disabled_at, None, "{order:?}");
        }
    }
}

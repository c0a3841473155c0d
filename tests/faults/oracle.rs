//! What must be there at the end: the history of each organization, applied once, in the order of event ids. Written
//! from the rules, and not with the code that it judges.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::Result;
use sqlx::PgPool;
use uuid::Uuid;
use workos_sync::event::EventId;

use crate::retry;
use crate::workos::{CONSTRAINT, Event, Giver, Kind, Organization};

#[derive(Debug, Clone, sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    slug: String,
    workos_id: Option<String>,
    workos_last_event_id: Option<String>,
    disabled: bool,
}

#[derive(Debug, Clone, sqlx::FromRow)]
struct InboxRow {
    event_id: String,
    status: String,
    outcome: Option<String>,
    last_error: Option<String>,
    payload: String,
}

#[derive(Debug, Clone, sqlx::FromRow)]
struct Cursor {
    workos_id: String,
    last_event_id: String,
    deleted: bool,
}

#[derive(Debug, Clone, sqlx::FromRow)]
struct Push {
    workos_id: String,
    status: String,
    organization_id: String,
}

/// What the database holds at the end.
#[derive(Debug)]
struct Found {
    rows: Vec<Row>,
    inbox: HashMap<String, InboxRow>,
    cursors: HashMap<String, Cursor>,
    pushes: HashMap<String, Push>,
    violations: Vec<String>,
}

impl Found {
    async fn look(pool: &PgPool) -> Result<Self> {
        retry(|| async {
            let rows = sqlx::query_as(
                "select id, name, slug, workos_id, workos_last_event_id, disabled_at is not null as disabled
                 from organization_metadata",
            )
            .fetch_all(pool)
            .await?;
            let inbox: Vec<InboxRow> = sqlx::query_as(
                "select event_id, status, outcome, last_error, payload::text
                 from workos_sync.webhook_events
                 where source not in ('backfill', 'reconcile')",
            )
            .fetch_all(pool)
            .await?;
            let cursors: Vec<Cursor> = sqlx::query_as(
                "select workos_id, last_event_id, deleted_at is not null as deleted
                 from workos_sync.workos_organization_syncs",
            )
            .fetch_all(pool)
            .await?;
            let pushes: Vec<Push> =
                sqlx::query_as("select workos_id, status, organization_id from workos_sync.external_id_pushes")
                    .fetch_all(pool)
                    .await?;
            let violations = sqlx::query_scalar("select what from violations")
                .fetch_all(pool)
                .await?;
            Ok(Self {
                rows,
                inbox: inbox.into_iter().map(|row| (row.event_id.clone(), row)).collect(),
                cursors: cursors.into_iter().map(|row| (row.workos_id.clone(), row)).collect(),
                pushes: pushes.into_iter().map(|row| (row.workos_id.clone(), row)).collect(),
                violations,
            })
        })
        .await
    }
}

/// The id of a row (R2, R3): the one that the application gave, else the `UUIDv5` of the WorkOS organization id.
fn organization_id(workos_id: &str, organization: &Organization) -> String {
    let derived = {
        let namespace = Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"speakeasy.com");
        Uuid::new_v5(&namespace, workos_id.as_bytes()).to_string()
    };
    match &organization.external_id {
        Some(given) if organization.giver == Giver::Application => given.clone(),
        _ => derived,
    }
}

/// Compares the database and WorkOS with the history; says what differs, with the history of each organization
/// that it is about.
pub(crate) async fn check(
    pool: &PgPool,
    history: &[Arc<Event>],
    organizations: &BTreeMap<String, Organization>,
    is_acknowledged: impl Fn(&str) -> bool,
) -> Result<Vec<String>> {
    let found = Found::look(pool).await?;
    let mut wrong = found.violations.clone();
    if found.inbox.len() != history.len() {
        wrong.push(format!(
            "{} events were emitted, {} are in the inbox",
            history.len(),
            found.inbox.len()
        ));
    }
    let mut by_organization = BTreeMap::<&str, Vec<&Event>>::new();
    for event in history {
        by_organization
            .entry(&event.workos_id)
            .or_default()
            .push(event);
    }
    // A signup may have failed after it made its row.
    let abandoned = |row: &&Row| {
        let customers = organizations.values();
        let mut ids = customers.filter_map(|customer| customer.external_id.as_ref());
        row.workos_id.is_none() && !ids.any(|id| *id == row.id)
    };
    let mut expected_rows = found.rows.iter().filter(abandoned).count();
    for (workos_id, events) in &mut by_organization {
        events.sort_by(|a, b| a.id.cmp(&b.id));
        let mut differences: Vec<_> = events
            .iter()
            .filter_map(|event| check_event(event, found.inbox.get(&event.id)))
            .collect();
        differences.extend(
            events
                .iter()
                .filter(|event| !is_acknowledged(&event.id))
                .map(|event| format!("{} was never acknowledged", event.id)),
        );
        let row = found
            .rows
            .iter()
            .find(|row| row.workos_id.as_deref() == Some(*workos_id));
        expected_rows += usize::from(row.is_some());
        differences.extend(check_organization(
            workos_id,
            &organizations[*workos_id],
            events,
            row,
            &found,
        ));
        if !differences.is_empty() {
            wrong.push(describe(workos_id, events, row, &found, &differences));
        }
    }
    if found.rows.len() != expected_rows {
        wrong.push(format!(
            "{} rows, {expected_rows} of them of an organization of this history, or of none",
            found.rows.len()
        ));
    }
    Ok(wrong)
}

/// Every event ends, in the way that its content deserves (R13, R26).
fn check_event(event: &Event, row: Option<&InboxRow>) -> Option<String> {
    let Some(row) = row else {
        return Some(format!("lost: {} is not in the inbox", event.id));
    };
    let error = row.last_error.as_deref().unwrap_or_default();
    let as_expected = match event.kind {
        Kind::Created | Kind::Updated | Kind::Deleted => row.status == "processed",
        Kind::Unhandled => row.status == "ignored",
        Kind::Nul => row.status == "dead" && error.contains("NUL"),
        Kind::Undecodable => row.status == "dead" && error.contains("data.name"),
        // Processed where a later event of the organization came before it, or together with it.
        Kind::Refused => {
            row.status == "processed" || (row.status == "dead" && error.contains(CONSTRAINT))
        }
    };
    if !as_expected {
        return Some(format!(
            "{} ({:?}) is {} {:?} {error}",
            event.id, event.kind, row.status, row.outcome
        ));
    }
    (row.payload != event.body).then(|| format!("{} has another body", event.id))
}

/// The last event wins (R12).
fn check_organization(
    workos_id: &str,
    organization: &Organization,
    events: &[&Event],
    row: Option<&Row>,
    found: &Found,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expect = |what: &str, as_expected: bool| {
        if !as_expected {
            wrong.push(what.to_owned());
        }
    };
    let applied =
        |event: &&&Event| matches!(event.kind, Kind::Created | Kind::Updated | Kind::Deleted);
    let last = events.iter().rfind(applied);
    let cursor = found.cursors.get(workos_id);
    let push = found.pushes.get(workos_id);
    let Some(last) = last else {
        expect("a row that no event made", row.is_none());
        expect("a cursor that no event moved", cursor.is_none());
        expect("an intention that no event had", push.is_none());
        return wrong;
    };
    let id = organization_id(workos_id, organization);
    // What the last event told, a backfill or a reconcile may have told later (R7); that it is deleted, a reconcile may have
    // found before.
    let told_at = |id: &str| EventId::new(id).ok().and_then(|id| id.told_at());
    let is_last = |id: &str| {
        let is_as_new = last.kind == Kind::Deleted || told_at(id) > told_at(&last.id);
        id == last.id || (id.starts_with("snapshot_") && is_as_new)
    };
    expect(
        &format!("the cursor is {cursor:?}, not {}", last.id),
        cursor.is_some_and(|cursor| is_last(&cursor.last_event_id)),
    );
    if let Some(row) = row {
        expect(&format!("the id is not {id}"), row.id == id);
        expect(
            &format!("the row's cursor is not {}", last.id),
            row.workos_last_event_id.as_deref().is_some_and(is_last),
        );
        let slug = row.slug.as_bytes();
        expect(
            &format!("{} is no slug", row.slug),
            (2..=63).contains(&slug.len())
                && slug
                    .iter()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')),
        );
    }
    if last.kind == Kind::Deleted {
        expect(
            "it is deleted, and its row is active",
            row.is_none_or(|row| row.disabled),
        );
        // Also where it was never linked to it.
        let own = found.rows.iter().find(|row| row.id == id);
        expect(
            &format!("it is deleted, and the row {id} is active"),
            organization.successor.is_some() || own.is_none_or(|row| row.disabled),
        );
        expect(
            "its deletion isn't remembered",
            cursor.is_some_and(|cursor| cursor.deleted),
        );
        // Whether it was written before WorkOS had deleted it is a matter of time.
        expect(
            &format!("the intention is {push:?}"),
            push.is_none_or(|push| push.status != "pending"),
        );
        return wrong;
    }
    match row {
        None => expect("lost: no row", false),
        Some(row) => {
            expect(
                &format!("the name is not {:?}", last.name),
                row.name == last.name,
            );
            expect("it isn't deleted, and its row is disabled", !row.disabled);
        }
    }
    let held = organization.external_id.as_ref();
    let intention = push.map(|push| (push.status.as_str(), &push.organization_id));
    let as_expected = match organization.giver {
        Giver::Application => intention.is_none(),
        // Lost with a database, it may have come back in an event that came before the one without it.
        Giver::Nobody if organization.was_lost && intention.is_none() => held == Some(&id),
        Giver::Nobody => intention == Some(("done", &id)) && held == Some(&id),
        Giver::Stranger => {
            intention == Some(("conflict", &id))
                && held.is_some_and(|held| held.starts_with("stranger-"))
        }
    };
    expect(
        &format!("the intention is {push:?}, and WorkOS holds {held:?}"),
        as_expected,
    );
    wrong
}

fn describe(
    workos_id: &str,
    events: &[&Event],
    row: Option<&Row>,
    found: &Found,
    differences: &[String],
) -> String {
    let mut text = format!("{workos_id}:\n");
    for difference in differences {
        let _ = writeln!(text, "  {difference}");
    }
    let _ = writeln!(text, "  found: {row:?}");
    let _ = writeln!(
        text,
        "  {:?} {:?}",
        found.cursors.get(workos_id),
        found.pushes.get(workos_id)
    );
    let skipped = events.len().saturating_sub(30);
    let _ = writeln!(text, "  its history, without the first {skipped}:");
    for event in &events[skipped..] {
        let standing = found
            .inbox
            .get(&event.id)
            .map(|row| (&row.status, &row.outcome, &row.last_error));
        let _ = writeln!(
            text,
            "    {} {:?} {:?} external_id {:?}: {standing:?}",
            event.id, event.kind, event.name, event.external_id
        );
    }
    text
}

//! What an entity beside organizations would be, on a membership, which production doesn't know: decoding, a fold and two
//! statements, made of the envelope, the fields and the guard that organizations have too.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use sqlx::PgConnection;
use workos_sync::entities::Outcome;
use workos_sync::entities::guard::should_process_event;
use workos_sync::event::{DecodeError, Event, EventId, WorkosId, field};

use crate::support::TestDatabase;
use crate::support::event::{at, event_id, rfc3339};

/// A user's membership of an organization, as an event tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Membership {
    organization_id: WorkosId,
    user_id: WorkosId,
}

/// The newest event of a membership: the whole of it, or nothing once it is deleted. So the newest event is the row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    last_event_id: EventId,
    updated_at: Option<DateTime<Utc>>,
    membership: Option<Membership>,
}

/// Rows by their key, `data.id`, in the order in which concurrent batches lock them.
type Rows = BTreeMap<String, Row>;

fn decode(event: &Event<'_>) -> Result<(String, Row), DecodeError> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(borrow)]
        id: Option<&'a RawValue>,
        #[serde(borrow)]
        organization_id: Option<&'a RawValue>,
        #[serde(borrow)]
        user_id: Option<&'a RawValue>,
        #[serde(borrow)]
        updated_at: Option<&'a RawValue>,
    }
    let raw: Raw<'_> = event.data()?;
    let id =
        |field, raw| field::id(field, raw, WorkosId::new)?.ok_or(DecodeError::Missing { field });
    let key = id("data.id", raw.id)?;
    let membership = match &*event.event_type {
        "organization_membership.deleted" => None,
        _ => Some(Membership {
            organization_id: id("data.organization_id", raw.organization_id)?,
            user_id: id("data.user_id", raw.user_id)?,
        }),
    };
    let row = Row {
        last_event_id: event.id.clone(),
        updated_at: raw
            .updated_at
            .and_then(field::timestamp)
            .or(event.created_at),
        membership,
    };
    Ok((key.to_string(), row))
}

/// What each event comes to; the rows are what the newest that the guard lets in leaves. No I/O.
fn fold(rows: &mut Rows, events: Vec<(String, Row)>) -> Vec<Outcome> {
    let apply = |(key, event): (String, Row)| {
        let before = rows.get(&key);
        let is_newer = before.is_none_or(|row| {
            let last = Some(&row.last_event_id);
            should_process_event(last, row.updated_at, &event.last_event_id, event.updated_at)
        });
        let outcome = match (before, &event.membership) {
            _ if !is_newer => return Outcome::Stale,
            (None, Some(_)) => Outcome::Created,
            (Some(_), Some(_)) => Outcome::Updated,
            (Some(_), None) => Outcome::Disabled,
            (None, None) => Outcome::Tombstoned,
        };
        rows.insert(key, event);
        outcome
    };
    events.into_iter().map(apply).collect()
}

async fn apply(tx: &mut PgConnection, bodies: &[String]) -> Vec<Outcome> {
    let events: Vec<_> = bodies.iter().map(|body| read(body)).collect();
    let keys: Vec<_> = events.iter().map(|(key, _)| key.clone()).collect();
    let mut rows = fetch(tx, &keys).await;
    let outcomes = fold(&mut rows, events);
    let column = |value: fn(&Row) -> Option<&str>| -> Vec<Option<&str>> {
        rows.values().map(value).collect()
    };
    sqlx::query(
        "insert into memberships
         select * from unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::text[])
         on conflict (id) do update
             set last_event_id = excluded.last_event_id, workos_updated_at = excluded.workos_updated_at,
                 organization_id = excluded.organization_id, user_id = excluded.user_id",
    )
    .bind(rows.keys().collect::<Vec<_>>())
    .bind(column(|row| Some(row.last_event_id.as_str())))
    .bind(rows.values().map(|row| row.updated_at).collect::<Vec<_>>())
    .bind(column(|row| Some(row.membership.as_ref()?.organization_id.as_str())))
    .bind(column(|row| Some(row.membership.as_ref()?.user_id.as_str())))
    .execute(tx)
    .await
    .unwrap();
    outcomes
}

async fn fetch(tx: &mut PgConnection, keys: &[String]) -> Rows {
    type Found = (
        String,
        String,
        Option<DateTime<Utc>>,
        Option<String>,
        Option<String>,
    );
    let found: Vec<Found> =
        sqlx::query_as("select * from memberships where id = any ($1) order by id for update")
            .bind(keys)
            .fetch_all(tx)
            .await
            .unwrap();
    let row = |(key, last_event_id, updated_at, organization_id, user_id): Found| {
        let membership = organization_id.zip(user_id);
        let membership = membership.map(|(organization_id, user_id)| Membership {
            organization_id: WorkosId::from_database(organization_id),
            user_id: WorkosId::from_database(user_id),
        });
        let last_event_id = EventId::from_database(last_event_id);
        (
            key,
            Row {
                last_event_id,
                updated_at,
                membership,
            },
        )
    };
    found.into_iter().map(row).collect()
}

/// An event of a membership; the number orders them, and is the user.
fn body(n: u64, kind: &str, key: &str) -> String {
    json!({
        "id": event_id(n),
        "event": format!("organization_membership.{kind}"),
        "created_at": rfc3339(at(n)),
        "data": {"id": key, "organization_id": "org_1", "user_id": format!("user_{n}"), "updated_at": rfc3339(at(n))},
    })
    .to_string()
}

fn read(body: &str) -> (String, Row) {
    decode(&Event::parse(body.as_bytes()).unwrap()).unwrap()
}

/// R18: the envelope puts it into the lane of its organization; R26: what can't be decoded names the field.
#[test]
fn the_envelope_and_the_fields_are_enough_to_decode() {
    let created = body(1, "created", "om_1");
    let event = Event::parse(created.as_bytes()).unwrap();
    assert_eq!(event.workos_id, Some(WorkosId::new("org_1").unwrap()));
    assert_eq!(event.subject().as_deref(), Some("om_1"));
    let (key, row) = decode(&event).unwrap();
    assert_eq!((&*key, row.updated_at), ("om_1", Some(at(1))));
    let broken = created.replace("\"user_1\"", "7");
    let error = decode(&Event::parse(broken.as_bytes()).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "`data.user_id` is not a valid string");
}

/// R25: in the database, batch by batch, as each event in turn.
#[tokio::test]
async fn two_statements_apply_a_batch() {
    let db = TestDatabase::empty().await;
    let mut connection = db.pool.acquire().await.unwrap();
    sqlx::query(
        "create table memberships (id text primary key, last_event_id text not null, workos_updated_at timestamptz,
                                   organization_id text, user_id text)",
    )
    .execute(&mut *connection)
    .await
    .unwrap();
    let first = [
        body(2, "updated", "om_1"),
        body(1, "created", "om_1"),
        body(5, "deleted", "om_2"),
    ];
    let outcomes = apply(&mut connection, &first).await;
    assert_eq!(
        outcomes,
        [Outcome::Created, Outcome::Stale, Outcome::Tombstoned]
    );
    let second = [
        body(4, "created", "om_2"),
        body(6, "deleted", "om_1"),
        body(7, "created", "om_1"),
    ];
    let outcomes = apply(&mut connection, &second).await;
    assert_eq!(
        outcomes,
        [Outcome::Stale, Outcome::Disabled, Outcome::Updated]
    );
    let rows = fetch(&mut connection, &["om_1".to_owned(), "om_2".to_owned()]).await;
    assert_eq!(rows["om_1"], read(&body(7, "created", "om_1")).1);
    assert_eq!(rows["om_2"], read(&body(5, "deleted", "om_2")).1);
}

proptest! {
    /// R12: order, repetition and the cut into batches make no difference: the newest event of each key is its row.
    #[test]
    fn any_order_ends_as_the_newest_event(
        kinds in vec((0_u64..3, any::<bool>()), 1..12),
        order in vec(any::<Index>(), 0..24),
        cut in 1_usize..6,
    ) {
        let all: Vec<_> = kinds
            .iter()
            .zip(1..)
            .map(|((key, is_deleted), n)| {
                let kind = if *is_deleted { "deleted" } else { "updated" };
                read(&body(n, kind, &format!("om_{key}")))
            })
            .collect();
        let repeated = order.iter().map(|index| index.get(&all).clone());
        let delivered: Vec<_> = repeated.chain(all.iter().rev().cloned()).collect();
        let mut rows = Rows::new();
        for batch in delivered.chunks(cut) {
            fold(&mut rows, batch.to_vec());
        }
        // The last of each key is the newest.
        prop_assert_eq!(rows, all.into_iter().collect::<Rows>());
    }
}

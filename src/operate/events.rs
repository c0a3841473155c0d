//! Looks at events (R47).

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, PgPool, Postgres, QueryBuilder, query_as, query_scalar};

use super::records::Action;
use super::select::{Part, Place, parts, push_before, push_conditions, push_part, push_period};
use super::{Filter, Listed, OperateError, Page};
use crate::postgres;

/// An event, as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct EventSummary {
    /// Its id.
    pub event_id: String,
    /// Where it stands.
    pub status: String,
    /// How it was applied, if it was.
    pub outcome: Option<String>,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The WorkOS organization that it is about.
    pub organization_id: Option<String>,
    /// Where it came from.
    pub source: String,
    /// How often it was tried.
    pub attempts: i32,
    /// What failed last, in short.
    pub cause: Option<String>,
    /// What failed last.
    pub last_error: Option<String>,
    /// When it was received.
    pub received_at: DateTime<Utc>,
    /// When it was applied, ignored or discarded.
    pub processed_at: Option<DateTime<Utc>>,
    /// When it is tried again.
    pub next_attempt_at: Option<DateTime<Utc>>,
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// Its number, from 1.
    pub attempt: i32,
    /// When it was.
    pub at: DateTime<Utc>,
    /// What failed, in short.
    pub cause: String,
    /// What failed.
    pub error: String,
}

/// All that is known of an event, but its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub summary: EventSummary,
    /// Of the attempts, those that a rule of the application refused, since the event was new or last retried.
    pub refusals: i32,
    /// Its queue: events of one lane are applied one after the other.
    pub lane: String,
    /// What it sorts by in its lane.
    pub event_order: String,
    /// When a delivery brought it, if it was stored from elsewhere before.
    pub delivered_at: Option<DateTime<Utc>>,
    /// An operator had it decided again.
    pub replayed: bool,
    /// Of a stale event: the cursor and the time that refused it.
    pub compared: Option<serde_json::Value>,
    /// How long its body is, in bytes.
    pub payload_bytes: i32,
    /// The last action of an operator that changed it.
    pub action: Option<Action>,
    /// Its failed attempts: the first ten and the last ten.
    pub failures: Vec<Attempt>,
}

/// Events that fail of one cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CauseSummary {
    /// The cause; none for events that somebody made dead by hand.
    pub cause: Option<String>,
    /// How many will be tried again.
    pub failed: i64,
    /// How many are dead letters.
    pub dead: i64,
    /// When the first of them was received.
    pub first_at: DateTime<Utc>,
    /// When the last of them was received.
    pub last_at: DateTime<Utc>,
    /// The last of them.
    pub example: String,
    /// Its error.
    pub example_error: Option<String>,
}

/// The columns of an [`EventSummary`]. Of an event that is to be decided again, the outcome is that of the last time.
const SUMMARY: &str = "event_id, status, case status when 'processed' then outcome end as outcome, event_type, \
     organization_id, source, attempts, cause, last_error, received_at, processed_at, next_attempt_at";

/// How many events of a part are looked at for one page of a list. It takes some 20 ms; whoever looks for something rare
/// goes on from there.
const LOOKED_AT: i64 = 10_000;

/// How many pending events a list looks at. No index has them in the order that they were received in: each pays for every
/// index that it is in, and is in this state for milliseconds.
pub const PENDING_LOOKED_AT: i64 = 100_000;

/// Lists events, the newest received first. A page may have fewer events than were asked for, or none, where
/// what the filter selects is rare: `next` says where to go on, and `searched_to` how far back this page has looked.
///
/// # Errors
/// [`OperateError::NoSuchEvent`] if it is to go on behind an event that isn't there; or the database doesn't answer.
pub async fn list(pool: &PgPool, filter: &Filter, page: &Page) -> Result<Listed, OperateError> {
    postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        list_on(connection, filter, page).await
    })
    .await
}

/// An event that was looked at.
#[derive(FromRow)]
struct LookedAt {
    #[sqlx(flatten)]
    summary: EventSummary,
    /// The filter selects it.
    is_selected: bool,
    /// It is the last of its part that was looked at, and there may be more.
    is_last: bool,
}

pub(super) async fn list_on(
    connection: &mut PgConnection,
    filter: &Filter,
    page: &Page,
) -> Result<Listed, OperateError> {
    let after = match &page.after {
        Some(event_id) => Some(place(connection, event_id).await?),
        None => None,
    };
    let statuses = filter.statuses();
    let parts = parts(filter, &statuses);
    let pending_left_out =
        parts.contains(&Part::Pending) && has_too_many_pending(connection, filter).await?;
    let mut query = QueryBuilder::<Postgres>::new("select * from (");
    for (n, part) in parts.into_iter().enumerate() {
        query.push(if n == 0 { "(" } else { " union all (" });
        push_looked_at(&mut query, filter, part, after.as_ref());
        query.push(" order by received_at desc, event_id desc limit ");
        // One more shows whether there are more.
        query.push_bind(page.limit + 1).push(")");
    }
    query.push(") as found order by received_at desc, event_id desc limit ");
    query.push_bind(page.limit + 1);
    let rows: Vec<LookedAt> = query.build_query_as().fetch_all(connection).await?;

    let mut listed = Listed {
        pending_left_out,
        ..Listed::default()
    };
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    for row in rows {
        if listed.items.len() == limit {
            listed.next = listed.items.last().map(|last| last.event_id.clone());
            break;
        }
        if row.is_last {
            listed.next = Some(row.summary.event_id.clone());
            listed.searched_to = Some(row.summary.received_at);
        }
        if row.is_selected {
            listed.items.push(row.summary);
        }
        // What the other part has further back comes with the next page.
        if row.is_last {
            break;
        }
    }
    Ok(listed)
}

/// Adds the events of a part that are shown, and the last one looked at.
fn push_looked_at(
    query: &mut QueryBuilder<Postgres>,
    filter: &Filter,
    part: Part,
    after: Option<&Place>,
) {
    query.push(format!("select * from (select {SUMMARY}, coalesce(true"));
    push_conditions(query, filter);
    query.push(", false) as is_selected, ");
    if part == Part::Pending {
        query.push("false as is_last from workos_sync.webhook_events");
        push_part(query, filter, part);
        query.push(format!(
            " limit {PENDING_LOOKED_AT}) as looked_at where is_selected"
        ));
        if let Some(place) = after {
            push_before(query, place);
        }
        return;
    }
    query.push(format!(
        "row_number() over (order by received_at desc, event_id desc) = {LOOKED_AT} as is_last
         from workos_sync.webhook_events"
    ));
    push_part(query, filter, part);
    push_period(query, filter);
    if let Some(place) = after {
        push_before(query, place);
    }
    query.push(format!(
        " order by received_at desc, event_id desc limit {LOOKED_AT}) as looked_at where is_selected or is_last"
    ));
}

/// Says whether more are pending than a list looks at.
async fn has_too_many_pending(
    connection: &mut PgConnection,
    filter: &Filter,
) -> Result<bool, sqlx::Error> {
    let mut query =
        QueryBuilder::<Postgres>::new("select exists (select from workos_sync.webhook_events");
    push_part(&mut query, filter, Part::Pending);
    query.push(format!(" offset {PENDING_LOOKED_AT})"));
    query.build_query_scalar().fetch_one(connection).await
}

async fn place(connection: &mut PgConnection, event_id: &str) -> Result<Place, OperateError> {
    let place = query_as!(
        Place,
        "select event_id, received_at, lane, event_order from workos_sync.webhook_events where event_id = $1",
        event_id,
    )
    .fetch_optional(connection)
    .await?;
    place.ok_or_else(|| OperateError::NoSuchEvent {
        event_id: event_id.to_owned(),
    })
}

/// All that is known of an event, but its body; none if it isn't there.
///
/// # Errors
/// The database doesn't answer.
pub async fn show(pool: &PgPool, event_id: &str) -> Result<Option<EventDetail>, OperateError> {
    postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        show_on(connection, event_id)
            .await
            .map_err(OperateError::from)
    })
    .await
}

async fn show_on(
    connection: &mut PgConnection,
    event_id: &str,
) -> Result<Option<EventDetail>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select event.event_id, status, outcome, event_type, organization_id, source, attempts, cause, last_error,
               received_at, processed_at, next_attempt_at, refusals, lane, event_order, delivered_at, replayed,
               compared as "compared: Json<serde_json::Value>",
               octet_length(payload::text) as "payload_bytes!",
               action.action_id as "action_id?", action.at as "at?", action.actor as "actor?",
               action.action as "action?", action.filter as "filter?: Json<serde_json::Value>", action.count,
               action.reason
        from workos_sync.webhook_events as event
                 left join workos_sync.operator_actions as action on action.action_id = event.action_id
        where event.event_id = $1
        "#,
        event_id,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let failures = query_as!(
        Attempt,
        "select attempt, at, cause, error from workos_sync.event_attempts where event_id = $1 order by attempt",
        event_id,
    )
    .fetch_all(connection)
    .await?;
    let action = row.action_id.zip(row.at).zip(row.actor).zip(row.action);
    Ok(Some(EventDetail {
        summary: EventSummary {
            event_id: row.event_id,
            status: row.status,
            outcome: row.outcome,
            event_type: row.event_type,
            organization_id: row.organization_id,
            source: row.source,
            attempts: row.attempts,
            cause: row.cause,
            last_error: row.last_error,
            received_at: row.received_at,
            processed_at: row.processed_at,
            next_attempt_at: row.next_attempt_at,
        },
        refusals: row.refusals,
        lane: row.lane,
        event_order: row.event_order,
        delivered_at: row.delivered_at,
        replayed: row.replayed,
        compared: row.compared.map(|Json(compared)| compared),
        payload_bytes: row.payload_bytes,
        action: action.map(|(((action_id, at), actor), action)| Action {
            action_id,
            at,
            actor,
            action,
            filter: row.filter.map(|Json(filter)| filter),
            count: row.count,
            reason: row.reason,
        }),
        failures,
    }))
}

/// The body of an event, as it was received; none if there is no such event.
///
/// # Errors
/// The database doesn't answer.
pub async fn payload(pool: &PgPool, event_id: &str) -> Result<Option<String>, OperateError> {
    let payload = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        query_scalar!(
            r#"select payload::text as "payload!" from workos_sync.webhook_events where event_id = $1"#,
            event_id,
        )
        .fetch_optional(connection)
        .await
    });
    Ok(payload.await?)
}

/// What fails, the most frequent first: failed events and dead letters by cause.
///
/// # Errors
/// The database doesn't answer.
pub async fn causes(pool: &PgPool) -> Result<Vec<CauseSummary>, OperateError> {
    let causes = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        // Counted by webhook_events_status_idx alone, which has the cause; the newest of a cause by webhook_events_cause_idx,
        // which doesn't have those without one.
        query_as!(
            CauseSummary,
            r#"
            select counted.cause,
                   counted.failed    as "failed!",
                   counted.dead      as "dead!",
                   counted.first_at  as "first_at!",
                   counted.last_at   as "last_at!",
                   newest.event_id   as "example!",
                   newest.last_error as "example_error?"
            from (select cause,
                         count(*) filter (where status = 'failed') as failed,
                         count(*) filter (where status = 'dead')   as dead,
                         min(received_at)                          as first_at,
                         max(received_at)                          as last_at
                  from workos_sync.webhook_events
                  where status in ('failed', 'dead')
                  group by cause) as counted
                     cross join lateral (
                (select event_id, last_error
                 from workos_sync.webhook_events
                 where cause = counted.cause
                   and status in ('failed', 'dead')
                 order by received_at desc, event_id desc
                 limit 1)
                union all
                (select event_id, last_error
                 from workos_sync.webhook_events
                 where counted.cause is null
                   and cause is null
                   and status in ('failed', 'dead')
                 limit 1)
                ) as newest
            order by counted.failed + counted.dead desc, counted.cause
            "#,
        )
        .fetch_all(connection)
        .await
    });
    Ok(causes.await?)
}

//! The SQL of `webhook_events`.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor, query, query_as, query_scalar};

use super::{Source, Status};
use crate::event::{Event, EventId, WorkosId};
use crate::sync::Outcome;

/// Stores an event; says whether it is new. Ignored events are final from the start (R13).
pub(super) async fn insert(
    executor: impl PgExecutor<'_>,
    event: &Event<'_>,
    source: Source,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let ignored = event.organization_event_type().is_none();
    let status = if ignored {
        Status::Ignored
    } else {
        Status::Pending
    };
    // An id that is being inserted by another transaction is waited for: what is a duplicate is durable.
    let result = query!(
        r#"
        insert into webhook_events
            (event_id, status, event_type, organization_id, received_at, processed_at, source, payload)
        values ($1, $2, $3, $4, $5, $6, $7, $8::text::json)
        on conflict (event_id) do nothing
        "#,
        event.id.as_str(),
        status.as_str(),
        event.event_type,
        event.workos_id.as_ref().map(WorkosId::as_str),
        now,
        ignored.then_some(now),
        source.as_str(),
        event.body,
    )
    .execute(executor)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// An event that a transaction holds, to be settled by it.
#[derive(Debug, Clone)]
pub(super) struct Claimed {
    pub(super) event_id: String,
    pub(super) event_type: String,
    pub(super) payload: String,
    pub(super) source: String,
    /// Earlier attempts that failed.
    pub(super) attempts: i32,
    pub(super) received_at: DateTime<Utc>,
}

/// Claims the next due event of a lane, in the order of event ids (R24). A row that another transaction
/// holds is passed over; so is one that waits for its next attempt, which never holds back the later ones (R26).
pub(super) async fn claim_next(
    connection: &mut PgConnection,
    lane: &str,
    now: DateTime<Utc>,
) -> Result<Option<Claimed>, sqlx::Error> {
    // By webhook_events_lane_idx, in its order.
    query_as!(
        Claimed,
        r#"
        select event_id, event_type, payload::text as "payload!", source, attempts, received_at
        from webhook_events
        where status in ('pending', 'failed')
          and lane = $1
          and (next_attempt_at is null or next_attempt_at <= $2)
        order by event_order
        limit 1
        for update skip locked
        "#,
        lane,
        now,
    )
    .fetch_optional(connection)
    .await
}

/// Settles a claimed event.
pub(super) async fn settle(
    connection: &mut PgConnection,
    event_id: &str,
    outcome: Option<Outcome>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let status = if outcome.is_some() {
        Status::Processed
    } else {
        Status::Ignored
    };
    query!(
        r#"
        update webhook_events
        set status          = $2,
            outcome         = $3,
            attempts        = attempts + 1,
            last_error      = null,
            processed_at    = $4,
            next_attempt_at = null
        where event_id = $1
        "#,
        event_id,
        status.as_str(),
        outcome.map(Outcome::as_str),
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Records that an attempt failed: `failed` with a time to try again, else `dead`. An event that was settled
/// meanwhile stays so: the answer to a COMMIT can get lost, and another replica may have been quicker.
pub(super) async fn fail(
    executor: impl PgExecutor<'_>,
    event_id: &str,
    retry_at: Option<DateTime<Utc>>,
    error: &str,
) -> Result<bool, sqlx::Error> {
    let status = if retry_at.is_some() {
        Status::Failed
    } else {
        Status::Dead
    };
    let result = query!(
        r#"
        update webhook_events
        set status          = $2,
            attempts        = attempts + 1,
            last_error      = $3,
            next_attempt_at = $4
        where event_id = $1
          and status in ('pending', 'failed')
        "#,
        event_id,
        status.as_str(),
        error,
        retry_at,
    )
    .execute(executor)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// The lanes behind `after`, in order, that have a due event; at most `limit`.
pub(super) async fn due_lanes(
    executor: impl PgExecutor<'_>,
    after: &str,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<String>, sqlx::Error> {
    // A loose index scan of webhook_events_lane_idx: from lane to lane, however many events wait in each. A
    // plain `distinct` would read all the events of a flood to name a handful of lanes.
    query_scalar!(
        r#"
        with recursive due as (
            (select lane
             from webhook_events
             where status in ('pending', 'failed')
               and lane > $1
               and (next_attempt_at is null or next_attempt_at <= $2)
             order by lane
             limit 1)
            union all
            select (select lane
                    from webhook_events
                    where status in ('pending', 'failed')
                      and lane > due.lane
                      and (next_attempt_at is null or next_attempt_at <= $2)
                    order by lane
                    limit 1)
            from due
            where due.lane is not null
        )
        select lane as "lane!"
        from due
        where lane is not null
        limit $3
        "#,
        after,
        now,
        limit,
    )
    .fetch_all(executor)
    .await
}

/// Where an event stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) status: String,
    pub(super) outcome: Option<String>,
    pub(super) last_error: Option<String>,
}

/// Where an event stands; `None` if there is none of this id.
pub(super) async fn standing(
    executor: impl PgExecutor<'_>,
    event_id: &EventId,
) -> Result<Option<Standing>, sqlx::Error> {
    query_as!(
        Standing,
        "select status, outcome, last_error from webhook_events where event_id = $1",
        event_id.as_str(),
    )
    .fetch_optional(executor)
    .await
}

/// Removes settled events from before `cutoff`, at most `limit`; says how many (R28). Dead letters stay.
pub(super) async fn remove_settled(
    executor: impl PgExecutor<'_>,
    cutoff: DateTime<Utc>,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    // By webhook_events_processed_at_idx.
    let result = query!(
        r#"
        delete
        from webhook_events
        where event_id = any (array(select event_id
                                    from webhook_events
                                    where status in ('processed', 'ignored')
                                      and processed_at < $1
                                    order by processed_at
                                    limit $2
                                    for update skip locked))
        "#,
        cutoff,
        limit,
    )
    .execute(executor)
    .await?;
    Ok(result.rows_affected())
}

/// How many dead letters there are.
pub(super) async fn count_dead(executor: impl PgExecutor<'_>) -> Result<i64, sqlx::Error> {
    // By webhook_events_dead_idx.
    query_scalar!(r#"select count(*) as "count!" from webhook_events where status = 'dead'"#)
        .fetch_one(executor)
        .await
}

/// How the given events ended, or where they stand, with counts.
pub(super) async fn results(
    executor: impl PgExecutor<'_>,
    event_ids: &[String],
) -> Result<Vec<(String, i64)>, sqlx::Error> {
    let records = query!(
        r#"
        select coalesce(outcome, status) as "result!", count(*) as "count!"
        from webhook_events
        where event_id = any ($1)
        group by 1
        order by 2 desc, 1
        "#,
        event_ids,
    )
    .fetch_all(executor)
    .await?;
    Ok(records
        .into_iter()
        .map(|record| (record.result, record.count))
        .collect())
}

//! The SQL of `event_poll`, `runs` and `run_organizations`, and of the view `status`.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_as, query_scalar};

/// Where the poll stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PollState {
    pub(super) position: DateTime<Utc>,
    pub(super) round_after: Option<String>,
    pub(super) round_until: Option<DateTime<Utc>>,
    pub(super) round_leaves: Option<DateTime<Utc>>,
}

/// Takes the lease of the poll, if a round is due and nobody else is at it. The first one fixes where the poll begins,
/// whatever comes of it: where a backfill began, or else at `first`.
pub(super) async fn take_lease(
    connection: &mut PgConnection,
    owner: &str,
    until: DateTime<Utc>,
    first: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Option<PollState>, sqlx::Error> {
    query_as!(
        PollState,
        r#"
        update workos_sync.event_poll
        set lease_owner = $1,
            lease_until = $2,
            position    = coalesce(position,
                                   (select boundary
                                    from workos_sync.runs
                                    where kind = 'backfill'
                                    order by run_id desc
                                    limit 1),
                                   $4)
        where (lease_until is null or lease_until <= $3 or lease_owner = $1)
          and (next_at is null or next_at <= $3)
        returning position as "position!", round_after, round_until, round_leaves
        "#,
        owner,
        until,
        now,
        first,
    )
    .fetch_optional(connection)
    .await
}

/// Gives the lease back; the next round is due at `next_at`.
pub(super) async fn give_back(
    connection: &mut PgConnection,
    owner: &str,
    next_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        update workos_sync.event_poll
        set lease_owner = null,
            lease_until = null,
            next_at     = $2
        where lease_owner = $1
        "#,
        owner,
        next_at,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Where a page leaves the poll.
#[derive(Debug, Clone)]
pub(super) struct Turn<'a> {
    /// Where the position is then.
    pub(super) position: DateTime<Utc>,
    /// Where the round goes on; `None`: a window is read.
    pub(super) within: Option<Within<'a>>,
    /// Everything is read: the lease is given back, and the next round is due then.
    pub(super) drained: Option<DateTime<Utc>>,
}

/// A place in a window that isn't read to its end.
#[derive(Debug, Clone)]
pub(super) struct Within<'a> {
    /// The page behind which it goes on.
    pub(super) after: &'a str,
    /// Where the window ends.
    pub(super) until: Option<DateTime<Utc>>,
    /// Where the position is once it is read.
    pub(super) leaves: DateTime<Utc>,
}

/// Writes where the poll stands, and renews the lease, or gives it back; says whether it still was the owner's.
pub(super) async fn turn(
    connection: &mut PgConnection,
    owner: &str,
    turn: &Turn<'_>,
    lease_until: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let within = turn.within.as_ref();
    let written = query!(
        r#"
        update workos_sync.event_poll
        set position        = $2,
            round_after     = $3,
            round_until     = $4,
            round_leaves    = $5,
            last_answer_at  = $7,
            last_drained_at = case when $8::timestamptz is null then last_drained_at else $7 end,
            lease_owner     = case when $8::timestamptz is null then lease_owner end,
            lease_until     = case when $8::timestamptz is null then $6::timestamptz end,
            next_at         = coalesce($8, next_at)
        where lease_owner = $1
        "#,
        owner,
        turn.position,
        within.map(|within| within.after),
        within.and_then(|within| within.until),
        within.map(|within| within.leaves),
        lease_until,
        now,
        turn.drained,
    )
    .execute(connection)
    .await?;
    Ok(written.rows_affected() == 1)
}

/// Remembers that more has to be read than WorkOS promises to keep; says whether that is new. It isn't before everything
/// was read once.
pub(super) async fn note_gap(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let noted = query!(
        r#"
        update workos_sync.event_poll
        set gap_at = $1
        where gap_at is null
           or gap_at <= last_drained_at
        "#,
        now,
    )
    .execute(connection)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// Remembers how often `serve` polls; 0: never.
pub(super) async fn note_interval(
    connection: &mut PgConnection,
    seconds: i32,
) -> Result<(), sqlx::Error> {
    query!(
        "update workos_sync.event_poll set poll_seconds = $1",
        seconds
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Counts the events that the poll stored until a time, and no delivery has brought; each once.
pub(super) async fn count_missed(
    connection: &mut PgConnection,
    owner: &str,
    until: DateTime<Utc>,
) -> Result<i64, sqlx::Error> {
    // By webhook_events_undelivered_idx.
    query_scalar!(
        r#"
        with before as materialized (select counted_until
                                     from workos_sync.event_poll
                                     where lease_owner = $1 for update),
             counted as (update workos_sync.event_poll
                 set counted_until = $2
                 from before
                 where event_poll.lease_owner = $1
                   and (before.counted_until is null or before.counted_until < $2))
        select count(*) as "count!"
        from before,
             workos_sync.webhook_events as event
        where event.source = 'events_api'
          and event.delivered_at is null
          and event.received_at > before.counted_until
          and event.received_at <= $2
        "#,
        owner,
        until,
    )
    .fetch_one(connection)
    .await
}

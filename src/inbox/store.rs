//! The SQL of `webhook_events` and `event_attempts`, and the locks of lanes.
//!
//! **Order of locks.** The lanes' locks come first, in the order of their names, then rows that are there, then slugs', then
//! new rows. They are advisory locks of the transaction, so that they survive a connection pooler and go with a lost
//! connection; in the key space of two integers, so that none is mistaken for a slug's (R18).

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor, query, query_as, query_scalar};
use tokio::sync::OwnedSemaphorePermit;

use super::status::{EventName, Source, Status};
use crate::entities::{self, Outcome};
use crate::event::{EnvelopeError, Event, EventId};

/// The first of the two integers of a lane's lock: `hashtext('workos-sync organization')`.
const LANE_LOCKS: i32 = 1_061_423_321;

/// The longest stored body, in bytes, that a duplicate is compared with: with the number of events it bounds the
/// memory. Longer ones are compared by their type alone.
const COMPARED_PAYLOAD: i32 = 16 * 1_024;

/// How long a transaction waits for locks: its lanes', and those of slugs and rows after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Takes the lanes that are free at once, and waits for slugs and rows only a moment: many lanes wait for it.
    Never,
    /// A moment: others wait for its turn.
    Briefly,
    /// As long as any transaction: where a row is never free for long, that takes a place in the line for it.
    Long,
}

impl Wait {
    const fn lock_timeout(self) -> &'static str {
        match self {
            Self::Never => "200ms",
            Self::Briefly => "50ms",
            Self::Long => "5s",
        }
    }
}

/// One writer at a time for each lane, across processes (R18). Takes the locks in the order given, which must be sorted,
/// and says which lanes it has; nothing while there is a pause, which can't begin either before the end of the transaction
/// (R49).
pub(super) async fn lock_lanes(
    connection: &mut PgConnection,
    lanes: &[&str],
    wait: Wait,
) -> Result<Option<Vec<String>>, sqlx::Error> {
    if wait == Wait::Never {
        // Without a lane: there is a pause.
        let locked = query_scalar!(
            r#"
            with patience as materialized (select set_config('lock_timeout', $3, true)),
                 pause as materialized (select workos_sync.is_paused() as is_on)
            select null as lane
            from pause
            where is_on
            union all
            select lane
            from patience,
                 pause,
                 unnest($2::text[]) as lanes (lane)
            where not is_on
              and pg_try_advisory_xact_lock($1, hashtext(lane))
            "#,
            LANE_LOCKS,
            lanes as _,
            wait.lock_timeout(),
        )
        .fetch_all(connection)
        .await?;
        return Ok(locked.into_iter().collect());
    }
    let is_paused = query_scalar!(
        r#"
        with patience as materialized (select set_config('lock_timeout', $3, true)),
             pause as materialized (select workos_sync.is_paused() as is_on),
             locked as materialized (select pg_advisory_xact_lock($1, hashtext(lane))
                                     from patience,
                                          pause,
                                          unnest($2::text[]) as lanes (lane)
                                     where not is_on)
        select is_on as "is_on!"
        from pause
        where (select count(*) from locked) >= 0
        "#,
        LANE_LOCKS,
        lanes as _,
        wait.lock_timeout(),
    )
    .fetch_one(connection)
    .await?;
    Ok((!is_paused).then(|| lanes.iter().map(ToString::to_string).collect()))
}

/// Checks now what would be checked at the end of the transaction.
pub(super) async fn check_constraints(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    query!("set constraints all immediate")
        .execute(connection)
        .await
        .map(drop)
}

/// An event to be stored, and where it came from.
#[derive(Debug)]
pub struct NewEvent {
    pub(super) event_id: EventId,
    pub(super) event_type: String,
    pub(super) organization_id: Option<String>,
    /// Of a type that is not handled: final from the start (R13).
    pub(super) ignored: bool,
    pub(super) received_at: DateTime<Utc>,
    pub(super) source: Source,
    /// Of the request that brought it.
    pub(super) request_id: Option<String>,
    pub(super) body: String,
    /// What the body takes of the memory: free when the body is gone (R30).
    _place: Option<OwnedSemaphorePermit>,
}

impl NewEvent {
    /// Reads an event, and takes from it what is needed beside.
    pub(super) fn read<T>(
        body: Vec<u8>,
        place: Option<OwnedSemaphorePermit>,
        source: Source,
        received_at: DateTime<Utc>,
        take: impl FnOnce(&Event<'_>) -> T,
    ) -> Result<(Self, T), EnvelopeError> {
        let mut body = String::from_utf8(body).map_err(|_| EnvelopeError::NotUtf8)?;
        let event = Event::parse(body.as_bytes())?;
        let taken = take(&event);
        let mark = body.len() - event.body.len();
        let mut event = Self {
            event_type: event.event_type.clone(),
            organization_id: event.workos_id.as_ref().map(ToString::to_string),
            ignored: !entities::is_handled(&event.event_type),
            received_at,
            source,
            request_id: None,
            event_id: event.id,
            body: String::new(),
            _place: place,
        };
        body.drain(..mark);
        event.body = body;
        Ok((event, taken))
    }

    /// The same event, which a request has brought: the log is to say which (R54).
    #[must_use]
    pub fn brought_by(self, request_id: Option<String>) -> Self {
        Self { request_id, ..self }
    }

    /// What the log calls it.
    #[must_use]
    pub fn name(&self) -> EventName {
        EventName {
            id: self.event_id.to_string(),
            event_type: self.event_type.clone(),
            organization: self.organization_id.clone(),
        }
    }

    /// The id of the event.
    #[must_use]
    pub const fn id(&self) -> &EventId {
        &self.event_id
    }

    /// Whether it is of a type that is applied (R13).
    #[must_use]
    pub const fn is_handled(&self) -> bool {
        !self.ignored
    }

    /// The lane that it is in.
    pub(super) fn lane(&self) -> &str {
        let organization = self.organization_id.as_deref();
        organization.unwrap_or(self.event_id.as_str())
    }
}

/// An event of a statement that stores events.
#[derive(Debug)]
pub(super) struct Met {
    event_id: String,
    /// Where it was in the statement, counted from one; of a new one, nothing says so.
    ordinality: Option<i64>,
    /// What was stored before; nothing, if the statement has stored the event.
    pub(super) known: Option<Known>,
    /// It was stored before: the poll found it, and no delivery has brought it yet.
    pub(super) is_undelivered: bool,
}

/// What was stored under the id of an event before.
#[derive(Debug)]
pub(super) enum Known {
    /// The same body.
    Same,
    /// Another one.
    Other {
        event_type: String,
        /// `None` if it is longer than [`COMPARED_PAYLOAD`].
        body: Option<String>,
    },
}

impl Met {
    /// The id, if it is a new event.
    pub(super) fn new_id(self) -> Option<String> {
        self.known.is_none().then_some(self.event_id)
    }

    /// Which of the events it is, which are sorted by id. The first of an id that came twice is the new one.
    pub(super) fn place(&self, events: &[&NewEvent]) -> usize {
        match self.ordinality {
            Some(ordinality) => usize::try_from(ordinality - 1).expect("it counts from one"),
            None => {
                events.partition_point(|event| event.event_id.as_str() < self.event_id.as_str())
            }
        }
    }
}

/// Stores events. Of an event that is stored by somebody else at this moment, and of one that is there twice, nothing is
/// said: the next such statement sees it.
pub(super) async fn insert(
    connection: &mut PgConnection,
    events: &[&NewEvent],
) -> Result<Vec<Met>, sqlx::Error> {
    let none = vec![None; events.len()];
    insert_marked(connection, events, &vec![None; events.len()], &none, None).await
}

/// Stores events, those with an outcome as processed. Sorted by id, so that two batches that share ids wait for each other
/// in one order: what is a duplicate is durable, because its insertion by another transaction is waited for.
///
/// What was there before the statement is looked up first, by a read that waits for nobody: `on conflict` waits for
/// whoever updates the row. It costs an index probe an event, of pages that the insert reads anyway; and there the bodies
/// of duplicates are compared, where both are at hand.
pub(super) async fn insert_marked(
    connection: &mut PgConnection,
    events: &[&NewEvent],
    outcomes: &[Option<Outcome>],
    compared: &[Option<&str>],
    processed_at: Option<DateTime<Utc>>,
) -> Result<Vec<Met>, sqlx::Error> {
    let column =
        |value: fn(&NewEvent) -> &str| -> Vec<&str> { events.iter().copied().map(value).collect() };
    let organization_ids: Vec<_> = events
        .iter()
        .map(|event| event.organization_id.as_deref())
        .collect();
    let orders: Vec<_> = events
        .iter()
        .map(|event| event.event_id.order_key())
        .collect();
    let ignored: Vec<_> = events.iter().map(|event| event.ignored).collect();
    let received_at: Vec<_> = events.iter().map(|event| event.received_at).collect();
    // By webhook_events_pkey.
    let met = query!(
        r#"
        with events as materialized (
            select events.*,
                   stored.event_id is not null as is_known,
                   stored.event_type as known_type,
                   stored.source = 'events_api' and stored.delivered_at is null as is_undelivered,
                   case when octet_length(stored.payload::text) <= $12 then stored.payload::text end as known_body
            from unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::timestamptz[], $6::text[], $7::text[],
                        $8::text[], $10::text[], $11::text[])
                     with ordinality
                     as events (event_id, event_type, organization_id, ignored, received_at, source, body, outcome,
                                event_order, compared, ordinality)
                     left join workos_sync.webhook_events as stored using (event_id)),
             inserted as (
                 insert into workos_sync.webhook_events
                     (event_id, status, outcome, event_type, organization_id, lane, event_order, attempts, received_at,
                      processed_at, source, payload, compared)
                     select event_id,
                            case when ignored then 'ignored' when outcome is null then 'pending' else 'processed' end,
                            outcome,
                            event_type,
                            organization_id,
                            coalesce(organization_id, event_id),
                            event_order,
                            (outcome is not null)::integer,
                            received_at,
                            case when ignored then received_at when outcome is not null then $9 end,
                            source,
                            body::json,
                            compared::jsonb
                     from events
                     where not is_known
                     on conflict (event_id) do nothing
                     returning event_id)
        select event_id as "event_id!",
               null as ordinality,
               null as other_type,
               null as other_body,
               false as "is_undelivered!"
        from inserted
        union all
        select event_id,
               ordinality,
               case when known_body is distinct from body then known_type end,
               case when known_body is distinct from body then known_body end,
               is_undelivered
        from events
        where is_known
        "#,
        &column(|event| event.event_id.as_str()) as _,
        &column(|event| &event.event_type) as _,
        &organization_ids as _,
        &ignored,
        &received_at,
        &column(|event| event.source.as_str()) as _,
        &column(|event| &event.body) as _,
        &texts(outcomes) as _,
        processed_at,
        &orders as _,
        compared as _,
        COMPARED_PAYLOAD,
    )
    .fetch_all(connection)
    .await?;
    let met = met.into_iter().map(|met| Met {
        event_id: met.event_id,
        ordinality: met.ordinality,
        known: met.ordinality.map(|_| match met.other_type {
            None => Known::Same,
            Some(event_type) => Known::Other {
                event_type,
                body: met.other_body,
            },
        }),
        is_undelivered: met.is_undelivered,
    });
    Ok(met.collect())
}

/// Deliveries have brought these events, which the poll had found (R39). A row that is being applied at this moment is
/// passed over, for the sender waits. Says which are marked.
pub(super) async fn mark_delivered(
    connection: &mut PgConnection,
    delivered: &[(&str, DateTime<Utc>)],
) -> Result<Vec<String>, sqlx::Error> {
    let (event_ids, times): (Vec<_>, Vec<_>) = delivered.iter().copied().unzip();
    query_scalar!(
        r#"
        update workos_sync.webhook_events as event
        set delivered_at = delivered.at
        from unnest($1::text[], $2::timestamptz[]) as delivered (event_id, at)
        where event.event_id = delivered.event_id
          and event.event_id = any (array(select event_id
                                          from workos_sync.webhook_events
                                          where event_id = any ($1)
                                          for update skip locked))
        returning event.event_id
        "#,
        &event_ids as _,
        &times,
    )
    .fetch_all(connection)
    .await
}

/// The same, once whoever applies the event is done.
pub(super) async fn wait_and_mark_delivered(
    connection: &mut PgConnection,
    event_id: &str,
    at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        update workos_sync.webhook_events
        set delivered_at = $2
        where event_id = $1
          and delivered_at is null
        "#,
        event_id,
        at,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Remembers when the last delivery came.
pub(super) async fn note_webhook(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        insert into workos_sync.last_webhook (at)
        values ($1)
        on conflict (singleton) do update
            set at = greatest(last_webhook.at, excluded.at)
        "#,
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// What keeps an event from being applied as it comes.
#[derive(Debug)]
pub(super) enum InTheWay {
    /// It is stored already.
    Event(String),
    /// Its lane has events that come first.
    Lane(String),
}

/// Which of the events are stored already, and which of the lanes have pending events.
pub(super) async fn in_the_way(
    connection: &mut PgConnection,
    event_ids: &[&str],
    lanes: &[&str],
) -> Result<Vec<InTheWay>, sqlx::Error> {
    // By webhook_events_pkey and webhook_events_lane_idx.
    let records = query!(
        r#"
        select event_id as event, null as lane
        from workos_sync.webhook_events
        where event_id = any ($1)
        union all
        select null, lane
        from unnest($2::text[]) as lanes (lane)
        where exists (select
                      from workos_sync.webhook_events
                      where status = 'pending'
                        and webhook_events.lane = lanes.lane)
        "#,
        event_ids as _,
        lanes as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(records
        .into_iter()
        .filter_map(|record| match (record.event, record.lane) {
            (Some(event), _) => Some(InTheWay::Event(event)),
            (None, lane) => lane.map(InTheWay::Lane),
        })
        .collect())
}

/// An event that a transaction holds, to be marked by it.
#[derive(Debug, Clone)]
pub(super) struct Claimed {
    pub(super) lane: String,
    pub(super) event_id: String,
    pub(super) event_type: String,
    /// The body; `None` if it is longer than was asked for.
    pub(super) payload: Option<String>,
    pub(super) source: String,
    /// Earlier attempts that failed.
    pub(super) attempts: i32,
    /// Those of them that a rule of the application refused.
    pub(super) refusals: i32,
    pub(super) received_at: DateTime<Utc>,
    /// It was decided before, and an operator wants it decided again (R46).
    pub(super) replayed: bool,
    /// What it came to then.
    pub(super) outcome: Option<String>,
}

/// Claims pending events of lanes, at most `limit` of each, in the order of event ids (R24). A row that another
/// transaction holds is passed over; one that waits for its next attempt isn't pending, and never holds back the
/// later ones (R26).
pub(super) async fn claim(
    connection: &mut PgConnection,
    lanes: &[String],
    limit: i64,
    longest_payload: i32,
) -> Result<Vec<Claimed>, sqlx::Error> {
    // By webhook_events_lane_idx, in its order, lane by lane: a flood in one of them isn't read to its end.
    query_as!(
        Claimed,
        r#"
        select event.lane            as "lane!",
               event.event_id        as "event_id!",
               event.event_type      as "event_type!",
               event.payload,
               event.source          as "source!",
               event.attempts        as "attempts!",
               event.refusals        as "refusals!",
               event.received_at     as "received_at!",
               event.replayed        as "replayed!",
               event.outcome
        from unnest($1::text[]) with ordinality as lanes (lane, place)
                 cross join lateral (
            select lane,
                   event_id,
                   event_type,
                   case when octet_length(payload::text) <= $3 then payload::text end as payload,
                   source,
                   attempts,
                   refusals,
                   received_at,
                   replayed,
                   outcome,
                   event_order
            from workos_sync.webhook_events
            where status = 'pending'
              and webhook_events.lane = lanes.lane
            order by event_order
            limit $2 for update skip locked
            ) as event
        order by lanes.place, event.event_order
        "#,
        lanes,
        limit,
        longest_payload,
    )
    .fetch_all(connection)
    .await
}

/// Marks claimed events with how they ended, and stale ones with what they were compared with.
pub(super) async fn mark(
    connection: &mut PgConnection,
    event_ids: &[&str],
    outcomes: &[Option<Outcome>],
    compared: &[Option<&str>],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        update workos_sync.webhook_events as event
        set status          = case when marked.outcome is null then 'ignored' else 'processed' end,
            outcome         = marked.outcome,
            attempts        = attempts + 1,
            last_error      = null,
            cause           = null,
            compared        = marked.compared::jsonb,
            processed_at    = $3,
            next_attempt_at = null
        from unnest($1::text[], $2::text[], $4::text[]) as marked (event_id, outcome, compared)
        where event.event_id = marked.event_id
        "#,
        event_ids as _,
        &texts(outcomes) as _,
        now,
        compared as _,
    )
    .execute(connection)
    .await
    .map(drop)
}

fn texts(outcomes: &[Option<Outcome>]) -> Vec<Option<&'static str>> {
    outcomes
        .iter()
        .map(|outcome| outcome.map(Outcome::as_str))
        .collect()
}

/// How an attempt failed.
#[derive(Debug)]
pub(super) struct Failed<'a> {
    pub(super) event_id: &'a str,
    pub(super) at: DateTime<Utc>,
    /// None: it is a dead letter.
    pub(super) retry_at: Option<DateTime<Utc>>,
    pub(super) refusals: i32,
    pub(super) cause: &'a str,
    pub(super) error: &'a str,
}

/// Records that an attempt failed: `failed` with a time to try again, else `dead`. An event that ended meanwhile is left
/// as it is, and `false` the answer: the answer to a COMMIT can get lost, and another replica may have been quicker. Of
/// its attempts, the first ten and the last ten are kept (R27).
pub(super) async fn fail(
    executor: impl PgExecutor<'_>,
    failed: &Failed<'_>,
) -> Result<bool, sqlx::Error> {
    let status = if failed.retry_at.is_some() {
        Status::Failed
    } else {
        Status::Dead
    };
    query_scalar!(
        r#"
        with failed as (
            update workos_sync.webhook_events
            set status          = $2,
                attempts        = attempts + 1,
                refusals        = $3,
                last_error      = $4,
                cause           = $5,
                next_attempt_at = $6
            where event_id = $1
              and status in ('pending', 'failed')
            returning event_id, attempts
        ), kept as (
            insert into workos_sync.event_attempts (event_id, attempt, at, cause, error)
            select event_id, attempts, $7, $5, $4
            from failed
            on conflict (event_id, attempt) do update
                set at    = excluded.at,
                    cause = excluded.cause,
                    error = excluded.error
        ), forgotten as (
            delete
            from workos_sync.event_attempts as attempt
            using failed
            where attempt.event_id = failed.event_id
              and attempt.attempt > 10
              and attempt.attempt <= failed.attempts - 10
        )
        select exists (select from failed) as "failed!"
        "#,
        failed.event_id,
        status.as_str(),
        failed.refusals,
        failed.error,
        failed.cause,
        failed.retry_at,
        failed.at,
    )
    .fetch_one(executor)
    .await
}

/// When an attempt of an event last failed of this cause.
pub(super) async fn last_attempt(
    executor: impl PgExecutor<'_>,
    event_id: &str,
    cause: &str,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    // By event_attempts_pkey.
    query_scalar!(
        "select max(at) from workos_sync.event_attempts where event_id = $1 and cause = $2",
        event_id,
        cause,
    )
    .fetch_one(executor)
    .await
}

/// Whether there is a failed event whose next attempt is due.
pub(super) async fn has_failed_due(
    executor: impl PgExecutor<'_>,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    // By webhook_events_next_attempt_at_idx: what isn't due isn't read.
    query_scalar!(
        r#"
        select exists (select
                       from workos_sync.webhook_events
                       where status = 'failed'
                         and next_attempt_at <= $1) as "due!"
        "#,
        now,
    )
    .fetch_one(executor)
    .await
}

/// Makes failed events pending whose next attempt is due, the longest overdue first, at most `limit`. A row that another
/// transaction holds is passed over.
pub(super) async fn take_up_failed(
    executor: impl PgExecutor<'_>,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<u64, sqlx::Error> {
    // By webhook_events_next_attempt_at_idx: what isn't due isn't read.
    let result = query!(
        r#"
        update workos_sync.webhook_events
        set status          = 'pending',
            next_attempt_at = null
        where event_id = any (array(select event_id
                                    from workos_sync.webhook_events
                                    where status = 'failed'
                                      and next_attempt_at <= $1
                                    order by next_attempt_at
                                    limit $2 for update skip locked))
        "#,
        now,
        limit,
    )
    .execute(executor)
    .await?;
    Ok(result.rows_affected())
}

/// The lanes behind `after`, in order, that have a pending event, up to `limit`; and how long the server took to find
/// them, in seconds.
pub(super) async fn due_lanes(
    executor: impl PgExecutor<'_>,
    after: &str,
    limit: i64,
) -> Result<(Vec<String>, f64), sqlx::Error> {
    // A loose index scan of webhook_events_lane_idx: from lane to lane, however many events wait in each. A
    // plain `distinct` would read all the events of a flood to name a handful of lanes.
    let due = query!(
        r#"
        with recursive due as (
            (select lane
             from workos_sync.webhook_events
             where status = 'pending'
               and lane > $1
             order by lane
             limit 1)
            union all
            select (select lane
                    from workos_sync.webhook_events
                    where status = 'pending'
                      and lane > due.lane
                    order by lane
                    limit 1)
            from due
            where due.lane is not null
        )
        select array_agg(lane)                                                          as lanes,
               extract(epoch from clock_timestamp() - statement_timestamp())::float8 as "took!"
        from (select lane from due where lane is not null limit $2) as page
        "#,
        after,
        limit,
    )
    .fetch_one(executor)
    .await?;
    Ok((due.lanes.unwrap_or_default(), due.took))
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
        "select status, outcome, last_error from workos_sync.webhook_events where event_id = $1",
        event_id.as_str(),
    )
    .fetch_optional(executor)
    .await
}

/// Removes events that ended before `cutoff`, at most `limit`; says how many (R28). Dead letters stay.
pub(super) async fn remove_ended(
    executor: impl PgExecutor<'_>,
    cutoff: DateTime<Utc>,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    // By webhook_events_received_at_idx: nothing ended before it was received. Dead letters are passed over.
    let result = query!(
        r#"
        delete
        from workos_sync.webhook_events
        where event_id = any (array(select event_id
                                    from workos_sync.webhook_events
                                    where status in ('processed', 'ignored', 'discarded')
                                      and received_at < $1
                                      and processed_at < $1
                                    order by received_at
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

/// An event that was stored, and what has become of it.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) event_id: String,
    pub(super) lane: String,
    /// Outcome, or else status.
    pub(super) result: String,
}

/// What has become of the given events.
pub(super) async fn progress(
    connection: &mut PgConnection,
    event_ids: &[String],
) -> Result<Vec<Progress>, sqlx::Error> {
    // By webhook_events_pkey.
    query_as!(
        Progress,
        r#"
        select event_id,
               lane                                                          as "lane!",
               coalesce(case status when 'processed' then outcome end, status) as "result!"
        from workos_sync.webhook_events
        where event_id = any ($1)
        "#,
        event_ids,
    )
    .fetch_all(connection)
    .await
}

//! Retries, discards and replays events (R46, R48): those that are named, or all that a filter selects, in batches. Each
//! batch is a transaction that also counts it, so the record of an action is true however it ends.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::{PgConnection, PgPool, QueryBuilder, query_as};
use tracing::info;

use super::records::{NewAction, count_more, record};
use super::select::{Part, Place, parts, push_conditions, push_part, push_status};
use super::{Actor, Filter, OperateError, given};
use crate::inbox::Status;
use crate::postgres;
use crate::postgres::error::{FailureClass, classify};

/// How many events a batch changes.
const BATCH: usize = 1_000;

/// How often a batch is tried again that met another operator's.
const TRIES: u32 = 5;

/// How many of the ids that were named are kept in the record of an action.
const RECORDED_IDS: usize = 100;

/// What is done to events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Failed events and dead letters are pending again. Attempts and history stay; a rule of the application may refuse
    /// them as often as a new event.
    Retry,
    /// Pending and failed events and dead letters are given up, for good: the row stays until retention, and a redelivery
    /// is a duplicate.
    Discard,
    /// Processed and ignored events are decided again.
    Replay,
}

impl Verb {
    /// The verb, as `operator_actions` has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
            Self::Replay => "replay",
        }
    }

    /// What has been done.
    #[must_use]
    pub const fn past(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Discard => "discarded",
            Self::Replay => "replayed",
        }
    }

    /// The statuses of the events that it can be done to.
    #[must_use]
    pub const fn takes(self) -> &'static [Status] {
        match self {
            Self::Retry => &[Status::Failed, Status::Dead],
            Self::Discard => &[Status::Pending, Status::Failed, Status::Dead],
            Self::Replay => &[Status::Processed, Status::Ignored],
        }
    }

    /// The parts of the inbox that have the events that a filter selects and that it can be done to.
    fn parts(self, filter: &Filter) -> Vec<Part> {
        let mut statuses = filter.statuses();
        statuses.retain(|status| self.takes().contains(status));
        parts(filter, &statuses)
    }

    fn takes_status(self, status: &str) -> bool {
        self.takes().iter().any(|taken| taken.as_str() == status)
    }

    /// What becomes of the columns. The outcome of an event that is replayed stays until it has another: what it did once
    /// counts in what it does again.
    const fn set(self) -> &'static str {
        match self {
            Self::Retry => "status = 'pending', next_attempt_at = null, refusals = 0",
            Self::Discard => "status = 'discarded', next_attempt_at = null, processed_at = now()",
            Self::Replay => "status = 'pending', replayed = true, processed_at = null",
        }
    }
}

/// Which events are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// These.
    Ids(Vec<String>),
    /// All that a filter selects.
    Filter(Filter),
}

impl Selection {
    /// Takes either ids or a filter.
    ///
    /// # Errors
    /// There is neither, or both.
    pub fn of(ids: Vec<String>, filter: Filter) -> Result<Self, OperateError> {
        match (ids.is_empty(), filter.is_empty()) {
            (true, true) => Err(OperateError::NothingSelected),
            (false, false) => Err(OperateError::SelectedTwice),
            (false, true) => Ok(Self::Ids(ids)),
            (true, false) => Ok(Self::Filter(filter)),
        }
    }

    fn record(&self) -> serde_json::Value {
        match self {
            Self::Ids(ids) => json!({ "ids": &ids[..std::cmp::min(ids.len(), RECORDED_IDS)] }),
            Self::Filter(filter) => json!({ "filter": filter }),
        }
    }
}

/// An event that was named, and left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Its id.
    pub event_id: String,
    /// Where it stands, which the action doesn't take; none if it isn't there.
    pub status: Option<String>,
}

/// What an action has come to so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// How many events it has changed.
    pub count: i64,
    /// Those that were named, and left alone.
    pub left: Vec<Left>,
}

/// How many events an action would change: exactly, at this moment.
///
/// # Errors
/// The database doesn't answer.
pub async fn count(pool: &PgPool, verb: Verb, selection: &Selection) -> Result<i64, OperateError> {
    let counted = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        count_on(connection, verb, selection).await
    });
    Ok(counted.await?)
}

async fn count_on(
    connection: &mut PgConnection,
    verb: Verb,
    selection: &Selection,
) -> Result<i64, sqlx::Error> {
    let filter = match selection {
        Selection::Ids(ids) => {
            let standing = standing(connection, ids).await?;
            let takes = |event: &&Standing| verb.takes_status(&event.status);
            return Ok(i64::try_from(standing.iter().filter(takes).count()).unwrap_or(i64::MAX));
        }
        Selection::Filter(filter) => filter,
    };
    let mut all = 0;
    for part in verb.parts(filter) {
        let mut query = QueryBuilder::new("select count(*) from workos_sync.webhook_events");
        push_part(&mut query, filter, part);
        push_status(&mut query, verb.takes());
        push_conditions(&mut query, filter);
        let count: i64 = query
            .build_query_scalar()
            .fetch_one(&mut *connection)
            .await?;
        all += count;
    }
    Ok(all)
}

/// Begins an action, and records it; nothing is changed yet.
///
/// # Errors
/// [`OperateError::NoReason`] for a discard without one; or the database doesn't answer.
pub async fn begin(
    pool: &PgPool,
    verb: Verb,
    selection: Selection,
    reason: Option<&str>,
    actor: &Actor,
) -> Result<Bulk, OperateError> {
    let reason = given(reason);
    if verb == Verb::Discard && reason.is_none() {
        return Err(OperateError::NoReason);
    }
    let (action_id, newest) = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        let action = NewAction {
            actor,
            action: verb.as_str(),
            filter: Some(selection.record()),
            count: Some(0),
            reason,
        };
        let action_id = record(&mut *connection, action).await?;
        let newest = match &selection {
            Selection::Ids(_) => None,
            Selection::Filter(filter) => newest(connection, verb, filter).await?,
        };
        Ok::<_, sqlx::Error>((action_id, newest))
    })
    .await?;
    let work = match selection {
        Selection::Ids(mut ids) => {
            ids.sort_unstable();
            ids.dedup();
            Work::Ids(ids)
        }
        Selection::Filter(mut filter) => {
            // What comes meanwhile isn't meant; where there was nothing, nothing is.
            let parts = newest.map_or_else(Vec::new, |_| verb.parts(&filter));
            let until = newest.map(|newest| newest + TimeDelta::microseconds(1));
            filter.until = filter.until.into_iter().chain(until).min();
            Work::Filter {
                parts,
                filter,
                after: None,
            }
        }
    };
    Ok(Bulk {
        pool: pool.clone(),
        verb,
        action_id,
        actor: actor.clone(),
        reason: reason.map(str::to_owned),
        work,
        progress: Progress::default(),
    })
}

/// Retries events: all batches.
///
/// # Errors
/// As [`Bulk::next`].
pub async fn retry(
    pool: &PgPool,
    selection: Selection,
    actor: &Actor,
    progress: impl FnMut(&Progress),
) -> Result<Progress, OperateError> {
    let bulk = begin(pool, Verb::Retry, selection, None, actor).await?;
    bulk.finish(progress).await
}

/// Discards events: all batches.
///
/// # Errors
/// As [`begin`] and [`Bulk::next`].
pub async fn discard(
    pool: &PgPool,
    selection: Selection,
    reason: &str,
    actor: &Actor,
    progress: impl FnMut(&Progress),
) -> Result<Progress, OperateError> {
    let bulk = begin(pool, Verb::Discard, selection, Some(reason), actor).await?;
    bulk.finish(progress).await
}

/// Has events decided again: all batches.
///
/// # Errors
/// As [`Bulk::next`].
pub async fn replay(
    pool: &PgPool,
    filter: Filter,
    actor: &Actor,
    progress: impl FnMut(&Progress),
) -> Result<Progress, OperateError> {
    let selection = Selection::Filter(filter);
    let bulk = begin(pool, Verb::Replay, selection, None, actor).await?;
    bulk.finish(progress).await
}

/// What is left to do.
#[derive(Debug)]
enum Work {
    Ids(Vec<String>),
    Filter {
        filter: Filter,
        /// Those that are left.
        parts: Vec<Part>,
        /// Where the next batch begins: each event is met once, also one that fails again meanwhile.
        after: Option<Box<Place>>,
    },
}

impl Work {
    fn is_done(&self) -> bool {
        match self {
            Self::Ids(ids) => ids.is_empty(),
            Self::Filter { parts, .. } => parts.is_empty(),
        }
    }
}

/// An action under way, batch by batch.
#[derive(Debug)]
pub struct Bulk {
    pool: PgPool,
    verb: Verb,
    action_id: i64,
    actor: Actor,
    reason: Option<String>,
    work: Work,
    progress: Progress,
}

impl Bulk {
    /// What it has come to so far.
    #[must_use]
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Changes the next events; says which, or nothing once it is done.
    ///
    /// # Errors
    /// The database doesn't answer; what was changed before stays, and is on record.
    pub async fn next(&mut self) -> Result<Option<Vec<String>>, OperateError> {
        let mut tries = 1;
        while !self.work.is_done() {
            let changed = match self.change_batch().await {
                // Another operator's batch was in the way.
                Err(error) if classify(&error) == FailureClass::Conflict && tries < TRIES => {
                    tries += 1;
                    continue;
                }
                changed => changed?,
            };
            if !changed.is_empty() {
                return Ok(Some(changed));
            }
        }
        Ok(None)
    }

    /// Does all of it.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn finish(
        mut self,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Progress, OperateError> {
        let result = loop {
            match self.next().await {
                Ok(Some(_)) => progress(&self.progress),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // What was done before an error stays done.
        self.log();
        result.map(|()| self.progress)
    }

    /// Says what was done: for whoever calls [`next`](Self::next) to the end.
    pub fn log(&self) {
        let Self {
            verb,
            action_id,
            actor,
            reason,
            progress: Progress { count, .. },
            ..
        } = self;
        let past = verb.past();
        info!(action_id, %actor, action = verb.as_str(), count, reason, "{actor} has {past} {count} events");
    }

    async fn change_batch(&mut self) -> Result<Vec<String>, sqlx::Error> {
        let (pool, verb, action_id) = (&self.pool, self.verb, self.action_id);
        match &mut self.work {
            Work::Ids(ids) => {
                let batch = &ids[..std::cmp::min(BATCH, ids.len())];
                let (changed, standing, count) =
                    postgres::transaction(pool, postgres::PATIENCE, async |connection| {
                        change_named(connection, verb, action_id, batch).await
                    })
                    .await?;
                let is_changed: HashSet<_> = changed.iter().collect();
                let others = batch.iter().filter(|id| !is_changed.contains(id));
                let left = others.map(|id| Left {
                    event_id: id.clone(),
                    status: standing
                        .iter()
                        .find(|event| event.event_id == *id)
                        .map(|event| event.status.clone()),
                });
                self.progress.left.extend(left);
                self.progress.count = count;
                ids.drain(..std::cmp::min(BATCH, ids.len()));
                Ok(changed)
            }
            Work::Filter {
                filter,
                parts,
                after,
            } => {
                let part = parts[0];
                let (changed, count) =
                    postgres::transaction(pool, postgres::PATIENCE, async |connection| {
                        let after = after.as_deref();
                        change_selected(connection, verb, action_id, filter, part, after).await
                    })
                    .await?;
                self.progress.count = count;
                *after = changed.last().cloned().map(Box::new);
                if after.is_none() {
                    parts.remove(0);
                }
                Ok(changed.into_iter().map(|place| place.event_id).collect())
            }
        }
    }
}

/// Changes those of the events that the verb takes; says which, where the others stand, and how many the action has changed.
async fn change_named(
    connection: &mut PgConnection,
    verb: Verb,
    action_id: i64,
    ids: &[String],
) -> Result<(Vec<String>, Vec<Standing>, i64), sqlx::Error> {
    let set = verb.set();
    let mut query = QueryBuilder::new(format!(
        "update workos_sync.webhook_events set {set}, action_id = "
    ));
    query.push_bind(action_id);
    // Rows are locked in one order, whoever else is at it.
    query.push(
        " where event_id = any (array(
             select event_id from workos_sync.webhook_events where event_id = any (",
    );
    query.push_bind(ids).push(")");
    push_status(&mut query, verb.takes());
    query.push(" order by event_id for update)) returning event_id");
    let changed: Vec<String> = query
        .build_query_scalar()
        .fetch_all(&mut *connection)
        .await?;
    let count = count_more(&mut *connection, action_id, changed.len()).await?;
    let standing = if changed.len() < ids.len() {
        standing(connection, ids).await?
    } else {
        Vec::new()
    };
    Ok((changed, standing, count))
}

/// Changes the next of the events that a filter selects and the verb takes; says which, in order, and how many the action
/// has changed.
async fn change_selected(
    connection: &mut PgConnection,
    verb: Verb,
    action_id: i64,
    filter: &Filter,
    part: Part,
    after: Option<&Place>,
) -> Result<(Vec<Place>, i64), sqlx::Error> {
    let order = part.order();
    let mut query = QueryBuilder::new(
        "with chosen as materialized (
             select event_id, received_at, lane, event_order from workos_sync.webhook_events",
    );
    push_part(&mut query, filter, part);
    push_status(&mut query, verb.takes());
    push_conditions(&mut query, filter);
    // One that it took from another part may have failed again, and be in this one.
    query
        .push(" and action_id is distinct from ")
        .push_bind(action_id);
    if let Some(place) = after {
        part.push_after(&mut query, place);
    }
    query.push(format!(" order by {order} limit {BATCH}"));
    let set = verb.set();
    query.push(format!(
        " for update),
             changed as (update workos_sync.webhook_events as event set {set}, action_id = "
    ));
    query.push_bind(action_id);
    query.push(format!(
        " from chosen where event.event_id = chosen.event_id)
         select event_id, received_at, lane, event_order from chosen order by {order}"
    ));
    let changed: Vec<Place> = query.build_query_as().fetch_all(&mut *connection).await?;
    let count = count_more(connection, action_id, changed.len()).await?;
    Ok((changed, count))
}

/// Where an event stands.
#[derive(Debug)]
struct Standing {
    event_id: String,
    status: String,
}

/// When the newest was received of the parts that a filter is about.
async fn newest(
    connection: &mut PgConnection,
    verb: Verb,
    filter: &Filter,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let mut newest = None;
    for part in verb.parts(filter) {
        let mut query =
            QueryBuilder::new("select max(received_at) from workos_sync.webhook_events");
        push_part(&mut query, filter, part);
        let of_part: Option<DateTime<Utc>> = query
            .build_query_scalar()
            .fetch_one(&mut *connection)
            .await?;
        newest = std::cmp::max(newest, of_part);
    }
    Ok(newest)
}

/// Where events stand; those that aren't there are left out.
async fn standing(
    connection: &mut PgConnection,
    ids: &[String],
) -> Result<Vec<Standing>, sqlx::Error> {
    query_as!(
        Standing,
        "select event_id, status from workos_sync.webhook_events where event_id = any ($1)",
        ids,
    )
    .fetch_all(connection)
    .await
}

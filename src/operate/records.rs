//! What operators did, and how the commands went that ask WorkOS for everything.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool, query_as, query_scalar};

use super::{Actor, OperateError};
use crate::postgres;

/// Something that an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Action {
    /// Its number.
    pub action_id: i64,
    /// When it began.
    pub at: DateTime<Utc>,
    /// The system's user, `token` or `loopback`.
    pub actor: String,
    /// `retry`, `discard`, `replay`, `pause` or `resume`.
    pub action: String,
    /// What was selected: `{"ids": […]}` or `{"filter": {…}}`.
    pub filter: Option<serde_json::Value>,
    /// How many events it changed.
    pub count: Option<i64>,
    /// Why.
    pub reason: Option<String>,
}

/// A run of backfill, reconcile or catch-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunSummary {
    /// Its number.
    pub run_id: i64,
    /// `backfill`, `reconcile` or `catch_up`.
    pub kind: String,
    /// `running`, `complete`, `failed` or `abandoned`. One that was killed is running until the next of its kind.
    pub status: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// How many pages of WorkOS's list it has read.
    pub pages: i64,
    /// How many organizations these had.
    pub seen: i64,
    /// Rows that were inserted.
    pub created: i64,
    /// Rows that were updated.
    pub updated: i64,
    /// Rows that were linked.
    pub linked: i64,
    /// Snapshots that something newer had overtaken.
    pub stale: i64,
    /// Snapshots that can't be applied.
    pub dead: i64,
    /// Snapshots that wait for another try.
    pub failed: i64,
    /// Differences that were found.
    pub drift: i64,
}

/// The latest actions of operators, the newest first; at most `limit`.
///
/// # Errors
/// The database doesn't answer.
pub async fn actions(pool: &PgPool, limit: i64) -> Result<Vec<Action>, OperateError> {
    let actions = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        // By operator_actions_pkey.
        query_as!(
            Action,
            r#"
            select action_id, at, actor, action, filter as "filter: serde_json::Value", count, reason
            from workos_sync.operator_actions
            order by action_id desc
            limit $1
            "#,
            limit,
        )
        .fetch_all(connection)
        .await
    });
    Ok(actions.await?)
}

/// The latest runs, the newest first; at most `limit`.
///
/// # Errors
/// The database doesn't answer.
pub async fn runs(pool: &PgPool, limit: i64) -> Result<Vec<RunSummary>, OperateError> {
    let runs = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        // By runs_pkey.
        query_as!(
            RunSummary,
            r#"
            select run_id, kind, status, started_at, ended_at, pages, seen, created, updated, linked, stale, dead,
                   failed, drift
            from workos_sync.runs
            order by run_id desc
            limit $1
            "#,
            limit,
        )
        .fetch_all(connection)
        .await
    });
    Ok(runs.await?)
}

/// What is recorded of an action when it begins.
#[derive(Debug)]
pub(super) struct NewAction<'a> {
    pub(super) actor: &'a Actor,
    pub(super) action: &'a str,
    pub(super) filter: Option<serde_json::Value>,
    pub(super) count: Option<i64>,
    pub(super) reason: Option<&'a str>,
}

/// Records an action; says its number.
pub(super) async fn record(
    connection: &mut PgConnection,
    action: NewAction<'_>,
) -> Result<i64, sqlx::Error> {
    query_scalar!(
        r#"
        insert into workos_sync.operator_actions (actor, action, filter, count, reason)
        values ($1, $2, $3, $4, $5)
        returning action_id
        "#,
        action.actor.to_string(),
        action.action,
        action.filter.map(Json) as _,
        action.count,
        action.reason,
    )
    .fetch_one(connection)
    .await
}

/// An action has changed this many events more; says how many it has changed in all.
pub(super) async fn count_more(
    connection: &mut PgConnection,
    action_id: i64,
    more: usize,
) -> Result<i64, sqlx::Error> {
    let more = i64::try_from(more).unwrap_or(i64::MAX);
    query_scalar!(
        r#"
        update workos_sync.operator_actions
        set count = coalesce(count, 0) + $2
        where action_id = $1
        returning count as "count!"
        "#,
        action_id,
        more,
    )
    .fetch_one(connection)
    .await
}

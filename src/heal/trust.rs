//! May the mirror be trusted? (R45)

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool, query_as};

use crate::postgres;

/// What the view `workos_sync.status` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The rows may be taken for what WorkOS has.
    pub trusted: bool,
    /// What is missing, if not.
    pub reasons: Vec<String>,
    /// When the last delivery came.
    pub last_webhook_at: Option<DateTime<Utc>>,
    /// When WorkOS last gave events.
    pub last_poll_at: Option<DateTime<Utc>>,
    /// When all of them were read.
    pub last_drained_poll_at: Option<DateTime<Utc>>,
    /// When the last backfill was complete.
    pub last_backfill_at: Option<DateTime<Utc>>,
    /// When the last reconcile ended, in step or not.
    pub last_reconcile_at: Option<DateTime<Utc>>,
    /// Events that are to be applied.
    pub pending: i64,
    /// Events that will be tried again.
    pub failed: i64,
    /// Dead letters.
    pub dead: i64,
    /// Organization ids that are to be written to WorkOS.
    pub pushes: i64,
    /// When the event was received that has waited longest to be applied.
    pub oldest_unapplied_at: Option<DateTime<Utc>>,
    /// When the pause began, if there is one (R49).
    pub paused_since: Option<DateTime<Utc>>,
    /// When it ends by itself.
    pub paused_until: Option<DateTime<Utc>>,
    /// Why there is one.
    pub pause_reason: Option<String>,
}

/// Asks the view.
///
/// # Errors
/// The database doesn't answer.
pub async fn status(pool: &PgPool) -> Result<Status, sqlx::Error> {
    postgres::transaction(pool, postgres::PATIENCE, ask).await
}

async fn ask(connection: &mut PgConnection) -> Result<Status, sqlx::Error> {
    query_as!(
        Status,
        r#"
        select trusted   as "trusted!",
               reasons   as "reasons!",
               last_webhook_at,
               last_poll_at,
               last_drained_poll_at,
               last_backfill_at,
               last_reconcile_at,
               pending   as "pending!",
               failed    as "failed!",
               dead      as "dead!",
               pushes    as "pushes!",
               oldest_unapplied_at,
               paused_since,
               paused_until,
               pause_reason
        from workos_sync.status
        "#
    )
    .fetch_one(connection)
    .await
}

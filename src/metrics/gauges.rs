//! The gauges that the database is asked for: by one query, now and then (R51).

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, query_as};
use tokio_util::sync::CancellationToken;

use super::Metrics;
use crate::clock::Clock;
use crate::postgres;

/// How often the database is asked. With the time that it takes to answer, the gauges are less than 15 s old.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

/// What the database says at one moment. Counts are capped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readings {
    /// The table of organizations may be taken for what WorkOS has (R45).
    pub trusted: bool,
    /// Nothing is applied or written back, because an operator wants it so (R49).
    pub paused: bool,
    /// Events to be applied.
    pub pending: i64,
    /// Events that will be tried again.
    pub failed: i64,
    /// Dead letters.
    pub dead: i64,
    /// When the oldest event was received that is pending or failed.
    pub oldest_unapplied: Option<DateTime<Utc>>,
    /// Organization ids to be written to WorkOS.
    pub pushes: i64,
    /// When the oldest of these was recorded.
    pub oldest_push: Option<DateTime<Utc>>,
    /// Organizations for which WorkOS holds another `external_id`.
    pub conflicts: i64,
    /// Organization ids that WorkOS refused for good.
    pub rejected: i64,
}

/// Keeps the gauges fresh until shutdown. While the database doesn't answer, they keep their values: the sweeper logs
/// the outage, and `backlog_timestamp_seconds` shows it.
pub async fn keep(
    pool: PgPool,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    loop {
        let _ = measure(&pool, &*clock, &metrics).await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(ASK_INTERVAL) => {}
        }
    }
}

/// Sets the gauges once.
///
/// # Errors
/// The database doesn't answer; the gauges keep their values.
pub async fn measure(
    pool: &PgPool,
    clock: &dyn Clock,
    metrics: &Metrics,
) -> Result<(), sqlx::Error> {
    let readings = postgres::transaction(pool, postgres::PATIENCE, ask).await?;
    metrics.readings(&readings, clock.now());
    Ok(())
}

async fn ask(connection: &mut PgConnection) -> Result<Readings, sqlx::Error> {
    // What is done isn't read: the view counts by webhook_events_lane_idx, webhook_events_status_idx and
    // external_id_pushes_due_idx, the rest goes by external_id_pushes_due_idx and external_id_pushes_refused_idx. The limits bound what a flood costs; the oldest of the first 100,000 is old enough
    // for an alarm.
    query_as!(
        Readings,
        r#"
        select trusted                  as "trusted!",
               paused_until is not null as "paused!",
               pending                  as "pending!",
               failed                   as "failed!",
               dead                     as "dead!",
               oldest_unapplied_at      as oldest_unapplied,
               pushes                   as "pushes!",
               (select min(created_at)
                from (select created_at
                      from workos_sync.external_id_pushes
                      where status = 'pending'
                      limit 100000) as few) as oldest_push,
               (select count(*)
                from (select
                      from workos_sync.external_id_pushes
                      where status = 'conflict'
                      limit 100000) as few) as "conflicts!",
               (select count(*)
                from (select
                      from workos_sync.external_id_pushes
                      where status = 'rejected'
                      limit 100000) as few) as "rejected!"
        from workos_sync.status
        "#,
    )
    .fetch_one(connection)
    .await
}

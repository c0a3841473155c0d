//! The SQL of `external_id_pushes`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_scalar};

use super::verdict::{Ending, held_instead};
use crate::event::{OrganizationId, WorkosId};

/// Records the intentions to write organization ids to WorkOS, in the transaction that writes the organizations
/// (R14). An intention that was settled before is due again: the organization still has no `external_id` (R16).
pub(crate) async fn record(
    connection: &mut PgConnection,
    intentions: &BTreeMap<&str, OrganizationId>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let workos_ids: Vec<_> = intentions.keys().copied().collect();
    let ids: Vec<_> = intentions.values().map(OrganizationId::as_str).collect();
    query!(
        r#"
        insert into workos_sync.external_id_pushes as push
            (workos_id, organization_id, next_attempt_at, created_at)
        select workos_id, organization_id, $3, $3
        from unnest($1::text[], $2::text[]) as intentions (workos_id, organization_id)
        on conflict (workos_id) do update
            set status          = 'pending',
                organization_id = excluded.organization_id,
                attempts        = 0,
                last_error      = null,
                next_attempt_at = excluded.next_attempt_at,
                created_at      = case push.status when 'pending' then push.created_at else excluded.created_at end,
                revision        = push.revision + 1,
                settled_at      = null
        "#,
        &workos_ids as _,
        &ids as _,
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// An intention that is this process's to deliver until its lease ends.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) workos_id: WorkosId,
    pub(super) organization_id: OrganizationId,
    /// How often it was claimed, this time included.
    pub(super) attempts: u32,
    /// Which recording this is.
    pub(super) revision: i64,
}

/// Claims what is due, the longest overdue first: moves it ahead by the lease, so that no other process takes it
/// meanwhile, and one does if this one dies (R22). A statement of its own, committed before the first request:
/// nobody waits on a row lock for WorkOS. Nothing during a pause (R49).
pub(super) async fn claim_due(
    connection: &mut PgConnection,
    limit: u32,
    now: DateTime<Utc>,
    lease_ends_at: DateTime<Utc>,
) -> Result<Vec<Claimed>, sqlx::Error> {
    // By external_id_pushes_due_idx. The CTE runs once, whatever the plan; a sub-select after `in` might not, and
    // would then lock more rows than the limit.
    let records = query!(
        r#"
        with pause as materialized (
            select workos_sync.is_paused() as is_on
        ), due as materialized (
            select workos_id
            from workos_sync.external_id_pushes
            where status = 'pending'
              and next_attempt_at <= $1
              and not (select is_on from pause)
            order by next_attempt_at
            limit $3 for update skip locked
        )
        update workos_sync.external_id_pushes as push
        set next_attempt_at = $2,
            attempts        = push.attempts + 1
        from due
        where push.workos_id = due.workos_id
        returning push.workos_id, push.organization_id, push.attempts, push.revision
        "#,
        now,
        lease_ends_at,
        i64::from(limit),
    )
    .fetch_all(connection)
    .await?;
    Ok(records
        .into_iter()
        .map(|record| Claimed {
            workos_id: WorkosId::from_database(record.workos_id),
            organization_id: OrganizationId::from_database(record.organization_id),
            attempts: u32::try_from(record.attempts).unwrap_or(1),
            revision: record.revision,
        })
        .collect())
}

/// Ends the intention. Says whether it was still the one that had been claimed: if it was recorded again
/// meanwhile, it is another, and due.
pub(super) async fn finish(
    connection: &mut PgConnection,
    claimed: &Claimed,
    ending: &Ending,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let result = query!(
        r#"
        update workos_sync.external_id_pushes
        set status     = $3,
            last_error = $4,
            settled_at = $5
        where workos_id = $1
          and revision = $2
          and status = 'pending'
        "#,
        claimed.workos_id.as_str(),
        claimed.revision,
        ending.status(),
        ending.reason(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Makes the intention due again later. An attempt that doesn't count is given back: the next one that fails
/// backs off as if it had not been. Says whether it was still the one that had been claimed.
pub(super) async fn postpone(
    connection: &mut PgConnection,
    claimed: &Claimed,
    until: DateTime<Utc>,
    counts: bool,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    let result = query!(
        r#"
        update workos_sync.external_id_pushes
        set next_attempt_at = $3,
            attempts        = attempts - $4,
            last_error      = $5
        where workos_id = $1
          and revision = $2
          and status = 'pending'
        "#,
        claimed.workos_id.as_str(),
        claimed.revision,
        until,
        i32::from(!counts),
        reason,
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Those of the organizations whose `external_id` is a recorded conflict.
pub(crate) async fn conflicts(
    connection: &mut PgConnection,
    workos_ids: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    query_scalar!(
        r#"
        select workos_id
        from workos_sync.external_id_pushes
        where workos_id = any ($1)
          and status = 'conflict'
        "#,
        workos_ids as _,
    )
    .fetch_all(connection)
    .await
}

/// Records that WorkOS holds another `external_id` than the organization id, which is never overwritten (R15).
pub(crate) async fn record_conflict(
    connection: &mut PgConnection,
    workos_id: &WorkosId,
    organization_id: &OrganizationId,
    held: &OrganizationId,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let reason = held_instead(held.as_str(), organization_id);
    query!(
        r#"
        insert into workos_sync.external_id_pushes as push
            (workos_id, status, organization_id, last_error, next_attempt_at, created_at, settled_at)
        values ($1, 'conflict', $2, $3, $4, $4, $4)
        on conflict (workos_id) do update
            set status          = excluded.status,
                organization_id = excluded.organization_id,
                last_error      = excluded.last_error,
                revision        = push.revision + 1,
                settled_at      = excluded.settled_at
        "#,
        workos_id.as_str(),
        organization_id.as_str(),
        reason,
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

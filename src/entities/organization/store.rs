//! The SQL of `workos_organization_syncs`, and the locks of slugs: the caller holds those of the organizations, which are in
//! the other of the two key spaces that Postgres has (R18). That of the application's table is in `statements`.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query};

use super::decide::SyncCursor;
use super::statements::column;
use crate::event::{EventId, WorkosId};

/// One creator at a time for each base slug (R4, R20), taken in the order given, which must be sorted. The keys
/// are the ones that a signup flow would take too.
pub(super) async fn lock_slugs(
    connection: &mut PgConnection,
    bases: &[&str],
) -> Result<(), sqlx::Error> {
    query!(
        "select pg_advisory_xact_lock(hashtext(base)) from unnest($1::text[]) as bases (base)",
        bases as _,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Tells whoever listens, once the transaction is committed.
pub(super) async fn notify(
    connection: &mut PgConnection,
    payloads: &[String],
) -> Result<(), sqlx::Error> {
    query!(
        "select pg_notify('workos_sync', payload) from unnest($1::text[]) as payloads (payload)",
        payloads,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// The cursors of these WorkOS organizations.
pub(super) async fn fetch_cursors(
    connection: &mut PgConnection,
    workos_ids: &[&str],
) -> Result<Vec<(WorkosId, SyncCursor)>, sqlx::Error> {
    let records = query!(
        r#"
        select workos_id, last_event_id, last_event_updated_at, deleted_at, deletion_is_inferred
        from workos_sync.workos_organization_syncs
        where workos_id = any ($1)
        "#,
        workos_ids as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(records
        .into_iter()
        .map(|record| {
            let cursor = SyncCursor {
                last_event_id: EventId::from_database(record.last_event_id),
                last_event_updated_at: record.last_event_updated_at,
                deleted_at: record.deleted_at,
                deletion_is_inferred: record.deletion_is_inferred,
            };
            (WorkosId::from_database(record.workos_id), cursor)
        })
        .collect())
}

/// A cursor to be advanced.
#[derive(Debug)]
pub(super) struct NewCursor<'a> {
    pub(super) workos_id: &'a str,
    pub(super) last_event_id: &'a str,
    pub(super) last_event_updated_at: Option<DateTime<Utc>>,
    pub(super) deleted_at: Option<DateTime<Utc>>,
    pub(super) deletion_is_inferred: bool,
}

/// Advances cursors of WorkOS organizations, and remembers deletions, for good unless they are inferred. All was decided
/// under the organization's lock, so none goes backwards (R11).
pub(super) async fn advance_cursors(
    connection: &mut PgConnection,
    cursors: &[NewCursor<'_>],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        insert into workos_sync.workos_organization_syncs
            (workos_id, last_event_id, last_event_updated_at, deleted_at, deletion_is_inferred, updated_at)
        select workos_id, last_event_id, last_event_updated_at, deleted_at, deletion_is_inferred, $6
        from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::boolean[])
                 as cursors (workos_id, last_event_id, last_event_updated_at, deleted_at, deletion_is_inferred)
        on conflict (workos_id) do update
            set last_event_id         = excluded.last_event_id,
                last_event_updated_at = excluded.last_event_updated_at,
                deleted_at            = excluded.deleted_at,
                deletion_is_inferred  = excluded.deletion_is_inferred,
                updated_at            = excluded.updated_at
        "#,
        &column(cursors, |cursor| cursor.workos_id) as _,
        &column(cursors, |cursor| cursor.last_event_id) as _,
        &column(cursors, |cursor| cursor.last_event_updated_at) as _,
        &column(cursors, |cursor| cursor.deleted_at) as _,
        &column(cursors, |cursor| cursor.deletion_is_inferred),
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

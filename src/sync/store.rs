//! The SQL of `organization_metadata` and `workos_organization_syncs`, and the locks of slugs: the caller holds those of
//! the organizations, which are in the other of the two key spaces that Postgres has (R18).
//!
//! Statements name their columns, always: the table may have columns of the host application too (R5).

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_as, query_scalar};

use super::decide::{OrganizationRow, SyncCursor};
use crate::event::{EventId, OrganizationId, WorkosId};

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

/// The rows of these WorkOS organizations.
pub(super) async fn rows_by_workos_id(
    connection: &mut PgConnection,
    workos_ids: &[&str],
) -> Result<Vec<OrganizationRow>, sqlx::Error> {
    // By organization_metadata_workos_id_key.
    let rows = query_as!(
        FoundRow,
        r#"
        select id, workos_id, workos_last_event_id as last_event_id, workos_updated_at as updated_at
        from organization_metadata
        where workos_id = any ($1)
        "#,
        workos_ids as _,
    );
    let rows = rows.fetch_all(connection).await?;
    Ok(rows.into_iter().map(OrganizationRow::from).collect())
}

/// The rows with these ids.
pub(super) async fn rows_by_id(
    connection: &mut PgConnection,
    ids: &[&str],
) -> Result<Vec<OrganizationRow>, sqlx::Error> {
    // By organization_metadata_pkey.
    let rows = query_as!(
        FoundRow,
        r#"
        select id, workos_id, workos_last_event_id as last_event_id, workos_updated_at as updated_at
        from organization_metadata
        where id = any ($1)
        "#,
        ids as _,
    );
    let rows = rows.fetch_all(connection).await?;
    Ok(rows.into_iter().map(OrganizationRow::from).collect())
}

/// What is read of a row.
struct FoundRow {
    id: String,
    workos_id: Option<String>,
    last_event_id: Option<String>,
    updated_at: Option<DateTime<Utc>>,
}

impl From<FoundRow> for OrganizationRow {
    fn from(row: FoundRow) -> Self {
        Self {
            id: OrganizationId::from_database(row.id),
            workos_id: row.workos_id.map(WorkosId::from_database),
            last_event_id: row.last_event_id.map(EventId::from_database),
            updated_at: row.updated_at,
        }
    }
}

/// The cursors of these WorkOS organizations.
pub(super) async fn fetch_cursors(
    connection: &mut PgConnection,
    workos_ids: &[&str],
) -> Result<Vec<(WorkosId, SyncCursor)>, sqlx::Error> {
    let records = query!(
        r#"
        select workos_id, last_event_id, last_event_updated_at, deleted_at is not null as "deleted!"
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
                deleted: record.deleted,
            };
            (WorkosId::from_database(record.workos_id), cursor)
        })
        .collect())
}

/// Those of the slugs that a row has.
pub(super) async fn taken_slugs(
    connection: &mut PgConnection,
    slugs: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    // By organization_metadata_slug_key.
    query_scalar!(
        "select slug from organization_metadata where slug = any ($1)",
        slugs as _,
    )
    .fetch_all(connection)
    .await
}

/// A row to be inserted.
#[derive(Debug)]
pub(super) struct NewRow<'a> {
    pub(super) id: &'a str,
    pub(super) name: &'a str,
    pub(super) slug: &'a str,
    pub(super) workos_id: &'a str,
    pub(super) updated_at: Option<DateTime<Utc>>,
    pub(super) last_event_id: &'a str,
    pub(super) disabled_at: Option<DateTime<Utc>>,
}

/// A plain INSERT; a row that is there already is a unique violation, never an upsert (R4). Says how many rows were
/// inserted: a trigger of the host can keep one out in silence.
pub(super) async fn insert(
    connection: &mut PgConnection,
    rows: &[NewRow<'_>],
    now: DateTime<Utc>,
) -> Result<u64, sqlx::Error> {
    let result = query!(
        r#"
        insert into organization_metadata
            (id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at, updated_at)
        select id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at, $8
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[],
                    $7::timestamptz[])
                 as rows (id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at)
        "#,
        &column(rows, |row| row.id) as _,
        &column(rows, |row| row.name) as _,
        &column(rows, |row| row.slug) as _,
        &column(rows, |row| row.workos_id) as _,
        &column(rows, |row| row.updated_at) as _,
        &column(rows, |row| row.last_event_id) as _,
        &column(rows, |row| row.disabled_at) as _,
        now,
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// A row to be updated with what WorkOS says of it.
#[derive(Debug)]
pub(super) struct UpdatedRow<'a> {
    pub(super) id: &'a str,
    pub(super) name: &'a str,
    pub(super) workos_id: &'a str,
    pub(super) updated_at: Option<DateTime<Utc>>,
    pub(super) last_event_id: &'a str,
    /// The WorkOS organization that the row was found linked to.
    pub(super) found_linked_to: Option<&'a str>,
}

/// A plain UPDATE of what WorkOS owns (R5). Says how many rows were still as they were found: one may be gone, or
/// linked to another organization, by a writer that takes none of our locks (R19, R21).
pub(super) async fn update(
    connection: &mut PgConnection,
    rows: &[UpdatedRow<'_>],
    now: DateTime<Utc>,
) -> Result<u64, sqlx::Error> {
    let result = query!(
        r#"
        update organization_metadata as organization
        set name                 = rows.name,
            workos_id            = rows.workos_id,
            workos_updated_at    = rows.workos_updated_at,
            workos_last_event_id = rows.workos_last_event_id,
            updated_at           = $7
        from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[])
                 as rows (id, name, workos_id, workos_updated_at, workos_last_event_id, found_linked_to)
        where organization.id = rows.id
          and organization.workos_id is not distinct from rows.found_linked_to
        "#,
        &column(rows, |row| row.id) as _,
        &column(rows, |row| row.name) as _,
        &column(rows, |row| row.workos_id) as _,
        &column(rows, |row| row.updated_at) as _,
        &column(rows, |row| row.last_event_id) as _,
        &column(rows, |row| row.found_linked_to) as _,
        now,
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// A row to be disabled.
#[derive(Debug)]
pub(super) struct DisabledRow<'a> {
    pub(super) id: &'a str,
    pub(super) workos_id: &'a str,
    pub(super) last_event_id: &'a str,
    pub(super) disabled_at: DateTime<Utc>,
}

/// Sets `disabled_at`, unless it is set, and the cursor (R10). Says how many rows were still there.
pub(super) async fn disable(
    connection: &mut PgConnection,
    rows: &[DisabledRow<'_>],
    now: DateTime<Utc>,
) -> Result<u64, sqlx::Error> {
    let result = query!(
        r#"
        update organization_metadata as organization
        set disabled_at          = coalesce(organization.disabled_at, rows.disabled_at),
            workos_last_event_id = rows.workos_last_event_id,
            updated_at           = $5
        from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[])
                 as rows (id, workos_id, workos_last_event_id, disabled_at)
        where organization.id = rows.id
          and organization.workos_id = rows.workos_id
        "#,
        &column(rows, |row| row.id) as _,
        &column(rows, |row| row.workos_id) as _,
        &column(rows, |row| row.last_event_id) as _,
        &column(rows, |row| row.disabled_at) as _,
        now,
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// A cursor to be advanced.
#[derive(Debug)]
pub(super) struct NewCursor<'a> {
    pub(super) workos_id: &'a str,
    pub(super) last_event_id: &'a str,
    pub(super) last_event_updated_at: Option<DateTime<Utc>>,
    pub(super) deleted_at: Option<DateTime<Utc>>,
}

/// Advances cursors of WorkOS organizations, and remembers deletions for good. The guard has decided under the
/// organization's lock, so none goes backwards (R11).
pub(super) async fn advance_cursors(
    connection: &mut PgConnection,
    cursors: &[NewCursor<'_>],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        insert into workos_sync.workos_organization_syncs as sync
            (workos_id, last_event_id, last_event_updated_at, deleted_at, updated_at)
        select workos_id, last_event_id, last_event_updated_at, deleted_at, $5
        from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[])
                 as cursors (workos_id, last_event_id, last_event_updated_at, deleted_at)
        on conflict (workos_id) do update
            set last_event_id         = excluded.last_event_id,
                last_event_updated_at = excluded.last_event_updated_at,
                deleted_at            = coalesce(sync.deleted_at, excluded.deleted_at),
                updated_at            = excluded.updated_at
        "#,
        &column(cursors, |cursor| cursor.workos_id) as _,
        &column(cursors, |cursor| cursor.last_event_id) as _,
        &column(cursors, |cursor| cursor.last_event_updated_at) as _,
        &column(cursors, |cursor| cursor.deleted_at) as _,
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// One column of rows, as `unnest` takes it.
fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

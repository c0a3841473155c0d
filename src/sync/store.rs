//! The SQL of `organization_metadata` and `workos_organization_syncs`, and the locks of slugs: the caller holds those of
//! the organizations, which are in the other of the two key spaces that Postgres has (R18).
//!
//! Statements name their columns, always: the table may have columns of the host application too (R5). What they read of
//! it they cast, so that a column of another type changes no result: behind a pooler, a server connection keeps a prepared
//! statement that can't be executed any more, whatever we do with ours (R35).

use chrono::{DateTime, Utc};
use sqlx::postgres::PgQueryResult;
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

/// The rows of these WorkOS organizations, by id.
pub(super) async fn rows_by_workos_id(
    connection: &mut PgConnection,
    workos_ids: &[&str],
) -> Result<Vec<OrganizationRow>, sqlx::Error> {
    // By organization_metadata_workos_id_key.
    let rows = query_as!(
        FoundRow,
        r#"
        select id::text                   as "id!",
               workos_id::text,
               workos_last_event_id::text as last_event_id,
               -- Absent where it isn't finite, or later than chrono can hold (R7).
               case when isfinite(workos_updated_at) and workos_updated_at < '262000-01-01'
                   then workos_updated_at::timestamptz end as updated_at,
               case when isfinite(disabled_at) and disabled_at < '262000-01-01'
                   then disabled_at::timestamptz end as disabled_at
        from organization_metadata
        where workos_id = any ($1)
        order by id
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
        select id::text                   as "id!",
               workos_id::text,
               workos_last_event_id::text as last_event_id,
               -- As above.
               case when isfinite(workos_updated_at) and workos_updated_at < '262000-01-01'
                   then workos_updated_at::timestamptz end as updated_at,
               case when isfinite(disabled_at) and disabled_at < '262000-01-01'
                   then disabled_at::timestamptz end as disabled_at
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
    disabled_at: Option<DateTime<Utc>>,
}

impl From<FoundRow> for OrganizationRow {
    fn from(row: FoundRow) -> Self {
        Self {
            id: OrganizationId::from_database(row.id),
            workos_id: row.workos_id.map(WorkosId::from_database),
            last_event_id: row.last_event_id.map(EventId::from_database),
            updated_at: row.updated_at,
            disabled_at: row.disabled_at,
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
        select workos_id, last_event_id, last_event_updated_at, deleted_at
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
        r#"select slug::text as "slug!" from organization_metadata where slug = any ($1)"#,
        slugs as _,
    )
    .fetch_all(connection)
    .await
}

/// A row to be inserted.
#[derive(Debug)]
pub(super) struct NewRow<'a> {
    pub(super) id: &'a OrganizationId,
    pub(super) name: &'a str,
    /// The name and the WorkOS organization that its slug is made of.
    pub(super) slug_of: (&'a str, &'a WorkosId),
    pub(super) workos_id: &'a str,
    pub(super) updated_at: Option<DateTime<Utc>>,
    pub(super) last_event_id: &'a str,
    pub(super) disabled_at: Option<DateTime<Utc>>,
}

/// A plain INSERT; a row that is there already is a unique violation, never an upsert (R4). Says which ids the rows of
/// which WorkOS organizations have: a trigger of the host may assign them (R14).
pub(super) async fn insert(
    connection: &mut PgConnection,
    rows: &[NewRow<'_>],
    slugs: &[String],
    now: DateTime<Utc>,
) -> Result<Vec<(String, OrganizationId)>, sqlx::Error> {
    let inserted = query!(
        r#"
        insert into organization_metadata
            (id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at, updated_at)
        select id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at, $8
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[],
                    $7::timestamptz[])
                 as rows (id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at)
        returning workos_id as "workos_id!", id
        "#,
        &column(rows, |row| row.id.as_str()) as _,
        &column(rows, |row| row.name) as _,
        slugs,
        &column(rows, |row| row.workos_id) as _,
        &column(rows, |row| row.updated_at) as _,
        &column(rows, |row| row.last_event_id) as _,
        &column(rows, |row| row.disabled_at) as _,
        now,
    )
    .fetch_all(connection)
    .await?;
    Ok(inserted
        .into_iter()
        .map(|row| (row.workos_id, OrganizationId::from_database(row.id)))
        .collect())
}

/// What a row holds as far as we know. Every UPDATE is conditional on it: a writer that takes none of our locks, or
/// another organization's event, may have been quicker (R11, R19, R21).
#[derive(Debug)]
pub(super) struct Held<'a> {
    pub(super) workos_id: Option<&'a str>,
    pub(super) last_event_id: Option<&'a str>,
}

impl<'a> Held<'a> {
    /// By a row as it was read.
    pub(super) fn of(row: &'a OrganizationRow) -> Self {
        Self {
            workos_id: row.workos_id.as_ref().map(WorkosId::as_str),
            last_event_id: row.last_event_id.as_ref().map(EventId::as_str),
        }
    }
}

/// A row to be updated with what WorkOS says of it.
#[derive(Debug)]
pub(super) struct UpdatedRow<'a> {
    pub(super) id: &'a str,
    pub(super) held: Held<'a>,
    pub(super) name: &'a str,
    pub(super) workos_id: &'a str,
    pub(super) updated_at: Option<DateTime<Utc>>,
    pub(super) last_event_id: &'a str,
}

/// A plain UPDATE of what WorkOS owns (R5). Says how many rows held what they should.
pub(super) async fn update(
    connection: &mut PgConnection,
    rows: &[UpdatedRow<'_>],
    now: DateTime<Utc>,
) -> Result<usize, sqlx::Error> {
    let result = query!(
        r#"
        update organization_metadata as organization
        set name                 = rows.name,
            workos_id            = rows.workos_id,
            workos_updated_at    = rows.workos_updated_at,
            workos_last_event_id = rows.workos_last_event_id,
            updated_at           = $8
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[])
                 as rows (id, held_workos_id, held_last_event_id, name, workos_id, workos_updated_at,
                          workos_last_event_id)
        where organization.id = rows.id
          and organization.workos_id is not distinct from rows.held_workos_id
          and organization.workos_last_event_id is not distinct from rows.held_last_event_id
        "#,
        &column(rows, |row| row.id) as _,
        &column(rows, |row| row.held.workos_id) as _,
        &column(rows, |row| row.held.last_event_id) as _,
        &column(rows, |row| row.name) as _,
        &column(rows, |row| row.workos_id) as _,
        &column(rows, |row| row.updated_at) as _,
        &column(rows, |row| row.last_event_id) as _,
        now,
    )
    .execute(connection)
    .await?;
    Ok(affected(&result))
}

/// A row whose `disabled_at` is to be cleared.
#[derive(Debug)]
pub(super) struct EnabledRow<'a> {
    pub(super) id: &'a str,
    pub(super) held: Held<'a>,
    pub(super) disabled_at: DateTime<Utc>,
}

/// Clears `disabled_at` (R6). Says how many rows held what they should, `disabled_at` included.
pub(super) async fn enable(
    connection: &mut PgConnection,
    rows: &[EnabledRow<'_>],
    now: DateTime<Utc>,
) -> Result<usize, sqlx::Error> {
    let result = query!(
        r#"
        update organization_metadata as organization
        set disabled_at = null,
            updated_at  = $5
        from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[])
                 as rows (id, held_workos_id, held_last_event_id, disabled_at)
        where organization.id = rows.id
          and organization.workos_id is not distinct from rows.held_workos_id
          and organization.workos_last_event_id is not distinct from rows.held_last_event_id
          and organization.disabled_at = rows.disabled_at
        "#,
        &column(rows, |row| row.id) as _,
        &column(rows, |row| row.held.workos_id) as _,
        &column(rows, |row| row.held.last_event_id) as _,
        &column(rows, |row| row.disabled_at) as _,
        now,
    )
    .execute(connection)
    .await?;
    Ok(affected(&result))
}

/// A row to be disabled.
#[derive(Debug)]
pub(super) struct DisabledRow<'a> {
    pub(super) id: &'a str,
    pub(super) held: Held<'a>,
    pub(super) workos_id: &'a str,
    /// None where the row has no cursor, and the deletion isn't newer than it.
    pub(super) last_event_id: Option<&'a str>,
    pub(super) disabled_at: DateTime<Utc>,
}

/// Sets `disabled_at`, unless it is set, the link and the cursor (R10). Says how many rows held what they should.
pub(super) async fn disable(
    connection: &mut PgConnection,
    rows: &[DisabledRow<'_>],
    now: DateTime<Utc>,
) -> Result<usize, sqlx::Error> {
    let result = query!(
        r#"
        update organization_metadata as organization
        set workos_id            = rows.workos_id,
            workos_last_event_id = rows.workos_last_event_id,
            disabled_at          = coalesce(organization.disabled_at, rows.disabled_at),
            updated_at           = $7
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
                 as rows (id, held_workos_id, held_last_event_id, workos_id, workos_last_event_id, disabled_at)
        where organization.id = rows.id
          and organization.workos_id is not distinct from rows.held_workos_id
          and organization.workos_last_event_id is not distinct from rows.held_last_event_id
        "#,
        &column(rows, |row| row.id) as _,
        &column(rows, |row| row.held.workos_id) as _,
        &column(rows, |row| row.held.last_event_id) as _,
        &column(rows, |row| row.workos_id) as _,
        &column(rows, |row| row.last_event_id) as _,
        &column(rows, |row| row.disabled_at) as _,
        now,
    )
    .execute(connection)
    .await?;
    Ok(affected(&result))
}

/// How many rows a statement wrote.
fn affected(result: &PgQueryResult) -> usize {
    usize::try_from(result.rows_affected()).expect("they were given to the statement, from memory")
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

//! The SQL of `organization_metadata` and `workos_organization_syncs`, and the advisory locks.
//!
//! **Order of locks.** The organization's lock comes first, then a slug's, then rows. Both advisory locks are
//! of the transaction, so that they survive a connection pooler and go with a lost connection. They live in
//! the two key spaces that Postgres has for them, and so can never be mistaken for each other (R18).
//!
//! Statements name their columns, always: the table may have columns of the host application too (R5).

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_scalar};

use super::decide::{Found, Link, OrganizationRow, SyncCursor};
use crate::event::{EventId, OrganizationEvent, OrganizationId, WorkosId};

/// The first of the two integers of an organization's lock: `hashtext('workos-sync organization')`.
const ORGANIZATION_LOCKS: i32 = 1_061_423_321;

/// How many slug candidates are asked for at once. The second is free in practice; the rest cost nothing.
pub(super) const SLUGS_AT_ONCE: usize = 5;

/// One writer at a time for each WorkOS organization, across processes (R18).
pub(crate) async fn lock_organization(
    connection: &mut PgConnection,
    lane: &str,
) -> Result<(), sqlx::Error> {
    query!(
        "select pg_advisory_xact_lock($1, hashtext($2))",
        ORGANIZATION_LOCKS,
        lane
    )
    .execute(connection)
    .await
    .map(drop)
}

/// One creator at a time for each base slug (R4, R20). The key is the one that a signup flow would take too.
pub(super) async fn lock_slug(
    connection: &mut PgConnection,
    base: &str,
) -> Result<(), sqlx::Error> {
    query!("select pg_advisory_xact_lock(hashtext($1))", base)
        .execute(connection)
        .await
        .map(drop)
}

/// Everything that the decision needs: the rows by WorkOS organization id and by candidate id, and the cursor.
pub(super) async fn fetch(
    connection: &mut PgConnection,
    workos_id: &WorkosId,
    candidate_id: &OrganizationId,
) -> Result<Found, sqlx::Error> {
    // By organization_metadata_workos_id_key and organization_metadata_pkey; no row on the right of a join
    // is missing, so one round trip brings all three.
    let record = query!(
        r#"
        select by_workos_id.id                   as "id?",
               by_workos_id.workos_last_event_id as "last_event_id?",
               by_workos_id.workos_updated_at    as "updated_at?",
               by_id.id                          as "candidate_id?",
               by_id.workos_id                   as "candidate_workos_id?",
               by_id.workos_last_event_id        as "candidate_last_event_id?",
               by_id.workos_updated_at           as "candidate_updated_at?",
               sync.last_event_id                as "cursor_event_id?",
               sync.last_event_updated_at        as "cursor_updated_at?",
               sync.deleted_at                   as "deleted_at?"
        from (select $1::text as workos_id, $2::text as candidate_id) as wanted
                 left join organization_metadata by_workos_id
                           on by_workos_id.workos_id = wanted.workos_id
                 left join organization_metadata by_id on by_id.id = wanted.candidate_id
                 left join workos_organization_syncs sync on sync.workos_id = wanted.workos_id
        "#,
        workos_id.as_str(),
        candidate_id.as_str(),
    )
    .fetch_one(connection)
    .await?;

    Ok(Found {
        by_workos_id: record.id.map(|id| OrganizationRow {
            id: OrganizationId::from_database(id),
            workos_id: Some(workos_id.clone()),
            last_event_id: record.last_event_id.map(EventId::from_database),
            updated_at: record.updated_at,
        }),
        by_candidate_id: record.candidate_id.map(|id| OrganizationRow {
            id: OrganizationId::from_database(id),
            workos_id: record.candidate_workos_id.map(WorkosId::from_database),
            last_event_id: record.candidate_last_event_id.map(EventId::from_database),
            updated_at: record.candidate_updated_at,
        }),
        cursor: record.cursor_event_id.map(|id| SyncCursor {
            last_event_id: EventId::from_database(id),
            last_event_updated_at: record.cursor_updated_at,
            deleted: record.deleted_at.is_some(),
        }),
    })
}

/// The first of the candidates that no row has.
pub(super) async fn first_free_slug(
    connection: &mut PgConnection,
    candidates: &[String],
) -> Result<Option<String>, sqlx::Error> {
    // A probe of organization_metadata_slug_key each.
    query_scalar!(
        r#"
        select candidate as "candidate!"
        from unnest($1::text[]) with ordinality as candidates (candidate, place)
        where not exists (select from organization_metadata where slug = candidate)
        order by place
        limit 1
        "#,
        candidates,
    )
    .fetch_optional(connection)
    .await
}

/// A plain INSERT; a row that is there already is a unique violation, never an upsert (R4).
pub(super) async fn insert(
    connection: &mut PgConnection,
    id: &OrganizationId,
    name: &str,
    slug: &str,
    disabled_at: Option<DateTime<Utc>>,
    event: &OrganizationEvent,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        insert into organization_metadata
            (id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8)
        "#,
        id.as_str(),
        name,
        slug,
        event.workos_id.as_str(),
        event.updated_at,
        event.id.as_str(),
        disabled_at,
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// A plain UPDATE of what WorkOS owns (R5). Says whether the row was still as it was found: it may be gone, or
/// linked to another organization, by a writer that takes none of our locks (R19, R21).
pub(super) async fn update(
    connection: &mut PgConnection,
    id: &OrganizationId,
    name: &str,
    link: &Link,
    event: &OrganizationEvent,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let linked_to = match link {
        Link::Kept => Some(event.workos_id.as_str()),
        Link::Linked => None,
        Link::Relinked { from } => Some(from.as_str()),
    };
    let result = query!(
        r#"
        update organization_metadata
        set name                 = $2,
            workos_id            = $3,
            workos_updated_at    = $4,
            workos_last_event_id = $5,
            updated_at           = $6
        where id = $1
          and workos_id is not distinct from $7
        "#,
        id.as_str(),
        name,
        event.workos_id.as_str(),
        event.updated_at,
        event.id.as_str(),
        now,
        linked_to,
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Sets `disabled_at`, unless it is set, and the cursor (R10). Says whether the row was still there.
pub(super) async fn disable(
    connection: &mut PgConnection,
    id: &OrganizationId,
    disabled_at: DateTime<Utc>,
    event: &OrganizationEvent,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let result = query!(
        r#"
        update organization_metadata
        set disabled_at          = coalesce(disabled_at, $2),
            workos_last_event_id = $3,
            updated_at           = $4
        where id = $1
          and workos_id = $5
        "#,
        id.as_str(),
        disabled_at,
        event.id.as_str(),
        now,
        event.workos_id.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Advances the cursor of the WorkOS organization, and remembers a deletion for good. The guard has decided
/// under the organization's lock, so it never goes backwards (R11).
pub(super) async fn advance_cursor(
    connection: &mut PgConnection,
    deleted_at: Option<DateTime<Utc>>,
    event: &OrganizationEvent,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        insert into workos_organization_syncs as sync
            (workos_id, last_event_id, last_event_updated_at, deleted_at, updated_at)
        values ($1, $2, $3, $4, $5)
        on conflict (workos_id) do update
            set last_event_id         = excluded.last_event_id,
                last_event_updated_at = excluded.last_event_updated_at,
                deleted_at            = coalesce(sync.deleted_at, excluded.deleted_at),
                updated_at            = excluded.updated_at
        "#,
        event.workos_id.as_str(),
        event.id.as_str(),
        event.updated_at,
        deleted_at,
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

//! The rows as a comparison with WorkOS needs them (R43).

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query_as, query_scalar};

use crate::event::{OrganizationId, WorkosId};

/// A row that is linked to a WorkOS organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkedRow {
    /// `id`
    pub id: OrganizationId,
    /// `workos_id`
    pub workos_id: WorkosId,
    /// `name`
    pub name: String,
    /// `disabled_at`
    pub disabled_at: Option<DateTime<Utc>>,
}

struct Raw {
    id: String,
    workos_id: String,
    name: String,
    disabled_at: Option<DateTime<Utc>>,
}

impl From<Raw> for LinkedRow {
    fn from(raw: Raw) -> Self {
        Self {
            id: OrganizationId::from_database(raw.id),
            workos_id: WorkosId::from_database(raw.workos_id),
            name: raw.name,
            disabled_at: raw.disabled_at,
        }
    }
}

/// The rows of these WorkOS organizations.
///
/// # Errors
/// The database doesn't answer.
pub async fn linked_rows(
    connection: &mut PgConnection,
    workos_ids: &[&str],
) -> Result<Vec<LinkedRow>, sqlx::Error> {
    // By organization_metadata_workos_id_key.
    let rows = query_as!(
        Raw,
        r#"
        select id, workos_id as "workos_id!", name, disabled_at
        from organization_metadata
        where workos_id = any ($1)
        "#,
        workos_ids as _,
    );
    let rows = rows.fetch_all(connection).await?;
    Ok(rows.into_iter().map(LinkedRow::from).collect())
}

/// The linked, active rows behind a WorkOS organization id, in the order of these; at most `limit`.
///
/// # Errors
/// The database doesn't answer.
pub async fn active_rows_after(
    connection: &mut PgConnection,
    after: &str,
    limit: i64,
) -> Result<Vec<LinkedRow>, sqlx::Error> {
    // By organization_metadata_workos_id_key. An empty workos_id is none.
    let rows = query_as!(
        Raw,
        r#"
        select id, workos_id as "workos_id!", name, disabled_at
        from organization_metadata
        where workos_id > $1
          and disabled_at is null
        order by workos_id
        limit $2
        "#,
        after,
        limit,
    );
    let rows = rows.fetch_all(connection).await?;
    Ok(rows.into_iter().map(LinkedRow::from).collect())
}

/// Some of the linked, active WorkOS organizations: the first and the last ones, for what was deleted lately may be any
/// stretch of them; at most twice `limit`.
///
/// # Errors
/// The database doesn't answer.
pub async fn some_active(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<WorkosId>, sqlx::Error> {
    // By organization_metadata_workos_id_key, from both ends.
    let ids = query_scalar!(
        r#"
        (select workos_id as "workos_id!"
         from organization_metadata
         where workos_id > ''
           and disabled_at is null
         order by workos_id desc
         limit $1)
        union
        (select workos_id
         from organization_metadata
         where workos_id > ''
           and disabled_at is null
         order by workos_id
         limit $1)
        "#,
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().map(WorkosId::from_database).collect())
}

/// How many linked, active rows there are.
///
/// # Errors
/// The database doesn't answer.
pub async fn count_active_rows(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    query_scalar!(
        r#"
        select count(*) as "count!"
        from organization_metadata
        where workos_id > ''
          and disabled_at is null
        "#
    )
    .fetch_one(connection)
    .await
}

/// Whether any row is linked.
///
/// # Errors
/// The database doesn't answer.
pub async fn has_linked_rows(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    query_scalar!(
        r#"select exists (select from organization_metadata where workos_id > '') as "exists!""#
    )
    .fetch_one(connection)
    .await
}

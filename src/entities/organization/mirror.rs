//! The rows as a comparison with WorkOS needs them (R43). Asked for by commands only, so the statements are built as they
//! are needed.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, query_as, query_scalar};

use super::statements::{Sql, Statements};
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

/// A row of the application's table, as far as it is ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct MappedRow {
    /// `id`
    pub id: String,
    /// `name`
    pub name: Option<String>,
    /// `slug`
    pub slug: Option<String>,
    /// `workos_id`
    pub workos_id: Option<String>,
    /// `workos_updated_at`
    pub workos_updated_at: Option<DateTime<Utc>>,
    /// `workos_last_event_id`
    pub workos_last_event_id: Option<String>,
    /// `disabled_at`
    pub disabled_at: Option<DateTime<Utc>>,
}

#[derive(FromRow)]
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

impl Statements {
    /// The rows of these WorkOS organizations.
    ///
    /// # Errors
    /// The database doesn't answer, or the table can't be used.
    pub async fn linked_rows(
        &self,
        connection: &mut PgConnection,
        workos_ids: &[&str],
    ) -> Result<Vec<LinkedRow>, sqlx::Error> {
        let sql = Sql(self.table());
        let (table, is_asked) = (&self.table().name, sql.is("workos_id", "asked.asked"));
        let (rows, disabled_at) = (sql.in_index_of("workos_id"), sql.time("disabled_at"));
        // By the index of workos_id. As in `rows_by`.
        let statement = format!(
            "select found.id, asked as workos_id, found.name, found.disabled_at
             from unnest($1::text[]) as asked (asked)
                      cross join lateral (
                 select organization.id::text as id, organization.name::text as name, {disabled_at} as disabled_at
                 from {table} as organization
                 where {is_asked}{rows}
                 offset 0) as found"
        );
        let rows: Vec<Raw> = query_as(AssertSqlSafe(statement))
            .bind(workos_ids)
            .fetch_all(connection)
            .await?;
        Ok(rows.into_iter().map(LinkedRow::from).collect())
    }

    /// The row that an id means: that of a WorkOS organization, or else the one that has the id as its key.
    ///
    /// # Errors
    /// The database doesn't answer, or the table can't be used.
    pub async fn mapped_row(
        &self,
        connection: &mut PgConnection,
        id: &str,
    ) -> Result<Option<MappedRow>, sqlx::Error> {
        let by_workos_id = self.mapped_row_by("workos_id");
        let mut row = query_as(AssertSqlSafe(by_workos_id))
            .bind(id)
            .fetch_optional(&mut *connection)
            .await?;
        if row.is_none() && self.can_be_key(id) {
            row = query_as(AssertSqlSafe(self.mapped_row_by("id")))
                .bind(id)
                .fetch_optional(connection)
                .await?;
        }
        Ok(row)
    }

    fn mapped_row_by(&self, column: &str) -> String {
        let sql = Sql(self.table());
        let (table, is_asked) = (&self.table().name, sql.is(column, "asked.asked"));
        let rows = sql.in_index_of(column);
        let (updated_at, disabled_at) = (sql.time("workos_updated_at"), sql.time("disabled_at"));
        // By the index of the column. As in `rows_by`.
        format!(
            "select found.*
             from (select $1::text as asked) as asked
                      cross join lateral (
                 select organization.id::text                    as id,
                        organization.name::text                  as name,
                        organization.slug::text                  as slug,
                        nullif(organization.workos_id::text, '') as workos_id,
                        {updated_at}                             as workos_updated_at,
                        organization.workos_last_event_id::text  as workos_last_event_id,
                        {disabled_at}                            as disabled_at
                 from {table} as organization
                 where {is_asked}{rows}
                 offset 0) as found
             limit 1"
        )
    }

    /// The linked, active rows behind a WorkOS organization id, in the order of these; at most `limit`.
    ///
    /// # Errors
    /// The database doesn't answer, or the table can't be used.
    pub async fn active_rows_after(
        &self,
        connection: &mut PgConnection,
        after: &str,
        limit: i64,
    ) -> Result<Vec<LinkedRow>, sqlx::Error> {
        let active = self.active("$1");
        let statement = format!(
            "select organization.id::text as id, organization.workos_id::text as workos_id,
                    organization.name::text as name, null::timestamptz as disabled_at
             from {active}
             order by organization.workos_id
             limit $2"
        );
        let rows: Vec<Raw> = query_as(AssertSqlSafe(statement))
            .bind(after)
            .bind(limit)
            .fetch_all(connection)
            .await?;
        Ok(rows.into_iter().map(LinkedRow::from).collect())
    }

    /// Some of the linked, active WorkOS organizations: the first and the last ones, for what was deleted lately may be any
    /// stretch of them; at most twice `limit`.
    ///
    /// # Errors
    /// The database doesn't answer, or the table can't be used.
    pub async fn some_active(
        &self,
        connection: &mut PgConnection,
        limit: i64,
    ) -> Result<Vec<WorkosId>, sqlx::Error> {
        let active = self.active("''");
        let end = |direction| {
            format!(
                "(select organization.workos_id::text from {active}
                  order by organization.workos_id {direction} limit $1)"
            )
        };
        let statement = format!("{} union {}", end("asc"), end("desc"));
        let ids: Vec<String> = query_scalar(AssertSqlSafe(statement))
            .bind(limit)
            .fetch_all(connection)
            .await?;
        Ok(ids.into_iter().map(WorkosId::from_database).collect())
    }

    /// How many linked, active rows there are.
    ///
    /// # Errors
    /// The database doesn't answer, or the table can't be used.
    pub async fn count_active(&self, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let statement = format!("select count(*) from {}", self.active("''"));
        query_scalar(AssertSqlSafe(statement))
            .fetch_one(connection)
            .await
    }

    /// Whether any row is linked.
    ///
    /// # Errors
    /// The database doesn't answer, or the table can't be used.
    pub async fn has_linked(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let linked = self.linked("''");
        let statement = format!("select exists (select from {linked})");
        query_scalar(AssertSqlSafe(statement))
            .fetch_one(connection)
            .await
    }

    /// The rows that are linked, behind a WorkOS organization id. By the index of `workos_id`; an empty one is none.
    fn linked(&self, after: &str) -> String {
        let sql = Sql(self.table());
        let (table, after) = (&self.table().name, sql.cast("workos_id", after));
        let rows = sql.in_index_of("workos_id");
        format!("{table} as organization where organization.workos_id > {after}{rows}")
    }

    /// Those of them that are active.
    fn active(&self, after: &str) -> String {
        format!(
            "{} and organization.disabled_at is null",
            self.linked(after)
        )
    }
}

//! The SQL of the application's table. That table isn't known when we are compiled, so its statements are built from its
//! description: once when it is read, and again when it has changed (R32, R34).
//!
//! - Statements name their columns, always: the table may have columns of the application's own too (R5).
//! - What a row is looked up by is cast to the column's type, never the column to ours: so each goes by an index, and
//!   "equal" means what that index means by it. The answer repeats what was asked, and nobody compares again.
//! - What is read is a text or a time, whatever the column is, so that another type of it changes no result: behind a pooler,
//!   a server connection keeps a prepared statement that can't be executed any more, whatever we do with ours (R35).
//! - A `timestamp` holds UTC, whatever the zone of the session.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgQueryResult};
use sqlx::query::{Query, QueryAs, QueryScalar};
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres};
use uuid::Uuid;

use super::decide::OrganizationRow;
use super::host::{Column, HostTable, Key, Rows, Value};
use super::precision::{Precision, RowPrecision};
use super::{ApplyError, ColumnTooShort, NotAUuid, SlugRefused, slug};
use crate::event::{EventId, OrganizationId, WorkosId};
use crate::postgres::error;

/// The statements on the application's table, built from its description.
#[derive(Debug)]
pub struct Statements {
    table: Arc<HostTable>,
    rows_by_workos_id: Arc<str>,
    rows_by_id: Arc<str>,
    taken_slugs: Arc<str>,
    insert: Arc<str>,
    update: Arc<str>,
    enable: Arc<str>,
    disable: Arc<str>,
    keys_are_uuids: bool,
    precision: RowPrecision,
    slug_length: usize,
}

/// A row that was looked up.
#[derive(Debug)]
pub(super) struct Named {
    /// What it was looked up by, as it was asked.
    pub(super) asked: String,
    pub(super) row: OrganizationRow,
}

#[derive(FromRow)]
struct FoundRow {
    asked: String,
    id: String,
    workos_id: Option<String>,
    last_event_id: Option<String>,
    updated_at: Option<DateTime<Utc>>,
    disabled_at: Option<DateTime<Utc>>,
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

/// A row whose `disabled_at` is to be cleared.
#[derive(Debug)]
pub(super) struct EnabledRow<'a> {
    pub(super) id: &'a str,
    pub(super) held: Held<'a>,
    pub(super) disabled_at: DateTime<Utc>,
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

impl Statements {
    /// Builds them. Of a table that can't be used they fail, and the database says why.
    #[must_use]
    pub fn new(table: Arc<HostTable>) -> Self {
        let sql = Sql(&table);
        let precision = |column| match table.column(column) {
            Some(Column {
                value: Value::Timestamp { precision, .. },
                ..
            }) => Precision::digits(*precision),
            _ => Precision::FULL,
        };
        let slug_length = table.column("slug").and_then(Column::max_length);
        let slug_length = slug_length.and_then(|length| usize::try_from(length).ok());
        Self {
            rows_by_workos_id: sql.rows_by("workos_id").into(),
            rows_by_id: sql.rows_by("id").into(),
            taken_slugs: sql.taken_slugs().into(),
            insert: sql.insert().into(),
            update: sql.update().into(),
            enable: sql.enable().into(),
            disable: sql.disable().into(),
            keys_are_uuids: table
                .column("id")
                .is_some_and(|column| column.value == Value::Uuid),
            precision: RowPrecision {
                updated_at: precision("workos_updated_at"),
                disabled_at: precision("disabled_at"),
            },
            slug_length: slug_length.map_or(slug::MAX_LENGTH, |length| {
                std::cmp::min(length, slug::MAX_LENGTH)
            }),
            table,
        }
    }

    /// The description that they were built from.
    #[must_use]
    pub const fn table(&self) -> &Arc<HostTable> {
        &self.table
    }

    /// How exact the times of the rows are.
    pub(super) const fn precision(&self) -> RowPrecision {
        self.precision
    }

    /// The longest slug that the column holds.
    pub(super) const fn slug_length(&self) -> usize {
        self.slug_length
    }

    /// The id as the key would have it; one that can't be a key stays as it is.
    pub(super) fn spell(&self, id: OrganizationId) -> OrganizationId {
        match Uuid::try_parse(id.as_str()) {
            Ok(uuid) if self.keys_are_uuids => {
                OrganizationId::from_database(uuid.hyphenated().to_string())
            }
            _ => id,
        }
    }

    /// Says whether a row can have the id.
    pub(super) fn can_be_key(&self, id: &str) -> bool {
        !self.keys_are_uuids || Uuid::try_parse(id).is_ok()
    }

    /// The rows of these WorkOS organizations.
    pub(super) async fn rows_by_workos_id(
        &self,
        connection: &mut PgConnection,
        workos_ids: &[&str],
    ) -> Result<Vec<Named>, sqlx::Error> {
        let rows = query_as(&self.rows_by_workos_id).bind(workos_ids);
        Ok(self.named(rows.fetch_all(connection).await?))
    }

    /// The rows with these ids, each of which can be a key.
    pub(super) async fn rows_by_id(
        &self,
        connection: &mut PgConnection,
        ids: &[&str],
    ) -> Result<Vec<Named>, sqlx::Error> {
        let rows = query_as(&self.rows_by_id).bind(ids);
        Ok(self.named(rows.fetch_all(connection).await?))
    }

    fn named(&self, rows: Vec<FoundRow>) -> Vec<Named> {
        let named = rows.into_iter().map(|row| Named {
            asked: row.asked,
            row: OrganizationRow {
                id: OrganizationId::from_database(row.id),
                workos_id: row.workos_id.map(WorkosId::from_database),
                last_event_id: row.last_event_id.map(EventId::from_database),
                updated_at: row.updated_at,
                disabled_at: row.disabled_at,
                precision: self.precision,
            },
        });
        named.collect()
    }

    /// Those of the slugs that the table would refuse, as far as it can be asked (R9).
    pub(super) async fn taken_slugs(
        &self,
        connection: &mut PgConnection,
        slugs: &[&str],
    ) -> Result<Vec<String>, sqlx::Error> {
        query_scalar(&self.taken_slugs)
            .bind(slugs)
            .fetch_all(connection)
            .await
    }

    /// A plain INSERT; a row that is there already is a unique violation, never an upsert (R4). Says which ids the rows of
    /// which WorkOS organizations have: a trigger of the application may assign them (R14).
    pub(super) async fn insert(
        &self,
        connection: &mut PgConnection,
        rows: &[NewRow<'_>],
        slugs: &[String],
        now: DateTime<Utc>,
    ) -> Result<Vec<(String, OrganizationId)>, ApplyError> {
        if let Some(row) = rows.iter().find(|row| !self.can_be_key(row.id.as_str())) {
            return Err(NotAUuid {
                external_id: row.id.clone(),
                table: self.table.name.clone(),
            }
            .into());
        }
        let inserted = query_as(&self.insert)
            .bind(column(rows, |row| row.id.as_str()))
            .bind(column(rows, |row| row.name))
            .bind(slugs)
            .bind(column(rows, |row| row.workos_id))
            .bind(column(rows, |row| row.updated_at))
            .bind(column(rows, |row| row.last_event_id))
            .bind(column(rows, |row| row.disabled_at))
            .bind(now)
            .fetch_all(connection)
            .await;
        let inserted: Vec<(String, String)> = match (inserted, slugs) {
            (Ok(inserted), _) => inserted,
            (Err(error), [slug]) if self.may_be_about_the_slug(&error) => {
                let slug = slug.clone();
                return Err(SlugRefused { slug, error }.into());
            }
            (Err(error), _) => {
                let values = rows.iter().flat_map(|row| {
                    [
                        ("id", row.id.as_str()),
                        ("name", row.name),
                        ("workos_id", row.workos_id),
                        ("workos_last_event_id", row.last_event_id),
                    ]
                });
                return Err(self.explain(error, values));
            }
        };
        Ok(inserted
            .into_iter()
            .map(|(workos_id, id)| (workos_id, OrganizationId::from_database(id)))
            .collect())
    }

    /// A plain UPDATE of what WorkOS owns (R5). Says how many rows held what they should.
    pub(super) async fn update(
        &self,
        connection: &mut PgConnection,
        rows: &[UpdatedRow<'_>],
        now: DateTime<Utc>,
    ) -> Result<usize, ApplyError> {
        let result = query(&self.update)
            .bind(column(rows, |row| row.id))
            .bind(column(rows, |row| row.held.workos_id))
            .bind(column(rows, |row| row.held.last_event_id))
            .bind(column(rows, |row| row.name))
            .bind(column(rows, |row| row.workos_id))
            .bind(column(rows, |row| row.updated_at))
            .bind(column(rows, |row| row.last_event_id))
            .bind(now)
            .execute(connection)
            .await;
        let result = result.map_err(|error| {
            let values = rows.iter().flat_map(|row| {
                [
                    ("name", row.name),
                    ("workos_id", row.workos_id),
                    ("workos_last_event_id", row.last_event_id),
                ]
            });
            self.explain(error, values)
        })?;
        Ok(affected(&result))
    }

    /// Clears `disabled_at` (R6). Says how many rows held what they should, `disabled_at` included.
    pub(super) async fn enable(
        &self,
        connection: &mut PgConnection,
        rows: &[EnabledRow<'_>],
        now: DateTime<Utc>,
    ) -> Result<usize, sqlx::Error> {
        let result = query(&self.enable)
            .bind(column(rows, |row| row.id))
            .bind(column(rows, |row| row.held.workos_id))
            .bind(column(rows, |row| row.held.last_event_id))
            .bind(column(rows, |row| row.disabled_at))
            .bind(now)
            .execute(connection)
            .await?;
        Ok(affected(&result))
    }

    /// Sets `disabled_at`, unless it is set, the link and the cursor (R10). Says how many rows held what they should.
    pub(super) async fn disable(
        &self,
        connection: &mut PgConnection,
        rows: &[DisabledRow<'_>],
        now: DateTime<Utc>,
    ) -> Result<usize, ApplyError> {
        let result = query(&self.disable)
            .bind(column(rows, |row| row.id))
            .bind(column(rows, |row| row.held.workos_id))
            .bind(column(rows, |row| row.held.last_event_id))
            .bind(column(rows, |row| row.workos_id))
            .bind(column(rows, |row| row.last_event_id))
            .bind(column(rows, |row| row.disabled_at))
            .bind(now)
            .execute(connection)
            .await;
        let result = result.map_err(|error| {
            let values = rows.iter().flat_map(|row| {
                [
                    ("workos_id", row.workos_id),
                    (
                        "workos_last_event_id",
                        row.last_event_id.unwrap_or_default(),
                    ),
                ]
            });
            self.explain(error, values)
        })?;
        Ok(affected(&result))
    }

    /// Says whether a violation may be about the slug: of an index of other columns alone it isn't. One that isn't known,
    /// such as one behind a view, may be.
    fn may_be_about_the_slug(&self, error: &sqlx::Error) -> bool {
        let Some(constraint) = error::taken_by(error) else {
            return false;
        };
        let known = self.table.unique.iter();
        !known
            .filter(|index| index.name == constraint)
            .any(|index| !index.may_cover("slug"))
    }

    /// What keeps a value out of its column, where the database names neither.
    fn explain<'a>(
        &self,
        error: sqlx::Error,
        mut values: impl Iterator<Item = (&'static str, &'a str)>,
    ) -> ApplyError {
        if !error::is_too_long(&error) {
            return error.into();
        }
        let too_short = values.find_map(|(name, value)| {
            let column = self.table.column(name)?;
            let most = usize::try_from(column.max_length()?).ok()?;
            // Postgres cuts blanks off by itself.
            let length = value.trim_end_matches(' ').chars().count();
            (length > most).then(|| (name, column.declared.clone(), length))
        });
        match too_short {
            Some((column, declared, length)) => ColumnTooShort {
                column,
                table: self.table.name.clone(),
                declared,
                length,
                error,
            }
            .into(),
            None => error.into(),
        }
    }
}

/// Writes the statements.
pub(super) struct Sql<'a>(pub(super) &'a HostTable);

impl Sql<'_> {
    /// A text, as a value of a column.
    pub(super) fn cast(&self, column: &str, value: &str) -> String {
        let cast = self.0.column(column).map(Column::cast);
        format!("{value}::{}", cast.as_deref().unwrap_or("text"))
    }

    /// The column is equal to a text.
    pub(super) fn is(&self, column: &str, value: &str) -> String {
        let equals = self.0.column(column).map(Column::equals);
        let equals = equals.as_deref().unwrap_or("=");
        format!(
            "organization.{column} {equals} {}",
            self.cast(column, value)
        )
    }

    /// The zone that turns a column that holds UTC into a time, and back.
    fn zone(&self, column: &str) -> &'static str {
        match self.0.column(column).map(|column| &column.value) {
            Some(Value::Timestamp {
                with_time_zone: false,
                ..
            }) => " at time zone 'UTC'",
            _ => "",
        }
    }

    /// The time in a column; absent where it isn't finite, or later than chrono can hold (R7).
    pub(super) fn time(&self, column: &str) -> String {
        let zone = self.zone(column);
        format!(
            "case when isfinite(organization.{column}) and organization.{column} < '262000-01-01'
                 then (organization.{column}{zone})::timestamptz end"
        )
    }

    /// The index of a column is used only where it is said that its rows are enough.
    pub(super) fn in_index_of(&self, column: &str) -> String {
        match self.0.unique_by(column).map(|index| &index.rows) {
            Some(Rows::NotEmpty(predicate)) => format!(" and {predicate}"),
            _ => String::new(),
        }
    }

    /// The rows that a column names. The subquery keeps the planner from reading the table through and looking up there
    /// what was asked, which it prefers as long as the table's statistics are those of a small one.
    fn rows_by(&self, column: &str) -> String {
        let table = &self.0.name;
        let is_asked = self.is(column, "asked.asked");
        let rows = self.in_index_of(column);
        let (updated_at, disabled_at) = (self.time("workos_updated_at"), self.time("disabled_at"));
        format!(
            "select asked, id, workos_id, last_event_id, updated_at, disabled_at
             from unnest($1::text[]) as asked (asked)
                      cross join lateral (
                 select organization.id::text                    as id,
                        nullif(organization.workos_id::text, '') as workos_id,
                        organization.workos_last_event_id::text  as last_event_id,
                        {updated_at} as updated_at,
                        {disabled_at} as disabled_at
                 from {table} as organization
                 where {is_asked}{rows}
                 offset 0) as found"
        )
    }

    /// Taken is what a unique index would refuse. Candidates are in lower case.
    fn taken_slugs(&self) -> String {
        let table = &self.0.name;
        let equal = self.is("slug", "candidate.slug");
        let mut conditions = Vec::new();
        for index in self.0.unique_covering("slug") {
            let rows = match &index.rows {
                Rows::All => String::new(),
                Rows::NotEmpty(predicate) | Rows::Some(predicate) => format!(" and {predicate}"),
            };
            for key in &index.keys {
                let condition = match key {
                    Key::Column(column) if column == "slug" => equal.clone(),
                    Key::Lower(column) if column == "slug" => {
                        "lower(organization.slug) = candidate.slug".to_owned()
                    }
                    _ => continue,
                };
                conditions.push(format!("{condition}{rows}"));
            }
        }
        if conditions.is_empty() {
            conditions.push(equal);
        }
        conditions.sort();
        conditions.dedup();
        // Each by its index, as above.
        let is_taken: Vec<_> = conditions
            .into_iter()
            .map(|condition| {
                format!("exists (select from {table} as organization where {condition} offset 0)")
            })
            .collect();
        format!(
            "select slug from unnest($1::text[]) as candidate (slug) where {}",
            is_taken.join(" or "),
        )
    }

    fn insert(&self) -> String {
        let table = &self.0.name;
        let [id, name, slug, workos_id, last_event_id] =
            ["id", "name", "slug", "workos_id", "workos_last_event_id"]
                .map(|column| self.cast(column, &format!("rows.{column}")));
        let [of_updated, of_disabled, of_now] =
            ["workos_updated_at", "disabled_at", "updated_at"].map(|column| self.zone(column));
        format!(
            "insert into {table}
                 (id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at, updated_at)
             select {id}, {name}, {slug}, {workos_id}, rows.workos_updated_at{of_updated}, {last_event_id},
                    rows.disabled_at{of_disabled}, $8{of_now}
             from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[],
                         $7::timestamptz[])
                      as rows (id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at)
             returning workos_id::text, id::text"
        )
    }

    /// The row is there, and holds what it held. An empty `workos_id` is none.
    fn is_held(&self) -> String {
        let id = self.is("id", "rows.id");
        format!(
            "{id}
               and nullif(organization.workos_id::text, '') is not distinct from rows.held_workos_id
               and organization.workos_last_event_id::text is not distinct from rows.held_last_event_id"
        )
    }

    fn update(&self) -> String {
        let table = &self.0.name;
        let [name, workos_id, last_event_id] = ["name", "workos_id", "workos_last_event_id"]
            .map(|column| self.cast(column, &format!("rows.{column}")));
        let (of_updated, of_now) = (self.zone("workos_updated_at"), self.zone("updated_at"));
        let is_held = self.is_held();
        format!(
            "update {table} as organization
             set name                 = {name},
                 workos_id            = {workos_id},
                 workos_updated_at    = rows.workos_updated_at{of_updated},
                 workos_last_event_id = {last_event_id},
                 updated_at           = $8{of_now}
             from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[])
                      as rows (id, held_workos_id, held_last_event_id, name, workos_id, workos_updated_at,
                               workos_last_event_id)
             where {is_held}"
        )
    }

    fn enable(&self) -> String {
        let table = &self.0.name;
        let (of_disabled, of_now) = (self.zone("disabled_at"), self.zone("updated_at"));
        let is_held = self.is_held();
        format!(
            "update {table} as organization
             set disabled_at = null,
                 updated_at  = $5{of_now}
             from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[])
                      as rows (id, held_workos_id, held_last_event_id, disabled_at)
             where {is_held}
               and organization.disabled_at = rows.disabled_at{of_disabled}"
        )
    }

    fn disable(&self) -> String {
        let table = &self.0.name;
        let [workos_id, last_event_id] = ["workos_id", "workos_last_event_id"]
            .map(|column| self.cast(column, &format!("rows.{column}")));
        let (of_disabled, of_now) = (self.zone("disabled_at"), self.zone("updated_at"));
        let is_held = self.is_held();
        format!(
            "update {table} as organization
             set workos_id            = {workos_id},
                 workos_last_event_id = {last_event_id},
                 disabled_at          = coalesce(organization.disabled_at, rows.disabled_at{of_disabled}),
                 updated_at           = $7{of_now}
             from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
                      as rows (id, held_workos_id, held_last_event_id, workos_id, workos_last_event_id, disabled_at)
             where {is_held}"
        )
    }
}

// Prepared once a connection, as statements that are checked are. They are made of constants, and of what the catalog says
// in SQL.

fn query(sql: &Arc<str>) -> Query<'_, Postgres, PgArguments> {
    sqlx::query(AssertSqlSafe(Arc::clone(sql)))
}

fn query_as<T>(sql: &Arc<str>) -> QueryAs<'_, Postgres, T, PgArguments>
where
    T: for<'r> FromRow<'r, sqlx::postgres::PgRow>,
{
    sqlx::query_as(AssertSqlSafe(Arc::clone(sql)))
}

fn query_scalar(sql: &Arc<str>) -> QueryScalar<'_, Postgres, String, PgArguments> {
    sqlx::query_scalar(AssertSqlSafe(Arc::clone(sql)))
}

/// How many rows a statement wrote.
fn affected(result: &PgQueryResult) -> usize {
    usize::try_from(result.rows_affected()).expect("they were given to the statement, from memory")
}

/// One column of rows, as `unnest` takes it.
pub(super) fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

//! Brings the database up to date: our own tables, and what the application's lacks.

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, query_scalar};

use super::host::{self, HostTable, LookupError, Severity};
use crate::postgres;
use crate::postgres::migrate::{self, SchemaError, Turn};

/// Why the database can't be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The database can't be reached or asked, or our own tables can't be made.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// It isn't clear which table is the application's.
    #[error(transparent)]
    Lookup(LookupError),
}

impl From<sqlx::Error> for UpdateError {
    fn from(error: sqlx::Error) -> Self {
        Self::Schema(error.into())
    }
}

impl From<LookupError> for UpdateError {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Database(error) => error.into(),
            error => Self::Lookup(error),
        }
    }
}

/// A database as it was found, or left.
#[derive(Debug)]
pub struct Schema {
    /// The application's table, with what keeps it from working.
    pub table: HostTable,
    /// An event was applied here before. So what keeps the table from working is a condition that will pass, and no
    /// mistake in setting this up (R33).
    pub is_in_use: bool,
    /// The migrations that were applied.
    pub applied: Vec<i64>,
    /// What was made of the application's table, in a few words each.
    pub made: Vec<String>,
}

impl Schema {
    /// Looks at a database. `schema` is that of `?schema=`.
    ///
    /// # Errors
    /// The database can't be asked, or it isn't clear which table is the application's.
    pub async fn read(
        connection: &mut PgConnection,
        schema: Option<&str>,
    ) -> Result<Self, UpdateError> {
        Ok(Self {
            table: look_at_table(connection, schema).await?,
            is_in_use: is_in_use(connection).await?,
            applied: Vec::new(),
            made: Vec::new(),
        })
    }
}

/// Looks at the application's table, with the timeouts of our transactions: somebody may be altering it.
async fn look_at_table(
    connection: &mut PgConnection,
    schema: Option<&str>,
) -> Result<HostTable, LookupError> {
    let mut tx = postgres::begin(connection).await?;
    let table = HostTable::read(&mut tx, schema).await?;
    tx.rollback().await?;
    Ok(table)
}

/// Says whether an event was ever applied here: each leaves a cursor, and cursors stay.
///
/// # Errors
/// The database can't be asked.
pub async fn is_in_use(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let exists = query_scalar!(
        r#"select to_regclass('workos_sync.workos_organization_syncs') is not null as "exists!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if !exists {
        return Ok(false);
    }
    query_scalar!(
        r#"select exists (select from workos_sync.workos_organization_syncs) as "is_in_use!""#
    )
    .fetch_one(connection)
    .await
}

/// Applies the migrations that are pending, and makes what the application's table lacks; replicas that start at once
/// take turns. Where no event was ever applied, and the application's table can't work, nothing is written at all.
///
/// # Errors
/// The database can't be reached or asked, a migration fails, another replica doesn't finish, or it isn't clear which
/// table is the application's.
pub async fn bring_up_to_date(
    database: &PgConnectOptions,
    schema: Option<&str>,
) -> Result<Schema, UpdateError> {
    let mut connection = database.connect().await.map_err(SchemaError::Connect)?;
    let found = Schema::read(&mut connection, schema).await?;
    // A role without DDL rights can start on a database that somebody else has migrated.
    let is_current = migrate::pending(&mut connection).await?.is_empty();
    let is_refused = !found.is_in_use && found.table.has(Severity::Error);
    if is_refused || (is_current && !found.table.has(Severity::Unmade)) {
        connection.close().await?;
        return Ok(found);
    }

    let turn = Turn::take(database).await?;
    let applied = migrate::run(&mut connection).await?;
    // Another replica may have made it meanwhile.
    let mut table = look_at_table(&mut connection, schema).await?;
    let mut made = Vec::new();
    if table.has(Severity::Unmade) {
        let result = host::make(&mut connection, database, &table).await?;
        table = look_at_table(&mut connection, schema)
            .await?
            .with(result.findings);
        made = result.done;
    }
    turn.end().await?;
    connection.close().await?;
    Ok(Schema {
        table,
        applied,
        made,
        ..found
    })
}

//! Migrations: run them, and tell what is pending.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};

use super::error;

static MIGRATOR: Migrator = sqlx::migrate!();

/// As in `sqlx.toml`, which the macro reads and a rebuilt [`Migrator`] doesn't.
const TABLE: &str = "workos_sync.migrations";

/// The session lock that the migrating replica holds: "workos" in ASCII, beyond the 32 bits of the slug locks
/// that share its key space.
const LOCK: i64 = 0x776f_726b_6f73;

/// How often a replica looks whether another has finished migrating.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// How long a replica waits for another's migrations.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the schema can't be brought up to date. Each is told in full: none has a source that would repeat it.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The database can't be reached.
    #[error("the database can't be reached: {}", error::describe(.0))]
    Connect(sqlx::Error),
    /// The database can't be asked.
    #[error("the database can't be asked for its schema version: {}", error::describe(.0))]
    Database(sqlx::Error),
    /// A migration went wrong; nothing of it stays.
    #[error("migration: {}", describe(.0))]
    Migrate(MigrateError),
    /// Another replica doesn't finish.
    #[error("another process has been migrating this database for {} s; end it, or wait and start again", LOCK_TIMEOUT.as_secs())]
    Locked,
}

impl From<sqlx::Error> for SchemaError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

fn describe(error: &MigrateError) -> String {
    match error {
        MigrateError::ExecuteMigration(cause, version) => {
            format!("{version}: {}", error::describe(cause))
        }
        other => other.to_string(),
    }
}

/// The versions that this binary needs and the database lacks. Versions that this binary doesn't know are
/// no matter: a newer one has migrated, and serves beside us.
///
/// # Errors
/// The database can't be asked.
pub async fn pending(connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    let migrations = MIGRATOR.iter().map(|migration| migration.version);
    let exists = sqlx::query_scalar!(
        r#"select to_regclass('workos_sync.migrations') is not null as "exists!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if !exists {
        return Ok(migrations.collect());
    }
    // Not checked at compile time: the migrator makes this table, no migration does.
    let applied: Vec<i64> =
        sqlx::query_scalar("select version from workos_sync.migrations where success")
            .fetch_all(&mut *connection)
            .await?;
    Ok(migrations
        .filter(|version| !applied.contains(version))
        .collect())
}

/// Applies what is pending; says which versions that was. Replicas that start at once take turns.
///
/// The connection is one of its own, without the pool's timeouts: a migration may take its time.
///
/// # Errors
/// The database can't be reached, a migration fails, or another replica holds the lock for too long.
pub async fn run(options: &PgConnectOptions) -> Result<Vec<i64>, SchemaError> {
    let mut connection = options.connect().await.map_err(SchemaError::Connect)?;
    // A role without DDL rights can start on a database that somebody else has migrated.
    if pending(&mut connection).await?.is_empty() {
        return Ok(Vec::new());
    }
    lock(&mut connection).await?;
    let pending = pending(&mut connection).await?;

    // Asked first: even where the schema is there, CREATE wants a right on the database.
    let exists =
        sqlx::query_scalar!(r#"select to_regnamespace('workos_sync') is not null as "exists!""#)
            .fetch_one(&mut connection)
            .await?;
    if !exists {
        connection.execute("create schema workos_sync").await?;
    }
    let mut migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().collect());
    migrator.dangerous_set_table_name(TABLE);
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
        .run_direct(None, &mut connection, false)
        .await
        .map_err(SchemaError::Migrate)?;
    // The session's end releases the lock.
    connection.close().await?;
    Ok(pending)
}

/// Tries for the lock instead of waiting for it: a waiting statement holds a snapshot, which would block a
/// `create index concurrently` of the holder for ever.
async fn lock(connection: &mut PgConnection) -> Result<(), SchemaError> {
    let mut waited = Duration::ZERO;
    while !sqlx::query_scalar!(r#"select pg_try_advisory_lock($1) as "locked!""#, LOCK)
        .fetch_one(&mut *connection)
        .await?
    {
        if waited >= LOCK_TIMEOUT {
            return Err(SchemaError::Locked);
        }
        tokio::time::sleep(LOCK_POLL).await;
        waited += LOCK_POLL;
    }
    Ok(())
}

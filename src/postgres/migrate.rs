//! Migrations: run them, and tell what is pending.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, query_scalar};

use super::error;

static MIGRATOR: Migrator = sqlx::migrate!();

/// As in `sqlx.toml`, which the macro reads and a rebuilt [`Migrator`] doesn't.
const TABLE: &str = "workos_sync.migrations";

/// The lock that the migrating replica holds: "workos" in ASCII, beyond the 32 bits of the slug locks that share its
/// key space.
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
    /// Our schema can't be made.
    #[error("the schema workos_sync can't be created: {}; create it for this role, or run `workos-sync migrate` as a role that may", error::describe(.0))]
    CreateSchema(sqlx::Error),
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
    let exists =
        query_scalar!(r#"select to_regclass('workos_sync.migrations') is not null as "exists!""#)
            .fetch_one(&mut *connection)
            .await?;
    if !exists {
        return Ok(migrations.collect());
    }
    // Not checked at compile time: the migrator makes this table, no migration does.
    let applied: Vec<i64> =
        query_scalar("select version from workos_sync.migrations where success")
            .fetch_all(&mut *connection)
            .await?;
    Ok(migrations
        .filter(|version| !applied.contains(version))
        .collect())
}

/// The roles that may write the inbox, beside its owner: what they put there is applied, though nobody signed it.
///
/// # Errors
/// The database can't be reached or asked.
pub async fn inbox_writers(options: &PgConnectOptions) -> Result<Vec<String>, SchemaError> {
    let mut connection = options.connect().await.map_err(SchemaError::Connect)?;
    let roles = query_scalar!(
        r#"
        select distinct case grantee when 0 then 'public' else grantee::regrole::text end as "role!"
        from pg_class, aclexplode(relacl)
        where pg_class.oid = to_regclass('workos_sync.webhook_events')
          and grantee <> relowner
          and privilege_type in ('INSERT', 'UPDATE')
        order by 1
        "#
    )
    .fetch_all(&mut connection)
    .await?;
    connection.close().await?;
    Ok(roles)
}

/// A replica's turn to migrate: others wait until it is dropped, or its connection is lost.
///
/// It is a lock in an open transaction, on a connection of its own: a pooler in transaction mode would give a lock of
/// the session to whoever comes next (R35).
#[derive(Debug)]
pub struct Turn(PgConnection);

impl Turn {
    /// Waits for the replicas that came before.
    ///
    /// # Errors
    /// The database can't be reached or asked, or another replica holds the lock for too long.
    pub async fn take(options: &PgConnectOptions) -> Result<Self, SchemaError> {
        let mut connection = options.connect().await.map_err(SchemaError::Connect)?;
        // Between two statements it holds no snapshot, as it would by a stricter isolation.
        connection
            .execute("begin isolation level read committed")
            .await?;
        // It is open for as long as the migrations take. Not every version has all of these.
        query_scalar!(
            r#"
            select count(set_config(name, '0', true))
            from pg_settings
            where name in ('idle_in_transaction_session_timeout', 'transaction_timeout')
            "#
        )
        .fetch_one(&mut connection)
        .await?;
        let mut waited = Duration::ZERO;
        // Tried for, not waited for: a waiting statement holds a snapshot, which would block a `create index
        // concurrently` of the holder for ever.
        while !query_scalar!(
            r#"select pg_try_advisory_xact_lock($1) as "is_ours!""#,
            LOCK
        )
        .fetch_one(&mut connection)
        .await?
        {
            if waited >= LOCK_TIMEOUT {
                return Err(SchemaError::Locked);
            }
            tokio::time::sleep(LOCK_POLL).await;
            waited += LOCK_POLL;
        }
        Ok(Self(connection))
    }

    /// Lets the next one migrate.
    ///
    /// # Errors
    /// The connection was lost: another replica may have migrated meanwhile.
    pub async fn end(mut self) -> Result<(), sqlx::Error> {
        self.0.execute("rollback").await?;
        self.0.close().await
    }
}

/// Applies what is pending; says which versions that was. The caller has its [`Turn`].
///
/// The connection is one of its own, without the timeouts of our transactions: a migration may take its time.
///
/// # Errors
/// The database can't be asked, or a migration fails.
pub async fn run(connection: &mut PgConnection) -> Result<Vec<i64>, SchemaError> {
    let pending = pending(connection).await?;
    if pending.is_empty() {
        return Ok(pending);
    }
    // Asked first: even where the schema is there, CREATE wants a right on the database.
    let exists = query_scalar!(r#"select to_regnamespace('workos_sync') is not null as "exists!""#)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        connection
            .execute("create schema workos_sync")
            .await
            .map_err(SchemaError::CreateSchema)?;
    }
    let mut migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().collect());
    migrator.dangerous_set_table_name(TABLE);
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
        .run_direct(None, connection, false)
        .await
        .map_err(SchemaError::Migrate)?;
    Ok(pending)
}

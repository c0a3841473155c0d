//! Makes what is missing: the table where there is none, columns and the index on `workos_id` where the application
//! brought its own. Nothing that is there is altered.
//!
//! The application goes on working meanwhile (R22). Adding a column takes a lock that everybody waits for, and whoever
//! waits for it is waited for in turn: so it is waited for only briefly, again and again. The index is built
//! concurrently, which waits for others, and nobody for it.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, query_as, query_scalar,
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::table::{Finding, HostTable, Kind, Severity};
use crate::postgres::error;

/// Begins a transaction that alters the application's table. While it waits for its lock, the application's own queries
/// wait behind it: so for no longer than this.
const BEGIN_BRIEFLY: &str = "
    begin;
    set local lock_timeout = '2s';
    set local statement_timeout = 0";

/// The pause between two tries: so long that the application's queries wait a fifth of the time at most.
const PAUSE: Duration = Duration::from_secs(8);

/// After which time other transactions are in the way for good: a report that runs for hours, a forgotten session.
const GIVE_UP: Duration = Duration::from_secs(180);

/// Of the index, as it would be called if it were made with the table.
const INDEX: &str = "organization_metadata_workos_id_key";

/// How many duplicates are named.
const NAMED: i64 = 3;

/// The columns that are added, and as what.
const COLUMNS: [(&str, &str); 5] = [
    ("workos_id", "text"),
    ("workos_updated_at", "timestamptz"),
    ("workos_last_event_id", "text"),
    ("disabled_at", "timestamptz"),
    ("updated_at", "timestamptz not null default now()"),
];

/// What was made, and what couldn't be.
#[derive(Debug, Default)]
pub(in crate::entities::organization) struct Made {
    /// In a few words each.
    pub(in crate::entities::organization) done: Vec<String>,
    /// Why the rest couldn't be.
    pub(in crate::entities::organization) findings: Vec<Finding>,
}

impl Made {
    fn refused(&mut self, sentence: String) {
        self.findings.push(Finding {
            severity: Severity::Error,
            sentence,
        });
    }
}

/// Makes what the table lacks; `table` has just been read, and can work once it has that. Tells two kinds of failure
/// apart: that the database doesn't answer is an error, what it refuses is a finding.
pub(in crate::entities::organization) async fn make(
    connection: &mut PgConnection,
    database: &PgConnectOptions,
    table: &HostTable,
) -> Result<Made, sqlx::Error> {
    let mut made = Made::default();
    match table.kind {
        Kind::Missing => {
            match create(connection, table).await {
                Ok(()) => made.done.push(format!("created {}", table.name)),
                Err(error) if error.as_database_error().is_some() => made.refused(format!(
                    "{} can't be created: {}; create it as a role that may, or run `workos-sync migrate` as one",
                    table.name,
                    error::describe(&error),
                )),
                Err(error) => return Err(error),
            }
            return Ok(made);
        }
        Kind::Table => {}
        // Nothing of a view is altered.
        _ => return Ok(made),
    }

    let missing: Vec<_> = COLUMNS
        .into_iter()
        .filter(|(column, _)| table.column(column).is_none())
        .collect();
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|(column, _)| *column).collect();
        let (names, name) = (names.join(", "), &table.name);
        match add_columns(connection, name, &missing).await {
            Ok(()) => made.done.push(format!("added {names} to {name}")),
            Err(error) if error.as_database_error().is_some() => {
                made.refused(cant("added", &names, name, &error));
                return Ok(made);
            }
            Err(error) => return Err(error),
        }
    }
    if table.unique_by("workos_id").is_none() {
        build_index(database, table, &mut made).await?;
    }
    Ok(made)
}

async fn create(connection: &mut PgConnection, table: &HostTable) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin().await?;
    query_scalar!(
        "select set_config('search_path', quote_ident($1), true)",
        table.schema
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.execute(include_str!("create.sql")).await?;
    tx.commit().await
}

/// All at once: each lock that is waited for is one that the application waits for.
async fn add_columns(
    connection: &mut PgConnection,
    table: &str,
    columns: &[(&str, &str)],
) -> Result<(), sqlx::Error> {
    let columns: Vec<_> = columns
        .iter()
        .map(|(column, definition)| format!("add column {column} {definition}"))
        .collect();
    let statement = format!("alter table {table} {}", columns.join(", "));
    let give_up = Instant::now() + GIVE_UP;
    loop {
        match briefly(connection, &statement).await {
            Err(error) if error::is_lock_timeout(&error) && Instant::now() < give_up => {
                warn!("{table} is in use by a long transaction: trying again to add columns to it");
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

async fn briefly(connection: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin_with(BEGIN_BRIEFLY).await?;
    // Made of names that the catalog has quoted, and of constants.
    tx.execute(AssertSqlSafe(statement.to_owned())).await?;
    tx.commit().await
}

async fn build_index(
    database: &PgConnectOptions,
    table: &HostTable,
    made: &mut Made,
) -> Result<(), sqlx::Error> {
    let name = &table.name;
    let Some(mut session) = patient_session(database).await? else {
        made.refused(format!(
            "column workos_id of {name} isn't unique, and an index can't be built through a connection pooler: run \
             `workos-sync migrate` with a DATABASE_URL that leads to Postgres itself"
        ));
        return Ok(());
    };
    drop_leftover(&mut session, table).await?;
    // Looked for before the build: one that fails leaves an index that refuses some rows, and is of no use.
    let mut duplicates = duplicates(&mut session, name).await?;
    let mut failure = None;
    if duplicates.is_empty() {
        let statement = index(&mut session, table).await?;
        info!("building a unique index on workos_id of {name}");
        match session.execute(AssertSqlSafe(statement)).await {
            Ok(_) => {
                made.done.push(format!("built the index {INDEX} on {name}"));
                return session.close().await;
            }
            Err(error) if error.as_database_error().is_some() => failure = Some(error),
            Err(error) => return Err(error),
        }
        if let Err(error) = drop_leftover(&mut session, table).await {
            let error = error::describe(&error);
            warn!(
                error,
                "the index {INDEX}, which isn't complete, stays for now: {error}"
            );
        }
        duplicates = self::duplicates(&mut session, name).await?;
    }
    made.refused(match failure {
        Some(error) if duplicates.is_empty() => cant("made unique", "workos_id", name, &error),
        _ => not_unique(name, &duplicates),
    });
    session.close().await
}

/// A session whose statements may wait as long as a build of an index does: for all transactions that are older, but
/// with no lock that one of the application's would wait for. None where a pooler is between us and Postgres: there,
/// settings of a session are refused, or those of somebody else.
async fn patient_session(database: &PgConnectOptions) -> Result<Option<PgConnection>, sqlx::Error> {
    let options = database.clone().options([
        ("lock_timeout", format!("{}s", GIVE_UP.as_secs())),
        ("statement_timeout", "0".to_owned()),
    ]);
    let mut session = match options.connect().await {
        Ok(session) => session,
        Err(sqlx::Error::Database(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_ours = query_scalar!(
        r#"select setting::bigint = $1 and source = 'client' as "is_ours!" from pg_settings where name = 'lock_timeout'"#,
        i64::try_from(GIVE_UP.as_millis()).unwrap_or(i64::MAX),
    )
    .fetch_one(&mut session)
    .await?;
    Ok(is_ours.then_some(session))
}

/// The statement that builds the index. An empty `workos_id` is none (R33): where rows have it, or will, they are left
/// out.
async fn index(session: &mut PgConnection, table: &HostTable) -> Result<String, sqlx::Error> {
    let name = &table.name;
    let has_empty: bool = query_scalar(AssertSqlSafe(format!(
        "select exists (select from {name} where workos_id = '')"
    )))
    .fetch_one(session)
    .await?;
    let is_never_null = table
        .column("workos_id")
        .is_some_and(|column| column.not_null);
    let rows = if has_empty || is_never_null {
        " where workos_id <> ''"
    } else {
        ""
    };
    Ok(format!(
        "create unique index concurrently {INDEX} on {name} (workos_id){rows}"
    ))
}

/// Drops what a build that was broken off has left behind.
async fn drop_leftover(session: &mut PgConnection, table: &HostTable) -> Result<(), sqlx::Error> {
    let leftover = query_scalar!(
        r#"
        select format('%I.%I', nspname, index.relname) as "name!"
        from pg_index
                 join pg_class as index on index.oid = indexrelid
                 join pg_namespace on pg_namespace.oid = index.relnamespace
        where indrelid = to_regclass($1)
          and index.relname = $2
          and not indisvalid
        "#,
        table.name,
        INDEX,
    )
    .fetch_optional(&mut *session)
    .await?;
    if let Some(leftover) = leftover {
        session
            .execute(AssertSqlSafe(format!("drop index concurrently {leftover}")))
            .await?;
    }
    Ok(())
}

/// The first WorkOS organizations that have several rows, each with the first of their ids.
async fn duplicates(
    session: &mut PgConnection,
    table: &str,
) -> Result<Vec<(String, Vec<String>)>, sqlx::Error> {
    query_as(AssertSqlSafe(format!(
        "select workos_id::text, (array_agg(id::text order by id))[:{NAMED}]
         from {table}
         where workos_id <> ''
         group by workos_id
         having count(*) > 1
         order by workos_id
         limit {NAMED}"
    )))
    .fetch_all(session)
    .await
}

fn not_unique(table: &str, duplicates: &[(String, Vec<String>)]) -> String {
    let duplicates: Vec<_> = duplicates
        .iter()
        .map(|(workos_id, ids)| format!("{workos_id} ({})", ids.join(", ")))
        .collect();
    format!(
        "column workos_id of {table} has to be unique, but some have several rows (their ids): {}; give it to one row of \
         each",
        duplicates.join("; "),
    )
}

fn cant(what: &str, columns: &str, table: &str, error: &sqlx::Error) -> String {
    if error::is_lock_timeout(error) {
        return format!(
            "{columns} of {table} can't be {what}: other transactions have been in the way for {} s; end them, and run \
             `workos-sync migrate`",
            GIVE_UP.as_secs(),
        );
    }
    format!(
        "{columns} of {table} can't be {what}: {}; run `workos-sync migrate` as the owner of the table",
        error::describe(error),
    )
}

//! The database: connections, and transactions with the settings that our promises rest on.

pub mod error;
pub mod locks;
pub mod migrate;
mod url;

use std::io;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Postgres, Transaction};
use tokio::time::Instant;

use self::error::DatabaseCause;
pub use self::url::{DatabaseUrl, TlsFileError, UrlError};

/// Begins a transaction, with its settings, in one round trip. They end with the transaction: behind a pooler, the
/// session is lent to other clients.
///
/// A server whose default is to answer a COMMIT before it is durable is told otherwise, for we acknowledge after it
/// (R23). So is one whose default is a stricter isolation: there, the snapshot would be older than the lock that was
/// waited for. Whoever meets a lock for longer than `lock_timeout` gives the connection back, and comes again.
///
/// Every statement of ours is to go by an index, also while a table that grew a thousandfold still has the statistics
/// of a small one; a planner that may not scan or hash a table looks the rows up. Where it must scan after all, such as a
/// table of one row, it holds that for dear, and would compile the plan for seconds.
const BEGIN: &str = "
    begin isolation level read committed;
    set local synchronous_commit = on;
    set local statement_timeout = '15s';
    set local lock_timeout = '5s';
    set local idle_in_transaction_session_timeout = '30s';
    set local enable_seqscan = off;
    set local enable_hashjoin = off;
    set local enable_mergejoin = off;
    set local jit = off";

/// How long to wait for a free or a new connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a transaction of a single statement may take. Beyond every timeout of the database: it ends the wait for
/// one that doesn't even answer that.
pub const PATIENCE: Duration = Duration::from_secs(16);

/// How long a session keeps its connection. Then the pool has it back, which replaces what is old or dead.
const KEPT: Duration = Duration::from_secs(1);

tokio::task_local! {
    /// How long a statement may take here.
    static STATEMENT_LIMIT: Duration;
}

/// Does some work in which each statement may take so long at most, instead of 15 seconds: for somebody who looks, and
/// must not hold up what is applied. It ends in the database, too; the error is 57014.
pub async fn with_statement_limit<F: Future>(limit: Duration, work: F) -> F::Output {
    STATEMENT_LIMIT.scope(limit, work).await
}

/// Makes the pool; connects when first used.
#[must_use]
pub fn pool(options: PgConnectOptions, max_connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy_with(options)
}

/// Begins a transaction with the settings that our promises rest on.
///
/// # Errors
/// The database doesn't answer.
pub async fn begin(
    connection: &mut PgConnection,
) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
    let Ok(limit) = STATEMENT_LIMIT.try_with(|limit| *limit) else {
        return connection.begin_with(BEGIN).await;
    };
    let limit = limit.as_millis();
    let begin = format!("{BEGIN}; set local statement_timeout = {limit}");
    // A number is all that is in it from elsewhere.
    connection.begin_with(AssertSqlSafe(begin)).await
}

/// How many places for locks the server has, for all its sessions together.
///
/// # Errors
/// The database doesn't answer.
pub async fn lock_places(connection: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let places = sqlx::query_scalar!(
        r#"
        select current_setting('max_locks_per_transaction')::bigint
                   * (current_setting('max_connections')::bigint
                      + current_setting('max_prepared_transactions')::bigint) as "places!"
        "#,
    )
    .fetch_one(connection)
    .await?;
    Ok(usize::try_from(places).unwrap_or_default())
}

/// Does some work in a transaction on a connection of the pool: a [`Session`] of one.
///
/// # Errors
/// Those of [`Session::transaction`].
pub async fn transaction<T, E>(
    pool: &PgPool,
    limit: Duration,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E>
where
    E: From<sqlx::Error> + DatabaseCause,
{
    Session::new(pool).transaction(limit, work).await
}

/// Transactions one after the other, on one connection while the pool has more of them. The pool asks the server whether a
/// connection is alive when it lends it, and again when it takes it back: two round trips, of which an insert has three.
#[derive(Debug)]
pub struct Session<'p> {
    pool: &'p PgPool,
    /// That of the last transaction.
    kept: Option<Lent>,
}

impl<'p> Session<'p> {
    /// Nothing is asked of the pool yet.
    #[must_use]
    pub const fn new(pool: &'p PgPool) -> Self {
        Self { pool, kept: None }
    }

    /// Has a connection ready for the next transaction.
    ///
    /// # Errors
    /// There is none.
    pub async fn connect(&mut self) -> Result<(), sqlx::Error> {
        let lent = self.take().await?;
        self.kept = Some(lent);
        Ok(())
    }

    /// Gives the connection back, because there will be no transaction for a while.
    pub fn release(&mut self) {
        self.kept = None;
    }

    async fn take(&mut self) -> Result<Lent, sqlx::Error> {
        match self.kept.take() {
            Some(lent) => Ok(lent),
            None => Ok(Lent {
                connection: self.pool.acquire().await?,
                since: Instant::now(),
                is_sound: true,
            }),
        }
    }

    /// Does some work in a transaction, within a time; commits it, or rolls it back where the work fails.
    ///
    /// Where the work is broken off, at the end of `limit` or because the caller is dropped, the connection is closed. The
    /// pool would take it back when it answers, and a peer that vanished never does: each such connection would take a
    /// place of the pool until TCP gives up, a quarter of an hour later. So is a connection whose error says that it, or
    /// the server behind it, is of no use any more: the next one may lead to another server.
    ///
    /// # Errors
    /// There was no connection, the work's own error, or the limit was reached ([`sqlx::Error::Io`]). If the answer to the
    /// COMMIT got lost, the work may be durable all the same.
    pub async fn transaction<T, E>(
        &mut self,
        limit: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<sqlx::Error> + DatabaseCause,
    {
        let within = async {
            let mut lent = self.take().await?;
            let result = lent.commit(work).await;
            let cause = result.as_ref().err().and_then(E::database_cause);
            self.kept = Some(lent).filter(|lent| {
                lent.is_sound && lent.since.elapsed() < KEPT && self.pool_has_more()
            });
            if cause.is_some_and(error::ages_the_pool) {
                self.kept = None;
                while let Some(mut idle) = self.pool.try_acquire() {
                    idle.close_on_drop();
                }
            }
            result
        };
        match tokio::time::timeout(limit, within).await {
            Ok(result) => result,
            Err(_elapsed) => {
                let message = format!("no answer within {} s", limit.as_secs());
                Err(sqlx::Error::from(io::Error::new(io::ErrorKind::TimedOut, message)).into())
            }
        }
    }

    /// Whether somebody who wants a connection gets another one at once.
    fn pool_has_more(&self) -> bool {
        self.pool.num_idle() > 0 || self.pool.size() < self.pool.options().get_max_connections()
    }
}

/// A connection that is closed when it is dropped, unless it is known to be sound.
#[derive(Debug)]
struct Lent {
    connection: PoolConnection<Postgres>,
    since: Instant,
    is_sound: bool,
}

impl Lent {
    /// Does some work in a transaction. While that lasts the connection isn't sound, and it stays so where it may be left in
    /// the middle of something.
    async fn commit<T, E>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<sqlx::Error> + DatabaseCause,
    {
        self.is_sound = false;
        let mut transaction = begin(&mut self.connection).await?;
        let (result, is_over) = match work(&mut transaction).await {
            Ok(done) => {
                let committed = transaction.commit().await;
                (committed.map(|()| done).map_err(E::from), true)
            }
            // Said, not left to the pool: the locks go with it. Its own error is no news beside the first.
            Err(error) => (Err(error), transaction.rollback().await.is_ok()),
        };
        self.is_sound = is_over && !result.as_ref().is_err_and(E::ends_the_connection);
        result
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.is_sound {
            self.connection.close_on_drop();
        }
    }
}

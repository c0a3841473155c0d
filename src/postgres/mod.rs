//! The database: connections and their settings.

pub mod embedded;
pub mod error;
pub mod migrate;
mod url;

use std::io;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Executor, PgConnection, PgPool, Postgres};

pub use self::url::{DatabaseUrl, TlsFileError, UrlError};

/// How long a statement may run, and how long it may wait for a lock: a lane that waits for a row that somebody
/// else holds gives its connection back after this time, and the event is retried. A server whose default is
/// to answer a COMMIT before it is durable is told otherwise, for we acknowledge after it (R23). So is one whose
/// default is a stricter isolation: there, the snapshot would be older than the lock that was waited for.
///
/// Every statement of ours is to go by an index, also while a table that grew a thousandfold still has the
/// statistics of a small one; a planner that may not scan or hash a table looks the rows up.
const SESSION_SETTINGS: &str = "
    select set_config('statement_timeout', '15s', false),
           set_config('lock_timeout', '5s', false),
           set_config('idle_in_transaction_session_timeout', '30s', false),
           set_config('default_transaction_isolation', 'read committed', false),
           set_config('enable_seqscan', 'off', false),
           set_config('enable_hashjoin', 'off', false),
           set_config('enable_mergejoin', 'off', false),
           set_config('synchronous_commit',
                      case current_setting('synchronous_commit')
                          when 'off' then 'on'
                          else current_setting('synchronous_commit')
                          end,
                      false)";

/// How long to wait for a free or a new connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a single statement may take to be answered. Beyond every timeout of the database: it ends the wait
/// for one that doesn't even answer that.
pub const PATIENCE: Duration = Duration::from_secs(16);

/// Makes the pool; connects when first used.
#[must_use]
pub fn pool(options: PgConnectOptions, max_connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async move {
                // Set, not passed as start-up options: PgBouncer refuses those.
                connection.execute(SESSION_SETTINGS).await.map(drop)
            })
        })
        .connect_lazy_with(options)
}

/// Does some work on a connection of the pool, within a time.
///
/// Where the work is broken off, at the end of `limit` or because the caller is dropped, the connection is
/// closed. The pool would take it back when it answers, and a peer that vanished never does: each such
/// connection would take a place of the pool until TCP gives up, a quarter of an hour later.
///
/// # Errors
/// There was no connection, the work's own error, or the limit was reached ([`sqlx::Error::Io`]).
pub async fn ask<T>(
    pool: &PgPool,
    limit: Duration,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let asked = async {
        let mut lent = Lent {
            connection: pool.acquire().await?,
            done: false,
        };
        let result = work(&mut lent.connection).await;
        lent.done = true;
        result
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(result) => result,
        Err(_elapsed) => {
            let message = format!("no answer within {} s", limit.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
        }
    }
}

/// A connection that is closed when it is dropped, unless its work is done.
struct Lent {
    connection: PoolConnection<Postgres>,
    done: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.done {
            self.connection.close_on_drop();
        }
    }
}

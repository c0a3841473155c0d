//! The database: connections and their settings.

pub mod embedded;
pub mod error;
pub mod migrate;

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Executor, PgPool};

/// How long a statement may run, and how long it may wait for a lock: a lane that waits for a row that somebody
/// else holds gives its connection back after this time, and the event is retried. A server whose default is
/// to answer a COMMIT before it is durable is told otherwise, for we acknowledge after it (R23).
const SESSION_SETTINGS: &str = "
    select set_config('statement_timeout', '15s', false),
           set_config('lock_timeout', '5s', false),
           set_config('idle_in_transaction_session_timeout', '30s', false),
           set_config('synchronous_commit',
                      case current_setting('synchronous_commit')
                          when 'off' then 'on'
                          else current_setting('synchronous_commit')
                          end,
                      false)";

/// How long to wait for a free or a new connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads a connection string.
///
/// # Errors
/// It is none. The error doesn't repeat the string, which may hold a password.
pub fn parse_url(url: &SecretString) -> Result<PgConnectOptions, sqlx::Error> {
    Ok(url
        .expose_secret()
        .parse::<PgConnectOptions>()?
        .application_name("workos-sync"))
}

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

//! The probes: `healthz` says that the process lives, `readyz` that it can take events.
//!
//! `readyz` has a connection of its own, outside the pool it reports on: a pool that is busy with events is no
//! reason to be taken out of service, let alone to be killed.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use crate::postgres::{self, migrate};

/// How long the database may take to answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How long a verdict holds: probes that come in the meantime share it, so that any number of them ask the
/// database once.
const FRESH: Duration = Duration::from_secs(1);

/// How long a prober should wait after a "no".
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a probe is answered when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Status {
    status: &'static str,
}

/// `GET /healthz`: the process lives. Touches nothing else.
pub async fn healthz() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// `GET /readyz`: see [`Health::check`].
///
/// # Errors
/// 503: not ready.
pub async fn readyz(State(health): State<Health>) -> Result<Json<Status>, Problem> {
    match health.check().await {
        Ok(()) => Ok(Json(Status { status: "ready" })),
        Err(reason) => Err(reason.into()),
    }
}

/// Why the service can't take events now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.detail())]
pub enum NotReady {
    /// It is about to end.
    ShuttingDown,
    /// The database can't be reached, or doesn't answer in time.
    Database,
    /// The database takes no writes.
    ReadOnly,
    /// The database lacks migrations.
    Schema,
}

impl NotReady {
    const fn code(self) -> &'static str {
        match self {
            Self::ShuttingDown => "shutting_down",
            Self::Database => "database_unavailable",
            Self::ReadOnly => "database_read_only",
            Self::Schema => "schema_outdated",
        }
    }

    const fn detail(self) -> &'static str {
        match self {
            Self::ShuttingDown => "the service is shutting down",
            Self::Database => "the database does not answer",
            Self::ReadOnly => "the database takes no writes",
            Self::Schema => "the database schema is not current: run `workos-sync migrate`",
        }
    }
}

impl From<NotReady> for Problem {
    fn from(reason: NotReady) -> Self {
        Self::unavailable(reason.code(), reason.detail(), RETRY_AFTER)
    }
}

/// Knows whether the service is ready. Cloning is cheap; clones share the verdict.
#[derive(Debug, Clone)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stop: CancellationToken,
    database: PgConnectOptions,
    /// Held while the database is asked, for [`TIMEOUT`] at most: probes that wait for it find a fresh verdict.
    probe: Mutex<Probe>,
}

#[derive(Debug, Default)]
struct Probe {
    /// Kept from probe to probe. Not a pool of one: a pool waits for the connection that went silent, this one
    /// is dropped and replaced.
    connection: Option<PgConnection>,
    /// What was found, and when.
    verdict: Option<(Instant, Result<(), NotReady>)>,
}

impl Health {
    /// `stop` is cancelled when the service begins to end; `database` is where its pool connects to. Connects
    /// when first asked.
    #[must_use]
    pub fn new(stop: CancellationToken, database: PgConnectOptions) -> Self {
        Self(Arc::new(Inner {
            stop,
            database,
            probe: Mutex::default(),
        }))
    }

    /// Asks whether the service is going to stay, the database answers and takes writes, and its schema is current. Writes
    /// nothing. Takes little more than a second, whatever the database does and however many ask at once.
    ///
    /// # Errors
    /// The first reason why not.
    pub async fn check(&self) -> Result<(), NotReady> {
        let Inner {
            stop,
            database,
            probe,
        } = &*self.0;
        if stop.is_cancelled() {
            return Err(NotReady::ShuttingDown);
        }
        let mut probe = probe.lock().await;
        if let Some((at, verdict)) = probe.verdict
            && at.elapsed() < FRESH
        {
            return verdict;
        }
        let verdict = probe.ask(database).await;
        probe.verdict = Some((Instant::now(), verdict));
        verdict
    }
}

impl Probe {
    async fn ask(&mut self, database: &PgConnectOptions) -> Result<(), NotReady> {
        // Taken out: unless it may be kept, it is dropped, also when the prober hangs up half-way.
        let kept = self.connection.take();
        let (verdict, reason) = match timeout(TIMEOUT, look(kept, database)).await {
            // A new connection may lead to another server.
            Ok(Ok((
                _,
                Found {
                    read_only: true, ..
                },
            ))) => (
                Err(NotReady::ReadOnly),
                "it is a standby, or set so".to_owned(),
            ),
            Ok(Ok((connection, Found { pending, .. }))) => {
                self.connection = Some(connection);
                if pending.is_empty() {
                    (Ok(()), String::new())
                } else {
                    (Err(NotReady::Schema), format!("pending: {pending:?}"))
                }
            }
            Ok(Err(error)) => (Err(NotReady::Database), postgres::error::describe(&error)),
            Err(_elapsed) => (
                Err(NotReady::Database),
                format!("no answer within {} s", TIMEOUT.as_secs()),
            ),
        };
        // Once a change, not once a probe.
        let before = self.verdict.map_or(Ok(()), |(_, verdict)| verdict);
        match verdict {
            Err(not_ready) if before != verdict => {
                tracing::warn!("not ready: {not_ready} ({reason})");
            }
            Ok(()) if before != verdict => tracing::info!("ready again"),
            _ => {}
        }
        verdict
    }
}

/// What a look at the database found.
struct Found {
    /// It takes no writes: a standby, or a server or role that is set so.
    read_only: bool,
    /// The migrations that it lacks.
    pending: Vec<i64>,
}

/// Looks on the kept connection, or on a new one if that has died since: a database that was restarted between two
/// probes is ready.
async fn look(
    kept: Option<PgConnection>,
    database: &PgConnectOptions,
) -> Result<(PgConnection, Found), sqlx::Error> {
    if let Some(mut connection) = kept
        && let Ok(found) = ask(&mut connection).await
    {
        return Ok((connection, found));
    }
    let mut connection = database.connect().await?;
    let found = ask(&mut connection).await?;
    Ok((connection, found))
}

async fn ask(connection: &mut PgConnection) -> Result<Found, sqlx::Error> {
    let mut tx = postgres::begin(connection).await?;
    // The server's side ends too: nothing else tells a statement that waits for a lock that we have gone.
    let read_only = sqlx::query_scalar!(
        r#"
        select current_setting('transaction_read_only')::boolean as "read_only!"
        from set_config('statement_timeout', $1, true)
        "#,
        TIMEOUT.as_millis().to_string()
    )
    .fetch_one(&mut *tx)
    .await?;
    let pending = migrate::pending(&mut tx).await?;
    tx.rollback().await?;
    Ok(Found { read_only, pending })
}

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
use sqlx::{ConnectOptions, PgConnection, Postgres, Transaction, query_scalar};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use crate::entities::organization::Host;
use crate::entities::organization::schema;
use crate::inbox::Inbox;
use crate::pause::{self, Pause};
use crate::postgres::{self, migrate};

/// How long the database may take to answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How long a verdict holds: probes that come in the meantime share it, so that any number of them ask the
/// database once.
const FRESH: Duration = Duration::from_secs(1);

/// How long the application's table is what it was when it was last looked at.
const TABLE_FRESH: Duration = Duration::from_secs(15);

/// How long a look at it may take.
const TABLE_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a prober should wait after a "no".
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a probe is answered when all is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    status: &'static str,
    /// What keeps events from being applied, though they are accepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<String>,
    /// What is to be known of the application's table.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// `GET /healthz`: the process lives. Touches nothing else.
pub async fn healthz() -> Json<Answer> {
    Json(Answer {
        status: "ok",
        conditions: Vec::new(),
        warnings: Vec::new(),
    })
}

/// `GET /readyz`: see [`Health::check`].
///
/// # Errors
/// 503: not ready.
pub async fn readyz(State(health): State<Health>) -> Result<Json<Answer>, Problem> {
    match health.ask().await {
        Ok(pause) => {
            let mut conditions = health.conditions();
            // No reason to be taken out of service: events are accepted (R49).
            conditions.extend(pause.map(|pause| pause.to_string()));
            Ok(Json(Answer {
                status: "ready",
                conditions,
                warnings: health.warnings(),
            }))
        }
        Err(NotReady::Unusable) => {
            let conditions = health.conditions().join("\n");
            Err(Problem::from(NotReady::Unusable).with_detail(conditions))
        }
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
    /// The application's table can't work, and never has.
    Unusable,
}

impl NotReady {
    const fn code(self) -> &'static str {
        match self {
            Self::ShuttingDown => "shutting_down",
            Self::Database => "database_unavailable",
            Self::ReadOnly => "database_read_only",
            Self::Schema => "schema_outdated",
            Self::Unusable => "schema_unusable",
        }
    }

    const fn detail(self) -> &'static str {
        match self {
            Self::ShuttingDown => "the service is shutting down",
            Self::Database => "the database does not answer",
            Self::ReadOnly => "the database takes no writes",
            Self::Schema => "the database schema is not current: run `workos-sync migrate`",
            Self::Unusable => "no event can be applied to organization_metadata as it is",
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
    host: Host,
    /// What finds out by events whether the application's table can be used.
    inbox: Option<Inbox>,
    /// Held while the database is asked, for [`TIMEOUT`] and [`TABLE_TIMEOUT`] at most: probes that wait for it find a
    /// fresh verdict.
    probe: Mutex<Probe>,
}

#[derive(Debug, Default)]
struct Probe {
    /// Kept from probe to probe. Not a pool of one: a pool waits for the connection that went silent, this one
    /// is dropped and replaced.
    connection: Option<PgConnection>,
    /// What was found, and when.
    verdict: Option<(Instant, Result<(), NotReady>)>,
    /// When the application's table was last looked at from here, in vain or not.
    looked: Option<Instant>,
    /// An event was applied here before.
    is_in_use: bool,
    /// The pause, if there is one.
    pause: Option<Pause>,
}

impl Health {
    /// `stop` is cancelled when the service begins to end; `database` is where its pool connects to, `host` the
    /// application's table there, as the catalog and as `inbox` knows it. Connects when first asked.
    #[must_use]
    pub fn new(
        stop: CancellationToken,
        database: PgConnectOptions,
        host: Host,
        inbox: Option<Inbox>,
    ) -> Self {
        Self(Arc::new(Inner {
            stop,
            database,
            host,
            inbox,
            probe: Mutex::default(),
        }))
    }

    /// What keeps events from being applied, as far as is known: nothing, mostly.
    #[must_use]
    pub fn conditions(&self) -> Vec<String> {
        let table = self.0.host.current();
        let mut conditions: Vec<_> = table.errors().map(ToString::to_string).collect();
        // What the catalog doesn't tell: a right of a trigger's, say.
        if conditions.is_empty() {
            let inbox = self.0.inbox.as_ref();
            conditions.extend(inbox.and_then(Inbox::unusable));
        }
        conditions
    }

    fn warnings(&self) -> Vec<String> {
        let table = self.0.host.current();
        table.warnings().map(ToString::to_string).collect()
    }

    /// Asks whether the service is going to stay, the database answers and takes writes, its schema is current, and the
    /// application's table has worked or can work (R33). Writes nothing. Takes little more than a second, whatever the
    /// database does and however many ask at once.
    ///
    /// # Errors
    /// The first reason why not.
    pub async fn check(&self) -> Result<(), NotReady> {
        self.ask().await.map(drop)
    }

    /// The same, with the pause that was found.
    async fn ask(&self) -> Result<Option<Pause>, NotReady> {
        if self.0.stop.is_cancelled() {
            return Err(NotReady::ShuttingDown);
        }
        let mut probe = self.0.probe.lock().await;
        if let Some((at, verdict)) = probe.verdict
            && at.elapsed() < FRESH
        {
            return verdict.map(|()| probe.pause.clone());
        }
        let verdict = probe.ask(self).await;
        probe.verdict = Some((Instant::now(), verdict));
        verdict.map(|()| probe.pause.clone())
    }
}

impl Probe {
    async fn ask(&mut self, health: &Health) -> Result<(), NotReady> {
        // Taken out: unless it may be kept, it is dropped, also when the prober hangs up half-way.
        let kept = self.connection.take();
        let (verdict, reason) = match timeout(TIMEOUT, look(kept, &health.0.database)).await {
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
            Ok(Ok((connection, Found { pending, pause, .. }))) => {
                self.connection = Some(connection);
                self.pause = pause;
                if !pending.is_empty() {
                    (Err(NotReady::Schema), format!("pending: {pending:?}"))
                } else if self.is_usable(health).await {
                    (Ok(()), String::new())
                } else {
                    (Err(NotReady::Unusable), "it has never worked".to_owned())
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

impl Probe {
    /// Says whether the application's table has worked or can work, as far as is known; looks at it if that is due. What
    /// can't be looked at is as it was: somebody may be altering it.
    async fn is_usable(&mut self, health: &Health) -> bool {
        let host = &health.0.host;
        let looked = self.looked.map_or(Duration::MAX, |at| at.elapsed());
        let is_due = std::cmp::min(looked, host.age()) >= TABLE_FRESH;
        if is_due || !(self.is_in_use || health.conditions().is_empty()) {
            if is_due {
                self.looked = Some(Instant::now());
            }
            // Taken out, as above.
            if let Some(mut connection) = self.connection.take()
                && let Ok(Ok(is_in_use)) =
                    timeout(TABLE_TIMEOUT, look_at(&mut connection, host, is_due)).await
            {
                self.connection = Some(connection);
                self.is_in_use = is_in_use;
            }
        }
        self.is_in_use || health.conditions().is_empty()
    }
}

/// Looks at the application's table, if it is due, and says whether it was ever in use.
async fn look_at(
    connection: &mut PgConnection,
    host: &Host,
    is_due: bool,
) -> Result<bool, sqlx::Error> {
    let mut tx = begin_within(connection, TABLE_TIMEOUT).await?;
    if is_due {
        host.refresh_on(&mut tx).await?;
    }
    let is_in_use = schema::is_in_use(&mut tx).await?;
    tx.rollback().await?;
    Ok(is_in_use)
}

/// Begins a transaction whose statements end by themselves: nothing else tells one that waits for a lock that we have
/// gone.
async fn begin_within(
    connection: &mut PgConnection,
    limit: Duration,
) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
    let mut tx = postgres::begin(connection).await?;
    query_scalar!(
        "select set_config('statement_timeout', $1, true)",
        limit.as_millis().to_string()
    )
    .fetch_one(&mut *tx)
    .await?;
    Ok(tx)
}

/// What a look at the database found.
struct Found {
    /// It takes no writes: a standby, or a server or role that is set so.
    read_only: bool,
    /// The migrations that it lacks.
    pending: Vec<i64>,
    /// The pause, if there is one.
    pause: Option<Pause>,
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
    let mut tx = begin_within(connection, TIMEOUT).await?;
    let read_only = query_scalar!(
        r#"select current_setting('transaction_read_only')::boolean as "read_only!""#
    )
    .fetch_one(&mut *tx)
    .await?;
    let pending = migrate::pending(&mut tx).await?;
    let pause = if pending.is_empty() {
        pause::current(&mut tx).await?
    } else {
        None
    };
    tx.rollback().await?;
    Ok(Found {
        read_only,
        pending,
        pause,
    })
}

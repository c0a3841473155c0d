//! The settings of a service, and its start.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgPool};
use tracing::{error, info, warn};
use url::Url;
use uuid::Uuid;

use super::{Engine, WorkosSync};
use crate::clock::SystemClock;
use crate::config::is_webhook_path;
use crate::entities::Target;
use crate::entities::organization::Host;
use crate::entities::organization::organization_id::default_namespace;
use crate::entities::organization::schema::{self, Schema, UpdateError};
use crate::heal::poll;
use crate::http::App;
use crate::http::health::Health;
use crate::metrics::Metrics;
use crate::pause;
use crate::postgres::{self, migrate};
use crate::shutdown::Shutdown;
use crate::workos::{ClientError, WorkosClient};

/// The settings of a service: each begins with the default of the setting of the same name in `docs/configuration.md`.
#[must_use]
#[derive(Debug)]
pub struct Builder {
    pool: PgPool,
    schema: Option<String>,
    migrate: bool,
    webhook_secrets: Vec<SecretString>,
    webhook_path: String,
    webhook_tolerance: Duration,
    max_body_bytes: usize,
    api_key: Option<SecretString>,
    api_url: Url,
    api_rps: NonZeroU32,
    events_poll: Option<Duration>,
    org_id_namespace: Uuid,
    notify_changes: bool,
    inbox_retention: Option<TimeDelta>,
    shutdown_grace: Duration,
    shutdown: Arc<Shutdown>,
}

/// Why a service can't start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Nobody could deliver anything.
    #[error(
        "no webhook secret was given: take it from the webhook endpoint in the WorkOS dashboard"
    )]
    NoSecret,
    /// Half of the connections apply events; the other half records them.
    #[error("the pool has to have at least two connections")]
    Pool,
    /// No router takes it as it stands.
    #[error(
        "the webhook path has to begin with a slash, and to consist of letters, digits and -._~/"
    )]
    WebhookPath,
    /// The API's URL or key can't be used.
    #[error("the WorkOS API: {0}")]
    Client(#[from] ClientError),
    /// The database doesn't answer.
    #[error("the database: {}", postgres::error::describe(.0))]
    Database(#[from] sqlx::Error),
    /// The database can't be brought up to date.
    #[error(transparent)]
    Schema(#[from] UpdateError),
    /// The database isn't up to date, and this service doesn't migrate.
    #[error(
        "the database schema is not current: run `workos-sync migrate`, or let the service migrate"
    )]
    Outdated,
    /// Events can't be applied to the application's table: a line for each reason.
    #[error("{0}")]
    Unusable(String),
}

impl Builder {
    pub(super) fn new(pool: PgPool) -> Self {
        Self {
            pool,
            schema: None,
            migrate: true,
            webhook_secrets: Vec::new(),
            webhook_path: "/webhooks/workos".to_owned(),
            webhook_tolerance: Duration::from_secs(180),
            max_body_bytes: 1024 * 1024,
            api_key: None,
            api_url: Url::parse("https://api.workos.com").expect("a URL that is right stays right"),
            api_rps: NonZeroU32::new(10).expect("it isn't zero"),
            events_poll: Some(Duration::from_secs(60)),
            org_id_namespace: default_namespace(),
            notify_changes: false,
            inbox_retention: Some(TimeDelta::days(90)),
            shutdown_grace: Duration::from_secs(25),
            shutdown: Arc::new(Shutdown::new()),
        }
    }

    /// Looks for the application's table in this schema first, and not only along the search path.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.schema = Some(name.into());
        self
    }

    /// Whether pending migrations are applied; if not, [`build`](Self::build) refuses such a database.
    pub const fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// A secret of the webhook endpoint. At least one is required; during a rotation, the old and the new one are good.
    pub fn webhook_secret(mut self, secret: impl Into<SecretString>) -> Self {
        self.webhook_secrets.push(secret.into());
        self
    }

    /// The path that receives webhooks.
    pub fn webhook_path(mut self, path: impl Into<String>) -> Self {
        self.webhook_path = path.into();
        self
    }

    /// How far a signature's time may differ from now; zero switches the check off.
    pub const fn webhook_tolerance(mut self, tolerance: Duration) -> Self {
        self.webhook_tolerance = tolerance;
        self
    }

    /// How long the body of a request may be.
    pub const fn max_body_bytes(mut self, bytes: usize) -> Self {
        self.max_body_bytes = bytes;
        self
    }

    /// The API key of the WorkOS environment. Without it, nothing is written to WorkOS, polled or compared.
    pub fn api_key(mut self, key: impl Into<SecretString>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// Where the WorkOS API is.
    pub fn api_url(mut self, url: Url) -> Self {
        self.api_url = url;
        self
    }

    /// How many requests a second the WorkOS API is sent at most.
    pub const fn api_rps(mut self, requests: NonZeroU32) -> Self {
        self.api_rps = requests;
        self
    }

    /// How often events are read from the WorkOS API, in case webhooks get lost; `None` never does.
    pub const fn events_poll(mut self, interval: Option<Duration>) -> Self {
        self.events_poll = interval;
        self
    }

    /// The namespace of derived organization ids. Never change it on a database in use.
    pub const fn org_id_namespace(mut self, namespace: Uuid) -> Self {
        self.org_id_namespace = namespace;
        self
    }

    /// Whether each change of a row is told by `NOTIFY` on the channel `workos_sync`.
    pub const fn notify_changes(mut self, notify: bool) -> Self {
        self.notify_changes = notify;
        self
    }

    /// How long events are kept that have ended; `None` keeps them forever.
    pub const fn inbox_retention(mut self, age: Option<TimeDelta>) -> Self {
        self.inbox_retention = age;
        self
    }

    /// How long requests and events in hand may take to finish once [`run`](WorkosSync::run) is to end.
    pub const fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.shutdown_grace = grace;
        self
    }

    /// Has the service end with its process.
    pub(crate) fn ended_by(mut self, shutdown: Arc<Shutdown>) -> Self {
        self.shutdown = shutdown;
        self
    }

    /// Brings the database up to date, and looks at the application's table. Nothing runs in the background before
    /// [`run`](WorkosSync::run).
    ///
    /// # Errors
    /// A setting is missing or can't be used, the database can't be brought up to date, or the application's table
    /// can't work and never has.
    pub async fn build(self) -> Result<WorkosSync, BuildError> {
        if self.webhook_secrets.is_empty() {
            return Err(BuildError::NoSecret);
        }
        if !is_webhook_path(&self.webhook_path) {
            return Err(BuildError::WebhookPath);
        }
        if self.pool.options().get_max_connections() < 2 {
            return Err(BuildError::Pool);
        }
        let options = PgConnectOptions::clone(&self.pool.connect_options());
        let target = Target {
            host: self.look_at_table(&options).await?,
            namespace: self.org_id_namespace,
            notifies: self.notify_changes,
        };
        let metrics = Metrics::default();
        let client = self.client(&metrics)?;
        let poll_interval = self.events_poll.filter(|_| client.is_some());
        note_interval(&self.pool, poll_interval).await;
        if let Some(pause) = pause::ask(&self.pool).await? {
            warn!("{pause}: events are accepted, and nothing is applied or written back");
        }
        let (engine, clock) = Engine::on(
            self.pool,
            target,
            client.clone(),
            metrics.clone(),
            self.shutdown.soft().clone(),
        )
        .await?;
        let health = Health::new(
            self.shutdown.ending().clone(),
            options,
            engine.target.host.clone(),
            Some(engine.inbox.clone()),
        );
        let http = App::new(
            engine.inbox.clone(),
            health,
            Arc::new(SystemClock),
            metrics,
            self.webhook_secrets,
            self.webhook_tolerance,
            self.max_body_bytes,
        );
        Ok(WorkosSync {
            engine,
            clock,
            client,
            http,
            webhook_path: self.webhook_path,
            poll_interval,
            inbox_retention: self.inbox_retention,
            shutdown_grace: self.shutdown_grace,
            shutdown: self.shutdown,
        })
    }

    /// The client of the WorkOS API, if there is a key.
    fn client(&self, metrics: &Metrics) -> Result<Option<WorkosClient>, ClientError> {
        let Some(key) = self.api_key.clone() else {
            warn!(
                "WORKOS_API_KEY is not set: organization ids wait in external_id_pushes, and are not written to WorkOS; \
                 events that webhooks lose are not found"
            );
            return Ok(None);
        };
        let client = WorkosClient::new(self.api_url.clone(), key)?
            .counted_by(metrics.clone())
            .limited_to(self.api_rps);
        Ok(Some(client))
    }

    /// Brings the schema up to date, and looks at the application's table.
    async fn look_at_table(&self, options: &PgConnectOptions) -> Result<Host, BuildError> {
        let schema = self.schema.as_deref();
        let found = if self.migrate {
            schema::bring_up_to_date(options, schema).await?
        } else {
            let mut connection = options.connect().await?;
            if !migrate::pending(&mut connection).await?.is_empty() {
                return Err(BuildError::Outdated);
            }
            let found = Schema::read(&mut connection, schema).await?;
            connection.close().await?;
            found
        };
        for version in &found.applied {
            info!(version, "applied migration {version}");
        }
        for made in &found.made {
            info!("{made}");
        }
        for finding in found.table.warnings() {
            warn!("{finding}");
        }
        if !found.table.is_usable() && !found.is_in_use {
            return Err(BuildError::Unusable(found.table.why_unusable()));
        }
        // It worked before, and is going to again: what comes meanwhile is accepted.
        for finding in found.table.errors() {
            error!("{finding}: events wait in the inbox until it is mended");
        }
        Ok(Host::new(found.table, self.schema.clone()))
    }
}

/// A role may lack the right: that is no reason to take no webhooks.
async fn note_interval(pool: &PgPool, interval: Option<Duration>) {
    if let Err(error) = poll::note_interval(pool, interval).await {
        let reason = postgres::error::describe(&error);
        warn!(
            reason,
            "`workos-sync status` won't know how often this polls: {reason}"
        );
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgPoolOptions;

    use super::*;
    use crate::config::tests::check;

    fn builder() -> Builder {
        builder_on(2)
    }

    fn builder_on(connections: u32) -> Builder {
        let pool = PgPoolOptions::new().max_connections(connections);
        Builder::new(pool.connect_lazy("postgres://127.0.0.1:1/none").unwrap())
    }

    /// Whoever embeds the service gets what `serve` does.
    #[tokio::test]
    async fn the_defaults_are_those_of_the_settings() {
        let ours = builder();
        let theirs = check(&[]).unwrap();
        assert_eq!(ours.migrate, theirs.migrate_on_start);
        assert_eq!(ours.webhook_path, theirs.webhook_path);
        assert_eq!(ours.webhook_tolerance, theirs.webhook_tolerance);
        assert_eq!(ours.max_body_bytes, theirs.max_body_bytes);
        assert_eq!(ours.api_url, theirs.api_url);
        assert_eq!(ours.api_rps, theirs.api_rps);
        assert_eq!(ours.events_poll, theirs.events_poll);
        assert_eq!(ours.org_id_namespace, theirs.org_id_namespace);
        assert_eq!(ours.notify_changes, theirs.notify_changes);
        assert_eq!(ours.inbox_retention, theirs.inbox_retention);
        assert_eq!(ours.shutdown_grace, theirs.shutdown_grace);
    }

    /// What a router would panic about, or nobody could sign, is an error before the database is asked.
    #[tokio::test]
    async fn unusable_settings_are_errors() {
        let refused = builder().build().await.unwrap_err();
        assert!(matches!(refused, BuildError::NoSecret), "{refused}");
        let builder_on_one = builder_on(1).webhook_secret("whsec_test");
        let refused = builder_on_one.build().await.unwrap_err();
        assert!(matches!(refused, BuildError::Pool), "{refused}");
        for path in ["webhooks", "/", "/{a}"] {
            let builder = builder().webhook_secret("whsec_test").webhook_path(path);
            let refused = builder.build().await.unwrap_err();
            assert!(
                matches!(refused, BuildError::WebhookPath),
                "{path}: {refused}"
            );
        }
    }
}

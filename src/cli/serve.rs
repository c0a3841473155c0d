//! `workos-sync serve`: receives webhooks and applies them, until a signal comes.
//!
//! The order of the start, and why:
//! 1. signals: a start that takes its time can be ended;
//! 2. the port: what is taken by another process fails at once. It is only ours then, nobody can connect yet: a
//!    sender who is refused comes back, one who is let in and not served waits for an answer (R23);
//! 3. the database, private or not: waited for, because it may start beside us;
//! 4. the schema: every table is there before the first request;
//! 5. the background tasks, then the door.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::SecretString;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use ulid::Ulid;
use uuid::Uuid;

use super::{
    bring_schema_up_to_date, embedded_options, private_url, reachable, unusable, wait_for, warn_of,
};
use crate::clock::{Clock, DatabaseClock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::heal::key::KeyGuard;
use crate::heal::poll::{self, Poll};
use crate::http::{App, health::Health, listener, router};
use crate::inbox::{Capacity, Inbox};
use crate::metrics::{Metrics, gauges};
use crate::outbox::Outbox;
use crate::postgres::embedded::{self, Embedded, EmbeddedError};
use crate::postgres::{self, DatabaseUrl, migrate};
use crate::shutdown::{Exit, Shutdown};
use crate::signature;
use crate::sync::Target;
use crate::sync::host::Host;
use crate::sync::schema::Schema;
use crate::telemetry;
use crate::workos::{Priority, WorkosClient};

/// How long the last connections may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn run(mut config: Config) -> anyhow::Result<ExitCode> {
    if config.database_url.is_some() && config.webhook_secrets.is_empty() {
        return Err(ConfigError {
            variable: "WORKOS_WEBHOOK_SECRET",
            problem: "required when DATABASE_URL is set".to_owned(),
        }
        .into());
    }
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let shutdown = Shutdown::on_signals()?;
    let port = listener::bind(config.listen_addr)
        .with_context(|| format!("LISTEN_ADDR: {}", config.listen_addr))?;

    let exit = match &config.database_url {
        Some(url) => serve(&config, url, port, &shutdown).await?,
        None => Box::pin(with_private_postgres(config, port, &shutdown)).await?,
    };
    info!(?exit, "stopped");
    Ok(exit.into())
}

/// Serves with a private Postgres, which is there as long as the service is.
async fn with_private_postgres(
    config: Config,
    port: TcpSocket,
    shutdown: &Shutdown,
) -> anyhow::Result<Exit> {
    let mut server = match Embedded::start(&embedded_options(&config), shutdown.ending()).await {
        Err(EmbeddedError::Interrupted) => return Ok(shutdown.unless_forced(Exit::Clean)),
        started => started?,
    };
    let result = serve_on(&mut server, config, port, shutdown).await;
    let stopped = server.stop(shutdown.hard()).await;
    let exit = result?;
    stopped?;
    Ok(shutdown.unless_forced(exit))
}

/// Serves, and has the private Postgres started again if it ends. Ends when that fails: a service that can only
/// answer 503 would look alive.
async fn serve_on(
    server: &mut Embedded,
    mut config: Config,
    port: TcpSocket,
    shutdown: &Shutdown,
) -> anyhow::Result<Exit> {
    if config.webhook_secrets.is_empty() {
        config.webhook_secrets = vec![embedded::make_webhook_secret(&config.data_dir)?];
    }
    let database = private_url(server.url())?;
    let mut serving = Box::pin(serve(&config, &database, port, shutdown));
    tokio::select! {
        exit = &mut serving => exit,
        error = server.keep_running() => {
            shutdown.fail("private postgres");
            // Its own end tells nothing: it has no database.
            let _consequence = serving.await;
            Err(error.into())
        }
    }
}

async fn serve(
    config: &Config,
    database: &DatabaseUrl,
    port: TcpSocket,
    shutdown: &Shutdown,
) -> anyhow::Result<Exit> {
    let pool = postgres::pool(database.options.clone(), config.database_max_connections);
    let poll_interval = config.events_poll.filter(|_| config.api_key.is_some());
    let start = async {
        let host = prepare(config, database).await?;
        let clock = postgres::transaction(&pool, postgres::PATIENCE, DatabaseClock::ask).await?;
        note_interval(&pool, poll_interval).await;
        anyhow::Ok((host, Arc::new(clock)))
    };
    let (host, clock) = tokio::select! {
        started = start => started?,
        () = shutdown.ending().cancelled() => return Ok(shutdown.unless_forced(Exit::Clean)),
    };

    let metrics = Metrics::default();
    let client = client(config, &metrics)?;
    let ids = Arc::new(host.clone());
    let outbox = Outbox::new(pool.clone(), client.clone(), clock.clone(), ids);
    // The other half records, answers probes and delivers the outbox: lanes that all wait for locks can't
    // keep a delivery from being made durable.
    let capacity = Capacity {
        apply_connections: usize::try_from(config.database_max_connections / 2)?,
        lock_places: postgres::transaction(&pool, postgres::PATIENCE, postgres::lock_places)
            .await?,
    };
    let inbox = Inbox::new(
        pool.clone(),
        clock.clone(),
        outbox.clone(),
        Target {
            host: host.clone(),
            namespace: config.org_id_namespace,
            notifies: config.notify_changes,
        },
        metrics.clone(),
        capacity,
        shutdown.soft().clone(),
    );

    spawn_housekeeping(shutdown, config, &pool, &clock, &inbox, &metrics);
    if let Some(client) = client {
        let asking = Asking {
            pool: pool.clone(),
            host: host.clone(),
            inbox: inbox.clone(),
            outbox,
            client: client.with_priority(Priority::Poll),
            clock,
            metrics: metrics.clone(),
            poll_interval,
        };
        shutdown.spawn("WorkOS", asking.run(shutdown.soft().clone()));
    }

    let health = Health::new(
        shutdown.ending().clone(),
        database.options.clone(),
        host,
        Some(inbox.clone()),
    );
    let app = App::new(
        inbox,
        health,
        Arc::new(SystemClock),
        metrics,
        config.webhook_secrets.clone(),
        config.webhook_tolerance,
        config.max_body_bytes,
    );
    let tcp =
        listener::listen(port).with_context(|| format!("LISTEN_ADDR: {}", config.listen_addr))?;
    let address = tcp.local_addr()?;
    let url = format!("http://{}{}", reachable(address), config.webhook_path);
    info!(
        %address,
        %database,
        version = env!("CARGO_PKG_VERSION"),
        "listening on {address}, writing into {database}"
    );
    if config.database_url.is_none() {
        print_what_to_paste(&url, &config.webhook_secrets[0]);
    }
    let stop = shutdown.soft().clone();
    let tracker = shutdown.tracker().clone();
    let router = router(app, &config.webhook_path);
    let limits = listener::Limits::within_open_files(config.database_max_connections);
    shutdown.spawn("listener", async move {
        listener::serve(tcp, router, limits, stop, tracker).await;
    });

    let exit = shutdown
        .finish(config.shutdown_delay, config.shutdown_grace)
        .await;
    if timeout(CLOSE_TIMEOUT, pool.close()).await.is_err() {
        warn!(
            "some database connections are still busy: what they had in hand is still in the inbox"
        );
    }
    Ok(exit)
}

/// What goes on whether or not anybody sends anything.
fn spawn_housekeeping(
    shutdown: &Shutdown,
    config: &Config,
    pool: &PgPool,
    clock: &Arc<DatabaseClock>,
    inbox: &Inbox,
    metrics: &Metrics,
) {
    shutdown.spawn("database clock", {
        let (clock, pool, stop) = (clock.clone(), pool.clone(), shutdown.soft().clone());
        async move { clock.keep(pool, stop).await }
    });
    shutdown.spawn("sweeper", inbox.clone().run_sweeper());
    shutdown.spawn(
        "gauges",
        gauges::keep(
            pool.clone(),
            clock.clone(),
            metrics.clone(),
            shutdown.soft().clone(),
        ),
    );
    if let Some(age) = config.inbox_retention {
        let inbox = inbox.clone();
        shutdown.spawn("retention", async move { inbox.run_retention(age).await });
    }
}

/// What asks WorkOS, and writes to it.
struct Asking {
    pool: PgPool,
    host: Host,
    inbox: Inbox,
    outbox: Outbox,
    client: WorkosClient,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    poll_interval: Option<Duration>,
}

impl Asking {
    /// Polls and writes back, once the key is known to be of the environment of this database.
    async fn run(self, stop: CancellationToken) {
        let clock = Arc::clone(&self.clock);
        let guard = KeyGuard::new(self.pool.clone(), self.host, self.client.clone(), clock);
        if !guard.accepted(self.metrics.clone(), stop.clone()).await {
            return;
        }
        let polling = async {
            if let Some(interval) = self.poll_interval {
                let (pool, inbox, client) = (self.pool, self.inbox, self.client);
                Poll::new(pool, inbox, client, self.clock, self.metrics, interval)
                    .run(stop.clone())
                    .await;
            }
        };
        tokio::join!(polling, self.outbox.run(stop.clone()));
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

/// The client of the WorkOS API, if there is a key.
fn client(config: &Config, metrics: &Metrics) -> anyhow::Result<Option<WorkosClient>> {
    let Some(key) = &config.api_key else {
        warn!(
            "WORKOS_API_KEY is not set: organization ids wait in external_id_pushes, and are not written to WorkOS; \
             events that webhooks lose are not found"
        );
        return Ok(None);
    };
    let client = WorkosClient::new(config.api_url.clone(), key.clone())?
        .counted_by(metrics.clone())
        .limited_to(config.api_rps);
    Ok(Some(client))
}

/// Waits for the database, brings its schema up to date, and looks at the application's table.
async fn prepare(config: &Config, database: &DatabaseUrl) -> anyhow::Result<Host> {
    wait_for(database).await?;
    let schema = if config.migrate_on_start {
        bring_schema_up_to_date(database).await?
    } else {
        let mut connection = PgConnection::connect_with(&database.options).await?;
        if !migrate::pending(&mut connection).await?.is_empty() {
            bail!(
                "the database schema is not current, and MIGRATE_ON_START is false: run `workos-sync migrate`"
            );
        }
        let schema = Schema::read(&mut connection, database.schema.as_deref()).await?;
        connection.close().await?;
        schema
    };
    for version in &schema.applied {
        info!(version, "applied migration {version}");
    }
    for made in &schema.made {
        info!("{made}");
    }
    warn_of(&schema.table);
    if !schema.table.is_usable() && !schema.is_in_use {
        return Err(unusable(&schema.table));
    }
    // It worked before, and is going to again: what comes meanwhile is accepted.
    for finding in schema.table.errors() {
        error!("{finding}: events wait in the inbox until it is mended");
    }
    Ok(Host::new(schema.table, database.schema.clone()))
}

/// For somebody who has just started it: where it is, and an event to send. On standard output, not in the
/// log: a signature is good for a while.
fn print_what_to_paste(url: &str, secret: &SecretString) {
    let now = SystemClock.now();
    let at = now.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let ms = u64::try_from(now.timestamp_millis()).unwrap_or(0);
    let id = Ulid::from_parts(ms, Uuid::new_v4().as_u128());
    let body = format!(
        r#"{{"id":"event_{id}","event":"organization.created","created_at":"{at}","data":{{"object":"organization","id":"org_01EHWNCE74X7JSDV0X3SZ3KJNY","name":"Acme, Inc.","external_id":null,"created_at":"{at}","updated_at":"{at}"}}}}"#
    );
    let header = signature::sign(secret, body.as_bytes(), now);
    // Whoever started it as a service may have closed it.
    let _unread = writeln!(
        std::io::stdout(),
        "\nworkos-sync receives webhooks at {url}\n\n\
         Send it an event (this signature is good for a few minutes; `workos-sync sign FILE` makes a fresh one):\n\n\
         curl -sS {url} -H 'WorkOS-Signature: {header}' -H 'Content-Type: application/json' -H 'Prefer: wait=5' --data-raw '{body}'\n"
    );
}

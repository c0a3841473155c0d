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

use anyhow::{Context, anyhow};
use secrecy::SecretString;
use sqlx::PgPool;
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tracing::{info, warn};
use ulid::Ulid;
use uuid::Uuid;

use super::{embedded_options, not_up_to_date, private_url, reachable, wait_for};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::http::listener;
use crate::postgres::embedded::{self, Embedded, EmbeddedError};
use crate::postgres::{self, DatabaseUrl};
use crate::service::{BuildError, Builder, WorkosSync};
use crate::shutdown::{Exit, Shutdown};
use crate::signature;
use crate::telemetry;

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
    let shutdown = Arc::new(Shutdown::on_signals()?);
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
    shutdown: &Arc<Shutdown>,
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
    shutdown: &Arc<Shutdown>,
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
    shutdown: &Arc<Shutdown>,
) -> anyhow::Result<Exit> {
    let pool = postgres::pool(database.options.clone(), config.database_max_connections);
    let start = async {
        wait_for(database).await?;
        let built = builder(config, database, pool.clone(), shutdown)
            .build()
            .await;
        built.map_err(|error| not_started(database, error))
    };
    let sync = tokio::select! {
        started = start => started?,
        () = shutdown.ending().cancelled() => return Ok(shutdown.unless_forced(Exit::Clean)),
    };

    sync.spawn_tasks();
    let tcp =
        listener::listen(port).with_context(|| format!("LISTEN_ADDR: {}", config.listen_addr))?;
    let address = tcp.local_addr()?;
    let url = format!("http://{}{}", reachable(address), config.webhook_path);
    info!(
        %address,
        %database,
        version = crate::VERSION,
        "listening on {address}, writing into {database}"
    );
    if config.database_url.is_none() {
        print_what_to_paste(&url, &config.webhook_secrets[0]);
    }
    let stop = shutdown.soft().clone();
    let tracker = shutdown.tracker().clone();
    let router = sync.router();
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

fn builder(
    config: &Config,
    database: &DatabaseUrl,
    pool: PgPool,
    shutdown: &Arc<Shutdown>,
) -> Builder {
    let mut builder = WorkosSync::builder(pool)
        .migrate(config.migrate_on_start)
        .webhook_path(&config.webhook_path)
        .webhook_tolerance(config.webhook_tolerance)
        .max_body_bytes(config.max_body_bytes)
        .api_url(config.api_url.clone())
        .api_rps(config.api_rps)
        .events_poll(config.events_poll)
        .org_id_namespace(config.org_id_namespace)
        .notify_changes(config.notify_changes)
        .inbox_retention(config.inbox_retention)
        .ended_by(Arc::clone(shutdown));
    if let Some(schema) = &database.schema {
        builder = builder.schema(schema);
    }
    if let Some(key) = &config.api_key {
        builder = builder.api_key(key.clone());
    }
    let secrets = config.webhook_secrets.iter().cloned();
    secrets.fold(builder, Builder::webhook_secret)
}

/// The same error, as whoever set the variables is to read it.
fn not_started(database: &DatabaseUrl, error: BuildError) -> anyhow::Error {
    match error {
        BuildError::Schema(error) => not_up_to_date(database, error),
        BuildError::Outdated => anyhow!(
            "the database schema is not current, and MIGRATE_ON_START is false: run `workos-sync migrate`"
        ),
        error => error.into(),
    }
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

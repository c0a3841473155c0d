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
use private_postgres::PrivatePostgres;
use secrecy::SecretString;
use sqlx::PgPool;
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tracing::{info, warn};
use ulid::Ulid;
use uuid::Uuid;

use super::{not_up_to_date, private, reachable, wait_for};
use crate::admin::{self, Admin};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::entities::organization::Host;
use crate::event::rfc3339;
use crate::http::listener;
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
    let ports = Ports::bind(&config)?;

    let exit = match &config.database_url {
        Some(url) => serve(&config, url, ports, &shutdown).await?,
        None => Box::pin(with_private_postgres(config, ports, &shutdown)).await?,
    };
    info!(?exit, "stopped");
    Ok(exit.into())
}

/// Our addresses, before anybody is let in.
struct Ports {
    http: TcpSocket,
    admin: Option<admin::Port>,
}

impl Ports {
    fn bind(config: &Config) -> anyhow::Result<Self> {
        let http = listener::bind(config.listen_addr)
            .with_context(|| format!("LISTEN_ADDR: {}", config.listen_addr))?;
        let has_default = config.database_url.is_none();
        let admin = admin::Port::bind(config.admin_addr, has_default)
            .with_context(|| admin_addr(config))?;
        if admin.is_none() && config.admin_token.is_some() {
            warn!("ADMIN_TOKEN is set, but ADMIN_ADDR is not: there is no page and no admin API");
        }
        Ok(Self { http, admin })
    }
}

/// The setting, for an error about it.
fn admin_addr(config: &Config) -> String {
    let address = config.admin_addr;
    address.map_or_else(
        || "ADMIN_ADDR".to_owned(),
        |address| format!("ADMIN_ADDR: {address}"),
    )
}

/// Serves with a private Postgres, which is there as long as the service is.
async fn with_private_postgres(
    config: Config,
    ports: Ports,
    shutdown: &Arc<Shutdown>,
) -> anyhow::Result<Exit> {
    let Some(mut server) = private::start(&config, shutdown.ending()).await? else {
        return Ok(shutdown.unless_forced(Exit::Clean));
    };
    let result = serve_on(&mut server, config, ports, shutdown).await;
    let stopped = server.stop(shutdown.hard()).await;
    let exit = result?;
    stopped?;
    Ok(shutdown.unless_forced(exit))
}

/// Serves, and has the private Postgres started again if it ends. Ends when that fails: a service that can only
/// answer 503 would look alive.
async fn serve_on(
    server: &mut PrivatePostgres,
    mut config: Config,
    ports: Ports,
    shutdown: &Arc<Shutdown>,
) -> anyhow::Result<Exit> {
    if config.webhook_secrets.is_empty() {
        config.webhook_secrets = vec![private::make_webhook_secret(&config)?];
    }
    let database = private::url(server.url())?;
    let mut serving = Box::pin(serve(&config, &database, ports, shutdown));
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
    ports: Ports,
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
    let tcp = listener::listen(ports.http)
        .with_context(|| format!("LISTEN_ADDR: {}", config.listen_addr))?;
    let address = tcp.local_addr()?;
    let url = format!("http://{}{}", reachable(address), config.webhook_path);
    info!(
        %address,
        %database,
        version = crate::VERSION,
        "listening on {address}, writing into {database}"
    );
    let page = match ports.admin {
        Some(port) => Some(serve_page(port, config, database, sync.host(), shutdown)?),
        None => None,
    };
    if config.database_url.is_none() {
        print_what_to_paste(&url, page.as_deref(), &config.webhook_secrets[0]);
    }
    let stop = shutdown.soft().clone();
    let tracker = shutdown.tracker().clone();
    let router = sync.router();
    let operators = match page {
        Some(_) => admin::DATABASE_CONNECTIONS + admin::MAX_CONNECTIONS,
        None => 0,
    };
    let limits = listener::Limits::within_open_files(config.database_max_connections + operators);
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

/// Serves the operator's page and the admin API; says where.
fn serve_page(
    port: admin::Port,
    config: &Config,
    database: &DatabaseUrl,
    host: &Host,
    shutdown: &Shutdown,
) -> anyhow::Result<String> {
    let tcp = port.listen().with_context(|| admin_addr(config))?;
    let url = format!("http://{}/", reachable(tcp.local_addr()?));
    info!(url, "the page and the admin API are at {url}");
    let options = admin::Options {
        database: database.options.clone(),
        database_name: database.to_string(),
        host: host.clone(),
        token: config.admin_token.clone(),
        read_only: config.admin_read_only,
    };
    let router = admin::router(Admin::new(Arc::new(SystemClock), options));
    let (stop, tracker) = (shutdown.soft().clone(), shutdown.tracker().clone());
    shutdown.spawn("admin listener", async move {
        listener::serve(tcp, router, admin::limits(), stop, tracker).await;
    });
    Ok(url)
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
fn print_what_to_paste(url: &str, page: Option<&str>, secret: &SecretString) {
    let now = SystemClock.now();
    let at = rfc3339(now);
    let ms = u64::try_from(now.timestamp_millis()).unwrap_or(0);
    let id = Ulid::from_parts(ms, Uuid::new_v4().as_u128());
    let body = format!(
        r#"{{"id":"event_{id}","event":"organization.created","created_at":"{at}","data":{{"object":"organization","id":"org_01EHWNCE74X7JSDV0X3SZ3KJNY","name":"Acme, Inc.","external_id":null,"created_at":"{at}","updated_at":"{at}"}}}}"#
    );
    let header = signature::sign(secret, body.as_bytes(), now);
    let page = page.map_or_else(String::new, |page| {
        format!("\nSee what becomes of them at {page}")
    });
    // Whoever started it as a service may have closed it.
    let _unread = writeln!(
        std::io::stdout(),
        "\nworkos-sync receives webhooks at {url}{page}\n\n\
         Send it an event (this signature is good for a few minutes; `workos-sync sign FILE` makes a fresh one):\n\n\
         curl -sS {url} -H 'WorkOS-Signature: {header}' -H 'Content-Type: application/json' -H 'Prefer: wait=5' --data-raw '{body}'\n"
    );
}

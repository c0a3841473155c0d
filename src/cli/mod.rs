//! The command line: one file a command.

mod asking;
mod backfill;
mod catch_up;
mod definition;
mod doctor;
mod events;
mod health;
mod migrate;
mod operating;
mod organization;
mod pause;
mod private;
mod reconcile;
mod replay;
mod serve;
mod sign;
mod status;
mod table;
mod values;

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use chrono::TimeDelta;
use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use url::Url;

use self::events::EventsCommand;
pub use self::private::hint;
use crate::config::{Config, ConfigError, Settings};
use crate::entities::Target;
use crate::entities::organization::Host;
use crate::entities::organization::host::{HostTable, Severity};
use crate::entities::organization::schema::{self, Schema, UpdateError};
use crate::heal;
use crate::metrics::Metrics;
use crate::operate::FilterTexts;
use crate::operate::filter::parse_length;
use crate::postgres::migrate::SchemaError;
use crate::postgres::{self, DatabaseUrl};
use crate::service::Engine;
use crate::shutdown::Shutdown;

/// How long a database that can't be reached is waited for at the start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause between two tries.
const START_PAUSE: Duration = Duration::from_millis(500);

/// What a command says that makes nothing.
const NOT_CURRENT: &str = "the database schema is not current: run `workos-sync migrate`";

/// Keeps a Postgres table of organizations in step with `WorkOS`.
#[derive(Parser)]
#[command(name = "workos-sync", version = crate::VERSION, about, max_term_width = 100)]
#[expect(missing_debug_implementations, reason = "holds secrets as text")]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Receive webhooks and apply them (the default)
    Serve,
    /// Bring the database schema up to date
    Migrate,
    /// Print a fresh WorkOS-Signature header for a body, for curl
    Sign {
        /// The body; `-` reads standard input
        file: PathBuf,
    },
    /// Put saved events into the inbox, and apply them; or decide stored ones again
    Replay {
        /// Files of events: JSON objects, arrays or list pages of the Events API, one or several; `-` reads
        /// standard input
        #[arg(required_unless_present = "from_inbox", conflicts_with = "from_inbox")]
        files: Vec<PathBuf>,
        /// Decide processed and ignored events again, all of them or those that options name
        #[arg(long)]
        from_inbox: bool,
        #[command(flatten)]
        filter: FilterTexts,
        /// With --from-inbox: don't ask
        #[arg(long, requires = "from_inbox")]
        yes: bool,
    },
    /// Read all organizations from WorkOS, and apply them
    Backfill {
        /// Begin anew, whatever was broken off
        #[arg(long)]
        restart: bool,
        /// Write nothing, and print what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Compare all organizations of WorkOS with the table. Exits with 3 if they differ
    Reconcile {
        /// Mend what differs
        #[arg(long)]
        apply: bool,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
        /// With --apply, the most organizations to disable [default: 10, or 5 % of the rows if that is more]
        #[arg(long, value_name = "COUNT", requires = "apply")]
        max_disable: Option<usize>,
    },
    /// Read the events of a period from WorkOS, and apply those that are missing
    CatchUp {
        /// Begin of the period: a time such as 2026-11-26T08:00:00Z, or how long ago, such as 2h or 7d
        #[arg(long, value_name = "TIME")]
        since: String,
        /// End of the period. The default is now
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
    },
    /// List, show, retry and discard events
    Events {
        #[command(subcommand)]
        command: EventsCommand,
    },
    /// Print what is known of an organization
    Organization {
        /// WorkOS organization id, or the id of a row
        id: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Apply nothing and write nothing back for a while, in any replica; events are accepted
    Pause {
        /// For how long, up to 24h
        #[arg(long = "for", value_name = "TIME", value_parser = parse_length, default_value = "1h")]
        length: TimeDelta,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// End a pause
    Resume {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Look for what is usually wrong, and print what to do about it. Exits with 1 if something doesn't work
    Doctor {
        /// Public URL that WorkOS delivers to. A signed event is posted to it
        #[arg(long, value_name = "URL", value_parser = doctor::public_url)]
        url: Option<Url>,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Ask the service on `LISTEN_ADDR` whether it lives, for containers. Exits with 1 if not
    Health,
    /// Print whether the table can be trusted. Exits with 3 if not
    Status {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, in roff
    #[command(hide = true)]
    Man,
}

impl Cli {
    /// Reads the command line and the environment. Asked for help, or used wrongly, it prints and exits as
    /// clap does.
    ///
    /// An empty variable is one that is not set: compose files and CI systems can't leave one out.
    ///
    /// # Errors
    /// A variable holds no text.
    pub fn read() -> Result<Self, ConfigError> {
        let mut no_text = None;
        let command = command(|argument| {
            let Some(variable) = argument.get_env() else {
                return argument;
            };
            match std::env::var_os(variable) {
                Some(value) if value.is_empty() => argument.env(Resettable::Reset),
                Some(value) if value.to_str().is_none() => {
                    no_text.get_or_insert_with(|| variable.to_owned());
                    argument
                }
                _ => argument,
            }
        });
        let matches = command.try_get_matches().or_else(|error| match &no_text {
            // clap would neither say which, nor in one line.
            Some(variable) if error.kind() == ErrorKind::InvalidUtf8 => Err(ConfigError {
                variable: "environment",
                problem: format!("{} is not UTF-8 text", variable.display()),
            }),
            // Help names all variables, the empty ones too.
            _ => Ok(self::command(|argument| argument).get_matches()),
        })?;
        Ok(Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
    }

    /// Runs the command.
    ///
    /// # Errors
    /// [`ConfigError`] for a setting that can't be used; else what went wrong while running.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        // Of a command that uses none, none is wrong.
        let config = self.settings.check();
        match self.command.unwrap_or(Command::Serve) {
            Command::Serve => Box::pin(serve::run(config?)).await,
            Command::Migrate => migrate::run(config?).await,
            Command::Sign { file } => sign::run(&config?, &file),
            Command::Replay {
                files,
                from_inbox: false,
                filter,
                ..
            } => {
                if filter != FilterTexts::default() {
                    return Err(ConfigError {
                        variable: "replay",
                        problem: "only --from-inbox selects events by options".to_owned(),
                    }
                    .into());
                }
                replay::run(config?, &files).await
            }
            Command::Replay { filter, yes, .. } => {
                Box::pin(replay::from_inbox(config?, filter, yes)).await
            }
            Command::Events { command } => Box::pin(events::run(config?, command)).await,
            Command::Organization { id, json } => organization::run(config?, &id, json).await,
            Command::Pause {
                length,
                reason,
                json,
            } => pause::pause(config?, length, reason.as_deref(), json).await,
            Command::Resume { json } => pause::resume(config?, json).await,
            Command::Backfill { restart, dry_run } => {
                let options = heal::backfill::Options { restart, dry_run };
                backfill::run(config?, options).await
            }
            Command::Reconcile {
                apply,
                json,
                max_disable,
            } => {
                let options = heal::reconcile::Options { apply, max_disable };
                reconcile::run(config?, options, json).await
            }
            Command::CatchUp { since, until } => {
                catch_up::run(config?, &since, until.as_deref()).await
            }
            Command::Doctor { url, json } => doctor::run(config?, url, json).await,
            Command::Health => health::run(config?).await,
            Command::Status { json } => status::run(config?, json).await,
            Command::Completions { shell } => definition::completions(shell),
            Command::Man => definition::man(),
        }
    }
}

/// Opens a file, or standard input where it is called `-`.
fn open(file: &Path) -> io::Result<Box<dyn Read>> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    Ok(Box::new(File::open(file)?))
}

/// The command line, with a last word about each setting's argument.
///
/// Settings are taken before and after a command's name, by every command; the help of a command shows those that
/// it uses.
fn command(mut adapt: impl FnMut(Arg) -> Arg) -> clap::Command {
    let command = Cli::command().mut_args(|argument| {
        // A value may be a secret.
        adapt(argument.global(true).hide_env_values(true))
    });
    let settings: Vec<Arg> = command.get_arguments().cloned().collect();
    command.mut_subcommands(|command| {
        let Some(used) = settings_of(command.get_name()) else {
            return command;
        };
        let unused = settings
            .iter()
            .filter(|setting| !used.contains(&setting.get_id().as_str()))
            .map(|setting| setting.clone().hide(true));
        command.args(unused)
    })
}

/// The settings that a command uses; `None`: all of them.
fn settings_of(command: &str) -> Option<Vec<&'static str>> {
    const DATABASE: [&str; 6] = [
        "database_url",
        "database_url_file",
        "data_dir",
        "pg_bin_dir",
        "log_format",
        "log_level",
    ];
    let settings = match command {
        "migrate" | "status" | "events" | "organization" | "pause" | "resume" => DATABASE.into(),
        "backfill" | "reconcile" | "catch-up" => [
            &DATABASE[..],
            &[
                "database_max_connections",
                "org_id_namespace",
                "notify_changes",
                "workos_api_key",
                "workos_api_key_file",
                "workos_api_url",
                "workos_api_rps",
            ],
        ]
        .concat(),
        "replay" => [
            &DATABASE[..],
            &[
                "database_max_connections",
                "org_id_namespace",
                "notify_changes",
            ],
        ]
        .concat(),
        "doctor" => [
            &DATABASE[..],
            &[
                "workos_webhook_secret",
                "workos_webhook_secret_file",
                "workos_api_key",
                "workos_api_key_file",
                "workos_api_url",
                "workos_api_rps",
                "webhook_path",
                "webhook_tolerance_seconds",
                "migrate_on_start",
            ],
        ]
        .concat(),
        "health" => vec!["listen_addr"],
        "completions" | "man" => Vec::new(),
        "sign" => vec![
            "workos_webhook_secret",
            "workos_webhook_secret_file",
            "data_dir",
        ],
        _ => return None,
    };
    Some(settings)
}

/// What a command is about to do to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    /// It makes what is missing of the schema, first of all.
    Write,
    /// It compares, or says what it would do: whoever asks for that wants nothing to be made.
    Look,
}

/// The database of a command that runs beside `serve`: the configured one, which may start beside us, as in an init
/// container, else the private one that `serve` has made, which is started if nobody runs it.
struct Database {
    url: DatabaseUrl,
    /// Cancelled when the command is asked to end.
    stop: CancellationToken,
}

impl Database {
    /// Runs a command's work on it, until it is done or a signal comes. A private server that was started for it is
    /// stopped, however it ends.
    async fn with<T>(
        config: &Config,
        work: impl AsyncFnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        Self::reached_or_not(config, async |database| {
            wait_for(&database.url).await?;
            work(database).await
        })
        .await
    }

    /// The same, though it may not be reached.
    async fn reached_or_not<T>(
        config: &Config,
        work: impl AsyncFnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let shutdown = Shutdown::on_signals()?;
        let stop = shutdown.ending();
        let (url, joined) = if let Some(url) = &config.database_url {
            (url.clone(), None)
        } else {
            let joined = private::join(config, stop).await?;
            (private::url(joined.url())?, Some(joined))
        };
        let database = Self {
            url,
            stop: stop.clone(),
        };
        let result = tokio::select! {
            result = work(&database) => result,
            () = stop.cancelled() => Err(anyhow!("ended by a signal before it was done")),
        };
        let stopped = match joined {
            Some(joined) => joined.stop(shutdown.hard()).await,
            None => Ok(()),
        };
        let result = result?;
        stopped?;
        Ok(result)
    }

    /// Does a command's work with what records and applies events, on an up-to-date schema, and ends what it has begun.
    /// What WorkOS is to be told is recorded; `serve` tells it.
    async fn with_engine<T>(
        &self,
        config: &Config,
        intent: Intent,
        work: impl AsyncFnOnce(&Engine) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let schema = match intent {
            Intent::Write => bring_schema_up_to_date(&self.url).await?,
            Intent::Look => look_at_schema(&self.url).await?,
        };
        if !schema.table.is_usable() {
            return Err(unusable(&schema.table));
        }
        let target = Target {
            host: Host::new(schema.table, self.url.schema.clone()),
            namespace: config.org_id_namespace,
            notifies: config.notify_changes,
        };
        let pool = postgres::pool(self.url.options.clone(), config.database_max_connections);
        let stop = self.stop.child_token();
        let (engine, _) = Engine::on(pool, target, None, Metrics::default(), stop.clone()).await?;
        let done = work(&engine).await;
        // The lanes of our events may have others without end: what is in hand is finished, and nothing more begun.
        stop.cancel();
        engine.inbox.idle().await;
        engine.pool.close().await;
        done
    }
}

/// An address that can be connected to: a wildcard address is one to listen on only.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        _ => address.ip(),
    };
    SocketAddr::new(ip, address.port())
}

/// Waits for a database that can't be reached yet, because it starts beside us. A mistake that no wait mends ends
/// it at once.
async fn wait_for(database: &DatabaseUrl) -> anyhow::Result<()> {
    for parameter in &database.ignored {
        warn!("DATABASE_URL: unknown parameter {parameter:?} is ignored");
    }
    database.check_tls_files().context("DATABASE_URL")?;
    let give_up = Instant::now() + START_TIMEOUT;
    let mut said = false;
    loop {
        let connect = PgConnection::connect_with(&database.options);
        let cause = match timeout(START_TIMEOUT / 6, connect).await {
            Ok(Ok(connection)) => return Ok(connection.close().await?),
            Ok(Err(error)) if postgres::error::is_a_misconfiguration(&error) => {
                return Err(unreachable_database(database, &error));
            }
            Ok(Err(error)) => postgres::error::describe(&error),
            Err(_elapsed) => "no answer".to_owned(),
        };
        if Instant::now() >= give_up {
            let seconds = START_TIMEOUT.as_secs();
            bail!(
                "DATABASE_URL: the database {database} could not be reached for {seconds} s: {cause}"
            );
        }
        if !std::mem::replace(&mut said, true) {
            error!(
                cause,
                "the database {database} can't be reached, trying again: {cause}"
            );
        }
        tokio::time::sleep(START_PAUSE).await;
    }
}

/// Brings the schema up to date.
async fn bring_schema_up_to_date(database: &DatabaseUrl) -> anyhow::Result<Schema> {
    let schema = schema::bring_up_to_date(&database.options, database.schema.as_deref()).await;
    schema.map_err(|error| not_up_to_date(database, error))
}

/// Looks at the schema, which has to be up to date.
async fn look_at_schema(database: &DatabaseUrl) -> anyhow::Result<Schema> {
    let mut connection = PgConnection::connect_with(&database.options)
        .await
        .map_err(|error| unreachable_database(database, &error))?;
    let pending = postgres::migrate::pending(&mut connection).await;
    if !pending.map_err(UpdateError::from)?.is_empty() {
        bail!(NOT_CURRENT);
    }
    let schema = Schema::read(&mut connection, database.schema.as_deref()).await?;
    connection.close().await?;
    if schema.table.has(Severity::Unmade) {
        bail!(NOT_CURRENT);
    }
    Ok(schema)
}

fn not_up_to_date(database: &DatabaseUrl, error: UpdateError) -> anyhow::Error {
    match error {
        UpdateError::Schema(SchemaError::Connect(error)) => unreachable_database(database, &error),
        error => anyhow::Error::new(error).context("the schema can't be brought up to date"),
    }
}

/// The application's table can't be used: what keeps it from working, a line each.
fn unusable(table: &HostTable) -> anyhow::Error {
    anyhow!(table.why_unusable())
}

/// The setting, the place and the reason; no user and no password.
fn unreachable_database(database: &DatabaseUrl, error: &sqlx::Error) -> anyhow::Error {
    anyhow!(
        "DATABASE_URL: {database}: {}",
        postgres::error::describe(error)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command(|argument| argument).debug_assert();
    }

    /// A name that is misspelt would hide a setting that is used.
    #[test]
    fn every_command_uses_settings_that_exist() {
        let command = Cli::command();
        let exists = |name: &&str| command.get_arguments().any(|known| known.get_id() == name);
        for subcommand in command.get_subcommands() {
            for name in settings_of(subcommand.get_name()).unwrap_or_default() {
                assert!(exists(&name), "{name}");
            }
        }
    }
}

//! The command line: one file a command.

mod migrate;
mod replay;
mod serve;
mod sign;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, timeout};
use tracing::{error, warn};

use crate::config::{Config, ConfigError, Settings};
use crate::postgres;
use crate::postgres::embedded::{self, EmbeddedOptions, Joined};
use crate::postgres::migrate::SchemaError;
use crate::sync::host::HostTable;
use crate::sync::schema::{self, Schema, UpdateError};

/// How long a database that can't be reached is waited for at the start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause between two tries.
const START_PAUSE: Duration = Duration::from_millis(500);

/// Keeps a Postgres table of organizations in step with `WorkOS`.
#[derive(Parser)]
#[command(name = "workos-sync", version, about, max_term_width = 100)]
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
    /// Put saved events into the inbox, and apply them
    Replay {
        /// Files of events: one JSON object, an array, a list page of the Events API, or JSON lines; `-` reads
        /// standard input
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
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
        let command = Self::command().mut_args(|argument| {
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
            _ => Ok(Self::command().get_matches()),
        })?;
        Ok(Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
    }

    /// Runs the command.
    ///
    /// # Errors
    /// [`ConfigError`] for a setting that can't be used; else what went wrong while running.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let config = self.settings.check()?;
        match self.command.unwrap_or(Command::Serve) {
            Command::Serve => serve::run(config).await,
            Command::Migrate => migrate::run(config).await,
            Command::Sign { file } => sign::run(&config, &file),
            Command::Replay { files } => replay::run(config, &files).await,
        }
    }
}

fn embedded_options(config: &Config) -> EmbeddedOptions {
    EmbeddedOptions {
        data_dir: config.data_dir.clone(),
        bin_dir: config.pg_bin_dir.clone(),
        durable: true,
    }
}

/// The database of a command that runs beside `serve`: the configured one, which may start beside us, as in an init
/// container, else the private one, which is started if nobody runs it.
struct Database {
    options: PgConnectOptions,
    joined: Option<Joined>,
}

impl Database {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        if let Some(url) = &config.database_url {
            let options = connect_options(url)?;
            wait_for(&options).await?;
            return Ok(Self {
                options,
                joined: None,
            });
        }
        let joined = embedded::join_or_start(&embedded_options(config)).await?;
        Ok(Self {
            options: connect_options(joined.url())?,
            joined: Some(joined),
        })
    }

    /// Stops the private server, if it was started here.
    async fn close(self) -> anyhow::Result<()> {
        if let Some(joined) = self.joined {
            joined.stop().await?;
        }
        Ok(())
    }
}

/// Waits for a database that can't be reached yet, because it starts beside us.
async fn wait_for(database: &PgConnectOptions) -> anyhow::Result<()> {
    let give_up = Instant::now() + START_TIMEOUT;
    let place = place(database);
    let mut said = false;
    loop {
        let cause = match timeout(START_TIMEOUT / 6, PgConnection::connect_with(database)).await {
            Ok(Ok(connection)) => return Ok(connection.close().await?),
            Ok(Err(error)) => {
                // Not a matter of time: a wrong password, or a database that isn't there.
                if postgres::error::is_about_the_connection_string(&error) {
                    return Err(unreachable_database(database, &error));
                }
                postgres::error::describe(&error)
            }
            Err(_elapsed) => "no answer".to_owned(),
        };
        if Instant::now() >= give_up {
            let seconds = START_TIMEOUT.as_secs();
            bail!(
                "DATABASE_URL: the database at {place} could not be reached for {seconds} s: {cause}"
            );
        }
        if !std::mem::replace(&mut said, true) {
            error!(
                cause,
                "the database at {place} can't be reached, trying again: {cause}"
            );
        }
        tokio::time::sleep(START_PAUSE).await;
    }
}

/// Brings the schema up to date.
async fn bring_schema_up_to_date(database: &PgConnectOptions) -> anyhow::Result<Schema> {
    let schema = schema::bring_up_to_date(database, None).await;
    schema.map_err(|error| match error {
        UpdateError::Schema(SchemaError::Connect(error)) => unreachable_database(database, &error),
        error => anyhow::Error::new(error).context("the schema can't be brought up to date"),
    })
}

/// Says what is to be known of the application's table.
fn warn_of(table: &HostTable) {
    for finding in table.warnings() {
        warn!("{finding}");
    }
}

/// The application's table can't be used: what keeps it from working, a line each.
fn unusable(table: &HostTable) -> anyhow::Error {
    let errors: Vec<_> = table.errors().map(ToString::to_string).collect();
    anyhow!(errors.join("\n"))
}

/// The setting, the place and the reason; no user and no password.
fn unreachable_database(database: &PgConnectOptions, error: &sqlx::Error) -> anyhow::Error {
    anyhow!(
        "DATABASE_URL: {}: {}",
        place(database),
        postgres::error::describe(error)
    )
}

fn place(database: &PgConnectOptions) -> String {
    format!("{}:{}", database.get_host(), database.get_port())
}

fn connect_options(url: &SecretString) -> Result<PgConnectOptions, ConfigError> {
    postgres::parse_url(url).map_err(|_| ConfigError {
        variable: "DATABASE_URL",
        problem: "expected a connection string".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}

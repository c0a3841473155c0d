//! The command line: one file a command.

mod migrate;
mod replay;
mod serve;
mod sign;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;

use crate::config::{Config, ConfigError, Settings};
use crate::postgres;
use crate::postgres::embedded::{self, EmbeddedOptions, Joined};

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

/// The database of a command that runs beside `serve`: the configured one, else the private one, which is
/// started if nobody runs it.
struct Database {
    options: PgConnectOptions,
    joined: Option<Joined>,
}

impl Database {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        if let Some(url) = &config.database_url {
            return Ok(Self {
                options: connect_options(url)?,
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

fn connect_options(url: &SecretString) -> Result<PgConnectOptions, ConfigError> {
    postgres::parse_url(url).map_err(|_| ConfigError {
        variable: "DATABASE_URL",
        problem: "expected a connection string".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}

//! The private Postgres, for where nothing but the server binaries is installed: what it is called here, and the webhook
//! secret beside it. The server itself is the package `private-postgres`.
//!
//! Why not `SQLite` for this: the guarantees of the service rest on advisory locks, `skip locked` and commit order, and a
//! default that runs other SQL than production would prove nothing.

use anyhow::Context;
use private_postgres::{Error, Joined, Names, Options, PrivatePostgres};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError};
use crate::postgres::DatabaseUrl;

const NAMES: Names = Names {
    data_dir: "DATA_DIR",
    bin_dir: "PG_BIN_DIR",
    instead: "set DATABASE_URL to a database of yours",
};

const WEBHOOK_SECRET: &str = "webhook_secret";

fn options(config: &Config) -> Options {
    Options {
        bin_dir: config.pg_bin_dir.clone(),
        durable: true,
        name: "workos_sync",
        initdb: &["--data-checksums"],
        settings: &[],
        elsewhere: "/var/lib/workos-sync",
    }
}

/// The server of `serve`, made if it isn't there; `None` if the start was interrupted.
pub(super) async fn start(
    config: &Config,
    stop: &CancellationToken,
) -> anyhow::Result<Option<PrivatePostgres>> {
    match PrivatePostgres::start(&config.data_dir, &options(config), stop).await {
        Ok(server) => Ok(Some(server)),
        Err(Error::Interrupted) => Ok(None),
        Err(error) => Err(named(error)),
    }
}

/// For a command beside `serve`: the server that `serve` has made.
pub(super) async fn join(config: &Config, stop: &CancellationToken) -> anyhow::Result<Joined> {
    private_postgres::open_existing(&config.data_dir, &options(config), stop)
        .await
        .map_err(named)
}

/// The error, with the setting that it is about.
fn named(error: Error) -> anyhow::Error {
    match error {
        Error::NotMade { .. } => ConfigError {
            variable: "DATABASE_URL",
            problem: format!("not set, and {error}; set it, or run `workos-sync serve` first"),
        }
        .into(),
        Error::BinDir { .. } => anyhow::Error::new(error).context(NAMES.bin_dir),
        error => error.into(),
    }
}

/// What to do about an error of the private Postgres.
#[must_use]
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.downcast_ref::<Error>()?.hint(&NAMES)
}

pub(super) fn url(url: &SecretString) -> anyhow::Result<DatabaseUrl> {
    DatabaseUrl::parse(url).context("the address of the private database")
}

/// The webhook secret that `serve` made beside its private database, if it has. None is made here: nobody would accept
/// its signatures.
pub(super) fn webhook_secret(config: &Config) -> anyhow::Result<Option<SecretString>> {
    Ok(private_postgres::secret(&config.data_dir, WEBHOOK_SECRET)?)
}

/// The same for `serve`, which makes it up at the first start.
pub(super) fn make_webhook_secret(config: &Config) -> anyhow::Result<SecretString> {
    Ok(private_postgres::make_secret(
        &config.data_dir,
        WEBHOOK_SECRET,
        "whsec_",
    )?)
}

//! Every setting, once: flag, variable, default, check, secret or not.
//!
//! Two layers: [`Settings`] is what clap reads, as text; [`Config`] is what the program uses, checked. clap
//! could check the values too, but its message names the flag, takes several lines, and repeats secrets.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use chrono::TimeDelta;
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use url::Url;
use uuid::Uuid;

use crate::postgres::DatabaseUrl;

/// WorkOS takes 100 a second of a key. What stands in its place, an emulator or a proxy that limits by itself, may take
/// more; beyond this a limit is none.
const MOST_RPS: NonZeroU32 = NonZeroU32::new(10_000).expect("it isn't zero");

/// The settings as text. Each doc comment is the help text; [`Config`] has the types. What all of them have in
/// common is set once, where the command line is put together (`cli/mod.rs`).
#[derive(Args, Clone)]
#[command(next_help_heading = "Settings")]
#[expect(missing_debug_implementations, reason = "holds secrets as text")]
pub struct Settings {
    /// Connection URL of a PostgreSQL database, 13 or newer. Without it, `serve` runs a private PostgreSQL server
    #[arg(long, env, value_name = "URL")]
    database_url: Option<String>,

    /// File that contains the database URL
    #[arg(long, env, value_name = "FILE")]
    database_url_file: Option<String>,

    /// Secret of the webhook endpoint, or several, separated by commas, during a rotation. Required with
    /// `DATABASE_URL`
    #[arg(long, env, value_name = "SECRETS")]
    workos_webhook_secret: Option<String>,

    /// File that contains the webhook secrets
    #[arg(long, env, value_name = "FILE")]
    workos_webhook_secret_file: Option<String>,

    /// API key of the WorkOS environment. Without it, organization ids are not written to WorkOS
    #[arg(long, env, value_name = "KEY")]
    workos_api_key: Option<String>,

    /// File that contains the API key
    #[arg(long, env, value_name = "FILE")]
    workos_api_key_file: Option<String>,

    /// Base URL of the WorkOS API
    #[arg(
        long,
        env,
        default_value = "https://api.workos.com",
        value_name = "URL"
    )]
    workos_api_url: String,

    /// Maximum number of requests to the WorkOS API per second; WorkOS takes 100 of a key
    #[arg(long, env, default_value = "10", value_name = "COUNT")]
    workos_api_rps: String,

    /// How often `serve` reads events from the WorkOS API, in case webhooks get lost. 0 never does
    #[arg(long, env, default_value = "60", value_name = "SECONDS")]
    events_poll_seconds: String,

    /// Address and port to listen on. Port 0 picks a free port, which is logged
    #[arg(long, env, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen_addr: String,

    /// Address and port of the operator's page and the admin API. The default is none; with the private PostgreSQL
    /// server 127.0.0.1:8081, or a free port if that is taken
    #[arg(long, env, value_name = "ADDR")]
    admin_addr: Option<String>,

    /// Token that the page and the admin API ask for. Required unless `ADMIN_ADDR` is a loopback address
    #[arg(long, env, value_name = "TOKEN")]
    admin_token: Option<String>,

    /// File that contains the admin token
    #[arg(long, env, value_name = "FILE")]
    admin_token_file: Option<String>,

    /// Whether the page and the admin API refuse every change
    #[arg(long, env, default_value = "false", value_name = "BOOL")]
    admin_read_only: String,

    /// URL path that receives webhooks. It can contain an unguessable part
    #[arg(long, env, default_value = "/webhooks/workos", value_name = "PATH")]
    webhook_path: String,

    /// Maximum difference between a signature's time and now. 0 disables the check
    #[arg(long, env, default_value = "180", value_name = "SECONDS")]
    webhook_tolerance_seconds: String,

    /// Maximum size of a request body
    #[arg(long, env, default_value = "1048576", value_name = "BYTES")]
    max_body_bytes: String,

    /// Namespace of derived organization ids. The default is the `UUIDv5` of `speakeasy.com` in the DNS namespace
    #[arg(
        long,
        env,
        default_value = "df708297-209f-5667-8ac5-74ec5d2582b7",
        value_name = "UUID"
    )]
    org_id_namespace: String,

    /// Maximum number of database connections. At most half of them are used to apply events
    #[arg(long, env, default_value = "20", value_name = "COUNT")]
    database_max_connections: String,

    /// Whether each change of a row is told by NOTIFY on the channel `workos_sync`. PostgreSQL then commits one
    /// transaction after the other
    #[arg(long, env, default_value = "false", value_name = "BOOL")]
    notify_changes: String,

    /// Whether `serve` applies pending migrations. If `false`, it refuses to start while there are any
    #[arg(long, env, default_value = "true", value_name = "BOOL")]
    migrate_on_start: String,

    /// How long connections are still accepted after SIGTERM, SIGINT or SIGHUP, while `readyz` answers 503. Load
    /// balancers need time to see it
    #[arg(long, env, default_value = "0", value_name = "SECONDS")]
    shutdown_delay_seconds: String,

    /// How long requests and events in progress may take to finish after that
    #[arg(long, env, default_value = "25", value_name = "SECONDS")]
    shutdown_grace_seconds: String,

    /// How long processed and ignored events are kept. 0 keeps them forever
    #[arg(long, env, default_value = "90", value_name = "DAYS")]
    inbox_retention_days: String,

    /// Log format: `text` or `json`. The default is `text` on a terminal, otherwise `json`
    #[arg(long, env, value_name = "FORMAT")]
    log_format: Option<String>,

    /// Log level: `error`, `warn`, `info`, `debug`, `trace`, `off`, or directives such as
    /// `info,workos_sync::inbox=debug`
    #[arg(long, env, default_value = "info", value_name = "LEVEL")]
    log_level: String,

    /// Directory of the private PostgreSQL server and its secrets, used when there is no `DATABASE_URL`
    #[arg(long, env, default_value = ".workos-sync", value_name = "DIR")]
    data_dir: String,

    /// Directory that contains the PostgreSQL server binaries. By default they are found on `PATH`, or in the newest
    /// version under `/usr/lib/postgresql`
    #[arg(long, env, value_name = "DIR")]
    pg_bin_dir: Option<String>,
}

/// A setting that can't be used: one line that names the variable. It never repeats a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct ConfigError {
    /// The environment variable.
    pub variable: &'static str,
    /// What is wrong with it, and what it should be.
    pub problem: String,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// The settings, checked.
pub struct Config {
    /// `DATABASE_URL`; `None`: the private Postgres.
    pub database_url: Option<DatabaseUrl>,
    /// `WORKOS_WEBHOOK_SECRET`; empty: none given.
    pub webhook_secrets: Vec<SecretString>,
    /// `WORKOS_API_KEY`
    pub api_key: Option<SecretString>,
    /// `WORKOS_API_URL`
    pub api_url: Url,
    /// `WORKOS_API_RPS`
    pub api_rps: NonZeroU32,
    /// `EVENTS_POLL_SECONDS`; `None`: never.
    pub events_poll: Option<Duration>,
    /// `LISTEN_ADDR`
    pub listen_addr: SocketAddr,
    /// `ADMIN_ADDR`; `None`: none given.
    pub admin_addr: Option<SocketAddr>,
    /// `ADMIN_TOKEN`; there is one unless `admin_addr` is a loopback address, or none.
    pub admin_token: Option<SecretString>,
    /// `ADMIN_READ_ONLY`
    pub admin_read_only: bool,
    /// `WEBHOOK_PATH`
    pub webhook_path: String,
    /// `WEBHOOK_TOLERANCE_SECONDS`; zero switches the check off.
    pub webhook_tolerance: Duration,
    /// `MAX_BODY_BYTES`
    pub max_body_bytes: usize,
    /// `ORG_ID_NAMESPACE`
    pub org_id_namespace: Uuid,
    /// `DATABASE_MAX_CONNECTIONS`
    pub database_max_connections: u32,
    /// `NOTIFY_CHANGES`
    pub notify_changes: bool,
    /// `MIGRATE_ON_START`
    pub migrate_on_start: bool,
    /// `SHUTDOWN_DELAY_SECONDS`
    pub shutdown_delay: Duration,
    /// `SHUTDOWN_GRACE_SECONDS`
    pub shutdown_grace: Duration,
    /// `INBOX_RETENTION_DAYS`; `None` keeps for ever.
    pub inbox_retention: Option<TimeDelta>,
    /// `LOG_FORMAT`; `None`: by whether the log goes to a terminal.
    pub log_format: Option<LogFormat>,
    /// `LOG_LEVEL`
    pub log_level: EnvFilter,
    /// `DATA_DIR`
    pub data_dir: PathBuf,
    /// `PG_BIN_DIR`
    pub pg_bin_dir: Option<PathBuf>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("listen_addr", &self.listen_addr)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first one that can't be used.
    pub fn check(self) -> Result<Config, ConfigError> {
        let database_url = either(
            ("DATABASE_URL", self.database_url),
            ("DATABASE_URL_FILE", self.database_url_file),
            database_url,
        )?;
        let webhook_secrets = either(
            ("WORKOS_WEBHOOK_SECRET", self.workos_webhook_secret),
            (
                "WORKOS_WEBHOOK_SECRET_FILE",
                self.workos_webhook_secret_file,
            ),
            webhook_secrets,
        )?;
        let api_key = either(
            ("WORKOS_API_KEY", self.workos_api_key),
            ("WORKOS_API_KEY_FILE", self.workos_api_key_file),
            visible_secret,
        )?;
        let (admin_addr, admin_token) =
            admin(self.admin_addr, self.admin_token, self.admin_token_file)?;
        let retention_days = number(
            "INBOX_RETENTION_DAYS",
            "whole days",
            &self.inbox_retention_days,
            0..=36_500,
        )?;

        Ok(Config {
            database_url,
            webhook_secrets: webhook_secrets.unwrap_or_default(),
            api_key,
            api_url: api_url(&self.workos_api_url)?,
            api_rps: number(
                "WORKOS_API_RPS",
                "requests per second",
                &self.workos_api_rps,
                NonZeroU32::MIN..=MOST_RPS,
            )?,
            events_poll: Some(seconds(
                "EVENTS_POLL_SECONDS",
                &self.events_poll_seconds,
                86_400,
            )?)
            .filter(|interval| !interval.is_zero()),
            listen_addr: parse(
                "LISTEN_ADDR",
                "an address and a port, such as 127.0.0.1:8080",
                &self.listen_addr,
            )?,
            admin_addr,
            admin_token,
            admin_read_only: parse("ADMIN_READ_ONLY", "true or false", &self.admin_read_only)?,
            webhook_path: webhook_path(self.webhook_path)?,
            webhook_tolerance: seconds(
                "WEBHOOK_TOLERANCE_SECONDS",
                &self.webhook_tolerance_seconds,
                315_360_000,
            )?,
            max_body_bytes: number(
                "MAX_BODY_BYTES",
                "whole bytes",
                &self.max_body_bytes,
                1_024..=256 * 1_024 * 1_024,
            )?,
            org_id_namespace: parse("ORG_ID_NAMESPACE", "a UUID", &self.org_id_namespace)?,
            database_max_connections: number(
                "DATABASE_MAX_CONNECTIONS",
                "a count of connections",
                &self.database_max_connections,
                2..=10_000,
            )?,
            notify_changes: parse("NOTIFY_CHANGES", "true or false", &self.notify_changes)?,
            migrate_on_start: parse("MIGRATE_ON_START", "true or false", &self.migrate_on_start)?,
            shutdown_delay: seconds(
                "SHUTDOWN_DELAY_SECONDS",
                &self.shutdown_delay_seconds,
                86_400,
            )?,
            shutdown_grace: seconds(
                "SHUTDOWN_GRACE_SECONDS",
                &self.shutdown_grace_seconds,
                86_400,
            )?,
            inbox_retention: (retention_days > 0).then(|| TimeDelta::days(retention_days)),
            log_format: log_format(self.log_format)?,
            log_level: log_level(&self.log_level)?,
            data_dir: given(Some(self.data_dir))
                .map(PathBuf::from)
                .ok_or_else(|| wrong("DATA_DIR", "expected a directory"))?,
            pg_bin_dir: given(self.pg_bin_dir).map(PathBuf::from),
        })
    }
}

fn log_format(value: Option<String>) -> Result<Option<LogFormat>, ConfigError> {
    match given(value).as_deref() {
        None => Ok(None),
        Some("text") => Ok(Some(LogFormat::Text)),
        Some("json") => Ok(Some(LogFormat::Json)),
        Some(other) => Err(wrong(
            "LOG_FORMAT",
            format!("expected text or json: {other:?}"),
        )),
    }
}

/// An empty value is none.
fn given(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

fn wrong(variable: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError {
        variable,
        problem: problem.into(),
    }
}

fn parse<T: FromStr>(
    variable: &'static str,
    expected: &str,
    value: &str,
) -> Result<T, ConfigError> {
    value
        .trim()
        .parse()
        .map_err(|_| wrong(variable, format!("expected {expected}: {value:?}")))
}

fn number<T>(
    variable: &'static str,
    unit: &str,
    value: &str,
    range: RangeInclusive<T>,
) -> Result<T, ConfigError>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    let expected = format!("{unit} from {} to {}", range.start(), range.end());
    let number: T = parse(variable, &expected, value)?;
    if !range.contains(&number) {
        return Err(wrong(variable, format!("expected {expected}: {value:?}")));
    }
    Ok(number)
}

fn seconds(variable: &'static str, value: &str, most: u64) -> Result<Duration, ConfigError> {
    number(variable, "whole seconds", value, 0..=most).map(Duration::from_secs)
}

/// A secret, in a variable or in the file that `…_FILE` names; checked, with the variable that an error is to name.
fn either<T>(
    (variable, value): (&'static str, Option<String>),
    (file_variable, file): (&'static str, Option<String>),
    check: impl FnOnce(&'static str, &str) -> Result<T, ConfigError>,
) -> Result<Option<T>, ConfigError> {
    let (variable, value) = match (given(value), given(file)) {
        (None, None) => return Ok(None),
        (Some(value), None) => (variable, value),
        (None, Some(file)) => (file_variable, read(file_variable, &file)?),
        (Some(_), Some(_)) => {
            let problem = format!("{variable} is set too; expected one of them");
            return Err(wrong(file_variable, problem));
        }
    };
    let value = SecretString::from(value);
    let value = unquoted(variable, value.expose_secret().trim())?;
    check(variable, value).map(Some)
}

/// Reads a file that holds a secret. Its name isn't repeated: it may be the secret, given to the wrong variable.
fn read(variable: &'static str, file: &str) -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| wrong(variable, format!("the file can't be read: {error}")))?;
    // As editors and `echo` end it.
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(wrong(variable, "the file is empty"));
    }
    Ok(text.to_owned())
}

/// Refuses a value in quotes: `docker run --env-file` passes them on, and no secret or URL has any.
fn unquoted<'a>(variable: &'static str, value: &'a str) -> Result<&'a str, ConfigError> {
    let in_quotes = |quote| value.starts_with(quote) && value.ends_with(quote);
    if in_quotes('"') || in_quotes('\'') {
        return Err(wrong(
            variable,
            "the value is in quotes; expected it without",
        ));
    }
    Ok(value)
}

fn database_url(variable: &'static str, value: &str) -> Result<DatabaseUrl, ConfigError> {
    DatabaseUrl::parse(&value.into()).map_err(|error| wrong(variable, error.to_string()))
}

fn webhook_secrets(variable: &'static str, value: &str) -> Result<Vec<SecretString>, ConfigError> {
    let secret = |secret: &str| match unquoted(variable, secret.trim())? {
        "" => Err(wrong(
            variable,
            "expected secrets separated by commas; one of them is empty",
        )),
        secret => Ok(secret.into()),
    };
    value.split(',').map(secret).collect()
}

fn visible_secret(variable: &'static str, secret: &str) -> Result<SecretString, ConfigError> {
    // What a header can hold.
    if secret.is_empty() || !secret.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong(variable, "expected visible ASCII characters"));
    }
    Ok(secret.into())
}

/// Where the page is, and the token that it asks for: whoever can be reached from elsewhere has one.
fn admin(
    address: Option<String>,
    token: Option<String>,
    token_file: Option<String>,
) -> Result<(Option<SocketAddr>, Option<SecretString>), ConfigError> {
    let expected = "an address and a port, such as 127.0.0.1:8081";
    let address = given(address)
        .map(|value| parse::<SocketAddr>("ADMIN_ADDR", expected, &value))
        .transpose()?;
    let token = either(
        ("ADMIN_TOKEN", token),
        ("ADMIN_TOKEN_FILE", token_file),
        visible_secret,
    )?;
    if token.is_none() && address.is_some_and(|address| !address.ip().is_loopback()) {
        return Err(wrong(
            "ADMIN_TOKEN",
            "required when ADMIN_ADDR is not a loopback address",
        ));
    }
    Ok((address, token))
}

/// A word that is no level is the name of a target to [`EnvFilter`], which then logs that target alone:
/// `warning` would be silence.
fn log_level(value: &str) -> Result<EnvFilter, ConfigError> {
    let expected = "error, warn, info, debug, trace, off, or directives";
    let plain = |directive: &str| !directive.contains(['=', '[']);
    if value
        .split(',')
        .map(str::trim)
        .filter(|directive| plain(directive))
        .any(|word| word.is_empty() || word.parse::<LevelFilter>().is_err())
    {
        return Err(wrong(
            "LOG_LEVEL",
            format!("expected {expected}: {value:?}"),
        ));
    }
    parse("LOG_LEVEL", expected, value)
}

fn api_url(value: &str) -> Result<Url, ConfigError> {
    let expected = "expected an http or https URL without user, query and fragment";
    let url: Url = unquoted("WORKOS_API_URL", value.trim())?
        .parse()
        .map_err(|_| wrong("WORKOS_API_URL", expected))?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if plain {
        Ok(url)
    } else {
        Err(wrong("WORKOS_API_URL", expected))
    }
}

/// Says whether a path can receive webhooks.
pub(crate) fn is_webhook_path(path: &str) -> bool {
    // Unreserved characters of RFC 3986 and "/": what no router reads as a pattern.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
    path.starts_with('/') && path.len() >= 2 && path.bytes().all(plain)
}

fn webhook_path(value: String) -> Result<String, ConfigError> {
    if !is_webhook_path(&value) {
        return Err(wrong(
            "WEBHOOK_PATH",
            format!(
                "expected a path of letters, digits and -._~/ that begins with a slash: {value:?}"
            ),
        ));
    }
    if ["/healthz", "/readyz", "/metrics"].contains(&value.as_str()) {
        return Err(wrong(
            "WEBHOOK_PATH",
            format!("{value} answers health checks"),
        ));
    }
    Ok(value)
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::entities::organization::organization_id;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    /// The settings that a command line comes to.
    pub(crate) fn check(flags: &[&str]) -> Result<Config, ConfigError> {
        let flags = std::iter::once("workos-sync").chain(flags.iter().copied());
        Flags::try_parse_from(flags)
            .unwrap_or_else(|error| panic!("{error}"))
            .settings
            .check()
    }

    /// R3
    #[test]
    fn the_default_namespace_is_the_documented_one() {
        assert_eq!(
            check(&[]).unwrap().org_id_namespace,
            organization_id::default_namespace()
        );
    }

    /// A wrong value gives one line that names the variable.
    #[test]
    fn each_wrong_value_names_its_variable() {
        for (flag, value, message) in [
            (
                "--webhook-tolerance-seconds",
                "3m",
                "WEBHOOK_TOLERANCE_SECONDS: expected whole seconds from 0 to 315360000: \"3m\"",
            ),
            (
                "--listen-addr",
                "8080",
                "LISTEN_ADDR: expected an address and a port, such as 127.0.0.1:8080: \"8080\"",
            ),
            (
                "--org-id-namespace",
                "x",
                "ORG_ID_NAMESPACE: expected a UUID: \"x\"",
            ),
            (
                "--max-body-bytes",
                "-1",
                "MAX_BODY_BYTES: expected whole bytes from 1024 to 268435456: \"-1\"",
            ),
            (
                "--database-max-connections",
                "1",
                "DATABASE_MAX_CONNECTIONS: expected a count of connections from 2 to 10000: \"1\"",
            ),
            (
                "--log-format",
                "xml",
                "LOG_FORMAT: expected text or json: \"xml\"",
            ),
            (
                "--webhook-path",
                "/readyz",
                "WEBHOOK_PATH: /readyz answers health checks",
            ),
            (
                "--webhook-path",
                "/a/{b}",
                "WEBHOOK_PATH: expected a path of letters, digits and -._~/ that begins with a slash: \"/a/{b}\"",
            ),
            (
                "--migrate-on-start",
                "maybe",
                "MIGRATE_ON_START: expected true or false: \"maybe\"",
            ),
            (
                "--log-level",
                "info,verbose",
                "LOG_LEVEL: expected error, warn, info, debug, trace, off, or directives: \"info,verbose\"",
            ),
            ("--data-dir", "", "DATA_DIR: expected a directory"),
            (
                "--admin-addr",
                "8081",
                "ADMIN_ADDR: expected an address and a port, such as 127.0.0.1:8081: \"8081\"",
            ),
            (
                "--admin-read-only",
                "no",
                "ADMIN_READ_ONLY: expected true or false: \"no\"",
            ),
        ] {
            let flag = format!("{flag}={value}");
            assert_eq!(check(&[&flag]).unwrap_err().to_string(), message);
        }
    }

    /// Levels, in any case, and directives for targets and spans.
    #[test]
    fn log_levels_are_words_or_directives() {
        for level in [
            "info",
            "WARN",
            "off",
            "info,workos_sync::inbox=debug",
            "warn,sqlx[query]=trace",
        ] {
            assert!(check(&["--log-level", level]).is_ok(), "{level}");
        }
    }

    /// R50: whoever can be reached from elsewhere asks for a token.
    #[test]
    fn only_a_loopback_address_needs_no_token() {
        for loopback in ["127.0.0.1:8081", "127.8.8.8:0", "[::1]:8081"] {
            assert!(check(&["--admin-addr", loopback]).is_ok(), "{loopback}");
        }
        for other in [
            "0.0.0.0:8081",
            "[::]:8081",
            "10.0.0.1:8081",
            "[::ffff:127.0.0.1]:1",
        ] {
            let error = check(&["--admin-addr", other]).unwrap_err();
            let message = "ADMIN_TOKEN: required when ADMIN_ADDR is not a loopback address";
            assert_eq!(error.to_string(), message, "{other}");
            assert!(check(&["--admin-addr", other, "--admin-token=s3cr3t"]).is_ok());
        }
    }

    /// Errors never repeat what may hold a secret.
    #[test]
    fn a_wrong_secret_is_not_repeated() {
        for (flag, variable) in [
            ("--database-url=mysql//u:hunter2@h", "DATABASE_URL"),
            ("--database-url-file=hunter2", "DATABASE_URL_FILE"),
            ("--workos-webhook-secret='hunter2'", "WORKOS_WEBHOOK_SECRET"),
            (
                "--workos-webhook-secret=a,\"hunter2\"",
                "WORKOS_WEBHOOK_SECRET",
            ),
            ("--workos-api-key=\"hunter2\"", "WORKOS_API_KEY"),
            ("--workos-webhook-secret=hunter2,", "WORKOS_WEBHOOK_SECRET"),
            ("--workos-api-key=hunter2\nhunter2", "WORKOS_API_KEY"),
            ("--admin-token=\"hunter2\"", "ADMIN_TOKEN"),
            ("--admin-token=hunter2 hunter2", "ADMIN_TOKEN"),
            ("--admin-token-file=hunter2", "ADMIN_TOKEN_FILE"),
            (
                "--workos-api-url=https://user:hunter2@api.workos.com",
                "WORKOS_API_URL",
            ),
        ] {
            let error = check(&[flag]).unwrap_err();
            assert_eq!(error.variable, variable);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    /// Pages that no test reads are wrong within months.
    #[test]
    fn the_documents_name_every_variable_and_its_default() {
        let (page, example) = (
            include_str!("../docs/configuration.md"),
            include_str!("../.env.example"),
        );
        for argument in Flags::command().get_arguments() {
            let Some(variable) = argument.get_env() else {
                continue;
            };
            let variable = variable.display();
            assert!(
                page.contains(&format!("| `{variable}` | ")),
                "docs/configuration.md lacks {variable}"
            );
            assert!(
                example.contains(&format!("{variable}=")),
                ".env.example lacks {variable}"
            );
            for default in argument.get_default_values() {
                let default = default.display();
                assert!(
                    page.contains(&format!("| `{variable}` | `{default}` |")),
                    "{variable} in docs/configuration.md"
                );
                assert!(
                    example.contains(&format!("{variable}={default}\n")),
                    "{variable} in .env.example"
                );
            }
        }
    }
}

//! The running server: adopted or started, asked, stopped.
//!
//! `pg_ctl` drives it, for it knows what we would have to learn: when a start is complete, recovery
//! after a crash included, and whether the process that `postmaster.pid` names is the server.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::binaries::{command, run};
use super::cluster::Cluster;
use super::error::{EmbeddedError, When};

/// Superuser and database alike.
pub(super) const NAME: &str = "workos_sync";
/// How long a server that is starting or stopping, or an owner that is still initialising, is
/// waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const POLL: Duration = Duration::from_millis(100);
/// Another process can take the port between our look and the server's bind.
const PORT_TRIES: u32 = 5;
/// Seconds for `pg_ctl start`, which include the recovery after a crash.
const START_SECONDS: &str = "120";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster and the programs that serve it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) bin: PathBuf,
    pub(super) cluster: Cluster,
    pub(super) log: PathBuf,
}

impl Server {
    /// In a process group of its own, so that Ctrl-C in a terminal reaches us alone.
    pub(super) fn pg_ctl(&self, action: &str) -> Command {
        let mut command = command(&self.bin.join("pg_ctl"), self.cluster.user);
        // PGDATA, not `-D`: `pg_ctl` would paste the path into a shell command.
        command
            .args([action, "-s"])
            .env("PGDATA", &self.cluster.pgdata)
            .process_group(0);
        command
    }

    /// Cuts open connections, whose transactions are rolled back; waits `seconds` for the end.
    pub(super) fn pg_ctl_stop(&self, seconds: &str) -> Command {
        let mut command = self.pg_ctl("stop");
        command.args(["-m", "fast", "-w", "-t", seconds]);
        command
    }

    /// The port of a server that already runs on this cluster and takes our password. One that is
    /// starting or stopping is waited for. One that runs without `fsync` where that is wanted is
    /// stopped.
    pub(super) async fn adopt(
        &self,
        password: &SecretString,
        durable: bool,
    ) -> Result<Option<u16>, EmbeddedError> {
        let deadline = Instant::now() + PATIENCE;
        while self.is_running().await && Instant::now() < deadline {
            if let Some(port) = self.port()
                && let Ok(fsync) = prepare(port, password).await
            {
                if durable && fsync != "on" {
                    tracing::warn!("the private postgres runs without fsync; restarting it");
                    self.stop().await?;
                    break;
                }
                tracing::info!(port, "adopted the private postgres of a killed process");
                return Ok(Some(port));
            }
            sleep(POLL).await;
        }
        Ok(None)
    }

    /// The fourth line of `postmaster.pid`; not there yet while the server is just starting.
    fn port(&self) -> Option<u16> {
        let text = fs::read_to_string(self.cluster.pgdata.join("postmaster.pid")).ok()?;
        text.lines().nth(3)?.trim().parse().ok()
    }

    /// Starts the server and waits until it is ready.
    pub(super) async fn launch(&self, durable: bool) -> Result<u16, EmbeddedError> {
        let mut tries = PORT_TRIES;
        loop {
            let free =
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr());
            let port = free.when("listen on", Path::new("127.0.0.1"))?.port();
            match self.launch_on(port, durable).await {
                // Asked of the port, not of the log: its text has languages and versions.
                Err(EmbeddedError::Program { .. }) if tries > 1 && is_taken(port) => tries -= 1,
                result => {
                    result?;
                    tracing::info!(port, "started a private postgres");
                    return Ok(port);
                }
            }
        }
    }

    pub(super) async fn launch_on(&self, port: u16, durable: bool) -> Result<(), EmbeddedError> {
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true).mode(0o600);
        let open = || options.open(&self.log).when("open", &self.log);
        let mut log = open()?;
        let before = log.seek(SeekFrom::End(0)).when("read", &self.log)?;
        // On the command line they win over the configuration file and `alter system`. Explicit
        // where they are Postgres's defaults: durability is promised here, so it is decided here.
        let sure = if durable { "on" } else { "off" };
        let settings = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c logging_collector=off \
             -c fsync={sure} -c synchronous_commit={sure} -c full_page_writes={sure}"
        );
        let mut pg_ctl = self.pg_ctl("start");
        pg_ctl.args(["-w", "-t", START_SECONDS, "-o", &settings]);
        // The open file instead of `-l`: its user needn't reach the log, and no pipe of ours stays
        // open in the server.
        pg_ctl.stdout(open()?).stderr(open()?);
        let status = tokio::process::Command::from(pg_ctl).status().await;
        if status.when("run", &self.bin.join("pg_ctl"))?.success() {
            return Ok(());
        }
        let mut said = Vec::new();
        log.seek(SeekFrom::Start(before))
            .and_then(|_| log.read_to_end(&mut said))
            .when("read", &self.log)?;
        Err(EmbeddedError::Program {
            what: "postgres did not start",
            output: format!(
                "{} ends:\n{}",
                self.log.display(),
                String::from_utf8_lossy(&said).trim()
            ),
        })
    }

    async fn is_running(&self) -> bool {
        run("pg_ctl status", self.pg_ctl("status")).await.is_ok()
    }

    /// Stops the server and waits for its end. One that ended by itself is stopped.
    pub(super) async fn stop(&self) -> Result<(), EmbeddedError> {
        match run("pg_ctl stop", self.pg_ctl_stop("30")).await {
            Err(EmbeddedError::Program { .. }) if !self.is_running().await => Ok(()),
            stopped => stopped,
        }
    }
}

/// The address of a database of the server.
pub(super) fn url(port: u16, password: &SecretString, database: &str) -> SecretString {
    let password = password.expose_secret();
    // The server has no certificate, and a PGSSLMODE meant for another must not ask for one.
    format!("postgres://{NAME}:{password}@127.0.0.1:{port}/{database}?sslmode=disable").into()
}

/// Connects to an address that may be stale: what listens there now may never answer.
pub(super) async fn connect(url: &SecretString) -> Result<PgConnection, sqlx::Error> {
    timeout(CONNECT_TIMEOUT, PgConnection::connect(url.expose_secret()))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Makes sure of the database, and returns the server's setting of `fsync`.
pub(super) async fn prepare(port: u16, password: &SecretString) -> Result<String, EmbeddedError> {
    // The maintenance database is there from the start.
    let mut connection = connect(&url(port, password, "postgres")).await?;
    let (fsync, there): (String, bool) = sqlx::query_as(
        "select current_setting('fsync'), exists (select from pg_database where datname = $1)",
    )
    .bind(NAME)
    .fetch_one(&mut connection)
    .await?;
    // There is no `if not exists`; the folder's lock keeps others from creating it in between.
    if !there {
        sqlx::raw_sql("create database workos_sync")
            .execute(&mut connection)
            .await?;
    }
    connection.close().await?;
    Ok(fsync)
}

pub(super) fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

//! The running server: adopted or started, watched, stopped.
//!
//! The server is a child of ours, so that its end is noticed and it can be ended at any moment. One
//! that a killed process left running is nobody's child; it is looked at instead.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::cluster::Cluster;
use crate::data_dir::{DataDir, LOG};
use crate::error::{Error, When};
use crate::process::{Child, POLL};
use crate::user::command;

/// How long a server that a killed process left, or an owner that is still initialising, is waited
/// for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a server may take until it is ready, the recovery after a crash included. That replays
/// no more than the gigabyte of `max_wal_size`; a start that is broken off begins it anew.
const START_TIMEOUT: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stop in order may take: it writes a checkpoint.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How a server is ended at once: nothing is lost, the next start recovers. After SIGQUIT, Postgres
/// gives its own children 5 seconds.
const AT_ONCE: [(Signal, Duration); 2] = [
    (Signal::QUIT, Duration::from_secs(6)),
    (Signal::KILL, Duration::from_secs(2)),
];
/// Between two looks at a server that is no child of ours.
const WATCH: Duration = Duration::from_secs(1);
/// Below the ports that kernels use for outgoing connections, any of which might have ours while the
/// server is down.
const PORTS: RangeInclusive<u16> = 20_000..=29_999;
/// Another process can take the port between our look and the server's bind.
const PORT_TRIES: u32 = 5;

/// A cluster, the programs that serve it, and the process that does.
#[derive(Debug)]
pub(crate) struct Server {
    dir: DataDir,
    pub(crate) cluster: Cluster,
    bin: PathBuf,
    password: SecretString,
    options: Options,
    pub(crate) postmaster: Option<Postmaster>,
}

/// The process that is told to stop when the server has to.
#[derive(Debug)]
pub(crate) enum Postmaster {
    Child(Child),
    /// Left by a killed process.
    Left(Pid),
}

/// What a server says of itself in `postmaster.pid`.
struct PidFile {
    pid: Pid,
    /// Not there yet while the server is just starting.
    port: Option<u16>,
    is_ready: bool,
}

impl Server {
    pub(crate) fn new(
        dir: DataDir,
        cluster: Cluster,
        bin: PathBuf,
        password: SecretString,
        options: Options,
    ) -> Self {
        Self {
            dir,
            cluster,
            bin,
            password,
            options,
            postmaster: None,
        }
    }

    /// Adopts the server that a killed process left running, or starts one. Returns its port when it
    /// accepts connections and has its database.
    ///
    /// Dropped before, or failed, it leaves the process in `postmaster`.
    pub(crate) async fn begin(&mut self) -> Result<u16, Error> {
        let kept = self.dir.port()?;
        let port = match self.adopt().await? {
            Some(port) => port,
            None => self.launch(kept).await?,
        };
        if kept != Some(port) {
            self.dir.keep_port(port)?;
        }
        Ok(port)
    }

    /// The port of a server that already runs on this cluster and takes our password. One that is
    /// starting or stopping is waited for. One that doesn't answer is ended, and so is one that runs
    /// without `fsync` where that is wanted.
    async fn adopt(&mut self) -> Result<Option<u16>, Error> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(file) = self.running() {
            if self.postmaster.is_none() {
                tracing::info!(
                    "the private postgres of a killed process still runs; waiting for its answer"
                );
                self.postmaster = Some(Postmaster::Left(file.pid));
            }
            if let Some(port) = file.port
                && let Ok(fsync) = self.prepare(port).await
            {
                if !self.options.durable || fsync == "on" {
                    tracing::info!(port, "adopted the private postgres of a killed process");
                    return Ok(Some(port));
                }
                tracing::warn!("the private postgres runs without fsync; restarting it");
                self.stop(&CancellationToken::new()).await?;
            } else if Instant::now() >= deadline {
                tracing::warn!(
                    "the private postgres of a killed process doesn't answer; ending it"
                );
                self.stop_at_once().await?;
            } else {
                sleep(POLL).await;
            }
        }
        self.postmaster = None;
        Ok(None)
    }

    /// Starts the server on the port that it had, or on another where that is taken, and waits until
    /// it is ready.
    async fn launch(&mut self, mut kept: Option<u16>) -> Result<u16, Error> {
        let new_port = || free_port().when("listen on", Path::new("127.0.0.1"));
        let mut tries = PORT_TRIES;
        loop {
            let port = match kept.take() {
                Some(port) if is_taken(port) => {
                    tracing::warn!(
                        port,
                        "the port of the private postgres is taken by another process: it gets a new one"
                    );
                    new_port()?
                }
                Some(port) => port,
                None => new_port()?,
            };
            match self.launch_on(port).await {
                // Asked of the port, not of the log: its text has languages and versions.
                Err(Error::Program { .. }) if tries > 1 && is_taken(port) => tries -= 1,
                result => {
                    result?;
                    tracing::info!(port, "started a private postgres");
                    return Ok(port);
                }
            }
        }
    }

    pub(crate) async fn launch_on(&mut self, port: u16) -> Result<(), Error> {
        let path = self.dir.file(LOG);
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true).mode(0o600);
        let mut log = self.dir.open_file(LOG, &mut options)?;
        let before = log.seek(SeekFrom::End(0)).when("read", &path)?;
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(&self.cluster.pgdata);
        postgres.args(["-p", &port.to_string()]);
        // On the command line they win over the configuration file and `alter system`. Explicit
        // where they are Postgres's defaults: durability is promised here, so it is decided here.
        let sure = if self.options.durable { "on" } else { "off" };
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "logging_collector=off",
            &format!("fsync={sure}"),
            &format!("synchronous_commit={sure}"),
            &format!("full_page_writes={sure}"),
        ] {
            postgres.args(["-c", setting]);
        }
        for setting in self.options.settings {
            postgres.args(["-c", setting]);
        }
        // The open file: the server's user may not be able to reach it by name.
        let copy = || log.try_clone().when("open", &path);
        postgres.stdout(copy()?).stderr(copy()?);
        let child = Child::spawn(postgres)?;
        let pid = child.pid;
        self.postmaster = Some(Postmaster::Child(child));

        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if self.has_ended() {
                self.postmaster = None;
                let mut said = Vec::new();
                log.seek(SeekFrom::Start(before))
                    .and_then(|_| log.read_to_end(&mut said))
                    .when("read", &path)?;
                return Err(Error::Program {
                    what: "postgres did not start",
                    output: format!(
                        "{} ends:\n{}",
                        path.display(),
                        String::from_utf8_lossy(&said).trim()
                    ),
                });
            }
            let file = self.pid_file();
            if file.is_some_and(|file| file.pid == pid && file.is_ready) {
                return self.prepare(port).await.map(drop);
            }
            if Instant::now() >= deadline {
                return Err(Error::Slow {
                    what: "postgres is not ready",
                    after: START_TIMEOUT,
                    log: path,
                });
            }
            sleep(POLL).await;
        }
    }

    /// Makes sure of the database, and returns the server's setting of `fsync`.
    async fn prepare(&self, port: u16) -> Result<String, Error> {
        let name = self.options.name;
        // The maintenance database is there from the start.
        let mut connection = connect(&self.url(port, "postgres")).await?;
        let (fsync, there): (String, bool) = sqlx::query_as(
            "select current_setting('fsync'), exists (select from pg_database where datname = $1)",
        )
        .bind(name)
        .fetch_one(&mut connection)
        .await?;
        // There is no `if not exists`; the directory's lock keeps others from creating it in between.
        if !there {
            sqlx::raw_sql(AssertSqlSafe(format!("create database {name}")))
                .execute(&mut connection)
                .await?;
        }
        connection.close().await?;
        Ok(fsync)
    }

    /// The address of a database of the server.
    pub(crate) fn url(&self, port: u16, database: &str) -> SecretString {
        let (name, password) = (self.options.name, self.password.expose_secret());
        // The server has no certificate, and a PGSSLMODE meant for another must not ask for one.
        format!("postgres://{name}:{password}@127.0.0.1:{port}/{database}?sslmode=disable").into()
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        let pid = match self.postmaster.as_ref()? {
            Postmaster::Child(child) => child.pid,
            Postmaster::Left(pid) => *pid,
        };
        Some(pid.as_raw_pid().unsigned_abs())
    }

    /// A program that came with the server: beside its own, which may be links.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let beside = self.bin.join(name);
        if !beside.exists()
            && let Ok(postgres) = self.bin.join("postgres").canonicalize()
        {
            return postgres.with_file_name(name);
        }
        beside
    }

    /// A program that came with the server, as the user who runs the server.
    pub(crate) fn command(&self, program: &str) -> Command {
        command(&self.program(program), self.cluster.user)
    }

    /// Waits for the server's end.
    pub(crate) async fn ended(&mut self) {
        match &mut self.postmaster {
            Some(Postmaster::Child(child)) => child.ended().await,
            Some(Postmaster::Left(_)) => {
                while !self.has_ended() {
                    sleep(WATCH).await;
                }
            }
            None => {}
        }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        match &mut self.postmaster {
            Some(Postmaster::Child(child)) => child.has_ended(),
            Some(Postmaster::Left(pid)) => {
                let pid = *pid;
                !self.is_served_by(pid)
            }
            None => true,
        }
    }

    /// Stops the server in order, so that the next start needs no recovery: open connections are
    /// cut, their transactions rolled back. Once `hurry` is cancelled, or if that takes too long, at
    /// once.
    pub(crate) async fn stop(&mut self, hurry: &CancellationToken) -> Result<(), Error> {
        self.signal(Signal::INT);
        let stopped = tokio::select! {
            biased;
            () = hurry.cancelled() => false,
            stopped = timeout(STOP_TIMEOUT, self.ended()) => stopped.is_ok(),
        };
        if !stopped {
            return self.stop_at_once().await;
        }
        self.postmaster = None;
        Ok(())
    }

    pub(crate) async fn stop_at_once(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        for (signal, patience) in AT_ONCE {
            self.signal(signal);
            if timeout(patience, self.ended()).await.is_ok() {
                self.postmaster = None;
                return Ok(());
            }
        }
        Err(Error::Slow {
            what: "postgres has not ended",
            after: began.elapsed(),
            log: self.dir.file(LOG),
        })
    }

    fn signal(&mut self, signal: Signal) {
        match &mut self.postmaster {
            Some(Postmaster::Child(child)) => child.signal(signal),
            Some(Postmaster::Left(pid)) => {
                let pid = *pid;
                if self.is_served_by(pid) {
                    let _ended_since = kill_process(pid, signal);
                }
            }
            None => {}
        }
    }

    /// The server that runs on this cluster, whoever started it.
    fn running(&self) -> Option<PidFile> {
        let file = self.pid_file()?;
        self.is_served_by(file.pid).then_some(file)
    }

    fn pid_file(&self) -> Option<PidFile> {
        let text = fs::read_to_string(self.cluster.pgdata.join("postmaster.pid")).ok()?;
        let mut lines = text.lines().map(str::trim);
        let pid = lines.next()?.parse().ok().and_then(Pid::from_raw)?;
        let port = lines.nth(2).and_then(|port| port.parse().ok());
        let is_ready = lines.nth(3) == Some("ready");
        Some(PidFile {
            pid,
            port,
            is_ready,
        })
    }

    /// Whether the process is a server of this cluster. `postmaster.pid` may be older than the last
    /// start of the machine, and name a stranger.
    fn is_served_by(&self, pid: Pid) -> bool {
        if test_kill_process(pid).is_err() {
            return false;
        }
        // Other systems don't show a process's arguments as files.
        if !cfg!(target_os = "linux") {
            return true;
        }
        let process = PathBuf::from(format!("/proc/{}", pid.as_raw_pid()));
        let owner = fs::metadata(&process).map(|process| process.uid()).ok();
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let pgdata = self.cluster.pgdata.as_os_str().as_bytes();
        self.cluster.user.is_none_or(|user| owner == Some(user.uid))
            && arguments
                .split(|byte| *byte == 0)
                .any(|argument| argument == pgdata)
    }
}

impl Drop for Server {
    /// Ends the server of a start or an owner that came to an unexpected end, such as a panic. A
    /// drop has to block.
    fn drop(&mut self) {
        for (signal, patience) in AT_ONCE {
            let deadline = Instant::now() + patience;
            self.signal(signal);
            while !self.has_ended() && Instant::now() < deadline {
                thread::sleep(POLL);
            }
        }
    }
}

/// Connects to an address that may be stale: what listens there now may never answer.
pub(crate) async fn connect(url: &SecretString) -> Result<PgConnection, sqlx::Error> {
    timeout(CONNECT_TIMEOUT, PgConnection::connect(url.expose_secret()))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

pub(crate) fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

/// A port to keep, which no other caller in this process gets; any that is free where they are all taken.
///
/// # Errors
///
/// If the kernel has none.
pub fn free_port() -> io::Result<u16> {
    /// Begun at random, for the sake of other processes.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));
    for _ in PORTS {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start() + next % (PORTS.end() - PORTS.start() + 1);
        if !is_taken(port) {
            return Ok(port);
        }
    }
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(free.local_addr()?.port())
}

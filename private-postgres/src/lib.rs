//! A private Postgres: a server of the program's own, started from the binaries that are installed, durable, watched, and
//! stopped with the program however that ends ([`PrivatePostgres`]); or one that is thrown away ([`Temporary`]).
//!
//! Why not a crate that runs one: the one there is turns `fsync` off, refuses root, and adopts nothing.
//!
//! Everything lives in one data directory:
//!
//! | file | |
//! | --- | --- |
//! | `lock` | locked by the process that owns the server, holds its process id |
//! | `postgres/` | the cluster, or a link to it (`cluster.rs` says when) |
//! | `postgres.log` | what the server says |
//! | `port` | the server's, at the next start too |
//! | `password` | of the superuser |
//! | `database_url` | there only while an owner serves |
//! | others | made up once by [`make_secret`] |
//!
//! This file is the life of a server: an owner takes the lock, starts or adopts the server, says
//! where it is, starts it again if it ends by itself, stops it. A server outlives only an owner that
//! was killed; the next one adopts it.
//!
//! File operations here block: they are few, small, and run before anything is served. Programs are
//! awaited, and can be interrupted.

mod binaries;
mod cluster;
mod data_dir;
mod error;
mod process;
mod server;
mod temporary;
#[cfg(test)]
mod tests;
mod user;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::data_dir::{DataDir, DirLock, LOCK, LOG};
pub use crate::data_dir::{make_secret, secret};
pub use crate::error::{Error, Names};
use crate::process::POLL;
pub use crate::server::free_port;
use crate::server::{PATIENCE, Server};
pub use crate::temporary::{Temporary, Watchdog};

/// There only while an owner serves.
const DATABASE_URL: &str = "database_url";

/// The pauses before a server that ended by itself is started again. After the last try the service
/// ends, so that its supervisor notices.
const RESTART_PAUSES: [Duration; 5] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// A server that ran for this long has all tries again.
const STEADY: Duration = Duration::from_secs(60);

/// What the server is to be like. The same at each start, but for `bin_dir`.
#[derive(Debug, Clone)]
pub struct Options {
    /// The only directory to take the server binaries from. Without it: `PATH`, then the distribution's
    /// directories.
    pub bin_dir: Option<PathBuf>,
    /// `false` turns `fsync` and its relatives off. Only for throw-away servers of tests: a power
    /// cut corrupts the cluster.
    pub durable: bool,
    /// Superuser and database alike: an identifier of SQL that needs no quotes.
    pub name: &'static str,
    /// More arguments of `initdb`.
    pub initdb: &'static [&'static str],
    /// More settings, `name=value`. They win over those that are decided here.
    pub settings: &'static [&'static str],
    /// The directory of a cluster that root can't have in its data directory.
    pub elsewhere: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bin_dir: None,
            durable: true,
            name: "postgres",
            initdb: &[],
            settings: &[],
            elsewhere: "/var/lib/private-postgres",
        }
    }
}

/// The running private server and the lock of its directory.
///
/// End it with [`PrivatePostgres::stop`]. Dropped without, it ends the server at once, and blocks for that
/// moment: nothing is lost, the next start recovers.
#[derive(Debug)]
pub struct PrivatePostgres {
    dir: DataDir,
    server: Server,
    port: u16,
    url: SecretString,
    /// The last field: released only when the server has ended.
    _lock: DirLock,
}

impl PrivatePostgres {
    /// Takes the lock of the data directory, then starts the server, or adopts the one that a killed
    /// owner left running. Makes directory and database if they aren't there. When it returns, the
    /// server accepts connections and has its database.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] while another process owns the directory;
    /// [`Error::Interrupted`] once `stop` is cancelled, and whatever it has started has
    /// ended; else what stands in the way of a server.
    pub async fn start(
        data_dir: &Path,
        options: &Options,
        stop: &CancellationToken,
    ) -> Result<Self, Error> {
        let dir = DataDir::open(data_dir)?;
        let lock = dir.lock()?;
        Self::start_locked(options, dir, lock, true, stop).await
    }

    async fn start_locked(
        options: &Options,
        dir: DataDir,
        lock: DirLock,
        may_make: bool,
        stop: &CancellationToken,
    ) -> Result<Self, Error> {
        // A killed owner's: whoever joins must wait for ours.
        dir.remove(DATABASE_URL)?;
        cluster::clear_away(&dir)?;

        let cluster = Cluster::find(&dir, options.elsewhere)?;
        let is_new = cluster.version.is_none();
        if is_new && !may_make {
            return Err(Error::NotMade { dir: dir.path });
        }
        let bin = binaries::find(options.bin_dir.as_deref(), &cluster, stop).await?;
        let password = dir.password(is_new)?;
        if is_new {
            cluster
                .initialise(&dir, &bin, &password, options, stop)
                .await?;
        }
        let mut server = Server::new(dir.clone(), cluster, bin, password, options.clone());
        let begun = tokio::select! {
            biased;
            () = stop.cancelled() => Err(Error::Interrupted),
            begun = server.begin() => begun,
        };
        let port = match begun {
            Ok(port) => port,
            Err(error) => {
                server.stop_at_once().await?;
                return Err(error);
            }
        };
        let this = Self {
            url: server.url(port, options.name),
            server,
            port,
            dir,
            _lock: lock,
        };
        this.dir.write(DATABASE_URL, this.url.expose_secret())?;
        Ok(this)
    }

    /// The address of the database, password included.
    #[must_use]
    pub const fn url(&self) -> &SecretString {
        &self.url
    }

    /// The data directory, absolute and without links.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.dir.path
    }

    /// The address of another database of the server.
    #[must_use]
    pub fn url_of(&self, database: &str) -> SecretString {
        self.server.url(self.port, database)
    }

    /// The port that it listens on, on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server; `None` while it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// The file that the server logs to.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.file(LOG)
    }

    /// Postgres's own data directory.
    #[must_use]
    pub fn pgdata(&self) -> &Path {
        &self.server.cluster.pgdata
    }

    /// The path of a program that came with the server.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.server.program(name)
    }

    /// A program that came with the server, run as the server's user and with next to no environment.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.server.command(program)
    }

    /// Ends the server as a crash would, for tests of what comes of that.
    ///
    /// # Errors
    ///
    /// If the kernel can't end the server.
    pub async fn crash(&mut self) -> Result<(), Error> {
        self.server.stop_at_once().await
    }

    /// Starts the server again, at the same address, if it is down.
    ///
    /// # Errors
    ///
    /// What stands in the way of a server.
    pub async fn start_if_down(&mut self) -> Result<(), Error> {
        if self.server.has_ended() {
            self.server.launch_on(self.port).await?;
        }
        Ok(())
    }

    /// Waits for an end of the server that nobody asked for, and starts it again, at the same
    /// address. Returns when that fails.
    pub async fn keep_running(&mut self) -> Error {
        let mut pauses = RESTART_PAUSES.iter();
        loop {
            let began = Instant::now();
            self.server.ended().await;
            if began.elapsed() >= STEADY {
                pauses = RESTART_PAUSES.iter();
            }
            let log = self.log();
            let log = log.display();
            tracing::error!(%log, "the private postgres ended by itself; {log} has the reason");
            let mut failed = None;
            loop {
                let Some(pause) = pauses.next() else {
                    let tries = RESTART_PAUSES.len();
                    tracing::error!(tries, "the private postgres keeps ending; giving up");
                    return failed.unwrap_or(Error::Restless { log: self.log() });
                };
                sleep(*pause).await;
                match self.server.launch_on(self.port).await {
                    Ok(()) => {
                        tracing::info!(self.port, "started the private postgres again");
                        break;
                    }
                    // It hangs: another try would hang too.
                    Err(error @ Error::Slow { .. }) => return error,
                    Err(error) => {
                        let cause = &error as &dyn std::error::Error;
                        tracing::error!(
                            error = cause,
                            "the private postgres can't be started again"
                        );
                        failed = Some(error);
                        // It may run, and refuse us.
                        if let Err(error) = self.server.stop_at_once().await {
                            return error;
                        }
                    }
                }
            }
        }
    }

    /// Stops the server (open connections are cut, their transactions rolled back), waits for its
    /// end, releases the lock. Once `hurry` is cancelled, or after 30 seconds, the server is ended
    /// at once; nothing is lost with that, the next start recovers.
    ///
    /// # Errors
    ///
    /// If the kernel can't end the server, or a file can't be removed.
    pub async fn stop(mut self, hurry: &CancellationToken) -> Result<(), Error> {
        let forgotten = self.dir.remove(DATABASE_URL);
        self.server.stop(hurry).await?;
        forgotten
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // The server has ended, or is ended next: its address is of no use. A failure changes
        // nothing, for commands try the address before they use it.
        let _forgotten = self.dir.remove(DATABASE_URL);
    }
}

/// What [`open_existing`] found.
#[derive(Debug)]
pub enum Joined {
    /// Nobody served: the server is ours, and ours to stop.
    Owned(Box<PrivatePostgres>),
    /// Another process serves: its server is used and not stopped.
    Running {
        /// The address of the database, password included.
        url: SecretString,
    },
}

impl Joined {
    /// The address of the database, password included.
    #[must_use]
    pub fn url(&self) -> &SecretString {
        match self {
            Self::Owned(embedded) => embedded.url(),
            Self::Running { url } => url,
        }
    }

    /// Stops the server if it is ours.
    ///
    /// # Errors
    ///
    /// As [`PrivatePostgres::stop`].
    pub async fn stop(self, hurry: &CancellationToken) -> Result<(), Error> {
        match self {
            Self::Owned(embedded) => embedded.stop(hurry).await,
            Self::Running { .. } => Ok(()),
        }
    }
}

/// For who makes no database: uses the server of a serving process, or starts that of the database
/// which an earlier one has made.
///
/// An owner that is still starting is waited for.
///
/// # Errors
///
/// [`Error::NotMade`] if there is no database; [`Error::InUse`] if the directory is
/// held but its database doesn't answer for a minute; else as [`PrivatePostgres::start`].
pub async fn open_existing(
    data_dir: &Path,
    options: &Options,
    stop: &CancellationToken,
) -> Result<Joined, Error> {
    let not_made = || Error::NotMade {
        dir: data_dir.to_owned(),
    };
    let dir = DataDir::find(data_dir)?.ok_or_else(not_made)?;
    let there = |name| fs::symlink_metadata(dir.file(name)).is_ok();
    // Before a lock is made. One that is held belongs to an owner who may still be initialising.
    if !there(LOCK) && !there("postgres") {
        return Err(not_made());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match dir.lock() {
            Ok(lock) => {
                let owned = PrivatePostgres::start_locked(options, dir, lock, false, stop).await?;
                return Ok(Joined::Owned(Box::new(owned)));
            }
            Err(Error::InUse { .. }) if Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
        // Tried, not trusted: the owner may be about to replace the file.
        let joined = async {
            match dir.read(DATABASE_URL)? {
                Some(url) if server::connect(&url).await.is_ok() => {
                    return Ok(Some(Joined::Running { url }));
                }
                _ => sleep(POLL).await,
            }
            Ok(None)
        };
        let joined = tokio::select! {
            biased;
            () = stop.cancelled() => Err(Error::Interrupted),
            joined = joined => joined,
        };
        if let Some(joined) = joined? {
            return Ok(joined);
        }
    }
}

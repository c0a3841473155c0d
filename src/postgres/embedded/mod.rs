//! A private, durable Postgres of our own, so that the service runs where nothing but the server
//! binaries is installed.
//!
//! Why not `SQLite` for this: the guarantees of the service rest on advisory locks, `skip locked`
//! and commit order, and a default that runs other SQL than production would prove nothing.
//!
//! Everything lives in one data folder:
//!
//! | file | |
//! | --- | --- |
//! | `lock` | locked by the process that owns the server, holds its process id |
//! | `postgres/` | the cluster, or a link to it (`cluster.rs` says when) |
//! | `postgres.log` | what the server and `pg_ctl` say |
//! | `password` | of the superuser `workos_sync` |
//! | `database_url` | there only while an owner serves; the port may change with each start |
//! | `webhook_secret` | made up once by [`make_webhook_secret`] |
//!
//! This file is the life of a server: an owner takes the lock, starts or adopts the server, says
//! where it is, stops it. A server outlives an owner that was killed; the next one adopts it.
//!
//! File operations here block: they are few, small, and run before anything is served. The slow
//! programs (`initdb`, `pg_ctl`) are awaited.

mod binaries;
mod cluster;
mod error;
mod folder;
mod server;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::cluster::Cluster;
pub use self::error::EmbeddedError;
use self::folder::{Folder, FolderLock};
pub use self::folder::{make_webhook_secret, webhook_secret};
use self::server::{NAME, PATIENCE, POLL, Server};

/// There only while an owner serves.
const DATABASE_URL: &str = "database_url";

/// Where the private server keeps its data and finds its binaries.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// The data folder; made if it isn't there.
    pub data_dir: PathBuf,
    /// The only folder to take the server binaries from (`PG_BIN_DIR`). Without it: `PATH`, then
    /// the distribution's folders.
    pub bin_dir: Option<PathBuf>,
    /// `false` turns `fsync` and its relatives off. Only for throw-away servers of tests: a power
    /// cut corrupts the cluster.
    pub durable: bool,
}

/// The running private server and the lock of its folder.
///
/// End it with [`Embedded::stop`]. Dropped without, it blocks while the server stops, for some
/// seconds at most: nothing is lost, the next start waits for the rest.
#[derive(Debug)]
pub struct Embedded {
    folder: Folder,
    server: Server,
    url: SecretString,
    running: bool,
    /// The last field: released only when the server was told to stop.
    _lock: FolderLock,
}

impl Embedded {
    /// Takes the lock of the data folder, then starts the server, or adopts the one that a killed
    /// owner left running. Makes folder and database if they aren't there. When it returns, the
    /// server accepts connections and has a database `workos_sync`.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::InUse`] while another process owns the folder;
    /// [`EmbeddedError::Interrupted`] once `stop` is cancelled; else what stands in the way of a
    /// server.
    pub async fn start(
        options: &EmbeddedOptions,
        stop: &CancellationToken,
    ) -> Result<Self, EmbeddedError> {
        let folder = Folder::open(&options.data_dir)?;
        let lock = folder.lock()?;
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(EmbeddedError::Interrupted),
            started = Self::start_locked(options, folder, lock) => started,
        }
    }

    async fn start_locked(
        options: &EmbeddedOptions,
        folder: Folder,
        lock: FolderLock,
    ) -> Result<Self, EmbeddedError> {
        let durable = options.durable;
        // A killed owner's: whoever joins must wait for ours.
        folder.remove(DATABASE_URL)?;

        let cluster = Cluster::find(&folder)?;
        let version = cluster.version;
        let bin = binaries::find(options.bin_dir.as_deref(), &cluster.pgdata, version)?;
        let password = folder.password(version.is_none())?;
        if version.is_none() {
            cluster
                .initialise(&folder, &bin, &password, durable)
                .await?;
        }
        let log = folder.file("postgres.log");
        let server = Server { bin, cluster, log };
        let port = match server.adopt(&password, durable).await? {
            Some(port) => port,
            None => server.launch(durable).await?,
        };
        // Only now is there something that a drop stops. Before, `postmaster.pid` may be stale and
        // name a stranger, whom `pg_ctl stop` would signal. A start that is cancelled meanwhile
        // leaves a server behind, for the next to adopt.
        let this = Self {
            folder,
            server,
            url: server::url(port, &password, NAME),
            running: true,
            _lock: lock,
        };
        server::prepare(port, &password).await?;
        this.folder.write(DATABASE_URL, &this.url)?;
        Ok(this)
    }

    /// The address of the database, password included.
    #[must_use]
    pub fn url(&self) -> &SecretString {
        &self.url
    }

    /// The data folder, absolute and without links.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.folder.dir
    }

    /// Stops the server (open connections are cut, their transactions rolled back), waits for its
    /// end, releases the lock.
    ///
    /// # Errors
    ///
    /// If the server hasn't ended after 30 seconds; it goes on stopping by itself.
    pub async fn stop(mut self) -> Result<(), EmbeddedError> {
        self.running = false;
        let forgotten = self.folder.remove(DATABASE_URL);
        self.server.stop().await?;
        forgotten
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if !self.running {
            return;
        }
        // A drop has to block; it happens on the way out, after an error or a panic. So it waits
        // shorter than `stop`.
        let told = self.server.pg_ctl_stop("5").output();
        let forgotten = self.folder.remove(DATABASE_URL);
        let data_dir = self.folder.dir.display();
        tracing::warn!(?told, ?forgotten, %data_dir, "told a postgres that was left running to stop");
    }
}

/// What [`open_existing`] found.
#[derive(Debug)]
pub enum Joined {
    /// Nobody served: the server is ours, and ours to stop.
    Owned(Embedded),
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
    /// As [`Embedded::stop`].
    pub async fn stop(self) -> Result<(), EmbeddedError> {
        match self {
            Self::Owned(embedded) => embedded.stop().await,
            Self::Running { .. } => Ok(()),
        }
    }
}

/// For the commands beside `serve`, which make no database: uses the server of a serving process, or
/// starts that of the database which an earlier one has made.
///
/// An owner that is still starting is waited for.
///
/// # Errors
///
/// [`EmbeddedError::NotMade`] if there is no database; [`EmbeddedError::InUse`] if the folder is held
/// but its database doesn't answer for a minute; else as [`Embedded::start`].
pub async fn open_existing(
    options: &EmbeddedOptions,
    stop: &CancellationToken,
) -> Result<Joined, EmbeddedError> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(EmbeddedError::Interrupted),
        joined = join(options) => joined,
    }
}

async fn join(options: &EmbeddedOptions) -> Result<Joined, EmbeddedError> {
    let not_made = || EmbeddedError::NotMade {
        dir: options.data_dir.clone(),
    };
    let folder = Folder::find(&options.data_dir)?.ok_or_else(not_made)?;
    let there = |name| fs::symlink_metadata(folder.file(name)).is_ok();
    // Before the lock is made. One that is held belongs to an owner who may still be initialising.
    if !there("lock") && !there("postgres") {
        return Err(not_made());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match folder.lock() {
            Ok(_) if !there("postgres") => return Err(not_made()),
            Ok(lock) => {
                let owned = Embedded::start_locked(options, folder, lock).await?;
                return Ok(Joined::Owned(owned));
            }
            Err(EmbeddedError::InUse { .. }) if Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
        // Tried, not trusted: the owner may be about to replace the file.
        if let Some(url) = folder.read(DATABASE_URL)?
            && server::connect(&url).await.is_ok()
        {
            return Ok(Joined::Running { url });
        }
        sleep(POLL).await;
    }
}

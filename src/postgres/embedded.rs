//! A private, durable Postgres of our own, so that the service runs where nothing but the server
//! binaries is installed.
//!
//! Why not `SQLite` for this: the guarantees of the service rest on advisory locks, `skip locked`
//! and commit order, and a default that runs other SQL than production would prove nothing. Why not
//! a downloaded server: the distribution's binaries get its security updates.
//!
//! Everything lives in one data folder:
//!
//! | file | |
//! | --- | --- |
//! | `lock` | locked by the process that owns the server, holds its process id |
//! | `postgres/` | the cluster, or a link to it (see below) |
//! | `postgres.log` | what the server and `pg_ctl` say |
//! | `password` | of the superuser `workos_sync` |
//! | `database_url` | there only while an owner serves; the port may change with each start |
//! | `webhook_secret` | made up once by [`webhook_secret`] |
//!
//! The kernel drops the lock with the process that held it, however that ended, so a lock that is
//! held means a living owner. The server outlives an owner that was killed; the next one adopts it.
//!
//! Postgres refuses to run as root. Started by root, the server runs as the owner of the cluster,
//! for a new one as `postgres`, else `nobody`. That user often can't enter the data folder
//! (`/root`, `mktemp -d`), and widening the mode of somebody's folders is not ours to do: then the
//! cluster is made under `/var/lib/workos-sync` and `postgres` links to it.
//!
//! File operations here block: they are few, small, and run before anything is served. The slow
//! programs (`initdb`, `pg_ctl`) are awaited.

use std::{
    env,
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// Superuser and database alike.
const NAME: &str = "workos_sync";
/// Where a cluster goes whose user can't enter the data folder.
const RELOCATED: &str = "/var/lib/workos-sync";
/// Where Debian and its relatives keep the server binaries, a folder a major version.
const DISTRIBUTION: &str = "/usr/lib/postgresql";
const PROGRAMS: [&str; 3] = ["postgres", "initdb", "pg_ctl"];
/// The oldest major version that the service supports.
const OLDEST: u32 = 13;
const STAGING_PREFIX: &str = "postgres.initdb-";
/// Another process can take the port between our look and the server's bind.
const PORT_TRIES: u32 = 5;
/// Seconds for `pg_ctl start`, which include the recovery after a crash.
const START_SECONDS: &str = "120";
const STOP_SECONDS: &str = "30";
const DROP_SECONDS: &str = "5";
/// How long a server that is starting or stopping, or an owner that is still initialising, is
/// waited for.
const PATIENCE: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
const TAIL_BYTES: u64 = 4096;

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

/// Why the private server can't be used. [`EmbeddedError::hint`] has the cure.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Nothing usable on `PATH` or in the distribution's folders.
    #[error(
        "no Postgres server binaries (postgres, initdb, pg_ctl, {OLDEST} or newer) on PATH or in {DISTRIBUTION}/*/bin"
    )]
    NoBinaries,
    /// `PG_BIN_DIR` is set to a folder that lacks a program.
    #[error("PG_BIN_DIR: no executable {missing} in {}", dir.display())]
    BinDir {
        /// The folder, made absolute.
        dir: PathBuf,
        /// The first program that is missing.
        missing: &'static str,
    },
    /// `PG_BIN_DIR` is set to binaries that the service doesn't support.
    #[error("PG_BIN_DIR: Postgres {major} in {} is older than {OLDEST}", dir.display())]
    BinDirTooOld {
        /// The folder, made absolute.
        dir: PathBuf,
        /// Its major version.
        major: u32,
    },
    /// A major version of Postgres reads only its own files.
    #[error("the data in {} is of Postgres {cluster}, the server binaries in {} are of Postgres {binaries}", pgdata.display(), bin.display())]
    Version {
        /// The cluster.
        pgdata: PathBuf,
        /// Its major version.
        cluster: u32,
        /// The binaries that would have been used.
        bin: PathBuf,
        /// Their major version.
        binaries: u32,
    },
    /// The lock of the data folder is held.
    #[error("another workos-sync{} serves from {}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), dir.display())]
    InUse {
        /// The data folder.
        dir: PathBuf,
        /// The owner, where the lock file names it.
        pid: Option<u32>,
    },
    /// The lock is held, but its owner's server can't be reached.
    #[error("another workos-sync holds {}, but its database did not answer for {} seconds", dir.display(), PATIENCE.as_secs())]
    OwnerNotReady {
        /// The data folder.
        dir: PathBuf,
    },
    /// Started by root, and nobody to run Postgres as.
    #[error("Postgres refuses to run as root, and /etc/passwd has neither `postgres` nor `nobody`")]
    NoServerUser,
    /// Started by root, and the cluster is root's.
    #[error("the data in {} belongs to root, as whom Postgres refuses to run", pgdata.display())]
    RootOwned {
        /// The cluster.
        pgdata: PathBuf,
    },
    /// Started by root, and the cluster is where its owner can't go.
    #[error("{} belongs to user {user}, who can't enter its parent folder", pgdata.display())]
    Unreachable {
        /// The cluster.
        pgdata: PathBuf,
        /// Its owner.
        user: String,
    },
    /// A folder is in the cluster's place that is none.
    #[error("{} is neither empty nor a Postgres cluster", pgdata.display())]
    NotACluster {
        /// The folder.
        pgdata: PathBuf,
    },
    /// `postgres` links to nothing. Starting with an empty database instead would hide the loss.
    #[error("{} links to {}, which is gone", link.display(), target.display())]
    Gone {
        /// The link in the data folder.
        link: PathBuf,
        /// Where the cluster was.
        target: PathBuf,
    },
    /// The cluster is there, its password isn't.
    #[error("{}: expected the password of the database's superuser, letters and digits", path.display())]
    Password {
        /// The password file.
        path: PathBuf,
    },
    /// An empty key would accept anybody's signature.
    #[error("{}: the webhook secret is empty", path.display())]
    EmptySecret {
        /// The secret's file.
        path: PathBuf,
    },
    /// A program of Postgres ended with an error.
    #[error("{program}: {output}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it wrote to its standard error.
        output: String,
    },
    /// The server did not start.
    #[error("postgres did not start; {} ends:\n{tail}", log.display())]
    Start {
        /// The server's log.
        log: PathBuf,
        /// The end of it, from this start on.
        tail: String,
    },
    /// The server runs, but refuses a connection or a statement.
    #[error("the private postgres can't be used")]
    Database(#[source] sqlx::Error),
    /// A program can't be run at all.
    #[error("cannot run {}", program.display())]
    Spawn {
        /// Its path.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or folder can't be used.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// A verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl EmbeddedError {
    /// What to do about it, for the line `hint: …` after the message.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoBinaries => {
                "install them (`apt install postgresql`), or set PG_BIN_DIR to their folder, or set DATABASE_URL to a database of yours"
                    .into()
            }
            Self::BinDir { .. } | Self::BinDirTooOld { .. } => {
                format!("set PG_BIN_DIR to a folder like {DISTRIBUTION}/17/bin, or unset it to search PATH")
            }
            Self::Version { cluster, .. } => format!(
                "install Postgres {cluster} or set PG_BIN_DIR to its binaries; to move to the newer version, dump with the old one and restore into a new data folder"
            ),
            Self::InUse { .. } => "stop it, or choose another data folder".into(),
            Self::OwnerNotReady { dir } => format!("see {}", dir.join("postgres.log").display()),
            Self::NoServerUser => "run as an ordinary user, or add a user `postgres`".into(),
            Self::RootOwned { pgdata } => format!("`chown -R postgres {}`", pgdata.display()),
            Self::Unreachable { user, .. } => {
                format!("run as {user}, or move the data folder to where {user} can go")
            }
            Self::NotACluster { .. } => "move it away, or choose another data folder".into(),
            Self::Gone { link, .. } => format!(
                "put it back, for example from a backup, or remove {} to start with an empty database",
                link.display()
            ),
            Self::Password { .. } => "restore the file from a backup".into(),
            Self::EmptySecret { .. } => "remove the file to have a new secret made, or set WORKOS_WEBHOOK_SECRET".into(),
            Self::Program { .. } | Self::Start { .. } | Self::Database(_) | Self::Spawn { .. } | Self::Io { .. } => {
                return None;
            }
        };
        Some(hint)
    }

    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    fn spawn(program: &Path) -> impl FnOnce(io::Error) -> Self {
        let program = program.to_owned();
        move |source| Self::Spawn { program, source }
    }
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
    /// owner left running. When it returns, the server accepts connections and has a database
    /// `workos_sync`.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::InUse`] while another process owns the folder; else what stands in the way
    /// of a server.
    pub async fn start(options: &EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let folder = Folder::open(&options.data_dir)?;
        let lock = folder.lock()?;
        Self::start_locked(options, folder, lock).await
    }

    async fn start_locked(
        options: &EmbeddedOptions,
        folder: Folder,
        lock: FolderLock,
    ) -> Result<Self, EmbeddedError> {
        // A killed owner's: whoever joins must wait for ours.
        folder.forget_url()?;

        let place = Place::find(&folder)?;
        let cluster = cluster_version(&place.pgdata)?;
        let bin = Binaries::find(options.bin_dir.as_deref(), cluster, &place.pgdata)?;
        let mut server = Server {
            bin: bin.dir,
            pgdata: place.pgdata,
            log: folder.file("postgres.log"),
            user: place.user,
        };
        let password = if cluster.is_some() {
            folder.read_password()?
        } else {
            let password = folder.make_password()?;
            if place.relocate {
                server
                    .initialise_elsewhere(&folder, &password, options.durable)
                    .await?;
            } else {
                server.initialise(&password, options.durable).await?;
            }
            password
        };

        let mut this = Self {
            folder,
            server,
            url: SecretString::default(),
            running: false,
            _lock: lock,
        };
        let port = match this.server.adopt(&password, options.durable).await? {
            Some(port) => port,
            None => this.server.launch(options.durable).await?,
        };
        // Only now does dropping `this` stop it. Before, `postmaster.pid` may be stale and name a
        // stranger, whom `pg_ctl stop` would signal. A start that is cancelled meanwhile leaves a
        // server behind, for the next to adopt.
        this.running = true;
        ensure_database(port, &password).await?;
        // `sslmode`: the server has no certificate, and a PGSSLMODE meant for another database must
        // not ask for one.
        this.url = format!(
            "postgres://{NAME}:{}@127.0.0.1:{port}/{NAME}?sslmode=disable",
            password.expose_secret()
        )
        .into();
        write_private(&this.folder.file("database_url"), this.url.expose_secret())?;
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

    /// Where [`webhook_secret`] keeps the secret of this folder.
    #[must_use]
    pub fn secret_file(&self) -> PathBuf {
        self.folder.file("webhook_secret")
    }

    /// The server's log.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.server.log
    }

    /// Stops the server (open connections are cut, their transactions rolled back), waits for its
    /// end, releases the lock.
    ///
    /// # Errors
    ///
    /// If the server hasn't ended after 30 seconds; it goes on stopping by itself.
    pub async fn stop(mut self) -> Result<(), EmbeddedError> {
        self.running = false;
        let forgotten = self.folder.forget_url();
        self.server.stop().await?;
        forgotten
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if !self.running {
            return;
        }
        // A drop has to block; it happens on the way out. Shorter than `stop`, which nobody skips
        // but an error or a panic.
        let told = self
            .server
            .pg_ctl("stop")
            .args(["-m", "fast", "-w", "-t", DROP_SECONDS])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        tracing::warn!(
            ?told,
            data_dir = %self.folder.dir.display(),
            "the private postgres was left running; told it to stop"
        );
        if let Err(error) = self.folder.forget_url() {
            tracing::warn!(%error, "the address of a stopped database stays behind");
        }
    }
}

/// What [`join_or_start`] found.
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

/// For commands that run beside a serving process: uses that one's server, or starts one if nobody
/// serves.
///
/// An owner that is still starting is waited for.
///
/// # Errors
///
/// [`EmbeddedError::OwnerNotReady`] if the folder is held but its database doesn't answer; else as
/// [`Embedded::start`].
pub async fn join_or_start(options: &EmbeddedOptions) -> Result<Joined, EmbeddedError> {
    let folder = Folder::open(&options.data_dir)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match folder.lock() {
            Ok(lock) => {
                return Embedded::start_locked(options, folder, lock)
                    .await
                    .map(Joined::Owned);
            }
            Err(EmbeddedError::InUse { .. }) => {}
            Err(error) => return Err(error),
        }
        // Tried, not trusted: the owner may be about to replace the file.
        if let Some(url) = folder.read_secret("database_url")?
            && let Ok(target) = url.expose_secret().parse::<PgConnectOptions>()
            && connect(&target).await.is_ok()
        {
            return Ok(Joined::Running { url });
        }
        if Instant::now() >= deadline {
            return Err(EmbeddedError::OwnerNotReady { dir: folder.dir });
        }
        sleep(POLL).await;
    }
}

/// The webhook secret of a data folder, made up at the first call: `whsec_` and 244 random bits in
/// hexadecimal.
///
/// Needs no lock: of two that make one up at once, both get the one that was there first.
///
/// # Errors
///
/// If the file can't be read or made, or is empty.
pub fn webhook_secret(data_dir: &Path) -> Result<SecretString, EmbeddedError> {
    let folder = Folder::open(data_dir)?;
    let path = folder.file("webhook_secret");
    if let Some(secret) = folder.read_secret("webhook_secret")? {
        return if secret.expose_secret().is_empty() {
            Err(EmbeddedError::EmptySecret { path })
        } else {
            Ok(secret)
        };
    }
    let secret = SecretString::from(format!("whsec_{}", random_hex()));
    let staged = stage_private(&path, secret.expose_secret())?;
    // A link, unlike a rename, replaces nothing.
    let linked = fs::hard_link(&staged, &path);
    fs::remove_file(&staged).map_err(EmbeddedError::io("remove", &staged))?;
    match linked {
        Ok(()) => sync_folder(&folder.dir).map(|()| secret),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => folder
            .read_secret("webhook_secret")?
            .ok_or(EmbeddedError::EmptySecret { path }),
        Err(error) => Err(EmbeddedError::io("write", &path)(error)),
    }
}

/// The data folder.
#[derive(Debug)]
struct Folder {
    dir: PathBuf,
}

impl Folder {
    fn open(dir: &Path) -> Result<Self, EmbeddedError> {
        if !dir
            .try_exists()
            .map_err(EmbeddedError::io("look for", dir))?
        {
            fs::create_dir_all(dir).map_err(EmbeddedError::io("make", dir))?;
            // Others may pass, the server's user among them, and list nothing; each file in it is
            // closed by its own mode.
            fs::set_permissions(dir, Permissions::from_mode(0o711))
                .map_err(EmbeddedError::io("make", dir))?;
            // It holds secrets and often lies in a working copy.
            let ignore = dir.join(".gitignore");
            fs::write(&ignore, "*\n").map_err(EmbeddedError::io("write", &ignore))?;
        }
        let dir = dir
            .canonicalize()
            .map_err(EmbeddedError::io("resolve", dir))?;
        Ok(Self { dir })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn lock(&self) -> Result<FolderLock, EmbeddedError> {
        let path = self.file("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(EmbeddedError::io("open", &path))?;
        give_to_owner_of(&self.dir, &file);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let pid = file
                    .read_to_string(&mut pid)
                    .ok()
                    .and_then(|_| pid.trim().parse().ok());
                return Err(EmbeddedError::InUse {
                    dir: self.dir.clone(),
                    pid,
                });
            }
            Err(TryLockError::Error(error)) => return Err(EmbeddedError::io("lock", &path)(error)),
        }
        let lock = FolderLock(file);
        lock.sign().map_err(EmbeddedError::io("write", &path))?;
        Ok(lock)
    }

    /// A trimmed file, `None` if it isn't there.
    fn read_secret(&self, name: &str) -> Result<Option<SecretString>, EmbeddedError> {
        let path = self.file(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(SecretString::from(text.trim()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(EmbeddedError::io("read", &path)(error)),
        }
    }

    fn read_password(&self) -> Result<SecretString, EmbeddedError> {
        self.read_secret("password")?
            // Goes into a URL as it is.
            .filter(|password| {
                let password = password.expose_secret();
                !password.is_empty() && password.bytes().all(|byte| byte.is_ascii_alphanumeric())
            })
            .ok_or_else(|| EmbeddedError::Password {
                path: self.file("password"),
            })
    }

    /// On disk before the cluster that needs it; one that an interrupted start left is as good as a
    /// new one.
    fn make_password(&self) -> Result<SecretString, EmbeddedError> {
        if let Ok(password) = self.read_password() {
            return Ok(password);
        }
        let password = SecretString::from(random_hex());
        write_private(&self.file("password"), password.expose_secret())?;
        Ok(password)
    }

    fn forget_url(&self) -> Result<(), EmbeddedError> {
        let path = self.file("database_url");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(EmbeddedError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Held as long as this lives.
#[derive(Debug)]
struct FolderLock(File);

impl FolderLock {
    /// The owner's process id, for the message to the second.
    fn sign(&self) -> io::Result<()> {
        self.0.set_len(0)?;
        writeln!(&self.0, "{}", std::process::id())
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing isn't enough: a child between fork and exec has a copy of the descriptor and with
        // it the lock.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "the lock of the data folder stays until this process ends");
        }
    }
}

/// Whom the server runs as, if not as ourselves.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServerUser {
    name: String,
    uid: u32,
    gid: u32,
}

impl ServerUser {
    /// The first line of `/etc/passwd` that is wanted, by name and uid.
    fn in_passwd(passwd: &str, wanted: impl Fn(&str, u32) -> bool) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            (uid != 0 && wanted(name, uid)).then(|| Self {
                name: name.to_owned(),
                uid,
                gid,
            })
        })
    }

    /// Whether the user can pass through the folder, all its parents included. Asked of the kernel,
    /// because modes, ACLs and mounts together decide it.
    fn can_enter(&self, dir: &Path) -> Result<bool, EmbeddedError> {
        let shell = Path::new("/bin/sh");
        command(shell, Some(self))
            .args(["-c", r#"cd -- "$1""#, "sh"])
            .arg(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map(|status| status.success())
            .map_err(EmbeddedError::spawn(shell))
    }
}

/// Where the cluster is or will be, and whose.
#[derive(Debug)]
struct Place {
    pgdata: PathBuf,
    user: Option<ServerUser>,
    /// There is no cluster yet, and `pgdata` is where its user can't go.
    relocate: bool,
}

impl Place {
    fn find(folder: &Folder) -> Result<Self, EmbeddedError> {
        let link = folder.file("postgres");
        let target = fs::read_link(&link)
            .ok()
            .map(|target| folder.dir.join(target));
        let pgdata = target.clone().unwrap_or_else(|| link.clone());
        let owner = match fs::metadata(&pgdata) {
            Ok(metadata) => Some((metadata.uid(), metadata.gid())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(EmbeddedError::io("look into", &pgdata)(error)),
        };
        if let (Some(target), None) = (target, owner) {
            return Err(EmbeddedError::Gone { link, target });
        }
        if !is_root()? {
            return Ok(Self {
                pgdata,
                user: None,
                relocate: false,
            });
        }

        let passwd = Path::new("/etc/passwd");
        let passwd = fs::read_to_string(passwd).map_err(EmbeddedError::io("read", passwd))?;
        let named = |name: &str| ServerUser::in_passwd(&passwd, |found, _| found == name);
        let user = match owner {
            Some((0, _)) => return Err(EmbeddedError::RootOwned { pgdata }),
            Some((uid, gid)) => {
                let name = ServerUser::in_passwd(&passwd, |_, found| found == uid)
                    .map_or_else(|| uid.to_string(), |user| user.name);
                ServerUser { name, uid, gid }
            }
            None => named("postgres")
                .or_else(|| named("nobody"))
                .ok_or(EmbeddedError::NoServerUser)?,
        };
        let entered = user.can_enter(pgdata.parent().unwrap_or(&folder.dir))?;
        if !entered && owner.is_some() {
            return Err(EmbeddedError::Unreachable {
                pgdata,
                user: user.name,
            });
        }
        Ok(Self {
            pgdata,
            user: Some(user),
            relocate: !entered,
        })
    }
}

/// The standard library has no `geteuid`, and a crate for one number is too much.
fn is_root() -> Result<bool, EmbeddedError> {
    let id = Path::new("id");
    let output = Command::new(id)
        .arg("-u")
        .stdin(Stdio::null())
        .output()
        .map_err(EmbeddedError::spawn(id))?;
    Ok(output.stdout.trim_ascii() == b"0")
}

/// The major version of a complete cluster, `None` if there is none. We rename a cluster into its
/// place only when `initdb` is done, so half a one is not ours, and not ours to remove.
fn cluster_version(pgdata: &Path) -> Result<Option<u32>, EmbeddedError> {
    let version = pgdata.join("PG_VERSION");
    if pgdata.join("global/pg_control").exists() {
        let text = fs::read_to_string(&version).map_err(EmbeddedError::io("read", &version))?;
        if let Ok(major) = text.trim().parse() {
            return Ok(Some(major));
        }
    } else {
        match fs::remove_dir(pgdata) {
            Ok(()) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(EmbeddedError::io("use", pgdata)(error)),
        }
    }
    Err(EmbeddedError::NotACluster {
        pgdata: pgdata.to_owned(),
    })
}

/// A folder with the server's programs.
#[derive(Debug)]
struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    /// The first choice whose major version is the cluster's, for a new cluster the first.
    fn find(
        bin_dir: Option<&Path>,
        cluster: Option<u32>,
        pgdata: &Path,
    ) -> Result<Self, EmbeddedError> {
        let mut found = match bin_dir {
            Some(dir) => vec![Self::in_bin_dir(dir)?],
            None => Self::search(
                &env::var_os("PATH").unwrap_or_default(),
                Path::new(DISTRIBUTION),
            ),
        };
        let Some(cluster) = cluster else {
            return if found.is_empty() {
                Err(EmbeddedError::NoBinaries)
            } else {
                Ok(found.swap_remove(0))
            };
        };
        if let Some(matching) = found.iter().position(|binaries| binaries.major == cluster) {
            return Ok(found.swap_remove(matching));
        }
        match found.into_iter().next() {
            Some(Self {
                dir: bin,
                major: binaries,
            }) => Err(EmbeddedError::Version {
                pgdata: pgdata.to_owned(),
                cluster,
                bin,
                binaries,
            }),
            None => Err(EmbeddedError::NoBinaries),
        }
    }

    fn in_bin_dir(dir: &Path) -> Result<Self, EmbeddedError> {
        // Children run in another folder than we do.
        let dir = std::path::absolute(dir).map_err(EmbeddedError::io("resolve PG_BIN_DIR", dir))?;
        if let Some(missing) = missing_program(&dir) {
            return Err(EmbeddedError::BinDir { dir, missing });
        }
        let major = major_version(&dir)?;
        if major < OLDEST {
            Err(EmbeddedError::BinDirTooOld { dir, major })
        } else {
            Ok(Self { dir, major })
        }
    }

    /// What is on `PATH`, in its order, then the distribution's versions, the highest first.
    fn search(path: &std::ffi::OsStr, distribution: &Path) -> Vec<Self> {
        let mut distributed: Vec<Self> = fs::read_dir(distribution)
            .into_iter()
            .flatten()
            .filter_map(|entry| Self::usable(entry.ok()?.path().join("bin")))
            .collect();
        distributed.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
        let on_path = env::split_paths(path)
            .filter(|dir| dir.is_absolute())
            .filter_map(Self::usable);
        on_path.chain(distributed).collect()
    }

    fn usable(dir: PathBuf) -> Option<Self> {
        if missing_program(&dir).is_some() {
            return None;
        }
        match major_version(&dir) {
            Ok(major) => (major >= OLDEST).then_some(Self { dir, major }),
            Err(error) => {
                tracing::debug!(%error, "passed over Postgres binaries");
                None
            }
        }
    }
}

fn missing_program(dir: &Path) -> Option<&'static str> {
    let executable = |program: &&str| {
        fs::metadata(dir.join(program)).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
    };
    PROGRAMS.into_iter().find(|program| !executable(program))
}

fn major_version(dir: &Path) -> Result<u32, EmbeddedError> {
    let program = dir.join("postgres");
    let output = command(&program, None)
        .arg("--version")
        .output()
        .map_err(EmbeddedError::spawn(&program))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_major(&text).ok_or_else(|| EmbeddedError::Program {
        program: "postgres --version",
        output: text.trim().to_owned(),
    })
}

/// Of `postgres (PostgreSQL) 15.14 (Debian …)`, also `18beta1` and `19devel`.
fn parse_major(text: &str) -> Option<u32> {
    let version = text.split_once("(PostgreSQL) ")?.1;
    let end = version
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(version.len());
    version[..end].parse().ok()
}

/// A program run as the server's user, from a folder that everybody may enter and with next to no
/// environment: it would hand our secrets to the server, whose own variables (`PGPORT`,
/// `PGOPTIONS`, `LC_ALL`) would change what it does.
fn command(program: &Path, user: Option<&ServerUser>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null());
    for kept in ["PATH", "LD_LIBRARY_PATH", "TZ"] {
        if let Some(value) = env::var_os(kept) {
            command.env(kept, value);
        }
    }
    if let Some(user) = user {
        // Supplementary groups go too: the standard library drops them with the uid.
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// The server's files and how to drive it.
#[derive(Debug)]
struct Server {
    bin: PathBuf,
    pgdata: PathBuf,
    log: PathBuf,
    user: Option<ServerUser>,
}

impl Server {
    /// In a process group of its own, so that Ctrl-C in a terminal reaches us alone.
    fn pg_ctl(&self, action: &str) -> Command {
        let mut command = command(&self.bin.join("pg_ctl"), self.user.as_ref());
        // PGDATA, not `-D`: `pg_ctl` would paste the path into a shell command.
        command
            .args([action, "-s"])
            .env("PGDATA", &self.pgdata)
            .process_group(0);
        command
    }

    /// Makes the cluster beside its place and renames it, so that an interrupted `initdb` leaves no
    /// half cluster there.
    async fn initialise(
        &self,
        password: &SecretString,
        durable: bool,
    ) -> Result<(), EmbeddedError> {
        let parent = self.pgdata.parent().unwrap_or(Path::new("/"));
        remove_leftovers(parent);
        tracing::info!(pgdata = %self.pgdata.display(), "initialising a private postgres");
        // UTF-8 with the C order: the same everywhere, whatever the operating system's locales. Not
        // every system has it.
        let mut last = Ok(());
        for locale in ["C.UTF-8", "C"] {
            let staging =
                Staging(parent.join(format!("{STAGING_PREFIX}{}", Uuid::new_v4().simple())));
            last = self.initdb(&staging.0, locale, password, durable).await;
            if last.is_ok() {
                let made = staging.0.join("data");
                fs::rename(&made, &self.pgdata).map_err(EmbeddedError::io("rename", &made))?;
                return sync_folder(parent);
            }
        }
        last
    }

    /// As [`Self::initialise`], under [`RELOCATED`], then links to it from the data folder. The
    /// link comes last: one that leads nowhere always means that a cluster was lost.
    async fn initialise_elsewhere(
        &mut self,
        folder: &Folder,
        password: &SecretString,
        durable: bool,
    ) -> Result<(), EmbeddedError> {
        let home = Path::new(RELOCATED).join(Uuid::new_v4().to_string());
        let undo = Staging(home.clone());
        for dir in [Path::new(RELOCATED), &home] {
            fs::create_dir_all(dir).map_err(EmbeddedError::io("make", dir))?;
            fs::set_permissions(dir, Permissions::from_mode(0o711))
                .map_err(EmbeddedError::io("make", dir))?;
        }
        self.pgdata = home.join("postgres");
        tracing::info!(
            data_dir = %folder.dir.display(),
            pgdata = %self.pgdata.display(),
            user = self.user.as_ref().map(|user| &user.name),
            "the user that postgres runs as can't enter the data folder; its files are kept elsewhere and linked to"
        );
        self.initialise(password, durable).await?;
        let link = folder.file("postgres");
        symlink(&self.pgdata, &link).map_err(EmbeddedError::io("make", &link))?;
        undo.keep();
        sync_folder(&folder.dir)
    }

    async fn initdb(
        &self,
        staging: &Path,
        locale: &str,
        password: &SecretString,
        durable: bool,
    ) -> Result<(), EmbeddedError> {
        fs::create_dir(staging).map_err(EmbeddedError::io("make", staging))?;
        fs::set_permissions(staging, Permissions::from_mode(0o700))
            .map_err(EmbeddedError::io("make", staging))?;
        // A file, because arguments are everybody's to read; it goes with the folder.
        let pwfile = stage_private(&staging.join("pwfile"), password.expose_secret())?;
        if let Some(user) = &self.user {
            for path in [staging, &pwfile] {
                chown(path, Some(user.uid), Some(user.gid))
                    .map_err(EmbeddedError::io("hand over", path))?;
            }
        }
        let program = self.bin.join("initdb");
        let mut command = command(&program, self.user.as_ref());
        command
            .arg("--pgdata")
            .arg(staging.join("data"))
            .arg("--pwfile")
            .arg(&pwfile)
            .args([
                "--username",
                NAME,
                "--encoding",
                "UTF8",
                "--locale",
                locale,
                "--data-checksums",
            ])
            // The socket is off; the method is for whoever turns it on.
            .args([
                "--auth-host",
                "scram-sha-256",
                "--auth-local",
                "scram-sha-256",
            ]);
        if !durable {
            command.arg("--no-sync");
        }
        let output = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .output()
            .await
            .map_err(EmbeddedError::spawn(&program))?;
        if output.status.success() {
            Ok(())
        } else {
            let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(EmbeddedError::Program {
                program: "initdb",
                output,
            })
        }
    }

    /// The port of a server that already runs on this cluster and takes our password. One that is
    /// starting or stopping is waited for. One that runs without `fsync` where that is wanted is
    /// stopped.
    async fn adopt(
        &self,
        password: &SecretString,
        durable: bool,
    ) -> Result<Option<u16>, EmbeddedError> {
        let deadline = Instant::now() + PATIENCE;
        let mut was_ready = false;
        loop {
            let Some(postmaster) = Postmaster::read(&self.pgdata)? else {
                return Ok(None);
            };
            if !self.is_running().await? {
                // Left by a crash; the server clears it itself.
                return Ok(None);
            }
            if let Some(port) = postmaster.port
                && let Ok(fsync) = fsync_of(&target(port, password)).await
            {
                if durable && fsync != "on" {
                    tracing::warn!("the private postgres runs without fsync; restarting it");
                    self.stop().await?;
                    return Ok(None);
                }
                tracing::info!(
                    port,
                    "adopted the private postgres that a killed process left running"
                );
                return Ok(Some(port));
            }
            // Ready but not for us: the file is stale, and a stranger has the process id. Seen
            // twice, because a server that begins to stop refuses us before we read that it does.
            if postmaster.ready && was_ready || Instant::now() >= deadline {
                return Ok(None);
            }
            was_ready = postmaster.ready;
            sleep(POLL).await;
        }
    }

    /// Starts the server and waits until it is ready.
    async fn launch(&self, durable: bool) -> Result<u16, EmbeddedError> {
        let mut attempt = 1;
        loop {
            let port = free_port().map_err(EmbeddedError::io(
                "find a free port on",
                Path::new("127.0.0.1"),
            ))?;
            match self.launch_on(port, durable).await {
                // Asked of the port, not of the log: its text has languages and versions.
                Err(EmbeddedError::Start { .. }) if attempt < PORT_TRIES && is_taken(port) => {
                    tracing::debug!(port, "another process took the port first");
                    attempt += 1;
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    tracing::info!(port, pgdata = %self.pgdata.display(), "started a private postgres");
                    return Ok(port);
                }
            }
        }
    }

    async fn launch_on(&self, port: u16, durable: bool) -> Result<(), EmbeddedError> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.log)
            .map_err(EmbeddedError::io("open", &self.log))?;
        let before = log
            .metadata()
            .map_err(EmbeddedError::io("read", &self.log))?
            .len();
        let stderr = log
            .try_clone()
            .map_err(EmbeddedError::io("open", &self.log))?;
        // On the command line they win over the configuration file and `alter system`. Explicit
        // where they are Postgres's defaults: durability is promised here, so it is decided here.
        let sure = if durable { "on" } else { "off" };
        let settings = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c logging_collector=off \
             -c fsync={sure} -c synchronous_commit={sure} -c full_page_writes={sure}"
        );
        let mut command = self.pg_ctl("start");
        // The open file instead of `-l`: its user needn't reach the log, and no pipe of ours stays
        // open in the server.
        command
            .args(["-w", "-t", START_SECONDS, "-o", &settings])
            .stdout(log)
            .stderr(stderr);
        let status = tokio::process::Command::from(command)
            .status()
            .await
            .map_err(EmbeddedError::spawn(&self.bin.join("pg_ctl")))?;
        if status.success() {
            return Ok(());
        }
        let tail = tail(&self.log, before).map_err(EmbeddedError::io("read", &self.log))?;
        Err(EmbeddedError::Start {
            log: self.log.clone(),
            tail,
        })
    }

    async fn is_running(&self) -> Result<bool, EmbeddedError> {
        let mut command = self.pg_ctl("status");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        tokio::process::Command::from(command)
            .status()
            .await
            .map(|status| status.success())
            .map_err(EmbeddedError::spawn(&self.bin.join("pg_ctl")))
    }

    /// Stops the server and waits for its end. One that ended by itself is stopped.
    async fn stop(&self) -> Result<(), EmbeddedError> {
        let mut command = self.pg_ctl("stop");
        command.args(["-m", "fast", "-w", "-t", STOP_SECONDS]);
        let output = tokio::process::Command::from(command)
            .output()
            .await
            .map_err(EmbeddedError::spawn(&self.bin.join("pg_ctl")))?;
        if output.status.success() || !self.is_running().await? {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(EmbeddedError::Program {
            program: "pg_ctl stop",
            output,
        })
    }
}

/// What `postmaster.pid` says: its fourth line is the port, its eighth the state (`pg_ctl` reads
/// the same lines).
#[derive(Debug, PartialEq, Eq)]
struct Postmaster {
    port: Option<u16>,
    ready: bool,
}

impl Postmaster {
    fn read(pgdata: &Path) -> Result<Option<Self>, EmbeddedError> {
        let path = pgdata.join("postmaster.pid");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Self::parse(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(EmbeddedError::io("read", &path)(error)),
        }
    }

    /// A server that is just starting has written only the first lines.
    fn parse(text: &str) -> Self {
        let line = |number: usize| text.lines().nth(number - 1).map(str::trim);
        Self {
            port: line(4).and_then(|port| port.parse().ok()),
            ready: line(8) == Some("ready"),
        }
    }
}

/// The maintenance database, which is there from the start.
fn target(port: u16, password: &SecretString) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username(NAME)
        .password(password.expose_secret())
        .database("postgres")
        .ssl_mode(PgSslMode::Disable)
}

async fn connect(target: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    timeout(CONNECT_TIMEOUT, target.connect())
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

async fn fsync_of(target: &PgConnectOptions) -> Result<String, sqlx::Error> {
    let mut connection = connect(target).await?;
    let fsync = sqlx::query_scalar("select current_setting('fsync')")
        .fetch_one(&mut connection)
        .await?;
    connection.close().await?;
    Ok(fsync)
}

/// `create database` has no `if not exists`; the folder's lock keeps others from creating it in
/// between.
async fn ensure_database(port: u16, password: &SecretString) -> Result<(), EmbeddedError> {
    let ensure = async {
        let mut connection = connect(&target(port, password)).await?;
        let there: bool =
            sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
                .bind(NAME)
                .fetch_one(&mut connection)
                .await?;
        if !there {
            sqlx::raw_sql("create database workos_sync")
                .execute(&mut connection)
                .await?;
        }
        connection.close().await
    };
    ensure.await.map_err(EmbeddedError::Database)
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

/// The end of a log, but not what was in it before.
fn tail(log: &Path, before: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(std::cmp::max(start, before)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// 244 bits from the operating system (a version 4 UUID has 122), 64 characters.
fn random_hex() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Replaces a file of mode 0600 at once: a reader sees the old text or the new, a crash leaves one
/// of them.
fn write_private(path: &Path, text: &str) -> Result<(), EmbeddedError> {
    let staged = stage_private(path, text)?;
    fs::rename(&staged, path).map_err(EmbeddedError::io("write", path))?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// A complete file of mode 0600 beside the one that is meant, for the caller to put in its place.
fn stage_private(path: &Path, text: &str) -> Result<PathBuf, EmbeddedError> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!(".{}", Uuid::new_v4().simple()));
    let staged = PathBuf::from(staged);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&staged)?;
        give_to_owner_of(path.parent().unwrap_or(Path::new("/")), &file);
        writeln!(file, "{text}")?;
        file.sync_all()
    };
    write().map_err(EmbeddedError::io("write", path))?;
    Ok(staged)
}

/// Root may have run once in an ordinary user's folder; what it leaves there must be the user's, or
/// they are locked out. For everybody else the owners are the same or the call is refused, and both
/// are fine.
fn give_to_owner_of(folder: &Path, file: &File) {
    let given = fs::metadata(folder)
        .and_then(|folder| fchown(file, Some(folder.uid()), Some(folder.gid())));
    if let Err(error) = given {
        tracing::debug!(%error, folder = %folder.display(), "a file keeps its owner");
    }
}

fn sync_folder(dir: &Path) -> Result<(), EmbeddedError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(EmbeddedError::io("sync", dir))
}

/// Of starts that were killed in `initdb`. Ours to remove: we hold the lock.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(STAGING_PREFIX.as_bytes())
        {
            drop(Staging(entry.path()));
        }
    }
}

/// A folder that goes away unless kept.
#[derive(Debug)]
struct Staging(PathBuf);

impl Staging {
    fn keep(mut self) {
        self.0 = PathBuf::new();
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.0.display(), "a folder that is no longer needed stays behind");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {

    use tempfile::TempDir;

    use super::*;

    /// A data folder that takes its server and its files elsewhere with it, however the test ends.
    struct TestFolder {
        dir: TempDir,
        durable: bool,
    }

    impl TestFolder {
        /// As root this is a folder that the server's user can't enter: only root may.
        fn new() -> Self {
            let private = Permissions::from_mode(0o700);
            let dir = tempfile::Builder::new().permissions(private).tempdir();
            Self {
                dir: dir.expect("a folder"),
                durable: false,
            }
        }

        fn path(&self) -> &Path {
            self.dir.path()
        }

        fn options(&self) -> EmbeddedOptions {
            EmbeddedOptions {
                data_dir: self.path().to_owned(),
                bin_dir: None,
                durable: self.durable,
            }
        }

        async fn start(&self) -> Embedded {
            Embedded::start(&self.options())
                .await
                .unwrap_or_else(|error| panic!("{error}: {error:?}"))
        }

        /// Where the cluster is, links followed.
        fn pgdata(&self) -> PathBuf {
            fs::read_link(self.path().join("postgres"))
                .unwrap_or_else(|_| self.path().join("postgres"))
        }

        fn server(&self) -> Option<Server> {
            let pgdata = self.pgdata();
            let owner = fs::metadata(&pgdata).ok()?;
            let user = is_root().ok()?.then(|| ServerUser {
                name: String::new(),
                uid: owner.uid(),
                gid: owner.gid(),
            });
            let bin = Binaries::find(None, None, &pgdata).ok()?.dir;
            Some(Server {
                bin,
                pgdata,
                log: self.path().join("postgres.log"),
                user,
            })
        }

        fn stop_at_once(&self) {
            if let Some(server) = self.server() {
                let _ = server
                    .pg_ctl("stop")
                    .args(["-m", "immediate", "-w"])
                    .stderr(Stdio::null())
                    .status();
            }
        }

        fn postmaster_pid(&self) -> String {
            let text =
                fs::read_to_string(self.pgdata().join("postmaster.pid")).expect("a running server");
            text.lines().next().expect("its process id").to_owned()
        }
    }

    impl Drop for TestFolder {
        fn drop(&mut self) {
            self.stop_at_once();
            let pgdata = self.pgdata();
            if pgdata.starts_with(RELOCATED) {
                let _ = fs::remove_dir_all(pgdata.parent().expect("a folder of its own"));
                // Refused while another test's is in it.
                let _ = fs::remove_dir(RELOCATED);
            }
        }
    }

    /// An owner that died: the lock is free, the server runs.
    fn abandon(mut owner: Embedded) {
        owner.running = false;
    }

    async fn open(url: &SecretString) -> PgConnection {
        PgConnection::connect(url.expose_secret())
            .await
            .expect("the server accepts its own address")
    }

    async fn setting(connection: &mut PgConnection, name: &str) -> String {
        sqlx::query_scalar("select current_setting($1)")
            .bind(name)
            .fetch_one(connection)
            .await
            .expect("a setting")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("a file").mode() & 0o777
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_stop_and_start() {
        let mut folder = TestFolder::new();
        folder.durable = true;
        let embedded = folder.start().await;
        let mut connection = open(embedded.url()).await;
        sqlx::raw_sql("create table kept (word text); insert into kept values ('here')")
            .execute(&mut connection)
            .await
            .expect("a table");
        for (name, expected) in [
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("full_page_writes", "on"),
            ("data_checksums", "on"),
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", ""),
            ("password_encryption", "scram-sha-256"),
            ("server_encoding", "UTF8"),
        ] {
            assert_eq!(setting(&mut connection, name).await, expected, "{name}");
        }
        drop(connection);
        embedded.stop().await.expect("a clean stop");
        assert!(
            !folder.path().join("database_url").exists(),
            "an address of nothing"
        );
        assert!(
            !folder.pgdata().join("postmaster.pid").exists(),
            "the server still runs"
        );

        let embedded = folder.start().await;
        let mut connection = open(embedded.url()).await;
        let word: String = sqlx::query_scalar("select word from kept")
            .fetch_one(&mut connection)
            .await
            .expect("the row");
        assert_eq!(word, "here");
        embedded.stop().await.expect("a clean stop");
    }

    #[tokio::test]
    async fn the_password_is_asked_for_and_shown_nowhere() {
        let folder = TestFolder::new();
        let joined = join_or_start(&folder.options()).await.expect("a server");
        let password = fs::read_to_string(folder.path().join("password")).expect("the password");
        let password = password.trim();
        assert!(joined.url().expose_secret().contains(password));

        let wrong = joined.url().expose_secret().replace(password, "wrong");
        let refused = PgConnection::connect(&wrong)
            .await
            .expect_err("a wrong password");
        assert_eq!(
            refused
                .as_database_error()
                .and_then(sqlx::error::DatabaseError::code)
                .as_deref(),
            Some("28P01"),
            "{refused}"
        );

        assert!(!format!("{joined:?}").contains(password), "Debug shows it");
        for file in [
            folder.path().join("postgres.log"),
            folder.pgdata().join("postmaster.opts"),
        ] {
            let text = fs::read_to_string(&file).expect("a file");
            assert!(!text.contains(password), "{} shows it", file.display());
        }
        for file in ["password", "database_url", "postgres.log", "lock"] {
            assert_eq!(mode(&folder.path().join(file)), 0o600, "{file}");
        }
        assert_eq!(mode(&folder.pgdata()), 0o700);
        joined.stop().await.expect("a clean stop");
    }

    #[tokio::test]
    async fn a_second_owner_is_refused_and_a_second_user_joins() {
        let folder = TestFolder::new();
        let owner = folder.start().await;

        let refused = Embedded::start(&folder.options())
            .await
            .expect_err("two owners");
        let named = matches!(&refused, EmbeddedError::InUse { pid: Some(pid), .. } if *pid == std::process::id());
        assert!(named, "{refused:?}");
        assert!(
            refused
                .to_string()
                .contains(&owner.data_dir().display().to_string()),
            "{refused}"
        );
        assert!(refused.hint().is_some());

        let joined = join_or_start(&folder.options())
            .await
            .expect("the owner's server");
        assert!(matches!(joined, Joined::Running { .. }), "{joined:?}");
        assert_eq!(joined.url().expose_secret(), owner.url().expose_secret());
        joined.stop().await.expect("nothing to stop");
        open(owner.url())
            .await
            .ping()
            .await
            .expect("the server is the owner's to stop");

        owner.stop().await.expect("a clean stop");
        let alone = join_or_start(&folder.options()).await.expect("a server");
        assert!(matches!(alone, Joined::Owned(_)), "{alone:?}");
        alone.stop().await.expect("a clean stop");
    }

    #[tokio::test]
    async fn a_server_without_fsync_is_not_adopted_where_it_is_wanted() {
        let mut folder = TestFolder::new();
        abandon(folder.start().await);
        let unsafe_pid = folder.postmaster_pid();

        folder.durable = true;
        let heir = folder.start().await;
        assert_ne!(folder.postmaster_pid(), unsafe_pid);
        assert_eq!(setting(&mut open(heir.url()).await, "fsync").await, "on");
        heir.stop().await.expect("a clean stop");
    }

    #[tokio::test]
    async fn the_cluster_is_found_again_after_a_crash_a_drop_and_an_unexpected_end() {
        let folder = TestFolder::new();
        // The machine went down: `postmaster.pid` is stale.
        abandon(folder.start().await);
        let stale = fs::read(folder.pgdata().join("postmaster.pid")).expect("a running server");
        folder.stop_at_once();
        let mut child = Command::new("true").spawn().expect("a process");
        child.wait().expect("its end");
        let stale = String::from_utf8_lossy(&stale).replacen(
            &first_line(&stale),
            &child.id().to_string(),
            1,
        );
        fs::write(folder.pgdata().join("postmaster.pid"), stale).expect("a stale file");

        // Dropped: the server is stopped.
        let embedded = folder.start().await;
        let dropped = folder.postmaster_pid();
        drop(embedded);

        // Ended by somebody else: there is nothing left to stop.
        let embedded = folder.start().await;
        assert_ne!(folder.postmaster_pid(), dropped, "it was adopted");
        folder.stop_at_once();
        embedded.stop().await.expect("it is stopped");
    }

    /// The owner was killed while it stopped, and a client holds the server up.
    #[tokio::test]
    async fn a_server_that_is_stopping_is_waited_for() {
        let folder = TestFolder::new();
        let owner = folder.start().await;
        let client = open(owner.url()).await;
        abandon(owner);
        let server = folder.server().expect("a cluster");
        let told = server.pg_ctl("stop").args(["-m", "smart", "-W"]).status();
        assert!(told.expect("pg_ctl").success());

        let options = folder.options();
        let mut heir = Box::pin(Embedded::start(&options));
        let early = timeout(Duration::from_millis(500), &mut heir).await;
        assert!(early.is_err(), "it did not wait: {early:?}");
        client.close().await.expect("a clean end");
        let heir = heir.await.expect("a server");
        open(heir.url()).await.ping().await.expect("a new one");
        heir.stop().await.expect("a clean stop");
    }

    fn first_line(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    #[tokio::test]
    async fn a_start_that_fails_shows_the_log_and_leaves_the_lock_free() {
        let folder = TestFolder::new();
        folder.start().await.stop().await.expect("a clean stop");

        let server = folder.server().expect("a cluster");
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = taken.local_addr().expect("its number").port();
        let refused = server
            .launch_on(port, false)
            .await
            .expect_err("the port is taken");
        assert!(
            matches!(refused, EmbeddedError::Start { .. }) && is_taken(port),
            "{refused:?}"
        );

        let conf = folder.pgdata().join("postgresql.conf");
        let good = fs::read(&conf).expect("the configuration");
        fs::write(&conf, "no such setting\n").expect("a broken configuration");
        let refused = Embedded::start(&folder.options())
            .await
            .expect_err("a broken configuration");
        assert!(refused.to_string().contains("postgresql.conf"), "{refused}");
        assert!(
            !refused.to_string().contains(&port.to_string()),
            "an older part of the log: {refused}"
        );

        fs::write(&conf, good).expect("the configuration");
        let password = fs::read(folder.path().join("password")).expect("the password");
        fs::remove_file(folder.path().join("password")).expect("the password");
        let refused = Embedded::start(&folder.options())
            .await
            .expect_err("no password");
        assert!(
            matches!(refused, EmbeddedError::Password { .. }),
            "{refused:?}"
        );

        fs::write(folder.path().join("password"), password).expect("the password");
        folder.start().await.stop().await.expect("a clean stop");
    }

    #[tokio::test]
    async fn an_interrupted_initdb_is_cleared_away() {
        let folder = TestFolder::new();
        // Everybody may pass, so that root's server stays in the data folder too.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).expect("a mode");
        let half = folder.path().join(format!("{STAGING_PREFIX}0/data/base"));
        fs::create_dir_all(half).expect("half a cluster");
        folder.start().await.stop().await.expect("a clean stop");
        assert!(!folder.path().join(format!("{STAGING_PREFIX}0")).exists());
        let postgres = fs::symlink_metadata(folder.path().join("postgres")).expect("the cluster");
        assert!(postgres.is_dir(), "it is elsewhere");
        let names: Vec<_> = fs::read_dir(folder.path())
            .expect("the folder")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(
            names.len(),
            4,
            "lock, password, postgres, postgres.log: {names:?}"
        );
    }

    /// Only root needs another place; for everybody else the first half says that there is none.
    #[tokio::test]
    async fn roots_cluster_is_linked_to_where_its_user_can_go() {
        let folder = TestFolder::new();
        let link = folder.path().join("postgres");
        folder.start().await.stop().await.expect("a clean stop");
        if !is_root().expect("an answer") {
            assert!(fs::symlink_metadata(&link).expect("the cluster").is_dir());
            return;
        }
        let target = fs::read_link(&link).expect("a link");
        assert!(target.starts_with(RELOCATED), "{}", target.display());
        assert_ne!(fs::metadata(&target).expect("the cluster").uid(), 0);
        folder.start().await.stop().await.expect("found again");

        let moved = target.with_file_name("moved");
        fs::rename(&target, &moved).expect("a move");
        let refused = Embedded::start(&folder.options())
            .await
            .expect_err("the cluster is gone");
        assert!(matches!(refused, EmbeddedError::Gone { .. }), "{refused:?}");
        fs::rename(&moved, &target).expect("a move");

        chown(&target, Some(0), Some(0)).expect("root may");
        let refused = Embedded::start(&folder.options())
            .await
            .expect_err("the cluster is root's");
        assert!(
            matches!(refused, EmbeddedError::RootOwned { .. }),
            "{refused:?}"
        );

        let moved = TestFolder::new();
        let cluster = moved.path().join("postgres");
        fs::create_dir(&cluster).expect("a folder");
        chown(&cluster, Some(65534), Some(65534)).expect("root may");
        let refused = Embedded::start(&moved.options())
            .await
            .expect_err("its owner can't get there");
        assert!(
            matches!(refused, EmbeddedError::Unreachable { .. }),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn a_folder_that_is_no_cluster_is_left_alone() {
        let folder = TestFolder::new();
        let file = folder.path().join("postgres/thesis.txt");
        fs::create_dir(folder.path().join("postgres")).expect("a folder");
        fs::write(&file, "").expect("a file");
        let pgdata = folder.path().join("postgres");
        let refused = cluster_version(&pgdata).expect_err("not a cluster");
        assert!(
            matches!(refused, EmbeddedError::NotACluster { .. }),
            "{refused:?}"
        );
        assert!(file.exists());
    }

    /// Programs that only know their version. Written by a shell: a descriptor of ours that is open
    /// for writing could be in another test's child when the program is run, and the kernel refuses
    /// that.
    fn fake_binaries(dir: &Path, major: u32) -> PathBuf {
        let bin = dir.join(major.to_string()).join("bin");
        fs::create_dir_all(&bin).expect("a folder");
        let script = r#"
            for program in postgres initdb pg_ctl; do
                printf '#!/bin/sh\necho "postgres (PostgreSQL) %s.1"\n' "$1" > "$program"
                chmod 755 "$program"
            done"#;
        let made = Command::new("sh")
            .args(["-c", script, "sh", &major.to_string()])
            .current_dir(&bin)
            .status();
        assert!(made.expect("a shell").success());
        bin
    }

    #[test]
    fn binaries_come_from_path_first_then_the_highest_version() {
        let dir = tempfile::tempdir().expect("a folder");
        let on_path = fake_binaries(&dir.path().join("path"), 14);
        let distribution = dir.path().join("distribution");
        for major in [9, 16, 12] {
            fake_binaries(&distribution, major);
        }
        fake_binaries(&distribution, 17);
        fs::create_dir_all(distribution.join("18/bin")).expect("a folder without programs");

        let found = Binaries::search(on_path.as_os_str(), &distribution);
        let majors: Vec<_> = found.iter().map(|binaries| binaries.major).collect();
        assert_eq!(majors, [14, 17, 16], "12 and 9 are too old");
    }

    #[test]
    fn a_cluster_of_another_version_names_both() {
        let dir = tempfile::tempdir().expect("a folder");
        let bin = fake_binaries(dir.path(), 17);
        let pgdata = dir.path().join("postgres");
        fs::create_dir_all(pgdata.join("global")).expect("a folder");
        fs::write(pgdata.join("global/pg_control"), "").expect("a file");
        fs::write(pgdata.join("PG_VERSION"), "15\n").expect("a file");
        let cluster = cluster_version(&pgdata).expect("a cluster");
        assert_eq!(cluster, Some(15));
        let refused = Binaries::find(Some(&bin), cluster, &pgdata).expect_err("17 can't read 15");
        let (message, hint) = (refused.to_string(), refused.hint().expect("a hint"));
        assert!(
            message.contains("15") && message.contains("17"),
            "{message}"
        );
        assert!(hint.contains("PG_BIN_DIR"), "{hint}");
    }

    #[tokio::test]
    async fn a_pg_bin_dir_without_the_programs_is_named() {
        let folder = TestFolder::new();
        let options = EmbeddedOptions {
            bin_dir: Some(folder.path().into()),
            ..folder.options()
        };
        let refused = Embedded::start(&options)
            .await
            .expect_err("there is no server");
        let expected = format!(
            "PG_BIN_DIR: no executable postgres in {}",
            folder.path().display()
        );
        assert_eq!(refused.to_string(), expected);
        assert!(refused.hint().is_some());

        let bin = fake_binaries(folder.path(), 12);
        let refused = Binaries::find(Some(&bin), None, folder.path()).expect_err("12 is too old");
        assert!(
            matches!(refused, EmbeddedError::BinDirTooOld { major: 12, .. }),
            "{refused:?}"
        );
    }

    #[test]
    fn the_webhook_secret_stays_the_same_and_is_private() {
        let parent = tempfile::tempdir().expect("a folder");
        let dir = parent.path().join("made/when/needed");
        let first = webhook_secret(&dir).expect("a secret");
        let secret = first.expose_secret();
        let random = secret.strip_prefix("whsec_").expect("the prefix");
        assert!(random.len() == 64 && random.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(mode(&dir.join("webhook_secret")), 0o600);
        assert_eq!(mode(&dir), 0o711);
        assert_eq!(
            fs::read_to_string(dir.join(".gitignore")).expect("a file"),
            "*\n"
        );
        assert_eq!(
            webhook_secret(&dir).expect("the secret").expose_secret(),
            secret
        );
        assert!(!format!("{first:?}").contains(random));
        let other = webhook_secret(parent.path()).expect("a secret");
        assert_ne!(other.expose_secret(), secret);

        fs::write(dir.join("webhook_secret"), "\n").expect("a file");
        let refused = webhook_secret(&dir).expect_err("an empty key");
        assert!(
            matches!(refused, EmbeddedError::EmptySecret { .. }),
            "{refused:?}"
        );
    }

    #[test]
    fn two_that_make_up_a_secret_at_once_get_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let barrier = std::sync::Barrier::new(4);
        let secrets: Vec<String> = std::thread::scope(|scope| {
            let make = || {
                barrier.wait();
                webhook_secret(dir.path())
                    .expect("a secret")
                    .expose_secret()
                    .to_owned()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        assert!(
            secrets.iter().all(|secret| *secret == secrets[0]),
            "{secrets:?}"
        );
    }

    #[test]
    fn versions_are_read_from_releases_and_pre_releases() {
        assert_eq!(
            parse_major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_major("postgres (PostgreSQL) 13\n"), Some(13));
        assert_eq!(parse_major("sh: postgres: not found\n"), None);
    }

    #[test]
    fn a_postmaster_that_has_just_begun_has_no_port_yet() {
        let whole = "1234\n/data\n1700000000\n40123\n\n127.0.0.1\n  393225         0\nready   \n";
        assert_eq!(
            Postmaster::parse(whole),
            Postmaster {
                port: Some(40123),
                ready: true
            }
        );
        let starting = whole.replace("ready   ", "starting");
        assert_eq!(
            Postmaster::parse(&starting),
            Postmaster {
                port: Some(40123),
                ready: false
            }
        );
        assert_eq!(
            Postmaster::parse("1234\n/data\n"),
            Postmaster {
                port: None,
                ready: false
            }
        );
    }

    #[test]
    fn users_are_found_by_name_and_by_number_but_never_root() {
        let passwd = "toor:x:0:0::/root:/bin/sh\n# comment\nbroken:x\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";
        let postgres = Some(ServerUser {
            name: "postgres".into(),
            uid: 101,
            gid: 104,
        });
        assert_eq!(
            ServerUser::in_passwd(passwd, |name, _| name == "postgres"),
            postgres
        );
        assert_eq!(ServerUser::in_passwd(passwd, |_, uid| uid == 101), postgres);
        assert_eq!(
            ServerUser::in_passwd(passwd, |name, _| name == "toor"),
            None
        );
    }
}

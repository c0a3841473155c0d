//! The whole, on real servers: as an ordinary user, and as root, whose server runs as somebody else.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use secrecy::{ExposeSecret, SecretString};
use sqlx::error::DatabaseError;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::cluster::Cluster;
use crate::data_dir::make_directory;
use crate::server::{Postmaster, Server, connect};
use crate::user::is_root;

/// What a program may call its settings.
pub(crate) const NAMES: Names = Names {
    data_dir: "DIRECTORY",
    bin_dir: "BINARIES",
    instead: "set DATABASE",
};

/// A data directory that takes its server and its files elsewhere with it, however the test ends.
struct TestDir {
    dir: TempDir,
    options: Options,
}

impl TestDir {
    /// As root this is a directory that the server's user can't enter: only root may.
    fn new() -> Self {
        let private = Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().permissions(private).tempdir();
        Self {
            dir: dir.expect("a directory"),
            options: Options {
                durable: false,
                ..Options::default()
            },
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    async fn try_to_start(&self) -> Result<PrivatePostgres, Error> {
        PrivatePostgres::start(self.path(), &self.options, &never()).await
    }

    async fn start(&self) -> PrivatePostgres {
        let started = self.try_to_start().await;
        started.unwrap_or_else(|error| panic!("{error}: {error:?}"))
    }

    async fn open_existing(&self) -> Result<Joined, Error> {
        open_existing(self.path(), &self.options, &never()).await
    }

    async fn start_and_stop(&self) {
        let server = self.start().await;
        server.stop(&never()).await.expect("a clean stop");
    }

    /// Where the cluster is, links followed.
    fn pgdata(&self) -> PathBuf {
        fs::read_link(self.path().join("postgres")).unwrap_or_else(|_| self.path().join("postgres"))
    }

    fn postmaster(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.pgdata().join("postmaster.pid")).ok()?;
        Pid::from_raw(text.lines().next()?.parse().ok()?)
    }

    /// The process id of a server that runs.
    fn pid(&self) -> Pid {
        self.postmaster().expect("a running server")
    }

    /// As a crash of the machine: without a word to anybody.
    fn crash(&self) {
        let Some(pid) = self.postmaster() else { return };
        if kill_process(pid, Signal::QUIT).is_ok() {
            let deadline = Instant::now() + PATIENCE;
            while self.postmaster().is_some() && Instant::now() < deadline {
                thread::sleep(POLL);
            }
        }
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        self.crash();
        let pgdata = self.pgdata();
        if pgdata.starts_with(self.options.elsewhere) {
            let _ = fs::remove_dir_all(pgdata);
        }
        // Refused while another test's is in it.
        let _ = fs::remove_dir(self.options.elsewhere);
    }
}

fn never() -> CancellationToken {
    CancellationToken::new()
}

/// An owner that died: the lock is free, the server runs. It is still our child, so its end has to be asked for.
fn abandon(mut owner: PrivatePostgres) {
    let left = owner.server.postmaster.take();
    TaskTracker::new().spawn(async move {
        if let Some(Postmaster::Child(mut child)) = left {
            child.ended().await;
        }
    });
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

#[cfg(target_os = "linux")]
/// Whether it runs. One that has ended and that nobody has asked for its exit code doesn't.
fn is_running(pid: Pid) -> bool {
    let arguments = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid()));
    arguments.is_ok_and(|arguments| !arguments.is_empty())
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come");
        sleep(POLL).await;
    }
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").mode() & 0o777
}

#[tokio::test]
async fn what_was_written_is_there_after_stop_and_start() {
    let mut dir = TestDir::new();
    dir.options = Options {
        initdb: &["--data-checksums"],
        settings: &["work_mem=5MB"],
        ..Options::default()
    };
    let server = dir.start().await;
    let mut connection = open(server.url()).await;
    sqlx::raw_sql("create table kept (word text); insert into kept values ('here')")
        .execute(&mut connection)
        .await
        .expect("a table");
    for (name, expected) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("data_checksums", "on"),
        ("work_mem", "5MB"),
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("password_encryption", "scram-sha-256"),
        ("server_encoding", "UTF8"),
    ] {
        assert_eq!(setting(&mut connection, name).await, expected, "{name}");
    }
    drop(connection);
    server.stop(&never()).await.expect("a clean stop");
    assert!(
        !dir.path().join("database_url").exists(),
        "an address of nothing"
    );
    assert!(
        !dir.pgdata().join("postmaster.pid").exists(),
        "the server still runs"
    );

    let server = dir.start().await;
    let mut connection = open(server.url()).await;
    let word: String = sqlx::query_scalar("select word from kept")
        .fetch_one(&mut connection)
        .await
        .expect("the row");
    assert_eq!(word, "here");
    server.stop(&never()).await.expect("a clean stop");
}

#[tokio::test]
async fn the_password_is_asked_for_and_shown_nowhere() {
    let dir = TestDir::new();
    dir.start_and_stop().await;
    let joined = dir.open_existing().await.expect("a server");
    let password = fs::read_to_string(dir.path().join("password")).expect("the password");
    let password = password.trim();
    assert!(joined.url().expose_secret().contains(password));

    let wrong = joined.url().expose_secret().replace(password, "wrong");
    let refused = PgConnection::connect(&wrong)
        .await
        .expect_err("a wrong password");
    assert_eq!(
        refused
            .as_database_error()
            .and_then(DatabaseError::code)
            .as_deref(),
        Some("28P01"),
        "{refused}"
    );

    assert!(!format!("{joined:?}").contains(password), "Debug shows it");
    for file in [
        dir.path().join("postgres.log"),
        dir.pgdata().join("postmaster.opts"),
    ] {
        let text = fs::read_to_string(&file).expect("a file");
        assert!(!text.contains(password), "{} shows it", file.display());
    }
    for file in ["password", "database_url", "postgres.log", "lock"] {
        assert_eq!(mode(&dir.path().join(file)), 0o600, "{file}");
    }
    assert_eq!(mode(&dir.pgdata()), 0o700);
    joined.stop(&never()).await.expect("a clean stop");
}

#[tokio::test]
async fn a_second_owner_is_refused_and_a_second_user_joins() {
    let dir = TestDir::new();
    let owner = dir.start().await;

    let refused = dir.try_to_start().await.expect_err("two owners");
    let expected = format!(
        "another process ({}) serves from {}",
        process::id(),
        owner.data_dir().display()
    );
    assert_eq!(refused.to_string(), expected);
    assert!(refused.hint(&NAMES).is_some());

    let joined = dir.open_existing().await.expect("the owner's server");
    assert!(matches!(joined, Joined::Running { .. }), "{joined:?}");
    assert_eq!(joined.url().expose_secret(), owner.url().expose_secret());
    joined.stop(&never()).await.expect("nothing to stop");
    open(owner.url())
        .await
        .ping()
        .await
        .expect("the server is the owner's to stop");

    owner.stop(&never()).await.expect("a clean stop");
    let alone = dir.open_existing().await.expect("a server");
    assert!(matches!(alone, Joined::Owned(_)), "{alone:?}");
    alone.stop(&never()).await.expect("a clean stop");
}

#[tokio::test]
async fn a_server_left_running_is_adopted_unless_it_lacks_the_fsync_that_is_wanted() {
    let mut dir = TestDir::new();
    abandon(dir.start().await);
    let pid = dir.pid();
    let heir = dir.start().await;
    assert_eq!(dir.pid(), pid, "it was replaced");
    open(heir.url()).await.ping().await.expect("the same one");
    abandon(heir);

    dir.options.durable = true;
    let heir = dir.start().await;
    assert_ne!(dir.pid(), pid, "it was adopted");
    assert_eq!(setting(&mut open(heir.url()).await, "fsync").await, "on");
    heir.stop(&never()).await.expect("a clean stop");
}

#[tokio::test]
async fn the_cluster_is_found_again_after_a_crash_a_drop_and_an_unexpected_end() {
    let dir = TestDir::new();
    // The machine went down: `postmaster.pid` is stale.
    abandon(dir.start().await);
    let pid_file = dir.pgdata().join("postmaster.pid");
    let stale = fs::read_to_string(&pid_file).expect("a running server");
    let running = dir.pid();
    dir.crash();
    let mut child = Command::new("true").spawn().expect("a process");
    child.wait().expect("its end");
    let stale = stale.replacen(&running.to_string(), &child.id().to_string(), 1);
    fs::write(&pid_file, stale).expect("a stale file");

    // Dropped, by a panic: the server is stopped.
    let server = dir.start().await;
    let dropped = dir.pid();
    let panicked = TaskTracker::new().spawn(async move {
        let _owner = server;
        panic!("as this test wants");
    });
    assert!(panicked.await.expect_err("it panics").is_panic());
    assert_eq!(dir.postmaster(), None, "it was not stopped");
    assert!(!dir.path().join("database_url").exists());

    // Ended by somebody else: there is nothing left to stop.
    let server = dir.start().await;
    assert_ne!(dir.pid(), dropped, "it was not stopped");
    dir.crash();
    server.stop(&never()).await.expect("it is stopped");
}

/// The owner was killed while it stopped, and a client holds the server up.
#[tokio::test]
async fn a_server_that_is_stopping_is_waited_for() {
    let dir = TestDir::new();
    let owner = dir.start().await;
    let client = open(owner.url()).await;
    abandon(owner);
    // Smart: it waits for its clients.
    kill_process(dir.pid(), Signal::TERM).expect("it runs");

    let refused_twice = || {
        let log = fs::read_to_string(dir.path().join(LOG)).expect("the log");
        let refusal = "FATAL:  the database system is shutting down";
        log.matches(refusal).count() >= 2
    };
    let (heir, ended) = tokio::join!(dir.start(), async {
        until(refused_twice).await;
        client.close().await
    });
    ended.expect("a clean end");
    open(heir.url()).await.ping().await.expect("a new one");
    heir.stop(&never()).await.expect("a clean stop");
}

#[tokio::test]
async fn a_start_that_fails_shows_the_log_and_leaves_the_lock_free() {
    let dir = TestDir::new();
    dir.start_and_stop().await;

    let server = dir.start().await;
    let port = server.port;
    abandon(server);
    dir.crash();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port");
    let folder = DataDir::open(dir.path()).expect("ours");
    let cluster = Cluster::find(&folder, dir.options.elsewhere).expect("a cluster");
    let bin = binaries::find(None, &cluster, &never())
        .await
        .expect("programs");
    let mut server = Server::new(folder, cluster, bin, "".into(), dir.options.clone());
    let refused = server.launch_on(port).await.expect_err("the port is taken");
    assert!(matches!(refused, Error::Program { .. }), "{refused:?}");
    drop(taken);

    let conf = dir.pgdata().join("postgresql.conf");
    let good = fs::read(&conf).expect("the configuration");
    fs::write(&conf, "no such setting\n").expect("a broken configuration");
    let refused = dir
        .try_to_start()
        .await
        .expect_err("a broken configuration");
    assert!(refused.to_string().contains("postgresql.conf"), "{refused}");
    assert!(
        !refused.to_string().contains(&port.to_string()),
        "an older part of the log: {refused}"
    );

    fs::write(&conf, good).expect("the configuration");
    let password = fs::read(dir.path().join("password")).expect("the password");
    fs::remove_file(dir.path().join("password")).expect("the password");
    let refused = dir.try_to_start().await.expect_err("no password");
    assert!(
        refused
            .to_string()
            .contains("password of the database's superuser is gone"),
        "{refused}"
    );

    fs::write(dir.path().join("password"), password).expect("the password");
    dir.start_and_stop().await;
}

#[tokio::test]
async fn an_interrupted_initdb_is_cleared_away() {
    let dir = TestDir::new();
    // Everybody may pass, so that root's server stays in the data directory too.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).expect("a mode");
    let half = dir.path().join("postgres.initdb-killed");
    fs::create_dir_all(half.join("data/base")).expect("half a cluster");
    dir.start_and_stop().await;
    assert!(!half.exists());
    let postgres = fs::symlink_metadata(dir.path().join("postgres")).expect("the cluster");
    assert!(postgres.is_dir(), "it is elsewhere");
    let names: Vec<_> = fs::read_dir(dir.path())
        .expect("the directory")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(
        names.len(),
        5,
        "lock, password, port, postgres, postgres.log: {names:?}"
    );
}

/// The server keeps its port, unless somebody else has it.
#[tokio::test]
async fn the_port_is_kept() {
    let dir = TestDir::new();
    let first = dir.start().await;
    let port = first.port;
    first.stop(&never()).await.expect("a clean stop");
    let again = dir.start().await;
    assert_eq!(again.port, port);
    again.stop(&never()).await.expect("a clean stop");

    let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port");
    let moved = dir.start().await;
    let new_port = moved.port;
    assert_ne!(new_port, port);
    open(moved.url()).await.ping().await.expect("it is there");
    moved.stop(&never()).await.expect("a clean stop");
    drop(stranger);
    let again = dir.start().await;
    assert_eq!(again.port, new_port, "not the first one's again");
    again.stop(&never()).await.expect("a clean stop");
}

/// A server that dies is started again at the same address, whether it was started here or adopted.
#[tokio::test]
async fn a_server_that_dies_is_started_again() {
    let dir = TestDir::new();
    abandon(dir.start().await);
    let mut heir = dir.start().await;
    let url = heir.url().clone();
    // First the adopted one, then its successor.
    for _ in 0..2 {
        let dead = dir.pid();
        kill_process(dead, Signal::KILL).expect("it runs");
        let is_back = async {
            while connect(&url).await.is_err() {
                sleep(POLL).await;
            }
        };
        tokio::select! {
            error = heir.keep_running() => panic!("{error}"),
            () = is_back => {}
        }
        assert_ne!(dir.pid(), dead);
    }
    heir.stop(&never()).await.expect("a clean stop");
    assert_eq!(dir.postmaster(), None);
}

/// A start can be interrupted, whatever it waits for; then the server that it waited for ends too.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_that_hangs_is_ended_by_an_interruption() {
    let dir = TestDir::new();
    let owner = dir.start().await;
    // The kernel's list of connections: to this address, established.
    let connection = format!(" 0100007F:{:04X} 01 ", owner.port);
    abandon(owner);
    let hung = dir.pid();
    kill_process(hung, Signal::STOP).expect("it runs");
    let stop = never();
    let starting = PrivatePostgres::start(dir.path(), &dir.options, &stop);
    let (interrupted, ()) = tokio::join!(starting, async {
        let connections = || fs::read_to_string("/proc/net/tcp").expect("a list");
        until(|| connections().contains(&connection)).await;
        stop.cancel();
    });
    assert!(
        matches!(interrupted, Err(Error::Interrupted)),
        "{interrupted:?}"
    );
    assert!(!is_running(hung), "it is still there");
    dir.start_and_stop().await;
}

/// Who only uses a database makes none.
#[tokio::test]
async fn a_database_that_is_only_used_is_not_made() {
    let dir = TestDir::new();
    let data = dir.path().join("data");
    let files = || fs::read_dir(&data).map(Iterator::count).ok();
    for before in [None, Some(0)] {
        if before.is_some() {
            make_directory(&data, 0o700).expect("a directory");
        }
        let refused = open_existing(&data, &dir.options, &never()).await;
        assert!(matches!(refused, Err(Error::NotMade { .. })), "{refused:?}");
        assert_eq!(files(), before);
    }
    // Of a start that didn't come so far.
    DataDir::open(&data).expect("ours").lock().expect("a lock");
    fs::create_dir(data.join("postgres")).expect("a directory");
    let refused = open_existing(&data, &dir.options, &never()).await;
    assert!(matches!(refused, Err(Error::NotMade { .. })), "{refused:?}");
}

/// Only root needs another place; for everybody else the first half says that there is none.
#[tokio::test]
async fn roots_cluster_is_linked_to_where_its_user_can_go() {
    let dir = TestDir::new();
    let link = dir.path().join("postgres");
    dir.start_and_stop().await;
    if !is_root() {
        assert!(fs::symlink_metadata(&link).expect("the cluster").is_dir());
        return;
    }
    let target = fs::read_link(&link).expect("a link");
    assert!(
        target.starts_with(dir.options.elsewhere),
        "{}",
        target.display()
    );
    assert_ne!(fs::metadata(&target).expect("the cluster").uid(), 0);
    dir.start_and_stop().await;

    let moved = target.with_extension("moved");
    fs::rename(&target, &moved).expect("a move");
    let refused = dir.try_to_start().await.expect_err("the cluster is gone");
    assert!(refused.to_string().contains("which is gone"), "{refused}");
    fs::rename(&moved, &target).expect("a move");

    chown(&target, Some(0), Some(0)).expect("root may");
    let refused = dir.try_to_start().await.expect_err("the cluster is root's");
    assert!(refused.to_string().contains("belongs to root"), "{refused}");

    let moved = TestDir::new();
    let cluster = moved.path().join("postgres");
    fs::create_dir(&cluster).expect("a directory");
    fs::write(cluster.join("PG_VERSION"), "15\n").expect("a file");
    chown(&cluster, Some(65534), Some(65534)).expect("root may");
    let refused = moved
        .try_to_start()
        .await
        .expect_err("its owner can't get there");
    assert!(
        refused.to_string().contains("can't enter its parent"),
        "{refused}"
    );
}

/// A crash of the server itself, and its owner's tools: a database beside its own, and the programs that came with it.
#[tokio::test]
async fn a_crashed_server_is_started_where_it_was() {
    let dir = TestDir::new();
    let mut server = dir.start().await;
    let other = server.url_of("other");
    let mut connection = open(server.url()).await;
    sqlx::raw_sql("create database other")
        .execute(&mut connection)
        .await
        .expect("a database");
    let first = server.pid().expect("it runs");

    server.crash().await.expect("its end");
    assert_eq!(server.pid(), None);
    assert!(connection.ping().await.is_err(), "it still runs");
    server.start_if_down().await.expect("a start");
    let second = server.pid().expect("it runs");
    assert_ne!(first, second);
    open(&other).await.ping().await.expect("the same one");
    server.start_if_down().await.expect("nothing to do");
    assert_eq!(server.pid(), Some(second));

    let mut control = server.command("pg_controldata");
    let told = control.arg(server.pgdata()).output().expect("a program");
    let told = String::from_utf8_lossy(&told.stdout);
    assert!(told.contains("in production"), "{told}");
    server.stop(&never()).await.expect("a clean stop");
}

/// What is thrown away is gone with its owner, or with the process: the watchdog's part is tried on a server that nobody stops.
#[tokio::test]
async fn a_temporary_server_leaves_nothing() {
    let mut parent = TestDir::new();
    // Where root's server goes.
    parent.options.elsewhere = "/var/lib/private-postgres-temporary";
    let count = |path: &Path| fs::read_dir(path).map_or(0, Iterator::count);
    let left = || count(parent.path()) + count(Path::new(parent.options.elsewhere));
    let server = Temporary::start(parent.path(), &parent.options)
        .await
        .expect("a server");
    let pgdata = server.pgdata().to_owned();
    open(server.url()).await.ping().await.expect("it is there");
    drop(server);
    assert_eq!(left(), 0, "{}", pgdata.display());

    let broken = Options {
        settings: &["no_such_setting=on"],
        ..parent.options.clone()
    };
    let refused = Temporary::start(parent.path(), &broken).await;
    assert!(matches!(refused, Err(Error::Program { .. })), "{refused:?}");
    assert_eq!(left(), 0);

    let data_dir = parent.path().join("data");
    let server = PrivatePostgres::start(&data_dir, &parent.options, &never())
        .await
        .expect("a server");
    let pgdata = server.pgdata().to_owned();
    let directories = [data_dir.clone(), pgdata.clone()];
    let watchdog = Watchdog::over(&pgdata, &directories).expect("a shell");
    abandon(server);
    drop(watchdog);
    until(|| left() == 0).await;
}

//! The whole, on real servers: as an ordinary user, and as root, whose server runs as somebody else.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use secrecy::{ExposeSecret, SecretString};
use sqlx::error::DatabaseError;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, RELOCATED, is_root};
use super::folder::Folder;
use super::server::{PATIENCE, POLL, Server, is_taken};
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
        Embedded::start(&self.options(), &CancellationToken::new())
            .await
            .unwrap_or_else(|error| panic!("{error}: {error:?}"))
    }

    /// Where the cluster is, links followed.
    fn pgdata(&self) -> PathBuf {
        fs::read_link(self.path().join("postgres")).unwrap_or_else(|_| self.path().join("postgres"))
    }

    fn server(&self) -> Result<Server, EmbeddedError> {
        let folder = Folder::open(self.path())?;
        let cluster = Cluster::find(&folder)?;
        Ok(Server {
            bin: binaries::find(None, &cluster.pgdata, cluster.version)?,
            cluster,
            log: folder.file("postgres.log"),
        })
    }

    fn stop_at_once(&self) {
        if let Ok(server) = self.server() {
            let mut stop = server.pg_ctl("stop");
            let _ = stop.args(["-m", "immediate", "-w"]).output();
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
            let _ = fs::remove_dir_all(pgdata);
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

async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come");
        sleep(POLL).await;
    }
}

pub(super) fn mode(path: &Path) -> u32 {
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
    folder.start().await.stop().await.expect("a clean stop");
    let joined = open_existing(&folder.options(), &CancellationToken::new())
        .await
        .expect("a server");
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
            .and_then(DatabaseError::code)
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

    let refused = Embedded::start(&folder.options(), &CancellationToken::new())
        .await
        .expect_err("two owners");
    let expected = format!(
        "another workos-sync (process {}) serves from {}",
        process::id(),
        owner.data_dir().display()
    );
    assert_eq!(refused.to_string(), expected);
    assert!(refused.hint().is_some());

    let joined = open_existing(&folder.options(), &CancellationToken::new())
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
    let alone = open_existing(&folder.options(), &CancellationToken::new())
        .await
        .expect("a server");
    assert!(matches!(alone, Joined::Owned(_)), "{alone:?}");
    alone.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn a_server_left_running_is_adopted_unless_it_lacks_the_fsync_that_is_wanted() {
    let mut folder = TestFolder::new();
    abandon(folder.start().await);
    let pid = folder.postmaster_pid();
    let heir = folder.start().await;
    assert_eq!(folder.postmaster_pid(), pid, "it was replaced");
    open(heir.url()).await.ping().await.expect("the same one");
    abandon(heir);

    folder.durable = true;
    let heir = folder.start().await;
    assert_ne!(folder.postmaster_pid(), pid, "it was adopted");
    assert_eq!(setting(&mut open(heir.url()).await, "fsync").await, "on");
    heir.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn the_cluster_is_found_again_after_a_crash_a_drop_and_an_unexpected_end() {
    let folder = TestFolder::new();
    // The machine went down: `postmaster.pid` is stale.
    abandon(folder.start().await);
    let pid_file = folder.pgdata().join("postmaster.pid");
    let stale = fs::read_to_string(&pid_file).expect("a running server");
    let running = folder.postmaster_pid();
    folder.stop_at_once();
    let mut child = Command::new("true").spawn().expect("a process");
    child.wait().expect("its end");
    let stale = stale.replacen(&running, &child.id().to_string(), 1);
    fs::write(&pid_file, stale).expect("a stale file");

    // Dropped: the server is stopped.
    let embedded = folder.start().await;
    let dropped = folder.postmaster_pid();
    drop(embedded);

    // Ended by somebody else: there is nothing left to stop.
    let embedded = folder.start().await;
    assert_ne!(folder.postmaster_pid(), dropped, "it was not stopped");
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

    let refused_twice = || {
        let log = fs::read_to_string(&server.log).expect("the log");
        let refusal = "FATAL:  the database system is shutting down";
        log.matches(refusal).count() >= 2
    };
    let options = folder.options();
    let never = CancellationToken::new();
    let (heir, ended) = tokio::join!(Embedded::start(&options, &never), async {
        until(refused_twice).await;
        client.close().await
    });
    ended.expect("a clean end");
    let heir = heir.expect("a server");
    open(heir.url()).await.ping().await.expect("a new one");
    heir.stop().await.expect("a clean stop");
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
        matches!(refused, EmbeddedError::Program { .. }) && is_taken(port),
        "{refused:?}"
    );

    let conf = folder.pgdata().join("postgresql.conf");
    let good = fs::read(&conf).expect("the configuration");
    fs::write(&conf, "no such setting\n").expect("a broken configuration");
    let refused = Embedded::start(&folder.options(), &CancellationToken::new())
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
    let refused = Embedded::start(&folder.options(), &CancellationToken::new())
        .await
        .expect_err("no password");
    assert!(
        refused
            .to_string()
            .contains("password of the database's superuser is gone"),
        "{refused}"
    );

    fs::write(folder.path().join("password"), password).expect("the password");
    folder.start().await.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn an_interrupted_initdb_is_cleared_away() {
    let folder = TestFolder::new();
    // Everybody may pass, so that root's server stays in the data folder too.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).expect("a mode");
    let half = folder.path().join("postgres.initdb");
    fs::create_dir_all(half.join("data/base")).expect("half a cluster");
    folder.start().await.stop().await.expect("a clean stop");
    assert!(!half.exists());
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

/// Only `serve` makes a database.
#[tokio::test]
async fn a_database_that_is_only_used_is_not_made() {
    let folder = TestFolder::new();
    let options = EmbeddedOptions {
        data_dir: folder.path().join("data"),
        ..folder.options()
    };
    let files = || fs::read_dir(&options.data_dir).map(Iterator::count).ok();
    for before in [None, Some(0)] {
        if before.is_some() {
            fs::create_dir(&options.data_dir).expect("a folder");
        }
        let refused = open_existing(&options, &CancellationToken::new()).await;
        assert!(
            matches!(refused, Err(EmbeddedError::NotMade { .. })),
            "{refused:?}"
        );
        assert_eq!(files(), before);
    }
    // A start that didn't come so far.
    fs::write(options.data_dir.join("lock"), "").expect("a file");
    let refused = open_existing(&options, &CancellationToken::new()).await;
    assert!(
        matches!(refused, Err(EmbeddedError::NotMade { .. })),
        "{refused:?}"
    );
}

/// Only root needs another place; for everybody else the first half says that there is none.
#[tokio::test]
async fn roots_cluster_is_linked_to_where_its_user_can_go() {
    let folder = TestFolder::new();
    let link = folder.path().join("postgres");
    folder.start().await.stop().await.expect("a clean stop");
    if !is_root() {
        assert!(fs::symlink_metadata(&link).expect("the cluster").is_dir());
        return;
    }
    let target = fs::read_link(&link).expect("a link");
    assert!(target.starts_with(RELOCATED), "{}", target.display());
    assert_ne!(fs::metadata(&target).expect("the cluster").uid(), 0);
    folder.start().await.stop().await.expect("found again");

    let moved = target.with_extension("moved");
    fs::rename(&target, &moved).expect("a move");
    let refused = Embedded::start(&folder.options(), &CancellationToken::new())
        .await
        .expect_err("the cluster is gone");
    assert!(refused.to_string().contains("which is gone"), "{refused}");
    fs::rename(&moved, &target).expect("a move");

    chown(&target, Some(0), Some(0)).expect("root may");
    let refused = Embedded::start(&folder.options(), &CancellationToken::new())
        .await
        .expect_err("the cluster is root's");
    assert!(refused.to_string().contains("belongs to root"), "{refused}");

    let moved = TestFolder::new();
    let cluster = moved.path().join("postgres");
    fs::create_dir(&cluster).expect("a folder");
    fs::write(cluster.join("PG_VERSION"), "15\n").expect("a file");
    chown(&cluster, Some(65534), Some(65534)).expect("root may");
    let refused = Embedded::start(&moved.options(), &CancellationToken::new())
        .await
        .expect_err("its owner can't get there");
    assert!(
        refused.to_string().contains("can't enter its parent"),
        "{refused}"
    );
}

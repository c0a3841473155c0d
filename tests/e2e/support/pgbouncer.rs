//! PgBouncer, as a distribution ships it.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use url::Url;

use super::process::{Process, isolated};
use super::{Folder, TestDatabase, eventually};

/// A running PgBouncer; gone when dropped.
pub(crate) struct PgBouncer {
    /// How the service is to connect.
    pub(crate) url: String,
    _process: Process,
    _folder: Folder,
}

impl PgBouncer {
    /// Starts one before a database, with no more settings than it takes to find that: what pools, and which startup
    /// parameters it takes, is as it comes.
    pub(crate) async fn before(database: &TestDatabase) -> Self {
        let (folder, port) = (Folder::new(), free_port());
        let server = Url::parse(&database.url).unwrap();
        let name = server.path().trim_start_matches('/');
        let mut to = format!(
            "host={} port={} dbname={name} user={}",
            server.host_str().unwrap(),
            server.port().unwrap_or(5432),
            server.username(),
        );
        if let Some(password) = server.password() {
            to = format!("{to} password={password}");
        }
        folder.write("users.txt", "\"app\" \"secret\"\n");
        let settings = folder.write(
            "pgbouncer.ini",
            format!(
                "[databases]\n{name} = {to}\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = md5\nauth_file = users.txt\n"
            ),
        );
        let mut command = isolated(program(), &folder);
        if is_root() {
            // It refuses to run as root.
            command.args(["-u", "nobody"]);
        }
        let mut process = Process::spawn(command.arg(settings));
        let url = format!("postgres://app:secret@127.0.0.1:{port}/{name}");
        eventually("PgBouncer answers", async || {
            let ended = process.exit();
            assert!(ended.is_none(), "{ended:?}\n{}", process.stderr.so_far());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
        Self {
            url,
            _process: process,
            _folder: folder,
        }
    }
}

/// Where Debian puts it is on the path of administrators only.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join("pgbouncer"))
        .find(|program| program.is_file())
        .expect("PgBouncer is installed: `make e2e` sees to it")
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout == b"0\n"
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

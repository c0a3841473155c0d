//! An empty folder to run the program in.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use super::{alive, signal};

/// A folder of its own. A private Postgres that still runs in it ends with it.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("workos-sync-e2e-")
            .tempdir()
            .unwrap();
        // Where root runs the tests, Postgres is run by somebody else, who must be able to come in.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file; says what to call it on a command line.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path().join(name), content).unwrap();
        name.to_owned()
    }

    /// A file of the default data folder.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.path().join(".workos-sync").join(name)
    }

    /// The process id of the private Postgres, if it runs.
    pub(crate) fn postmaster(&self) -> Option<u32> {
        let file = std::fs::read_to_string(self.data("postgres/postmaster.pid")).ok()?;
        let pid = file.lines().next()?.trim().parse().ok()?;
        alive(pid).then_some(pid)
    }

    /// The address of the private Postgres while it is served.
    pub(crate) fn database_url(&self) -> String {
        std::fs::read_to_string(self.data("database_url")).unwrap()
    }

    /// A connection to the private Postgres.
    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.database_url()).await.unwrap()
    }

    /// The command lines of the processes that run with this folder in them.
    pub(crate) fn processes(&self) -> Vec<String> {
        let listing = std::process::Command::new("ps")
            .args(["-A", "-o", "stat=,args="])
            .output()
            .unwrap();
        let folder = self.path().to_str().unwrap();
        String::from_utf8_lossy(&listing.stdout)
            .lines()
            .filter(|line| line.contains(folder) && !line.starts_with('Z'))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(pid) = self.postmaster() {
            signal(pid, "QUIT");
            let give_up = std::time::Instant::now() + super::PATIENCE;
            while alive(pid) && std::time::Instant::now() < give_up {
                std::thread::sleep(super::POLL);
            }
        }
    }
}

//! A server that is thrown away: for tests, benchmarks and tools.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::{Error, When};
use crate::{Options, PrivatePostgres};

/// A server whose data goes with it: when it is dropped, or with this process, however that ends.
#[derive(Debug)]
pub struct Temporary {
    // Dropped in this order.
    server: PrivatePostgres,
    _data_dir: DataDir,
    _watchdog: Watchdog,
}

impl Temporary {
    /// Starts one in a new directory.
    ///
    /// # Errors
    ///
    /// What stands in the way of a server.
    pub async fn start(parent: &Path, options: &Options) -> Result<Self, Error> {
        let name = format!("private-postgres-{}", Uuid::new_v4().simple());
        Self::start_on(parent.join(name), options).await
    }

    /// Starts one on a data directory that may be there, and is thrown away too.
    ///
    /// # Errors
    ///
    /// What stands in the way of a server.
    pub async fn start_on(data_dir: PathBuf, options: &Options) -> Result<Self, Error> {
        let data_dir = DataDir(data_dir);
        let never = CancellationToken::new();
        let server = PrivatePostgres::start(&data_dir.0, options, &never).await?;
        let directories = [server.data_dir().to_owned(), server.pgdata().to_owned()];
        let watchdog = Watchdog::over(server.pgdata(), &directories)?;
        Ok(Self {
            server,
            _data_dir: data_dir,
            _watchdog: watchdog,
        })
    }
}

impl std::ops::Deref for Temporary {
    type Target = PrivatePostgres;

    fn deref(&self) -> &PrivatePostgres {
        &self.server
    }
}

impl std::ops::DerefMut for Temporary {
    fn deref_mut(&mut self) -> &mut PrivatePostgres {
        &mut self.server
    }
}

/// Removed when dropped.
#[derive(Debug)]
struct DataDir(PathBuf);

impl Drop for DataDir {
    fn drop(&mut self) {
        // A drop can tell nobody what it couldn't remove.
        if let Ok(elsewhere) = fs::read_link(self.0.join("postgres")) {
            let _left = fs::remove_dir_all(elsewhere);
        }
        let _left = fs::remove_dir_all(&self.0);
    }
}

/// A shell that waits until this process has ended, or this is dropped; then it ends the server of a cluster, if it still
/// runs, and removes directories. It waits on a pipe that only this process holds.
#[derive(Debug)]
pub struct Watchdog {
    _shell: Child,
}

impl Watchdog {
    /// Sets one on a cluster.
    ///
    /// # Errors
    ///
    /// If no shell can be run.
    pub fn over(pgdata: &Path, directories: &[PathBuf]) -> Result<Self, Error> {
        let script = r#"trap '' INT TERM HUP
            cat >/dev/null
            file=$1/postmaster.pid
            pid=$(head -n 1 "$file") && kill -QUIT "$pid"
            while [ -e "$file" ] && kill -0 "$pid"; do sleep 0.1; done
            shift
            rm -rf "$@""#;
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(pgdata)
            .args(directories)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Ok(Self {
            _shell: child.when("run", Path::new("sh"))?,
        })
    }
}

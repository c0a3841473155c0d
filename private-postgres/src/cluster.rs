//! The cluster: where it is, whose it is, how it is made.
//!
//! Postgres refuses to run as root. Started by root, the server runs as the owner of the cluster,
//! for a new one as `postgres`, else `nobody`. That user often can't enter the data directory
//! (`/root`, `mktemp -d`), and widening the mode of somebody's directories is not ours to do: then the
//! cluster is made elsewhere ([`Options::elsewhere`]) and `postgres` links to it.
//!
//! A cluster gets its name only when it is complete, and the link to it comes last. So half a
//! cluster in its place isn't ours, and a link that leads nowhere means that one was lost.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Options;
use crate::data_dir::{DataDir, if_there, make_directory, sync_directory, write_private};
use crate::error::{Error, When};
use crate::process::run;
use crate::user::{ServerUser, command, is_root};

/// How the name of a cluster that is being made goes on after the final one's.
const STAGING: &str = "initdb-";

/// Where the cluster is or will be, and whose.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) pgdata: PathBuf,
    pub(crate) user: Option<ServerUser>,
    /// The major version of Postgres whose files these are; `None` until the cluster is made.
    pub(crate) version: Option<u32>,
}

impl Cluster {
    /// Looks for the cluster of a data directory, or chooses the place for a new one.
    pub(crate) fn find(dir: &DataDir, elsewhere: &str) -> Result<Self, Error> {
        let link = dir.file("postgres");
        let found = if_there(link.canonicalize()).when("resolve", &link)?;
        if found.is_none()
            && let Ok(target) = fs::read_link(&link)
        {
            // An empty database instead would hide the loss.
            return Err(Error::unusable(
                link.display(),
                format!("links to {}, which is gone", target.display()),
                "put it back, for example from a backup, or remove the link to start with an empty database",
            ));
        }
        let pgdata = found.unwrap_or(link);
        let version = major_version(&pgdata)?;
        let cluster = Self {
            pgdata,
            user: None,
            version,
        };
        if is_root() {
            cluster.for_root(elsewhere)
        } else {
            Ok(cluster)
        }
    }

    /// Chooses whom the server runs as, and for a new cluster a place where that user can go.
    fn for_root(mut self, elsewhere: &str) -> Result<Self, Error> {
        let pgdata = &self.pgdata;
        if self.version.is_none() {
            self.user = ServerUser::for_root();
            if !self.user.is_some_and(|user| user.can_enter(parent(pgdata))) {
                self.pgdata = Path::new(elsewhere).join(Uuid::new_v4().to_string());
            }
            return Ok(self);
        }
        let owner = fs::metadata(pgdata).when("look into", pgdata)?;
        let (uid, gid) = (owner.uid(), owner.gid());
        let user = ServerUser { uid, gid };
        let problem = if uid == 0 {
            "belongs to root, as whom Postgres refuses to run"
        } else if !user.can_enter(parent(pgdata)) {
            "belongs to a user who can't enter its parent directory"
        } else {
            self.user = Some(user);
            return Ok(self);
        };
        Err(Error::unusable(
            pgdata.display(),
            problem,
            "make it, with all that is in it, belong to a user who isn't root and can go there, like `postgres`",
        ))
    }

    /// Makes the cluster: beside its place first, then renamed.
    pub(crate) async fn initialise(
        &self,
        dir: &DataDir,
        bin: &Path,
        password: &SecretString,
        options: &Options,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let pgdata = &self.pgdata;
        tracing::info!(pgdata = %pgdata.display(), "initialising a private postgres");
        let relocated = pgdata.starts_with(options.elsewhere);
        if relocated {
            make_directory(Path::new(options.elsewhere), 0o711)?;
        }
        let staging = staging_of(pgdata);
        let made = self.initdb(&staging, bin, password, options, stop).await;
        let placed = made.and_then(|made| fs::rename(&made, pgdata).when("rename", &made));
        remove_directory(&staging)?;
        placed?;
        sync_directory(parent(pgdata))?;
        if relocated {
            let link = dir.file("postgres");
            symlink(pgdata, &link).when("make", &link)?;
            sync_directory(&dir.path)?;
        }
        Ok(())
    }

    /// Returns the new cluster, a directory in `staging`.
    async fn initdb(
        &self,
        staging: &Path,
        bin: &Path,
        password: &SecretString,
        options: &Options,
        stop: &CancellationToken,
    ) -> Result<PathBuf, Error> {
        make_directory(staging, 0o700)?;
        // A file, because arguments are everybody's to read; it goes with the directory.
        let pwfile = staging.join("pwfile");
        write_private(&pwfile, password.expose_secret())?;
        if let Some(ServerUser { uid, gid }) = self.user {
            for path in [&pwfile, staging] {
                chown(path, Some(uid), Some(gid)).when("hand over", path)?;
            }
        }
        let made = staging.join("data");
        let mut command = command(&bin.join("initdb"), self.user);
        command.arg("--pgdata").arg(&made);
        command.arg("--pwfile").arg(&pwfile);
        command.args(["--username", options.name]);
        // The same everywhere, whatever the operating system's locales.
        command.args(["--encoding", "UTF8", "--locale", "C"]);
        // The socket is off; the method is for whoever turns it on.
        command.args(["--auth", "scram-sha-256"]);
        if !options.durable {
            command.arg("--no-sync");
        }
        command.args(options.initdb);
        run("initdb", command, stop).await?;
        Ok(made)
    }
}

/// `None` if there is no cluster; anything else in its place is not ours to remove.
fn major_version(pgdata: &Path) -> Result<Option<u32>, Error> {
    let path = pgdata.join("PG_VERSION");
    let version = if_there(fs::read_to_string(&path)).when("read", &path)?;
    if version.is_none() && if_there(fs::remove_dir(pgdata)).is_ok() {
        return Ok(None);
    }
    match version.and_then(|version| version.trim().parse().ok()) {
        Some(major) => Ok(Some(major)),
        None => Err(Error::unusable(
            pgdata.display(),
            "is neither empty nor a Postgres cluster",
            "move it away, or choose another data directory",
        )),
    }
}

/// Another each time: what a killed start has left may not have noticed yet, and still write.
fn staging_of(pgdata: &Path) -> PathBuf {
    pgdata.with_extension(format!("{STAGING}{}", Uuid::new_v4().simple()))
}

/// Removes what killed starts have left of clusters that they were making. Ours to remove: we hold
/// the lock.
pub(crate) fn clear_away(dir: &DataDir) -> Result<(), Error> {
    let prefix = format!("postgres.{STAGING}");
    for entry in fs::read_dir(&dir.path).when("list", &dir.path)?.flatten() {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_bytes())
            && let Err(error) = remove_directory(&entry.path())
        {
            // Its writer may still be ending; the next start tries again.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "half a cluster stays for now"
            );
        }
    }
    Ok(())
}

fn parent(pgdata: &Path) -> &Path {
    pgdata.parent().unwrap_or(pgdata)
}

fn remove_directory(dir: &Path) -> Result<(), Error> {
    if_there(fs::remove_dir_all(dir)).when("remove", dir)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cluster_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let pgdata = dir.path().join("postgres");
        assert_eq!(major_version(&pgdata).expect("nothing there"), None);

        fs::create_dir(&pgdata).expect("a directory");
        let file = pgdata.join("thesis.txt");
        fs::write(&file, "").expect("a file");
        let refused = major_version(&pgdata).expect_err("not a cluster");
        assert!(refused.to_string().contains("neither empty"), "{refused}");
        assert!(file.exists());

        fs::remove_file(&file).expect("the file");
        assert_eq!(major_version(&pgdata).expect("an empty directory"), None);
    }
}

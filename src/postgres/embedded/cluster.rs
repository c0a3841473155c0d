//! The cluster: where it is, whose it is, how it is made.
//!
//! Postgres refuses to run as root. Started by root, the server runs as the owner of the cluster,
//! for a new one as `postgres`, else `nobody`. That user often can't enter the data folder
//! (`/root`, `mktemp -d`), and widening the mode of somebody's folders is not ours to do: then the
//! cluster is made under `/var/lib/workos-sync` and `postgres` links to it.
//!
//! A cluster gets its name only when it is complete, and the link to it comes last. So half a
//! cluster in its place isn't ours, and a link that leads nowhere means that one was lost.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::binaries::{command, run};
use super::error::{EmbeddedError, When};
use super::folder::{Folder, if_there, make_folder, sync_folder, write_private};
use super::server::NAME;

/// Where a cluster goes whose user can't enter the data folder.
pub(super) const RELOCATED: &str = "/var/lib/workos-sync";

/// Whom the server runs as, if not as ourselves.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl ServerUser {
    fn named(name: &str) -> Option<Self> {
        let (uid, gid) = (id("-u", Some(name))?, id("-g", Some(name))?);
        Some(Self { uid, gid })
    }

    /// Whether the user can pass through the folder, all its parents included. Asked of the kernel,
    /// because modes, ACLs and mounts together decide it.
    fn can_enter(self, dir: &Path) -> bool {
        let mut shell = command(Path::new("/bin/sh"), Some(self));
        let cd = shell.args(["-c", r#"cd -- "$1""#, "sh"]).arg(dir).output();
        cd.is_ok_and(|cd| cd.status.success())
    }
}

pub(super) fn is_root() -> bool {
    id("-u", None) == Some(0)
}

/// The standard library knows neither users nor `geteuid`, and a crate for it is too much.
fn id(what: &str, name: Option<&str>) -> Option<u32> {
    let mut id = command(Path::new("id"), None);
    let answer = id.arg(what).args(name).output().ok()?;
    str::from_utf8(&answer.stdout).ok()?.trim().parse().ok()
}

/// Where the cluster is or will be, and whose.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) pgdata: PathBuf,
    pub(super) user: Option<ServerUser>,
    /// The major version of Postgres whose files these are; `None` until the cluster is made.
    pub(super) version: Option<u32>,
}

impl Cluster {
    /// Looks for the cluster of a data folder, or chooses the place for a new one.
    pub(super) fn find(folder: &Folder) -> Result<Self, EmbeddedError> {
        let link = folder.file("postgres");
        let found = if_there(link.canonicalize()).when("resolve", &link)?;
        if found.is_none()
            && let Ok(target) = fs::read_link(&link)
        {
            // An empty database instead would hide the loss.
            return Err(EmbeddedError::unusable(
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
            cluster.for_root()
        } else {
            Ok(cluster)
        }
    }

    /// Chooses whom the server runs as, and for a new cluster a place where that user can go.
    fn for_root(mut self) -> Result<Self, EmbeddedError> {
        let pgdata = &self.pgdata;
        if self.version.is_none() {
            self.user = ServerUser::named("postgres").or_else(|| ServerUser::named("nobody"));
            if !self.user.is_some_and(|user| user.can_enter(parent(pgdata))) {
                self.pgdata = Path::new(RELOCATED).join(Uuid::new_v4().to_string());
            }
            return Ok(self);
        }
        let owner = fs::metadata(pgdata).when("look into", pgdata)?;
        let (uid, gid) = (owner.uid(), owner.gid());
        let user = ServerUser { uid, gid };
        let problem = if uid == 0 {
            "belongs to root, as whom Postgres refuses to run"
        } else if !user.can_enter(parent(pgdata)) {
            "belongs to a user who can't enter its parent folder"
        } else {
            self.user = Some(user);
            return Ok(self);
        };
        Err(EmbeddedError::unusable(
            pgdata.display(),
            problem,
            "make it, with all that is in it, belong to a user who isn't root and can go there, like `postgres`",
        ))
    }

    /// Makes the cluster: beside its place first, then renamed.
    pub(super) async fn initialise(
        &self,
        folder: &Folder,
        bin: &Path,
        password: &SecretString,
        durable: bool,
    ) -> Result<(), EmbeddedError> {
        let pgdata = &self.pgdata;
        tracing::info!(pgdata = %pgdata.display(), "initialising a private postgres");
        let relocated = pgdata.starts_with(RELOCATED);
        if relocated {
            make_folder(Path::new(RELOCATED), 0o711)?;
        }
        let staging = pgdata.with_extension("initdb");
        // Of a start that was killed. Ours to remove: we hold the lock.
        remove_folder(&staging)?;
        let made = self.initdb(&staging, bin, password, durable).await;
        let placed = made.and_then(|made| fs::rename(&made, pgdata).when("rename", &made));
        remove_folder(&staging)?;
        placed?;
        sync_folder(parent(pgdata))?;
        if relocated {
            let link = folder.file("postgres");
            symlink(pgdata, &link).when("make", &link)?;
            sync_folder(&folder.dir)?;
        }
        Ok(())
    }

    /// Returns the new cluster, a folder in `staging`.
    async fn initdb(
        &self,
        staging: &Path,
        bin: &Path,
        password: &SecretString,
        durable: bool,
    ) -> Result<PathBuf, EmbeddedError> {
        make_folder(staging, 0o700)?;
        // A file, because arguments are everybody's to read; it goes with the folder.
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
        command.args(["--username", NAME, "--data-checksums"]);
        // The same everywhere, whatever the operating system's locales.
        command.args(["--encoding", "UTF8", "--locale", "C"]);
        // The socket is off; the method is for whoever turns it on.
        command.args(["--auth", "scram-sha-256"]);
        if !durable {
            command.arg("--no-sync");
        }
        run("initdb", command).await?;
        Ok(made)
    }
}

/// `None` if there is no cluster; anything else in its place is not ours to remove.
fn major_version(pgdata: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = pgdata.join("PG_VERSION");
    let version = if_there(fs::read_to_string(&path)).when("read", &path)?;
    if version.is_none() && if_there(fs::remove_dir(pgdata)).is_ok() {
        return Ok(None);
    }
    match version.and_then(|version| version.trim().parse().ok()) {
        Some(major) => Ok(Some(major)),
        None => Err(EmbeddedError::unusable(
            pgdata.display(),
            "is neither empty nor a Postgres cluster",
            "move it away, or choose another data folder",
        )),
    }
}

fn parent(pgdata: &Path) -> &Path {
    pgdata.parent().unwrap_or(pgdata)
}

fn remove_folder(dir: &Path) -> Result<(), EmbeddedError> {
    if_there(fs::remove_dir_all(dir)).when("remove", dir)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cluster_is_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let pgdata = dir.path().join("postgres");
        assert_eq!(major_version(&pgdata).expect("nothing there"), None);

        fs::create_dir(&pgdata).expect("a folder");
        let file = pgdata.join("thesis.txt");
        fs::write(&file, "").expect("a file");
        let refused = major_version(&pgdata).expect_err("not a cluster");
        assert!(refused.to_string().contains("neither empty"), "{refused}");
        assert!(file.exists());

        fs::remove_file(&file).expect("the file");
        assert_eq!(major_version(&pgdata).expect("an empty folder"), None);
    }
}

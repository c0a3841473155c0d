//! The data folder: its lock and its secrets.
//!
//! The kernel drops the lock with the process that held it, however that ended, so a lock that is
//! held means a living owner, and nobody has to judge whether a process id is stale.
//!
//! A secret is complete on disk before it has its name: a reader sees the old text or the new, and
//! a crash leaves one of them.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::error::{EmbeddedError, When};

const PASSWORD: &str = "password";
const WEBHOOK_SECRET: &str = "webhook_secret";

/// The webhook secret of a data folder; `None` if none was made there. Makes nothing.
///
/// # Errors
///
/// If the file can't be read, or is empty.
pub fn webhook_secret(data_dir: &Path) -> Result<Option<SecretString>, EmbeddedError> {
    match Folder::find(data_dir)? {
        Some(folder) => folder.webhook_secret(),
        None => Ok(None),
    }
}

/// The webhook secret of a data folder, made up at the first call: `whsec_` and 244 random bits in
/// hexadecimal. Only for `serve`: a secret that another command made up would sign what no server
/// accepts.
///
/// Needs no lock: of two that make one up at once, both get the one that was there first.
///
/// # Errors
///
/// If the file can't be read or made, or is empty.
pub fn make_webhook_secret(data_dir: &Path) -> Result<SecretString, EmbeddedError> {
    let folder = Folder::open(data_dir)?;
    if let Some(secret) = folder.webhook_secret()? {
        return Ok(secret);
    }
    let made = SecretString::from(format!("whsec_{}", random_hex()));
    let staged = folder.stage(WEBHOOK_SECRET, made.expose_secret())?;
    // A link, unlike a rename, replaces nothing.
    let linked = fs::hard_link(&staged, folder.file(WEBHOOK_SECRET));
    fs::remove_file(&staged).when("remove", &staged)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        linked => linked.when("write", &folder.file(WEBHOOK_SECRET))?,
    }
    sync_folder(&folder.dir)?;
    Ok(folder.webhook_secret()?.unwrap_or(made))
}

/// The data folder, absolute and without links.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) dir: PathBuf,
}

impl Folder {
    /// Makes the folder if it isn't there.
    pub(super) fn open(dir: &Path) -> Result<Self, EmbeddedError> {
        if !dir.exists() {
            // Others may pass, the server's user among them, and list nothing; each file in it is
            // closed by its own mode.
            make_folder(dir, 0o711)?;
            // It holds secrets and often lies in a working copy.
            let ignore = dir.join(".gitignore");
            fs::write(&ignore, "*\n").when("write", &ignore)?;
        }
        let dir = dir.canonicalize().when("resolve", dir)?;
        Ok(Self { dir })
    }

    /// `None` if it isn't there.
    pub(super) fn find(dir: &Path) -> Result<Option<Self>, EmbeddedError> {
        let found = if_there(dir.canonicalize()).when("resolve", dir)?;
        Ok(found.map(|dir| Self { dir }))
    }

    fn webhook_secret(&self) -> Result<Option<SecretString>, EmbeddedError> {
        match self.read(WEBHOOK_SECRET)? {
            // An empty key would accept anybody's signature.
            Some(secret) if secret.expose_secret().is_empty() => Err(EmbeddedError::unusable(
                self.file(WEBHOOK_SECRET).display(),
                "the webhook secret is empty",
                "remove the file to have a new secret made, or set WORKOS_WEBHOOK_SECRET",
            )),
            secret => Ok(secret),
        }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn lock(&self) -> Result<FolderLock, EmbeddedError> {
        let path = self.file("lock");
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(&path).when("open", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(EmbeddedError::InUse {
                    dir: self.dir.clone(),
                    pid: io::read_to_string(file).when("read", &path)?.trim().into(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(error).when("lock", &path),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .when("write", &path)?;
        Ok(FolderLock(file))
    }

    /// The password of the database's superuser. On disk before the cluster that needs it; one that
    /// an interrupted start left is as good as a new one.
    pub(super) fn password(&self, cluster_is_new: bool) -> Result<SecretString, EmbeddedError> {
        match self.read(PASSWORD)? {
            Some(password) => Ok(password),
            None if cluster_is_new => {
                let password = SecretString::from(random_hex());
                self.write(PASSWORD, &password)?;
                Ok(password)
            }
            None => Err(EmbeddedError::unusable(
                self.file(PASSWORD).display(),
                "the password of the database's superuser is gone",
                "restore the file from a backup",
            )),
        }
    }

    /// A trimmed file, `None` if it isn't there.
    pub(super) fn read(&self, name: &str) -> Result<Option<SecretString>, EmbeddedError> {
        let path = self.file(name);
        let text = if_there(fs::read_to_string(&path)).when("read", &path)?;
        Ok(text.map(|text| text.trim().into()))
    }

    pub(super) fn write(&self, name: &str, text: &SecretString) -> Result<(), EmbeddedError> {
        let staged = self.stage(name, text.expose_secret())?;
        fs::rename(&staged, self.file(name)).when("rename", &staged)?;
        sync_folder(&self.dir)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), EmbeddedError> {
        let path = self.file(name);
        if_there(fs::remove_file(&path)).when("remove", &path)?;
        Ok(())
    }

    /// A complete file beside the one that is meant, for the caller to put in its place.
    fn stage(&self, name: &str, text: &str) -> Result<PathBuf, EmbeddedError> {
        let staged = self.file(&format!("{name}.{}", Uuid::new_v4().simple()));
        write_private(&staged, text)?;
        Ok(staged)
    }
}

/// Held as long as this lives.
#[derive(Debug)]
pub(super) struct FolderLock(File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing isn't enough: a child between fork and exec has a copy of the descriptor and with
        // it the lock.
        let _ = self.0.unlock();
    }
}

/// `None` instead of the error that there is no such file.
pub(super) fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// A folder of this mode, whatever the umask.
pub(super) fn make_folder(dir: &Path, mode: u32) -> Result<(), EmbeddedError> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::set_permissions(dir, Permissions::from_mode(mode)))
        .when("make", dir)
}

/// A new file that only its owner can read.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), EmbeddedError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| {
        writeln!(file, "{text}")?;
        file.sync_all()
    })
    .when("write", path)
}

/// Makes the names in a folder survive a power cut.
pub(super) fn sync_folder(dir: &Path) -> Result<(), EmbeddedError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .when("sync", dir)
}

/// 244 bits from the operating system (a version 4 UUID has 122), 64 characters.
fn random_hex() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::super::tests::mode;
    use super::*;

    #[test]
    fn the_webhook_secret_stays_the_same_and_is_private() {
        let parent = tempfile::tempdir().expect("a folder");
        let dir = parent.path().join("made/when/needed");
        let first = make_webhook_secret(&dir).expect("a secret");
        let secret = first.expose_secret();
        let random = secret.strip_prefix("whsec_").expect("the prefix");
        assert!(random.len() == 64 && random.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(mode(&dir.join(WEBHOOK_SECRET)), 0o600);
        assert_eq!(mode(&dir), 0o711);
        let ignored = fs::read_to_string(dir.join(".gitignore")).expect("a file");
        assert_eq!(ignored, "*\n");
        let again = make_webhook_secret(&dir).expect("the secret");
        assert_eq!(again.expose_secret(), secret);
        assert!(!format!("{first:?}").contains(random));
        let other = make_webhook_secret(parent.path()).expect("a secret");
        assert_ne!(other.expose_secret(), secret);

        fs::write(dir.join(WEBHOOK_SECRET), "\n").expect("a file");
        let refused = make_webhook_secret(&dir).expect_err("an empty key");
        assert!(refused.to_string().contains("is empty"), "{refused}");
    }

    /// Only `serve` makes a secret, or a place for one.
    #[test]
    fn a_webhook_secret_that_is_only_read_is_not_made() {
        let parent = tempfile::tempdir().expect("a folder");
        let dir = parent.path().join("data");
        assert!(webhook_secret(&dir).expect("no secret").is_none());
        assert!(!dir.exists());
        fs::create_dir(&dir).expect("a folder");
        assert!(webhook_secret(&dir).expect("no secret").is_none());
        assert_eq!(fs::read_dir(&dir).expect("the folder").count(), 0);

        let made = make_webhook_secret(&dir).expect("a secret");
        let read = webhook_secret(&dir).expect("it can be read");
        let read = read.expect("it is there");
        assert_eq!(read.expose_secret(), made.expose_secret());
    }

    #[test]
    fn two_that_make_up_a_secret_at_once_get_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let barrier = Barrier::new(4);
        let secrets: Vec<SecretString> = thread::scope(|scope| {
            let make = || {
                barrier.wait();
                make_webhook_secret(dir.path()).expect("a secret")
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        let first = secrets[0].expose_secret();
        assert!(secrets.iter().all(|secret| secret.expose_secret() == first));
        let files = fs::read_dir(dir.path()).expect("the folder").count();
        assert_eq!(files, 1, "only the secret stays");
    }
}

//! The data directory: whose it is, its lock and its files.
//!
//! Another user who can write to it can choose its secrets, the files that are overwritten, and the
//! server that is run. So a directory or a file is refused if it belongs to another user, if others
//! can write to it, or if it is a link. A file is checked when it is open, and changed only then.
//!
//! The kernel drops the lock with the process that held it, however that ended, so a lock that is
//! held means a living owner, and nobody has to judge whether a process id is stale.
//!
//! A secret is complete on disk before it has its name: a reader sees the old text or the new, and
//! a crash leaves one of them.

use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::error::{Error, When};
use crate::user::{ServerUser, is_root, our_uid};

pub(crate) const LOCK: &str = "lock";
/// The server's log.
pub(crate) const LOG: &str = "postgres.log";
const PASSWORD: &str = "password";
const PORT: &str = "port";

/// A secret of the program's own, kept in its data directory; `None` if none was made there. Makes nothing.
///
/// # Errors
///
/// If directory or file aren't ours alone, the file can't be read, or is empty.
pub fn secret(data_dir: &Path, name: &str) -> Result<Option<SecretString>, Error> {
    match DataDir::find(data_dir)? {
        Some(dir) => dir.secret(name),
        None => Ok(None),
    }
}

/// A secret of the program's own, made up at the first call and kept in its data directory: a prefix and 244
/// random bits in hexadecimal. Makes the directory if it isn't there.
///
/// Needs no lock: of two that make one up at once, both get the one that was there first.
///
/// # Errors
///
/// If directory or file aren't ours alone, the file can't be read or made, or is empty.
pub fn make_secret(data_dir: &Path, name: &str, prefix: &str) -> Result<SecretString, Error> {
    let dir = DataDir::open(data_dir)?;
    if let Some(secret) = dir.secret(name)? {
        return Ok(secret);
    }
    let made = SecretString::from(format!("{prefix}{}", random_hex()));
    let staged = dir.stage(name, made.expose_secret())?;
    // A link, unlike a rename, replaces nothing.
    let linked = fs::hard_link(&staged, dir.file(name));
    fs::remove_file(&staged).when("remove", &staged)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        linked => linked.when("write", &dir.file(name))?,
    }
    sync_directory(&dir.path)?;
    Ok(dir.secret(name)?.unwrap_or(made))
}

/// The data directory, absolute and without links. Ours alone, when it was opened.
#[derive(Debug, Clone)]
pub(crate) struct DataDir {
    pub(crate) path: PathBuf,
}

impl DataDir {
    /// Makes the directory if it isn't there.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        if let Some(found) = Self::find(dir)? {
            return Ok(found);
        }
        make(dir)?;
        Ok(Self {
            path: dir.canonicalize().when("resolve", dir)?,
        })
    }

    /// `None` if it isn't there.
    pub(crate) fn find(dir: &Path) -> Result<Option<Self>, Error> {
        // Without a slash at its end, which would have a link followed.
        let dir: PathBuf = dir.components().collect();
        let Some(found) = if_there(fs::symlink_metadata(&dir)).when("look into", &dir)? else {
            return Ok(None);
        };
        check(&dir, &found, Kind::Directory)?;
        Ok(Some(Self {
            path: dir.canonicalize().when("resolve", &dir)?,
        }))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file, if it is ours alone.
    pub(crate) fn open_file(&self, name: &str, options: &mut OpenOptions) -> Result<File, Error> {
        let path = self.file(name);
        // Opening a pipe would otherwise wait until another process writes to it.
        let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.custom_flags(careful.bits().cast_signed());
        let file = match options.open(&path) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => {
                return Err(is_a_link(&path, Kind::File));
            }
            opened => opened.when("open", &path)?,
        };
        check(
            &path,
            &file.metadata().when("look into", &path)?,
            Kind::File,
        )?;
        Ok(file)
    }

    pub(crate) fn lock(&self) -> Result<DirLock, Error> {
        let path = self.file(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = self.open_file(LOCK, &mut options)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::InUse {
                    dir: self.path.clone(),
                    pid: io::read_to_string(file).when("read", &path)?.trim().into(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(error).when("lock", &path),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .when("write", &path)?;
        Ok(DirLock(file))
    }

    /// The password of the database's superuser. On disk before the cluster that needs it; one that
    /// an interrupted start left is as good as a new one.
    pub(crate) fn password(&self, cluster_is_new: bool) -> Result<SecretString, Error> {
        match self.read(PASSWORD)? {
            Some(password) => Ok(password),
            None if cluster_is_new => {
                let password = SecretString::from(random_hex());
                self.write(PASSWORD, password.expose_secret())?;
                Ok(password)
            }
            None => Err(Error::unusable(
                self.file(PASSWORD).display(),
                "the password of the database's superuser is gone",
                "restore the file from a backup",
            )),
        }
    }

    /// The port that the server had; `None` if it had none yet, or the file makes no sense.
    pub(crate) fn port(&self) -> Result<Option<u16>, Error> {
        let port = self.read(PORT)?;
        Ok(port.and_then(|port| port.expose_secret().parse().ok()))
    }

    pub(crate) fn keep_port(&self, port: u16) -> Result<(), Error> {
        self.write(PORT, &port.to_string())
    }

    fn secret(&self, name: &str) -> Result<Option<SecretString>, Error> {
        match self.read(name)? {
            // An empty key would accept anybody's signature.
            Some(secret) if secret.expose_secret().is_empty() => Err(Error::unusable(
                self.file(name).display(),
                "the secret is empty",
                "remove the file to have a new secret made",
            )),
            secret => Ok(secret),
        }
    }

    /// A trimmed file, `None` if it isn't there.
    pub(crate) fn read(&self, name: &str) -> Result<Option<SecretString>, Error> {
        let file = match self.open_file(name, OpenOptions::new().read(true)) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            opened => opened?,
        };
        let text = io::read_to_string(file).when("read", &self.file(name))?;
        Ok(Some(text.trim().into()))
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let staged = self.stage(name, text)?;
        fs::rename(&staged, self.file(name)).when("rename", &staged)?;
        sync_directory(&self.path)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.file(name);
        if_there(fs::remove_file(&path)).when("remove", &path)?;
        Ok(())
    }

    /// A complete file beside the one that is meant, for the caller to put in its place.
    fn stage(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let staged = self.file(&format!("{name}.{}", Uuid::new_v4().simple()));
        write_private(&staged, text)?;
        Ok(staged)
    }
}

/// Makes the directory. If another process has just made it, it is checked as any other.
fn make(dir: &Path) -> Result<(), Error> {
    // Others may pass, the server's user among them, and list nothing; each file in it is closed by
    // its own mode.
    const MODE: u32 = 0o711;
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).when("make", parent)?;
    }
    match DirBuilder::new().mode(MODE).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return DataDir::find(dir).map(drop);
        }
        made => made.when("make", dir)?,
    }
    // Whatever the umask.
    fs::set_permissions(dir, Permissions::from_mode(MODE)).when("make", dir)?;
    // It holds secrets and often lies in a working copy.
    write_private(&dir.join(".gitignore"), "*")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "directory",
            Self::File => "file",
        })
    }
}

/// Refuses what another user may have made, or can change.
fn check(path: &Path, found: &Metadata, kind: Kind) -> Result<(), Error> {
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    if found.is_symlink() {
        return Err(is_a_link(path, kind));
    }
    let as_it_should_be = match kind {
        Kind::Directory => found.is_dir(),
        Kind::File => found.is_file(),
    };
    let (problem, cure) = if !as_it_should_be {
        (
            format!("is no {kind}"),
            "remove it, or set {data_dir} to another directory".to_owned(),
        )
    } else if !is_ours(owner) {
        (
            format!(
                "belongs to user {owner}, and this process runs as user {}",
                our_uid()
            ),
            "run it as that user, or set {data_dir} to a directory of your own".to_owned(),
        )
    } else if mode & 0o022 != 0 {
        (
            format!("can be written to by others (mode {mode:04o})"),
            format!(
                "if no other user has changed it, run `chmod go-w {}`; otherwise set {{data_dir}} to a new directory",
                path.display()
            ),
        )
    } else {
        return Ok(());
    };
    Err(Error::unusable(path.display(), problem, cure))
}

fn is_a_link(path: &Path, kind: Kind) -> Error {
    let cure = match kind {
        Kind::Directory => "set {data_dir} to the directory that it leads to",
        Kind::File => "remove it, or set {data_dir} to another directory",
    };
    Error::unusable(path.display(), "is a symbolic link", cure)
}

/// As root we share the directory with the user that the server runs as.
fn is_ours(owner: u32) -> bool {
    let runs_as = || ServerUser::for_root().map(|user| user.uid);
    owner == our_uid() || (is_root() && runs_as() == Some(owner))
}

/// Held as long as this lives.
#[derive(Debug)]
pub(crate) struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing isn't enough: a child between fork and exec has a copy of the descriptor and with
        // it the lock.
        let _ = self.0.unlock();
    }
}

/// `None` instead of the error that there is no such file.
pub(crate) fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// A directory of this mode, whatever the umask.
pub(crate) fn make_directory(dir: &Path, mode: u32) -> Result<(), Error> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::set_permissions(dir, Permissions::from_mode(mode)))
        .when("make", dir)
}

/// A new file that only its owner can read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| {
        writeln!(file, "{text}")?;
        file.sync_all()
    })
    .when("write", path)
}

/// Makes the names in a directory survive a power cut.
pub(crate) fn sync_directory(dir: &Path) -> Result<(), Error> {
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
    use std::os::unix::fs::{chown, symlink};
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::tests::{NAMES, mode};

    const SECRET: &str = "secret";

    fn make(dir: &Path) -> Result<SecretString, Error> {
        make_secret(dir, SECRET, "sk_")
    }

    #[test]
    fn a_secret_stays_the_same_and_is_private() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = parent.path().join("made/when/needed");
        let first = make(&dir).expect("a secret");
        let secret = first.expose_secret();
        let random = secret.strip_prefix("sk_").expect("the prefix");
        assert!(random.len() == 64 && random.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(mode(&dir.join(SECRET)), 0o600);
        assert_eq!(mode(&dir), 0o711);
        let ignored = fs::read_to_string(dir.join(".gitignore")).expect("a file");
        assert_eq!(ignored, "*\n");
        let again = make(&dir).expect("the secret");
        assert_eq!(again.expose_secret(), secret);
        assert!(!format!("{first:?}").contains(random));
        let other = make(parent.path()).expect("a secret");
        assert_ne!(other.expose_secret(), secret);

        fs::write(dir.join(SECRET), "\n").expect("a file");
        let refused = make(&dir).expect_err("an empty key");
        assert!(refused.to_string().contains("is empty"), "{refused}");
    }

    #[test]
    fn a_secret_that_is_only_read_is_not_made() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = parent.path().join("data");
        assert!(secret(&dir, SECRET).expect("no secret").is_none());
        assert!(!dir.exists());
        make_directory(&dir, 0o700).expect("a directory");
        assert!(secret(&dir, SECRET).expect("no secret").is_none());
        assert_eq!(fs::read_dir(&dir).expect("the directory").count(), 0);

        let made = make(&dir).expect("a secret");
        let read = secret(&dir, SECRET).expect("it can be read");
        let read = read.expect("it is there");
        assert_eq!(read.expose_secret(), made.expose_secret());
    }

    #[track_caller]
    fn assert_refused(dir: &Path, subject: &Path, problem: &str, cure: &str) {
        for refused in [
            make(dir).expect_err("not ours alone"),
            secret(dir, SECRET).expect_err("not ours alone"),
        ] {
            let told = refused.to_string();
            let expected = format!("{}: {problem}", subject.display());
            assert!(told.starts_with(&expected), "{told}\n{expected}");
            let hint = refused.hint(&NAMES).expect("a hint");
            assert!(hint.contains(cure), "{hint}");
        }
    }

    /// What others can write to, or a link, is refused; so is what belongs to somebody
    /// else, which only root can test.
    #[test]
    fn what_is_not_ours_alone_is_refused() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = parent.path().join("data");
        make(&dir).expect("a secret");
        let secret = dir.join(SECRET);
        for (path, right) in [(&dir, 0o711), (&secret, 0o600)] {
            for wrong in [right | 0o020, right | 0o002] {
                fs::set_permissions(path, Permissions::from_mode(wrong)).expect("a mode");
                let problem = format!("can be written to by others (mode {wrong:04o})");
                assert_refused(&dir, path, &problem, "chmod go-w");
            }
            fs::set_permissions(path, Permissions::from_mode(right)).expect("a mode");
            if is_root() {
                // Neither root nor whom root runs a server as.
                chown(path, Some(1), None).expect("root may");
                let problem = "belongs to user 1, and this process runs as user 0";
                assert_refused(&dir, path, problem, "set DIRECTORY to");
                chown(path, Some(0), None).expect("root may");
            }
        }
        make(&dir).expect("the secret, again");

        let link = parent.path().join("link");
        symlink(&dir, &link).expect("a link");
        for named in ["link", "link/", "link/.", "./link"] {
            assert_refused(
                &parent.path().join(named),
                &link,
                "is a symbolic link",
                "leads to",
            );
        }
        let moved = parent.path().join("moved");
        fs::rename(&secret, &moved).expect("a move");
        symlink(&moved, &secret).expect("a link");
        assert_refused(&dir, &secret, "is a symbolic link", "remove it");
        fs::remove_file(&secret).expect("the link");
        fs::create_dir(&secret).expect("a directory");
        assert_refused(&dir, &secret, "is no file", "remove it");
        assert_refused(&moved, &moved, "is no directory", "another directory");
    }

    /// Nothing is truncated, or written to, before it was looked at.
    #[test]
    fn a_link_in_place_of_the_lock_is_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let victim = dir.path().join("victim");
        fs::write(&victim, "important").expect("a file");
        symlink(&victim, dir.path().join(LOCK)).expect("a link");
        let refused = DataDir::open(dir.path()).expect("ours").lock();
        assert!(
            matches!(refused, Err(Error::Unusable { .. })),
            "{refused:?}"
        );
        assert_eq!(fs::read_to_string(&victim).expect("the file"), "important");
    }

    #[test]
    fn two_that_make_up_a_secret_at_once_get_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let barrier = Barrier::new(4);
        let secrets: Vec<SecretString> = thread::scope(|scope| {
            let made = || {
                barrier.wait();
                make(dir.path()).expect("a secret")
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(made)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        let first = secrets[0].expose_secret();
        assert!(secrets.iter().all(|secret| secret.expose_secret() == first));
        let files = fs::read_dir(dir.path()).expect("the directory").count();
        assert_eq!(files, 1, "only the secret stays");
    }
}

//! Why the private server can't be used, and the cure.
//!
//! Variants are what a program may want to tell apart. The many obstacles that only a human can
//! clear share one, [`Error::Unusable`]: where one is found, its cure is known too.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the private server can't be used. [`Error::hint`] has the cure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lock of the data directory is held.
    #[error("another process ({pid}) serves from {}", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The owner, as the lock file names it.
        pid: String,
    },
    /// Somebody who makes no database found none.
    #[error("there is no private database in {}", dir.display())]
    NotMade {
        /// The data directory.
        dir: PathBuf,
    },
    /// The start was asked to end.
    #[error("the start of the private postgres was interrupted")]
    Interrupted,
    /// [`Options::bin_dir`](crate::Options::bin_dir) lacks the server's programs.
    #[error("{problem} in {}", dir.display())]
    BinDir {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Something isn't what a server needs.
    #[error("{subject}: {problem}")]
    Unusable {
        /// A file, a directory or a setting.
        subject: String,
        /// What is wrong with it.
        problem: String,
        /// The cure. `{data_dir}` and the like stand for [`Names`].
        cure: String,
    },
    /// A program of Postgres ended with an error.
    #[error("{what}: {output}")]
    Program {
        /// The program, or what it was to do.
        what: &'static str,
        /// What it said.
        output: String,
    },
    /// The server doesn't do in time what it was told.
    #[error("{what} after {} s; {} has the reason", after.as_secs(), log.display())]
    Slow {
        /// What it doesn't do.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
        /// What the server writes to.
        log: PathBuf,
    },
    /// The server was started again and again, and ended soon each time.
    #[error("the private postgres keeps ending by itself; {} has the reason", log.display())]
    Restless {
        /// What the server writes to.
        log: PathBuf,
    },
    /// The server runs, but refuses a connection or a statement.
    #[error("the private postgres can't be used")]
    Database(#[from] sqlx::Error),
    /// The operating system refuses a file, a directory or a program.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// A verb.
        doing: &'static str,
        /// The file, directory or program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a program calls the ways out of an error, for [`Error::hint`].
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The setting with the data directory.
    pub data_dir: &'static str,
    /// The setting with the directory of the server binaries.
    pub bin_dir: &'static str,
    /// What to do instead of having a private server, "set … to a database of yours".
    pub instead: &'static str,
}

impl Error {
    /// What to do about it, for the line `hint: …` after the message.
    #[must_use]
    pub fn hint(&self, names: &Names) -> Option<String> {
        let cure = match self {
            Self::InUse { dir, .. } => &format!(
                "stop it, or choose another data directory; if it doesn't answer, {}/postgres.log has the reason",
                dir.display()
            ),
            Self::BinDir { .. } => {
                "set {bin_dir} to a directory like /usr/lib/postgresql/17/bin, or unset it to search PATH"
            }
            Self::Unusable { cure, .. } => cure,
            // As in an image, and under systemd.
            Self::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                "{instead}, or {data_dir} to a directory that this user may write to"
            }
            Self::NotMade { .. }
            | Self::Interrupted
            | Self::Program { .. }
            | Self::Slow { .. }
            | Self::Restless { .. }
            | Self::Database(_)
            | Self::Io { .. } => return None,
        };
        let cure = cure.replace("{data_dir}", names.data_dir);
        let cure = cure.replace("{bin_dir}", names.bin_dir);
        Some(cure.replace("{instead}", names.instead))
    }

    pub(crate) fn unusable(
        subject: impl Display,
        problem: impl Display,
        cure: impl Display,
    ) -> Self {
        Self::Unusable {
            subject: subject.to_string(),
            problem: problem.to_string(),
            cure: cure.to_string(),
        }
    }
}

/// What an error of the operating system was about: it names neither the file nor the deed.
pub(crate) trait When<T> {
    fn when(self, doing: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> When<T> for Result<T, E> {
    fn when(self, doing: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io {
            doing,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}

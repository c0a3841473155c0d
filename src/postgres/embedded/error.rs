//! Why the private server can't be used, and the cure.
//!
//! Variants are what a program may want to tell apart. The many obstacles that only a human can
//! clear share one, [`EmbeddedError::Unusable`]: where one is found, its cure is known too.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the private server can't be used. [`EmbeddedError::hint`] has the cure.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The lock of the data directory is held.
    #[error("another workos-sync (process {pid}) serves from {}", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The owner, as the lock file names it.
        pid: String,
    },
    /// A command that uses the private database of `serve` found none.
    #[error("there is no private database in {}", dir.display())]
    NotMade {
        /// The data directory.
        dir: PathBuf,
    },
    /// The start was asked to end.
    #[error("the start of the private postgres was interrupted")]
    Interrupted,
    /// Something isn't what a server needs.
    #[error("{subject}: {problem}")]
    Unusable {
        /// A file, a directory or a setting.
        subject: String,
        /// What is wrong with it.
        problem: String,
        /// The cure.
        hint: String,
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

impl EmbeddedError {
    /// What to do about it, for the line `hint: …` after the message.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InUse { dir, .. } => Some(format!(
                "stop it, or choose another data directory; if it doesn't answer, {}/postgres.log has the reason",
                dir.display()
            )),
            Self::NotMade { .. } => Some(
                "set DATABASE_URL, or DATA_DIR to where `workos-sync serve` has made one"
                    .to_owned(),
            ),
            Self::Unusable { hint, .. } => Some(hint.clone()),
            // As in the image, and under systemd.
            Self::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Some(
                    "set DATABASE_URL to use a PostgreSQL server that is there, or DATA_DIR to a directory that this user may write to"
                        .to_owned(),
                )
            }
            Self::Interrupted
            | Self::Program { .. }
            | Self::Slow { .. }
            | Self::Restless { .. }
            | Self::Database(_)
            | Self::Io { .. } => None,
        }
    }

    pub(super) fn unusable(
        subject: impl Display,
        problem: impl Display,
        hint: impl Display,
    ) -> Self {
        Self::Unusable {
            subject: subject.to_string(),
            problem: problem.to_string(),
            hint: hint.to_string(),
        }
    }
}

/// What an error of the operating system was about: it names neither the file nor the deed.
pub(super) trait When<T> {
    fn when(self, doing: &'static str, path: &Path) -> Result<T, EmbeddedError>;
}

impl<T, E: Into<io::Error>> When<T> for Result<T, E> {
    fn when(self, doing: &'static str, path: &Path) -> Result<T, EmbeddedError> {
        self.map_err(|source| EmbeddedError::Io {
            doing,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}

//! The sync module: what an organization event does to the database (R1–R13, R19–R21).
//!
//! *Fetch, then write*: a pure INSERT on the create path, a pure UPDATE on the update path, a slug that is
//! chosen once and never touched again, and a guard that makes stale and repeated events harmless. The
//! decision is [`decide`], without I/O; [`apply()`] is the I/O around it, for one event or for many at once.
//!
//! | event | found | what the guard compares with | written | outcome |
//! | --- | --- | --- | --- | --- |
//! | created, updated | row by `workos_id` | the row's cursor, the organization's | UPDATE | `updated` |
//! | created, updated | row by `external_id`, else by the derived id, unlinked | the row's cursor, the organization's | UPDATE | `linked` |
//! | created, updated | the same, linked to another organization | the organization's cursor | UPDATE, with a warning | `linked` |
//! | created, updated | nothing | the organization's cursor | INSERT | `created` |
//! | deleted | row by `workos_id` | the row's cursor, the organization's | `disabled_at` | `disabled` |
//! | deleted | nothing | the organization's cursor | a tombstone | `tombstoned` |
//! | any | whatever | refused by the guard | nothing | `stale` |
//!
//! A deletion is remembered for good: a row that its organization gets later is disabled from the start.

mod apply;
pub mod decide;
pub mod organization_id;
pub mod slug;
mod store;

use std::fmt;

pub use apply::{Applied, apply};

/// What applying an event did to the database: the `outcome` of a processed inbox row (R27).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A row was inserted.
    Created,
    /// A row that had been found by its WorkOS organization id was updated.
    Updated,
    /// A row that had been found by its own id was linked to the WorkOS organization, and updated.
    Linked,
    /// A row was disabled.
    Disabled,
    /// The guard refused the event.
    Stale,
    /// The deletion of an organization without a row is remembered.
    Tombstoned,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] = [
        Self::Created,
        Self::Updated,
        Self::Linked,
        Self::Disabled,
        Self::Stale,
        Self::Tombstoned,
    ];

    /// The outcome as the database and the API have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Linked => "linked",
            Self::Disabled => "disabled",
            Self::Stale => "stale",
            Self::Tombstoned => "tombstoned",
        }
    }

    /// Reads an outcome.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
    }
}

/// What is written of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// R4
    Insert,
    /// R5
    Update,
    /// R10
    Disable,
}

impl Write {
    /// The verb.
    #[must_use]
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Disable => "disable",
        }
    }
}

/// What is done to the row.
impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Insert => "inserted",
            Self::Update => "updated",
            Self::Disable => "disabled",
        })
    }
}

/// Why an event could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A row was not written. It changed hands, or went, between the fetch and the write: start over. Or, if that doesn't
    /// help, the host keeps it from being written.
    #[error("row {id} was not {write}: another writer changed it between fetch and write")]
    Unwritten {
        /// What was to be done.
        write: Write,
        /// The organization id, of one of them.
        id: String,
    },
    /// The database said no, or nothing.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

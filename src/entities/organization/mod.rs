//! Organizations: what an event of theirs does to the application's table (R1–R13, R19–R21).
//!
//! *Fetch, then write*: a pure INSERT on the create path, a pure UPDATE on the update path, a slug that is
//! chosen once and never touched again, and a guard that makes stale and repeated events harmless. The
//! decision is [`decide`], without I/O; [`apply()`] is the I/O around it, for one event or for many at once.
//!
//! What each kind of event comes to is a table in `docs/design.md`.

mod apply;
pub mod decide;
mod event;
pub mod host;
mod ledger;
pub mod mirror;
pub mod organization_id;
pub mod precision;
pub mod schema;
pub mod slug;
pub mod statements;
mod store;

use std::fmt;

pub use apply::{Applied, Slugs, apply, preview};
pub use event::{Change, OrganizationEvent, OrganizationEventType};

use uuid::Uuid;

use self::host::Host;
use crate::event::{OrganizationId, WorkosId};
use crate::postgres::error;

/// Where organizations are written to.
#[derive(Debug, Clone)]
pub struct Target {
    /// The application's table.
    pub host: Host,
    /// Of derived organization ids (R3).
    pub namespace: Uuid,
    /// Whoever listens is told which rows were changed (R53).
    pub notifies: bool,
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
    /// R6
    Enable,
}

impl Write {
    /// The verb.
    #[must_use]
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Disable => "disable",
            Self::Enable => "enable",
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
            Self::Enable => "enabled",
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
    /// It can't be told which row is the organization's.
    #[error(transparent)]
    TwoRows(#[from] TwoRows),
    /// A new row would have a key that the table can't hold.
    #[error(transparent)]
    NotAUuid(#[from] NotAUuid),
    /// A new row is to have another slug: start over.
    #[error(transparent)]
    SlugRefused(#[from] SlugRefused),
    /// A column can't hold a value of the event.
    #[error(transparent)]
    ColumnTooShort(#[from] ColumnTooShort),
    /// The database said no, or nothing.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Two rows have one WorkOS organization id, on a table that lets them. Which of them an event is about is not guessed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "organizations {} and {} both have the workos_id {workos_id}: clear it in one of them, then retry",
    ids[0],
    ids[1]
)]
pub struct TwoRows {
    /// The WorkOS organization.
    pub workos_id: WorkosId,
    /// The ids of its rows.
    pub ids: [OrganizationId; 2],
}

/// The keys are UUIDs, and WorkOS knows the organization by an `external_id` that is none. No row can have it (R34).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "external_id {external_id} is no UUID, as the ids of {table} are: link the organization to a row by its workos_id, or \
     give it another external_id, then retry"
)]
pub struct NotAUuid {
    /// What would be the key.
    pub external_id: OrganizationId,
    /// The application's table.
    pub table: String,
}

/// A slug was free by all that can be asked of the table, and yet a unique index or an exclusion constraint refuses it: another
/// one is to be tried (R9).
#[derive(Debug, thiserror::Error)]
#[error("slug {slug} is refused: {}", error::describe(error))]
pub struct SlugRefused {
    /// The slug.
    pub slug: String,
    /// How.
    #[source]
    pub error: sqlx::Error,
}

/// A column can't hold a value of the event. Postgres says so without a name (22001), and the description knows which one.
#[derive(Debug, thiserror::Error)]
#[error(
    "column {column} of {table} is {declared}, and its value has {length} characters: {}",
    error::describe(error)
)]
pub struct ColumnTooShort {
    /// The column.
    pub column: &'static str,
    /// The application's table.
    pub table: String,
    /// Its type.
    pub declared: String,
    /// How many characters the value has.
    pub length: usize,
    /// What the database said.
    #[source]
    pub error: sqlx::Error,
}

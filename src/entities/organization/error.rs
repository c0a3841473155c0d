//! Why an event of an organization could not be applied, and what kind of failure that is (R26, R27).

use std::fmt;

use super::host::NAME;
use crate::event::{OrganizationId, WorkosId};
use crate::postgres::error::{self, FailureClass};

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
    #[error("a trigger or a policy of {NAME} kept row {id} from being {write}")]
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

impl ApplyError {
    /// A short and stable key of the failure, equal for equal failures (R27).
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            Self::Unwritten { write, .. } => format!("suppressed:{}", write.verb()),
            Self::TwoRows(_) => "two_rows".to_owned(),
            Self::NotAUuid(_) => "external_id:not_a_uuid".to_owned(),
            Self::SlugRefused(refused) => error::cause(&refused.error),
            Self::ColumnTooShort(short) => format!("too_long:{}", short.column),
            Self::Database(error) => error::cause(error),
        }
    }

    /// What kind of failure it is (R26).
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::TwoRows(_) | Self::NotAUuid(_) => FailureClass::Permanent,
            Self::Unwritten { .. } | Self::SlugRefused(_) => FailureClass::Conflict,
            Self::ColumnTooShort(short) => error::classify(&short.error),
            Self::Database(error) => error::classify(error),
        }
    }

    /// The class once trying again at once didn't help: what still refuses isn't a race.
    #[must_use]
    pub fn lasting_class(&self) -> FailureClass {
        match self {
            Self::Unwritten { .. } => FailureClass::Refused,
            Self::SlugRefused(refused) => error::classify_lasting(&refused.error),
            Self::Database(error) => error::classify_lasting(error),
            Self::TwoRows(_) | Self::NotAUuid(_) | Self::ColumnTooShort(_) => self.class(),
        }
    }

    /// Says whether the application's table may have changed.
    #[must_use]
    pub fn is_about_the_table(&self) -> bool {
        match self {
            Self::Database(error) => error::is_about_the_table(error),
            Self::ColumnTooShort(_) => true,
            _ => false,
        }
    }

    /// What was chosen, and refused: the next try is to choose something else (R9).
    #[must_use]
    pub fn refused(&self) -> Option<&str> {
        match self {
            Self::SlugRefused(refused) => Some(&refused.slug),
            _ => None,
        }
    }
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

//! Why an attempt came to nothing, which event it was, and what kind of failure that is (R26, R27).

use crate::entities::{ApplyError, TABLE};
use crate::event::{DecodeError, EnvelopeError};
use crate::postgres::error::{self, DatabaseCause, FailureClass};

use super::store::Claimed;

/// A transaction that came to nothing.
#[derive(Debug)]
pub(super) struct Failure {
    /// The event that failed, where it is known: the transaction had claimed this one, and no other.
    pub(super) event: Option<Box<Claimed>>,
    pub(super) error: AttemptError,
}

impl Failure {
    /// A failure of these events: it is known which, if there is one only.
    pub(super) fn of(claimed: &[Claimed], error: AttemptError) -> Self {
        let event = match claimed {
            [event] => Some(Box::new(event.clone())),
            _ => None,
        };
        Self { event, error }
    }
}

impl<E: Into<AttemptError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            event: None,
            error: error.into(),
        }
    }
}

impl DatabaseCause for Failure {
    fn database_cause(&self) -> Option<&sqlx::Error> {
        match &self.error {
            AttemptError::Database(error) => Some(error),
            _ => None,
        }
    }

    fn ends_the_connection(&self) -> bool {
        // A panic may have left it in the middle of a statement.
        matches!(self.error, AttemptError::Bug(_))
            || self
                .database_cause()
                .is_some_and(error::ends_the_connection)
    }
}

/// Why an attempt came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    /// The body is no event. Recorded events were parsed, so somebody else put it there.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// What the event contains can't be applied.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Recorded events are in the lane that they have to be applied in, so somebody else put it there.
    #[error("the event is about {0}, which is not what the column lane says: set it, then retry")]
    WrongLane(String),
    /// The body is longer than the transaction takes.
    #[error("the body is too long for a batch")]
    TooLong,
    /// An operator wants nothing to be applied now.
    #[error("nothing is applied: there is a pause")]
    Paused,
    /// Another session stored one of the events meanwhile, and it may be one of the applied.
    #[error("another session stored the same event")]
    Overtaken,
    /// The application's table changed. Its statements are built anew.
    #[error("{TABLE} isn't what it was")]
    TableChanged,
    /// What the event asks for can't be done.
    #[error(transparent)]
    Apply(Box<ApplyError>),
    #[error("{}", error::describe(.0))]
    Database(#[from] sqlx::Error),
    /// We panicked.
    #[error("a bug in workos-sync, please report it: {0}")]
    Bug(String),
}

impl From<ApplyError> for AttemptError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Database(error) => Self::Database(error),
            error => Self::Apply(Box::new(error)),
        }
    }
}

impl AttemptError {
    /// A short and stable key of the failure, equal for equal failures (R27).
    pub(super) fn cause(&self) -> String {
        match self {
            Self::Envelope(_) => "decode:envelope".to_owned(),
            Self::Decode(error) => format!("decode:{}", error.field()),
            Self::WrongLane(_) => "wrong_lane".to_owned(),
            Self::TooLong => "too_long".to_owned(),
            Self::Paused => "paused".to_owned(),
            Self::Overtaken => "overtaken".to_owned(),
            Self::TableChanged => "table_changed".to_owned(),
            Self::Apply(error) => error.cause(),
            Self::Database(error) => error::cause(error),
            Self::Bug(_) => "bug".to_owned(),
        }
    }

    pub(super) fn class(&self) -> FailureClass {
        match self {
            Self::Envelope(_) | Self::Decode(_) | Self::WrongLane(_) | Self::TooLong => {
                FailureClass::Permanent
            }
            Self::Overtaken | Self::TableChanged => FailureClass::Conflict,
            Self::Apply(error) => error.class(),
            Self::Database(error) => error::classify(error),
            // It waits for the version that mends it; or for the end of a pause.
            Self::Bug(_) | Self::Paused => FailureClass::Transient,
        }
    }

    /// The class once trying again at once didn't help: what still refuses isn't a race.
    pub(super) fn lasting_class(&self) -> FailureClass {
        match self {
            Self::Apply(error) => error.lasting_class(),
            Self::Database(error) => error::classify_lasting(error),
            Self::Overtaken => FailureClass::Refused,
            // Again and again.
            Self::TableChanged => FailureClass::Transient,
            _ => self.class(),
        }
    }

    /// What was chosen, and refused: the next try is to choose something else.
    pub(super) fn refused(&self) -> Option<&str> {
        match self {
            Self::Apply(error) => error.refused(),
            _ => None,
        }
    }

    /// Says whether the application's table may have changed.
    pub(super) fn is_about_the_table(&self) -> bool {
        match self {
            Self::Database(error) => error::is_about_the_table(error),
            Self::Apply(error) => error.is_about_the_table(),
            _ => false,
        }
    }
}

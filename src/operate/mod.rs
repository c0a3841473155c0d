//! What an operator does (R46–R49): looks at events and what became of them, retries, discards and replays them, and
//! pauses. Each operation is one function, which the command line, the admin API and the page call alike; what comes of it
//! is a value that serializes as they all show it, times in RFC 3339.
//!
//! | operation | |
//! | --- | --- |
//! | [`events::list`], [`events::show`], [`events::payload`], [`events::causes`] | look at events |
//! | [`organization::find`] | an organization: row, cursor, write-back, events |
//! | [`bulk::count`], [`bulk::begin`] | retry, discard and replay, in batches, each recorded as an action |
//! | [`pausing::pause`], [`pausing::resume`], [`pausing::paused`] | nothing is applied for a while |
//! | [`records::actions`], [`records::runs`] | what operators did, and how backfills and comparisons went |
//! | [`crate::heal::trust::status`] | may the table be trusted, and what waits? |
//!
//! Events are selected by a [`Filter`], read from texts in one place.

pub mod bulk;
pub mod events;
pub mod filter;
pub mod organization;
pub mod pausing;
pub mod records;
mod select;

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub use self::bulk::{Bulk, Left, Progress, Selection, Verb};
use self::events::EventSummary;
pub use self::filter::{Filter, FilterError, FilterTexts, Page, When};
pub use crate::pause::Pause;
use crate::postgres::error::{DatabaseCause, describe};

/// Who does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A user of the system, at the command line.
    User(String),
    /// Whoever has the token of the admin API.
    Token,
    /// Whoever is on this machine, where the admin API wants no token.
    Loopback,
}

/// As `operator_actions` has it.
impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User(name) => name,
            Self::Token => "token",
            Self::Loopback => "loopback",
        })
    }
}

/// Why an operation wasn't done, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// It isn't said which events are meant.
    #[error("neither ids nor a filter: say which events are meant")]
    NothingSelected,
    /// It is said twice which events are meant.
    #[error("ids and a filter: either name the events, or say which ones are meant")]
    SelectedTwice,
    /// Whoever discards events says why.
    #[error("reason: required")]
    NoReason,
    /// A pause is that long at most.
    #[error("for: a pause is from 1 second to 24 hours long")]
    PauseTooLong,
    /// What was under way doesn't end.
    #[error(
        "it is {pause}, but what was begun before has not ended yet: it is still applied ({reason})"
    )]
    StillApplying {
        /// It holds for everything else.
        pause: Pause,
        /// What the database said.
        reason: String,
    },
    /// A list is to go on behind an event that isn't there.
    #[error("after: there is no event {event_id}")]
    NoSuchEvent {
        /// Its id.
        event_id: String,
    },
    /// A parameter can't be used.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The database doesn't answer, or refuses.
    #[error("{}", describe(.0))]
    Database(#[from] sqlx::Error),
}

impl OperateError {
    /// Says whether the one who asked is at fault: the same again will fail again.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        match self {
            Self::NothingSelected
            | Self::SelectedTwice
            | Self::NoReason
            | Self::PauseTooLong
            | Self::NoSuchEvent { .. }
            | Self::Filter(_) => true,
            Self::StillApplying { .. } | Self::Database(_) => false,
        }
    }
}

impl DatabaseCause for OperateError {
    fn database_cause(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Database(error) => Some(error),
            _ => None,
        }
    }
}

/// A reason, if one was given.
fn given(reason: Option<&str>) -> Option<&str> {
    reason.map(str::trim).filter(|reason| !reason.is_empty())
}

/// A page of a list of events, and where it goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The events.
    pub items: Vec<EventSummary>,
    /// What to ask for the next page with; none where this is the last.
    pub next: Option<String>,
    /// How far back this page has looked, if that is why it has no more events: further back there may be more.
    pub searched_to: Option<DateTime<Utc>>,
    /// More events are pending than a list looks at ([`events::PENDING_LOOKED_AT`]): some are left out.
    pub pending_left_out: bool,
}

//! The words of the inbox: what a row's columns say, and what callers are told.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::entities::{Outcome, TABLE};
use crate::pause::Pause;

/// The status of an inbox row (R27).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Recorded.
    Pending,
    /// Applied.
    Processed,
    /// Of a type that is not handled.
    Ignored,
    /// Will be tried again.
    Failed,
    /// Will not be tried again by itself.
    Dead,
    /// An operator has given it up.
    Discarded,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Processed,
        Self::Ignored,
        Self::Failed,
        Self::Dead,
        Self::Discarded,
    ];

    /// The status as the database and the API have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processed => "processed",
            Self::Ignored => "ignored",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Discarded => "discarded",
        }
    }
}

/// Where an event came from (R27).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A delivery by WorkOS.
    Webhook,
    /// `workos-sync replay`.
    Replay,
    /// The poll of events.
    EventsApi,
    /// `workos-sync catch-up`.
    CatchUp,
    /// A snapshot of `workos-sync backfill`.
    Backfill,
    /// A snapshot of `workos-sync reconcile`, or a deletion that it found.
    Reconcile,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 6] = [
        Self::Webhook,
        Self::Replay,
        Self::EventsApi,
        Self::CatchUp,
        Self::Backfill,
        Self::Reconcile,
    ];

    /// The source as the database and the API have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Replay => "replay",
            Self::EventsApi => "events_api",
            Self::CatchUp => "catch_up",
            Self::Backfill => "backfill",
            Self::Reconcile => "reconcile",
        }
    }
}

/// What the log calls an event (R54).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventName {
    /// Its id.
    pub id: String,
    /// Its type.
    pub event_type: String,
    /// The WorkOS organization that it is about, if it is about one.
    pub organization: Option<String>,
}

/// What recording an event did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is new, and will be applied.
    Accepted,
    /// It was there already.
    Duplicate,
    /// It is new, and of a type that is not handled.
    Ignored,
}

impl Recorded {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Duplicate, Self::Ignored];

    pub(super) const fn new(is_new: bool, ignored: bool) -> Self {
        match (is_new, ignored) {
            (false, _) => Self::Duplicate,
            (true, false) => Self::Accepted,
            (true, true) => Self::Ignored,
        }
    }

    /// The word for it in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Ignored => "ignored",
        }
    }
}

/// What is answered to whoever brought an event.
#[derive(Debug)]
pub struct Receipt {
    /// What recording it did.
    pub recorded: Recorded,
    /// Of a duplicate, if another event is stored under its id: which.
    pub detail: Option<String>,
}

/// Why an event could not be made durable.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Postgres can't store this body, now or ever.
    #[error("the event can't be stored: {0}")]
    Unstorable(String),
    /// The database is away or overloaded; the sender should come back.
    #[error("the event could not be made durable: {reason}")]
    Unavailable {
        /// What the database said.
        reason: String,
    },
}

/// Why the inbox could not be drained.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The database doesn't answer.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// Nothing can be applied to the host's table.
    #[error("{TABLE} can't be used, so events wait in the inbox: {0}")]
    Unusable(String),
    /// An operator wants nothing to be applied now.
    #[error("{waiting} events wait in the inbox: {pause}")]
    Paused {
        /// How those ended that have, with counts.
        ended: BTreeMap<String, u64>,
        /// How many of those that were asked for.
        waiting: u64,
        /// Until when.
        pause: Pause,
    },
}

/// How an event ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The event.
    pub event_id: String,
    /// `processed`, `ignored`, `dead` or `discarded`.
    pub status: Status,
    /// How it was applied, if it was.
    pub outcome: Option<Outcome>,
    /// Why it is dead, if it is.
    pub error: Option<String>,
}

//! What is kept in step with WorkOS, each kind of thing in a module of its own, which knows the events that tell of it and
//! the tables that it is in. Whoever hands events over knows the functions here, and no kind by its name.
//!
//! What each type of event comes to is a table in `docs/design.md`.

pub mod guard;
pub mod organization;
mod outcome;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::event::{DecodeError, Event, EventId};
use guard::Replay;
use organization::statements::Statements;
use organization::{Host, OrganizationEvent, OrganizationEventType};

pub use organization::decide::Compared;
/// The application's table.
pub use organization::host::NAME as TABLE;
pub use organization::{ApplyError, Choices};
pub use outcome::Outcome;

/// The types of events that are applied.
pub fn types() -> impl Iterator<Item = &'static str> {
    OrganizationEventType::ALL
        .into_iter()
        .map(OrganizationEventType::as_str)
}

/// Those of them that WorkOS sends.
pub fn types_of_workos() -> impl Iterator<Item = &'static str> {
    OrganizationEventType::OF_WORKOS
        .into_iter()
        .map(OrganizationEventType::as_str)
}

/// Says whether events of this type are applied (R13).
#[must_use]
pub fn is_handled(event_type: &str) -> bool {
    types().any(|handled| handled == event_type)
}

/// What an event says, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// Of an organization.
    Organization(OrganizationEvent),
}

impl Decoded {
    /// The id of the event.
    #[must_use]
    pub const fn id(&self) -> &EventId {
        let Self::Organization(event) = self;
        &event.id
    }

    /// The lane that it has to be applied in: events that write the same rows share one (R18).
    #[must_use]
    pub fn lane(&self) -> &str {
        let Self::Organization(event) = self;
        event.workos_id.as_str()
    }
}

/// Decodes an event; none of a type that is not handled. Whether it was decided before, no event says: the caller knows.
///
/// # Errors
/// A part that is needed is missing, has another type, or can't be stored.
pub fn decode(event: &Event<'_>, replay: Replay) -> Result<Option<Decoded>, DecodeError> {
    if !is_handled(&event.event_type) {
        return Ok(None);
    }
    let organization = OrganizationEvent {
        replay,
        ..OrganizationEvent::decode(event)?
    };
    Ok(Some(Decoded::Organization(organization)))
}

/// Where events are applied.
#[derive(Debug, Clone)]
pub struct Target {
    /// The application's table of organizations.
    pub host: Host,
    /// Of derived organization ids (R3).
    pub namespace: Uuid,
    /// Whoever listens is told which rows were changed (R53).
    pub notifies: bool,
}

impl Target {
    /// Says whether events can be applied, as far as is known.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.host.is_usable()
    }

    /// The statements on the application's table, as that is known to be.
    #[must_use]
    pub fn statements(&self) -> Arc<Statements> {
        self.host.statements()
    }

    /// Looks at the application's table again, because a statement failed for what it is; says whether it has changed since
    /// these statements were built.
    ///
    /// # Errors
    /// The database can't be asked.
    pub async fn has_changed_since(
        &self,
        built: &Statements,
        pool: &PgPool,
    ) -> Result<bool, sqlx::Error> {
        self.host.has_changed_since(built, pool).await
    }
}

/// Events that are decided on what the database holds, and not written yet.
#[derive(Debug)]
pub struct Decided<'e> {
    organizations: organization::Decided<'e>,
    notifies: bool,
}

/// Decides events in the caller's transaction; writes nothing. The caller holds their lanes, and gives the events of each in
/// order.
///
/// # Errors
/// The transaction is to be rolled back.
pub async fn decide<'e>(
    connection: &mut PgConnection,
    target: &Target,
    events: &'e [Decoded],
    now: DateTime<Utc>,
) -> Result<Decided<'e>, ApplyError> {
    let organizations = events
        .iter()
        .map(|Decoded::Organization(event)| event)
        .collect();
    let (statements, namespace) = (target.statements(), &target.namespace);
    Ok(Decided {
        organizations: organization::decide(connection, statements, organizations, namespace, now)
            .await?,
        notifies: target.notifies,
    })
}

impl Decided<'_> {
    /// The outcome of each event, as the inbox records it, in the order of the events.
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        self.organizations.outcomes()
    }

    /// The places of the stale events among them, and what each was compared with.
    #[must_use]
    pub fn compared(&self) -> &[(usize, Compared)] {
        self.organizations.compared()
    }

    /// Writes what the events come to. The caller commits, and soon: who creates something of the same name waits for it.
    /// Says whether the outbox has something to do then.
    ///
    /// # Errors
    /// The transaction is to be rolled back.
    pub async fn write(
        self,
        connection: &mut PgConnection,
        choices: Choices<'_>,
        now: DateTime<Utc>,
    ) -> Result<bool, ApplyError> {
        let notifies = self.notifies;
        self.organizations
            .write(connection, choices, now, notifies)
            .await
    }
}

//! What an event says of an organization (R13). No I/O.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::entities::guard::Replay;
use crate::event::field::{self, DecodeError};
use crate::event::{Event, EventId, OrganizationId, WorkosId};

/// The types of event that are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrganizationEventType {
    /// `organization.created`
    Created,
    /// `organization.updated`
    Updated,
    /// `organization.deleted`
    Deleted,
    /// `organization.snapshot`: not WorkOS's, but what its API showed of an organization (R42).
    Snapshot,
}

impl OrganizationEventType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::Created, Self::Updated, Self::Deleted, Self::Snapshot];

    /// Those that WorkOS sends.
    pub const OF_WORKOS: [Self; 3] = [Self::Created, Self::Updated, Self::Deleted];

    /// The type as WorkOS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "organization.created",
            Self::Updated => "organization.updated",
            Self::Deleted => "organization.deleted",
            Self::Snapshot => "organization.snapshot",
        }
    }

    /// Reads a type.
    #[must_use]
    pub fn parse(event_type: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == event_type)
    }
}

/// The parts of `data` that are used, each undecoded: a field that an event doesn't need can't fail it.
#[derive(Deserialize)]
struct RawOrganization<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    external_id: Option<&'a RawValue>,
    #[serde(borrow)]
    updated_at: Option<&'a RawValue>,
}

/// What an organization event says, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganizationEvent {
    /// The id of the event.
    pub id: EventId,
    /// Its type.
    pub event_type: OrganizationEventType,
    /// The organization.
    pub workos_id: WorkosId,
    /// The organization id that WorkOS knows; never empty.
    pub external_id: Option<OrganizationId>,
    /// What happened to it.
    pub change: Change,
    /// When WorkOS made the event.
    pub created_at: Option<DateTime<Utc>>,
    /// `data.updated_at`, else the event's `created_at` (R7).
    pub updated_at: Option<DateTime<Utc>>,
    /// Whether it was decided before. No event says so: the inbox knows.
    pub replay: Replay,
}

impl OrganizationEvent {
    /// Decodes `data` of an event of an organization.
    ///
    /// # Errors
    /// A part that is needed is missing, has another type, or can't be stored.
    pub fn decode(event: &Event<'_>) -> Result<Self, DecodeError> {
        let event_type = OrganizationEventType::parse(&event.event_type).ok_or_else(|| {
            DecodeError::NotHandled {
                event_type: event.event_type.clone(),
            }
        })?;
        let raw: RawOrganization<'_> = event.data()?;
        let workos_id = field::id("data.id", raw.id, WorkosId::new)?
            .ok_or(DecodeError::Missing { field: "data.id" })?;
        let change = match event_type {
            OrganizationEventType::Deleted => Change::Delete,
            OrganizationEventType::Created
            | OrganizationEventType::Updated
            | OrganizationEventType::Snapshot => Change::Upsert {
                name: field::text("data.name", raw.name)?
                    .ok_or(DecodeError::Missing { field: "data.name" })?,
            },
        };
        let external_id = match (external_id(raw.external_id), &change) {
            // No row has an id that can't be stored, and a deletion needs none.
            (Err(_), Change::Delete) => None,
            (external_id, _) => external_id?,
        };
        Ok(Self {
            id: event.id.clone(),
            event_type,
            workos_id,
            external_id,
            change,
            created_at: event.created_at,
            updated_at: raw
                .updated_at
                .and_then(field::timestamp)
                .or(event.created_at),
            replay: Replay::No,
        })
    }

    /// When WorkOS was in the state that the event tells, by its id, else as WorkOS says.
    #[must_use]
    pub fn told_at(&self) -> Option<DateTime<Utc>> {
        self.id.told_at().or(self.created_at)
    }
}

/// What happened to an organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Created or updated: the payload carries the whole object, so both are applied alike.
    Upsert {
        /// The display name.
        name: String,
    },
    /// Deleted.
    Delete,
}

/// An empty one counts as none.
fn external_id(raw: Option<&RawValue>) -> Result<Option<OrganizationId>, DecodeError> {
    let external_id = field::id("data.external_id", raw, |text| match &*text {
        "" => Ok(None),
        _ => OrganizationId::new(text).map(Some),
    })?;
    Ok(external_id.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R26: what can't be applied says which part of it, and why.
    #[test]
    fn undecodable_data_name_the_field() {
        for (data, error) in [
            ("null", "`data` is missing"),
            ("[]", "`data` is not an object"),
            ("{}", "`data.id` is missing"),
            (r#"{"id":null,"name":"x"}"#, "`data.id` is missing"),
            (r#"{"id":7,"name":"x"}"#, "`data.id` is not a valid string"),
            (r#"{"id":"","name":"x"}"#, "`data.id` is empty"),
            (r#"{"id":"o"}"#, "`data.name` is missing"),
            (
                r#"{"id":"o","name":{}}"#,
                "`data.name` is not a valid string",
            ),
            (
                r#"{"id":"o","name":"a\u0000b"}"#,
                "`data.name` contains a NUL character",
            ),
            (
                r#"{"id":"o","name":"x","external_id":7}"#,
                "`data.external_id` is not a valid string",
            ),
            (
                r#"{"id":"o","name":"x","external_id":"\u0000"}"#,
                "`data.external_id` contains a NUL character",
            ),
        ] {
            let body =
                format!(r#"{{"id":"event_1","event":"organization.updated","data":{data}}}"#);
            let event = Event::parse(body.as_bytes()).unwrap();
            assert_eq!(
                OrganizationEvent::decode(&event).unwrap_err().to_string(),
                error,
                "{data}"
            );
        }
    }

    /// R10: a deletion names its row as a creation does; where its `external_id` can't be used, it names none.
    #[test]
    fn a_deletion_has_an_external_id_if_it_is_one() {
        for (external_id, expected) in [
            ("null", None),
            (r#""""#, None),
            (r#""acme""#, Some("acme")),
            ("5", None),
            (r#""\u0000""#, None),
        ] {
            let body = format!(
                r#"{{"id":"event_1","event":"organization.deleted","data":{{"id":"o","external_id":{external_id}}}}}"#
            );
            let event = Event::parse(body.as_bytes()).unwrap();
            let event = OrganizationEvent::decode(&event).unwrap();
            let read = event.external_id.as_ref().map(OrganizationId::as_str);
            assert_eq!(read, expected, "{external_id}");
        }
    }
}

//! Objects as WorkOS shows them, made into events of their own (R42). No I/O.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use ulid::Ulid;

use crate::entities::organization::{OrganizationEvent, OrganizationEventType};
use crate::event::{Event, SNAPSHOT_MARGIN, SNAPSHOT_PREFIX, WorkosId, rfc3339};
use crate::workos::Answered;

/// An answer can't be told the time of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the answer of WorkOS has no readable Date: what it shows can't be put in order with events"
)]
pub struct NoDate;

/// An object of a list is no organization.
#[derive(Debug, thiserror::Error)]
#[error("WorkOS lists an organization without a usable id: {0}")]
pub struct NoId(String);

/// When an answer was given, and the time of what it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// WorkOS's time as it answered.
    pub date: DateTime<Utc>,
    /// The time of the ids that are made of it: every event that is later by its id was made after the object was read.
    pub at: DateTime<Utc>,
}

impl Shown {
    /// Reads the time of an answer.
    ///
    /// # Errors
    /// It has none.
    pub fn of(answered: Answered) -> Result<Self, NoDate> {
        let date = answered.date.ok_or(NoDate)?;
        let took = TimeDelta::from_std(answered.took).map_err(|_| NoDate)?;
        let at = date.checked_sub_signed(took).ok_or(NoDate)? - SNAPSHOT_MARGIN;
        Ok(Self { date, at })
    }

    /// When WorkOS was asked, by its own clock.
    #[must_use]
    pub fn asked_at(&self) -> DateTime<Utc> {
        self.at + SNAPSHOT_MARGIN
    }

    /// The id of what an answer says of an object: the same answer says it but once.
    fn id(&self, object_id: &str) -> String {
        let hash = Sha256::digest(object_id.as_bytes());
        let mut random = [0; 16];
        // A ULID has 80 random bits.
        random[6..].copy_from_slice(&hash[..10]);
        let ms = u64::try_from(self.at.timestamp_millis()).unwrap_or_default();
        let ulid = Ulid::from_parts(ms, u128::from_be_bytes(random));
        format!("{SNAPSHOT_PREFIX}{ulid}")
    }

    /// The body of an organization's snapshot; `data` is the object as it stands in the answer.
    ///
    /// # Errors
    /// The object has no id.
    pub fn snapshot(&self, object: &RawValue) -> Result<Snapshot, NoId> {
        let workos_id = object_id(object)?;
        let head = Head {
            id: self.id(workos_id.as_str()),
            event_type: OrganizationEventType::Snapshot,
            created_at: self.date,
        };
        Ok(Snapshot {
            body: head.with_data(object.get()),
            id: head.id,
            workos_id,
        })
    }

    /// The body of the deletion of an organization that WorkOS doesn't know any more (R44).
    #[must_use]
    pub fn deletion(&self, workos_id: &WorkosId) -> Snapshot {
        let head = Head {
            id: self.id(workos_id.as_str()),
            event_type: OrganizationEventType::Deleted,
            created_at: self.date,
        };
        let data = json!({"object": "organization", "id": workos_id.as_str()});
        Snapshot {
            body: head.with_data(&data.to_string()),
            id: head.id,
            workos_id: workos_id.clone(),
        }
    }
}

/// An event that we made of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// The organization that it is about.
    pub workos_id: WorkosId,
    /// The event, as the inbox takes it.
    pub body: String,
}

/// What the body of an event says of an organization, if that can be applied.
#[must_use]
pub fn event_of(body: &str) -> Option<OrganizationEvent> {
    let event = Event::parse(body.as_bytes()).ok()?;
    OrganizationEvent::decode(&event).ok()
}

struct Head {
    id: String,
    event_type: OrganizationEventType,
    created_at: DateTime<Utc>,
}

impl Head {
    fn with_data(&self, data: &str) -> String {
        let Self { id, event_type, .. } = self;
        let event_type = event_type.as_str();
        let at = rfc3339(self.created_at);
        format!(r#"{{"id":"{id}","event":"{event_type}","created_at":"{at}","data":{data}}}"#)
    }
}

/// The id of an organization in a list.
fn object_id(object: &RawValue) -> Result<WorkosId, NoId> {
    #[derive(Deserialize)]
    struct Identified {
        id: String,
    }
    let identified: Identified =
        serde_json::from_str(object.get()).map_err(|error| NoId(error.to_string()))?;
    WorkosId::new(identified.id).map_err(|error| NoId(format!("it {error}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::entities::organization::OrganizationEvent;
    use crate::event::Event;

    fn shown() -> Shown {
        Shown::of(Answered {
            date: DateTime::from_timestamp(1_800_000_000, 0),
            took: Duration::from_millis(1_500),
        })
        .unwrap()
    }

    /// R42: the id is the time of the answer, less the request, less a minute, and a hash of the object's id.
    #[test]
    fn a_snapshot_is_an_event_dated_before_its_answer() {
        let text = r#"{"id":"org_1", "name":"Acme","external_id":null,"new":{"a":[1.0]}}"#;
        let object: Box<RawValue> = serde_json::from_str(text).unwrap();
        let snapshot = shown().snapshot(&object).unwrap();
        let event = Event::parse(snapshot.body.as_bytes()).unwrap();
        assert_eq!(event.event_type, "organization.snapshot");
        assert_eq!(event.id.as_str(), snapshot.id);
        assert!(event.id.is_snapshot());
        let ulid = event.id.ulid().unwrap();
        assert_eq!(ulid.timestamp_ms(), 1_800_000_000_000 - 61_500);
        assert_eq!(event.workos_id, Some(snapshot.workos_id.clone()));
        assert!(snapshot.body.contains(text), "{}", snapshot.body);
        let organization = OrganizationEvent::decode(&event).unwrap();
        assert_eq!(organization.updated_at, organization.created_at);

        assert_eq!(shown().snapshot(&object).unwrap(), snapshot);
        let other: Box<RawValue> = serde_json::from_str(r#"{"id":"org_2"}"#).unwrap();
        assert_ne!(shown().snapshot(&other).unwrap().id, snapshot.id);
    }

    /// R44: a deletion has the time of the answer.
    #[test]
    fn a_deletion_has_the_time_of_its_answer() {
        let id = WorkosId::new("org_\"1").unwrap();
        let deletion = shown().deletion(&id);
        let event = Event::parse(deletion.body.as_bytes()).unwrap();
        assert_eq!(event.event_type, "organization.deleted");
        assert_eq!(event.created_at, DateTime::from_timestamp(1_800_000_000, 0));
        let organization = OrganizationEvent::decode(&event).unwrap();
        assert_eq!(organization.workos_id, id);
        assert!(event.id.is_snapshot());
    }

    #[test]
    fn what_has_no_date_or_no_id_is_said() {
        let answered = Answered {
            date: None,
            took: Duration::ZERO,
        };
        assert_eq!(Shown::of(answered), Err(NoDate));
        for text in ["{}", "[]", "7", r#"{"id":null}"#, r#"{"id":""}"#] {
            let object: Box<RawValue> = serde_json::from_str(text).unwrap();
            let error = shown().snapshot(&object).unwrap_err();
            assert!(error.to_string().contains("without a usable id"), "{error}");
        }
    }
}

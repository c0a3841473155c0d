//! Events, as WorkOS would send them.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use ulid::Ulid;

use super::NOW;

/// Builds the body of an event. The number orders events of a test: it makes the ULID of the id, and the times.
#[derive(Debug, Clone)]
pub(crate) struct EventBuilder {
    id: String,
    event_type: String,
    created_at: Option<String>,
    data: Value,
}

/// The id of event number `n`.
pub(crate) fn event_id(n: u64) -> String {
    let ms = u64::try_from(at(n).timestamp_millis()).unwrap();
    format!("event_{}", Ulid::from_parts(ms, 0))
}

/// When event number `n` happened: `n` seconds after the start of the clock.
pub(crate) fn at(n: u64) -> DateTime<Utc> {
    NOW + TimeDelta::seconds(i64::try_from(n).unwrap())
}

/// The time in the form of the API.
pub(crate) fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// `organization.created`
pub(crate) fn created(n: u64, workos_id: &str, name: &str) -> EventBuilder {
    EventBuilder::new(n, "organization.created", workos_id).data("name", name)
}

/// `organization.updated`
pub(crate) fn updated(n: u64, workos_id: &str, name: &str) -> EventBuilder {
    EventBuilder::new(n, "organization.updated", workos_id).data("name", name)
}

/// `organization.deleted`
pub(crate) fn deleted(n: u64, workos_id: &str) -> EventBuilder {
    EventBuilder::new(n, "organization.deleted", workos_id).data("name", "Deleted")
}

impl EventBuilder {
    /// An event of any type.
    pub(crate) fn new(n: u64, event_type: &str, workos_id: &str) -> Self {
        Self {
            id: event_id(n),
            event_type: event_type.to_owned(),
            created_at: Some(rfc3339(at(n))),
            data: json!({
                "object": "organization",
                "id": workos_id,
                "external_id": null,
                "domains": [],
                "metadata": {},
                "created_at": rfc3339(NOW),
                "updated_at": rfc3339(at(n)),
            }),
        }
    }

    /// Another id.
    pub(crate) fn id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    /// Another value of `data`; `null` included.
    pub(crate) fn data(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.data[key] = value.into();
        self
    }

    /// Without a key of `data`.
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.data.as_object_mut().unwrap().remove(key);
        self
    }

    /// With an `external_id`.
    pub(crate) fn external_id(self, id: &str) -> Self {
        self.data("external_id", id)
    }

    /// Another `created_at` of the event.
    pub(crate) fn created_at(mut self, at: &str) -> Self {
        self.created_at = Some(at.to_owned());
        self
    }

    /// Without `created_at` of the event.
    pub(crate) fn undated(mut self) -> Self {
        self.created_at = None;
        self
    }

    /// The id that it has.
    pub(crate) fn event_id(&self) -> &str {
        &self.id
    }

    /// The body.
    pub(crate) fn body(&self) -> String {
        let mut body = json!({ "id": self.id, "event": self.event_type, "data": self.data });
        if let Some(at) = &self.created_at {
            body["created_at"] = at.as_str().into();
        }
        body.to_string()
    }
}

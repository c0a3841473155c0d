//! A WorkOS event and the ids in it. Of `data`, each entity decodes what it uses (R13). No I/O.
//!
//! Decoding has two steps, because they fail differently: [`Event::parse`] reads the envelope at the
//! door (no id, no event: the sender gets a 400), [`Event::data`] reads `data` when the event is
//! applied (what is wrong there is a dead letter, and the body is kept).

pub mod field;
mod id;

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

pub use field::{DecodeError, parse_timestamp, rfc3339};
use id::check_id;
pub use id::{
    EventId, IdError, MAX_ID_BYTES, OrganizationId, SNAPSHOT_MARGIN, SNAPSHOT_PREFIX, WorkosId,
};

/// Why a body is not an event.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// The body is not UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// The body is not one JSON object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// The JSON is broken, or `id` or `event` is missing or no string.
    #[error("the body is not an event: {0}")]
    Json(#[from] serde_json::Error),
    /// `id` or `event` is a string that can't be stored.
    #[error("`{field}` {error}")]
    Id {
        /// The key of the envelope.
        field: &'static str,
        /// What is wrong with its value.
        error: IdError,
    },
}

#[derive(Deserialize)]
struct RawEnvelope<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    created_at: Option<&'a RawValue>,
}

// What an event is about. Each is looked for alone: what else is wrong in `data` is no matter of the envelope.

#[derive(Deserialize)]
struct Identified<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OfOrganization<'a> {
    #[serde(borrow)]
    organization_id: Option<&'a RawValue>,
}

/// An event whose envelope was read; `data` is not decoded yet.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// The id.
    pub id: EventId,
    /// The type, such as `organization.updated`.
    pub event_type: String,
    /// The WorkOS organization that the event is about, where it names one.
    pub workos_id: Option<WorkosId>,
    /// When WorkOS made the event; `None` if missing or unreadable.
    pub created_at: Option<DateTime<Utc>>,
    /// The body, exactly as it came, but for a byte order mark.
    pub body: &'a str,
    data: Option<&'a RawValue>,
}

impl<'a> Event<'a> {
    /// Reads the envelope of an event: `{id, event, data, created_at}`; other keys are ignored, and so is a byte order
    /// mark before it.
    ///
    /// # Errors
    /// The body is no JSON object with a usable `id` and `event`.
    pub fn parse(body: &'a [u8]) -> Result<Self, EnvelopeError> {
        let body = std::str::from_utf8(body).map_err(|_| EnvelopeError::NotUtf8)?;
        let body = body.strip_prefix('\u{feff}').unwrap_or(body);
        if !field::is_object(body) {
            return Err(EnvelopeError::NotAnObject);
        }
        let raw: RawEnvelope<'a> = serde_json::from_str(body)?;
        let id = EventId::new(raw.id).map_err(|error| EnvelopeError::Id { field: "id", error })?;
        check_id(&raw.event).map_err(|error| EnvelopeError::Id {
            field: "event",
            error,
        })?;
        let event_type = raw.event.into_owned();
        Ok(Self {
            workos_id: organization_of(&event_type, raw.data),
            id,
            event_type,
            created_at: raw.created_at.and_then(field::timestamp),
            body,
            data: raw.data,
        })
    }

    /// The id of what the event is about: `data.id`, where there is one that can be an id.
    #[must_use]
    pub fn subject(&self) -> Option<String> {
        let Identified { id } = self.data().ok()?;
        field::id("data.id", id, |text| check_id(&text).map(|()| text)).ok()?
    }

    /// Reads `data` into a struct of the parts that are used, each of them undecoded.
    ///
    /// # Errors
    /// It is missing, or can't be read as an object.
    pub fn data<T: Deserialize<'a>>(&self) -> Result<T, DecodeError> {
        field::object("data", self.data)
    }
}

/// The organization that an event is about, as far as it can be told without failing: `data.id` of an
/// `organization.*` event, `data.organization_id` of the others (memberships, domains, connections).
fn organization_of(event_type: &str, data: Option<&RawValue>) -> Option<WorkosId> {
    let id = if event_type.starts_with("organization.") {
        field::object("data", data).map(|Identified { id }| id)
    } else {
        field::object("data", data).map(|OfOrganization { organization_id }| organization_id)
    };
    field::id("data", id.ok()?, WorkosId::new).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R30: what is no event, and why.
    #[test]
    fn what_is_no_event_is_refused() {
        for (body, error) in [
            (&b"\xff"[..], "the body is not UTF-8"),
            (b"", "the body is not a JSON object"),
            (b"null", "the body is not a JSON object"),
            (br#"["event_1","x"]"#, "the body is not a JSON object"),
            (
                br#"{"id":"a","event":"b"} x"#,
                "the body is not an event: trailing characters at line 1 column 24",
            ),
            (
                br#"{"event":"b"}"#,
                "the body is not an event: missing field `id` at line 1 column 13",
            ),
            (
                br#"{"id":"a"}"#,
                "the body is not an event: missing field `event` at line 1 column 10",
            ),
            (br#"{"id":"","event":"b"}"#, "`id` is empty"),
            (
                br#"{"id":"a\u0000","event":"b"}"#,
                "`id` contains a NUL character",
            ),
            (br#"{"id":"a","event":""}"#, "`event` is empty"),
        ] {
            assert_eq!(Event::parse(body).unwrap_err().to_string(), error);
        }
        let long = format!(r#"{{"id":"{}","event":"b"}}"#, "a".repeat(256));
        assert_eq!(
            Event::parse(long.as_bytes()).unwrap_err().to_string(),
            "`id` is longer than 255 bytes"
        );
    }
}

//! A WorkOS event and the ids in it; decodes only what is used (R13). No I/O.
//!
//! Decoding has two steps, because they fail differently: [`Event::parse`] reads the envelope at the
//! door (no id, no event: the sender gets a 400), [`Event::organization`] reads `data` when the event is
//! applied (what is wrong there is a dead letter, and the body is kept).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use chrono::{DateTime, NaiveDateTime, SubsecRound, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;
use ulid::Ulid;

/// The longest id that is accepted, in bytes: an index row of Postgres holds 2,700, ids of WorkOS are 32.
pub const MAX_ID_BYTES: usize = 255;

/// Why a text can't be an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It is the empty string.
    #[error("is empty")]
    Empty,
    /// It is longer than [`MAX_ID_BYTES`].
    #[error("is longer than {MAX_ID_BYTES} bytes")]
    TooLong,
    /// It holds U+0000, which no text column of Postgres can store.
    #[error("contains a NUL character")]
    Nul,
}

fn check_id(text: &str) -> Result<(), IdError> {
    match text {
        "" => Err(IdError::Empty),
        _ if text.len() > MAX_ID_BYTES => Err(IdError::TooLong),
        _ if text.contains('\0') => Err(IdError::Nul),
        _ => Ok(()),
    }
}

/// Three kinds of strings in one signature is how a relink bug begins: each id has a type.
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks and takes an id.
            ///
            /// # Errors
            /// The text is empty, too long, or holds a NUL.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check_id(&text)?;
                Ok(Self(text))
            }

            /// Takes an id as the database has it, unchecked: what Postgres stored, it can store.
            #[must_use]
            pub const fn from_database(text: String) -> Self {
                Self(text)
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type! {
    /// The id of an event: a prefix and a ULID (`event_01HX…`; the emulator writes `evt_`), or, in old
    /// samples, anything else.
    EventId
}
id_type! {
    /// The id that WorkOS gave an organization: `org_<ULID>`.
    #[derive(PartialOrd, Ord)]
    WorkosId
}
id_type! {
    /// The id that the application gave an organization: the primary key of `organization_metadata`.
    #[derive(PartialOrd, Ord)]
    OrganizationId
}

/// What the ids of the events begin with that we make of what the API shows (R42).
pub const SNAPSHOT_PREFIX: &str = "snapshot_";

impl EventId {
    /// Whether we made the event, of what the API showed (R42): a snapshot, or a deletion that `reconcile` found.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.0.starts_with(SNAPSHOT_PREFIX)
    }

    /// The ULID part: what follows the last underscore, where that is a ULID.
    #[must_use]
    pub fn ulid(&self) -> Option<Ulid> {
        let part = self.0.rsplit('_').next()?;
        // 26 characters carry 130 bits; the parser drops the upper two instead of refusing them.
        if !part.starts_with(|first| matches!(first, '0'..='7')) {
            return None;
        }
        Ulid::from_string(part).ok()
    }

    /// What ids sort by: those with a ULID by that, behind the others. Where [`compare`](Self::compare) has an answer,
    /// it is this one.
    #[must_use]
    pub fn order(&self) -> (Option<Ulid>, String) {
        self.ulid().map_or_else(
            || (None, self.0.clone()),
            |ulid| (Some(ulid), String::new()),
        )
    }

    /// The same as a text, for the database: byte by byte, texts of two ids sort as the ids compare.
    #[must_use]
    pub fn order_key(&self) -> String {
        self.ulid()
            .map_or_else(|| self.0.clone(), |ulid| ulid.to_string())
    }

    /// Compares two ids by the order in which WorkOS made the events (R7): by their ULID parts when both
    /// have one, as whole strings when neither has, and not at all (`None`) when only one has.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self.ulid(), other.ulid()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            (None, None) => Some(self.0.cmp(&other.0)),
            _ => None,
        }
    }
}

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

/// The parts of `data` that are used, each undecoded: a field that an event doesn't need can't fail it.
#[derive(Deserialize)]
struct RawOrganization<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    organization_id: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    external_id: Option<&'a RawValue>,
    #[serde(borrow)]
    updated_at: Option<&'a RawValue>,
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
        // serde would read an array as a struct's fields in order.
        if !is_object(body) {
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
            created_at: raw.created_at.and_then(timestamp),
            body,
            data: raw.data,
        })
    }

    /// What kind of organization event this is; `None` for types that are not handled (R13).
    #[must_use]
    pub fn organization_event_type(&self) -> Option<OrganizationEventType> {
        OrganizationEventType::parse(&self.event_type)
    }

    /// The id of what the event is about: `data.id`, where there is one that can be an id.
    #[must_use]
    pub fn subject(&self) -> Option<String> {
        let raw = raw_organization(self.data)?;
        id("data.id", raw.id, |text| check_id(&text).map(|()| text)).ok()?
    }

    /// Decodes `data` of an organization event.
    ///
    /// # Errors
    /// A part that is needed is missing, has another type, or can't be stored.
    pub fn organization(&self) -> Result<OrganizationEvent, DecodeError> {
        let event_type = self
            .organization_event_type()
            .ok_or_else(|| DecodeError::NotHandled {
                event_type: self.event_type.clone(),
            })?;
        let data = self
            .data
            .map(RawValue::get)
            .ok_or(DecodeError::Missing { field: "data" })?;
        if !is_object(data) {
            return Err(DecodeError::WrongType {
                field: "data",
                expected: "an object",
            });
        }
        let raw: RawOrganization<'_> = serde_json::from_str(data)?;
        let workos_id = id("data.id", raw.id, WorkosId::new)?
            .ok_or(DecodeError::Missing { field: "data.id" })?;
        let change = match event_type {
            OrganizationEventType::Deleted => Change::Delete,
            OrganizationEventType::Created
            | OrganizationEventType::Updated
            | OrganizationEventType::Snapshot => Change::Upsert {
                name: text("data.name", raw.name)?
                    .ok_or(DecodeError::Missing { field: "data.name" })?,
            },
        };
        let external_id = match (external_id(raw.external_id), &change) {
            // No row has an id that can't be stored, and a deletion needs none.
            (Err(_), Change::Delete) => None,
            (external_id, _) => external_id?,
        };
        Ok(OrganizationEvent {
            id: self.id.clone(),
            event_type,
            workos_id,
            external_id,
            change,
            created_at: self.created_at,
            updated_at: raw.updated_at.and_then(timestamp).or(self.created_at),
        })
    }
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
}

impl OrganizationEvent {
    /// When the event was made, as WorkOS says, else by its id.
    #[must_use]
    pub fn made_at(&self) -> Option<DateTime<Utc>> {
        let by_id = || {
            let ms = i64::try_from(self.id.ulid()?.timestamp_ms()).ok()?;
            DateTime::from_timestamp_millis(ms)
        };
        self.created_at.or_else(by_id)
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

/// Why `data` of an organization event can't be applied, now or ever.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The event is none that is handled.
    #[error("{event_type} events are not handled")]
    NotHandled {
        /// Its type.
        event_type: String,
    },
    /// A part that is needed is missing or null.
    #[error("`{field}` is missing")]
    Missing {
        /// Its path.
        field: &'static str,
    },
    /// A part that is needed has another type.
    #[error("`{field}` is not {expected}")]
    WrongType {
        /// Its path.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A string can't be stored.
    #[error("`{field}` {error}")]
    Unstorable {
        /// Its path.
        field: &'static str,
        /// What is wrong with it.
        error: IdError,
    },
    /// `data` can't be read as an object, such as one with a key twice.
    #[error("`data` is unreadable: {0}")]
    Json(#[from] serde_json::Error),
}

impl DecodeError {
    /// The part that can't be used.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        match self {
            Self::NotHandled { .. } => "event",
            Self::Missing { field }
            | Self::WrongType { field, .. }
            | Self::Unstorable { field, .. } => field,
            Self::Json(_) => "data",
        }
    }
}

/// The earliest time that Postgres can hold: 4714-11-24 BC. The latest is beyond what chrono can.
const EARLIEST: DateTime<Utc> =
    DateTime::from_timestamp(-210_866_803_200, 0).expect("chrono reaches back to 262144 BC");

/// Reads a date as RFC 3339, or in the form of WorkOS's own samples (`2023-04-28 20:05:31.093`, UTC), cut to
/// the microseconds that Postgres keeps. A date that Postgres can't hold counts as unreadable (R7).
#[must_use]
pub fn parse_timestamp(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text)
        .map(|at| at.to_utc())
        .or_else(|_| {
            NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").map(|at| at.and_utc())
        })
        .ok()
        .map(|at| at.trunc_subsecs(6))
        .filter(|at| *at >= EARLIEST)
}

fn is_object(json: &str) -> bool {
    json.trim_start_matches([' ', '\t', '\r', '\n'])
        .starts_with('{')
}

fn timestamp(raw: &RawValue) -> Option<DateTime<Utc>> {
    parse_timestamp(&serde_json::from_str::<Cow<'_, str>>(raw.get()).ok()?)
}

/// The organization that an event is about, as far as it can be told without failing: `data.id` of an
/// `organization.*` event, `data.organization_id` of the others (memberships, domains, connections).
fn organization_of(event_type: &str, data: Option<&RawValue>) -> Option<WorkosId> {
    let raw = raw_organization(data)?;
    let value = if event_type.starts_with("organization.") {
        raw.id
    } else {
        raw.organization_id
    }?;
    WorkosId::new(serde_json::from_str::<String>(value.get()).ok()?).ok()
}

fn raw_organization(data: Option<&RawValue>) -> Option<RawOrganization<'_>> {
    let data = data.map(RawValue::get).filter(|data| is_object(data))?;
    serde_json::from_str(data).ok()
}

fn string(field: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, DecodeError> {
    match raw.map(RawValue::get) {
        None => Ok(None),
        Some(json) => serde_json::from_str(json)
            .map(Some)
            .map_err(|_| DecodeError::WrongType {
                field,
                expected: "a valid string",
            }),
    }
}

fn text(field: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, DecodeError> {
    let value = string(field, raw)?;
    if value.as_ref().is_some_and(|value| value.contains('\0')) {
        return Err(DecodeError::Unstorable {
            field,
            error: IdError::Nul,
        });
    }
    Ok(value)
}

fn id<T>(
    field: &'static str,
    raw: Option<&RawValue>,
    check: impl FnOnce(String) -> Result<T, IdError>,
) -> Result<Option<T>, DecodeError> {
    string(field, raw)?
        .map(check)
        .transpose()
        .map_err(|error| DecodeError::Unstorable { field, error })
}

/// An empty one counts as none.
fn external_id(raw: Option<&RawValue>) -> Result<Option<OrganizationId>, DecodeError> {
    let external_id = id("data.external_id", raw, |text| match &*text {
        "" => Ok(None),
        _ => OrganizationId::new(text).map(Some),
    })?;
    Ok(external_id.flatten())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event_id(text: &str) -> EventId {
        EventId::new(text).unwrap()
    }

    /// R7: the ULID is what follows the last underscore, in either case; what overflows 128 bits is none.
    #[test]
    fn the_ulid_part_is_found() {
        let ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        for (id, found) in [
            (format!("event_{ulid}"), true),
            (format!("evt_{ulid}"), true),
            (format!("my_odd_prefix_{ulid}"), true),
            (ulid.to_owned(), true),
            (format!("event_{}", ulid.to_lowercase()), true),
            (format!("event_{ulid}0"), false),
            (format!("event_8{}", &ulid[1..]), false),
            ("wh_123".to_owned(), false),
            ("event_".to_owned(), false),
        ] {
            assert_eq!(event_id(&id).ulid().is_some(), found, "{id}");
        }
    }

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
                event.organization().unwrap_err().to_string(),
                error,
                "{data}"
            );
        }
    }

    /// R7: the earliest date that Postgres can hold is read, an earlier one isn't.
    #[test]
    fn dates_are_those_that_postgres_can_hold() {
        for (text, is_read) in [
            ("-4713-11-24 00:00:00", true),
            ("-4713-11-23 23:59:59.999999", false),
            ("-9999-01-01 00:00:00", false),
            ("0000-01-01T00:00:00Z", true),
            ("+262000-01-01 00:00:00", true),
            ("+300000-01-01 00:00:00", false),
        ] {
            assert_eq!(parse_timestamp(text).is_some(), is_read, "{text}");
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
            let event = Event::parse(body.as_bytes())
                .unwrap()
                .organization()
                .unwrap();
            let read = event.external_id.as_ref().map(OrganizationId::as_str);
            assert_eq!(read, expected, "{external_id}");
        }
    }

    fn any_event_id() -> impl Strategy<Value = EventId> {
        prop_oneof![
            (any::<u128>(), prop_oneof!["event_", "evt_", ""])
                .prop_map(|(n, prefix)| event_id(&format!("{prefix}{}", Ulid(n)))),
            "[a-z]{1,3}_[0-9a-z]{0,4}".prop_map(|text| event_id(&text)),
        ]
    }

    proptest! {
        /// R7: an order, within the ids with a ULID and within those without; none between the two.
        #[test]
        fn event_ids_are_ordered(a in any_event_id(), b in any_event_id(), c in any_event_id()) {
            prop_assert_eq!(a.compare(&b), b.compare(&a).map(Ordering::reverse));
            prop_assert_eq!(a.compare(&b).is_some(), a.ulid().is_some() == b.ulid().is_some());
            prop_assert!(a.compare(&b).is_none_or(|order| order == a.order().cmp(&b.order())));
            if a.compare(&b) == Some(Ordering::Less) && b.compare(&c) == Some(Ordering::Less) {
                prop_assert_eq!(a.compare(&c), Some(Ordering::Less));
            }
        }
    }
}

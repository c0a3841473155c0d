//! The fields of an event, each decoded by itself: one that isn't needed can't fail the event (R13). No I/O.

use std::borrow::Cow;

use chrono::{DateTime, NaiveDateTime, SecondsFormat, SubsecRound, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::id::IdError;

/// Why `data` of an event can't be applied, now or ever.
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

/// A time as WorkOS writes it, and as our logs and answers have it: RFC 3339, in milliseconds.
#[must_use]
pub fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
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

/// Says whether a JSON text is an object: serde would read an array as a struct's fields in order.
pub(super) fn is_object(json: &str) -> bool {
    json.trim_start_matches([' ', '\t', '\r', '\n'])
        .starts_with('{')
}

/// Reads an object.
pub(super) fn object<'a, T: Deserialize<'a>>(
    field: &'static str,
    raw: Option<&'a RawValue>,
) -> Result<T, DecodeError> {
    let json = raw
        .map(RawValue::get)
        .ok_or(DecodeError::Missing { field })?;
    if !is_object(json) {
        return Err(DecodeError::WrongType {
            field,
            expected: "an object",
        });
    }
    Ok(serde_json::from_str(json)?)
}

/// Reads a date; one that is unreadable counts as absent (R7).
#[must_use]
pub fn timestamp(raw: &RawValue) -> Option<DateTime<Utc>> {
    parse_timestamp(&serde_json::from_str::<Cow<'_, str>>(raw.get()).ok()?)
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

/// Reads a text.
///
/// # Errors
/// It is no text, or can't be stored.
pub fn text(field: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, DecodeError> {
    let value = string(field, raw)?;
    if value.as_ref().is_some_and(|value| value.contains('\0')) {
        return Err(DecodeError::Unstorable {
            field,
            error: IdError::Nul,
        });
    }
    Ok(value)
}

/// Reads an id, as `check` makes it of the text.
///
/// # Errors
/// It is no text, or can't be an id.
pub fn id<T>(
    field: &'static str,
    raw: Option<&RawValue>,
    check: impl FnOnce(String) -> Result<T, IdError>,
) -> Result<Option<T>, DecodeError> {
    string(field, raw)?
        .map(check)
        .transpose()
        .map_err(|error| DecodeError::Unstorable { field, error })
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

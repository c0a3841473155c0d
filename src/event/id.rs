//! The ids of events and organizations. No I/O.

use std::cmp::Ordering;
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
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

pub(super) fn check_id(text: &str) -> Result<(), IdError> {
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

/// How far before the request for it a snapshot is dated. An event of that minute may have been made before the object was
/// read, or after it: the id alone doesn't say which of the two is newer (R7).
pub const SNAPSHOT_MARGIN: TimeDelta = TimeDelta::seconds(60);

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

    /// By the id, when WorkOS was in the state that the event tells: as it made the event, or as it was asked.
    #[must_use]
    pub fn told_at(&self) -> Option<DateTime<Utc>> {
        let ms = i64::try_from(self.ulid()?.timestamp_ms()).ok()?;
        let at = DateTime::from_timestamp_millis(ms)?;
        if self.is_snapshot() {
            at.checked_add_signed(SNAPSHOT_MARGIN)
        } else {
            Some(at)
        }
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

    /// Says whether two ids are the same event's, whatever their prefixes.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.is_snapshot() == other.is_snapshot() && self.compare(other) == Some(Ordering::Equal)
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

//! Which events an operator means (R47). No I/O: read from texts in one place, whether these come from flags, from the
//! parameters of a query, or from a JSON body.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::event::parse_timestamp;
use crate::inbox::{Source, Status};

/// How far back a filter looks that no index serves, unless it says so itself.
const DEFAULT_PERIOD: TimeDelta = TimeDelta::hours(24);

/// How many events a list has, if nothing else is asked for.
pub const DEFAULT_LIMIT: i64 = 50;

/// How many it has at most.
pub const MOST: i64 = 1_000;

/// A filter as it is given: each part a text, or nothing, which is what an empty text is too. A part that doesn't exist
/// is refused, for a filter that is misspelt would select everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilterTexts {
    /// Status: pending, processed, ignored, failed, dead or discarded
    #[arg(long)]
    pub status: Option<String>,
    /// Type, such as organization.updated
    #[arg(long = "type", value_name = "TYPE")]
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    /// WorkOS organization id
    #[arg(long, value_name = "ID")]
    pub organization: Option<String>,
    /// Where they came from
    #[arg(
        long,
        help = "Source: webhook, events_api, catch_up, replay, backfill or reconcile"
    )]
    pub source: Option<String>,
    /// Cause of the last failure, as `events causes` prints it
    #[arg(long)]
    pub cause: Option<String>,
    /// Part of the last error
    #[arg(long, value_name = "TEXT")]
    pub error: Option<String>,
    /// Received since a time such as 2026-11-26T08:00:00Z, or such as 2h or 7d ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Received before such a time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

/// A parameter that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: {problem}")]
pub struct FilterError {
    /// Its name: of a flag without the dashes.
    pub parameter: &'static str,
    /// What is wrong with its value.
    pub problem: String,
}

/// Which events are meant: those that all of its parts fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// They have this status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// They are of this type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// They are about this WorkOS organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// They came from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// They last failed of this cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Their last error contains this text, whatever its case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// They were received then or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// They were received before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// `since` wasn't asked for: it is 24 hours before `until` or now, because type, source and error alone would read
    /// everything there is. Whoever shows what was selected should say so.
    #[serde(skip)]
    pub is_last_day: bool,
}

impl FilterTexts {
    /// Reads the filter.
    ///
    /// # Errors
    /// A part can't be used.
    pub fn read(self, now: DateTime<Utc>) -> Result<Filter, FilterError> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let time = |parameter, text: Option<String>| match given(text) {
            Some(text) => match When::parse(&text) {
                Ok(when) => Ok(Some(when.before(now))),
                Err(problem) => Err(FilterError { parameter, problem }),
            },
            None => Ok(None),
        };
        let mut filter = Filter {
            status: known("status", given(self.status), Status::ALL, Status::as_str)?,
            event_type: given(self.event_type),
            organization: given(self.organization),
            source: known("source", given(self.source), Source::ALL, Source::as_str)?,
            cause: given(self.cause),
            error: given(self.error),
            since: time("since", self.since)?,
            until: time("until", self.until)?,
            is_last_day: false,
        };
        for (parameter, text) in [
            ("type", &filter.event_type),
            ("organization", &filter.organization),
            ("cause", &filter.cause),
            ("error", &filter.error),
        ] {
            if text.as_ref().is_some_and(|text| text.contains('\0')) {
                let problem = "contains a NUL character".to_owned();
                return Err(FilterError { parameter, problem });
            }
        }
        if filter.since.is_none() && filter.needs_a_period() {
            let until = filter.until.unwrap_or(now);
            filter.since = until.checked_sub_signed(DEFAULT_PERIOD);
            filter.is_last_day = true;
        }
        Ok(filter)
    }
}

/// Reads one of several words.
fn known<T: Copy, const N: usize>(
    parameter: &'static str,
    text: Option<String>,
    all: [T; N],
    as_str: fn(T) -> &'static str,
) -> Result<Option<T>, FilterError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let found = all.into_iter().find(|known| as_str(*known) == text);
    found.map(Some).ok_or_else(|| FilterError {
        parameter,
        problem: format!("{text:?} is none of {}", all.map(as_str).join(", ")),
    })
}

impl Filter {
    /// Nothing is asked for: it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The statuses that are meant.
    pub(super) fn statuses(&self) -> Vec<Status> {
        self.status
            .map_or(Status::ALL.to_vec(), |status| vec![status])
    }

    /// It is about parts that no index has, and nothing else bounds what is read.
    fn needs_a_period(&self) -> bool {
        let is_settled = matches!(self.status, Some(Status::Processed | Status::Ignored));
        let is_bounded = self.organization.is_some()
            || self.cause.is_some()
            || (self.status.is_some() && !is_settled);
        let is_wide = self.event_type.is_some() || self.source.is_some() || self.error.is_some();
        is_wide && !is_bounded
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// How many events it has at most: 1 to 1,000.
    pub limit: i64,
    /// The last event of the page before.
    pub after: Option<String>,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            limit: DEFAULT_LIMIT,
            after: None,
        }
    }
}

impl Page {
    /// Reads which part is asked for.
    ///
    /// # Errors
    /// `limit` is no number from 1 to 1,000.
    pub fn read(limit: Option<&str>, after: Option<String>) -> Result<Self, FilterError> {
        let limit = match limit.filter(|text| !text.is_empty()) {
            None => Some(DEFAULT_LIMIT),
            Some(text) => text.parse().ok().filter(|limit| (1..=MOST).contains(limit)),
        };
        Ok(Self {
            limit: limit.ok_or_else(|| FilterError {
                parameter: "limit",
                problem: format!("expected a number from 1 to {MOST}"),
            })?,
            after: after.filter(|id| !id.is_empty()),
        })
    }
}

/// A time, as an operator writes it: RFC 3339, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At this time.
    At(DateTime<Utc>),
    /// So long ago.
    Ago(TimeDelta),
}

impl When {
    /// Reads a time.
    ///
    /// # Errors
    /// It is none; the text says what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(at) = parse_timestamp(text) {
            return Ok(Self::At(at));
        }
        length(text)
            .map(Self::Ago)
            .ok_or_else(|| "expected a time such as 2026-11-26T08:00:00Z, or 2h or 7d".to_owned())
    }

    /// The time, seen from `now`.
    #[must_use]
    pub fn before(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.checked_sub_signed(ago).unwrap_or(DateTime::UNIX_EPOCH),
        }
    }
}

/// Reads a length of time, such as `90s`, `5m`, `2h` or `7d`.
///
/// # Errors
/// It is none; the text says what is expected.
pub fn parse_length(text: &str) -> Result<TimeDelta, String> {
    length(text).ok_or_else(|| "expected a length such as 30m, 2h or 1d".to_owned())
}

fn length(text: &str) -> Option<TimeDelta> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u32 = number.parse().ok()?;
    let of_one = match unit {
        "s" => TimeDelta::seconds(1),
        "m" => TimeDelta::minutes(1),
        "h" => TimeDelta::hours(1),
        "d" => TimeDelta::days(1),
        _ => return None,
    };
    of_one.checked_mul(i32::try_from(number).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000, 0).unwrap()
    }

    fn texts(parts: &[(&str, &str)]) -> FilterTexts {
        let parts = parts.iter().map(|(name, value)| (*name, *value));
        let object: serde_json::Map<_, _> = parts
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        serde_json::from_value(object.into()).unwrap()
    }

    #[test]
    fn a_time_is_a_date_or_how_long_ago() {
        for (text, seconds) in [
            ("30s", 30),
            ("5m", 300),
            ("2h", 7_200),
            ("7d", 604_800),
            ("1970-01-12T13:46:30Z", 10),
        ] {
            let at = When::parse(text).unwrap().before(now());
            assert_eq!(at, now() - TimeDelta::seconds(seconds), "{text}");
        }
        for text in ["", "h", "-2h", "2", "2w", "yesterday", "99999999999d", "é"] {
            assert!(When::parse(text).is_err(), "{text}");
            assert!(parse_length(text).is_err(), "{text}");
        }
    }

    /// R47: every part, by the name that it has everywhere; an empty text is none.
    #[test]
    fn a_filter_is_read_from_texts() {
        let filter = texts(&[
            ("status", "dead"),
            ("type", "organization.updated"),
            ("organization", "org_1"),
            ("source", "events_api"),
            ("cause", "check:name"),
            ("error", ""),
            ("since", "2h"),
            ("until", "1970-01-12T13:46:30Z"),
        ]);
        assert_eq!(
            filter.read(now()).unwrap(),
            Filter {
                status: Some(Status::Dead),
                event_type: Some("organization.updated".to_owned()),
                organization: Some("org_1".to_owned()),
                source: Some(Source::EventsApi),
                cause: Some("check:name".to_owned()),
                error: None,
                since: Some(now() - TimeDelta::hours(2)),
                until: Some(now() - TimeDelta::seconds(10)),
                is_last_day: false,
            }
        );
        assert!(
            texts(&[("error", ""), ("type", "")])
                .read(now())
                .unwrap()
                .is_empty()
        );
    }

    /// R47: what can't be used is named, and so is what there would be.
    #[test]
    fn what_is_no_filter_is_refused() {
        for (name, value, message) in [
            (
                "status",
                "deed",
                r#"status: "deed" is none of pending, processed, ignored, failed, dead, discarded"#,
            ),
            (
                "source",
                "x",
                r#"source: "x" is none of webhook, replay, events_api, catch_up, backfill, reconcile"#,
            ),
            (
                "since",
                "soon",
                "since: expected a time such as 2026-11-26T08:00:00Z, or 2h or 7d",
            ),
            ("error", "a\0b", "error: contains a NUL character"),
        ] {
            let error = texts(&[(name, value)]).read(now()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let misspelt: Result<FilterTexts, _> = serde_json::from_str(r#"{"stauts":"dead"}"#);
        assert!(misspelt.is_err());
    }

    /// R47: type, source and error alone look back a day; whatever bounds them otherwise lifts that.
    #[test]
    fn wide_filters_look_back_a_day() {
        let day = TimeDelta::hours(24);
        for part in [("type", "x"), ("source", "replay"), ("error", "x")] {
            let alone = texts(&[part]).read(now()).unwrap();
            assert!(alone.is_last_day, "{part:?}");
            assert_eq!(alone.since, Some(now() - day));
            let settled = texts(&[part, ("status", "processed")]).read(now()).unwrap();
            assert!(settled.is_last_day, "{part:?}");
            let until = texts(&[part, ("until", "2d")]).read(now()).unwrap();
            assert_eq!(until.since, Some(now() - day * 3));
            for other in [
                ("status", "dead"),
                ("organization", "org_1"),
                ("cause", "x"),
                ("since", "90d"),
            ] {
                let bounded = texts(&[part, other]).read(now()).unwrap();
                assert!(!bounded.is_last_day, "{part:?} {other:?}");
            }
        }
        for alone in [
            ("status", "processed"),
            ("organization", "o"),
            ("until", "1h"),
        ] {
            assert!(
                !texts(&[alone]).read(now()).unwrap().is_last_day,
                "{alone:?}"
            );
        }
    }

    /// R47: 1 to 1000, 50 by default.
    #[test]
    fn a_page_has_a_bounded_length() {
        assert_eq!(Page::read(None, None).unwrap(), Page::default());
        assert_eq!(Page::read(Some("1000"), None).unwrap().limit, 1_000);
        let after = Page::read(Some(""), Some("e".to_owned())).unwrap();
        assert_eq!((after.limit, after.after.as_deref()), (50, Some("e")));
        for text in ["0", "1001", "-1", "x", "1e3"] {
            assert!(Page::read(Some(text), None).is_err(), "{text}");
        }
    }
}

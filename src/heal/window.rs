//! The windows that a reading of events goes through, and what it means where WorkOS refuses one. No I/O.

use std::fmt;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use crate::workos::WorkosError;

/// WorkOS reads so much at once, and promises to keep no more.
const LONGEST: TimeDelta = TimeDelta::days(30);

/// A time that is read from its beginning to its end, before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Where it begins.
    pub(super) from: DateTime<Utc>,
    /// Where it ends; `None`: it has all that there is.
    pub(super) until: Option<DateTime<Utc>>,
    /// Where the next one begins; `None`: it is the last.
    pub(super) next: Option<DateTime<Utc>>,
}

impl Window {
    /// The window that a reading up to `end`, or up to now, begins with at a time.
    pub(super) fn at(from: DateTime<Utc>, end: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Self {
        let next = Some(from + LONGEST).filter(|next| *next < end.unwrap_or(now));
        Self {
            from,
            until: next.or(end),
            next,
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {}", at(self.from))?;
        match self.until {
            Some(until) => write!(f, " to {}", at(until)),
            None => f.write_str(" on"),
        }
    }
}

/// A time, in a sentence.
pub(super) fn at(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// What a reading does where WorkOS doesn't give it a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It reads the window from its beginning: the page that it was to go on behind is of another environment, or is
    /// gone.
    BeginAnew,
    /// It leaves the window out: WorkOS keeps nothing as old.
    Skip,
    /// It fails: this has nothing to do with where it is.
    Fail,
}

impl Refused {
    /// Decides it for the answer to a request within a window: behind a page if the reading `goes_on`, or else at the
    /// window's beginning. A reading begins anew but once, or it might never end.
    pub(super) const fn of(
        answer: &WorkosError,
        window: &Window,
        goes_on: bool,
        has_begun_anew: bool,
    ) -> Self {
        match answer {
            WorkosError::Rejected { .. } if goes_on && !has_begun_anew => Self::BeginAnew,
            // The last one isn't as old. Skipped, nothing would be read at all.
            WorkosError::Rejected { status: 400, .. } if !goes_on && window.next.is_some() => {
                Self::Skip
            }
            _ => Self::Fail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(n: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(n)
    }

    /// R38: windows of 30 days, of which the last ends where the reading does.
    #[test]
    fn a_long_time_is_read_in_windows() {
        let windows = |end: Option<DateTime<Utc>>, now| {
            let mut windows = vec![Window::at(day(0), end, now)];
            while let Some(next) = windows[windows.len() - 1].next {
                windows.push(Window::at(next, end, now));
            }
            let ends = windows.iter().map(|window| (window.from, window.until));
            ends.collect::<Vec<_>>()
        };
        assert_eq!(windows(None, day(30)), [(day(0), None)]);
        assert_eq!(
            windows(None, day(61)),
            [
                (day(0), Some(day(30))),
                (day(30), Some(day(60))),
                (day(60), None)
            ]
        );
        assert_eq!(windows(Some(day(10)), day(99)), [(day(0), Some(day(10)))]);
        assert_eq!(
            windows(Some(day(60)), day(99)),
            [(day(0), Some(day(30))), (day(30), Some(day(60)))]
        );
    }

    /// R37, R38: what an answer means depends on what was asked for.
    #[test]
    fn a_refusal_means_what_was_asked_for() {
        use Refused::{BeginAnew, Fail, Skip};
        let rejected = |status| WorkosError::Rejected {
            status,
            message: String::new(),
        };
        let (last, not_last) = (
            Window::at(day(0), None, day(1)),
            Window::at(day(0), None, day(99)),
        );
        for (status, window, goes_on, has_begun_anew, expected) in [
            // The page behind which it was to go on.
            (400, last, true, false, BeginAnew),
            (422, last, true, false, BeginAnew),
            (400, not_last, true, false, BeginAnew),
            (400, last, true, true, Fail),
            (400, not_last, true, true, Fail),
            // The time.
            (400, not_last, false, false, Skip),
            (400, not_last, false, true, Skip),
            (400, last, false, false, Fail),
            (400, last, false, true, Fail),
            // What isn't about the time.
            (422, not_last, false, false, Fail),
        ] {
            let refused = Refused::of(&rejected(status), &window, goes_on, has_begun_anew);
            let case = (status, window, goes_on, has_begun_anew);
            assert_eq!(refused, expected, "{case:?}");
        }
        // Not a refusal of what was asked for.
        for answer in [
            WorkosError::NotFound,
            WorkosError::Unauthorized { status: 401 },
            WorkosError::RateLimited { retry_after: None },
            WorkosError::Unavailable {
                reason: String::new(),
                retry_after: None,
            },
        ] {
            for goes_on in [true, false] {
                let refused = Refused::of(&answer, &not_last, goes_on, false);
                assert_eq!(refused, Fail, "{answer}");
            }
        }
    }
}

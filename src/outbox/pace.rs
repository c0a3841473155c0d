//! How many deliveries may go out at once, and how long they pause. No I/O.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::backoff::backoff;

/// The longest pause of our own choice. A probe is one request: a longer pause would spare WorkOS little, and make
/// everything wait once it answers again.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// No pause is longer, whatever WorkOS asks for.
const LONGEST_ASKED: Duration = Duration::from_hours(1);

/// Nor shorter: "Retry-After: 0" would make a busy loop.
const SHORTEST_ASKED: Duration = Duration::from_secs(1);

/// How long WorkOS may go unasked before it is asked whether it still takes our requests.
const CHECK_INTERVAL: TimeDelta = TimeDelta::hours(1);

/// The pace of one process's deliveries. Trouble that isn't about one organization (WorkOS is away, the key is wrong,
/// too many requests) pauses them all; after a pause, and at the start, one goes ahead alone, so that trouble costs
/// one request a pause and not one a row.
#[derive(Debug)]
pub(super) enum Pace {
    /// One at a time, from a moment on: whether WorkOS takes our requests is to be seen.
    Probing {
        from: DateTime<Utc>,
        /// How many pauses there were in a row.
        pauses: u32,
    },
    /// WorkOS takes them, and last did at this moment.
    Full { taken_at: DateTime<Utc> },
}

/// A pause, as a request that met trouble finds it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) until: DateTime<Utc>,
    /// It begins with this request; otherwise the request was under way when it began.
    pub(super) begins: bool,
    /// WorkOS took the request before, so this one's trouble may be of its own making.
    pub(super) from_full: bool,
}

impl Pace {
    /// The pace at the start.
    pub(super) const fn new() -> Self {
        Self::Probing {
            from: DateTime::<Utc>::MIN_UTC,
            pauses: 0,
        }
    }

    /// How many deliveries may begin now, if `most` may at full pace.
    pub(super) fn allows(&self, most: u32, now: DateTime<Utc>) -> u32 {
        match *self {
            Self::Full { .. } => most,
            Self::Probing { from, .. } if from <= now => std::cmp::min(1, most),
            Self::Probing { .. } => 0,
        }
    }

    /// Whether a cheap request is due, where there is nothing to deliver: it ends the probing, or shows after an hour
    /// of silence that WorkOS still takes our key.
    pub(super) fn wants_check(&self, now: DateTime<Utc>) -> bool {
        match *self {
            Self::Full { taken_at } => taken_at + CHECK_INTERVAL <= now,
            Self::Probing { from, .. } => from <= now,
        }
    }

    /// Pauses, as long as WorkOS asks for, else twice as long each time. `jitter` is between 0 and 1.
    pub(super) fn pause(
        &mut self,
        asked: Option<Duration>,
        now: DateTime<Utc>,
        jitter: f64,
    ) -> Pause {
        let from_full = matches!(self, Self::Full { .. });
        let (pauses, ends_at) = match *self {
            Self::Full { .. } => (1, None),
            Self::Probing { from, pauses } if now < from => (pauses, Some(from)),
            Self::Probing { pauses, .. } => (pauses.saturating_add(1), None),
        };
        let after = |pause| now + TimeDelta::from_std(pause).expect("an hour at most");
        let until = match (asked, ends_at) {
            (Some(asked), _) => {
                let asked = after(asked.clamp(SHORTEST_ASKED, LONGEST_ASKED));
                std::cmp::max(asked, ends_at.unwrap_or(asked))
            }
            (None, Some(ends_at)) => ends_at,
            (None, None) => after(backoff(pauses, LONGEST_PAUSE, jitter)),
        };
        *self = Self::Probing {
            from: until,
            pauses,
        };
        Pause {
            until,
            begins: ends_at.is_none(),
            from_full,
        }
    }

    /// WorkOS took a request; says whether that ends a time of pauses. In a pause it says nothing: the request was
    /// under way before.
    pub(super) fn taken(&mut self, now: DateTime<Utc>) -> bool {
        if self.allows(1, now) == 0 {
            return false;
        }
        let recovered = matches!(*self, Self::Probing { pauses, .. } if pauses > 0);
        *self = Self::Full { taken_at: now };
        recovered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(second)
    }

    const MINUTE: Option<Duration> = Some(Duration::from_mins(1));

    /// R16: trouble costs one request a pause.
    #[test]
    fn one_goes_ahead_alone_at_the_start_and_after_each_pause() {
        let mut pace = Pace::new();
        assert_eq!(pace.allows(8, at(0)), 1);
        assert!(!pace.taken(at(0)), "there was no pause");
        assert_eq!(pace.allows(8, at(0)), 8);

        assert!(pace.pause(MINUTE, at(1), 0.0).begins);
        assert_eq!(pace.allows(8, at(60)), 0);
        assert_eq!(pace.allows(8, at(61)), 1);
        assert!(pace.pause(MINUTE, at(61), 0.0).begins);

        assert!(pace.taken(at(121)));
        assert_eq!(pace.allows(8, at(121)), 8);
    }

    /// R16: pauses double up to a minute, and begin anew once WorkOS took a request.
    #[test]
    fn pauses_double_until_workos_takes_a_request() {
        let mut pace = Pace::new();
        for _ in 0..2 {
            let mut now = at(0);
            for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
                let pause = pace.pause(None, now, 1.0);
                assert_eq!(pause.until, now + TimeDelta::seconds(seconds));
                now = pause.until;
            }
            pace.taken(now);
        }
    }

    /// What was under way when the pause began neither ends it, nor shortens it, nor doubles it, nor is worth a second
    /// log line; but a later time that WorkOS asks for counts.
    #[test]
    fn a_pause_holds_against_what_was_under_way() {
        let mut pace = Pace::Full { taken_at: at(0) };
        let first = pace.pause(MINUTE, at(0), 0.0);
        assert_eq!(
            first,
            Pause {
                until: at(60),
                begins: true,
                from_full: true
            }
        );
        assert!(!pace.taken(at(1)));
        for (asked, until) in [
            (None, 60),
            (Some(Duration::from_secs(30)), 60),
            (MINUTE, 63),
            (None, 63),
        ] {
            let pause = pace.pause(asked, at(3), 1.0);
            assert_eq!(
                pause,
                Pause {
                    until: at(until),
                    begins: false,
                    from_full: false
                }
            );
        }
        assert_eq!(pace.pause(None, at(63), 1.0).until, at(65));
    }

    /// R16: no answer of WorkOS makes a busy loop, or stops the outbox for a day.
    #[test]
    fn what_workos_asks_for_is_bounded() {
        for (asked, seconds) in [(Duration::ZERO, 1), (Duration::MAX, 3_600)] {
            let pause = Pace::new().pause(Some(asked), at(0), 0.5);
            assert_eq!(pause.until, at(seconds));
        }
    }

    #[test]
    fn a_check_is_due_while_probing_and_after_an_hour_of_silence() {
        let mut pace = Pace::new();
        assert!(pace.wants_check(at(0)));
        pace.taken(at(0));
        assert!(!pace.wants_check(at(3_599)));
        assert!(pace.wants_check(at(3_600)));
        pace.pause(MINUTE, at(3_600), 0.0);
        assert!(!pace.wants_check(at(3_659)));
        assert!(pace.wants_check(at(3_660)));
    }
}

//! How many deliveries may go out at once: none while the outbox pauses. No I/O.

use chrono::{DateTime, Utc};

/// The pace of one process's deliveries. A refusal that is about us and not about the organization (wrong key,
/// too many requests) pauses them all; after a pause, and at the start, one goes ahead alone, so that a wrong key
/// costs one request a pause and not one a row.
#[derive(Debug)]
pub(super) enum Pace {
    /// One at a time, from a moment on: whether WorkOS takes our requests is to be seen.
    Probing {
        from: DateTime<Utc>,
        /// How many pauses there were in a row.
        pauses: u32,
    },
    /// WorkOS takes them.
    Full,
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
            Self::Full => most,
            Self::Probing { from, .. } if from <= now => std::cmp::min(1, most),
            Self::Probing { .. } => 0,
        }
    }

    /// How many pauses there were since WorkOS last took a request.
    pub(super) const fn pauses(&self) -> u32 {
        match *self {
            Self::Full => 0,
            Self::Probing { pauses, .. } => pauses,
        }
    }

    /// Pauses; says whether a pause begins, rather than that the deliveries which were under way when it began
    /// meet the same answer.
    pub(super) fn pause(&mut self, until: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        match self {
            Self::Probing { from, .. } if now < *from => {
                *from = std::cmp::max(*from, until);
                false
            }
            Self::Probing { .. } | Self::Full => {
                *self = Self::Probing {
                    from: until,
                    pauses: self.pauses().saturating_add(1),
                };
                true
            }
        }
    }

    /// WorkOS took a request. In a pause that says nothing: the request was under way before.
    pub(super) fn taken(&mut self, now: DateTime<Utc>) {
        if self.allows(1, now) > 0 {
            *self = Self::Full;
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(second)
    }

    /// R16: a wrong key costs one request a pause.
    #[test]
    fn one_goes_ahead_alone_at_the_start_and_after_each_pause() {
        let mut pace = Pace::new();
        assert_eq!(pace.allows(8, at(0)), 1);
        pace.taken(at(0));
        assert_eq!(pace.allows(8, at(0)), 8);

        assert!(pace.pause(at(60), at(1)));
        assert_eq!(pace.allows(8, at(59)), 0);
        assert_eq!(pace.allows(8, at(60)), 1);
        assert!(pace.pause(at(120), at(60)));
        assert_eq!(pace.pauses(), 2);

        pace.taken(at(120));
        assert_eq!((pace.allows(8, at(120)), pace.pauses()), (8, 0));
    }

    /// What was under way when the pause began neither ends it, nor shortens it, nor is worth a second log line.
    #[test]
    fn a_pause_holds_against_what_was_under_way() {
        let mut pace = Pace::Full;
        assert!(pace.pause(at(60), at(0)));
        pace.taken(at(1));
        assert!(!pace.pause(at(30), at(2)));
        assert_eq!(pace.allows(8, at(59)), 0);
        assert!(!pace.pause(at(90), at(3)));
        assert_eq!((pace.allows(8, at(89)), pace.pauses()), (0, 1));
    }
}

//! When an event that failed is tried again, if at all (R26). No I/O.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::backoff::backoff;
use crate::postgres::error::FailureClass;

/// The longest pause: a database that is back finds its events waiting no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How often a row may be refused by a rule of the host application before its event is a dead letter.
pub(super) const REFUSALS: i32 = 5;

/// What becomes of an event that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// `failed`: tried again at this time.
    RetryAt(DateTime<Utc>),
    /// `dead`: kept until an operator retries or discards it.
    Dead,
}

/// Judges a failure. `attempts` counts this one, and so does `refusals`, if it is one: what else held the event up
/// says nothing about the rule. `jitter` is between 0 and 1.
#[must_use]
pub(super) fn judge(
    class: FailureClass,
    attempts: i32,
    refusals: i32,
    now: DateTime<Utc>,
    jitter: f64,
) -> Verdict {
    match class {
        FailureClass::Permanent => Verdict::Dead,
        FailureClass::Refused if refusals >= REFUSALS => Verdict::Dead,
        FailureClass::Refused
        | FailureClass::Conflict
        | FailureClass::Unusable
        | FailureClass::Transient => {
            let pause = backoff(attempts.unsigned_abs(), LONGEST_PAUSE, jitter);
            Verdict::RetryAt(now + TimeDelta::from_std(pause).expect("at most LONGEST_PAUSE"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// R26: what an event contains is never tried again, what a host's rule refuses a few times.
    #[test]
    fn dead_letters_come_from_content_and_from_lasting_refusals() {
        let now = DateTime::UNIX_EPOCH;
        assert_eq!(
            judge(FailureClass::Permanent, 1, 0, now, 0.5),
            Verdict::Dead
        );
        assert_eq!(
            judge(FailureClass::Refused, REFUSALS, REFUSALS, now, 0.5),
            Verdict::Dead
        );
        assert!(matches!(
            judge(FailureClass::Refused, 99, REFUSALS - 1, now, 0.5),
            Verdict::RetryAt(_)
        ));
    }

    proptest! {
        /// R26: connection loss, shutdown and timeouts are retried for ever, ever later, within bounds.
        #[test]
        fn transient_failures_are_retried_for_ever(attempts in 1_i32.., jitter in 0.0..=1.0) {
            for class in [FailureClass::Transient, FailureClass::Conflict] {
                let Verdict::RetryAt(at) = judge(class, attempts, 0, DateTime::UNIX_EPOCH, jitter) else {
                    panic!("dead after {attempts}");
                };
                let pause = (at - DateTime::UNIX_EPOCH).to_std().unwrap();
                prop_assert!(pause <= LONGEST_PAUSE, "{pause:?}");
                let later = judge(class, attempts.saturating_add(1), 0, DateTime::UNIX_EPOCH, jitter);
                prop_assert!(matches!(later, Verdict::RetryAt(later) if later >= at));
            }
        }
    }
}

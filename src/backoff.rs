//! How long to wait after a try that went wrong. No I/O, no randomness of its own.

use std::time::Duration;

/// What the first wait is drawn from.
const BASE: Duration = Duration::from_secs(1);

/// The wait after the given number of tries, at least 1: doubled with each, up to the longest. `jitter`, from 0 to 1,
/// places it between the half and the whole, so that rows which failed together don't come back together; never
/// near zero, because a service in trouble is to be left alone.
pub(crate) fn backoff(tries: u32, longest: Duration, jitter: f64) -> Duration {
    let doublings = tries.saturating_sub(1);
    let whole = 2_u32
        .checked_pow(doublings)
        .and_then(|factor| BASE.checked_mul(factor))
        .map_or(longest, |wait| std::cmp::min(wait, longest));
    whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAP: Duration = Duration::from_mins(10);

    proptest! {
        /// R16, R26: whatever the number of tries, a wait lies between half the base and the cap.
        #[test]
        fn every_wait_is_within_its_bounds(tries in any::<u32>(), jitter in 0.0..=1.0) {
            let wait = backoff(tries, CAP, jitter);
            prop_assert!(wait >= BASE / 2 && wait <= CAP);
        }

        /// R16, R26: exponential: one more try never waits less, and twice as long until the cap.
        #[test]
        fn the_wait_doubles_until_the_cap(tries in 1_u32..40, jitter in 0.0..=1.0) {
            let (wait, next) = (backoff(tries, CAP, jitter), backoff(tries + 1, CAP, jitter));
            prop_assert!(next >= wait);
            if tries < 10 {
                // Floats round to a nanosecond or two.
                prop_assert!(next.abs_diff(wait * 2) < Duration::from_micros(1));
            }
        }

        /// More jitter is more wait, at most the double.
        #[test]
        fn jitter_spreads_over_half_of_the_wait(tries in any::<u32>(), a in 0.0..=1.0, b in 0.0..=1.0) {
            let (less, more) = if a < b { (a, b) } else { (b, a) };
            prop_assert!(backoff(tries, CAP, less) <= backoff(tries, CAP, more));
            prop_assert_eq!(backoff(tries, CAP, 0.0) * 2, backoff(tries, CAP, 1.0));
        }
    }

    #[test]
    fn the_first_wait_is_a_second_and_the_longest_ten_minutes() {
        assert_eq!(backoff(1, CAP, 1.0), Duration::from_secs(1));
        assert_eq!(backoff(2, CAP, 0.0), Duration::from_secs(1));
        assert_eq!(backoff(10, CAP, 1.0), Duration::from_secs(512));
        assert_eq!(backoff(11, CAP, 1.0), Duration::from_mins(10));
        assert_eq!(backoff(u32::MAX, CAP, 0.0), Duration::from_mins(5));
    }
}

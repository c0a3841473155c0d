//! What happens to many events for one cause is said once (R54): the first event is named, the others are counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};

/// How long the others of a cause are only counted.
const WINDOW: TimeDelta = TimeDelta::seconds(30);

/// The causes that were named lately, each with its others. What happened is a key of the caller's.
#[derive(Debug)]
pub(crate) struct Repeats<K, E>(Mutex<BTreeMap<K, Window<E>>>);

#[derive(Debug)]
struct Window<E> {
    ends: DateTime<Utc>,
    others: u64,
    last: Option<E>,
}

/// What became of the events that were not named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary<K, E> {
    /// What happened.
    pub(crate) cause: K,
    /// How many there were.
    pub(crate) count: u64,
    /// The last of them.
    pub(crate) example: E,
}

impl<K, E> Default for Repeats<K, E> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord, E> Repeats<K, E> {
    /// Says whether an event is to be named; if not, it is counted.
    pub(crate) fn is_first(&self, cause: K, now: DateTime<Utc>, event: impl FnOnce() -> E) -> bool {
        let mut windows = self.windows();
        if let Some(window) = windows.get_mut(&cause) {
            window.others += 1;
            window.last = Some(event());
            return false;
        }
        let window = Window {
            ends: now + WINDOW,
            others: 0,
            last: None,
        };
        windows.insert(cause, window);
        true
    }

    /// Takes what is due to be said of the others. Whoever asks does so every second or so.
    pub(crate) fn take_due(&self, now: DateTime<Utc>) -> Vec<Summary<K, E>> {
        self.take(|window| window.ends <= now)
    }

    /// Takes all that is still to be said of the others: at the end of the process.
    pub(crate) fn take_all(&self) -> Vec<Summary<K, E>> {
        self.take(|_| true)
    }

    fn take(&self, mut is_due: impl FnMut(&Window<E>) -> bool) -> Vec<Summary<K, E>> {
        let taken = self
            .windows()
            .extract_if(.., |_, window| is_due(window))
            .collect::<Vec<_>>();
        let summary = |(cause, window): (K, Window<E>)| {
            Some(Summary {
                cause,
                count: window.others,
                example: window.last?,
            })
        };
        taken.into_iter().filter_map(summary).collect()
    }

    /// A panic can't leave them half changed.
    fn windows(&self) -> MutexGuard<'_, BTreeMap<K, Window<E>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R54: of each cause the first in 30 s is named; the others are in one summary, and none is in two.
    #[test]
    fn the_first_is_named_and_the_others_are_counted() {
        let repeats = Repeats::default();
        let at = |seconds| DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds);
        let is_first = |cause, second, event| repeats.is_first(cause, at(second), || event);
        assert!(is_first("a", 0, 1));
        assert!(is_first("b", 1, 2), "another cause");
        assert!(!is_first("a", 29, 3));
        assert!(!is_first("a", 29, 4));
        assert_eq!(repeats.take_due(at(29)), []);
        let (cause, count, example) = ("a", 2, 4);
        let summary = Summary {
            cause,
            count,
            example,
        };
        assert_eq!(repeats.take_due(at(31)), [summary]);
        assert_eq!(repeats.take_due(at(90)), [], "there was one `b`");
        assert!(is_first("a", 90, 5), "a new window");
        assert!(!is_first("a", 91, 6));
        assert_eq!(repeats.take_all().len(), 1);
        assert_eq!(repeats.take_all(), []);
    }
}

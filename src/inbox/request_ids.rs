//! Which request brought an event, for the log lines of the events that wait or are in hand (R54). In memory only: what
//! another process applies has the request's id in its own line of the log alone.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many are remembered: some megabytes of the longest ones. Of a longer flood, the first are forgotten.
const MOST: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct RequestIds(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By event id.
    ids: HashMap<String, String>,
    /// The event ids, in the order in which they came; they may have been taken since.
    order: VecDeque<String>,
}

impl RequestIds {
    pub(super) fn put(&self, event_id: &str, request_id: String) {
        let mut known = self.known();
        if known.order.len() == MOST
            && let Some(first) = known.order.pop_front()
        {
            known.ids.remove(&first);
        }
        known.order.push_back(event_id.to_owned());
        known.ids.insert(event_id.to_owned(), request_id);
    }

    /// Of an event that isn't at its end.
    pub(super) fn get(&self, event_id: &str) -> Option<String> {
        self.known().ids.get(event_id).cloned()
    }

    /// Of an event that is.
    pub(super) fn take(&self, event_id: &str) -> Option<String> {
        self.known().ids.remove(event_id)
    }

    /// A panic can't leave them half changed.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R54: what is remembered is bounded, whether or not it is ever asked for.
    #[test]
    fn the_first_are_forgotten() {
        let ids = RequestIds::default();
        for n in 0..MOST + 2 {
            ids.put(&n.to_string(), format!("request {n}"));
        }
        assert_eq!(ids.get("1"), None);
        assert_eq!(ids.get("2").as_deref(), Some("request 2"));
        assert_eq!(ids.take("2").as_deref(), Some("request 2"));
        assert_eq!(ids.get("2"), None);
        let known = ids.known();
        assert_eq!((known.ids.len(), known.order.len()), (MOST - 1, MOST));
    }
}

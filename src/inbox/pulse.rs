//! What the lanes see of the recorder: whether deliveries come, and whether they crowd.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Fewer deliveries are no crowd, in an insert or during a batch of lanes. At half the rate that can be applied, nine
/// inserts of ten are smaller; at all of it over 64 connections, two of three are larger.
pub(super) const CROWD: usize = 12;

/// Written by the recorder, read by the lanes.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    entered: AtomicU64,
    storing: AtomicUsize,
    /// How many events the last insert took.
    inserted: AtomicUsize,
    calm: Notify,
}

impl Pulse {
    /// An event came to be stored: says how many came before it, its ticket.
    pub(super) fn enter(&self) -> u64 {
        self.entered.fetch_add(1, Ordering::Relaxed)
    }

    /// How many events came, ever: what two looks differ by came in between.
    pub(super) fn entered(&self) -> u64 {
        self.entered.load(Ordering::Relaxed)
    }

    /// A writer begins.
    pub(super) fn begin(&self) {
        self.storing.fetch_add(1, Ordering::Relaxed);
    }

    /// A writer takes no more.
    pub(super) fn end(&self) {
        self.storing.fetch_sub(1, Ordering::Relaxed);
    }

    /// An insert takes so many events.
    pub(super) fn insert(&self, events: usize) {
        let before = self.inserted.swap(events, Ordering::Relaxed);
        if std::cmp::max(before, events) < CROWD {
            self.calm.notify_waiters();
        }
    }

    /// Returns when deliveries are no crowd: two inserts, one after the other, were small. One alone says little: senders
    /// who were answered together come back together, and the first of them is stored alone.
    pub(super) async fn calm(&self) {
        self.calm.notified().await;
    }

    /// Nothing is being stored.
    pub(super) fn is_idle(&self) -> bool {
        self.storing.load(Ordering::Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// R18: one small insert between large ones is still a crowd.
    #[tokio::test]
    async fn two_small_inserts_after_each_other_are_calm() {
        let pulse = Pulse::default();
        pulse.insert(CROWD);
        let mut calm = pin!(pulse.calm());
        let mut is_calm = async || timeout(Duration::ZERO, calm.as_mut()).await.is_ok();
        assert!(!is_calm().await);
        for events in [1, CROWD, CROWD - 1, CROWD] {
            pulse.insert(events);
            assert!(!is_calm().await, "{events}");
        }
        pulse.insert(CROWD - 1);
        pulse.insert(1);
        assert!(is_calm().await);
    }
}

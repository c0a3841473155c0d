//! Who works on a queue, and who is slow: one worker at a time is the fastest, since what comes during a commit shares
//! the next one; another is begun beside it where many wait, or where it is slow. No I/O.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// When an insert or a batch counts as slow, because of the database or of somebody's lock.
pub(super) const SLOW: Duration = Duration::from_millis(100);

/// How many slow inserts, and how many slow batches, there may be beside the one that is worked on.
pub(super) const MAX_SLOW: usize = 3;

/// Fewer deliveries are no crowd, in an insert or during a batch of lanes. At half the rate that can be applied, nine
/// inserts of ten are smaller; at all of it over 64 connections, two of three are larger.
pub(super) const CROWD: usize = 12;

/// The workers of a queue, which owns it, under the lock that it has.
#[derive(Debug)]
pub(super) struct Crew {
    /// These take from the queue, until it is empty.
    working: usize,
    /// These take no more: they end with what they have.
    slow: usize,
    max_slow: usize,
}

impl Crew {
    pub(super) const fn new(max_slow: usize) -> Self {
        Self {
            working: 0,
            slow: 0,
            max_slow,
        }
    }

    /// Says whether a worker is to be started, where this many are `wanted`; it counts from now on.
    pub(super) const fn hire(&mut self, wanted: usize) -> bool {
        let hired = self.working < wanted && self.slow <= self.max_slow;
        if hired {
            self.working += 1;
        }
        hired
    }

    /// A worker has found nothing to take, and ends.
    pub(super) const fn leave(&mut self) {
        self.working -= 1;
    }

    /// A worker is slow: it leaves the queue to others, for good.
    pub(super) const fn step_aside(&mut self) {
        self.working -= 1;
        self.slow += 1;
    }

    /// A slow worker has ended.
    pub(super) const fn end_slow(&mut self) {
        self.slow -= 1;
    }

    /// How many are slow.
    pub(super) const fn slow(&self) -> usize {
        self.slow
    }

    /// How many more may be slow.
    pub(super) const fn spare(&self) -> usize {
        self.max_slow.saturating_sub(self.slow)
    }
}

/// What the lanes see of the recorder: whether deliveries come, and whether they crowd.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    entered: AtomicU64,
    storing: AtomicUsize,
    /// How many events the last insert took.
    inserted: AtomicUsize,
    calm: Notify,
}

impl Pulse {
    /// An event came to be stored.
    pub(super) fn enter(&self) {
        self.entered.fetch_add(1, Ordering::Relaxed);
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
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// R18: a worker that is slow is replaced, up to a number; then nobody is begun until one of them ends.
    #[test]
    fn slow_workers_are_replaced_up_to_a_number() {
        let mut crew = Crew::new(2);
        for _ in 0..3 {
            assert!(crew.hire(1));
            assert!(!crew.hire(1), "one is enough");
            crew.step_aside();
        }
        assert!(!crew.hire(1));
        crew.end_slow();
        assert!(crew.hire(1));
        crew.leave();
        assert!(crew.hire(2) && crew.hire(2) && !crew.hire(2));
    }

    /// R18: one small insert between large ones is still a crowd.
    #[test]
    fn two_small_inserts_after_each_other_are_calm() {
        let pulse = Pulse::default();
        pulse.insert(CROWD);
        let mut calm = pin!(pulse.calm());
        let mut is_calm = || {
            let polled = calm.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            polled == Poll::Ready(())
        };
        assert!(!is_calm());
        for events in [1, CROWD, CROWD - 1, CROWD] {
            pulse.insert(events);
            assert!(!is_calm(), "{events}");
        }
        pulse.insert(CROWD - 1);
        pulse.insert(1);
        assert!(is_calm());
    }
}

//! Who works on a queue, and who is slow: one worker at a time is the fastest, since what comes during a commit shares
//! the next one; another is begun beside it where many wait, or where it is slow. No I/O.

use std::time::Duration;

/// When an insert or a batch counts as slow, because of the database or of somebody's lock.
pub(super) const SLOW: Duration = Duration::from_millis(100);

/// How many slow inserts, and how many slow batches, there may be beside the one that is worked on.
pub(super) const MAX_SLOW: usize = 3;

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

#[cfg(test)]
mod tests {
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
}

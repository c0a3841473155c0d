//! The lanes that wait for a worker. No I/O.
//!
//! A lane that is woken waits, once, until a worker takes it. One that somebody holds when its turn comes goes on
//! waiting, aside, and is ready again when it is released. So no wake-up is lost, and none is wasted on a lane that
//! waits.
//!
//! What waits in memory is the names of lanes, and a bounded number of them: a wake-up that finds no room is dropped,
//! and it is remembered that the inbox has more.

use std::collections::{HashSet, VecDeque};

/// How many lanes may wait; some hundred bytes each.
pub(super) const MAX_WAITING: usize = 50_000;

/// When this few wait, the sweeper is to look for more, if there are more.
pub(super) const FEW_WAITING: usize = 2_000;

/// What became of a wake-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// The lane waits now.
    Woken,
    /// It did before.
    Awake,
    /// Too many lanes wait; the sweeper will find it.
    NoRoom,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Next in line.
    ready: VecDeque<String>,
    /// Woken while somebody else holds them.
    aside: HashSet<String>,
    /// `ready` and `aside`.
    waiting: HashSet<String>,
    /// There are lanes in the inbox that don't wait here: a wake-up was dropped, or a look wasn't the last.
    more: bool,
}

impl Queue {
    /// Has a lane wait.
    pub(super) fn wake(&mut self, lane: String) -> Wake {
        if self.waiting.contains(&lane) {
            return Wake::Awake;
        }
        if self.waiting.len() >= MAX_WAITING {
            self.more = true;
            return Wake::NoRoom;
        }
        self.waiting.insert(lane.clone());
        self.ready.push_back(lane);
        Wake::Woken
    }

    /// Takes up to `limit` lanes that are ready; `lock` locks those that nobody holds.
    pub(super) fn take<G>(
        &mut self,
        limit: usize,
        mut lock: impl FnMut(&String) -> Option<G>,
    ) -> Vec<G> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some(lane) = self.ready.pop_front()
        {
            if let Some(guard) = lock(&lane) {
                self.waiting.remove(&lane);
                taken.push(guard);
            } else {
                self.aside.insert(lane);
            }
        }
        taken
    }

    /// A lane that was held is free: it is ready if it was woken meanwhile, or is to be taken `again`.
    pub(super) fn released(&mut self, lane: &str, again: bool) {
        if self.aside.remove(lane) || (again && self.waiting.insert(lane.to_owned())) {
            self.ready.push_back(lane.to_owned());
        }
    }

    /// The inbox has more lanes than wait here.
    pub(super) const fn expect_more(&mut self) {
        self.more = true;
    }

    /// Says, once, that the sweeper is to look for more: there are more, and few wait here. Until then it would find
    /// those that wait.
    pub(super) fn wants_more(&mut self) -> bool {
        let wants = self.more && self.waiting.len() <= FEW_WAITING;
        self.more &= !wants;
        wants
    }

    /// How many lanes are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// How many lanes wait, ready or not.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// R24: the sweeper is asked for more lanes when few wait, and not before: it would find those that do.
    #[test]
    fn more_lanes_are_asked_for_when_few_wait() {
        let mut queue = Queue::default();
        // A look that wasn't the last.
        for n in 0..=FEW_WAITING {
            assert_eq!(queue.wake(n.to_string()), Wake::Woken);
        }
        queue.expect_more();
        assert!(!queue.wants_more());
        assert_eq!(queue.take(256, |_| Some(())).len(), 256);
        assert!(queue.wants_more());
        assert!(!queue.wants_more(), "there are no more");
        queue.expect_more();
        assert!(queue.wants_more());

        // A wake-up that found no room.
        let mut names = (0..).map(|n: u32| format!("another {n}"));
        let no_room = names.find(|name| queue.wake(name.clone()) == Wake::NoRoom);
        assert!(no_room.is_some());
        assert_eq!(queue.waiting(), MAX_WAITING);
        while queue.waiting() > FEW_WAITING {
            assert!(!queue.wants_more());
            queue.take(256, |_| Some(()));
        }
        assert!(queue.wants_more());
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// An event came.
        Wake(u8),
        /// A worker takes lanes.
        Take(usize),
        /// A replay takes a lane.
        Hold(u8),
        /// Whoever holds it lets go.
        Release(u8, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_u8..6).prop_map(Step::Wake),
            2 => (1_usize..4).prop_map(Step::Take),
            1 => (0_u8..6).prop_map(Step::Hold),
            2 => ((0_u8..6), any::<bool>()).prop_map(|(lane, again)| Step::Release(lane, again)),
        ]
    }

    proptest! {
        /// R18, R24: whatever the order of wake-ups, takes and releases: no lane is held twice; a lane that was woken, or
        /// is to be taken again, is taken once it is free; and no lane is taken that has no reason to be.
        #[test]
        fn no_wake_up_is_lost_and_no_lane_is_held_twice(steps in prop::collection::vec(step(), 0..60)) {
            let mut queue = Queue::default();
            let mut held = HashSet::new();
            // The lanes that have something to do that nobody has seen.
            let mut due = HashSet::new();
            for step in steps {
                match step {
                    Step::Wake(lane) => {
                        let wake = queue.wake(lane.to_string());
                        prop_assert_eq!(wake == Wake::Woken, due.insert(lane.to_string()));
                    }
                    Step::Take(limit) => {
                        let taken = queue.take(limit, |lane| held.insert(lane.clone()).then(|| lane.clone()));
                        prop_assert!(taken.len() <= limit);
                        for lane in taken {
                            prop_assert!(due.remove(&lane), "{} has nothing to do", lane);
                        }
                    }
                    Step::Hold(lane) => {
                        held.insert(lane.to_string());
                    }
                    Step::Release(lane, again) => {
                        let lane = lane.to_string();
                        if held.remove(&lane) {
                            queue.released(&lane, again);
                            if again {
                                due.insert(lane);
                            }
                        }
                    }
                }
                prop_assert_eq!(queue.waiting(), due.len());
                // A worker is started where something is ready: all that is due and free must be.
                let free = due.iter().filter(|lane| !held.contains(*lane)).count();
                prop_assert!(queue.ready() >= free);
            }
            for lane in std::mem::take(&mut held) {
                queue.released(&lane, false);
            }
            let left = queue.take(usize::MAX, |lane| Some(lane.clone()));
            prop_assert_eq!(left.into_iter().collect::<HashSet<_>>(), due);
        }
    }
}

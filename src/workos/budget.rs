//! One budget of requests for all that a process asks of WorkOS: the application shares the limit of the API key.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Nothing waits longer at WorkOS's wish: a typo of theirs must not silence us for a day.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// Who goes first where requests wait: what finds missed events, then what somebody waits for, then the write-back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// The poll of events.
    Poll,
    /// A command.
    Command,
    /// The write-back of organization ids.
    WriteBack,
}

/// Up to `per_second` requests a second, and as many at once after a second of silence.
#[derive(Debug)]
pub(super) struct Budget {
    per_second: u32,
    /// A `std` mutex: it is held for a look, never across an `.await`.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the budget would be whole again. It lies ahead of now by as much as is spent.
    whole_at: Instant,
    /// WorkOS wants no request before.
    paused_until: Instant,
    /// How many wait, by [`Priority`].
    waiting: [usize; 3],
}

impl Budget {
    pub(super) fn new(per_second: u32) -> Self {
        let now = Instant::now();
        Self {
            per_second,
            state: Mutex::new(State {
                whole_at: now,
                paused_until: now,
                waiting: [0; 3],
            }),
        }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// How long WorkOS wants to be left alone: that is too long to wait for in passing.
    pub(super) async fn take(&self, priority: Priority) -> Result<(), Duration> {
        let _place = Place::enter(self, priority);
        loop {
            let now = Instant::now();
            let turn = self.state().turn(priority, self.per_second, now)?;
            if turn <= now {
                return Ok(());
            }
            sleep_until(turn).await;
        }
    }

    /// WorkOS wants to be left alone for a while.
    pub(super) fn pause(&self, asked: Duration) {
        let until = Instant::now() + std::cmp::min(asked, LONGEST_PAUSE);
        let mut state = self.state();
        state.paused_until = std::cmp::max(state.paused_until, until);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a turn, if this is one; else says when to ask again.
    fn turn(
        &mut self,
        priority: Priority,
        per_second: u32,
        now: Instant,
    ) -> Result<Instant, Duration> {
        if now < self.paused_until {
            return Err(self.paused_until - now);
        }
        let interval = Duration::from_secs(1) / per_second;
        let whole_at = std::cmp::max(self.whole_at, now);
        let after_this = whole_at + interval;
        if after_this > now + Duration::from_secs(1) {
            return Ok(after_this - Duration::from_secs(1));
        }
        if self.waiting[..priority as usize].iter().any(|&n| n > 0) {
            // They take this one.
            return Ok(now + interval);
        }
        self.whole_at = after_this;
        Ok(now)
    }
}

/// A place among those who wait; left when dropped.
struct Place<'a> {
    budget: &'a Budget,
    priority: Priority,
}

impl<'a> Place<'a> {
    fn enter(budget: &'a Budget, priority: Priority) -> Self {
        budget.state().waiting[priority as usize] += 1;
        Self { budget, priority }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.budget.state().waiting[self.priority as usize] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as a second's at once, then one by one.
    #[test]
    fn the_budget_is_so_many_requests_a_second() {
        let budget = Budget::new(10);
        let start = Instant::now();
        let mut state = budget.state();
        let mut now = start;
        for _ in 0..30 {
            let turn = state.turn(Priority::Poll, 10, now).unwrap();
            if turn > now {
                now = turn;
                assert_eq!(state.turn(Priority::Poll, 10, now), Ok(now));
            }
        }
        let took = now - start;
        assert!(
            took > Duration::from_millis(1_900) && took < Duration::from_millis(2_100),
            "{took:?}"
        );
    }

    /// Section 9: the poll first, then commands, then the write-back.
    #[test]
    fn who_matters_more_goes_first() {
        let budget = Budget::new(10);
        let poll = Place::enter(&budget, Priority::Poll);
        let now = Instant::now();
        for behind in [Priority::Command, Priority::WriteBack] {
            assert!(budget.state().turn(behind, 10, now).unwrap() > now);
        }
        assert_eq!(budget.state().turn(Priority::Poll, 10, now), Ok(now));
        drop(poll);
        assert_eq!(budget.state().turn(Priority::WriteBack, 10, now), Ok(now));
    }

    /// A 429 pauses all of it, as long as WorkOS asks for and an hour at most.
    #[tokio::test]
    async fn a_pause_is_for_all() {
        let budget = Budget::new(10);
        budget.pause(Duration::from_secs(7));
        budget.pause(Duration::from_secs(3));
        for priority in [Priority::Poll, Priority::Command, Priority::WriteBack] {
            let left = budget.take(priority).await.unwrap_err();
            assert!(left > Duration::from_secs(6), "{left:?}");
        }
        budget.pause(Duration::MAX);
        let left = budget.take(Priority::Poll).await.unwrap_err();
        assert!(left <= LONGEST_PAUSE, "{left:?}");
    }
}

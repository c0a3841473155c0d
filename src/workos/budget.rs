//! One budget of requests for all that a process asks of WorkOS: the application shares the limit of the API key.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::backoff::backoff;

/// Nothing waits longer at WorkOS's wish: a typo of theirs must not silence us for a day.
const LONGEST_ASKED: Duration = Duration::from_hours(1);

/// Nor shorter: "Retry-After: 0" would make a busy loop.
const SHORTEST_ASKED: Duration = Duration::from_secs(1);

/// The longest pause of our own choice, where WorkOS names none: its limits are by the minute.
const LONGEST_OWN: Duration = Duration::from_mins(1);

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
    /// How many pauses there were since WorkOS last took a request.
    pauses: u32,
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
                pauses: 0,
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

    /// WorkOS limits the rate: nobody asks for as long as it wants, or else twice as long each time. Says how long that is
    /// from now.
    pub(super) fn limited(&self, asked: Option<Duration>) -> Duration {
        self.state().limited(asked, Instant::now())
    }

    /// WorkOS took a request.
    pub(super) fn taken(&self) {
        self.state().taken(Instant::now());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn limited(&mut self, asked: Option<Duration>, now: Instant) -> Duration {
        let begins = self.paused_until <= now;
        if begins {
            self.pauses = self.pauses.saturating_add(1);
        }
        let pause = match asked {
            Some(asked) => asked.clamp(SHORTEST_ASKED, LONGEST_ASKED),
            None if begins => backoff(self.pauses, LONGEST_OWN, fastrand::f64()),
            // The request was under way when the pause began.
            None => Duration::ZERO,
        };
        self.paused_until = std::cmp::max(self.paused_until, now + pause);
        self.paused_until - now
    }

    /// In a pause it says nothing: the request was under way before.
    fn taken(&mut self, now: Instant) {
        if self.paused_until <= now {
            self.pauses = 0;
        }
    }

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

    /// A 429 pauses all of it, as long as WorkOS asks for, a second at least and an hour at most.
    #[tokio::test]
    async fn a_pause_is_for_all() {
        let budget = Budget::new(10);
        assert_eq!(budget.limited(Some(Duration::ZERO)), SHORTEST_ASKED);
        budget.limited(Some(Duration::from_secs(7)));
        budget.limited(Some(Duration::from_secs(3)));
        for priority in [Priority::Poll, Priority::Command, Priority::WriteBack] {
            let left = budget.take(priority).await.unwrap_err();
            assert!(left > Duration::from_secs(6), "{left:?}");
        }
        assert_eq!(budget.limited(Some(Duration::MAX)), LONGEST_ASKED);
    }

    /// A 429 that doesn't say how long pauses all of it too, twice as long each time, until WorkOS takes a request.
    #[test]
    fn a_pause_of_our_own_grows() {
        let budget = Budget::new(10);
        let mut state = budget.state();
        let mut now = Instant::now();
        for (least, most) in [(500, 1_000), (1_000, 2_000), (2_000, 4_000)] {
            let pause = state.limited(None, now);
            let range = Duration::from_millis(least)..=Duration::from_millis(most);
            assert!(range.contains(&pause), "{pause:?}");
            assert_eq!(state.limited(None, now), pause, "of the same moment");
            assert_eq!(state.turn(Priority::Poll, 10, now), Err(pause));
            state.taken(now);
            now += pause;
            assert!(state.turn(Priority::Poll, 10, now).is_ok());
        }
        state.taken(now);
        assert!(state.limited(None, now) <= Duration::from_secs(1));
    }
}

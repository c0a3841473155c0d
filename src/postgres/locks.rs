//! Places for locks, which the server has a fixed number of, for us and for the application together (R22).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A process takes a tenth of the places at most.
const SHARE: usize = 10;

/// A lane takes two: its own, and that of a slug, where it creates an organization.
const LOCKS_A_LANE: usize = 2;

/// Each transaction takes one more, that of the pause.
const LOCKS_BESIDE: usize = 1;

/// How many large transactions find room at the same time: while one of them waits for its commit and one for a statement,
/// the third works.
const TRANSACTIONS: usize = 3;

/// How many of them may create an organization in each of their lanes. Were it all three, so with smaller ones, `create`
/// ran at 0.95 times the rate; with one of two, which were larger, at 0.93.
const CREATING: usize = 2;

/// The places for advisory locks that this process may take.
#[derive(Debug)]
pub struct LockBudget {
    lanes: Arc<Semaphore>,
    slugs: Arc<Semaphore>,
    most_lanes: usize,
}

/// The places of a transaction, for as long as it lasts.
#[derive(Debug)]
pub struct Places {
    /// Where those of slugs come from, and how many there are; nowhere, if they are set aside.
    slugs: Option<(Arc<Semaphore>, usize)>,
    taken: Vec<OwnedSemaphorePermit>,
}

impl LockBudget {
    /// Of a server with this many places for locks. `alone` transactions of one lane each need not ask here.
    #[must_use]
    pub fn new(server: usize, alone: usize) -> Self {
        let others = alone * (LOCKS_A_LANE + LOCKS_BESIDE) + TRANSACTIONS * LOCKS_BESIDE;
        let budget = (server / SHARE).saturating_sub(others);
        let most_lanes = std::cmp::max(budget / (TRANSACTIONS + CREATING), 1);
        Self {
            lanes: Arc::new(Semaphore::new(most_lanes * TRANSACTIONS)),
            slugs: Arc::new(Semaphore::new(most_lanes * CREATING)),
            most_lanes,
        }
    }

    /// How many lanes a transaction may take at most.
    #[must_use]
    pub const fn most_lanes(&self) -> usize {
        self.most_lanes
    }

    /// Waits until there is room for a transaction of this many lanes.
    pub async fn take(&self, lanes: usize) -> Places {
        Places {
            slugs: Some((Arc::clone(&self.slugs), self.most_lanes)),
            taken: vec![acquire(&self.lanes, std::cmp::min(lanes, self.most_lanes)).await],
        }
    }
}

impl Places {
    /// Those of a transaction of one lane, which are set aside.
    #[must_use]
    pub const fn set_aside() -> Self {
        Self {
            slugs: None,
            taken: Vec::new(),
        }
    }

    /// Waits until there is room for the locks of slugs, up to one for each lane. A transaction asks once, and then for
    /// nothing else: so nobody waits in a circle.
    pub async fn take_slugs(&mut self, slugs: usize) {
        if let Some((all, most)) = &self.slugs {
            self.taken
                .push(acquire(all, std::cmp::min(slugs, *most)).await);
        }
    }
}

async fn acquire(places: &Arc<Semaphore>, count: usize) -> OwnedSemaphorePermit {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let places = Arc::clone(places).acquire_many_owned(count).await;
    places.expect("the semaphore is never closed")
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// What a future comes to that has nothing to wait for.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    /// R22: a tenth of the places, on servers of any size; what a transaction takes is what it asks for.
    #[tokio::test]
    async fn a_tenth_of_the_places_is_taken_at_most() {
        for (server, lanes) in [
            (6_400, 122),
            (3_200, 58),
            (1_280, 20),
            (100, 1),
            (64_000, 1_274),
        ] {
            let budget = LockBudget::new(server, 8);
            assert_eq!(budget.most_lanes(), lanes, "{server}");
            let mut first = budget.take(lanes).await;
            let mut second = budget.take(lanes).await;
            let mut third = budget.take(lanes).await;
            assert!(now(budget.take(1)).is_none(), "{server}");
            first.take_slugs(lanes).await;
            second.take_slugs(lanes).await;
            assert!(now(third.take_slugs(1)).is_none(), "{server}");
            let most = TRANSACTIONS * (lanes + LOCKS_BESIDE)
                + CREATING * lanes
                + 8 * (LOCKS_A_LANE + LOCKS_BESIDE);
            assert!(most <= std::cmp::max(server / 10, 32), "{most} of {server}");

            // What a transaction had is free after it.
            drop(first);
            assert!(now(third.take_slugs(lanes)).is_some());
            assert!(now(budget.take(lanes)).is_some());
        }
    }
}

//! Places for locks, which the server has a fixed number of, for us and for the application together (R22).

use tokio::sync::{Semaphore, SemaphorePermit};

/// A process takes a tenth of the places at most.
const SHARE: usize = 10;

/// A lane takes two: its own, and that of a slug, where it creates an organization.
const LOCKS_A_LANE: usize = 2;

/// Each transaction takes one more, that of the pause.
const LOCKS_BESIDE: usize = 1;

/// How many large transactions find room at the same time: one that waits for its commit, and one that works.
const TRANSACTIONS: usize = 2;

/// The places for advisory locks that this process may take.
#[derive(Debug)]
pub(super) struct LockBudget {
    places: Semaphore,
    lanes: usize,
}

impl LockBudget {
    /// Of a server with this many places for locks. `alone` transactions of one lane each need not ask here.
    pub(super) fn new(server: usize, alone: usize) -> Self {
        let others = alone * (LOCKS_A_LANE + LOCKS_BESIDE) + TRANSACTIONS * LOCKS_BESIDE;
        let budget = (server / SHARE).saturating_sub(others);
        let lanes = std::cmp::max(budget / TRANSACTIONS / LOCKS_A_LANE, 1);
        Self {
            places: Semaphore::new(lanes * TRANSACTIONS * LOCKS_A_LANE),
            lanes,
        }
    }

    /// How many lanes a transaction may take at most.
    pub(super) const fn lanes(&self) -> usize {
        self.lanes
    }

    /// Waits until there is room for a transaction of this many lanes. The places are free again when the permit is
    /// dropped: after the transaction.
    pub(super) async fn take(&self, lanes: usize) -> SemaphorePermit<'_> {
        let lanes = std::cmp::min(lanes, self.lanes);
        let places = u32::try_from(lanes * LOCKS_A_LANE).unwrap_or(u32::MAX);
        self.places
            .acquire_many(places)
            .await
            .expect("the semaphore is never closed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R22: a tenth of the places, on servers of any size; what a transaction takes is what it asks for.
    #[tokio::test]
    async fn a_tenth_of_the_places_is_taken_at_most() {
        for (server, lanes) in [
            (6_400, 153),
            (3_200, 73),
            (1_280, 25),
            (100, 1),
            (64_000, 1_593),
        ] {
            let budget = LockBudget::new(server, 8);
            assert_eq!(budget.lanes(), lanes, "{server}");
            let all = [budget.take(lanes).await, budget.take(lanes).await];
            assert_eq!(budget.places.available_permits(), 0);
            let most = all.len() * (lanes * LOCKS_A_LANE + LOCKS_BESIDE)
                + 8 * (LOCKS_A_LANE + LOCKS_BESIDE);
            assert!(most <= std::cmp::max(server / 10, 30), "{most} of {server}");
        }
    }
}

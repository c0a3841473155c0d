//! Stores saved events in bulk, and applies them in the transaction that stores them: nothing is written twice, and
//! nothing is read again (R25).
//!
//! It is for a replay, of which nobody awaits the single event: the sender of a delivery is answered as soon as it is
//! stored. Nobody is waited for either. Events whose organization somebody else works on, or that have others before
//! them in the inbox, are stored as pending (R24). Where the transaction comes to nothing, whatever the reason, all of
//! them are, and the lanes find out which of them was the reason (R26).

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::resume_unwind;
use std::time::Instant;

use sqlx::PgConnection;
use tracing::debug;

use super::lanes::HeldLane;
use super::process::{AttemptError, Settling};
use super::record::Answer;
use super::store::{self, InTheWay, NewEvent};
use super::{Inbox, RecordError, Recorded, Source};
use crate::event::{Event, OrganizationEvent};
use crate::sync::{self, Outcome, Patience};

/// How many transactions there are at once: while one waits for the disk, another is computed.
const SIDES: usize = 4;

/// The most events of a transaction. Those of all sides find room among those that wait to be stored, if it comes to
/// that.
const MOST_EVENTS: usize = 1_000;

/// The most bytes of a transaction's bodies. More are stored as deliveries are, in smaller pieces.
const MOST_BYTES: usize = 16 * 1_024 * 1_024;

/// A saved event.
struct Saved {
    event: NewEvent,
    /// What it says of its organization; nothing, if that can't be applied.
    decoded: Option<OrganizationEvent>,
}

impl Saved {
    fn lane(&self) -> Option<&str> {
        self.decoded.as_ref().map(|event| event.workos_id.as_str())
    }
}

/// What a transaction did.
struct Bulk<'e> {
    /// The ids of the events that are new.
    stored: Vec<String>,
    applied: Vec<(&'e NewEvent, Outcome)>,
    /// The outbox has something to do.
    push_recorded: bool,
}

impl Inbox {
    /// Makes saved events durable, and has those applied that nobody is in the way of; [`settle`](Self::settle) does the
    /// rest. Of an organization, they are best given in the order of their ids.
    ///
    /// # Errors
    /// For each event, those of [`record`](Self::record).
    pub async fn record_all(&self, events: &[Event<'_>]) -> Vec<Result<Recorded, RecordError>> {
        // Side by side, and no organization is on two sides.
        let mut sides = [const { Vec::new() }; SIDES];
        for (place, event) in events.iter().enumerate() {
            let mut hasher = DefaultHasher::new();
            event.workos_id.hash(&mut hasher);
            let hash = usize::try_from(hasher.finish() >> 32).unwrap_or_default();
            sides[hash % SIDES].push((place, self.saved(event)));
        }
        // As tasks, which nobody's hang-up cancels while they hold lanes.
        let working = sides.map(|side| self.inner.lanes.spawn(self.clone().store_side(side)));
        let mut answers = Vec::with_capacity(events.len());
        for side in working {
            // Nobody cancels it.
            answers.extend(
                side.await
                    .unwrap_or_else(|error| resume_unwind(error.into_panic())),
            );
        }
        answers.sort_unstable_by_key(|(place, _)| *place);
        answers
            .into_iter()
            .zip(events)
            .map(|((_, is_new), event)| {
                let ignored = event.organization_event_type().is_none();
                Ok(Recorded::new(is_new?, ignored))
            })
            .collect()
    }

    fn saved(&self, event: &Event<'_>) -> Saved {
        Saved {
            event: self.new_event(event, Source::Replay),
            decoded: event.organization().ok(),
        }
    }

    /// Says of each event whether it is new.
    async fn store_side(self, mut events: Vec<(usize, Saved)>) -> Vec<(usize, Answer)> {
        let mut answers = Vec::with_capacity(events.len());
        while !events.is_empty() {
            let rest = events.split_off(std::cmp::min(MOST_EVENTS, events.len()));
            answers.extend(
                self.store_in_bulk(std::mem::replace(&mut events, rest))
                    .await,
            );
        }
        answers
    }

    async fn store_in_bulk(&self, mut events: Vec<(usize, Saved)>) -> Vec<(usize, Answer)> {
        // Whoever else inserts does it in this order too.
        events.sort_by(|(_, a), (_, b)| a.event.event_id.cmp(&b.event.event_id));
        let (places, events): (Vec<_>, Vec<_>) = events.into_iter().unzip();
        let answers = if let Some(new) = self.apply_in_bulk(&events).await {
            let mut new: HashSet<_> = new.into_iter().collect();
            let is_new = |saved: &Saved| Ok(new.remove(&saved.event.event_id));
            events.iter().map(is_new).collect()
        } else {
            let events = events.into_iter().map(|saved| saved.event).collect();
            self.store_all(events).await
        };
        places.into_iter().zip(answers).collect()
    }

    /// Stores events, and applies those that nobody is in the way of; says which are new. `None` if that came to
    /// nothing, and nothing is stored.
    async fn apply_in_bulk(&self, events: &[Saved]) -> Option<Vec<String>> {
        let bytes: usize = events.iter().map(|saved| saved.event.body.len()).sum();
        if bytes > MOST_BYTES {
            return None;
        }
        let lanes: BTreeSet<_> = events.iter().filter_map(Saved::lane).collect();
        let held = self.inner.lanes.hold(lanes);
        let started = Instant::now();
        let result = self
            .within(async |tx: &mut PgConnection| self.attempt_in_bulk(tx, events, &held).await)
            .await;
        self.release(held, false);
        match result {
            Ok(Bulk {
                stored,
                applied,
                push_recorded,
            }) => {
                if push_recorded {
                    self.inner.outbox.wake();
                }
                if !applied.is_empty() {
                    self.inner.metrics.apply(started.elapsed());
                }
                self.count_steps(applied.len());
                for (event, outcome) in applied {
                    self.tell(&Settling::of_new(event), Some(outcome));
                }
                Some(stored)
            }
            Err(error) => {
                let events = events.len();
                debug!(%error, events, "saved events are stored, to be applied later: {error}");
                None
            }
        }
    }

    /// Locks, looks, applies and stores in one transaction.
    async fn attempt_in_bulk<'e>(
        &self,
        tx: &mut PgConnection,
        events: &'e [Saved],
        held: &[HeldLane],
    ) -> Result<Bulk<'e>, AttemptError> {
        let inner = &self.inner;
        let now = inner.clock.now();
        let names: Vec<_> = held.iter().map(|lane| lane.name.clone()).collect();
        let ids: Vec<_> = events
            .iter()
            .map(|saved| saved.event.event_id.as_str())
            .collect();
        let locked = sync::lock_organizations(tx, &names, Patience::Try).await?;
        let mut free: HashSet<_> = locked.iter().map(String::as_str).collect();
        // Of an id that comes twice, the first is the new one.
        let mut known = HashSet::new();
        let in_the_way = store::in_the_way(tx, &ids, &names).await?;
        for found in &in_the_way {
            match found {
                InTheWay::Event(id) => known.insert(id.as_str()),
                InTheWay::Lane(lane) => free.remove(lane.as_str()),
            };
        }
        let new: Vec<_> = events
            .iter()
            .filter(|saved| known.insert(&saved.event.event_id))
            .collect();

        let mut applied: Vec<_> = new
            .iter()
            .enumerate()
            .filter(|(_, saved)| saved.lane().is_some_and(|lane| free.contains(lane)))
            .filter_map(|(place, saved)| Some((place, saved.decoded.clone()?)))
            .collect();
        applied.sort_by_cached_key(|(_, event)| (event.workos_id.to_string(), event.id.order()));
        let (places, applied): (Vec<_>, Vec<_>) = applied.into_iter().unzip();
        let result = sync::apply(tx, &applied, &inner.namespace, now).await?;
        let mut outcomes = vec![None; new.len()];
        for (place, outcome) in places.into_iter().zip(result.outcomes) {
            outcomes[place] = Some(outcome);
        }
        let rows: Vec<_> = new.iter().map(|saved| &saved.event).collect();
        let stored = store::insert_settled(tx, &rows, &outcomes, Some(now)).await?;
        if stored.len() < new.len() {
            // Somebody else stored one of them meanwhile, and it may be one of the applied.
            return Err(AttemptError::Conflict);
        }
        let applied = rows.into_iter().zip(outcomes);
        Ok(Bulk {
            stored,
            applied: applied
                .filter_map(|(event, outcome)| Some((event, outcome?)))
                .collect(),
            push_recorded: result.push_recorded,
        })
    }
}

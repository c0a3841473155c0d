//! Stores saved events in bulk, and applies them in the transaction that stores them: nothing is written twice, and
//! nothing is read again (R25).
//!
//! It is for a replay, of which nobody awaits the single event: the sender of a delivery is answered as soon as it is
//! stored. Nobody is waited for either. Events whose organization somebody else works on, or that have others before
//! them in the inbox, are stored as pending (R24). Where the transaction comes to nothing, whatever the reason, all of
//! them are, and the lanes find out which of them was the reason (R26).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::resume_unwind;
use std::time::Instant;

use sqlx::PgConnection;
use tracing::debug;

use super::lanes::HeldLane;
use super::process::{AttemptError, Settling};
use super::record::Stored;
use super::store::{self, InTheWay, NewEvent};
use super::{Inbox, RecordError, Recorded, Source};
use crate::event::{EnvelopeError, EventId, OrganizationEvent};
use crate::sync::{self, Outcome, Patience};

/// How many transactions there are at once: while one waits for the disk, another is computed.
const SIDES: usize = 4;

/// The most events of a transaction. Those of all sides find room among those that wait to be stored, if it comes to
/// that.
const MOST_EVENTS: usize = 1_000;

/// The most bytes of a transaction's bodies. More are stored as deliveries are, in smaller pieces.
const MOST_BYTES: usize = 16 * 1_024 * 1_024;

/// A saved event.
#[derive(Debug)]
pub struct SavedEvent {
    event: NewEvent,
    /// What it says of its organization; nothing, if that can't be applied.
    decoded: Option<OrganizationEvent>,
}

/// What became of a saved event.
#[derive(Debug)]
pub struct Replayed {
    /// Its id.
    pub event_id: EventId,
    /// What recording it did.
    pub recorded: Recorded,
    /// How it was applied, if it was; one that was accepted and wasn't applied waits.
    pub outcome: Option<Outcome>,
}

/// The same, with the event's place among those that were given.
type Answer = (usize, Result<Replayed, RecordError>);

impl SavedEvent {
    /// The id of the event.
    #[must_use]
    pub const fn id(&self) -> &EventId {
        self.event.id()
    }

    fn lane(&self) -> Option<&str> {
        self.decoded.as_ref().map(|event| event.workos_id.as_str())
    }
}

/// What a transaction did.
struct Bulk<'e> {
    /// The events that are new, and how they were applied, if they were.
    new: Vec<(&'e NewEvent, Option<Outcome>)>,
    /// The outbox has something to do.
    push_recorded: bool,
}

impl Inbox {
    /// Reads a saved event.
    ///
    /// # Errors
    /// The body is no event.
    pub fn read_saved(&self, body: Vec<u8>) -> Result<SavedEvent, EnvelopeError> {
        let (event, decoded) = self.read_with(body, None, Source::Replay, |event| {
            event.organization().ok()
        })?;
        Ok(SavedEvent { event, decoded })
    }

    /// Makes saved events durable, and has those applied that nobody is in the way of;
    /// [`settle_events`](Self::settle_events) does the rest. Of an organization, they are best given in the order of
    /// their ids.
    ///
    /// # Errors
    /// For each event, those of [`record`](Self::record).
    pub async fn record_all(&self, events: Vec<SavedEvent>) -> Vec<Result<Replayed, RecordError>> {
        let mut answers = Vec::with_capacity(events.len());
        // Side by side, and no organization is on two sides.
        let mut sides = [const { Vec::new() }; SIDES];
        for (place, saved) in events.into_iter().enumerate() {
            let mut hasher = DefaultHasher::new();
            saved.event.organization_id.hash(&mut hasher);
            let hash = usize::try_from(hasher.finish() >> 32).unwrap_or_default();
            sides[hash % SIDES].push((place, saved));
        }
        // As tasks, which nobody's hang-up cancels while they hold lanes.
        let working = sides.map(|side| self.inner.lanes.spawn(self.clone().store_side(side)));
        for side in working {
            // Nobody cancels it.
            answers.extend(
                side.await
                    .unwrap_or_else(|error| resume_unwind(error.into_panic())),
            );
        }
        answers.sort_unstable_by_key(|(place, _)| *place);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    async fn store_side(self, mut events: Vec<(usize, SavedEvent)>) -> Vec<Answer> {
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

    async fn store_in_bulk(&self, mut events: Vec<(usize, SavedEvent)>) -> Vec<Answer> {
        // Whoever else inserts does it in this order too.
        events.sort_by(|(_, a), (_, b)| a.id().as_str().cmp(b.id().as_str()));
        let (places, events): (Vec<_>, Vec<_>) = events.into_iter().unzip();
        let of_each: Vec<_> = events
            .iter()
            .map(|saved| (saved.id().clone(), saved.event.ignored))
            .collect();
        let stored: Vec<Result<_, RecordError>> =
            if let Some(mut new) = self.apply_in_bulk(&events).await {
                // Of an id that came twice, the first is the new one.
                let ids = of_each.iter().map(|(id, _)| id.as_str());
                ids.map(|id| Ok(new.remove(id))).collect()
            } else {
                let events = events.into_iter().map(|saved| saved.event).collect();
                let stored = self.store_all(events).await.into_iter();
                let is_new = |stored| matches!(stored, Stored::New).then_some(None);
                stored.map(|answer| answer.map(is_new)).collect()
            };
        let answers = of_each
            .into_iter()
            .zip(stored)
            .map(|((event_id, ignored), stored)| {
                let stored = stored?;
                Ok(Replayed {
                    event_id,
                    recorded: Recorded::new(stored.is_some(), ignored),
                    outcome: stored.flatten(),
                })
            });
        places.into_iter().zip(answers).collect()
    }

    /// Stores events, and applies those that nobody is in the way of; says which are new, and how they were applied, if
    /// they were. `None` if that came to nothing, and nothing is stored.
    async fn apply_in_bulk(
        &self,
        events: &[SavedEvent],
    ) -> Option<HashMap<String, Option<Outcome>>> {
        let bytes: usize = events.iter().map(|saved| saved.event.body.len()).sum();
        if bytes > MOST_BYTES {
            return None;
        }
        let lanes: BTreeSet<_> = events.iter().filter_map(SavedEvent::lane).collect();
        let held = self.inner.lanes.hold(lanes);
        let started = Instant::now();
        let result = self
            .within(async |tx: &mut PgConnection| self.attempt_in_bulk(tx, events, &held).await)
            .await;
        self.release(held, false);
        match result {
            Ok(Bulk { new, push_recorded }) => {
                if push_recorded {
                    self.inner.outbox.wake();
                }
                let mut applied = 0;
                for (event, outcome) in &new {
                    if outcome.is_some() {
                        applied += 1;
                        self.tell(&Settling::of_new(event), *outcome);
                    }
                }
                if applied > 0 {
                    self.inner.metrics.apply(started.elapsed());
                }
                self.count_steps(applied);
                let by_id =
                    |(event, outcome): (&NewEvent, _)| (event.event_id.to_string(), outcome);
                Some(new.into_iter().map(by_id).collect())
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
        events: &'e [SavedEvent],
        held: &[HeldLane],
    ) -> Result<Bulk<'e>, AttemptError> {
        let inner = &self.inner;
        let now = inner.clock.now();
        let names: Vec<_> = held.iter().map(|lane| lane.name.clone()).collect();
        let ids: Vec<_> = events.iter().map(|saved| saved.id().as_str()).collect();
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
            .filter(|saved| known.insert(saved.id().as_str()))
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
        Ok(Bulk {
            new: rows.into_iter().zip(outcomes).collect(),
            push_recorded: result.push_recorded,
        })
    }
}

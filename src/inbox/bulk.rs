//! Stores saved events in bulk, and applies them in the transaction that stores them: nothing is written twice, and
//! nothing is read again (R25).
//!
//! Used by `replay`, where nobody waits for an individual event. (A webhook's sender does, and is answered as soon as the
//! event is stored.) It doesn't wait for busy organizations either: events whose organization somebody else works on, or
//! that have others before them in the inbox, are stored as pending (R24). Where the transaction comes to nothing,
//! whatever the reason, or there is a pause (R49), all of them are, and the lanes find out which of them was the reason (R26).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::resume_unwind;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::conditions::Conditions;
use super::failure::{AttemptError, Failure};
use super::lanes::{Lanes, TakenLane};
use super::record::{Recorder, Stored};
use super::status::{EventName, RecordError, Recorded, Source};
use super::store::NewEvent;
use super::transaction::Transactions;
use crate::entities::guard::Replay;
use crate::entities::{self, Decoded, Outcome};
use crate::event::{EnvelopeError, Event, EventId};

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
    /// What it says; nothing, if that can't be applied.
    decoded: Option<Decoded>,
}

impl SavedEvent {
    /// Reads a saved event.
    pub(super) fn read(
        body: Vec<u8>,
        source: Source,
        now: DateTime<Utc>,
    ) -> Result<Self, EnvelopeError> {
        let decode = |event: &Event<'_>| entities::decode(event, Replay::No).ok().flatten();
        let (event, decoded) = NewEvent::read(body, None, source, now, decode)?;
        Ok(Self { event, decoded })
    }

    /// What the log calls it.
    #[must_use]
    pub fn name(&self) -> EventName {
        self.event.name()
    }

    /// The id of the event.
    #[must_use]
    pub const fn id(&self) -> &EventId {
        self.event.id()
    }
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

#[derive(Debug, Clone)]
pub(super) struct Bulk {
    pub(super) recorder: Arc<Recorder>,
    pub(super) lanes: Arc<Lanes>,
    pub(super) transactions: Arc<Transactions>,
    pub(super) conditions: Arc<Conditions>,
    pub(super) tracker: TaskTracker,
}

impl Bulk {
    /// Stores events, and has those applied that nobody is in the way of.
    pub(super) async fn record_all(
        &self,
        events: Vec<SavedEvent>,
    ) -> Vec<Result<Replayed, RecordError>> {
        let mut answers = Vec::with_capacity(events.len());
        // Side by side, and no organization is on two sides.
        let mut sides = [const { Vec::new() }; SIDES];
        for (place, saved) in events.into_iter().enumerate() {
            let mut hasher = DefaultHasher::new();
            saved.event.lane().hash(&mut hasher);
            let hash = usize::try_from(hasher.finish() >> 32).unwrap_or_default();
            sides[hash % SIDES].push((place, saved));
        }
        // As tasks, which nobody's hang-up cancels while they hold lanes.
        let working = sides.map(|side| self.tracker.spawn(self.clone().store_side(side)));
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

    async fn store_side(self, events: Vec<(usize, SavedEvent)>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(events.len());
        for part in self.parts(events) {
            answers.extend(self.store_part(part).await);
        }
        answers
    }

    /// Cuts events into parts for a transaction each, by number and by lanes.
    fn parts(&self, events: Vec<(usize, SavedEvent)>) -> Vec<Vec<(usize, SavedEvent)>> {
        let most_lanes = self.transactions.most_lanes();
        let mut parts = vec![Vec::new()];
        let mut lanes = HashSet::new();
        for (place, saved) in events {
            let lane = saved.event.lane().to_owned();
            let events = parts.last().map_or(0, Vec::len);
            if events == MOST_EVENTS || (lanes.len() == most_lanes && !lanes.contains(&lane)) {
                parts.push(Vec::new());
                lanes.clear();
            }
            lanes.insert(lane);
            parts.last_mut().expect("there is one").push((place, saved));
        }
        parts
    }

    async fn store_part(&self, mut part: Vec<(usize, SavedEvent)>) -> Vec<Answer> {
        // Whoever else inserts does it in this order too.
        part.sort_by(|(_, a), (_, b)| a.id().as_str().cmp(b.id().as_str()));
        let mut places = Vec::with_capacity(part.len());
        let mut events = Vec::with_capacity(part.len());
        let mut decoded = Vec::with_capacity(part.len());
        for (place, saved) in part {
            places.push((place, saved.id().clone(), saved.event.ignored));
            events.push(saved.event);
            decoded.push(saved.decoded);
        }
        // Of each that is new, how it was applied, if it was.
        let stored: Vec<Result<_, RecordError>> =
            if let Some(mut new) = self.apply(&events, decoded).await {
                // Of an id that came twice, the first is the new one.
                let ids = events.iter().map(|event| event.id().as_str());
                ids.map(|id| Ok(new.remove(id))).collect()
            } else {
                let stored = self.recorder.store_all(events).await.into_iter();
                let is_new = |stored| matches!(stored, Stored::New).then_some(None);
                stored.map(|answer| answer.map(is_new)).collect()
            };
        let answers = places.into_iter().zip(stored);
        answers
            .map(|((place, event_id, ignored), stored)| {
                let replayed = stored.map(|stored| Replayed {
                    event_id,
                    recorded: Recorded::new(stored.is_some(), ignored),
                    outcome: stored.flatten(),
                });
                (place, replayed)
            })
            .collect()
    }

    /// Stores events, and applies those that nobody is in the way of; says which are new, and how they were applied, if
    /// they were. `None` if that came to nothing, and nothing is stored.
    async fn apply(
        &self,
        events: &[NewEvent],
        decoded: Vec<Option<Decoded>>,
    ) -> Option<HashMap<String, Option<Outcome>>> {
        let bytes: usize = events.iter().map(|event| event.body.len()).sum();
        if bytes > MOST_BYTES || self.conditions.is_paused() {
            return None;
        }
        let lanes: BTreeSet<_> = decoded.iter().flatten().map(Decoded::lane).collect();
        let taken = self.lanes.take_all(lanes);
        let names: Vec<_> = taken.iter().map(TakenLane::name).collect();
        let with_decoded = events.iter().zip(decoded).collect();
        match self.transactions.store(with_decoded, &names).await {
            Ok(new) => Some(new),
            Err(Failure {
                error: AttemptError::Paused,
                ..
            }) => {
                self.conditions.pause_met();
                None
            }
            Err(failure) => {
                let (error, events) = (failure.error, events.len());
                debug!(%error, events, "saved events are stored, to be applied later: {error}");
                None
            }
        }
    }
}

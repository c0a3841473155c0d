//! Stores saved events in bulk, and applies them in the transaction that stores them: nothing is written twice, and
//! nothing is read again (R25).
//!
//! Used by `replay`, where nobody waits for an individual event. (A webhook's sender does, and is answered as soon as the
//! event is stored.) It doesn't wait for busy organizations either: events whose organization somebody else works on, or
//! that have others before them in the inbox, are stored as pending (R24). Where the transaction comes to nothing,
//! whatever the reason, or there is a pause (R49), all of them are, and the lanes find out which of them was the reason (R26).

use std::collections::{BTreeSet, HashMap};
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
use crate::postgres::Session;

/// How many transactions there are at once: while one waits for the disk, another is computed.
const SIDES: usize = 3;

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
        let mut session = self.transactions.session();
        for part in self.parts(events) {
            answers.extend(self.store_part(&mut session, part).await);
        }
        answers
    }

    /// Cuts events into parts for a transaction each, by number and by lanes. All of a lane come together: its row is written
    /// once for them.
    fn parts(&self, mut events: Vec<(usize, SavedEvent)>) -> Vec<Vec<(usize, SavedEvent)>> {
        events.sort_by(|(_, a), (_, b)| a.event.lane().cmp(b.event.lane()));
        let most_lanes = self.transactions.most_lanes();
        let mut parts = Vec::new();
        let mut part: Vec<(usize, SavedEvent)> = Vec::new();
        let mut lanes = 0;
        for (place, saved) in events {
            let last = part.last().map(|(_, last)| last.event.lane());
            let is_new_lane = last != Some(saved.event.lane());
            if part.len() == MOST_EVENTS || (is_new_lane && lanes == most_lanes) {
                parts.push(std::mem::take(&mut part));
                lanes = 0;
            }
            lanes += usize::from(is_new_lane || part.is_empty());
            part.push((place, saved));
        }
        parts.push(part);
        parts
    }

    async fn store_part(
        &self,
        session: &mut Session<'_>,
        mut part: Vec<(usize, SavedEvent)>,
    ) -> Vec<Answer> {
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
            if let Some(mut new) = self.apply(session, &events, decoded).await {
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
        session: &mut Session<'_>,
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
        let stored = self.transactions.store(session, with_decoded, &names);
        match stored.await {
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

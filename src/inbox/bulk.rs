//! Stores saved events in bulk, and applies them in the transaction that stores them: nothing is written twice, and
//! nothing is read again (R25).
//!
//! Used by `replay`, where nobody waits for an individual event. (A webhook's sender does, and is answered as soon as the
//! event is stored.) It doesn't wait for busy organizations either: events whose organization somebody else works on, or
//! that have others before them in the inbox, are stored as pending (R24). Where the transaction comes to nothing,
//! whatever the reason, all of them are, and the lanes find out which of them was the reason (R26).

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::resume_unwind;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::lanes::{Lanes, TakenLane};
use super::record::{Answer, Recorder};
use super::status::{RecordError, Recorded, Source};
use super::store::NewEvent;
use super::transaction::Transactions;
use crate::event::{Event, OrganizationEvent};

/// How many transactions there are at once: while one waits for the disk, another is computed.
const SIDES: usize = 4;

/// The most events of a transaction. Those of all sides find room among those that wait to be stored, if it comes to
/// that.
const MOST_EVENTS: usize = 1_000;

/// The most bytes of a transaction's bodies. More are stored as deliveries are, in smaller pieces.
const MOST_BYTES: usize = 16 * 1_024 * 1_024;

/// A saved event.
struct Saved {
    /// Where it stands among those that were given.
    place: usize,
    event: NewEvent,
    /// What it says of its organization; nothing, if that can't be applied.
    decoded: Option<OrganizationEvent>,
}

#[derive(Debug, Clone)]
pub(super) struct Bulk {
    pub(super) recorder: Arc<Recorder>,
    pub(super) lanes: Arc<Lanes>,
    pub(super) transactions: Arc<Transactions>,
    pub(super) tracker: TaskTracker,
}

impl Bulk {
    /// Stores events, and has those applied that nobody is in the way of.
    pub(super) async fn record_all(
        &self,
        events: &[Event<'_>],
        now: DateTime<Utc>,
    ) -> Vec<Result<Recorded, RecordError>> {
        // Side by side, and no organization is on two sides.
        let mut sides = [const { Vec::new() }; SIDES];
        for (place, event) in events.iter().enumerate() {
            let mut hasher = DefaultHasher::new();
            event.workos_id.hash(&mut hasher);
            let hash = usize::try_from(hasher.finish() >> 32).unwrap_or_default();
            sides[hash % SIDES].push(Saved {
                place,
                event: NewEvent::new(event, Source::Replay, now),
                decoded: event.organization().ok(),
            });
        }
        // As tasks, which nobody's hang-up cancels while they hold lanes.
        let working = sides.map(|side| self.tracker.spawn(self.clone().store_side(side)));
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

    /// Says of each event whether it is new.
    async fn store_side(self, events: Vec<Saved>) -> Vec<(usize, Answer)> {
        let mut answers = Vec::with_capacity(events.len());
        for part in self.parts(events) {
            answers.extend(self.store_part(part).await);
        }
        answers
    }

    /// Cuts events into parts for a transaction each, by number and by lanes.
    fn parts(&self, events: Vec<Saved>) -> Vec<Vec<Saved>> {
        let most_lanes = self.transactions.most_lanes();
        let mut parts = vec![Vec::new()];
        let mut lanes = HashSet::new();
        for saved in events {
            let lane = saved.event.lane().to_owned();
            let part = parts.last().map_or(0, Vec::len);
            if part == MOST_EVENTS || (lanes.len() == most_lanes && !lanes.contains(&lane)) {
                parts.push(Vec::new());
                lanes.clear();
            }
            lanes.insert(lane);
            parts.last_mut().expect("there is one").push(saved);
        }
        parts
    }

    async fn store_part(&self, mut part: Vec<Saved>) -> Vec<(usize, Answer)> {
        // Whoever else inserts does it in this order too.
        part.sort_by(|a, b| a.event.event_id.cmp(&b.event.event_id));
        let mut places = Vec::with_capacity(part.len());
        let mut events = Vec::with_capacity(part.len());
        let mut decoded = Vec::with_capacity(part.len());
        for saved in part {
            places.push(saved.place);
            events.push(saved.event);
            decoded.push(saved.decoded);
        }
        let answers = if let Some(new) = self.apply(&events, decoded).await {
            let mut new: HashSet<_> = new.into_iter().collect();
            let is_new = |event: &NewEvent| Ok(new.remove(&event.event_id));
            events.iter().map(is_new).collect()
        } else {
            self.recorder.store_all(events).await
        };
        places.into_iter().zip(answers).collect()
    }

    /// Stores events, and applies those that nobody is in the way of; says which are new. `None` if that came to
    /// nothing, and nothing is stored.
    async fn apply(
        &self,
        events: &[NewEvent],
        decoded: Vec<Option<OrganizationEvent>>,
    ) -> Option<Vec<String>> {
        let bytes: usize = events.iter().map(|event| event.body.len()).sum();
        if bytes > MOST_BYTES {
            return None;
        }
        let lanes: BTreeSet<_> = decoded
            .iter()
            .flatten()
            .map(|event| event.workos_id.as_str())
            .collect();
        let taken = self.lanes.take_all(lanes);
        let names: Vec<_> = taken.iter().map(TakenLane::name).collect();
        let with_decoded = events.iter().zip(decoded).collect();
        match self.transactions.store(with_decoded, &names).await {
            Ok(stored) => Some(stored),
            Err(failure) => {
                let (error, events) = (failure.error, events.len());
                debug!(%error, events, "saved events are stored, to be applied later: {error}");
                None
            }
        }
    }
}

//! Durable before 200, with few commits (R23): deliveries that arrive while an insert is on its way share the next one.
//!
//! Nobody waits for company: the first delivery goes at once, alone. The next ones wait as long as its commit
//! takes, and all that came meanwhile go together.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::PgPool;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::crew::{Crew, MAX_SLOW, Pulse, SLOW};
use super::lanes::Lanes;
use super::status::{RecordError, Source};
use super::store::{self, NewEvent};
use crate::panics;
use crate::postgres::{self, error};

/// The most events of an insert.
const BATCH_EVENTS: usize = 500;

/// Where this many events wait, a second insert is begun beside the one that is on its way.
const SECOND_WRITER: usize = 64;

/// The most bytes of an insert's bodies.
const BATCH_BYTES: usize = 4 * 1_024 * 1_024;

/// How many events may wait. Beyond it the database is behind for good, and senders should come back.
const MAX_WAITING: usize = 4_096;

/// Whether an event is new.
pub(super) type Answer = Result<bool, RecordError>;

/// An event that waits to be stored, and who waits for the answer.
struct Waiting {
    event: NewEvent,
    answer: oneshot::Sender<Answer>,
}

struct State {
    queue: VecDeque<Waiting>,
    crew: Crew,
}

/// The queue before the inbox.
pub(super) struct Recorder {
    pool: PgPool,
    /// A `std` mutex: it is held for a look, never across an `.await`.
    state: Mutex<State>,
    pulse: Arc<Pulse>,
    lanes: Arc<Lanes>,
    /// The lanes' tracker too: a shutdown waits for it, and nobody's hang-up cancels what others wait for.
    tracker: TaskTracker,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

impl Recorder {
    pub(super) const fn new(
        pool: PgPool,
        pulse: Arc<Pulse>,
        lanes: Arc<Lanes>,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            pool,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                crew: Crew::new(MAX_SLOW),
            }),
            pulse,
            lanes,
            tracker,
        }
    }

    /// A panic can't leave the state half changed, so a poisoned lock is as good as any.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events wait to be stored.
    pub(super) fn waiting(&self) -> usize {
        self.state().queue.len()
    }

    /// Stores an event, with whichever others wait; says whether it is new.
    pub(super) async fn store(self: &Arc<Self>, event: NewEvent) -> Answer {
        let answer = self.submit(event)?;
        Self::answer(answer).await
    }

    /// Stores events together, as many as may wait; says of each whether it is new.
    pub(super) async fn store_all(self: &Arc<Self>, events: Vec<NewEvent>) -> Vec<Answer> {
        let submitted: Vec<_> = events.into_iter().map(|event| self.submit(event)).collect();
        let mut answers = Vec::with_capacity(submitted.len());
        for answer in submitted {
            answers.push(match answer {
                Ok(answer) => Self::answer(answer).await,
                Err(error) => Err(error),
            });
        }
        answers
    }

    /// Has an event stored.
    fn submit(self: &Arc<Self>, event: NewEvent) -> Result<oneshot::Receiver<Answer>, RecordError> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state();
        if state.queue.len() >= MAX_WAITING {
            // Drop entries whose sender has stopped waiting.
            state.queue.retain(|waiting| !waiting.answer.is_closed());
        }
        if state.queue.len() >= MAX_WAITING {
            let reason = format!("{MAX_WAITING} events wait to be stored already");
            return Err(RecordError::Unavailable { reason });
        }
        state.queue.push_back(Waiting { event, answer });
        self.pulse.enter();
        self.start_writer(state);
        Ok(answered)
    }

    /// Starts a writer if there is something for it to do; a second one where many wait.
    fn start_writer(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let wanted = match state.queue.len() {
            0 => 0,
            1..SECOND_WRITER => 1,
            _ => 2,
        };
        if state.crew.hire(wanted) {
            self.pulse.begin();
            drop(state);
            self.tracker.spawn(Arc::clone(self).write());
        }
    }

    /// What the next insert takes; nothing, and the writer ends, if nobody waits. Both under one lock, so that
    /// nobody enters between the look and the end.
    fn take(&self) -> Option<Vec<Waiting>> {
        let mut state = self.state();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(next) = state.queue.front() {
            bytes += next.event.body.len();
            if batch.len() == BATCH_EVENTS || (bytes > BATCH_BYTES && !batch.is_empty()) {
                break;
            }
            batch.extend(state.queue.pop_front());
        }
        if batch.is_empty() {
            state.crew.leave();
            self.pulse.end();
            return None;
        }
        Some(batch)
    }

    /// Stores what waits, batch by batch.
    async fn write(self: Arc<Self>) {
        while let Some(batch) = self.take() {
            let mut storing = pin!(self.store_caught(batch));
            if timeout(SLOW, &mut storing).await.is_err() {
                self.step_aside();
                storing.await;
                return self.end_slow();
            }
        }
    }

    /// Leaves the queue to another writer, for as long as an insert is slow and for good.
    fn step_aside(self: &Arc<Self>) {
        let mut state = self.state();
        state.crew.step_aside();
        self.pulse.end();
        self.start_writer(state);
    }

    /// A slow insert has ended.
    fn end_slow(self: &Arc<Self>) {
        let mut state = self.state();
        state.crew.end_slow();
        self.start_writer(state);
    }

    async fn answer(answered: oneshot::Receiver<Answer>) -> Answer {
        answered.await.unwrap_or_else(|_| {
            Err(RecordError::Unavailable {
                reason: "the writer of the inbox ended".to_owned(),
            })
        })
    }

    /// A panic costs the batch its answers, and nobody else anything: the senders come back, and find a duplicate if the
    /// event was stored.
    async fn store_caught(&self, batch: Vec<Waiting>) {
        let events = batch.len();
        if let Err(panic) = panics::caught(self.store_batch(batch)).await {
            error!(
                panic,
                events,
                "bug in workos-sync (please report it): {panic}; {events} events are to be delivered again",
            );
        }
    }

    async fn store_batch(&self, mut batch: Vec<Waiting>) {
        batch.sort_by(|a, b| a.event.event_id.cmp(&b.event.event_id));
        let events: Vec<_> = batch.iter().map(|waiting| &waiting.event).collect();
        match self.insert(&events).await {
            Ok(new) => {
                let mut new: HashSet<_> = new.into_iter().collect();
                for Waiting { event, answer } in batch {
                    // The first of an id that came twice is the new one.
                    let is_new = new.remove(&event.event_id);
                    // A replay is drained when all of it is stored: then a lane's events share a batch.
                    if is_new && !event.ignored && event.source != Source::Replay {
                        self.lanes.wake(event.into_lane());
                    }
                    // A sender that hung up gets `duplicate` when it retries.
                    let _ = answer.send(Ok(is_new));
                }
            }
            // One of them can't be stored: each for itself, so that it costs its neighbours nothing.
            Err(error) if error::is_about_the_content(&error) && batch.len() > 1 => {
                for waiting in batch {
                    Box::pin(self.store_batch(vec![waiting])).await;
                }
            }
            Err(error) => {
                let reason = error::describe(&error);
                let unstorable = error::is_about_the_content(&error);
                for Waiting { answer, .. } in batch {
                    let reason = reason.clone();
                    let _ = answer.send(Err(if unstorable {
                        RecordError::Unstorable(reason)
                    } else {
                        RecordError::Unavailable { reason }
                    }));
                }
            }
        }
    }

    async fn insert(&self, events: &[&NewEvent]) -> Result<Vec<String>, sqlx::Error> {
        postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::insert(connection, events).await
        })
        .await
    }
}

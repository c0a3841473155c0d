//! Durable before 200, at the price of few commits (R23): deliveries that arrive while an insert is on its way
//! share the next one.
//!
//! Nobody waits for company: the first delivery goes at once, alone. The next ones wait as long as its commit
//! takes, and all that came meanwhile go together.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::error;

use super::process::caught;
use super::store::{self, NewEvent};
use super::{HELD_UP, Inbox, MAX_HELD_UP, RecordError, Source, counts};
use crate::postgres::{self, error};

/// The most events of an insert.
const BATCH_EVENTS: usize = 500;

/// Where so many events wait, a second insert is begun beside the one that is on its way.
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

#[derive(Default)]
struct State {
    queue: VecDeque<Waiting>,
    /// How many take from the queue, until it is empty.
    writers: usize,
    held_up: usize,
}

/// The queue before the inbox. A `std` mutex: it is held for a look, never across an `.await`.
#[derive(Default)]
pub(super) struct Recorder {
    state: Mutex<State>,
    /// How many events came, ever.
    entered: AtomicU64,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Recorder")
            .field("waiting", &state.queue.len())
            .field("writers", &state.writers)
            .field("held_up", &state.held_up)
            .field("entered", &self.entered())
            .finish()
    }
}

impl State {
    /// Whether a writer is to be started; it counts from now on. A second one is where many wait.
    fn begin(&mut self) -> bool {
        let wanted = match self.queue.len() {
            0 => 0,
            1..SECOND_WRITER => 1,
            _ => 2,
        };
        let start = self.writers < wanted && self.held_up <= MAX_HELD_UP;
        self.writers += usize::from(start);
        start
    }
}

impl Recorder {
    /// A panic can't leave the state half changed, so a poisoned lock is as good as any.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is being stored.
    pub(super) fn is_idle(&self) -> bool {
        self.state().writers == 0
    }

    /// How many events came, ever: what two looks differ by came in between.
    pub(super) fn entered(&self) -> u64 {
        self.entered.load(Ordering::Relaxed)
    }

    /// Enters an event; says whether a writer is to be started for it.
    fn enter(&self, waiting: Waiting) -> Result<bool, RecordError> {
        let mut state = self.state();
        if state.queue.len() >= MAX_WAITING {
            // Who has given up needs no place.
            state.queue.retain(|waiting| !waiting.answer.is_closed());
        }
        if state.queue.len() >= MAX_WAITING {
            let reason = format!("{MAX_WAITING} events wait to be stored already");
            return Err(RecordError::Unavailable { reason });
        }
        state.queue.push_back(waiting);
        self.entered.fetch_add(1, Ordering::Relaxed);
        Ok(state.begin())
    }

    /// Leaves the queue to another writer, for as long as an insert is held up and for good; says whether to
    /// start one.
    fn step_aside(&self) -> bool {
        let mut state = self.state();
        state.writers -= 1;
        state.held_up += 1;
        state.begin()
    }

    /// The insert that was held up has ended; says whether to start a writer.
    fn recovered(&self) -> bool {
        let mut state = self.state();
        state.held_up -= 1;
        state.begin()
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
            state.writers -= 1;
            return None;
        }
        Some(batch)
    }
}

impl Inbox {
    /// Stores an event, with whichever others wait; says whether it is new.
    pub(super) async fn store(&self, event: NewEvent) -> Answer {
        let answer = self.submit(event)?;
        Self::answer(answer).await
    }

    /// Stores events together, as many as may wait; says of each whether it is new.
    pub(super) async fn store_all(&self, events: Vec<NewEvent>) -> Vec<Answer> {
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
    fn submit(&self, event: NewEvent) -> Result<oneshot::Receiver<Answer>, RecordError> {
        let (answer, answered) = oneshot::channel();
        if self.inner.recorder.enter(Waiting { event, answer })? {
            self.start_writer();
        }
        Ok(answered)
    }

    fn start_writer(&self) {
        // On the lanes' tracker: a shutdown waits for it, and nobody's hang-up cancels what others wait for.
        self.inner.lanes.spawn(self.clone().write());
    }

    /// Stores what waits, batch by batch.
    async fn write(self) {
        let recorder = &self.inner.recorder;
        while let Some(batch) = recorder.take() {
            let mut storing = pin!(self.store_caught(batch));
            if timeout(HELD_UP, &mut storing).await.is_err() {
                if recorder.step_aside() {
                    self.start_writer();
                }
                storing.await;
                if recorder.recovered() {
                    self.start_writer();
                }
                return;
            }
        }
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
        if let Err(panic) = caught(self.store_batch(batch)).await {
            error!(
                panic,
                events,
                "a bug in workos-sync, please report it: {panic}: {events} events are to be delivered again",
            );
        }
    }

    async fn store_batch(&self, mut batch: Vec<Waiting>) {
        batch.sort_by(|a, b| a.event.event_id.cmp(&b.event.event_id));
        match self
            .insert(
                &batch
                    .iter()
                    .map(|waiting| &waiting.event)
                    .collect::<Vec<_>>(),
            )
            .await
        {
            Ok(new) => {
                let mut new: HashSet<_> = new.into_iter().collect();
                for Waiting { event, answer } in batch {
                    // The first of an id that came twice is the new one.
                    let is_new = new.remove(&event.event_id);
                    // A replay is settled when all of it is stored: then a lane's events share a batch.
                    if is_new && event.ignored {
                        counts::ignored(&self.inner.metrics, event.source);
                    }
                    if is_new && !event.ignored && event.source != Source::Replay {
                        self.wake(event.organization_id.unwrap_or(event.event_id));
                    }
                    // Who has gone will find a duplicate.
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
        postgres::transaction(&self.inner.pool, postgres::PATIENCE, async |connection| {
            store::insert(connection, events).await
        })
        .await
    }
}

//! Durable before 200, with few commits (R23): deliveries that arrive while an insert is on its way share the next one.
//!
//! Nobody waits for company: the first delivery has a transaction begun at once. The next ones wait as long as its commit
//! takes, and all that came meanwhile go together.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug_span, error, field, warn};

use super::crew::{Crew, MAX_SLOW, SLOW};
use super::lanes::Lanes;
use super::outcomes::Outcomes;
use super::pulse::Pulse;
use super::status::{RecordError, Source};
use super::store::{self, Known, NewEvent};
use crate::event::Event;
use crate::panics;
use crate::postgres::{self, Session, error};

/// The most events of an insert.
const BATCH_EVENTS: usize = 500;

/// Where this many events wait, a second insert is begun beside the one that is on its way. Without it, `create` and `update`
/// were acknowledged at 0.92 times the rate.
const SECOND_WRITER: usize = 64;

/// The most bytes of an insert's bodies.
const BATCH_BYTES: usize = 4 * 1_024 * 1_024;

/// A connection gives back the memory of an insert that had more bytes than this.
const BYTES_KEPT: usize = 256 * 1_024;

/// How many events may wait. Beyond it the database is behind for good, and senders should come back.
const MAX_WAITING: usize = 4_096;

/// How often a delivery is noted on the row of an event that is being applied. A try waits for the lock of the row for as
/// long as any transaction does, 5 s; it is held for 15 s at most.
const MARK_TRIES: u32 = 5;

/// What became of an event that was to be stored.
pub(super) type Answer = Result<Stored, RecordError>;

/// Whether an event is new.
#[derive(Debug)]
pub(super) enum Stored {
    /// It is.
    New,
    /// It isn't; if another event is stored under its id, that one is described.
    Duplicate(Option<String>),
}

/// An event that waits to be stored, and who waits for the answer.
struct Waiting {
    event: NewEvent,
    answer: oneshot::Sender<Answer>,
}

struct State {
    /// By ticket: in the order in which they came.
    queue: BTreeMap<u64, Waiting>,
    crew: Crew,
}

/// The queue before the inbox.
pub(super) struct Recorder {
    pool: PgPool,
    /// A `std` mutex: it is held for a look, never across an `.await`.
    state: Mutex<State>,
    pulse: Arc<Pulse>,
    lanes: Arc<Lanes>,
    outcomes: Arc<Outcomes>,
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

/// An answer that is waited for. Who gives up takes the event out of the queue, and its body out of the memory.
struct Pending<'a> {
    recorder: &'a Recorder,
    ticket: u64,
    answered: oneshot::Receiver<Answer>,
}

impl Pending<'_> {
    async fn answer(mut self) -> Answer {
        (&mut self.answered).await.unwrap_or_else(|_| {
            Err(RecordError::Unavailable {
                reason: "the writer of the inbox ended".to_owned(),
            })
        })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.answered.is_terminated() {
            let given_up = self.recorder.state().queue.remove(&self.ticket);
            // Not under the lock: it may be large.
            drop(given_up);
        }
    }
}

impl Recorder {
    pub(super) const fn new(
        pool: PgPool,
        pulse: Arc<Pulse>,
        lanes: Arc<Lanes>,
        outcomes: Arc<Outcomes>,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            pool,
            state: Mutex::new(State {
                queue: BTreeMap::new(),
                crew: Crew::new(MAX_SLOW),
            }),
            pulse,
            lanes,
            outcomes,
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

    /// How many inserts are slow.
    pub(super) fn slow(&self) -> usize {
        self.state().crew.slow()
    }

    /// Stores an event, with whichever others wait. It is in the queue when this returns, and not in the future, which
    /// each layer above copies.
    pub(super) fn store(self: &Arc<Self>, event: NewEvent) -> impl Future<Output = Answer> + '_ {
        let submitted = self.submit(event);
        async move { submitted?.answer().await }
    }

    /// Stores events together, as many as may wait.
    pub(super) async fn store_all(self: &Arc<Self>, events: Vec<NewEvent>) -> Vec<Answer> {
        let submitted: Vec<_> = events.into_iter().map(|event| self.submit(event)).collect();
        let mut answers = Vec::with_capacity(submitted.len());
        for answer in submitted {
            answers.push(match answer {
                Ok(answer) => answer.answer().await,
                Err(error) => Err(error),
            });
        }
        answers
    }

    /// Has an event stored.
    fn submit(self: &Arc<Self>, event: NewEvent) -> Result<Pending<'_>, RecordError> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state();
        if state.queue.len() >= MAX_WAITING {
            let reason = format!("{MAX_WAITING} events wait to be stored already");
            return Err(RecordError::Unavailable { reason });
        }
        let ticket = self.pulse.enter();
        state.queue.insert(ticket, Waiting { event, answer });
        self.start_writer(state);
        Ok(Pending {
            recorder: self,
            ticket,
            answered,
        })
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

    /// Whether anybody waits. If not, the writer ends: both under one lock, so that nobody enters between the look and the
    /// end.
    fn is_wanted(&self) -> bool {
        let mut state = self.state();
        let is_wanted = !state.queue.is_empty();
        if !is_wanted {
            state.crew.leave();
            self.pulse.end();
        }
        is_wanted
    }

    /// What the next insert takes of the tickets before this one, sorted by id.
    fn take(&self, before: u64) -> Vec<Waiting> {
        let mut state = self.state();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(next) = state.queue.first_entry() {
            bytes += next.get().event.body.len();
            let is_full = batch.len() == BATCH_EVENTS || (bytes > BATCH_BYTES && !batch.is_empty());
            if is_full || *next.key() >= before {
                break;
            }
            batch.push(next.remove());
        }
        drop(state);
        batch.sort_by(|a, b| a.event.id().as_str().cmp(b.event.id().as_str()));
        batch
    }

    /// Stores what waits, batch by batch.
    async fn write(self: Arc<Self>) {
        let mut session = Session::new(&self.pool);
        while self.is_wanted() {
            let mut storing = pin!(self.store_caught(&mut session));
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

    /// A panic costs the batch its answers, and nobody else anything: the senders come back, and find a duplicate if the
    /// event was stored.
    async fn store_caught(&self, session: &mut Session<'_>) {
        let span = debug_span!("record", events = field::Empty);
        let storing = self.store_batch(session).instrument(span);
        if let Err(panic) = panics::caught(storing).await {
            error!(
                panic,
                "bug in workos-sync (please report it): {panic}; the events of the batch are to be delivered again",
            );
        }
    }

    /// Stores what waits once the transaction has begun, so that what comes until then goes with it.
    async fn store_batch(&self, session: &mut Session<'_>) {
        let entered = self.pulse.entered();
        let mut batch = Vec::new();
        let insert_batch = async |tx: &mut PgConnection| {
            batch = self.take(u64::MAX);
            self.pulse.insert(batch.len());
            Span::current().record("events", batch.len());
            insert(tx, &batch).await
        };
        let inserted = session.transaction(postgres::PATIENCE, insert_batch).await;
        if inserted.is_err() && batch.is_empty() {
            // There was no transaction. Those that have waited for it all the time hear of it; who came later may have
            // another writer.
            batch = self.take(entered);
        }
        match inserted {
            // One of them can't be stored: each for itself, so that it costs its neighbours nothing.
            Err(error) if error::is_about_the_content(&error) && batch.len() > 1 => {
                for waiting in batch {
                    let alone = [waiting];
                    let insert_one = async |tx: &mut PgConnection| insert(tx, &alone).await;
                    let inserted = session.transaction(postgres::PATIENCE, insert_one).await;
                    self.answer(alone, inserted);
                }
            }
            inserted => self.answer(batch, inserted),
        }
    }

    /// Tells those that wait what became of their events, and wakes the lanes of the new ones.
    fn answer(
        &self,
        batch: impl IntoIterator<Item = Waiting>,
        inserted: Result<Inserted, sqlx::Error>,
    ) {
        match inserted {
            Ok(Inserted { stored, late }) => {
                for (id, at) in late {
                    self.tracker
                        .spawn(mark_delivered(self.pool.clone(), id, at));
                }
                for (Waiting { mut event, answer }, stored) in batch.into_iter().zip(stored) {
                    if matches!(stored, Stored::New) {
                        if let Some(request_id) = event.request_id.take().filter(|_| !event.ignored)
                        {
                            self.outcomes.brought(event.id().as_str(), request_id);
                        }
                        if event.ignored {
                            self.outcomes.ignored(event.source);
                        } else if event.source == Source::Webhook {
                            // What is stored in bulk is drained when all of it is stored: then a lane's events share a batch.
                            self.lanes.wake(event.lane().to_owned());
                        }
                    }
                    // A sender that hung up gets `duplicate` when it retries.
                    let _ = answer.send(Ok(stored));
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
}

/// What an insert did.
struct Inserted {
    /// What became of each event, in order.
    stored: Vec<Stored>,
    /// Those whose delivery is still to be noted, with its time: they were being applied.
    late: Vec<(String, DateTime<Utc>)>,
}

/// Stores events, which are sorted by id; those that are there already are compared with what is stored.
async fn insert(tx: &mut PgConnection, batch: &[Waiting]) -> Result<Inserted, sqlx::Error> {
    let mut stored = BTreeMap::new();
    let mut delivered = Vec::new();
    // All of them; then those that somebody else was storing, and those that are here twice.
    while stored.len() < batch.len() {
        let left: Vec<_> = (0..batch.len())
            .filter(|place| !stored.contains_key(place))
            .collect();
        let asked: Vec<_> = left.iter().map(|place| &batch[*place].event).collect();
        for met in store::insert(tx, &asked).await? {
            let place = left[met.place(&asked)];
            let event = &batch[place].event;
            if met.is_undelivered && event.source == Source::Webhook {
                delivered.push((event.id().as_str(), event.received_at));
            }
            stored.insert(
                place,
                met.known.map_or(Stored::New, |known| {
                    Stored::Duplicate(difference(event, &known))
                }),
            );
        }
    }
    if !delivered.is_empty() {
        let marked = store::mark_delivered(tx, &delivered).await?;
        delivered.retain(|(id, _)| !marked.iter().any(|marked| marked == id));
    }
    let bytes = batch.iter().map(|waiting| waiting.event.body.len());
    if bytes.sum::<usize>() > BYTES_KEPT {
        tx.shrink_buffers();
    }
    Ok(Inserted {
        stored: stored.into_values().collect(),
        late: delivered
            .into_iter()
            .map(|(id, at)| (id.to_owned(), at))
            .collect(),
    })
}

/// Notes a delivery of an event that was being applied as it came: the sender didn't wait for that, but the delivery is
/// not to be counted as missed (R39).
async fn mark_delivered(pool: PgPool, event_id: String, at: DateTime<Utc>) {
    let mut tries = 0;
    let error = loop {
        tries += 1;
        let marked = postgres::transaction(&pool, postgres::PATIENCE, async |connection| {
            store::wait_and_mark_delivered(connection, &event_id, at).await
        });
        match marked.await {
            Ok(()) => return,
            Err(error) if tries < MARK_TRIES && error::is_lock_timeout(&error) => {}
            Err(error) => break error,
        }
    };
    let reason = error::describe(&error);
    warn!(
        event.id = event_id,
        reason, "that {event_id} was delivered isn't noted, so it may count as missed: {reason}",
    );
}

/// Describes what is stored under the id of an event, if that is another event: one of another type, or about something
/// else.
fn difference(event: &NewEvent, known: &Known) -> Option<String> {
    let Known::Other { event_type, body } = known else {
        return None;
    };
    let subject = |body: &str| Event::parse(body.as_bytes()).ok()?.subject();
    let about = body.as_deref().map(subject);
    let is_same = event.event_type == *event_type
        && about
            .as_ref()
            .is_none_or(|about| *about == subject(&event.body));
    if is_same {
        return None;
    }
    let about = about.flatten().map(|subject| format!(" about {subject}"));
    Some(format!(
        "event {} is already stored as {event_type}{}",
        event.event_id,
        about.unwrap_or_default()
    ))
}

//! Events and what they change, in one transaction (R25): claim them, or take new ones; lock their lanes; apply; mark
//! them; commit; tell.
//!
//! Nothing here waits for long: a lane whose lock, row or slug somebody else holds, and each lane of a transaction that
//! failed, is left to a transaction of its own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use tracing::{Instrument, debug_span};

use super::conditions::Conditions;
use super::failure::{AttemptError, Failure};
use super::outcomes::Outcomes;
use super::store::{self, Claimed, InTheWay, Met, NewEvent, Wait};
use crate::clock::Clock;
use crate::entities::guard::Replay;
use crate::entities::{self, Choices, Compared, Decoded, Outcome, Target};
use crate::event::Event;
use crate::outbox::Outbox;
use crate::panics;
use crate::postgres::Session;
use crate::postgres::locks::{LockBudget, Places};

/// How long an attempt may take. Beyond every timeout of the database: it ends the wait for one that doesn't
/// even answer that.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// About how many events a batch takes; of a single lane, no more than that.
const BATCH_EVENTS: usize = 1_024;

/// A batch takes at least this many events of each lane: further events of one organization are cheap.
const LANE_EVENTS: usize = 16;

/// The longest body that is processed in a batch, in bytes: with the number of events it bounds the memory.
const BATCH_PAYLOAD: i32 = 8 * 1_024;

/// What became of a lane of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing more is due in it.
    Finished,
    /// There may be more in it.
    Unfinished,
    /// It needs a transaction for each event: somebody or something is in the way.
    Alone,
}

/// The events of a transaction.
#[derive(Debug)]
enum Batch<'e> {
    /// Those that are due in its lanes.
    Due {
        /// The most events of a lane.
        events: i64,
        /// Longer bodies are left where they are.
        longest_payload: i32,
        /// What is not to be chosen: it was refused before.
        refused: &'e [String],
    },
    /// New ones, with what they say, if that can be applied.
    New(Vec<(&'e NewEvent, Option<Decoded>)>),
}

/// The rows of the inbox that a transaction is about.
#[derive(Debug)]
enum Rows<'e> {
    Claimed(Vec<Claimed>),
    New(Vec<&'e NewEvent>),
}

/// The events that a transaction has taken.
#[derive(Debug)]
struct Taken<'e> {
    rows: Rows<'e>,
    /// The places of the rows that end here, in the order in which they are applied. Nothing is to be applied of a type
    /// that is not handled.
    read: Vec<(usize, Option<Decoded>)>,
    /// The lanes that are locked, and have no event that is left.
    quiet: HashSet<String>,
}

/// What a transaction did.
#[derive(Debug)]
struct Done<'e> {
    rows: Rows<'e>,
    /// The places of the rows that ended, with their outcomes.
    outcomes: Vec<(usize, Option<Outcome>)>,
    quiet: HashSet<String>,
    /// The outbox has something to do.
    push_recorded: bool,
    at: DateTime<Utc>,
}

#[derive(Debug)]
pub(super) struct Transactions {
    pub(super) pool: PgPool,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) outbox: Outbox,
    pub(super) target: Target,
    pub(super) outcomes: Arc<Outcomes>,
    pub(super) conditions: Arc<Conditions>,
    pub(super) locks: LockBudget,
}

impl Transactions {
    /// Whether the host's table is known to be one that can't work: that was said, with the cure.
    pub(super) fn table_is_unusable(&self) -> bool {
        !self.target.is_usable()
    }

    /// For transactions one after the other.
    pub(super) const fn session(&self) -> Session<'_> {
        Session::new(&self.pool)
    }

    /// How many lanes a transaction may have.
    pub(super) const fn most_lanes(&self) -> usize {
        self.locks.most_lanes()
    }

    /// Applies what is due in lanes, which the caller holds. Says what became of them, in their order.
    ///
    /// # Errors
    /// Nothing was applied: each lane for itself finds out why.
    pub(super) async fn batch(
        &self,
        session: &mut Session<'_>,
        lanes: &[&str],
    ) -> Result<Vec<Fate>, Failure> {
        let events = std::cmp::max(BATCH_EVENTS / std::cmp::max(lanes.len(), 1), LANE_EVENTS);
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        let batch = Batch::Due {
            events,
            longest_payload: BATCH_PAYLOAD,
            refused: &[],
        };
        let done = self.run(session, lanes, Wait::Never, batch).await?;
        let claimed = done.rows.claimed();
        let mut counts = HashMap::<&str, i64>::new();
        for &(place, _) in &done.outcomes {
            *counts.entry(&claimed[place].lane).or_default() += 1;
        }
        let fate = |lane: &&str| {
            if counts.get(lane).is_some_and(|count| *count >= events) {
                Fate::Unfinished
            } else if done.quiet.contains(*lane) {
                Fate::Finished
            } else {
                Fate::Alone
            }
        };
        Ok(lanes.iter().map(fate).collect())
    }

    /// Applies the next event that is due in a lane, which the caller holds; says whether there was one. Nothing is chosen
    /// that was refused before.
    ///
    /// # Errors
    /// Nothing was applied. The failure names the event, if it got as far as that.
    pub(super) async fn next(
        &self,
        session: &mut Session<'_>,
        lane: &str,
        wait: Wait,
        refused: &[String],
    ) -> Result<bool, Failure> {
        let batch = Batch::Due {
            events: 1,
            longest_payload: i32::MAX,
            refused,
        };
        let done = self.run(session, &[lane], wait, batch).await?;
        Ok(!done.outcomes.is_empty())
    }

    /// Stores new events, and applies those whose lanes the caller holds and nobody is in the way of. Says which of them
    /// are new, and how they were applied, if they were.
    ///
    /// # Errors
    /// Nothing was stored.
    pub(super) async fn store(
        &self,
        session: &mut Session<'_>,
        events: Vec<(&NewEvent, Option<Decoded>)>,
        lanes: &[&str],
    ) -> Result<HashMap<String, Option<Outcome>>, Failure> {
        let batch = Batch::New(events);
        let done = self.run(session, lanes, Wait::Never, batch).await?;
        let outcomes = done.rows.all_outcomes(&done.outcomes);
        let ids = done
            .rows
            .new_events()
            .iter()
            .map(|event| event.id().to_string());
        Ok(ids.zip(outcomes).collect())
    }

    /// Has an attempt made in a transaction, and ends it where the database doesn't answer, or the attempt panics. Where it
    /// failed for what the application's table has become, the next one has statements that fit.
    async fn run<'e>(
        &self,
        session: &mut Session<'_>,
        lanes: &[&str],
        wait: Wait,
        batch: Batch<'e>,
    ) -> Result<Done<'e>, Failure> {
        // The connection first: whoever has places must not wait for one that is kept by somebody who waits for places.
        session.connect().await?;
        let mut places = match wait {
            Wait::Never => self.locks.take(lanes.len()).await,
            Wait::Briefly | Wait::Long => Places::set_aside(),
        };
        let started = Instant::now();
        let statements = self.target.statements();
        let attempt =
            async |tx: &mut PgConnection| self.attempt(tx, lanes, wait, batch, &mut places).await;
        let done = session
            .transaction(ATTEMPT_TIMEOUT, attempt)
            .instrument(debug_span!("apply", lanes = lanes.len()));
        let done = panics::caught(done)
            .await
            .unwrap_or_else(|panic| Err(AttemptError::Bug(panic).into()));
        // The locks are gone, and another connection may be waited for.
        drop(places);
        let done = match done {
            Err(failure) if failure.error.is_about_the_table() => {
                let has_changed = self.target.has_changed_since(&statements, &self.pool);
                return Err(match has_changed.await {
                    Ok(true) => Failure {
                        error: AttemptError::TableChanged,
                        ..failure
                    },
                    // The failure says more than that the table can't be looked at.
                    Ok(false) | Err(_) => failure,
                });
            }
            done => done?,
        };
        if !done.outcomes.is_empty() {
            self.outcomes.took(started.elapsed());
        }
        self.tell(&done);
        Ok(done)
    }

    async fn attempt<'e>(
        &self,
        tx: &mut PgConnection,
        lanes: &[&str],
        wait: Wait,
        batch: Batch<'e>,
        places: &mut Places,
    ) -> Result<Done<'e>, Failure> {
        let now = self.clock.now();
        let locked = store::lock_lanes(tx, lanes, wait).await?;
        let locked = locked.ok_or(AttemptError::Paused)?;
        let (taken, refused) = match batch {
            Batch::Due {
                events,
                longest_payload,
                refused,
            } => {
                let claimed = store::claim(tx, &locked, events, longest_payload).await?;
                (read_all(claimed, locked, wait)?, refused)
            }
            Batch::New(events) => (sift(tx, events, locked, lanes).await?, &[][..]),
        };
        let Taken { rows, read, quiet } = taken;
        let choices = Choices { refused, places };
        // A panic is caught here already, where it is known which event it is about.
        let result = panics::caught(self.apply_and_mark(tx, &rows, read, choices, wait, now)).await;
        let (outcomes, push_recorded) = result
            .unwrap_or_else(|panic| Err(AttemptError::Bug(panic)))
            .map_err(|error| Failure::of(rows.claimed(), error))?;
        Ok(Done {
            rows,
            outcomes,
            quiet,
            push_recorded,
            at: now,
        })
    }

    async fn apply_and_mark(
        &self,
        tx: &mut PgConnection,
        rows: &Rows<'_>,
        read: Vec<(usize, Option<Decoded>)>,
        choices: Choices<'_>,
        wait: Wait,
        now: DateTime<Utc>,
    ) -> Result<(Vec<(usize, Option<Outcome>)>, bool), AttemptError> {
        let mut places = Vec::with_capacity(read.len());
        let mut events = Vec::with_capacity(read.len());
        for (place, event) in read {
            places.push((place, event.is_some()));
            events.extend(event);
        }
        let decided = entities::decide(tx, &self.target, &events, now).await?;
        let compared = compared_json(&places, decided.compared());
        let mut outcomes = decided.outcomes().iter().copied();
        let outcomes: Vec<_> = places
            .into_iter()
            .map(|(place, is_applied)| (place, if is_applied { outcomes.next() } else { None }))
            .collect();
        // Before the rest: nobody waits for these rows, but others may wait for what is locked next.
        rows.mark(tx, &outcomes, &compared, now).await?;
        let push_recorded = decided.write(tx, choices, now).await?;
        if wait != Wait::Never {
            // So that it isn't the commit that fails: it would not be known of which event.
            store::check_constraints(tx).await?;
        }
        Ok((outcomes, push_recorded))
    }

    /// Tells what was committed.
    fn tell(&self, done: &Done<'_>) {
        if done.push_recorded {
            self.outbox.wake();
        }
        let changes_a_row = |(_, outcome): &(usize, Option<Outcome>)| {
            !matches!(outcome, None | Some(Outcome::Stale | Outcome::Tombstoned))
        };
        if done.outcomes.iter().any(changes_a_row) {
            self.conditions.applied(done.at);
        }
        for &(place, outcome) in &done.outcomes {
            match &done.rows {
                Rows::Claimed(claimed) => self.outcomes.applied(&claimed[place], outcome),
                Rows::New(new) => self.outcomes.applied(new[place], outcome),
            }
        }
    }
}

impl Rows<'_> {
    fn claimed(&self) -> &[Claimed] {
        match self {
            Self::Claimed(claimed) => claimed,
            Self::New(_) => &[],
        }
    }

    fn new_events(&self) -> &[&NewEvent] {
        match self {
            Self::Claimed(_) => &[],
            Self::New(new) => new,
        }
    }

    /// How each of the new events was applied, if it was.
    fn all_outcomes(&self, outcomes: &[(usize, Option<Outcome>)]) -> Vec<Option<Outcome>> {
        let mut all = vec![None; self.new_events().len()];
        for &(place, outcome) in outcomes {
            all[place] = outcome;
        }
        all
    }

    /// Writes into the inbox how rows ended.
    async fn mark(
        &self,
        tx: &mut PgConnection,
        outcomes: &[(usize, Option<Outcome>)],
        compared: &HashMap<usize, String>,
        now: DateTime<Utc>,
    ) -> Result<(), AttemptError> {
        let compared_of = |place| compared.get(&place).map(String::as_str);
        match self {
            Self::Claimed(claimed) => {
                let compared: Vec<_> = outcomes
                    .iter()
                    .map(|(place, _)| compared_of(*place))
                    .collect();
                let (ids, outcomes): (Vec<_>, Vec<_>) = outcomes
                    .iter()
                    .map(|&(place, outcome)| (claimed[place].event_id.as_str(), outcome))
                    .unzip();
                if !ids.is_empty() {
                    store::mark(tx, &ids, &outcomes, &compared, now).await?;
                }
            }
            Self::New(new) => {
                let all = self.all_outcomes(outcomes);
                let compared: Vec<_> = (0..new.len()).map(compared_of).collect();
                let stored = store::insert_marked(tx, new, &all, &compared, Some(now)).await?;
                if stored.into_iter().filter_map(Met::new_id).count() < new.len() {
                    return Err(AttemptError::Overtaken);
                }
            }
        }
        Ok(())
    }
}

/// Of the rows of stale events, by their places: what each was compared with, as JSON. `places` are those of all rows, and
/// whether there was something to apply.
fn compared_json(
    places: &[(usize, bool)],
    compared: &[(usize, Compared)],
) -> HashMap<usize, String> {
    if compared.is_empty() {
        return HashMap::new();
    }
    let places: Vec<_> = places
        .iter()
        .filter_map(|&(place, is_applied)| is_applied.then_some(place))
        .collect();
    let json = |compared| serde_json::to_string(compared).expect("texts and times are JSON");
    compared
        .iter()
        .map(|(event, compared)| (places[*event], json(compared)))
        .collect()
}

/// Reads claimed events. What can't be read fails an event that is alone; in a batch, it and those behind it in its lane
/// are left, for these come after it (R24).
fn read_all(
    claimed: Vec<Claimed>,
    locked: Vec<String>,
    wait: Wait,
) -> Result<Taken<'static>, Failure> {
    let mut quiet: HashSet<_> = locked.into_iter().collect();
    let mut events = Vec::with_capacity(claimed.len());
    for (place, row) in claimed.iter().enumerate() {
        if !quiet.contains(&row.lane) {
            continue;
        }
        match read(row) {
            Ok(event) => events.push((place, event)),
            Err(error) if wait != Wait::Never => return Err(Failure::of(&claimed, error)),
            Err(_) => drop(quiet.remove(&row.lane)),
        }
    }
    Ok(Taken {
        rows: Rows::Claimed(claimed),
        read: events,
        quiet,
    })
}

/// Reads a claimed event; nothing is to be applied of a type that is not handled.
fn read(claimed: &Claimed) -> Result<Option<Decoded>, AttemptError> {
    let payload = claimed.payload.as_ref().ok_or(AttemptError::TooLong)?;
    let event = Event::parse(payload.as_bytes())?;
    let replay = match claimed.outcome.as_deref() {
        _ if !claimed.replayed => Replay::No,
        Some(outcome) if outcome == Outcome::Disabled.as_str() => Replay::AfterDisabling,
        _ => Replay::Again,
    };
    let decoded = entities::decode(&event, replay)?;
    // What is held are the mutex and the lock of the lane (R18).
    match decoded {
        Some(decoded) if decoded.lane() != claimed.lane => {
            Err(AttemptError::WrongLane(decoded.lane().to_owned()))
        }
        decoded => Ok(decoded),
    }
}

/// Takes those of the events that are new; to be applied are those whose lane is locked and has nothing in the inbox
/// that comes first.
async fn sift<'e>(
    tx: &mut PgConnection,
    events: Vec<(&'e NewEvent, Option<Decoded>)>,
    locked: Vec<String>,
    lanes: &[&str],
) -> Result<Taken<'e>, AttemptError> {
    let ids: Vec<_> = events
        .iter()
        .map(|(event, _)| event.id().as_str())
        .collect();
    let mut quiet: HashSet<_> = locked.into_iter().collect();
    // Of an id that comes twice, the first is the new one.
    let mut known = HashSet::new();
    for found in store::in_the_way(tx, &ids, lanes).await? {
        match found {
            InTheWay::Event(id) => known.insert(id),
            InTheWay::Lane(lane) => quiet.remove(&lane),
        };
    }
    let mut rows = Vec::with_capacity(events.len());
    let mut read = Vec::with_capacity(events.len());
    for (row, event) in events {
        if known.insert(row.id().to_string()) {
            let event = event.filter(|event| quiet.contains(event.lane()));
            if event.is_some() {
                read.push((rows.len(), event));
            }
            rows.push(row);
        }
    }
    read.sort_by_cached_key(|(_, event)| {
        let key = |event: &Decoded| (event.lane().to_owned(), event.id().order());
        event.as_ref().map(key)
    });
    Ok(Taken {
        rows: Rows::New(rows),
        read,
        quiet,
    })
}

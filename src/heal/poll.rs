//! Reads the events of WorkOS, so that one that no delivery brings comes all the same (R36–R39).

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::HealError;
use super::reading::{self, BrokenOff, Reader};
use super::store::{self, PollState, Turn, Within};
use super::window::{Window, at};
use crate::clock::Clock;
use crate::inbox::{Beside, Inbox, Source};
use crate::metrics::Metrics;
use crate::postgres;
use crate::workos::{Page, ReadFrom, WorkosClient, WorkosError};

/// How far a round reads back behind the last one. WorkOS hides fresh events for some seconds, and one may appear behind
/// a position that has passed it.
pub(super) const OVERLAP: TimeDelta = TimeDelta::minutes(10);

/// A page is a request of 15 s at most and a transaction of 16 s at most.
const LEASE: TimeDelta = TimeDelta::seconds(60);

/// How long a delivery may be late before it is missed.
const DELIVERY_PATIENCE: TimeDelta = TimeDelta::minutes(2);

/// The poll of a process.
#[derive(Debug, Clone)]
pub struct Poll {
    pool: PgPool,
    inbox: Inbox,
    client: WorkosClient,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    interval: Duration,
    /// Who has the lease.
    owner: String,
}

/// What a round came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// Everything was read.
    Drained {
        /// How many events were new.
        new: usize,
    },
    /// Another replica polls, or has.
    NotDue,
}

impl Poll {
    /// A poll every `interval`.
    #[must_use]
    pub fn new(
        pool: PgPool,
        inbox: Inbox,
        client: WorkosClient,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        interval: Duration,
    ) -> Self {
        metrics.expect_poll();
        Self {
            pool,
            inbox,
            client,
            clock,
            metrics,
            interval,
            owner: Uuid::new_v4().to_string(),
        }
    }

    /// Polls until shutdown, whatever WorkOS and the database do.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut fails = false;
        while !shutdown.is_cancelled() {
            // A round may be broken off at any time: it goes on where its last page ended.
            let result = tokio::select! {
                result = self.round() => result,
                () = shutdown.cancelled() => break,
            };
            let mut wait = self.interval;
            match result {
                Ok(_) => {
                    if fails {
                        info!("the poll of events reads WorkOS again");
                    }
                    fails = false;
                }
                Err(error) => {
                    wait = std::cmp::max(wait, error.retry_after().unwrap_or_default());
                    // Once an outage: it can take hours.
                    if !std::mem::replace(&mut fails, true) {
                        let error = error.to_string();
                        error!(error, "the poll of events fails, and tries again: {error}");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => break,
            }
        }
        let next_at = self.clock.now();
        // Another replica goes on at once; if this fails, when the lease ends.
        let _ = self.give_back(next_at).await;
    }

    /// Reads what WorkOS has, if that is due.
    ///
    /// # Errors
    /// WorkOS or the database doesn't answer, or another replica took over. What was read is kept.
    pub async fn round(&self) -> Result<Round, HealError> {
        let now = self.clock.now();
        let Some(state) = self.begin(now).await? else {
            return Ok(Round::NotDue);
        };
        // Somewhat less, so that this replica's next look isn't too early by a moment.
        let pause = self.interval.mul_f64(0.9);
        let result = self.read(state, later(now, pause)).await;
        if let Err(error) = &result {
            let pause = std::cmp::max(pause, error.retry_after().unwrap_or_default());
            self.give_back(later(now, pause)).await?;
        }
        result
    }

    /// Takes the lease, if a round is due, and counts the deliveries that were missed meanwhile.
    async fn begin(&self, now: DateTime<Utc>) -> Result<Option<PollState>, sqlx::Error> {
        let owner = &self.owner;
        let (state, missed) =
            postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
                let taken =
                    store::take_lease(connection, owner, now + LEASE, now - OVERLAP, now).await?;
                let missed = match &taken {
                    Some(_) => {
                        store::count_missed(connection, owner, now - DELIVERY_PATIENCE).await?
                    }
                    None => 0,
                };
                Ok::<_, sqlx::Error>((taken, missed))
            })
            .await?;
        if missed > 0 {
            self.metrics.missed_deliveries(missed.unsigned_abs());
            warn!(
                missed,
                "{missed} events were found by the poll, and no delivery has brought them: is the webhook endpoint \
                 enabled, and can WorkOS reach it?",
            );
        }
        Ok(state)
    }

    async fn give_back(&self, next_at: DateTime<Utc>) -> Result<(), sqlx::Error> {
        postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::give_back(connection, &self.owner, next_at).await
        })
        .await
    }

    /// Reads on from where the poll stands, and gives the lease back at the end; the next round is due at `next_at`.
    async fn read(&self, state: PollState, next_at: DateTime<Utc>) -> Result<Round, HealError> {
        let PollState {
            position,
            round_after,
            round_until,
            round_leaves,
        } = state;
        let window = match round_until {
            Some(until) => Window {
                from: position,
                until: Some(until),
                next: Some(until),
            },
            None => Window::at(position, None, self.clock.now()),
        };
        let broken_off = round_after
            // One that has become a gap begins anew, in windows.
            .filter(|_| round_until.is_some() || window.next.is_none())
            .map(|after| BrokenOff { window, after });
        let mut reader = RoundReader {
            poll: self,
            next_at,
            leaves: round_leaves.filter(|_| broken_off.is_some()),
            new: 0,
        };
        reading::read(&mut reader, &*self.clock, position, None, broken_off).await?;
        self.metrics.poll_succeeded(self.clock.now());
        Ok(Round::Drained { new: reader.new })
    }

    /// Notes that more has to be read than WorkOS promises to keep (R38), once for all of it.
    async fn note_gap(&self, position: DateTime<Utc>) -> Result<(), sqlx::Error> {
        let now = self.clock.now();
        let is_new = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::note_gap(connection, now).await
        })
        .await?;
        if is_new {
            error!(
                "the events since {} were not read: WorkOS keeps events for 30 days, so some may be lost; run \
                 `workos-sync reconcile --apply`",
                at(position),
            );
            self.metrics.poll_gap();
        }
        Ok(())
    }
}

fn later(now: DateTime<Utc>, pause: Duration) -> DateTime<Utc> {
    let pause = TimeDelta::from_std(pause).unwrap_or(TimeDelta::MAX);
    now.checked_add_signed(pause).unwrap_or(now)
}

/// Reads for a round: each page is stored in one transaction with the place behind it.
struct RoundReader<'a> {
    poll: &'a Poll,
    /// When the round after this one is due.
    next_at: DateTime<Utc>,
    /// Where the position is once the window is read; of the last one, that is known from the first answer on.
    leaves: Option<DateTime<Utc>>,
    /// How many events were new.
    new: usize,
}

impl Reader for RoundReader<'_> {
    async fn ask(&self, from: ReadFrom<'_>, window: &Window) -> Result<Page, WorkosError> {
        let Poll { client, clock, .. } = self.poll;
        reading::list_events(client, from, window, clock.now()).await
    }

    async fn begin(&mut self, window: &Window) -> Result<(), HealError> {
        self.leaves = window.next;
        if window.next.is_some() {
            self.poll.note_gap(window.from).await?;
        }
        Ok(())
    }

    async fn keep(&mut self, page: &Page, window: &Window) -> Result<(), HealError> {
        let leaves = match self.leaves {
            Some(leaves) => leaves,
            None => page.answered.date.ok_or(HealError::NoDate)? - OVERLAP,
        };
        self.leaves = Some(leaves);
        let turn = match &page.after {
            Some(after) => Turn {
                // The first page of the first round leaves it, too.
                position: window.from,
                within: Some(Within {
                    after,
                    until: window.until,
                    leaves,
                }),
                drained: None,
            },
            None => Turn {
                position: leaves,
                within: None,
                drained: Some(self.next_at).filter(|_| window.next.is_none()),
            },
        };
        let poll = self.poll;
        let position = Position { poll, turn };
        let source = Source::EventsApi;
        let stored = reading::store_page(&poll.inbox, &page.elements, source, &position).await?;
        poll.metrics.poll_events(stored.new.len(), stored.known);
        self.new += stored.new.len();
        Ok(())
    }

    async fn skip(&mut self, window: &Window) -> Result<(), HealError> {
        let poll = self.poll;
        let turn = Turn {
            position: window.next.unwrap_or(window.from),
            within: None,
            drained: None,
        };
        let position = Position { poll, turn };
        postgres::transaction(&poll.pool, postgres::PATIENCE, async |connection| {
            position.write(connection).await
        })
        .await
    }
}

/// Where a page leaves the poll, and the lease with it.
struct Position<'a> {
    poll: &'a Poll,
    turn: Turn<'a>,
}

impl Beside for Position<'_> {
    type Error = HealError;

    async fn write(&self, connection: &mut PgConnection) -> Result<(), HealError> {
        let Self { poll, turn } = self;
        let now = poll.clock.now();
        if store::turn(connection, &poll.owner, turn, now + LEASE, now).await? {
            Ok(())
        } else {
            Err(HealError::LeaseLost)
        }
    }
}

/// Remembers how often `serve` polls; `None`: never. It decides how old the last poll may be (R45).
///
/// # Errors
/// The database doesn't answer.
pub async fn note_interval(pool: &PgPool, interval: Option<Duration>) -> Result<(), sqlx::Error> {
    let seconds = interval.map_or(0, |interval| interval.as_secs());
    let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
    postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        store::note_interval(connection, seconds).await
    })
    .await
}

//! Reads the events of WorkOS, so that one that no delivery brings comes all the same (R36–R39).

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::HealError;
use super::store::{self, PollState, Turn};
use crate::clock::Clock;
use crate::entities;
use crate::inbox::{Beside, EventName, Inbox, Source, StoredPage};
use crate::metrics::Metrics;
use crate::postgres;
use crate::workos::{Page, ReadFrom, Trail, WorkosClient, WorkosError};

/// How far a round reads back behind the last one. WorkOS hides fresh events for some seconds, and one may appear behind
/// a position that has passed it.
pub(super) const OVERLAP: TimeDelta = TimeDelta::minutes(10);

/// WorkOS reads so much at once, and promises to keep no more.
pub(super) const WINDOW: TimeDelta = TimeDelta::days(30);

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

/// Where a reading is within a window.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// The last page's end.
    pub(super) after: Option<String>,
    /// The window's end.
    pub(super) until: Option<DateTime<Utc>>,
    /// Where the position is once the window is read.
    leaves: Option<DateTime<Utc>>,
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
        let state = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::take_lease(connection, &self.owner, now + LEASE, now - OVERLAP, now).await
        })
        .await?;
        let Some(state) = state else {
            return Ok(Round::NotDue);
        };
        let result = match self.count_missed(&state, now).await {
            Ok(()) => self.read(state).await,
            Err(error) => Err(error.into()),
        };
        // Somewhat less, so that this replica's next look isn't too early by a moment.
        let pause = std::cmp::max(
            self.interval.mul_f64(0.9),
            match &result {
                Ok(_) => Duration::ZERO,
                Err(error) => error.retry_after().unwrap_or_default(),
            },
        );
        let pause = TimeDelta::from_std(pause).unwrap_or(TimeDelta::MAX);
        let next_at = now.checked_add_signed(pause).unwrap_or(now);
        self.give_back(next_at).await?;
        result
    }

    async fn give_back(&self, next_at: DateTime<Utc>) -> Result<(), sqlx::Error> {
        postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::give_back(connection, &self.owner, next_at).await
        })
        .await
    }

    async fn count_missed(&self, state: &PollState, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
        let until = now - DELIVERY_PATIENCE;
        if state.counted_until.is_some_and(|counted| counted >= until) {
            return Ok(());
        }
        let missed = postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            store::count_missed(connection, &self.owner, until).await
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
        Ok(())
    }

    async fn read(&self, state: PollState) -> Result<Round, HealError> {
        let mut position = state.position;
        let mut place = Place {
            after: state.round_after,
            until: state.round_until,
            leaves: state.round_leaves,
        };
        let (mut trail, mut has_begun_anew) = (Trail::default(), false);
        let mut new = 0;
        loop {
            let now = self.clock.now();
            let is_gap = now - position > WINDOW;
            // A round that was broken off too long ago begins anew too, in windows.
            if place.after.is_none() || (is_gap && place.until.is_none()) {
                place = Place::default();
                if is_gap {
                    self.note_gap(position, now).await?;
                    place.until = Some(position + WINDOW);
                    place.leaves = place.until;
                }
            }
            let page = match read_page(&self.client, position, &place, now).await {
                Ok(page) => page,
                Err(refusal)
                    if refusal.is_rejected() && place.after.is_some() && !has_begun_anew =>
                {
                    warn!(
                        "WorkOS refuses where a round of the poll was to go on, it begins anew: {refusal}"
                    );
                    has_begun_anew = true;
                    trail = Trail::default();
                    place = Place::default();
                    continue;
                }
                Err(WorkosError::Rejected {
                    status: 400,
                    message,
                }) if place.after.is_none() && place.until.is_some() => {
                    let until = place.until.unwrap_or(now);
                    warn!(
                        "WorkOS refuses to show events from {} to {}, which are skipped: {message}",
                        at(position),
                        at(until),
                    );
                    self.turn(Turn {
                        position: until,
                        is_drained: false,
                        after: None,
                        until: None,
                        leaves: None,
                    })
                    .await?;
                    position = until;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if place.leaves.is_none() {
                let date = page.answered.date.ok_or(HealError::NoDate)?;
                place.leaves = Some(date - OVERLAP);
            }
            new += self.store(&page, &place, position).await?;
            place.after = page.after;
            if let Some(after) = &place.after {
                trail.go_on(after)?;
                continue;
            }
            position = place.leaves.unwrap_or(position);
            if place.until.is_none() {
                self.metrics.poll_succeeded(self.clock.now());
                return Ok(Round::Drained { new });
            }
        }
    }

    /// Notes that more has to be read than WorkOS promises to keep (R38), once for all of it.
    async fn note_gap(
        &self,
        position: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<(), sqlx::Error> {
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

    /// Stores a page and the position after it; says how many events were new. `position` is that of the round, which
    /// the first page of the first round is to leave.
    async fn store(
        &self,
        page: &Page,
        place: &Place,
        position: DateTime<Utc>,
    ) -> Result<usize, HealError> {
        let is_last = page.after.is_none();
        let turn = Turn {
            position: place.leaves.filter(|_| is_last).unwrap_or(position),
            is_drained: is_last && place.until.is_none(),
            after: page.after.as_deref(),
            until: place.until.filter(|_| !is_last),
            leaves: place.leaves.filter(|_| !is_last),
        };
        let position = Position { poll: self, turn };
        let stored = store_page(&self.inbox, &page.elements, Source::EventsApi, &position).await?;
        let new = stored.new.len();
        self.metrics.poll_events(new, stored.known);
        Ok(new)
    }

    async fn turn(&self, turn: Turn<'_>) -> Result<(), HealError> {
        let position = Position { poll: self, turn };
        postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
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

/// Nothing.
pub(super) struct Nothing;

impl Beside for Nothing {
    type Error = HealError;

    async fn write(&self, _: &mut PgConnection) -> Result<(), HealError> {
        Ok(())
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

pub(super) async fn read_page(
    client: &WorkosClient,
    position: DateTime<Utc>,
    place: &Place,
    now: DateTime<Utc>,
) -> Result<Page, WorkosError> {
    let from = place
        .after
        .as_deref()
        .map_or(ReadFrom::Time(position), ReadFrom::After);
    let types = entities::types_of_workos().collect::<Vec<_>>();
    client.list_events(&types, from, place.until, now).await
}

/// Stores the events of a page that are handled; what else the answer holds is left out.
pub(super) async fn store_page(
    inbox: &Inbox,
    elements: &[Box<RawValue>],
    source: Source,
    beside: &impl Beside<Error = HealError>,
) -> Result<StoredPage, HealError> {
    let mut events = Vec::with_capacity(elements.len());
    for element in elements {
        let body = element.get().as_bytes().to_vec();
        match inbox.read(body, None, source) {
            Ok(event) if event.is_handled() => events.push(event),
            Ok(_) => {}
            Err(reason) => error!("WorkOS lists an event that is none, it is left out: {reason}"),
        }
    }
    let stored = inbox.record_page(events, beside).await?;
    for (event, reason) in &stored.unstorable {
        let EventName {
            id,
            event_type,
            organization,
        } = event;
        error!(
            event.id = id,
            event.r#type = event_type,
            workos.organization_id = organization,
            "{event_type} {id} can't be stored, it is left out: {reason}"
        );
    }
    Ok(stored)
}

pub(super) fn at(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

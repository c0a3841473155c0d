//! Tells how events ended: the log, the metrics, and whoever waits for one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::broadcast;
use tracing::{Level, debug, error, info, warn};

use super::counts;
use super::failure::AttemptError;
use super::request_ids::RequestIds;
use super::status::{Ended, EventName, Source, Status};
use super::store::{Claimed, NewEvent};
use crate::clock::Clock;
use crate::entities::Outcome;
use crate::event::rfc3339;
use crate::metrics::Metrics;
use crate::postgres::error::FailureClass;
use crate::repeats::{Repeats, Summary};

/// What is told of an event.
#[derive(Debug)]
pub(super) struct About<'a> {
    event_id: &'a str,
    event_type: &'a str,
    lane: &'a str,
    source: &'a str,
    /// With this one.
    attempts: i32,
    received_at: DateTime<Utc>,
}

impl About<'_> {
    /// The organization: the lane of an event without one is its own.
    fn organization(&self) -> Option<&str> {
        Some(self.lane).filter(|lane| *lane != self.event_id)
    }

    fn name(&self) -> EventName {
        EventName {
            id: self.event_id.to_owned(),
            event_type: self.event_type.to_owned(),
            organization: self.organization().map(str::to_owned),
        }
    }
}

impl<'a> From<&'a Claimed> for About<'a> {
    fn from(event: &'a Claimed) -> Self {
        Self {
            event_id: &event.event_id,
            event_type: &event.event_type,
            lane: &event.lane,
            source: &event.source,
            attempts: event.attempts.saturating_add(1),
            received_at: event.received_at,
        }
    }
}

/// Of an event that was applied as it was stored.
impl<'a> From<&'a NewEvent> for About<'a> {
    fn from(event: &'a NewEvent) -> Self {
        Self {
            event_id: event.event_id.as_str(),
            event_type: &event.event_type,
            lane: event.lane(),
            source: event.source.as_str(),
            attempts: 1,
            received_at: event.received_at,
        }
    }
}

/// What happens to many events for one cause (R54).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happened {
    NotDurable,
    PutOff,
    Died,
}

impl Happened {
    const fn to_others(self) -> &'static str {
        match self {
            Self::NotDurable => "could not be made durable",
            Self::PutOff => "will be tried again",
            Self::Died => "are dead letters, to be retried or discarded by hand",
        }
    }
}

#[derive(Debug)]
pub(super) struct Outcomes {
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// How many events ended or were put off, ever.
    steps: AtomicU64,
    ended: broadcast::Sender<Ended>,
    /// What isn't said again of one event after the other, by the cause.
    repeats: Repeats<(Happened, String), EventName>,
    /// The requests that brought events which haven't ended.
    request_ids: RequestIds,
}

impl Outcomes {
    pub(super) fn new(clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        counts::expect(&metrics);
        Self {
            clock,
            metrics,
            steps: AtomicU64::new(0),
            ended: broadcast::Sender::new(1_024),
            repeats: Repeats::default(),
            request_ids: RequestIds::default(),
        }
    }

    /// A request has brought an event, which waits to be applied.
    pub(super) fn brought(&self, event_id: &str, request_id: String) {
        self.request_ids.put(event_id, request_id);
    }

    /// An event could not be made durable: its sender is told, and comes again.
    pub(super) fn not_durable(&self, event: &EventName, reason: &str) {
        let EventName {
            id,
            event_type,
            organization,
        } = event;
        let what = (Happened::NotDurable, reason.to_owned());
        if self.is_first(what, || event.clone()) {
            error!(
                event.id = id,
                event.r#type = event_type,
                workos.organization_id = organization,
                reason,
                "{event_type} {id} could not be made durable: {reason}",
            );
        } else {
            debug!(
                event.id = id,
                event.r#type = event_type,
                workos.organization_id = organization,
                reason,
                "{event_type} {id} could not be made durable",
            );
        }
    }

    fn is_first(&self, what: (Happened, String), event: impl FnOnce() -> EventName) -> bool {
        self.repeats.is_first(what, self.clock.now(), event)
    }

    /// Says what is due to be said of the events that were not named one by one.
    pub(super) fn summarize(&self) {
        summarize(self.repeats.take_due(self.clock.now()));
    }

    /// Says all that is left to be said of them.
    pub(super) fn summarize_all(&self) {
        summarize(self.repeats.take_all());
    }

    /// How many events ended or were put off, ever.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Hears of every event that ends from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Ended> {
        self.ended.subscribe()
    }

    /// An event was ignored as it was stored.
    pub(super) fn ignored(&self, source: Source) {
        counts::ignored(&self.metrics, source);
    }

    /// A transaction that applied events took this long.
    pub(super) fn took(&self, time: Duration) {
        self.metrics.apply(time);
    }

    /// Nothing was applied, and no event is known to be at fault.
    pub(super) fn not_applied(&self, class: FailureClass, error: &AttemptError) {
        counts::failed(&self.metrics, class, error);
    }

    /// An event was applied; without an outcome, it is of a type that is not handled.
    pub(super) fn applied<'a>(&self, event: impl Into<About<'a>>, outcome: Option<Outcome>) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let about = event.into();
        let organization = about.organization();
        let About {
            event_id,
            event_type,
            source,
            attempts,
            received_at,
            ..
        } = about;
        let status = if outcome.is_some() {
            Status::Processed
        } else {
            Status::Ignored
        };
        let lag = self.clock.now() - received_at;
        let lag_ms = lag.num_milliseconds();
        let result = outcome.map_or(status.as_str(), Outcome::as_str);
        counts::applied(&self.metrics, source, event_type, outcome, lag);
        info!(
            event.id = event_id,
            event.r#type = event_type,
            workos.organization_id = organization,
            request_id = self.request_ids.take(event_id),
            source,
            attempts,
            outcome = result,
            lag_ms,
            "{event_type} {event_id}: {result}",
        );
        if self.ended.receiver_count() > 0 {
            self.send(Ended {
                event_id: event_id.to_owned(),
                status,
                outcome,
                error: None,
            });
        }
    }

    /// An attempt failed, and the next is at this time; a dead letter has none.
    pub(super) fn failed<'a>(
        &self,
        event: impl Into<About<'a>>,
        class: FailureClass,
        error: &AttemptError,
        retry_at: Option<DateTime<Utc>>,
    ) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let about = event.into();
        let organization = about.organization();
        let About {
            event_id,
            event_type,
            source,
            attempts,
            ..
        } = about;
        let (cause, reason) = (error.cause(), error.to_string());
        counts::failed(&self.metrics, class, error);
        let (happened, request_id) = if retry_at.is_some() {
            (Happened::PutOff, self.request_ids.get(event_id))
        } else {
            (Happened::Died, self.request_ids.take(event_id))
        };
        let is_first = self.is_first((happened, cause.clone()), || about.name());
        macro_rules! say {
            ($level:expr, $($what:tt)+) => {
                tracing::event!(
                    $level,
                    event.id = event_id,
                    event.r#type = event_type,
                    workos.organization_id = organization,
                    request_id,
                    source,
                    attempts,
                    cause,
                    reason,
                    retry_at = retry_at.map(rfc3339),
                    $($what)+
                )
            };
        }
        let Some(_) = retry_at else {
            counts::dead(&self.metrics, source, event_type);
            if is_first {
                say!(
                    Level::ERROR,
                    "{event_type} {event_id} is a dead letter, to be retried or discarded by hand: {reason}",
                );
            } else {
                say!(
                    Level::DEBUG,
                    "{event_type} {event_id} is a dead letter too: {reason}"
                );
            }
            return self.send(Ended {
                event_id: event_id.to_owned(),
                status: Status::Dead,
                outcome: None,
                error: Some(reason),
            });
        };
        match error {
            _ if !is_first => {
                say!(
                    Level::DEBUG,
                    "{event_type} {event_id} will be tried again too: {reason}"
                );
            }
            AttemptError::Bug(_) => {
                say!(
                    Level::ERROR,
                    "{event_type} {event_id} will be tried again: {reason}"
                );
            }
            _ => say!(
                Level::WARN,
                "{event_type} {event_id} will be tried again: {reason}"
            ),
        }
    }

    fn send(&self, ended: Ended) {
        // Nobody has to listen.
        let _ = self.ended.send(ended);
    }
}

fn summarize(summaries: Vec<Summary<(Happened, String), EventName>>) {
    for summary in summaries {
        let Summary {
            cause: (happened, cause),
            count,
            example:
                EventName {
                    id,
                    event_type,
                    organization,
                },
        } = summary;
        let what = happened.to_others();
        warn!(
            event.id = id,
            event.r#type = event_type,
            workos.organization_id = organization,
            cause,
            count,
            "{count} more events {what}, such as {event_type} {id}: {cause}",
        );
    }
}

//! Tells how events ended: the log, the metrics, and whoever waits for one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::broadcast;
use tracing::{Level, error, info};

use super::counts;
use super::failure::AttemptError;
use super::status::{Ended, Source, Status};
use super::store::{Claimed, NewEvent};
use crate::clock::Clock;
use crate::entities::Outcome;
use crate::metrics::Metrics;
use crate::postgres::error::FailureClass;

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

#[derive(Debug)]
pub(super) struct Outcomes {
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// How many events ended or were put off, ever.
    steps: AtomicU64,
    ended: broadcast::Sender<Ended>,
}

impl Outcomes {
    pub(super) fn new(clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        counts::expect(&metrics);
        Self {
            clock,
            metrics,
            steps: AtomicU64::new(0),
            ended: broadcast::Sender::new(1_024),
        }
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
        let About {
            event_id,
            event_type,
            lane,
            source,
            attempts,
            received_at,
        } = event.into();
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
            workos.organization_id = lane,
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
        let About {
            event_id,
            event_type,
            lane,
            source,
            attempts,
            ..
        } = event.into();
        let (cause, reason) = (error.cause(), error.to_string());
        counts::failed(&self.metrics, class, error);
        let Some(retry_at) = retry_at else {
            counts::dead(&self.metrics, source, event_type);
            error!(
                event.id = event_id,
                event.r#type = event_type,
                workos.organization_id = lane,
                source,
                attempts,
                cause,
                reason,
                "{event_type} {event_id} is a dead letter, to be retried or discarded by hand: {reason}",
            );
            return self.send(Ended {
                event_id: event_id.to_owned(),
                status: Status::Dead,
                outcome: None,
                error: Some(reason),
            });
        };
        macro_rules! say {
            ($level:expr) => {
                tracing::event!(
                    $level,
                    event.id = event_id,
                    event.r#type = event_type,
                    workos.organization_id = lane,
                    source,
                    attempts,
                    cause,
                    reason,
                    %retry_at,
                    "{event_type} {event_id} will be tried again: {reason}",
                )
            };
        }
        if matches!(error, AttemptError::Bug(_)) {
            say!(Level::ERROR);
        } else {
            say!(Level::WARN);
        }
    }

    fn send(&self, ended: Ended) {
        // Nobody has to listen.
        let _ = self.ended.send(ended);
    }
}

//! What the inbox counts, with labels of a few known values: sources and types come from the database, where anybody may
//! have written them.

use chrono::TimeDelta;

use super::failure::AttemptError;
use super::status::{Source, Status};
use crate::entities::{self, Outcome};
use crate::metrics::Metrics;
use crate::postgres::error::FailureClass;

/// A source that isn't ours, or a type that isn't handled.
const OTHER: &str = "other";

/// A panic of ours.
const BUG: &str = "bug";

const fn class_name(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Conflict => "conflict",
        FailureClass::Transient => "transient",
        FailureClass::Unusable => "unusable",
        FailureClass::Refused => "refused",
        FailureClass::Permanent => "permanent",
    }
}

fn source(source: &str) -> &'static str {
    Source::ALL
        .into_iter()
        .map(Source::as_str)
        .find(|known| *known == source)
        .unwrap_or(OTHER)
}

fn event_type(event_type: &str) -> &'static str {
    entities::types()
        .find(|known| *known == event_type)
        .unwrap_or(OTHER)
}

/// Declares the series, so that each begins at 0.
pub(super) fn expect(metrics: &Metrics) {
    for source in Source::ALL.map(Source::as_str) {
        for event_type in entities::types() {
            for outcome in Outcome::ALL.map(Outcome::as_str) {
                metrics.expect_event(source, event_type, outcome);
            }
            metrics.expect_event(source, event_type, Status::Dead.as_str());
        }
        metrics.expect_event(source, OTHER, Status::Ignored.as_str());
        metrics.expect_event(source, OTHER, Status::Dead.as_str());
    }
    for class in FailureClass::ALL.map(class_name) {
        metrics.expect_event_failure(class);
    }
    metrics.expect_event_failure(BUG);
}

/// An event was ignored as it was stored.
pub(super) fn ignored(metrics: &Metrics, source: Source) {
    metrics.event(source.as_str(), OTHER, Status::Ignored.as_str());
}

/// An event was applied, or ignored after all, `lag` after it was received.
pub(super) fn applied(
    metrics: &Metrics,
    from: &str,
    of_type: &str,
    outcome: Option<Outcome>,
    lag: TimeDelta,
) {
    let result = outcome.map_or(Status::Ignored.as_str(), Outcome::as_str);
    metrics.event(source(from), event_type(of_type), result);
    if outcome.is_some() {
        metrics.received_to_applied(lag);
    }
}

/// An attempt to apply an event failed.
pub(super) fn failed(metrics: &Metrics, class: FailureClass, cause: &AttemptError) {
    let name = match cause {
        AttemptError::Bug(_) => BUG,
        _ => class_name(class),
    };
    metrics.event_failure(name);
}

/// An event is a dead letter.
pub(super) fn dead(metrics: &Metrics, from: &str, of_type: &str) {
    metrics.event(source(from), event_type(of_type), Status::Dead.as_str());
}

//! The log and the metrics.
//!
//! Fields have the same names everywhere: `event.id`, `event.type`, `workos.organization_id` (theirs),
//! `organization_id` (ours), `source`, `attempts`, `outcome`, `error`. A message can be read without its
//! fields, and found by them. Bodies, secrets and signatures are never logged, at no level.

use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::inbox::Recorded;
use crate::sync::Outcome;

/// Begins to log, to standard error: standard output is for data.
pub fn init(format: Option<LogFormat>, level: EnvFilter) {
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            let colour =
                terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            builder.with_ansi(colour).with_target(false).init();
        }
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .init(),
    }
}

type Counters = Family<[(&'static str, &'static str); 1], Counter>;

/// What is counted, for `GET /metrics`. Cloning is cheap; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    deliveries: Counters,
    events: Counters,
    failures: Counter,
    dead_letters: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("workos_sync");
        let metrics = (
            Counters::default(),
            Counters::default(),
            Counter::default(),
            Gauge::default(),
        );
        let (deliveries, events, failures, dead_letters) = metrics;
        registry.register(
            "deliveries",
            "Requests to the webhook path, by answer",
            deliveries.clone(),
        );
        registry.register(
            "events",
            "Events that were settled, by outcome",
            events.clone(),
        );
        registry.register(
            "event_failures",
            "Attempts to apply an event that failed and will be repeated",
            failures.clone(),
        );
        registry.register(
            "dead_letters",
            "Events that wait for an operator, in the whole inbox: alarm on more than 0",
            dead_letters.clone(),
        );
        let metrics = Self {
            registry: Arc::new(registry),
            deliveries,
            events,
            failures,
            dead_letters,
        };
        // A series that begins with its first event hides that event from every rate().
        for recorded in [Recorded::Accepted, Recorded::Duplicate, Recorded::Ignored] {
            drop(
                metrics
                    .deliveries
                    .get_or_create(&[("answer", recorded.as_str())]),
            );
        }
        for outcome in Outcome::ALL
            .map(Outcome::as_str)
            .into_iter()
            .chain(["ignored", "dead"])
        {
            drop(metrics.events.get_or_create(&[("outcome", outcome)]));
        }
        metrics
    }
}

impl Metrics {
    /// A delivery was answered.
    pub fn delivery(&self, answer: &'static str) {
        self.deliveries.get_or_create(&[("answer", answer)]).inc();
    }

    /// An event was settled.
    pub fn event(&self, outcome: &'static str) {
        self.events.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// An attempt to apply an event failed.
    pub fn failure(&self) {
        self.failures.inc();
    }

    /// There are so many dead letters.
    pub fn dead_letters(&self, count: i64) {
        self.dead_letters.set(count);
    }

    /// The metrics in the text format of `OpenMetrics`.
    ///
    /// # Errors
    /// None that is known: writing to a string doesn't fail.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

//! What is counted and measured, for `GET /metrics` (R51).
//!
//! A test compares the table in `docs/metrics.md` with a scrape. No label takes a value from outside: the caller maps
//! it to one of a few words first. A series that begins with its first event hides that event from every `rate()`, so
//! the module that counts declares its series at the start (`expect_…`).

mod database;
pub mod gauges;
mod process;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};
use sqlx::PgPool;

use database::Connections;
use gauges::Readings;
use process::Process;

/// Bounds for transactions: from a single row to beyond the statement timeout.
const APPLY_SECONDS: [f64; 12] = [
    0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];

/// Bounds for events: milliseconds where nothing is in the way, hours after an outage.
const RECEIVED_TO_APPLIED_SECONDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0, 3_600.0,
];

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;
type Seconds = Gauge<f64, AtomicU64>;

/// A gauge that isn't shown until it is set.
type Unknown<G> = Family<Labels<0>, G>;

/// The metrics of this process. Cloning is cheap; clones count together.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    series: Arc<Series>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

struct Series {
    deliveries: Counters<1>,
    secrets_used: Family<[(&'static str, usize); 1], Counter>,
    events: Counters<3>,
    event_failures: Counters<1>,
    apply: Histogram,
    received_to_applied: Histogram,
    inbox_events: Gauges<1>,
    oldest_unapplied: Unknown<Seconds>,
    outbox: Gauges<1>,
    oldest_push: Unknown<Seconds>,
    backlog_asked_at: Unknown<Seconds>,
    workos_requests: Counters<2>,
    workos_ok: Unknown<Gauge>,
    poll_last_success: Unknown<Seconds>,
    poll_events: Counters<1>,
    poll_gaps: Counters<0>,
    missed_deliveries: Counters<0>,
    mirror_trusted: Unknown<Gauge>,
    paused: Unknown<Gauge>,
    schema_usable: Gauge,
    connections: Connections,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let mut ours = Ours(registry.sub_registry_with_prefix("workos_sync"));
        let series = Series {
            deliveries: ours.add("deliveries", "Requests to the webhook path, by answer"),
            secrets_used: ours.add(
                "signature_secret_used",
                "Verified signatures, by the position of the secret in WORKOS_WEBHOOK_SECRET",
            ),
            events: ours.add(
                "events",
                "Events that reached their end, by source, type and outcome; types that aren't handled are other",
            ),
            event_failures: ours.add(
                "event_failures",
                "Failed attempts to apply an event, by the class of the cause",
            ),
            apply: ours.histogram(
                "apply",
                "Duration of the transactions that applied events",
                APPLY_SECONDS,
            ),
            received_to_applied: ours.histogram(
                "received_to_applied",
                "Time from receiving an event to having applied it",
                RECEIVED_TO_APPLIED_SECONDS,
            ),
            inbox_events: ours.add(
                "inbox_events",
                "Events in the inbox that aren't applied, by status, counted up to 100,000",
            ),
            oldest_unapplied: ours.seconds(
                "oldest_unapplied",
                "Age of the oldest event that is pending or failed; 0 if there is none",
            ),
            outbox: ours.add(
                "outbox",
                "Organization ids that WorkOS doesn't hold, by status, counted up to 100,000",
            ),
            oldest_push: ours.seconds(
                "oldest_push",
                "Age of the oldest organization id still to be written to WorkOS; 0 if there is none",
            ),
            backlog_asked_at: ours.seconds(
                "backlog_timestamp",
                "When the database last answered for the gauges that it is asked for",
            ),
            workos_requests: ours.add(
                "workos_api_requests",
                "Requests to the WorkOS API, by endpoint and status of the answer, none if there was no answer",
            ),
            workos_ok: ours.add(
                "workos_api_ok",
                "Whether WorkOS answered the last request and accepts the API key",
            ),
            poll_last_success: ours.seconds(
                "poll_last_success_timestamp",
                "When the poll last read all events of WorkOS; absent without a poll",
            ),
            poll_events: ours.add(
                "poll_events",
                "Events that the poll read, by whether the inbox knew them; absent without a poll",
            ),
            poll_gaps: ours.add(
                "poll_gaps",
                "How often the poll had to read more than the 30 days that WorkOS keeps; absent without a poll",
            ),
            missed_deliveries: ours.add(
                "missed_deliveries",
                "Events that the poll found, and no delivery brought within two minutes; absent without a poll",
            ),
            mirror_trusted: ours.add(
                "mirror_trusted",
                "Whether the table of organizations may be taken for what WorkOS has",
            ),
            paused: ours.add(
                "paused",
                "Whether an operator has paused applying and writing back",
            ),
            schema_usable: ours.add(
                "schema_usable",
                "Whether events can be applied to the table of organizations",
            ),
            connections: Connections::default(),
        };
        series.schema_usable.set(1);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        ours.0
            .register("build", "The version of this build", Info::new(version));
        ours.0
            .register_collector(Box::new(series.connections.clone()));
        Self {
            registry: Arc::new(registry),
            series: Arc::new(series),
        }
    }
}

/// Where our metrics are registered.
struct Ours<'a>(&'a mut Registry);

impl Ours<'_> {
    fn add<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    fn seconds<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0
            .register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }

    fn histogram<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        buckets: [f64; N],
    ) -> Histogram {
        let metric = Histogram::new(buckets);
        self.0
            .register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }
}

impl Metrics {
    /// A delivery was answered.
    pub fn delivery(&self, answer: &'static str) {
        let labels = [("answer", answer)];
        self.series.deliveries.get_or_create(&labels).inc();
    }

    /// Deliveries may be answered so.
    pub fn expect_deliveries(&self, answers: impl IntoIterator<Item = &'static str>) {
        for answer in answers {
            drop(self.series.deliveries.get_or_create(&[("answer", answer)]));
        }
    }

    /// A signature was verified by the secret at this position of the list, from 1.
    pub fn secret_used(&self, position: usize) {
        let labels = [("position", position)];
        self.series.secrets_used.get_or_create(&labels).inc();
    }

    /// A signature may be verified by any of `count` secrets.
    pub fn expect_secrets(&self, count: usize) {
        for position in 1..=count {
            let labels = [("position", position)];
            drop(self.series.secrets_used.get_or_create(&labels));
        }
    }

    /// An event came to an end.
    pub fn event(&self, source: &'static str, event_type: &'static str, outcome: &'static str) {
        let labels = event_labels(source, event_type, outcome);
        self.series.events.get_or_create(&labels).inc();
    }

    /// An event of this source and type may come to this end.
    pub fn expect_event(
        &self,
        source: &'static str,
        event_type: &'static str,
        outcome: &'static str,
    ) {
        let labels = event_labels(source, event_type, outcome);
        drop(self.series.events.get_or_create(&labels));
    }

    /// An attempt to apply an event failed.
    pub fn event_failure(&self, cause_class: &'static str) {
        let labels = [("cause_class", cause_class)];
        self.series.event_failures.get_or_create(&labels).inc();
    }

    /// An attempt to apply an event may fail so.
    pub fn expect_event_failure(&self, cause_class: &'static str) {
        let labels = [("cause_class", cause_class)];
        drop(self.series.event_failures.get_or_create(&labels));
    }

    /// A transaction applied events.
    pub fn apply(&self, took: Duration) {
        self.series.apply.observe(took.as_secs_f64());
    }

    /// An event was applied, `lag` after it was received.
    pub fn received_to_applied(&self, lag: TimeDelta) {
        self.series.received_to_applied.observe(seconds(lag));
    }

    /// The database was asked.
    pub fn readings(&self, readings: &Readings, now: DateTime<Utc>) {
        let Series {
            inbox_events,
            outbox,
            oldest_unapplied,
            oldest_push,
            backlog_asked_at,
            mirror_trusted,
            paused,
            ..
        } = &*self.series;
        for (gauges, status, count) in [
            (inbox_events, "pending", readings.pending),
            (inbox_events, "failed", readings.failed),
            (inbox_events, "dead", readings.dead),
            (outbox, "pending", readings.pushes),
            (outbox, "conflict", readings.conflicts),
            (outbox, "rejected", readings.rejected),
        ] {
            gauges.get_or_create(&[("status", status)]).set(count);
        }
        let age = |since: Option<DateTime<Utc>>| since.map_or(0.0, |since| seconds(now - since));
        oldest_unapplied
            .get_or_create(&[])
            .set(age(readings.oldest_unapplied));
        oldest_push
            .get_or_create(&[])
            .set(age(readings.oldest_push));
        mirror_trusted
            .get_or_create(&[])
            .set(readings.trusted.into());
        paused.get_or_create(&[]).set(readings.paused.into());
        backlog_asked_at
            .get_or_create(&[])
            .set(seconds(now - DateTime::UNIX_EPOCH));
    }

    /// The WorkOS API was asked.
    pub fn workos_request(&self, endpoint: &'static str, status: &'static str) {
        let labels = [("endpoint", endpoint), ("status", status)];
        self.series.workos_requests.get_or_create(&labels).inc();
    }

    /// The WorkOS API may answer so.
    pub fn expect_workos_request(&self, endpoint: &'static str, status: &'static str) {
        let labels = [("endpoint", endpoint), ("status", status)];
        drop(self.series.workos_requests.get_or_create(&labels));
    }

    /// Whether WorkOS answers, and accepts the API key.
    pub fn workos_ok(&self, ok: bool) {
        self.series.workos_ok.get_or_create(&[]).set(ok.into());
    }

    /// This process polls.
    pub fn expect_poll(&self) {
        for known in ["true", "false"] {
            drop(self.series.poll_events.get_or_create(&[("known", known)]));
        }
        drop(self.series.poll_gaps.get_or_create(&[]));
        drop(self.series.missed_deliveries.get_or_create(&[]));
    }

    /// The poll read a page.
    pub fn poll_events(&self, new: usize, known: usize) {
        for (label, count) in [("false", new), ("true", known)] {
            let labels = [("known", label)];
            let counter = self.series.poll_events.get_or_create(&labels);
            counter.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }

    /// The poll read everything.
    pub fn poll_succeeded(&self, now: DateTime<Utc>) {
        let at = seconds(now - DateTime::UNIX_EPOCH);
        self.series.poll_last_success.get_or_create(&[]).set(at);
    }

    /// The poll had to read more than WorkOS keeps.
    pub fn poll_gap(&self) {
        self.series.poll_gaps.get_or_create(&[]).inc();
    }

    /// No delivery brought these events.
    pub fn missed_deliveries(&self, count: u64) {
        let counter = self.series.missed_deliveries.get_or_create(&[]);
        counter.inc_by(count);
    }

    /// Whether events can be applied to the table of organizations (R33); they can until this says otherwise.
    pub fn schema_usable(&self, usable: bool) {
        self.series.schema_usable.set(usable.into());
    }

    /// Shows the connections of this pool.
    pub fn watch_connections(&self, pool: &PgPool) {
        self.series.connections.watch(pool);
    }

    /// The metrics in the text format of OpenMetrics 1.0.
    ///
    /// # Errors
    /// None that is known: writing to a string doesn't fail.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut exposition = String::new();
        text::encode(&mut exposition, &self.registry)?;
        Ok(exposition)
    }

    /// The metrics in the text format of Prometheus, version 0.0.4.
    ///
    /// # Errors
    /// None that is known: writing to a string doesn't fail.
    pub fn render_text(&self) -> Result<String, fmt::Error> {
        let mut exposition = String::new();
        prometheus_text::encode(&mut exposition, &self.registry)?;
        Ok(exposition)
    }
}

const fn event_labels(
    source: &'static str,
    event_type: &'static str,
    outcome: &'static str,
) -> Labels<3> {
    [
        ("source", source),
        ("type", event_type),
        ("outcome", outcome),
    ]
}

/// A span of time; none is negative, though two clocks may say so.
fn seconds(span: TimeDelta) -> f64 {
    span.to_std().unwrap_or_default().as_secs_f64()
}

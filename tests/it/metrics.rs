//! What a scrape shows (R51): true, complete, bounded, and in the format that was asked for.

#![expect(
    clippy::float_cmp,
    reason = "counts, and times of a clock that stands still"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use url::Url;
use workos_sync::clock::Clock;
use workos_sync::inbox::Source;
use workos_sync::metrics::Metrics;
use workos_sync::metrics::gauges::{self, Readings};
use workos_sync::signature;
use workos_sync::workos::WorkosClient;

use crate::support::app::{Options, SECRET};
use crate::support::logs::Logs;
use crate::support::workos::{Answer, FakeWorkos};
use crate::support::{
    EventBuilder, NOW, TestApp, TestDatabase, created, deleted, eventually, release, updated,
};

const ACME: &str = "org_01EHWNCE74X7JSDV0X3SZ3KJNY";

/// A format, and how strictly it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    OpenMetrics,
    Text,
}

/// A family of metrics, as a scrape describes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Family {
    kind: String,
    help: String,
    unit: Option<String>,
}

type Labels = BTreeMap<String, String>;

/// What a scrape shows.
#[derive(Debug, Default)]
pub(crate) struct Scrape {
    pub(crate) families: BTreeMap<String, Family>,
    samples: BTreeMap<(String, Labels), f64>,
}

impl Scrape {
    /// Reads a scrape; what the format doesn't allow fails the test.
    fn read(format: Format, text: &str) -> Self {
        assert!(text.ends_with('\n'), "no line is left open");
        let mut lines: Vec<_> = text.lines().collect();
        if format == Format::OpenMetrics {
            assert_eq!(lines.pop(), Some("# EOF"));
        }
        let mut scrape = Self::default();
        let mut current: Option<(String, Family)> = None;
        for line in lines {
            let Some(comment) = line.strip_prefix("# ") else {
                let (name, family) = current.as_ref().expect("a family comes before its samples");
                assert!(!family.kind.is_empty(), "the type comes first: {line}");
                scrape.sample(format, name, &family.kind, line);
                continue;
            };
            let mut words = comment.splitn(3, ' ');
            let (keyword, name, rest) = (
                words.next().unwrap(),
                words.next().unwrap(),
                words.next().unwrap_or_default().to_owned(),
            );
            match keyword {
                "HELP" => {
                    scrape.end(current.take());
                    assert!(!scrape.families.contains_key(name), "twice: {name}");
                    assert!(rest.ends_with('.') && rest.len() > 5, "{line}");
                    let family = Family {
                        help: rest,
                        ..Family::default()
                    };
                    current = Some((name.to_owned(), family));
                }
                "TYPE" | "UNIT" => {
                    let (described, family) = current.as_mut().unwrap();
                    assert_eq!(name, described, "{line}");
                    if keyword == "TYPE" {
                        assert!(family.kind.is_empty(), "twice: {line}");
                        family.kind = rest;
                    } else {
                        assert_eq!(format, Format::OpenMetrics, "{line}");
                        assert!(name.ends_with(&format!("_{rest}")), "{line}");
                        family.unit = Some(rest);
                    }
                }
                _ => panic!("a comment that means nothing: {line}"),
            }
        }
        scrape.end(current);
        scrape.check_histograms();
        scrape
    }

    fn end(&mut self, family: Option<(String, Family)>) {
        let Some((name, family)) = family else {
            return;
        };
        let shown = |sample: &str| sample.starts_with(&*name);
        assert!(
            self.samples.keys().any(|(sample, _)| shown(sample)),
            "{name}: no sample"
        );
        self.families.insert(name, family);
    }

    fn sample(&mut self, format: Format, family: &str, kind: &str, line: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = match series.split_once('{') {
            None => (series, Labels::new()),
            Some((name, labels)) => {
                let labels = labels.strip_suffix('}').unwrap();
                let labels = labels.split(',').map(|label| {
                    let (key, value) = label.split_once('=').unwrap();
                    let value = value.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
                    assert!(!value.is_empty() && !value.contains(['"', '\\']), "{line}");
                    // The two formats write bounds differently.
                    let bound = value.parse::<f64>().ok().filter(|_| key == "le");
                    let value = bound.map_or(value.to_owned(), |bound| bound.to_string());
                    (key.to_owned(), value)
                });
                let count = labels.clone().count();
                let labels: Labels = labels.collect();
                assert_eq!(labels.len(), count, "a label twice: {line}");
                (name, labels)
            }
        };
        let suffixes: &[&str] = match (format, kind) {
            (Format::OpenMetrics, "counter") => &["_total"],
            (Format::OpenMetrics, "info") => &["_info"],
            (_, "histogram") => &["_bucket", "_count", "_sum"],
            (_, "gauge") | (Format::Text, "counter") => &[""],
            _ => panic!("{family}: {kind}"),
        };
        let suffix = name
            .strip_prefix(family)
            .unwrap_or_else(|| panic!("{line}"));
        assert!(suffixes.contains(&suffix), "{kind}: {line}");
        assert!(!name.ends_with("_total_total"), "{line}");
        if kind == "counter" {
            assert!(name.ends_with("_total"), "{line}");
        }
        assert_eq!(labels.contains_key("le"), suffix == "_bucket", "{line}");
        let series = (name.to_owned(), labels);
        let before = self.samples.insert(series, value.parse().unwrap());
        assert_eq!(before, None, "twice: {line}");
    }

    fn check_histograms(&self) {
        for name in self
            .families
            .keys()
            .filter(|name| self.families[*name].kind == "histogram")
        {
            let bucket = format!("{name}_bucket");
            let mut buckets: Vec<_> = self
                .samples
                .iter()
                .filter(|((sample, _), _)| *sample == bucket)
                .map(|((_, labels), count)| (labels["le"].parse::<f64>().unwrap(), *count))
                .collect();
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(
                buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
                "{buckets:?}"
            );
            let (last, all) = buckets.last().copied().unwrap();
            assert_eq!(
                (last, all),
                (f64::INFINITY, self.value(&format!("{name}_count")))
            );
        }
    }

    /// Fails the test if a series, such as `name{key="value"}`, has another value.
    #[track_caller]
    fn shows(&self, series: &str, value: f64) {
        assert_eq!(self.value(series), value, "{series}");
    }

    /// The value of a series, such as `name{key="value"}`.
    fn value(&self, series: &str) -> f64 {
        self.get(series)
            .unwrap_or_else(|| panic!("{series} in {self:#?}"))
    }

    fn get(&self, series: &str) -> Option<f64> {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels
            .trim_end_matches('}')
            .split(',')
            .filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (key, value) = label.split_once('=').unwrap();
            (key.to_owned(), value.trim_matches('"').to_owned())
        });
        self.samples
            .get(&(name.to_owned(), labels.collect()))
            .copied()
    }

    /// The sum of all series of a name.
    fn sum(&self, name: &str) -> f64 {
        let of_name = self
            .samples
            .iter()
            .filter(|((sample, _), _)| sample == name);
        of_name.map(|(_, value)| value).sum()
    }
}

/// Scrapes as a client that wants this format.
async fn scrape_as(app: &TestApp, format: Format) -> Scrape {
    let (accept, content_type) = match format {
        Format::OpenMetrics => (
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        Format::Text => ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
    };
    let request = Request::get("/metrics").header(ACCEPT, accept);
    let answer = app
        .send(request.body(Body::empty()).unwrap())
        .await
        .assert(200);
    assert_eq!(answer.headers[CONTENT_TYPE], content_type);
    assert_eq!(answer.headers["vary"], "accept");
    Scrape::read(format, &answer.text)
}

pub(crate) async fn scrape(app: &TestApp) -> Scrape {
    scrape_as(app, Format::Text).await
}

/// The metrics of ours that a text names.
pub(crate) fn named(text: &str) -> BTreeSet<String> {
    text.match_indices("workos_sync_")
        .map(|(place, _)| {
            let is_of_a_name = |c: &char| c.is_ascii_lowercase() || *c == '_';
            text[place..].chars().take_while(is_of_a_name).collect()
        })
        .collect()
}

/// An application with an API key.
async fn with_workos() -> (TestApp, FakeWorkos) {
    let workos = FakeWorkos::start().await;
    (with_api(workos.url()).await, workos)
}

async fn with_api(url: Url) -> TestApp {
    let client = WorkosClient::new(url, SecretString::from("sk_test_the_key")).unwrap();
    TestApp::with(Options {
        client: Some(client),
        ..Options::default()
    })
    .await
}

/// Everything that there is to scrape.
pub(crate) async fn busy_app() -> TestApp {
    let (app, workos) = with_workos().await;
    workos.add_organization(ACME, None);
    app.deliver(&created(1, ACME, "Acme").body())
        .await
        .assert(200);
    app.settle().await;
    app.outbox.deliver_due().await.unwrap();
    app.metrics.secret_used(1);
    app.measure().await.unwrap();
    app.metrics.expect_poll();
    app.metrics.poll_succeeded(NOW);
    app
}

/// R51: both formats are what their specifications say, and say the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_is_in_the_format_that_was_asked_for() {
    let app = busy_app().await;
    let open_metrics = scrape_as(&app, Format::OpenMetrics).await;
    let text = scrape_as(&app, Format::Text).await;
    let names = |scrape: &Scrape| -> BTreeSet<_> { scrape.samples.keys().cloned().collect() };
    assert_eq!(names(&open_metrics), names(&text));

    let counter = &open_metrics.families["workos_sync_deliveries"];
    assert_eq!(counter.kind, "counter");
    assert_eq!(
        text.families["workos_sync_deliveries_total"].kind,
        "counter"
    );
    assert_eq!(
        text.families["workos_sync_deliveries_total"].help,
        counter.help
    );
    assert_eq!(open_metrics.families["workos_sync_build"].kind, "info");
    assert_eq!(text.families["workos_sync_build_info"].kind, "gauge");
    let units: BTreeSet<_> = open_metrics
        .families
        .values()
        .filter_map(|family| family.unit.as_deref())
        .collect();
    assert_eq!(units, BTreeSet::from(["bytes", "seconds"]));
}

/// R51: docs/metrics.md names each metric, its type and its labels, and no other; no page names a metric that there isn't.
#[tokio::test(flavor = "multi_thread")]
async fn the_documents_tell_what_a_scrape_shows() {
    let app = busy_app().await;
    let scrape = scrape(&app).await;
    let mut shown = BTreeMap::new();
    for (name, family) in &scrape.families {
        let labels: BTreeSet<_> = scrape
            .samples
            .keys()
            .filter(|(sample, _)| {
                sample
                    .strip_prefix(&**name)
                    .is_some_and(|rest| matches!(rest, "" | "_bucket"))
            })
            .flat_map(|(_, labels)| labels.keys().filter(|label| *label != "le").cloned())
            .collect();
        shown.insert(name.clone(), (family.kind.clone(), labels));
    }

    let mut told = BTreeMap::new();
    for row in include_str!("../../docs/metrics.md").lines() {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [metric, kind, _] = cells[..] else {
            continue;
        };
        let Some(metric) = metric
            .strip_prefix('`')
            .and_then(|metric| metric.strip_suffix('`'))
        else {
            continue;
        };
        if !matches!(
            kind.trim_end_matches(" °"),
            "counter" | "gauge" | "histogram"
        ) {
            continue;
        }
        let (name, labels) = metric.split_once('{').unwrap_or((metric, ""));
        let labels = labels
            .trim_end_matches('}')
            .split(',')
            .filter(|label| !label.is_empty());
        let labels: BTreeSet<_> = labels.map(str::to_owned).collect();
        let kind = kind.trim_end_matches(" °").to_owned();
        assert_eq!(told.insert(name.to_owned(), (kind, labels)), None, "{row}");
    }
    assert_eq!(told, shown);

    for page in [
        include_str!("../../README.md"),
        include_str!("../../docs/alarms.md"),
    ] {
        for name in named(page) {
            assert!(shown.contains_key(&name), "there is no {name}");
        }
    }
}

/// R51: what has waited longest, pending or failed, and how much waits; nothing is shown before the database was asked,
/// and nothing changes while it can't be.
#[tokio::test]
async fn what_waits_is_measured() {
    let app = TestApp::new().await;
    let before = scrape(&app).await;
    for name in [
        "workos_sync_oldest_unapplied_seconds",
        "workos_sync_oldest_push_seconds",
    ] {
        assert_eq!(before.get(name), None, "{name} was never asked");
    }
    assert_eq!(
        before.get(r#"workos_sync_inbox_events{status="dead"}"#),
        None
    );

    app.measure().await.unwrap();
    let nothing = scrape(&app).await;
    for status in ["pending", "failed", "dead"] {
        nothing.shows(&format!("workos_sync_inbox_events{{status={status}}}"), 0.0);
    }
    for status in ["pending", "conflict", "rejected"] {
        nothing.shows(&format!("workos_sync_outbox{{status={status}}}"), 0.0);
    }
    nothing.shows("workos_sync_oldest_unapplied_seconds", 0.0);
    nothing.shows("workos_sync_oldest_push_seconds", 0.0);

    app.execute(
        "insert into webhook_events
             (event_id, status, event_type, received_at, outcome, processed_at, next_attempt_at, payload)
         select status || n, status, 'user.created', to_timestamp(1800000000 - age - n),
                case status when 'processed' then 'stale' end, now(),
                case status when 'failed' then now() end, '{}'
         from (values ('pending', 10, 3), ('failed', 20, 2), ('dead', 500, 4), ('processed', 900, 5),
                      ('ignored', 900, 6), ('discarded', 900, 7)) as events (status, age, count),
              generate_series(1, count) n;
         insert into external_id_pushes
             (workos_id, status, organization_id, next_attempt_at, created_at, settled_at)
         select status || n, status, 'x', now(), to_timestamp(1800000000 - age - n),
                case when status <> 'pending' then now() end
         from (values ('pending', 30, 2), ('done', 900, 3), ('conflict', 900, 4), ('rejected', 900, 5))
                  as pushes (status, age, count),
              generate_series(1, count) n",
    )
    .await;
    app.measure().await.unwrap();
    let expected = [
        (r#"workos_sync_inbox_events{status="pending"}"#, 3.0),
        (r#"workos_sync_inbox_events{status="failed"}"#, 2.0),
        (r#"workos_sync_inbox_events{status="dead"}"#, 4.0),
        ("workos_sync_oldest_unapplied_seconds", 22.0),
        (r#"workos_sync_outbox{status="pending"}"#, 2.0),
        (r#"workos_sync_outbox{status="conflict"}"#, 4.0),
        (r#"workos_sync_outbox{status="rejected"}"#, 5.0),
        ("workos_sync_oldest_push_seconds", 32.0),
        ("workos_sync_backlog_timestamp_seconds", 1_800_000_000.0),
    ];
    let waiting = scrape(&app).await;
    for (series, value) in expected {
        waiting.shows(series, value);
    }

    waiting.shows("workos_sync_paused", 0.0);
    app.execute(
        "insert into pause (since, until, actor) values (now(), now() + interval '1 hour', 'me')",
    )
    .await;
    app.measure().await.unwrap();
    scrape(&app).await.shows("workos_sync_paused", 1.0);

    app.execute("alter table external_id_pushes rename to gone")
        .await;
    app.clock.advance(TimeDelta::hours(1));
    app.measure().await.unwrap_err();
    let kept = scrape(&app).await;
    for (series, value) in expected {
        kept.shows(series, value);
    }
}

/// R51: a time of the future is no age: two clocks may differ.
#[tokio::test]
async fn no_age_is_negative() {
    let metrics = Metrics::default();
    let readings = Readings {
        pending: 1,
        oldest_unapplied: Some(NOW + TimeDelta::seconds(5)),
        pushes: 1,
        oldest_push: DateTime::from_timestamp(0, 0),
        ..Readings::default()
    };
    metrics.readings(&readings, NOW);
    let scrape = Scrape::read(Format::Text, &metrics.render_text().unwrap());
    scrape.shows("workos_sync_oldest_unapplied_seconds", 0.0);
    scrape.shows("workos_sync_oldest_push_seconds", 1_800_000_000.0);
}

/// R14, R16, R51: an intention that is recorded anew after it had ended waits since then; one that waits still, since it
/// was first recorded.
#[tokio::test]
async fn a_push_waits_since_it_was_recorded() {
    let (app, workos) = with_workos().await;
    workos.add_organization(ACME, None);
    let oldest = async |app: &TestApp| {
        app.measure().await.unwrap();
        scrape(app).await.value("workos_sync_oldest_push_seconds")
    };
    app.apply(&created(1, ACME, "Acme")).await;
    app.clock.advance(TimeDelta::seconds(100));
    app.apply(&updated(2, ACME, "Acme 2")).await;
    assert_eq!(oldest(&app).await, 100.0);
    assert_eq!(app.outbox.deliver_due().await.unwrap(), 1);
    assert_eq!(oldest(&app).await, 0.0);
    app.clock.advance(TimeDelta::seconds(100));
    app.apply(&updated(3, ACME, "Acme 3")).await;
    app.clock.advance(TimeDelta::seconds(7));
    assert_eq!(oldest(&app).await, 7.0);
}

/// R51: one statement asks, and reads only what waits or has failed, by indexes.
#[tokio::test]
async fn what_is_done_is_not_read() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "insert into webhook_events (event_id, status, outcome, event_type, processed_at, payload)
         select 'e' || n, 'processed', 'stale', 'user.created', now(), '{}' from generate_series(1, 20000) n;
         insert into webhook_events (event_id, event_type, payload)
         select 'p' || n, 'user.created', '{}' from generate_series(1, 50) n;
         insert into external_id_pushes
             (workos_id, status, organization_id, next_attempt_at, created_at, settled_at)
         select 'org_' || n, 'done', 'x', now(), now(), now() from generate_series(1, 20000) n;
         analyze",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let logs = Logs::explained(&db).await;
    let app = TestApp::on(Arc::new(db), Options::default());
    app.measure().await.unwrap();
    let text = logs.text();
    let plans: Vec<_> = text.split("Query Text:").skip(1).collect();
    let [plan] = plans[..] else {
        panic!("{} plans", plans.len());
    };
    for table in ["webhook_events", "external_id_pushes"] {
        assert!(!plan.contains(&format!("Seq Scan on {table}")), "{plan}");
    }
    assert!(!plan.contains("Rows Removed by Filter"), "{plan}");
    for index in [
        "webhook_events_lane_idx",
        "webhook_events_status_idx",
        "external_id_pushes_due_idx",
        "external_id_pushes_refused_idx",
    ] {
        assert!(plan.contains(index), "{index}: {plan}");
    }
}

/// R51: a task asks at once, and goes on asking.
#[tokio::test]
async fn the_gauges_are_kept_fresh() {
    let app = TestApp::new().await;
    let mut running = JoinSet::new();
    running.spawn(gauges::keep(
        app.pool.clone(),
        app.clock.clone(),
        app.metrics.clone(),
        app.shutdown.clone(),
    ));
    eventually("the gauges are there", async || {
        let scrape = scrape(&app).await;
        scrape.get("workos_sync_oldest_unapplied_seconds").is_some()
    })
    .await;
    app.shutdown.cancel();
    running.join_all().await;
}

/// R13, R51: each end of an event is counted, by where it came from, its type and the outcome; types that aren't handled
/// are one, also those that were ignored as they came.
#[tokio::test(flavor = "multi_thread")]
async fn each_end_of_an_event_is_counted() {
    let app = TestApp::new().await;
    let before = scrape(&app).await;
    assert_eq!(before.sum("workos_sync_events_total"), 0.0);
    before.shows("workos_sync_received_to_applied_seconds_count", 0.0);

    for event in [
        created(1, ACME, "Acme"),
        updated(2, ACME, "Acme 2"),
        updated(1, ACME, "Acme").id("event_00000000000000000000000000"),
        deleted(3, ACME),
        created(4, "org_poison", "A\0B"),
        EventBuilder::new(5, "user.created", "user_1"),
        EventBuilder::new(6, "session.created", "session_1"),
    ] {
        app.deliver(&event.body()).await.assert(200);
        app.settle().await;
    }
    // By hand: from nowhere, of a type that nobody knows.
    app.execute(
        r#"insert into webhook_events (event_id, event_type, source, payload)
           values ('e', 'made.up', 'by hand', '{"id":"e","event":"made.up"}')"#,
    )
    .await;
    app.settle().await;

    let after = scrape(&app).await;
    for (source, event_type, outcome, count) in [
        ("webhook", "organization.created", "created", 1.0),
        ("webhook", "organization.updated", "updated", 1.0),
        ("webhook", "organization.updated", "stale", 1.0),
        ("webhook", "organization.deleted", "disabled", 1.0),
        ("webhook", "organization.created", "dead", 1.0),
        ("webhook", "other", "ignored", 2.0),
        ("other", "other", "ignored", 1.0),
    ] {
        let labels = format!(r#"source="{source}",type="{event_type}",outcome="{outcome}""#);
        let series = format!("workos_sync_events_total{{{labels}}}");
        after.shows(&series, count);
    }
    assert_eq!(after.sum("workos_sync_events_total"), 8.0);
    after.shows(
        r#"workos_sync_event_failures_total{cause_class="permanent"}"#,
        1.0,
    );
    assert_eq!(after.sum("workos_sync_event_failures_total"), 1.0);
    after.shows("workos_sync_received_to_applied_seconds_count", 4.0);
    assert!(after.value("workos_sync_apply_seconds_count") >= 4.0);
}

/// R30, R51: each refusal of a delivery is counted, from 0.
#[tokio::test]
async fn each_refusal_is_counted() {
    let app = TestApp::with(Options {
        max_body_bytes: 100,
        ..Options::default()
    })
    .await;
    let before = scrape(&app).await;
    let body = "{}";
    let refused = |at: DateTime<Utc>, secret: &str| {
        let header = signature::sign(&secret.into(), body.as_bytes(), at);
        Request::post("/webhooks/workos").header("workos-signature", header)
    };
    let now = app.clock.now();
    let hour = TimeDelta::hours(1);
    let long = "x".repeat(101);
    for (request, body, code) in [
        (Request::post("/webhooks/workos"), body, "signature_missing"),
        (
            Request::post("/webhooks/workos").header("workos-signature", "v1=0"),
            body,
            "signature_malformed",
        ),
        (refused(now, "another"), body, "signature_mismatch"),
        (refused(now - hour, SECRET), body, "signature_too_old"),
        (refused(now + hour, SECRET), body, "signature_in_future"),
        (refused(now, SECRET), body, "not_an_event"),
        (refused(now, SECRET), &long, "body_too_large"),
        (
            refused(now, SECRET).header("content-encoding", "gzip"),
            body,
            "content_encoding",
        ),
        (
            refused(now, SECRET).uri("/webhooks/elsewhere"),
            body,
            "not_found",
        ),
    ] {
        let request = request.body(Body::from(body.to_owned())).unwrap();
        assert_eq!(app.send(request).await.json()["code"], code);
        let series = format!("workos_sync_deliveries_total{{answer={code}}}");
        before.shows(&series, 0.0);
        scrape(&app).await.shows(&series, 1.0);
    }
}

/// R26, R51: attempts that fail are counted by what is to blame, each from 0.
#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_by_what_is_to_blame() {
    let app = TestApp::new().await;
    let before = scrape(&app).await;
    for class in [
        "conflict",
        "transient",
        "unusable",
        "refused",
        "permanent",
        "bug",
    ] {
        let series = format!("workos_sync_event_failures_total{{cause_class={class}}}");
        before.shows(&series, 0.0);
    }
    app.execute("alter table organization_metadata add constraint no_acme check (name <> 'Acme')")
        .await;
    app.record(&created(1, ACME, "Acme")).await;
    app.settle().await;
    app.execute("alter table organization_metadata rename column slug to gone")
        .await;
    app.record(&created(2, "org_other", "Other")).await;
    app.inbox.drain().await.unwrap_err();
    let after = scrape(&app).await;
    after.shows(
        r#"workos_sync_event_failures_total{cause_class="refused"}"#,
        1.0,
    );
    // A condition of the service, which is looked for again and again.
    let unusable = r#"workos_sync_event_failures_total{cause_class="unusable"}"#;
    assert!(after.value(unusable) >= 1.0);
    after.shows("workos_sync_schema_usable", 0.0);
}

/// R51: how long events waited, and how long transactions took.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_and_applying_are_measured() {
    let app = TestApp::new().await;
    let lock = app
        .hold("lock table workos_organization_syncs in share mode")
        .await;
    app.record(&created(1, ACME, "Acme")).await;
    eventually("the service waits for the lock", async || {
        app.db.blocked_sessions().await == 1
    })
    .await;
    app.clock.advance(TimeDelta::seconds(90));
    release(lock).await;
    app.settle().await;
    let scrape = scrape(&app).await;
    scrape.shows("workos_sync_received_to_applied_seconds_count", 1.0);
    scrape.shows("workos_sync_received_to_applied_seconds_sum", 90.0);
    scrape.shows(
        r#"workos_sync_received_to_applied_seconds_bucket{le="60"}"#,
        0.0,
    );
    scrape.shows(
        r#"workos_sync_received_to_applied_seconds_bucket{le="600"}"#,
        1.0,
    );
    let (count, sum) = (
        scrape.value("workos_sync_apply_seconds_count"),
        scrape.value("workos_sync_apply_seconds_sum"),
    );
    assert!(count == 1.0 && sum > 0.0 && sum < 60.0, "{count} {sum}");
}

/// R51: requests to WorkOS are counted by endpoint and status, and say whether it takes the key.
#[tokio::test]
async fn requests_to_workos_are_counted() {
    let (app, workos) = with_workos().await;
    let counted = |scrape: &Scrape, endpoint: &str, status: &str| {
        let labels = format!("endpoint={endpoint},status={status}");
        scrape.value(&format!(
            "workos_sync_workos_api_requests_total{{{labels}}}"
        ))
    };
    let before = scrape(&app).await;
    assert_eq!(
        before.get("workos_sync_workos_api_ok"),
        None,
        "nobody has asked"
    );
    for endpoint in [
        "get_organization",
        "update_organization",
        "list_organizations",
    ] {
        for status in ["200", "401", "429", "503", "other", "none"] {
            assert_eq!(counted(&before, endpoint, status), 0.0);
        }
    }

    workos.add_organization(ACME, None);
    let deliver = async |n: u64| {
        app.apply(&updated(n, ACME, "Acme")).await;
        app.clock.advance(TimeDelta::hours(1));
        app.outbox.deliver_due().await.unwrap();
        scrape(&app).await
    };
    let scrape = deliver(1).await;
    assert_eq!(counted(&scrape, "get_organization", "200"), 1.0);
    assert_eq!(counted(&scrape, "update_organization", "200"), 1.0);
    scrape.shows("workos_sync_workos_api_ok", 1.0);

    // A 429 says nothing about the key.
    for (n, (status, label, ok)) in [
        (401, "401", 0.0),
        (429, "429", 0.0),
        (404, "404", 1.0),
        (429, "429", 1.0),
        (503, "503", 0.0),
        (422, "422", 1.0),
        (599, "other", 0.0),
        (418, "other", 1.0),
    ]
    .into_iter()
    .enumerate()
    {
        workos.answer_next(Answer::status(status));
        let scrape = deliver(2 + n as u64).await;
        assert!(
            counted(&scrape, "get_organization", label) >= 1.0,
            "{status}"
        );
        scrape.shows("workos_sync_workos_api_ok", ok);
    }

    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let app = with_api(Url::parse(&url).unwrap()).await;
    app.apply(&created(1, ACME, "Acme")).await;
    app.outbox.deliver_due().await.unwrap();
    let scrape = crate::metrics::scrape(&app).await;
    assert_eq!(counted(&scrape, "get_organization", "none"), 1.0);
    scrape.shows("workos_sync_workos_api_ok", 0.0);
}

/// R51: a key that is wrong shows at the start, without anything to write back; without a key there is nothing to show.
#[tokio::test]
async fn a_wrong_key_shows_at_the_start() {
    let (app, workos) = with_workos().await;
    workos.answer_all(Answer::status(401));
    let mut running = JoinSet::new();
    running.spawn(app.outbox.clone().run(app.shutdown.clone()));
    eventually("it shows", async || {
        scrape(&app).await.get("workos_sync_workos_api_ok") == Some(0.0)
    })
    .await;
    workos.recover();
    app.clock.advance(TimeDelta::seconds(60));
    eventually("it is mended", async || {
        scrape(&app).await.value("workos_sync_workos_api_ok") == 1.0
    })
    .await;
    app.shutdown.cancel();
    running.join_all().await;

    let without = TestApp::new().await;
    let shown = scrape(&without).await.samples;
    assert!(
        shown.keys().all(|(name, _)| !name.contains("workos_api")),
        "{shown:?}"
    );
}

/// R51: what is told of the process, its connections and its build.
#[tokio::test]
async fn the_process_is_measured() {
    let app = TestApp::new().await;
    app.measure().await.unwrap();
    eventually("the connection is given back", async || {
        let scrape = scrape(&app).await;
        scrape.value(r#"workos_sync_database_connections{state="idle"}"#) == 1.0
            && scrape.value(r#"workos_sync_database_connections{state="used"}"#) == 0.0
    })
    .await;
    let scraped = scrape(&app).await;
    let version = format!(
        "workos_sync_build_info{{version={}}}",
        env!("CARGO_PKG_VERSION")
    );
    scraped.shows(&version, 1.0);
    assert!(scraped.value("process_resident_memory_bytes") > 1e6);
    assert!(scraped.value("process_open_fds") >= 3.0);
    assert!(scraped.value("process_max_fds") >= scraped.value("process_open_fds"));
    assert!(scraped.value("process_cpu_seconds_total") > 0.0);
    assert!(scraped.value("process_start_time_seconds") > 1.7e9);

    scraped.shows("workos_sync_schema_usable", 1.0);

    let held = app.hold("lock table webhook_events").await;
    let (inbox, body) = (app.inbox.clone(), created(1, ACME, "Acme").body());
    let mut recording = JoinSet::new();
    recording.spawn(async move {
        let event = inbox
            .read(body.into_bytes(), None, Source::Webhook)
            .unwrap();
        inbox.record(event).await.unwrap()
    });
    eventually("a connection is in use", async || {
        scrape(&app)
            .await
            .value(r#"workos_sync_database_connections{state="used"}"#)
            == 1.0
    })
    .await;
    release(held).await;
    recording.join_all().await;
}

/// R29, R51: which secret matched, from 1, each shown from the start.
#[tokio::test]
async fn the_use_of_each_secret_is_counted() {
    let app = TestApp::with(Options {
        secrets: vec!["new".into(), "old".into()],
        ..Options::default()
    })
    .await;
    app.metrics.secret_used(2);
    let scrape = scrape(&app).await;
    scrape.shows(
        r#"workos_sync_signature_secret_used_total{position="1"}"#,
        0.0,
    );
    scrape.shows(
        r#"workos_sync_signature_secret_used_total{position="2"}"#,
        1.0,
    );
}

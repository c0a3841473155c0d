//! Writing organization ids to WorkOS, against a fake one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;
use serde_json::json;
use sqlx::{Connection, Executor};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use workos_sync::clock::{Clock, ManualClock};
use workos_sync::entities::organization::{Host, OrganizationEvent, organization_id};
use workos_sync::event::{Event, WorkosId};
use workos_sync::outbox::Outbox;
use workos_sync::postgres;
use workos_sync::workos::{Timeouts, WorkosClient};

use crate::support::logs::Logs;
use crate::support::proxy::Proxy;
use crate::support::workos::{Answer, FakeWorkos};
use crate::support::{TestDatabase, apply, eventually, look_at};

const KEY: &str = "sk_test_the_key";

/// A database, a fake WorkOS, and a clock that stands still.
struct Setting {
    database: TestDatabase,
    host: Host,
    workos: FakeWorkos,
    clock: Arc<ManualClock>,
    logs: Logs,
}

/// A row of the outbox.
#[derive(Debug, sqlx::FromRow)]
struct Push {
    status: String,
    attempts: i32,
    last_error: Option<String>,
    next_attempt_at: DateTime<Utc>,
    revision: i64,
}

impl Setting {
    async fn new() -> Self {
        let now = DateTime::parse_from_rfc3339("2026-01-02T03:04:05Z").unwrap();
        let database = TestDatabase::new().await;
        Self {
            logs: Logs::capture(),
            host: look_at(&database),
            database,
            workos: FakeWorkos::start().await,
            clock: Arc::new(ManualClock::new(now.to_utc())),
        }
    }

    /// An outbox as another replica would have it: the database and WorkOS are the same, nothing else is.
    fn outbox(&self) -> Outbox {
        self.outbox_with(Timeouts::default())
    }

    fn outbox_with(&self, timeouts: Timeouts) -> Outbox {
        let key = SecretString::from(KEY);
        let client = WorkosClient::with_timeouts(self.workos.url(), key, timeouts).unwrap();
        self.outbox_of(Some(client))
    }

    fn outbox_of(&self, client: Option<WorkosClient>) -> Outbox {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let ids = Arc::new(self.host.clone());
        Outbox::new(self.database.pool.clone(), client, clock, ids)
    }

    /// Applies an event without `external_id`, as the inbox does; each is newer than the last.
    async fn apply_event(&self, workos_id: &str) {
        let id = format!("event_{}", self.next_ulid().await);
        let body = json!({
            "id": id,
            "event": "organization.updated",
            "data": {"id": workos_id, "name": "Acme", "external_id": null},
        });
        let body = body.to_string();
        let event = OrganizationEvent::decode(&Event::parse(body.as_bytes()).unwrap()).unwrap();
        let namespace = organization_id::default_namespace();
        let mut tx = self.database.pool.begin().await.unwrap();
        apply(
            &mut tx,
            &self.host.statements(),
            std::slice::from_ref(&event),
            &namespace,
            &[],
            self.clock.now(),
        )
        .await
        .unwrap();
        tx.commit().await.unwrap();
    }

    /// From the database, so that it grows whoever asks.
    async fn next_ulid(&self) -> String {
        let sql = "select count(*) + coalesce(sum(revision), 0)::bigint from external_id_pushes";
        let n: i64 = sqlx::query_scalar(sql)
            .fetch_one(&self.database.pool)
            .await
            .unwrap();
        format!("01HX{n:022}")
    }

    /// Adds an organization to WorkOS and applies its event.
    async fn record(&self, workos_id: &str) {
        self.workos.add_organization(workos_id, None);
        self.apply_event(workos_id).await;
    }

    /// The same for many organizations at once.
    async fn record_many(&self, count: i64) {
        for n in 1..=count {
            self.workos.add_organization(&format!("org_{n}"), None);
        }
        sqlx::query(
            "insert into external_id_pushes (workos_id, organization_id, next_attempt_at, created_at)
             select 'org_' || n, 'id-' || n, $2, $2 from generate_series(1, $1) n",
        )
        .bind(count)
        .bind(self.clock.now())
        .execute(&self.database.pool)
        .await
        .unwrap();
    }

    /// The number that a query finds.
    async fn scalar(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&self.database.pool)
            .await
            .unwrap()
    }

    async fn push(&self, workos_id: &str) -> Push {
        sqlx::query_as(
            "select status, attempts, last_error, next_attempt_at, revision
             from external_id_pushes where workos_id = $1",
        )
        .bind(workos_id)
        .fetch_one(&self.database.pool)
        .await
        .unwrap()
    }

    /// Asserts status and reason of an intention.
    async fn assert_push(&self, workos_id: &str, status: &str, reason: &str) -> Push {
        let push = self.push(workos_id).await;
        assert_eq!(push.status, status, "{push:?}");
        let last_error = push.last_error.as_deref().unwrap_or_default();
        assert!(last_error.contains(reason), "{push:?}");
        assert_eq!(last_error.is_empty(), reason.is_empty(), "{push:?}");
        push
    }

    fn advance(&self, seconds: i64) {
        self.clock.advance(TimeDelta::seconds(seconds));
    }

    /// The organization id that the events' organization gets.
    fn external_id(workos_id: &str) -> String {
        let workos_id = WorkosId::new(workos_id).unwrap();
        organization_id::derive(&organization_id::default_namespace(), &workos_id).to_string()
    }

    /// Asserts that WorkOS holds the organization id.
    fn assert_written(&self, workos_id: &str) {
        let held = self.workos.external_id(workos_id);
        assert_eq!(held, Some(Self::external_id(workos_id)));
    }
}

/// Delivers what is due, until nothing is.
async fn deliver(outbox: &Outbox) -> usize {
    let mut count = 0;
    loop {
        match outbox.deliver_due().await.unwrap() {
            0 => return count,
            delivered => count += delivered,
        }
    }
}

/// R14: the organization id goes to WorkOS after the commit, in a body that holds nothing else.
#[tokio::test]
async fn the_organization_id_is_written_in_a_body_of_its_own() {
    let s = Setting::new().await;
    s.record("org_1").await;
    let outbox = s.outbox();
    assert_eq!(deliver(&outbox).await, 1);

    let id = Setting::external_id("org_1");
    let [read, write] = &s.workos.requests()[..] else {
        panic!("{:#?}", s.workos.requests())
    };
    assert_eq!((read.method.as_str(), &*read.body), ("GET", ""));
    assert_eq!(write.method, "PUT");
    assert_eq!(write.body, format!(r#"{{"external_id":"{id}"}}"#));
    for request in [read, write] {
        assert_eq!(request.path, "/organizations/org_1");
        assert_eq!(
            request.authorization.as_deref(),
            Some("Bearer sk_test_the_key")
        );
        let version = format!("workos-sync/{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(request.user_agent, Some(version));
    }
    s.assert_written("org_1");
    let push = s.assert_push("org_1", "done", "").await;
    assert_eq!(push.attempts, 1);

    let [line] = &s.logs.at("INFO")[..] else {
        panic!("{}", s.logs.text())
    };
    assert!(line.contains("workos.organization_id=org_1"), "{line}");
    assert!(line.contains(&format!(" organization_id={id}")), "{line}");
    assert!(!s.logs.text().contains(KEY), "the key was logged");
    assert!(!format!("{outbox:?}").contains(KEY));
}

/// R14: what isn't committed isn't written.
#[tokio::test]
async fn nothing_is_written_before_the_commit() {
    let s = Setting::new().await;
    s.workos.add_organization("org_1", None);
    let mut tx = s.database.pool.begin().await.unwrap();
    let body =
        br#"{"id":"event_1","event":"organization.created","data":{"id":"org_1","name":"A"}}"#;
    let event = OrganizationEvent::decode(&Event::parse(body).unwrap()).unwrap();
    let namespace = organization_id::default_namespace();
    apply(
        &mut tx,
        &s.host.statements(),
        std::slice::from_ref(&event),
        &namespace,
        &[],
        s.clock.now(),
    )
    .await
    .unwrap();

    let outbox = s.outbox();
    assert_eq!(deliver(&outbox).await, 0);
    tx.commit().await.unwrap();
    assert_eq!(deliver(&outbox).await, 1);
    s.assert_written("org_1");
}

/// R15: equal is done, without a write.
#[tokio::test]
async fn an_equal_external_id_is_done_without_a_write() {
    let s = Setting::new().await;
    s.apply_event("org_1").await;
    s.workos
        .add_organization("org_1", Some(&Setting::external_id("org_1")));
    deliver(&s.outbox()).await;
    s.assert_push("org_1", "done", "").await;
    assert_eq!(s.workos.methods(), ["GET"]);
}

/// R15: equal is what the key's type means by it.
#[tokio::test]
async fn another_spelling_of_a_uuid_is_done_without_a_write() {
    let s = Setting::new().await;
    let id = Setting::external_id("org_1").to_uppercase();
    s.apply_event("org_1").await;
    s.workos.add_organization("org_1", Some(&id));
    deliver(&s.outbox()).await;
    s.assert_push("org_1", "conflict", &id).await;

    let uuids = "alter table organization_metadata alter column id type uuid using id::uuid";
    s.database.pool.execute(uuids).await.unwrap();
    s.host.refresh(&s.database.pool).await.unwrap();
    s.apply_event("org_1").await;
    deliver(&s.outbox()).await;
    s.assert_push("org_1", "done", "").await;
    assert_eq!(s.workos.methods(), ["GET", "GET"]);
}

/// R15: another one is a conflict that names both, and stays.
#[tokio::test]
async fn a_different_external_id_is_never_overwritten() {
    let s = Setting::new().await;
    s.apply_event("org_1").await;
    s.workos.add_organization("org_1", Some("else\0where"));
    deliver(&s.outbox()).await;

    let push = s.assert_push("org_1", "conflict", "else where").await;
    let id = Setting::external_id("org_1");
    assert!(push.last_error.unwrap().contains(&id));
    assert_eq!(
        s.workos.external_id("org_1").as_deref(),
        Some("else\0where")
    );
    assert_eq!(s.workos.methods(), ["GET"]);
    assert_eq!(s.logs.at("WARN").len(), 1, "{}", s.logs.text());
}

/// R16: a final answer ends the intention with its reason, whether it comes to the read or to the write.
#[tokio::test]
async fn a_final_answer_ends_the_intention_with_its_reason() {
    let s = Setting::new().await;
    let outbox = s.outbox();
    let used = r#"{"message":"taken","code":"external_id_already_used"}"#;
    for (n, (answer, reason)) in [
        (Answer::status(404), "(404): it was deleted meanwhile"),
        (Answer::status(400).body(used), "external_id_already_used"),
        (
            Answer::status(400).body(r#"{"message":"odd"}"#),
            "(400): odd",
        ),
        (
            Answer::status(409).body(r#"{"message":"odd"}"#),
            "(409): odd",
        ),
        (
            Answer::status(422).body(r#"{"errors":["odd"]}"#),
            "(422): odd",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let (read, write) = (format!("org_r{n}"), format!("org_w{n}"));
        s.record(&read).await;
        s.workos.answer_next(answer.clone());
        assert_eq!(deliver(&outbox).await, 1);
        s.assert_push(&read, "rejected", reason).await;

        s.record(&write).await;
        s.workos.answer_next(Answer::status(200));
        s.workos.answer_next(answer);
        assert_eq!(deliver(&outbox).await, 1);
        s.assert_push(&write, "rejected", reason).await;
    }
    s.advance(86_400);
    assert_eq!(deliver(&outbox).await, 0, "a final answer is final");
}

/// R16: WorkOS keeps `external_id` unique; that answer is final too.
#[tokio::test]
async fn an_external_id_of_another_organization_is_rejected() {
    let s = Setting::new().await;
    s.record("org_1").await;
    s.workos
        .add_organization("org_2", Some(&Setting::external_id("org_1")));
    deliver(&s.outbox()).await;
    s.assert_push("org_1", "rejected", "external_id_already_used")
        .await;
}

/// R16: the next event of the organization tries again, whatever became of the last try.
#[tokio::test]
async fn the_next_event_tries_again() {
    let s = Setting::new().await;
    let outbox = s.outbox();
    s.apply_event("org_1").await;
    deliver(&outbox).await;
    s.assert_push("org_1", "rejected", "404").await;

    s.record("org_1").await;
    let push = s.assert_push("org_1", "pending", "").await;
    assert_eq!((push.attempts, push.revision), (0, 2));
    deliver(&outbox).await;
    s.assert_push("org_1", "done", "").await;
    s.assert_written("org_1");
}

/// R16: a wrong key costs one request a pause, one line that says what is wrong, and no intention.
#[tokio::test]
async fn a_wrong_key_pauses_the_outbox() {
    for status in [401, 403] {
        let s = Setting::new().await;
        let outbox = s.outbox();
        for n in 0..10 {
            s.record(&format!("org_{n}")).await;
        }
        s.workos.answer_all(Answer::status(status));
        assert_eq!(deliver(&outbox).await, 1);
        assert_eq!(s.workos.requests().len(), 1);
        s.advance(59);
        assert_eq!(deliver(&outbox).await, 0);

        s.advance(1);
        assert_eq!(deliver(&outbox).await, 1);
        assert_eq!(s.workos.requests().len(), 2);
        let errors = s.logs.at("ERROR");
        assert_eq!(errors.len(), 2, "one a pause: {errors:#?}");
        assert!(errors[0].contains("WORKOS_API_KEY is wrong"), "{errors:#?}");
        assert!(!s.logs.text().contains(KEY), "the key was logged");

        s.workos.recover();
        s.advance(60);
        assert_eq!(deliver(&outbox).await, 10);
        for n in 0..10 {
            let push = s.push(&format!("org_{n}")).await;
            assert_eq!((&*push.status, push.attempts), ("done", 1), "{push:?}");
        }
    }
}

/// R16: a key that turns bad while eight deliveries are under way is one line and one pause all the same.
#[tokio::test]
async fn deliveries_under_way_share_one_pause() {
    let s = Setting::new().await;
    let outbox = s.outbox();
    s.record("org_first").await;
    assert_eq!(deliver(&outbox).await, 1);
    for n in 0..10 {
        s.record(&format!("org_{n}")).await;
    }
    s.workos.answer_all(Answer::status(401));
    assert_eq!(deliver(&outbox).await, 8);
    assert_eq!(s.logs.at("ERROR").len(), 1, "{}", s.logs.text());
    s.advance(60);
    assert_eq!(deliver(&outbox).await, 1);
}

/// R16: 429 pauses the whole outbox as long as `Retry-After` says, in seconds or up to a date.
#[tokio::test]
async fn retry_after_is_honoured_by_the_whole_outbox() {
    let s = Setting::new().await;
    let outbox = s.outbox();
    s.record("org_1").await;
    s.record("org_2").await;
    for (value, seconds) in [
        ("30", 30),
        ("Fri, 02 Jan 2026 03:05:35 GMT", 60),
        ("999999999999", 3600),
        ("0", 1),
    ] {
        let before = s.workos.requests().len();
        s.workos
            .answer_next(Answer::status(429).header("retry-after", value));
        assert_eq!(deliver(&outbox).await, 1);
        s.advance(seconds - 1);
        assert_eq!(deliver(&outbox).await, 0, "{value}");
        assert_eq!(s.workos.requests().len(), before + 1);
        s.advance(1);
    }
    assert_eq!(deliver(&outbox).await, 2);
    s.assert_written("org_1");
    s.assert_written("org_2");
    assert_eq!(
        s.push("org_1").await.attempts,
        1,
        "a pause counts against nobody"
    );
}

/// R16: without `Retry-After`, the pauses double.
#[tokio::test]
async fn rate_limits_without_a_time_back_off() {
    let s = Setting::new().await;
    let outbox = s.outbox();
    s.record("org_1").await;
    s.workos.answer_all(Answer::status(429));
    for longest in [1, 2, 4, 8] {
        assert_eq!(deliver(&outbox).await, 1);
        let wait = s.push("org_1").await.next_attempt_at - s.clock.now();
        let longest = TimeDelta::seconds(longest);
        assert!(wait <= longest && wait * 2 >= longest, "{wait}");
        s.clock.advance(longest);
    }
    s.workos.recover();
    assert_eq!(deliver(&outbox).await, 1);
    s.assert_written("org_1");
}

/// R16: a row that fails while WorkOS takes others waits longer each time, and costs the others a second.
#[tokio::test]
async fn a_row_that_fails_by_itself_backs_off_by_itself() {
    let s = Setting::new().await;
    let outbox = s.outbox();
    s.record("org_other").await;
    deliver(&outbox).await;
    s.record("org_1").await;
    s.workos.answer_about("org_1", Answer::status(500));
    for tries in 1..=6 {
        assert_eq!(outbox.deliver_due().await.unwrap(), 1);
        let push = s.assert_push("org_1", "pending", "500").await;
        assert_eq!(push.attempts, tries);
        // It comes a second behind the pause in any case.
        let longest = TimeDelta::seconds(std::cmp::max(2, 1 << (tries - 1)));
        let wait = push.next_attempt_at - s.clock.now();
        assert!(wait <= longest && wait * 2 >= longest, "{tries}: {wait}");

        let other = format!("org_other_{tries}");
        s.record(&other).await;
        s.advance(1);
        assert_eq!(deliver(&outbox).await, 1);
        s.assert_push(&other, "done", "").await;
        s.clock.advance(push.next_attempt_at - s.clock.now());
    }
    s.workos.recover();
    assert_eq!(deliver(&outbox).await, 1);
    s.assert_written("org_1");
}

/// R16: where nothing else is due, a cheap request goes ahead, so that a row's own failure isn't taken for an outage.
/// WorkOS is asked so at the start, after a pause and after an hour of silence, and not in between.
#[tokio::test]
async fn a_cheap_request_goes_ahead_where_nothing_is_due() {
    let s = Setting::new().await;
    let outbox = s.outbox();
    let shutdown = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(outbox.clone().run(shutdown.clone()));
    s.workos.received(1).await;
    s.advance(3_599);
    outbox.wake();
    s.record("org_1").await;
    s.workos.answer_about("org_1", Answer::status(500));
    outbox.wake();
    eventually("org_1 failed", async || {
        s.push("org_1").await.last_error.is_some()
    })
    .await;
    // The pause is over half a second before it is due, at the latest.
    let due = s.push("org_1").await.next_attempt_at;
    let pause_is_over = due - TimeDelta::milliseconds(500);
    s.clock.advance(pause_is_over - s.clock.now());
    eventually("WorkOS took the cheap request", async || {
        s.logs.text().contains("takes requests again")
    })
    .await;
    s.clock.advance(due - s.clock.now());
    eventually("it is its own failure", async || {
        s.push("org_1").await.attempts == 2
    })
    .await;
    shutdown.cancel();
    running.join_all().await;
    let paths: Vec<_> = s.workos.requests().into_iter().map(|r| r.path).collect();
    let (list, row) = ("/organizations", "/organizations/org_1");
    assert_eq!(paths, [list, row, list, row]);
}

/// R16: while WorkOS fails, all of the outbox slows down: however much waits, an hour costs one request and one warning
/// a pause, and the pauses grow to a minute. None of it counts against what waits, and once WorkOS answers, everything
/// goes out at full speed.
#[tokio::test]
async fn an_outage_costs_a_request_a_pause_however_much_waits() {
    let s = Setting::new().await;
    let outbox = s.outbox();
    s.record("org_first").await;
    assert_eq!(deliver(&outbox).await, 1);
    s.record_many(3_000).await;

    let before = s.workos.requests().len();
    s.workos.answer_all(Answer::status(503));
    for _ in 0..3_600 {
        deliver(&outbox).await;
        let asked = s.workos.requests().len() - before;
        assert!(asked <= 8 + 6 + 120, "{asked} requests");
        s.advance(1);
    }
    // Eight were under way when it began. Each pause lasts between the half and the whole of 1, 2, 4 … 60 s.
    let probes = s.workos.requests().len() - before - 8;
    assert!((60..=126).contains(&probes), "{probes} probes");
    assert_eq!(s.logs.at("WARN").len(), probes + 1, "one a pause");
    let burnt: i64 = s
        .scalar("select sum(attempts) from external_id_pushes where status = 'pending'")
        .await;
    assert!(burnt <= 1, "{burnt} attempts");

    s.workos.recover();
    s.advance(60);
    assert_eq!(outbox.deliver_due().await.unwrap(), 1, "the probe");
    for _ in 0..10 {
        assert_eq!(outbox.deliver_due().await.unwrap(), 8, "full speed");
    }
    let done = "select count(*) from external_id_pushes where status = 'done' and attempts <= 2";
    assert_eq!(s.scalar(done).await, 1 + 1 + 80);
}

/// R16: no answer in time and half an answer are retried; a write that was lost that way is found by the read.
#[tokio::test]
async fn lost_answers_are_retried() {
    let s = Setting::new().await;
    let timeouts = Timeouts {
        connect: Duration::from_millis(300),
        total: Duration::from_millis(300),
    };
    let outbox = s.outbox_with(timeouts);
    s.record("org_1").await;
    s.workos.answer_next(Answer::Hang);
    assert_eq!(deliver(&outbox).await, 1);
    s.assert_push("org_1", "pending", "timed out").await;

    s.advance(2);
    s.workos.answer_next(Answer::Cut);
    assert_eq!(deliver(&outbox).await, 1);
    s.assert_push("org_1", "pending", "unavailable").await;

    s.advance(3);
    s.workos.answer_next(Answer::status(200));
    s.workos.answer_next(Answer::Cut);
    assert_eq!(deliver(&outbox).await, 1);
    s.assert_push("org_1", "pending", "unavailable").await;
    // The write had arrived.
    s.workos
        .add_organization("org_1", Some(&Setting::external_id("org_1")));

    s.advance(5);
    let before = s.workos.requests().len();
    assert_eq!(deliver(&outbox).await, 1);
    s.assert_push("org_1", "done", "").await;
    assert_eq!(s.workos.methods()[before..], ["GET"]);
}

/// R16: an intention that is recorded again while the delivery is under way isn't settled by it, whatever the
/// answer. That it can be recorded shows too that no row lock is held over a request.
#[tokio::test]
async fn a_delivery_that_was_overtaken_settles_nothing() {
    for answer in [200, 404, 500, 401] {
        let s = Setting::new().await;
        s.record("org_1").await;
        let outbox = s.outbox();
        // The read is kept back and finds nothing; the write gets the answer.
        let held = s.workos.hold_next();
        s.workos.answer_all(Answer::status(answer));
        let mut delivery = JoinSet::new();
        let delivering = outbox.clone();
        delivery.spawn(async move { delivering.deliver_due().await.unwrap() });
        s.workos.received(1).await;
        s.apply_event("org_1").await;
        held.release();
        assert_eq!(delivery.join_all().await, [1]);

        let push = s.assert_push("org_1", "pending", "").await;
        assert_eq!((push.revision, push.attempts), (2, 0), "{answer}");
        assert!(push.next_attempt_at <= s.clock.now(), "{answer}");

        s.workos.recover();
        s.advance(60);
        assert_eq!(deliver(&outbox).await, 1);
        s.assert_push("org_1", "done", "").await;
    }
}

/// R22: of two replicas one delivers, however long WorkOS takes to answer.
#[tokio::test]
async fn two_replicas_do_not_push_one_intention_twice() {
    let s = Setting::new().await;
    s.record("org_1").await;
    let held = s.workos.hold_next();
    let first = s.outbox();
    let mut delivery = JoinSet::new();
    delivery.spawn(async move { first.deliver_due().await.unwrap() });
    s.workos.received(1).await;

    s.advance(59);
    assert_eq!(deliver(&s.outbox()).await, 0);
    held.release();
    assert_eq!(delivery.join_all().await, [1]);
    assert_eq!(s.workos.methods(), ["GET", "PUT"]);
    s.assert_push("org_1", "done", "").await;
}

/// R22: a claim that isn't committed yet is passed over, not waited for.
#[tokio::test]
async fn a_row_that_another_claims_is_skipped() {
    let s = Setting::new().await;
    s.record("org_1").await;
    s.record("org_2").await;
    let mut tx = s.database.pool.begin().await.unwrap();
    tx.execute("select from external_id_pushes where workos_id = 'org_1' for update")
        .await
        .unwrap();
    assert_eq!(deliver(&s.outbox()).await, 1);
    s.assert_written("org_2");
    tx.rollback().await.unwrap();
    assert_eq!(deliver(&s.outbox()).await, 1);
    s.assert_written("org_1");
}

/// R22: what a replica that died had claimed is taken up when its lease ends.
#[tokio::test]
async fn the_claim_of_a_dead_replica_ends() {
    let s = Setting::new().await;
    s.record("org_1").await;
    s.workos.answer_next(Answer::Hang);
    let dying = s.outbox();
    let mut delivery = JoinSet::new();
    delivery.spawn(async move { dying.deliver_due().await.unwrap() });
    s.workos.received(1).await;
    delivery.shutdown().await;

    let survivor = s.outbox();
    assert_eq!(deliver(&survivor).await, 0);
    s.advance(60);
    assert_eq!(deliver(&survivor).await, 1);
    s.assert_written("org_1");
}

/// R16: without an API key the intentions wait.
#[tokio::test]
async fn without_a_key_intentions_wait() {
    let s = Setting::new().await;
    s.record("org_1").await;
    let outbox = s.outbox_of(None);
    assert_eq!(outbox.deliver_due().await.unwrap(), 0);

    let shutdown = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(outbox.clone().run(shutdown.clone()));
    outbox.wake();
    tokio::task::yield_now().await;
    assert!(running.try_join_next().is_none(), "it ended by itself");
    shutdown.cancel();
    running.join_all().await;

    let push = s.assert_push("org_1", "pending", "").await;
    assert_eq!(push.attempts, 0);
    assert_eq!(deliver(&s.outbox()).await, 1);
}

/// R14: the loop delivers what was recorded before it started, and what it is woken for.
#[tokio::test]
async fn the_loop_delivers_and_ends_on_shutdown() {
    let s = Setting::new().await;
    s.record("org_1").await;
    let outbox = s.outbox();
    let shutdown = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(outbox.clone().run(shutdown.clone()));
    eventually("org_1 is done", async || {
        s.push("org_1").await.status == "done"
    })
    .await;

    // Each is recorded when the loop has just begun to wait: polling alone would take a second each.
    let start = Instant::now();
    for workos_id in ["org_2", "org_3", "org_4", "org_5", "org_6"] {
        s.record(workos_id).await;
        outbox.wake();
        eventually("it is done", async || {
            s.push(workos_id).await.status == "done"
        })
        .await;
        s.assert_written(workos_id);
    }
    assert!(start.elapsed() < Duration::from_secs(3), "it polled");

    shutdown.cancel();
    running.join_all().await;
    s.assert_written("org_1");
}

/// R31: what is in hand at shutdown is finished, and nothing is begun.
#[tokio::test]
async fn a_delivery_in_hand_is_finished_on_shutdown() {
    let s = Setting::new().await;
    s.record("org_1").await;
    let held = s.workos.hold_next();
    let shutdown = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(s.outbox().run(shutdown.clone()));
    s.workos.received(1).await;
    s.record("org_2").await;
    shutdown.cancel();
    held.release();
    running.join_all().await;
    s.assert_push("org_1", "done", "").await;
    s.assert_push("org_2", "pending", "").await;
    assert_eq!(s.workos.methods(), ["GET", "PUT"]);
}

/// R16: the loop outlives a database that fails, and says so once.
#[tokio::test]
async fn the_loop_outlives_a_database_outage() {
    let s = Setting::new().await;
    s.record("org_1").await;
    let pool = &s.database.pool;
    let rename = "alter table external_id_pushes rename to gone";
    pool.execute(rename).await.unwrap();
    let shutdown = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(s.outbox().run(shutdown.clone()));
    // A statement that is slow to fail is logged with its whole text as well: up to twice a try.
    let logged = || s.logs.text().matches("due as materialized").count();
    eventually("two tries went wrong", async || logged() > 4).await;
    assert_eq!(s.logs.at("ERROR").len(), 1, "{}", s.logs.text());

    let rename = "alter table gone rename to external_id_pushes";
    pool.execute(rename).await.unwrap();
    eventually("org_1 is done", async || {
        s.push("org_1").await.status == "done"
    })
    .await;
    shutdown.cancel();
    running.join_all().await;
    assert!(s.logs.text().contains("has its database again"));
}

/// R16: the loop outlives a database that vanishes in the middle of a statement, and never answers that.
#[tokio::test]
async fn the_loop_outlives_a_database_that_vanishes() {
    let s = Setting::new().await;
    s.record("org_1").await;
    let (proxy, options) = Proxy::start(&s.database.options).await;
    let client = WorkosClient::new(s.workos.url(), SecretString::from(KEY)).unwrap();
    let clock = Arc::clone(&s.clock) as Arc<dyn Clock>;
    let ids = Arc::new(s.host.clone());
    let outbox = Outbox::new(postgres::pool(options, 2), Some(client), clock, ids);

    let mut lock = s.database.connect().await;
    let statement = "begin; lock table external_id_pushes";
    lock.execute(statement).await.unwrap();
    let shutdown = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(outbox.run(shutdown.clone()));
    eventually("the loop waits for the table", async || {
        s.database.blocked_sessions().await == 1
    })
    .await;
    proxy.black_hole();
    lock.close().await.unwrap();
    proxy.restore();
    eventually("org_1 is done", async || {
        // A lease that nobody was told of ends.
        s.advance(60);
        s.push("org_1").await.status == "done"
    })
    .await;
    shutdown.cancel();
    running.join_all().await;
}

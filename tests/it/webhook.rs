//! `POST /webhooks/workos`, through the router: what is answered, and what never is (R23, R29–R31).

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{
    ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER,
};
use axum::http::{HeaderValue, Request};
use chrono::TimeDelta;
use hmac::{Hmac, KeyInit, Mac};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use sha2::Sha256;
use sqlx::{Connection, Executor};
use workos_sync::clock::Clock;
use workos_sync::inbox::Recorded;
use workos_sync::signature;

use crate::support::app::{Answer, Options, SECRET};
use crate::support::event::event_id;
use crate::support::logs::Logs;
use crate::support::proxy::Proxy;
use crate::support::{
    EventBuilder, NOW, TestApp, TestDatabase, created, deleted, eventually, updated,
};

const ACME: &str = "org_01EHWNCE74X7JSDV0X3SZ3KJNY";
const OTHER: &str = "org_01EHWNFTAFCF3CQAE5A9Q0P1YB";

/// Within this a sender has its answer (R23).
const ANSWERED: Duration = Duration::from_secs(4);

/// The signature of a body at a time as it is written in the header.
fn v1(secret: &str, t: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(t.as_bytes());
    mac.update(b".");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// A header that is good now.
fn signed(body: &[u8]) -> String {
    signature::sign(&SECRET.into(), body, NOW)
}

/// Posts a body with a header of any kind, or none.
async fn post(app: &TestApp, header: Option<&str>, body: impl Into<Body>) -> Answer {
    let mut request = Request::post("/webhooks/workos");
    if let Some(header) = header {
        request = request.header("WorkOS-Signature", header);
    }
    app.send(request.body(body.into()).unwrap()).await
}

/// Delivers a signed body that need not be text.
async fn deliver_bytes(app: &TestApp, body: &[u8]) -> Answer {
    post(app, Some(&signed(body)), body.to_owned()).await
}

/// Delivers an event with a preference.
async fn deliver_preferring(app: &TestApp, event: &EventBuilder, prefer: &str) -> Answer {
    let body = event.body();
    let request = app.delivery(&body).header("Prefer", prefer);
    app.send(request.body(Body::from(body)).unwrap()).await
}

async fn stored(app: &TestApp) -> i64 {
    sqlx::query_scalar("select count(*) from webhook_events")
        .fetch_one(&app.db.pool)
        .await
        .unwrap()
}

#[track_caller]
fn assert_counted(app: &TestApp, answer: &str, times: u64) {
    let metrics = app.metrics.render().unwrap();
    let line = format!("deliveries_total{{answer=\"{answer}\"}} {times}\n");
    assert!(metrics.contains(&line), "{line} in {metrics}");
}

/// Section 7: each answer, to the letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_answered() {
    let app = TestApp::new().await;
    let id = event_id(1);
    for (event, word) in [
        (created(1, ACME, "Acme"), "accepted"),
        (created(1, ACME, "Acme"), "duplicate"),
    ] {
        let answer = app.deliver(&event.body()).await.assert(200);
        assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
        assert!(!answer.headers.contains_key("preference-applied"));
        assert_eq!(
            answer.text,
            format!(r#"{{"event_id":"{id}","status":"{word}"}}"#)
        );
        assert_counted(&app, word, 1);
    }
    let other = EventBuilder::new(2, "user.created", "user_1");
    let answer = app.deliver(&other.body()).await.assert(200);
    let id = event_id(2);
    assert_eq!(
        answer.text,
        format!(r#"{{"event_id":"{id}","status":"ignored"}}"#)
    );
    assert_counted(&app, "ignored", 1);
    // R24: without anybody's asking.
    eventually("the event is processed", async || {
        app.inbox_row(&event_id(1)).await.status == "processed"
    })
    .await;
}

/// Section 7, RFC 7240: a sender that prefers to wait is told the outcome.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_can_wait_for_the_outcome() {
    let app = TestApp::new().await;
    let id = event_id(1);
    for (event, text) in [
        (
            created(1, ACME, "Acme"),
            format!(r#"{{"event_id":"{id}","status":"processed","outcome":"created"}}"#),
        ),
        (
            created(1, ACME, "Acme"),
            format!(r#"{{"event_id":"{id}","status":"duplicate"}}"#),
        ),
        (
            updated(2, ACME, "Acme").without("name"),
            format!(
                r#"{{"event_id":"{}","status":"dead","error":"`data.name` is missing"}}"#,
                event_id(2)
            ),
        ),
        (
            deleted(3, ACME),
            format!(
                r#"{{"event_id":"{}","status":"processed","outcome":"disabled"}}"#,
                event_id(3)
            ),
        ),
        (
            EventBuilder::new(4, "user.created", "user_1"),
            format!(r#"{{"event_id":"{}","status":"ignored"}}"#, event_id(4)),
        ),
    ] {
        let answer = deliver_preferring(&app, &event, "respond-async, wait=10")
            .await
            .assert(200);
        assert_eq!(answer.text, text);
        assert_eq!(answer.headers["preference-applied"], "wait=10");
    }
    let answer = deliver_preferring(&app, &updated(5, ACME, "A"), "wait=soon")
        .await
        .assert(200);
    assert_eq!(answer.json()["status"], "accepted");
    assert!(!answer.headers.contains_key("preference-applied"));
}

/// Section 7: a wait that is over is answered with what is certain: the event is durable.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_has_an_end() {
    let app = TestApp::new().await;
    let lock = app.hold("lock table workos_organization_syncs").await;
    let started = Instant::now();
    let answer = deliver_preferring(&app, &created(1, ACME, "Acme"), "wait=1")
        .await
        .assert(200);
    assert!(
        (1..4).contains(&started.elapsed().as_secs()),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        answer.json(),
        json!({"event_id": event_id(1), "status": "accepted"})
    );
    let answer = deliver_preferring(&app, &created(2, ACME, "Acme"), "wait=0")
        .await
        .assert(200);
    assert_eq!(answer.json()["status"], "accepted");
    lock.close().await.unwrap();
    app.settle().await;
    assert_eq!(
        app.organization().await.workos_last_event_id,
        Some(event_id(2))
    );
}

/// R22: whoever waits learns of an event that another replica settled.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_when_another_replica_settles_the_event() {
    let db = Arc::new(TestDatabase::new().await);
    // Half of one connection for lanes is none: this replica receives, and processes nothing.
    let idle = TestApp::on(
        Arc::clone(&db),
        Options {
            max_connections: 1,
            ..Options::default()
        },
    );
    let busy = TestApp::on(db, Options::default());
    let event = created(1, ACME, "Acme");
    let (answer, ()) = tokio::join!(deliver_preferring(&idle, &event, "wait=20"), async {
        eventually("the event is recorded", async || stored(&busy).await == 1).await;
        busy.settle().await;
    });
    assert_eq!(
        answer.assert(200).json(),
        json!({"event_id": event_id(1), "status": "processed", "outcome": "created"})
    );
}

/// R22: the same on a replica that is busy with other events all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_on_a_busy_replica_too() {
    let app = TestApp::new().await;
    // Another replica has the organization in hand: its lock, and soon its outcome.
    let mut replica = app
        .hold(
            "select pg_advisory_xact_lock(hashtext('workos-sync organization'),
                                      hashtext('org_01EHWNCE74X7JSDV0X3SZ3KJNY'))",
        )
        .await;
    let done = tokio_util::sync::CancellationToken::new();
    let waiting = async {
        let answer = deliver_preferring(&app, &created(1, ACME, "Acme"), "wait=4").await;
        done.cancel();
        answer.assert(200)
    };
    let settling = async {
        eventually("the event's lane waits", async || {
            app.db.blocked_sessions().await == 1
        })
        .await;
        replica
            .execute(
                "update webhook_events set status = 'processed', outcome = 'created', processed_at = now()
                 where organization_id = 'org_01EHWNCE74X7JSDV0X3SZ3KJNY'; commit",
            )
            .await
            .unwrap();
    };
    let traffic = async {
        let mut n = 2;
        while !done.is_cancelled() {
            app.deliver(&updated(n, OTHER, "Other").body())
                .await
                .assert(200);
            n += 1;
        }
    };
    let (answer, (), ()) = tokio::join!(waiting, settling, traffic);
    assert_eq!(
        answer.json(),
        json!({"event_id": event_id(1), "status": "processed", "outcome": "created"})
    );
}

/// R31: a shutdown ends the wait for what isn't begun; the event is durable, and so it is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_a_shutdown() {
    let app = TestApp::new().await;
    app.shutdown.cancel();
    let started = Instant::now();
    let answer = deliver_preferring(&app, &created(1, ACME, "Acme"), "wait=30")
        .await
        .assert(200);
    assert_eq!(answer.json()["status"], "accepted");
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(app.inbox_row(&event_id(1)).await.status, "pending");
}

/// R29, R30: each kind of bad signature is told apart, counted, and never stored; none learns the good one.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "most of them are a table")]
async fn a_bad_signature_is_refused() {
    let app = TestApp::new().await;
    let body = created(1, ACME, "Acme").body();
    let good = signed(body.as_bytes());
    let ms = NOW.timestamp_millis();
    let at = |ms: i64| {
        format!(
            "t={ms}, v1={}",
            v1(SECRET, &ms.to_string(), body.as_bytes())
        )
    };
    let (t, hex) = good.split_once(", v1=").unwrap();
    let wrong = v1("whsec_wrong", &ms.to_string(), body.as_bytes());
    let tampered = body.replace("Acme", "Acne");
    for (header, body, code, skew) in [
        (None, &body, "signature_missing", Value::Null),
        (
            Some(String::new()),
            &body,
            "signature_malformed",
            Value::Null,
        ),
        (
            Some(format!("v1={hex}")),
            &body,
            "signature_malformed",
            Value::Null,
        ),
        (
            Some(t.to_owned()),
            &body,
            "signature_malformed",
            Value::Null,
        ),
        (
            Some(format!("{t}, v1=")),
            &body,
            "signature_malformed",
            Value::Null,
        ),
        (
            Some(format!("{t}, v1={}", &hex[..62])),
            &body,
            "signature_malformed",
            Value::Null,
        ),
        (
            Some(format!("t=, v1={hex}")),
            &body,
            "signature_malformed",
            Value::Null,
        ),
        (
            Some(format!("t=-1, v1={hex}")),
            &body,
            "signature_malformed",
            Value::Null,
        ),
        (
            Some(format!("t=1, {t}, v1={hex}")),
            &body,
            "signature_mismatch",
            Value::Null,
        ),
        (
            Some(format!("t={}, v1={hex}", "9".repeat(30))),
            &body,
            "signature_malformed",
            Value::Null,
        ),
        (
            Some(format!("{t}, v1={wrong}")),
            &body,
            "signature_mismatch",
            Value::Null,
        ),
        (
            Some(format!("t={}, v1={hex}", ms + 1)),
            &body,
            "signature_mismatch",
            Value::Null,
        ),
        (
            Some(good.clone()),
            &tampered,
            "signature_mismatch",
            Value::Null,
        ),
        (
            Some(format!("t={}, v1={wrong}", ms - 200_000)),
            &body,
            "signature_mismatch",
            Value::Null,
        ),
        (
            Some(at(ms - 180_001)),
            &body,
            "signature_too_old",
            json!(180.001),
        ),
        (
            Some(at(0)),
            &body,
            "signature_too_old",
            json!(1_800_000_000.0),
        ),
        (
            Some(at(ms + 180_001)),
            &body,
            "signature_in_future",
            json!(180.001),
        ),
    ] {
        let answer = post(&app, header.as_deref(), body.clone())
            .await
            .assert(401);
        assert_eq!(answer.headers[CONTENT_TYPE], "application/problem+json");
        let problem = answer.json();
        assert_eq!(problem["code"], code, "{header:?}");
        assert_eq!(problem["skew_seconds"], skew, "{header:?}");
        for secret in [
            hex,
            &v1(SECRET, &ms.to_string(), tampered.as_bytes()),
            SECRET,
        ] {
            assert!(!answer.text.contains(secret), "{}", answer.text);
            assert!(!format!("{:?}", answer.headers).contains(secret));
        }
    }
    let not_ascii = app
        .delivery(&body)
        .header("x", "y")
        .body(Body::from(body.clone()));
    let mut request = not_ascii.unwrap();
    request.headers_mut().insert(
        "workos-signature",
        HeaderValue::from_bytes(b"t=1, v1=\xff").unwrap(),
    );
    assert_eq!(
        app.send(request).await.assert(401).json()["code"],
        "signature_malformed"
    );
    for (code, times) in [
        ("signature_missing", 1),
        ("signature_malformed", 9),
        ("signature_mismatch", 5),
        ("signature_too_old", 2),
        ("signature_in_future", 1),
    ] {
        assert_counted(&app, code, times);
    }
    assert_eq!(stored(&app).await, 0);
}

/// R29: what is signed well: at both ends of the tolerance, in seconds, and beside other parts.
#[tokio::test(flavor = "multi_thread")]
async fn a_good_signature_is_taken_in_every_form() {
    let app = TestApp::new().await;
    let (ms, s) = (NOW.timestamp_millis(), NOW.timestamp());
    for (n, t) in [
        (1, (ms - 180_000).to_string()),
        (2, (ms + 180_000).to_string()),
        (3, s.to_string()),
        (4, (s - 180).to_string()),
    ] {
        let body = created(n, ACME, "Acme").body();
        let v1 = v1(SECRET, &t, body.as_bytes());
        post(&app, Some(&format!("t={t}, v1={v1}")), body)
            .await
            .assert(200);
    }
    let body = created(5, ACME, "Acme").body();
    let good = v1(SECRET, &ms.to_string(), body.as_bytes());
    let other = "0".repeat(64);
    let header = format!(" v0=x,v1={other} ,v1={},t={ms},v2=y", good.to_uppercase());
    post(&app, Some(&header), body).await.assert(200);
    assert_eq!(stored(&app).await, 5);
}

/// R29, RFC 9110, section 5.3: several header lines are one list, in their order. The first `t` is the one that was
/// signed, and any `v1` may be good.
#[tokio::test(flavor = "multi_thread")]
async fn several_signature_lines_are_one_list() {
    let app = TestApp::new().await;
    let body = created(1, ACME, "Acme").body();
    let good = signed(body.as_bytes());
    let (t, hex) = good.split_once(", v1=").unwrap();
    let wrong = format!("{t}, v1={}", v1("other", "0", b""));
    let earlier = format!("t=1, v1={}", v1(SECRET, "2", body.as_bytes()));
    for (lines, status) in [
        ([&*wrong, &*good], 200),
        ([&*good, &*wrong], 200),
        ([t, &*format!("v1={hex}")], 200),
        ([&*good, "t=1"], 200),
        ([&*good, ""], 200),
        ([&*earlier, &*good], 401),
        ([&*wrong, &*wrong], 401),
    ] {
        let mut request = Request::post("/webhooks/workos");
        for line in lines {
            request = request.header("WorkOS-Signature", line);
        }
        let answer = app.send(request.body(body.clone().into()).unwrap()).await;
        assert_eq!(answer.status, status, "{lines:?}: {}", answer.text);
    }
}

/// R29: while secrets are rotated, each is good; an empty one, which anybody could sign with, isn't there.
#[tokio::test(flavor = "multi_thread")]
async fn several_secrets_are_good_at_once() {
    let app = TestApp::with(Options {
        secrets: vec!["new".into(), "old".into()],
        ..Options::default()
    })
    .await;
    let body = created(1, ACME, "Acme").body();
    for (secret, status) in [
        ("new", 200),
        ("old", 200),
        (SECRET, 401),
        ("", 401),
        ("new,old", 401),
    ] {
        let header = signature::sign(&secret.into(), body.as_bytes(), NOW);
        post(&app, Some(&header), body.clone()).await.assert(status);
    }
}

/// R29: while secrets are rotated, it is counted which of them signs, by its place in the list: the operator sees when
/// the old one may go. A delivery that is signed with both counts for the first.
#[tokio::test(flavor = "multi_thread")]
async fn the_secret_that_signs_is_counted() {
    let app = TestApp::with(Options {
        secrets: vec!["new".into(), "old".into()],
        ..Options::default()
    })
    .await;
    let counts = || {
        let metrics = app.metrics.render().unwrap();
        ["1", "2"].map(|position| {
            let series = format!("signature_secret_used_total{{position=\"{position}\"}} ");
            let (_, count) = metrics.split_once(&series).unwrap();
            count.lines().next().unwrap().parse::<u64>().unwrap()
        })
    };
    assert_eq!(
        counts(),
        [0, 0],
        "a series that isn't there can't be seen to stand still"
    );
    let body = created(1, ACME, "Acme").body();
    let by = |secret: &str| signature::sign(&secret.into(), body.as_bytes(), NOW);
    let by_both = format!("{},{}", by("old"), by("new"));
    for (header, used) in [
        (by("old"), [0, 1]),
        (by("old"), [0, 2]),
        (by("new"), [1, 2]),
        (by_both, [2, 2]),
        (by("other"), [2, 2]),
    ] {
        post(&app, Some(&header), body.clone()).await;
        assert_eq!(counts(), used);
    }
    // Too old: it was signed, but not used.
    app.clock.advance(TimeDelta::seconds(181));
    post(&app, Some(&by("old")), body.clone()).await.assert(401);
    assert_eq!(counts(), [2, 2]);
}

/// R29: a tolerance of 0 switches the time check off, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_tolerance_any_time_is_good() {
    let app = TestApp::with(Options {
        tolerance: Duration::ZERO,
        ..Options::default()
    })
    .await;
    let body = created(1, ACME, "Acme").body();
    for t in ["0", "1", "1500000000000", "18446744073709551615"] {
        let v1 = v1(SECRET, t, body.as_bytes());
        post(&app, Some(&format!("t={t}, v1={v1}")), body.clone())
            .await
            .assert(200);
    }
    post(&app, Some("t=1, v1=00"), body).await.assert(401);
}

/// R30: what is signed but is no event is refused, and says why; what Postgres can't store, too.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "most of them are a table")]
async fn what_is_no_event_is_refused() {
    let app = TestApp::new().await;
    let long = "e".repeat(256);
    let deep = format!(
        r#"{{"id":"deep","event":"organization.created","data":{{"id":"org_1","x":{}{}}}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let with_id = |id: &str| format!(r#"{{"id":"{id}","event":"x"}}"#).into_bytes();
    for (body, code, detail) in [
        (
            b"".to_vec(),
            "not_an_event",
            "the body is not a JSON object",
        ),
        (
            b"[]".to_vec(),
            "not_an_event",
            "the body is not a JSON object",
        ),
        (
            br#"["event_1","organization.created",{}]"#.to_vec(),
            "not_an_event",
            "not a JSON object",
        ),
        (
            b"null".to_vec(),
            "not_an_event",
            "the body is not a JSON object",
        ),
        (
            b"\xef\xbb\xbf\xef\xbb\xbf{}".to_vec(),
            "not_an_event",
            "the body is not a JSON object",
        ),
        (b"{".to_vec(), "not_an_event", "EOF"),
        (b"{}".to_vec(), "not_an_event", "missing field `id`"),
        (
            br#"{"id":"e"}"#.to_vec(),
            "not_an_event",
            "missing field `event`",
        ),
        (
            br#"{"id":null,"event":"x"}"#.to_vec(),
            "not_an_event",
            "invalid type",
        ),
        (
            br#"{"id":1,"event":"x"}"#.to_vec(),
            "not_an_event",
            "invalid type",
        ),
        (
            br#"{"id":"e","event":{}}"#.to_vec(),
            "not_an_event",
            "invalid type",
        ),
        (
            br#"{"id":"e","id":"f","event":"x"}"#.to_vec(),
            "not_an_event",
            "duplicate field",
        ),
        (
            br#"{"id":"e","event":"x"} {}"#.to_vec(),
            "not_an_event",
            "trailing characters",
        ),
        (
            br#"{"id":"e","event":"x","y":01}"#.to_vec(),
            "not_an_event",
            "invalid number",
        ),
        (
            b"{\"id\":\"e\",\"event\":\"x\",\"y\":\"\xff\"}".to_vec(),
            "not_an_event",
            "not UTF-8",
        ),
        (with_id(""), "not_an_event", "`id` is empty"),
        (
            with_id(&long),
            "not_an_event",
            "`id` is longer than 255 bytes",
        ),
        (with_id("\\u0000"), "not_an_event", "`id` contains a NUL"),
        (
            br#"{"id":"e","event":""}"#.to_vec(),
            "not_an_event",
            "`event` is empty",
        ),
        (
            deep.into_bytes(),
            "unstorable",
            "the body is no JSON that Postgres can store",
        ),
    ] {
        let answer = deliver_bytes(&app, &body).await.assert(400);
        assert_eq!(answer.headers[CONTENT_TYPE], "application/problem+json");
        let problem = answer.json();
        assert_eq!(problem["code"], code);
        assert!(
            problem["detail"].as_str().unwrap().contains(detail),
            "{problem}"
        );
    }
    assert_counted(&app, "not_an_event", 19);
    assert_counted(&app, "unstorable", 1);
    assert_eq!(stored(&app).await, 0);
    // Just what fits.
    deliver_bytes(&app, &with_id(&long[1..])).await.assert(200);
}

/// R30: a byte order mark is a part of what is signed, and none of what is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_byte_order_mark_costs_nothing() {
    let app = TestApp::new().await;
    let body = created(1, ACME, "Acme").body();
    let marked = format!("\u{feff}{body}");
    post(&app, Some(&signed(body.as_bytes())), marked.clone())
        .await
        .assert(401);
    let answer = deliver_bytes(&app, marked.as_bytes()).await.assert(200);
    assert_eq!(answer.json()["status"], "accepted");
    app.settle().await;
    let row = app.inbox_row(&event_id(1)).await;
    assert_eq!(
        (row.outcome.as_deref(), row.payload),
        (Some("created"), body)
    );
}

/// R13, R30: JSON that is unusual but valid is an event; depths that only one of the two parsers minds never
/// fail the service.
#[tokio::test(flavor = "multi_thread")]
async fn unusual_json_is_no_reason_to_fail() {
    let app = TestApp::new().await;
    for (n, value) in [
        "1e400".to_owned(),
        "-1e-400".to_owned(),
        "9".repeat(5_000),
        r#""\u0000\ud800""#.to_owned(),
        format!("{}{}", "[".repeat(1_000), "]".repeat(1_000)),
        format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200)),
        format!("[{}]", vec!["null"; 100_000].join(",")),
    ]
    .into_iter()
    .enumerate()
    {
        let n = u64::try_from(n).unwrap();
        let body = created(n, &format!("org_{n}"), "Acme").body();
        let body = body.replace(r#""domains":[]"#, &format!(r#""domains":{value}"#));
        assert!(body.contains(&value));
        app.deliver(&body).await.assert(200);
        app.settle().await;
        assert_eq!(
            app.inbox_row(&event_id(n)).await.outcome.as_deref(),
            Some("created")
        );
    }
    for depth in [1_000, 5_000, 20_000, 50_000, 100_000, 500_000] {
        let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let other = format!(r#"{{"id":"{depth}","event":"x","data":{nested}}}"#);
        let organization = format!(
            r#"{{"id":"o_{depth}","event":"organization.created","data":{{"x":{nested},"id":"{depth}","name":"x"}}}}"#
        );
        for (body, id) in [
            (other, format!("{depth}")),
            (organization, format!("o_{depth}")),
        ] {
            let status = app.deliver(&body).await.status.as_u16();
            assert!([200, 400].contains(&status), "{status} at {depth}");
            app.settle().await;
            if status == 200 {
                let row = app.inbox_row(&id).await;
                assert!(["processed", "ignored"].contains(&&*row.status), "{row:?}");
            }
        }
    }
}

/// R30: a body over the limit is refused, announced or not; one of exactly the limit fits.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused() {
    let mut body = created(1, ACME, "Acme").body();
    let app = TestApp::with(Options {
        max_body_bytes: body.len(),
        ..Options::default()
    })
    .await;
    app.deliver(&body).await.assert(200);
    body.push('\n');
    let announced = app.delivery(&body).header(CONTENT_LENGTH, body.len());
    for request in [announced, app.delivery(&body)] {
        let request = request.body(Body::from(body.clone())).unwrap();
        let answer = app.send(request).await.assert(413);
        assert_eq!(answer.json()["code"], "body_too_large");
    }
    assert_counted(&app, "body_too_large", 2);
    assert_eq!(stored(&app).await, 1);
}

/// Section 7, R30: other paths, other methods.
#[tokio::test(flavor = "multi_thread")]
async fn other_requests_are_problems() {
    let app = TestApp::new().await;
    for (method, path, status, allow) in [
        ("POST", "/", 404, None),
        ("POST", "/webhooks/workos//", 404, None),
        ("POST", "/webhooks/Workos", 404, None),
        ("POST", "/webhooks", 404, None),
        ("GET", "/webhooks/workos", 405, Some("POST")),
        ("PUT", "/webhooks/workos", 405, Some("POST")),
        ("BREW", "/webhooks/workos", 405, Some("POST")),
        ("GET", "/webhooks/workos/", 405, Some("POST")),
        ("POST", "/healthz", 405, Some("GET,HEAD")),
    ] {
        let request = Request::builder().method(method).uri(path);
        let answer = app
            .send(request.body(Body::empty()).unwrap())
            .await
            .assert(status);
        assert_eq!(
            answer.headers[CONTENT_TYPE], "application/problem+json",
            "{method} {path}"
        );
        let allowed = answer
            .headers
            .get(ALLOW)
            .map(|value| value.to_str().unwrap());
        assert_eq!(allowed, allow, "{method} {path}");
    }
}

/// Section 7: one trailing slash is no other path.
#[tokio::test(flavor = "multi_thread")]
async fn a_trailing_slash_is_taken() {
    let app = TestApp::new().await;
    let body = created(1, ACME, "Acme").body();
    let (mut parts, ()) = app.delivery(&body).body(()).unwrap().into_parts();
    parts.uri = "/webhooks/workos/".parse().unwrap();
    let answer = app
        .send(Request::from_parts(parts, Body::from(body)))
        .await
        .assert(200);
    assert_eq!(answer.json()["status"], "accepted");
    assert_counted(&app, "accepted", 1);
}

/// R30: a delivery to nearly the right path is seen in the log and in the metrics; neither path is, for either may hold
/// what must not be guessed. Strangers, who sign nothing, are nothing to log.
#[tokio::test]
async fn a_signed_request_to_another_path_is_noticed() {
    let app = TestApp::new().await;
    let logs = Logs::capture();
    let body = created(1, ACME, "Acme").body();
    for path in ["/webhooks/secret-part", "/secret-part"] {
        let (mut parts, ()) = app.delivery(&body).body(()).unwrap().into_parts();
        parts.uri = path.parse().unwrap();
        let request = Request::from_parts(parts, Body::from(body.clone()));
        assert_eq!(
            app.send(request).await.assert(404).json()["code"],
            "not_found"
        );
        let stranger = Request::post(path).body(Body::empty()).unwrap();
        app.send(stranger).await.assert(404);
    }
    assert_counted(&app, "not_found", 2);
    let text = logs.text();
    let warnings: Vec<_> = text
        .lines()
        .filter(|line| line.contains(" WARN "))
        .collect();
    assert_eq!(warnings.len(), 2, "{text}");
    for line in warnings {
        assert!(
            line.contains("POST") && line.contains("WEBHOOK_PATH"),
            "{line}"
        );
        assert!(
            !line.contains("secret-part") && !line.contains("/webhooks"),
            "{line}"
        );
    }
}

/// R30, RFC 9110, section 15.5.16: an encoded body is refused unread, and says what would be taken.
#[tokio::test(flavor = "multi_thread")]
async fn an_encoded_body_is_refused() {
    let app = TestApp::new().await;
    let body = created(1, ACME, "Acme").body();
    for (encodings, status) in [
        (&["gzip"][..], 415),
        (&["Identity", "br"], 415),
        (&["identity, gzip"], 415),
        (&["utf-8"], 415),
        (&["identity"], 200),
        (&["Identity , identity"], 200),
        (&[""], 200),
    ] {
        let mut request = app.delivery(&body);
        for encoding in encodings {
            request = request.header(CONTENT_ENCODING, *encoding);
        }
        let answer = app.send(request.body(body.clone().into()).unwrap()).await;
        let answer = answer.assert(status);
        if status == 415 {
            assert_eq!(answer.headers[CONTENT_TYPE], "application/problem+json");
            assert_eq!(answer.headers[ACCEPT_ENCODING], "identity");
            assert_eq!(answer.headers[CONNECTION], "close");
            assert_eq!(answer.json()["code"], "content_encoding");
        }
    }
    assert_counted(&app, "content_encoding", 4);
}

/// A request's id is the sender's where it sends a sane one, else ours; every answer carries it, and every line of
/// the log that is about it.
#[tokio::test]
async fn a_request_has_an_id() {
    let app = TestApp::new().await;
    let logs = Logs::capture();
    let ask = async |path, id: Option<&[u8]>, status| {
        let mut request = Request::post(path);
        if let Some(id) = id {
            request = request.header("x-request-id", HeaderValue::from_bytes(id).unwrap());
        }
        let answer = app.send(request.body(Body::empty()).unwrap()).await;
        let id = answer.assert(status).headers["x-request-id"].clone();
        id.to_str().unwrap().to_owned()
    };
    let longest = "x".repeat(128);
    for (path, status) in [("/webhooks/workos", 401), ("/nowhere", 404)] {
        for sane in ["abc-1", &longest] {
            assert_eq!(ask(path, Some(sane.as_bytes()), status).await, sane);
        }
        let too_long = "x".repeat(129);
        for odd in [
            None,
            Some(&b""[..]),
            Some(b"a b"),
            Some(b"tab\there"),
            Some(b"caf\xc3\xa9"),
            Some(too_long.as_bytes()),
        ] {
            let id = ask(path, odd, status).await;
            assert!(uuid::Uuid::parse_str(&id).is_ok(), "{id}");
        }
    }
    let text = logs.text();
    let refused: Vec<_> = text
        .lines()
        .filter(|line| line.contains(" WARN "))
        .collect();
    assert_eq!(refused.len(), 8, "{text}");
    for line in refused {
        assert!(line.contains("request_id="), "{line}");
    }
    assert!(!text.contains(&"x".repeat(129)), "{text}");
}

/// Delivers while the database is away: 503 in time, and says when to come again.
async fn refused_in_time(app: &TestApp, event: &EventBuilder) {
    let started = Instant::now();
    let answer = app.deliver(&event.body()).await.assert(503);
    assert!(started.elapsed() < ANSWERED, "{:?}", started.elapsed());
    assert_eq!(answer.headers[RETRY_AFTER], "5");
    assert_eq!(answer.headers[CONTENT_TYPE], "application/problem+json");
    assert_eq!(answer.json()["code"], "not_durable");
}

/// R23, R30: a database that is down from the start: 503 in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_down_makes_503s() {
    let mut db = TestDatabase::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    db.options = db.options.clone().host("127.0.0.1").port(port);
    let app = TestApp::on(Arc::new(db), Options::default());
    refused_in_time(&app, &created(1, ACME, "Acme")).await;
    assert_counted(&app, "not_durable", 1);
    assert_eq!(stored(&app).await, 0);
}

/// R23, R30: connections that break make 503s while they do; then the service goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_service_recovers_from_broken_connections() {
    let (proxy, db) = Proxy::before(TestDatabase::new().await).await;
    let app = TestApp::on(db, Options::default());
    let sweeper = tokio::task::JoinSet::from_iter([app.inbox.clone().run_sweeper()]);
    let answer = deliver_preferring(&app, &created(1, ACME, "One"), "wait=10")
        .await
        .assert(200);
    assert_eq!(answer.json()["outcome"], "created");
    proxy.cut();
    refused_in_time(&app, &updated(2, ACME, "Two")).await;
    proxy.restore();
    let answer = deliver_preferring(&app, &updated(2, ACME, "Two"), "wait=10")
        .await
        .assert(200);
    assert_eq!(answer.json()["outcome"], "updated");
    app.shutdown.cancel();
    sweeper.join_all().await;
}

/// R23, R30: a database that vanishes in the middle of as many statements as the pool has connections makes 503s
/// in time. When there is one again, deliveries and the sweeper go on by themselves, though the old connections
/// never answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_service_recovers_from_a_database_that_vanished() {
    let (proxy, db) = Proxy::before(TestDatabase::new().await).await;
    let app = Arc::new(TestApp::on(db, Options::default()));
    let lock = app.hold("lock table webhook_events").await;
    let sweeper = tokio::task::JoinSet::from_iter([app.inbox.clone().run_sweeper()]);
    eventually("the sweeper waits", async || {
        app.db.blocked_sessions().await == 1
    })
    .await;
    let events: Vec<_> = (1..=20)
        .map(|n| updated(n, &format!("org_{n}"), "During"))
        .collect();
    let mut deliveries = tokio::task::JoinSet::new();
    // What waits together is stored together: one writer each.
    for (events, waiting) in [(&events[..10], 2), (&events[10..], 3)] {
        for event in events {
            let (app, event) = (Arc::clone(&app), event.clone());
            deliveries.spawn(async move { refused_in_time(&app, &event).await });
        }
        eventually("the writers of the inbox wait too", async || {
            app.db.blocked_sessions().await == waiting
        })
        .await;
    }
    proxy.black_hole();
    lock.close().await.unwrap();
    deliveries.join_all().await;
    refused_in_time(&app, &events[0]).await;
    proxy.restore();
    eventually("deliveries are taken again", async || {
        app.deliver(&events[0].body()).await.status == 200
    })
    .await;
    for event in &events {
        app.deliver(&event.body()).await.assert(200);
    }
    sqlx::query(
        "insert into webhook_events (event_id, event_type, organization_id, payload)
         values ('left', 'organization.deleted', 'org_left',
                 '{\"id\": \"left\", \"event\": \"organization.deleted\", \"data\": {\"id\": \"org_left\"}}')",
    )
    .execute(&app.db.pool)
    .await
    .unwrap();
    // By a sweeper that was in the middle of a question when its database vanished.
    eventually("every event is processed", async || {
        let processed = "select count(*) from webhook_events where status = 'processed'";
        let processed: i64 = sqlx::query_scalar(processed)
            .fetch_one(&app.db.pool)
            .await
            .unwrap();
        processed == 21
    })
    .await;
    app.shutdown.cancel();
    sweeper.join_all().await;
}

/// R23: a database that stalls makes a 503 in time. Where the event became durable all the same, the next
/// delivery is a duplicate, and it is processed once.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_became_durable_after_a_503_is_processed_once() {
    let app = TestApp::new().await;
    // The connection that will be used knows the statement: it waits with the whole of it in hand.
    let other = EventBuilder::new(0, "user.created", "u");
    app.deliver(&other.body()).await.assert(200);
    let lock = app.hold("lock table webhook_events").await;
    let event = created(1, ACME, "Acme");
    refused_in_time(&app, &event).await;
    assert_eq!(app.db.blocked_sessions().await, 1, "the insert still waits");
    lock.close().await.unwrap();
    eventually("the event is durable", async || stored(&app).await == 2).await;
    assert_eq!(app.record(&event).await, Recorded::Duplicate);
    app.settle().await;
    let row = app.inbox_row(event.event_id()).await;
    assert_eq!((row.outcome.as_deref(), row.attempts), (Some("created"), 1));
}

/// R30, R23: while the database hangs, bodies take a bounded part of the memory. Each delivery is refused in time, and its
/// body is gone with its answer, unless an insert has it in hand. When the database goes on, so do deliveries.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_bounded_room_while_the_database_hangs() {
    const DELIVERIES: u64 = 120;
    const ROOM: usize = 64 * 1_024 * 1_024;

    let app = Arc::new(TestApp::new().await);
    let lock = app.hold("lock table workos_sync.webhook_events").await;
    // Blank, for that takes the least time to be parsed.
    let blank = " ".repeat(1_000_000);
    let mut deliveries = tokio::task::JoinSet::new();
    for n in 1..=DELIVERIES {
        let body = created(n, ACME, "Acme").body() + &blank;
        let request = app.delivery(&body).body(Body::from(body)).unwrap();
        let app = Arc::clone(&app);
        deliveries.spawn(async move {
            let started = Instant::now();
            let answer = app.send(request).await.assert(503);
            assert_eq!(answer.headers[RETRY_AFTER], "5");
            // Twice the time: so many bytes keep a busy machine from answering to the moment.
            assert!(started.elapsed() < 2 * ANSWERED, "{:?}", started.elapsed());
        });
    }
    let mut most = 0;
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    while !deliveries.is_empty() {
        tokio::select! {
            answered = deliveries.join_next() => answered.unwrap().unwrap(),
            _ = ticks.tick() => {}
        }
        most = std::cmp::max(most, app.http.body_bytes_held());
    }
    assert!((ROOM / 2..=ROOM).contains(&most), "{most}");
    assert!(
        app.http.body_bytes_held() < ROOM / 2,
        "{:?}",
        app.inbox.load()
    );
    assert!(app.inbox.load().recording == 0, "{:?}", app.inbox);

    lock.close().await.unwrap();
    app.deliver(&created(1_000, OTHER, "Other").body())
        .await
        .assert(200);
    eventually("all bodies are gone", async || {
        app.http.body_bytes_held() == 0
    })
    .await;
}

/// R30: a sender that hangs up takes its event out of the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_is_given_up_leaves_the_queue() {
    let app = Arc::new(TestApp::new().await);
    let lock = app.hold("lock table workos_sync.webhook_events").await;
    let mut deliveries = tokio::task::JoinSet::new();
    let app_of_test = Arc::clone(&app);
    eventually("all writers wait, and events behind them", async || {
        let n = u64::try_from(deliveries.len()).unwrap();
        let app = Arc::clone(&app);
        deliveries.spawn(async move { app.deliver(&created(n, ACME, "Acme").body()).await });
        let load = app_of_test.inbox.load();
        load.slow_inserts == 4 && load.recording > 0
    })
    .await;
    let given_up = i64::try_from(deliveries.len()).unwrap();
    deliveries.abort_all();
    while deliveries.join_next().await.is_some() {}
    assert_eq!(app.inbox.load().recording, 0);
    lock.close().await.unwrap();
    eventually("what the writers had is stored", async || {
        app.http.body_bytes_held() == 0
    })
    .await;
    assert!(stored(&app).await < given_up);
}

/// R23: an event whose row somebody else's transaction holds is a duplicate all the same, and costs neither the
/// deliveries beside it nor the next ones anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_row_of_the_inbox_costs_nobody_anything() {
    let app = Arc::new(TestApp::new().await);
    let held = EventBuilder::new(0, "user.created", "u");
    app.deliver(&held.body()).await.assert(200);
    let operator = app
        .hold("update workos_sync.webhook_events set last_error = 'under investigation'")
        .await;
    let deliver = |event: &EventBuilder| {
        let (app, body) = (Arc::clone(&app), event.body());
        async move {
            let started = Instant::now();
            let answer = app.deliver(&body).await.assert(200);
            // Sooner than any wait for a lock ends.
            assert!(started.elapsed() < Duration::from_secs(2));
            answer.json()["status"].as_str().unwrap().to_owned()
        }
    };
    let mut deliveries = tokio::task::JoinSet::new();
    for n in 1..=40 {
        deliveries.spawn(deliver(&held));
        deliveries.spawn(deliver(&EventBuilder::new(n, "user.created", "u")));
    }
    let answers = deliveries.join_all().await;
    let duplicates = answers.iter().filter(|status| *status == "duplicate");
    assert_eq!(duplicates.count(), 40, "{answers:?}");
    assert_eq!(deliver(&created(41, ACME, "Acme")).await, "accepted");
    operator.close().await.unwrap();
}

/// R30: a duplicate that isn't what is stored under its id says so, in the answer and in the log: documented samples
/// share ids.
#[tokio::test]
async fn a_duplicate_that_is_another_event_says_so() {
    let app = TestApp::new().await;
    let logs = Logs::capture();
    let first = EventBuilder::new(1, "user.created", "user_1");
    let id = event_id(1);
    let detail = format!("event {id} is already stored as user.created about user_1");
    let odd = first.clone().data("id", 7);
    for (event, status, said) in [
        (first.clone(), "ignored", Value::Null),
        (first.clone(), "duplicate", Value::Null),
        // Another body is no other event.
        (first.clone().data("email", "x"), "duplicate", Value::Null),
        (created(1, ACME, "Acme"), "duplicate", json!(detail)),
        (
            EventBuilder::new(1, "user.updated", "user_1"),
            "duplicate",
            json!(detail),
        ),
        (
            EventBuilder::new(1, "user.created", "user_2"),
            "duplicate",
            json!(detail),
        ),
        (odd, "duplicate", json!(detail)),
    ] {
        let answer = app.deliver(&event.body()).await.assert(200).json();
        assert_eq!(answer["status"], status, "{answer}");
        assert_eq!(answer["detail"], said, "{}", event.body());
    }
    let text = logs.text();
    let warnings: Vec<_> = text
        .lines()
        .filter(|line| line.contains(" WARN "))
        .collect();
    assert_eq!(warnings.len(), 4, "{text}");
    for line in warnings {
        assert!(line.contains(&detail), "{line}");
    }
    assert_eq!(stored(&app).await, 1);

    // Of what is stored, only the type can be told.
    let long = "x".repeat(100_000);
    let unnamed = EventBuilder::new(2, "user.created", "user_1").data("id", 7);
    let large = EventBuilder::new(3, "user.created", "user_1").data("note", long);
    for (n, stored) in [(2, unnamed), (3, large)] {
        app.deliver(&stored.body()).await.assert(200);
        for (event_type, said) in [
            ("user.created", Value::Null),
            (
                "user.deleted",
                json!(format!(
                    "event {} is already stored as user.created",
                    event_id(n)
                )),
            ),
        ] {
            let event = EventBuilder::new(n, event_type, "user_1");
            let event = if n == 2 { event.data("id", 8) } else { event };
            let answer = app.deliver(&event.body()).await.assert(200).json();
            assert_eq!(answer["detail"], said);
        }
    }
}

/// R30: whatever is signed, and whatever is in the header, no answer is a 5xx.
#[test]
fn no_body_and_no_header_makes_it_fail() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let app = runtime.block_on(TestApp::new());
    let json = proptest::collection::vec(
        prop_oneof![
            Just("{".to_owned()),
            Just("}".to_owned()),
            Just(r#""id":"e","#.to_owned()),
            Just(r#""event":"organization.created","#.to_owned()),
            Just(r#""data":"#.to_owned()),
            Just(r#"{"id":"org_1","name":"x"}"#.to_owned()),
            any::<String>(),
        ],
        0..8,
    )
    .prop_map(|parts| parts.concat().into_bytes());
    let event = (
        any::<String>(),
        any::<String>(),
        any::<String>(),
        any::<String>(),
    )
        .prop_map(|(id, workos_id, name, external_id)| {
            json!({
                "id": id,
                "event": "organization.updated",
                "data": {"id": workos_id, "name": name, "external_id": external_id},
            })
            .to_string()
            .into_bytes()
        });
    let body = prop_oneof![any::<Vec<u8>>(), json, event];
    let header = proptest::option::of(prop_oneof![
        any::<Vec<u8>>(),
        "(t=[0-9]{0,22}|v1=[0-9a-f]{0,70}|, ?|=){0,5}".prop_map(String::into_bytes),
    ]);
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    TestRunner::new(config)
        .run(&(body, header), |(body, header)| {
            let answer = runtime.block_on(deliver_bytes(&app, &body));
            prop_assert!([200, 400].contains(&answer.status.as_u16()), "{answer:?}");
            let mut request = Request::post("/webhooks/workos");
            if let Some(header) = header.and_then(|header| HeaderValue::from_bytes(&header).ok()) {
                request = request.header("workos-signature", header);
            }
            let answer = runtime.block_on(app.send(request.body(Body::from(body)).unwrap()));
            prop_assert_eq!(answer.status.as_u16(), 401);
            Ok(())
        })
        .unwrap();
    runtime.block_on(app.settle());
    runtime.block_on(async move {
        let left = "select count(*) from webhook_events where status in ('pending', 'failed')";
        let left: i64 = sqlx::query_scalar(left)
            .fetch_one(&app.db.pool)
            .await
            .unwrap();
        assert_eq!(left, 0);
    });
}

/// R30, R31: neither secrets nor signatures nor bodies nor the database's password are logged, at any level,
/// whatever goes well or wrong.
#[tokio::test]
async fn no_secret_is_logged() {
    const MARKER: &str = "body-marker";

    let logs = Logs::capture();
    let (proxy, mut db) = Proxy::before(TestDatabase::new().await).await;
    // The server's own password; one that trusts everybody takes any.
    let password = url::Url::parse(&db.url)
        .unwrap()
        .password()
        .map(str::to_owned);
    let password = password.unwrap_or_else(|| "pg-passw0rd-marker".to_owned());
    let options = db.options.clone().password(&password);
    Arc::get_mut(&mut db).unwrap().options = options;
    let app = TestApp::on(db, Options::default());
    app.execute(
        "alter table organization_metadata add constraint no_evil check (name not like 'Evil%')",
    )
    .await;
    let name = format!("Acme {MARKER}");
    let evil = format!("Evil {MARKER}");
    let mut headers = Vec::new();
    for (event, status) in [
        (created(1, ACME, &name), "processed"),
        (created(1, ACME, &name), "duplicate"),
        (updated(2, ACME, &format!("{MARKER}\0")), "dead"),
        (updated(3, ACME, &evil), "accepted"),
        (
            EventBuilder::new(4, "user.created", "u").data("email", MARKER),
            "ignored",
        ),
    ] {
        headers.push(signed(event.body().as_bytes()));
        let answer = deliver_preferring(&app, &event, "wait=1").await.assert(200);
        assert_eq!(answer.json()["status"], status);
    }
    let broken = format!(r#"{{"id":"{MARKER}""#);
    headers.push(signed(broken.as_bytes()));
    app.deliver(&broken).await.assert(400);
    let mistyped = format!(r#"{{"id":["{MARKER}"],"event":"x"}}"#);
    headers.push(signed(mistyped.as_bytes()));
    app.deliver(&mistyped).await.assert(400);
    let deep = format!(
        r#"{{"id":"e","event":"x","{MARKER}":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    headers.push(signed(deep.as_bytes()));
    app.deliver(&deep).await.assert(400);
    let body = updated(5, ACME, &name).body();
    let forged = format!("t={}, v1={}", NOW.timestamp_millis(), v1("other", "0", b""));
    post(&app, Some(&forged), body.clone()).await.assert(401);
    post(&app, Some(MARKER), body.clone()).await.assert(401);
    headers.push(forged);
    app.clock.advance(TimeDelta::seconds(181));
    headers.push(signed(body.as_bytes()));
    post(&app, headers.last().map(String::as_str), body.clone())
        .await
        .assert(401);
    app.settle().await;
    proxy.cut();
    app.deliver(&body).await.assert(503);
    headers.push(signature::sign(
        &SECRET.into(),
        body.as_bytes(),
        app.clock.now(),
    ));

    let text = logs.text();
    assert!(
        text.contains(" DEBUG ") && text.contains("dead letter"),
        "{text}"
    );
    assert!(text.contains("could not be made durable"), "{text}");
    for secret in [SECRET, &password, MARKER] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    for header in headers {
        let (_, v1) = header.split_once("v1=").unwrap();
        assert!(!text.contains(v1), "{v1} in {text}");
    }
}

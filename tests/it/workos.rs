//! The API client against a WorkOS that misbehaves.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;
use tokio::net::TcpListener;
use url::Url;
use workos_sync::event::{OrganizationId, WorkosId};
use workos_sync::workos::{Timeouts, WorkosClient, WorkosError};

use crate::support::workos::{Answer, FakeWorkos};

const KEY: &str = "sk_test_the_key";

fn client(url: Url) -> WorkosClient {
    WorkosClient::new(url, SecretString::from(KEY)).unwrap()
}

fn impatient_client(url: Url) -> WorkosClient {
    let timeouts = Timeouts {
        connect: Duration::from_millis(200),
        total: Duration::from_millis(200),
    };
    WorkosClient::with_timeouts(url, SecretString::from(KEY), timeouts).unwrap()
}

fn org() -> WorkosId {
    WorkosId::new("org_1").unwrap()
}

fn now() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH
}

async fn get(client: &WorkosClient) -> Result<Option<String>, WorkosError> {
    client.get_external_id(&org(), now()).await
}

async fn put(client: &WorkosClient) -> Result<(), WorkosError> {
    let id = OrganizationId::new("acme").unwrap();
    client.put_external_id(&org(), &id, now()).await
}

fn reason(error: &WorkosError) -> &str {
    match error {
        WorkosError::Unavailable { reason, .. } => reason,
        other => panic!("unavailable expected: {other:?}"),
    }
}

/// R13, R15: only `external_id` counts; null, missing and empty are none.
#[tokio::test]
async fn the_external_id_is_read_and_nothing_else() {
    let workos = FakeWorkos::start().await;
    let client = client(workos.url());
    for (body, expected) in [
        (r#"{"external_id":"acme","name":[],"new":{}}"#, Some("acme")),
        (r#"{"external_id":null}"#, None),
        (r#"{"external_id":""}"#, None),
        ("{}", None),
    ] {
        workos.answer_next(Answer::status(200).body(body));
        assert_eq!(
            get(&client).await,
            Ok(expected.map(str::to_owned)),
            "{body}"
        );
    }
    for body in ["", "[", "<html>", "[]", r#"{"external_id":7}"#] {
        workos.answer_next(Answer::status(200).body(body));
        let error = get(&client).await.unwrap_err();
        assert!(
            reason(&error).contains("no organization"),
            "{body}: {error}"
        );
    }
}

/// R16: each status is told apart by what there is to do.
#[tokio::test]
async fn an_answer_is_typed_by_what_to_do_about_it() {
    let workos = FakeWorkos::start().await;
    let client = client(workos.url());
    let rejected = |status, message: &str| WorkosError::Rejected {
        status,
        message: message.to_owned(),
    };
    for (answer, expected) in [
        (Answer::status(404), WorkosError::NotFound),
        (
            Answer::status(401),
            WorkosError::Unauthorized { status: 401 },
        ),
        (
            Answer::status(403),
            WorkosError::Unauthorized { status: 403 },
        ),
        (
            Answer::status(429).header("retry-after", "7"),
            WorkosError::RateLimited {
                retry_after: Some(Duration::from_secs(7)),
            },
        ),
        (
            Answer::status(429).header("retry-after", "Thu, 01 Jan 1970 00:01:00 GMT"),
            WorkosError::RateLimited {
                retry_after: Some(Duration::from_mins(1)),
            },
        ),
        (
            Answer::status(429),
            WorkosError::RateLimited { retry_after: None },
        ),
        (
            Answer::status(429).body(r#""Ratelimited""#),
            WorkosError::RateLimited { retry_after: None },
        ),
        (
            Answer::status(503).header("retry-after", "7"),
            WorkosError::Unavailable {
                reason: "it answered 503 Service Unavailable".to_owned(),
                retry_after: Some(Duration::from_secs(7)),
            },
        ),
        (Answer::status(400).body(r#""Nope""#), rejected(400, "Nope")),
        (
            Answer::status(400).body(r#"{"code":"external_id_already_used","message":"x"}"#),
            WorkosError::ExternalIdAlreadyUsed,
        ),
        (
            Answer::status(400).body(r#"{"code":"bad","message":"Not\nso"}"#),
            rejected(400, "Not so (bad)"),
        ),
        (
            Answer::status(409).body("<html>"),
            rejected(409, "no reason given"),
        ),
        (
            Answer::status(422).body(r#"{"errors":[{"code":"too_long"}]}"#),
            rejected(422, "too_long"),
        ),
        (
            Answer::status(400).body(format!(r#"{{"message":"{KEY} is odd"}}"#)),
            rejected(400, "[API key] is odd"),
        ),
    ] {
        workos.answer_next(answer.clone());
        assert_eq!(get(&client).await, Err(expected.clone()), "{answer:?}");
        workos.answer_next(answer.clone());
        assert_eq!(put(&client).await, Err(expected), "{answer:?}");
    }
    for status in [204, 302, 405, 410, 500, 503] {
        workos.answer_next(
            Answer::status(status)
                .header("location", "/elsewhere")
                .body(""),
        );
        let error = get(&client).await.unwrap_err();
        let expected = if status == 204 {
            "no organization"
        } else {
            "it answered"
        };
        assert!(reason(&error).contains(expected), "{status}: {error}");
    }
    assert!(
        workos
            .requests()
            .iter()
            .all(|r| r.path == "/organizations/org_1"),
        "no redirect is followed"
    );
}

/// R16: the cheap request is good if there is a list; no other answer is final.
#[tokio::test]
async fn a_check_asks_for_a_list_of_one() {
    let workos = FakeWorkos::start().await;
    let client = client(workos.url());
    assert_eq!(client.check(now()).await, Ok(()));
    for status in [404, 400, 422, 500] {
        workos.answer_next(Answer::status(status));
        let error = client.check(now()).await.unwrap_err();
        assert!(reason(&error).contains(&status.to_string()), "{error}");
    }
    for status in [401, 403] {
        workos.answer_next(Answer::status(status));
        let expected = WorkosError::Unauthorized { status };
        assert_eq!(client.check(now()).await, Err(expected));
    }
    for request in workos.requests() {
        assert_eq!(request.method, "GET");
        assert_eq!(request.path, "/organizations");
        assert_eq!(request.query.as_deref(), Some("limit=1"));
    }
}

/// R16: an answer that doesn't come, or comes by half, is no answer; and it comes to an end.
#[tokio::test]
async fn no_answer_and_half_an_answer_are_unavailable() {
    let workos = FakeWorkos::start().await;
    let client = impatient_client(workos.url());

    let start = Instant::now();
    workos.answer_next(Answer::Hang);
    let error = put(&client).await.unwrap_err();
    assert!(reason(&error).contains("timed out"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));

    workos.answer_next(Answer::Cut);
    reason(&get(&client).await.unwrap_err());
    workos.answer_next(Answer::Cut);
    reason(&put(&client).await.unwrap_err());

    let flood = format!(r#"{{"name":"{}"}}"#, "x".repeat(2 * 1024 * 1024));
    workos.answer_next(Answer::status(200).body(flood));
    let error = get(&client).await.unwrap_err();
    assert!(reason(&error).contains("longer than"), "{error}");

    workos.add_organization("org_1", Some("acme"));
    assert_eq!(get(&client).await, Ok(Some("acme".to_owned())));
}

/// R16: nobody there. The message says so, for reqwest's own doesn't.
#[tokio::test]
async fn no_connection_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = get(&client(Url::parse(&url).unwrap())).await.unwrap_err();
    let text = reason(&error).to_lowercase();
    assert!(text.contains("connection refused"), "{text}");
}

/// A date counts from the `now` of the caller.
#[tokio::test]
async fn a_date_to_retry_after_counts_from_now() {
    let workos = FakeWorkos::start().await;
    let client = client(workos.url());
    let date = "Thu, 01 Jan 1970 00:01:00 GMT";
    workos.answer_next(Answer::status(429).header("retry-after", date));
    let now = now() + TimeDelta::seconds(50);
    let expected = WorkosError::RateLimited {
        retry_after: Some(Duration::from_secs(10)),
    };
    assert_eq!(client.get_external_id(&org(), now).await, Err(expected));
}

/// A TLS provider is there, and a server without TLS is an answer like none.
#[tokio::test]
async fn a_server_without_tls_is_unavailable() {
    let workos = FakeWorkos::start().await;
    let mut url = workos.url();
    url.set_scheme("https").unwrap();
    let error = get(&client(url)).await.unwrap_err();
    assert!(reason(&error).contains("corrupt message"), "{error}");
    assert!(workos.requests().is_empty());
}

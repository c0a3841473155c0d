//! The API client's lists, against an environment with the habits of the real one.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use secrecy::SecretString;
use workos_sync::event::WorkosId;
use workos_sync::workos::{Lookup, Priority, ReadFrom, Timeouts, WorkosClient, WorkosError};

use crate::support::fake_workos::{Dates, FakeEnvironment, Habits};
use crate::support::workos::Answer;
use crate::support::{NOW, manual_clock};

const TYPES: [&str; 2] = ["organization.created", "organization.updated"];

async fn events(
    client: &WorkosClient,
    from: ReadFrom<'_>,
) -> Result<(Vec<String>, Option<String>), WorkosError> {
    let page = client.list_events(&TYPES, from, None, NOW).await?;
    let texts = page.elements.iter().map(|text| text.get().to_owned());
    Ok((texts.collect(), page.after))
}

/// R41: all organizations, the oldest first, each with its text; the answer's `Date` and the request's duration.
#[tokio::test]
async fn organizations_are_read_page_by_page() {
    let clock = manual_clock();
    let workos = FakeEnvironment::start(clock.clone()).await;
    let ids: Vec<_> = (0..250)
        .map(|n| workos.create(&format!("Org {n}")))
        .collect();
    let client = workos.client();
    let (mut after, mut seen, mut pages) = (None::<String>, Vec::new(), 0);
    loop {
        let page = client
            .list_organizations(after.as_deref(), NOW)
            .await
            .unwrap();
        assert_eq!(page.answered.date, Some(NOW));
        assert!(page.answered.took > Duration::ZERO);
        pages += 1;
        for element in page.elements {
            let value: serde_json::Value = serde_json::from_str(element.get()).unwrap();
            seen.push(value["id"].as_str().unwrap().to_owned());
        }
        after = page.after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((seen, pages), (ids, 3));
    assert!(workos.requests()[0].contains("limit=100&order=asc"));

    let error = client.list_organizations(Some("org_gone"), NOW).await;
    assert!(
        matches!(error, Err(WorkosError::Rejected { status: 400, .. })),
        "{error:?}"
    );
    workos.set_habits(Habits {
        date: Dates::Unreadable,
        ..Habits::default()
    });
    let page = client.list_organizations(None, NOW).await.unwrap();
    assert_eq!(page.answered.date, None);
}

/// R36, R37: the types are asked for as one list; `after` and `range_start` exclude each other.
#[tokio::test]
async fn events_are_read_from_a_time_and_then_page_by_page() {
    let clock = manual_clock();
    let workos = FakeEnvironment::start(clock.clone()).await;
    for n in 0..120 {
        workos.create(&format!("Org {n}"));
    }
    clock.advance(TimeDelta::minutes(1));
    let client = workos.client();
    let (first, after) = events(&client, ReadFrom::Time(NOW)).await.unwrap();
    let (rest, end) = events(&client, ReadFrom::After(after.as_deref().unwrap()))
        .await
        .unwrap();
    assert_eq!((first.len(), rest.len(), end), (100, 20, None));
    assert!(
        first[0].contains(r#""context":{"new":true}"#),
        "{}",
        first[0]
    );
    let requests = workos.requests();
    let types = "events=organization.created%2Corganization.updated";
    assert!(requests[0].contains(types), "{requests:?}");
    assert!(requests[0].contains("range_start=2027-01-15T08%3A00%3A00.000Z"));
    assert!(!requests[1].contains("range_start"));

    let error = events(&client, ReadFrom::After("event_foreign")).await;
    assert!(
        matches!(error, Err(WorkosError::Rejected { status: 400, .. })),
        "{error:?}"
    );
}

/// R13: what isn't known never fails; what is no page does, and a list that never ends too.
#[tokio::test]
async fn what_is_no_page_is_unavailable() {
    let workos = FakeEnvironment::start(manual_clock()).await;
    let client = workos.client();
    for body in [
        r#"{"data":[]}"#,
        r#"{"data":[],"list_metadata":null}"#,
        r#"{"data":[],"list_metadata":{"after":""},"new":1}"#,
    ] {
        workos.answer_next(Answer::status(200).body(body));
        let page = client.list_organizations(Some("a"), NOW).await.unwrap();
        assert_eq!(page.after, None, "{body}");
    }
    let endless = r#"{"data":[],"list_metadata":{"after":"a"}}"#;
    for body in ["", "[]", "{}", "<html>", r#"{"data":{}}"#, endless] {
        workos.answer_next(Answer::status(200).body(body));
        let error = client.list_organizations(Some("a"), NOW).await;
        assert!(
            matches!(error, Err(WorkosError::Unavailable { .. })),
            "{body}: {error:?}"
        );
    }
}

/// A page that doesn't come to its end, or is endlessly long, is given up.
#[tokio::test]
async fn a_page_that_never_ends_is_given_up() {
    let workos = FakeEnvironment::start(manual_clock()).await;
    let timeouts = Timeouts {
        connect: Duration::from_secs(5),
        total: Duration::from_millis(500),
    };
    let key = SecretString::from("sk_test_the_key");
    let hasty = WorkosClient::with_timeouts(workos.url().clone(), key, timeouts).unwrap();
    workos.answer_next(Answer::Drip);
    let error = hasty.list_organizations(None, NOW).await.unwrap_err();
    assert!(matches!(error, WorkosError::Unavailable { .. }), "{error}");

    let long = format!(r#"{{"data":[{}]}}"#, " ".repeat(17 * 1_024 * 1_024));
    workos.answer_next(Answer::status(200).body(long));
    let error = workos.client().list_organizations(None, NOW).await;
    assert!(error.unwrap_err().to_string().contains("longer than"));
}

/// R43: only a 404 says that an organization is gone.
#[tokio::test]
async fn an_organization_is_looked_up() {
    let workos = FakeEnvironment::start(manual_clock()).await;
    let client = workos.client();
    let id = WorkosId::new(workos.create("Acme")).unwrap();
    let Ok(Lookup::Found(object)) = client.look_up(&id, NOW).await else {
        panic!("it is there");
    };
    assert!(object.text.get().contains("Acme"));
    workos.delete(id.as_str());
    let Ok(Lookup::Gone(answered)) = client.look_up(&id, NOW).await else {
        panic!("it is gone");
    };
    assert_eq!(answered.date, Some(NOW));
    workos.answer_next(Answer::status(500));
    assert!(client.look_up(&id, NOW).await.is_err());
}

/// How long a pause still is for a client that asks.
async fn pause_left(client: &WorkosClient) -> Duration {
    match client.list_organizations(None, NOW).await {
        Err(WorkosError::RateLimited {
            retry_after: Some(left),
        }) => left,
        answer => panic!("it is not paused: {answer:?}"),
    }
}

/// Section 9: a 429 pauses all that share the budget, whatever its body is, and costs no further request.
#[tokio::test]
async fn a_429_pauses_all_of_the_budget() {
    let workos = FakeEnvironment::start(manual_clock()).await;
    let client = workos.client();
    workos.answer_next(
        Answer::status(429)
            .header("retry-after", "30")
            .body(r#""Ratelimited""#),
    );
    for priority in [Priority::WriteBack, Priority::Poll, Priority::Command] {
        let left = pause_left(&client.with_priority(priority)).await;
        assert!(left > Duration::from_secs(25), "{left:?}");
    }
    assert_eq!(workos.requests().len(), 1);
}

/// Section 9: a 429 that doesn't say for how long pauses all of them too.
#[tokio::test]
async fn a_429_without_a_time_pauses_all_of_the_budget() {
    let workos = FakeEnvironment::start(manual_clock()).await;
    let client = workos.client();
    workos.answer_next(Answer::status(429));
    for priority in [Priority::Command, Priority::WriteBack, Priority::Poll] {
        let left = pause_left(&client.with_priority(priority)).await;
        assert!(left <= Duration::from_secs(1), "{left:?}");
    }
    assert_eq!(workos.requests().len(), 1);
}

/// Section 9: `WORKOS_API_RPS`.
#[tokio::test]
async fn requests_wait_for_their_turn() {
    let workos = FakeEnvironment::start(manual_clock()).await;
    let client = workos.client().limited_to(NonZeroU32::new(20).unwrap());
    let started = Instant::now();
    for _ in 0..30 {
        client.list_organizations(None, NOW).await.unwrap();
    }
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(450), "{took:?}");
}

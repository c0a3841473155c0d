//! What the log says of events (R54).

use axum::body::Body;
use chrono::TimeDelta;

use crate::support::event::event_id;
use crate::support::logs::Logs;
use crate::support::{EventBuilder, TestApp, created, put, updated};

const ACME: &str = "org_01EHWNCE74X7JSDV0X3SZ3KJNY";

/// Fails the test unless a line names the event, its type and its organization.
#[track_caller]
fn names(line: &str, n: u64, event_type: &str, organization: &str) {
    for field in [
        format!("event.id=\"{}\"", event_id(n)),
        format!("event.type=\"{event_type}\""),
        format!("workos.organization_id=\"{organization}\""),
    ] {
        assert!(line.contains(&field), "{field}: {line}");
    }
}

/// R54: whatever becomes of an event, its line names it, its type and its organization; one that is about no
/// organization names none.
#[tokio::test]
async fn each_line_names_event_type_and_organization() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add constraint no_b check (name <> 'Refused')")
        .await;
    let logs = Logs::capture();
    app.apply(&created(1, ACME, "Acme")).await;
    app.apply(&created(2, "org_failed", "Refused")).await;
    app.apply(&created(3, "org_dead", "A\0B")).await;
    // What was stored by a version that didn't know better.
    put(&app, &[EventBuilder::new(4, "user.created", "user_1")]).await;
    app.settle().await;

    let info = logs.at("INFO");
    names(&info[0], 1, "organization.created", ACME);
    names(&logs.at("WARN")[0], 2, "organization.created", "org_failed");
    names(&logs.at("ERROR")[0], 3, "organization.created", "org_dead");
    let ignored = info.last().unwrap();
    assert!(ignored.contains(&event_id(4)), "{ignored}");
    assert!(!ignored.contains("organization_id"), "{ignored}");

    // What is said of how a row was found, too.
    app.execute("insert into organization_metadata (id, name, slug, disabled_at) values ('local', 'L', 'l', now())")
        .await;
    let linked = updated(5, "org_linked", "L").external_id("local");
    app.apply(&linked).await;
    let warnings = logs.at("WARN");
    let line = warnings.iter().find(|line| line.contains("is linked to"));
    let line = line.expect("a disabled row is linked").replace(
        &format!("event.id={}", event_id(5)),
        &format!("event.id=\"{}\"", event_id(5)),
    );
    let line = line.replace(
        "workos.organization_id=org_linked",
        "workos.organization_id=\"org_linked\"",
    );
    names(&line, 5, "organization.updated", "org_linked");
}

/// R54: times are RFC 3339.
#[tokio::test]
async fn times_are_rfc_3339() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add constraint no_b check (name <> 'Refused')")
        .await;
    let logs = Logs::capture();
    app.apply(&created(1, ACME, "Refused")).await;
    let line = &logs.at("WARN")[0];
    let (_, time) = line.split_once("retry_at=\"").expect(line);
    let (time, _) = time.split_once('"').unwrap();
    assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok(), "{time}");
    assert!(time.ends_with('Z'), "{time}");
}

/// R54: of a cause that hits many events, the first in 30 s is named, and a summary gives the cause, the count and one
/// id; dead letters are apart from what is tried again. The others can be had at a finer level.
#[tokio::test]
async fn a_cause_that_hits_many_is_said_once() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add constraint no_b check (name <> 'Refused')")
        .await;
    let logs = Logs::capture();
    for n in 1..=5 {
        app.apply(&created(n, &format!("org_{n}"), "Refused")).await;
    }
    for n in 6..=8 {
        app.apply(&created(n, &format!("org_{n}"), "A\0B")).await;
    }
    let named = |level: &str| -> Vec<String> {
        let lines = logs.at(level);
        lines
            .into_iter()
            .filter(|line| line.contains("event.id="))
            .collect()
    };
    assert_eq!(named("WARN").len(), 1, "{:?}", named("WARN"));
    assert_eq!(named("ERROR").len(), 1, "{:?}", named("ERROR"));
    let debug = logs.at("DEBUG");
    for n in [2, 3, 4, 5, 7, 8] {
        let is_there = |line: &&String| line.contains(&event_id(n));
        assert!(debug.iter().any(|line| is_there(&line)), "{n}");
    }

    // The events that failed are tried again, and fail in the same window: they are counted, too.
    app.clock.advance(TimeDelta::seconds(29));
    app.settle().await;
    assert!(!logs.text().contains("more events"), "{}", logs.text());
    app.clock.advance(TimeDelta::seconds(1));
    app.inbox.sweep().await.unwrap();
    let warnings = named("WARN");
    let summary = |cause: &str| {
        let cause = format!("cause=\"{cause}\"");
        let of_cause = |line: &&String| line.contains("more events") && line.contains(&cause);
        let found: Vec<_> = warnings.iter().filter(of_cause).collect();
        assert_eq!(found.len(), 1, "{cause}: {warnings:?}");
        found[0].clone()
    };
    let put_off = summary("check:no_b");
    assert!(put_off.contains("will be tried again"), "{put_off}");
    let dead = summary("decode:data.name");
    assert!(dead.contains("count=2"), "{dead}");
    names(&dead, 8, "organization.created", "org_8");
    // A new window.
    app.apply(&created(9, "org_9", "A\0B")).await;
    let errors = named("ERROR");
    assert!(errors.last().unwrap().contains(&event_id(9)), "{errors:?}");
}

/// R54: what was counted is said before the process ends.
#[tokio::test]
async fn the_end_says_what_was_counted() {
    let app = TestApp::new().await;
    let logs = Logs::capture();
    for n in 1..=3 {
        app.apply(&created(n, &format!("org_{n}"), "A\0B")).await;
    }
    app.shutdown.cancel();
    app.inbox.clone().run_sweeper().await;
    let last = logs.at("WARN").pop().unwrap();
    assert!(
        last.contains("count=2") && last.contains(&event_id(3)),
        "{last}"
    );
}

/// R54: deliveries that can't be made durable are one cause, too.
#[tokio::test]
async fn an_outage_is_said_once_for_all_deliveries() {
    let app = TestApp::new().await;
    app.execute("alter table webhook_events rename to gone")
        .await;
    let logs = Logs::capture();
    for n in 1..=3 {
        app.deliver(&created(n, ACME, "Acme").body())
            .await
            .assert(503);
    }
    let text = logs.text();
    let errors: Vec<_> = text
        .lines()
        .filter(|line| line.contains(" ERROR ") && line.contains("could not be made durable"))
        .collect();
    let [error] = errors[..] else {
        panic!("{errors:?}");
    };
    names(error, 1, "organization.created", ACME);
    assert!(error.contains("request_id="), "{error}");
}

/// R54: the line of an event says which request brought it, also when it is tried again.
#[tokio::test]
async fn the_request_is_on_the_line_of_the_event() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add constraint no_b check (name <> 'Refused')")
        .await;
    let logs = Logs::capture();
    for (n, name) in [(1, "Acme"), (2, "Refused")] {
        let body = created(n, &format!("org_{n}"), name).body();
        let request = app
            .delivery(&body)
            .header("x-request-id", format!("request-{n}"));
        let request = request.body(Body::from(body)).unwrap();
        app.send(request).await.assert(200);
        app.settle().await;
    }
    let request = |line: &str, n: u64| {
        assert!(
            line.contains(&format!("request_id=\"request-{n}\"")),
            "{line}"
        );
    };
    let line = |level: &str, n: u64| {
        let lines = logs.at(level);
        let line = lines.iter().find(|line| line.contains(&event_id(n)));
        line.unwrap_or_else(|| panic!("{}", logs.text())).clone()
    };
    request(&line("INFO", 1), 1);
    request(&line("WARN", 2), 2);

    app.execute("alter table organization_metadata drop constraint no_b")
        .await;
    app.clock.advance(TimeDelta::seconds(301));
    app.settle().await;
    request(&line("INFO", 2), 2);
}

//! The commands of operators (R46–R49).

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;
use sqlx::Executor;

use crate::support::process::{Process, isolated};
use crate::support::{
    Finished, Folder, Kind, Service, TestDatabase, event, event_id, eventually, run,
};

/// A database with events of three organizations, one of them with a name that the application refuses.
async fn with_a_dead_letter(folder: &Folder) -> TestDatabase {
    let database = TestDatabase::new().await;
    database
        .pool
        .execute(
            "alter table organization_metadata add constraint name_is_short check (length(name) < 9)",
        )
        .await
        .unwrap();
    let events = [
        event(1, Kind::Created, "org_a", "Acme"),
        event(2, Kind::Other, "org_a", "-"),
        event(3, Kind::Created, "org_b", "B\0"),
        event(4, Kind::Updated, "org_a", "Acme 2"),
    ];
    let file = folder.write("events.jsonl", events.join("\n"));
    command(folder, &database, &["replay", &file])
        .await
        .assert(1);
    database
}

async fn command(folder: &Folder, database: &TestDatabase, arguments: &[&str]) -> Finished {
    run(folder, &[("DATABASE_URL", &database.url)], arguments).await
}

/// The objects on standard output, one a line.
fn objects(finished: &Finished) -> Vec<Value> {
    let lines = finished.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// R47: what is looked at, as tables for people and as objects for programs.
#[tokio::test]
async fn events_are_looked_at() {
    let folder = Folder::new();
    let database = with_a_dead_letter(&folder).await;
    let look = async |arguments: &[&str]| command(&folder, &database, arguments).await;

    let list = look(&["events", "list"]).await.assert(0);
    let lines: Vec<_> = list.stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{list:#?}");
    let column = lines[0].find("STATUS").unwrap();
    assert!(
        lines[1..]
            .iter()
            .all(|line| line.as_bytes()[column - 1] == b' ')
    );
    let dead = lines
        .iter()
        .find(|line| line.contains(&event_id(3)))
        .unwrap();
    assert!(dead[column..].starts_with("dead "), "{dead}");
    assert!(dead.ends_with("decode:data.name"), "{dead}");

    let json = look(&["events", "list", "--status", "dead", "--json"])
        .await
        .assert(0);
    let [dead] = &objects(&json)[..] else {
        panic!("{json:#?}");
    };
    assert_eq!(dead["event_id"], event_id(3));
    assert_eq!(dead["type"], "organization.created");

    let page = look(&["events", "list", "--limit", "3", "--json"])
        .await
        .assert(0);
    let end = objects(&page)[2]["event_id"].as_str().unwrap().to_owned();
    assert_eq!(page.error_line(), format!("there are more: --after {end}"));
    let rest = look(&["events", "list", "--after", &end, "--json"])
        .await
        .assert(0);
    assert_eq!(objects(&rest).len(), 1);

    let wide = look(&["events", "list", "--source", "replay", "--json"])
        .await
        .assert(0);
    assert_eq!(objects(&wide).len(), 4);
    assert!(wide.error_line().starts_with("of the last 24 hours"));

    let shown = look(&["events", "show", &event_id(3), "--payload"])
        .await
        .assert(0);
    assert!(shown.stdout.contains("\nTRY  AT"), "{shown:#?}");
    assert!(shown.stdout.contains(r#""name":"B\u0000""#), "{shown:#?}");
    let shown = look(&["events", "show", &event_id(1), "--json"])
        .await
        .assert(0);
    assert_eq!(objects(&shown)[0]["outcome"], "created");
    let missing = look(&["events", "show", "event_none"]).await.assert(1);
    assert_eq!(
        missing.error_line(),
        "workos-sync: there is no event event_none"
    );

    let causes = look(&["events", "causes", "--json"]).await.assert(0);
    assert_eq!(objects(&causes)[0]["cause"], "decode:data.name");

    let organization = look(&["organization", "org_a"]).await.assert(0);
    assert!(
        organization
            .stdout
            .contains("name                  Acme 2\n"),
        "{organization:#?}"
    );
    let json = look(&["organization", "org_a", "--json"]).await.assert(0);
    let found = &objects(&json)[0];
    assert_eq!(found["events"]["items"].as_array().unwrap().len(), 2);
    let id = found["row"]["id"].as_str().unwrap();
    let same = look(&["organization", id, "--json"]).await.assert(0);
    assert_eq!(same.stdout, json.stdout);
    look(&["organization", "org_none"]).await.assert(1);
}

/// R47, R48: what can't be meant is wrong usage, and nothing is changed.
#[tokio::test]
async fn wrong_usage_changes_nothing() {
    let folder = Folder::new();
    let database = with_a_dead_letter(&folder).await;
    let dead = event_id(3);
    for (arguments, message) in [
        (
            &["events", "retry", "--yes"][..],
            "neither ids nor a filter: say which events are meant",
        ),
        (
            &["events", "retry", "e", "--status", "dead", "--yes"],
            "ids and a filter: either name the events, or say which ones are meant",
        ),
        (
            &["events", "discard", &dead, "--reason", " ", "--yes"],
            "reason: required",
        ),
        (
            &["events", "discard", &dead, "--reason", "test"],
            "--yes: required where nobody can be asked: discard 1 event in ",
        ),
        (
            &["events", "list", "--status", "deed"],
            r#"status: "deed" is none of pending, "#,
        ),
        (
            &["events", "list", "--limit", "0"],
            "limit: expected a number from 1 to 1000",
        ),
        (
            &["pause", "--for", "25h"],
            "for: a pause is from 1 second to 24 hours long",
        ),
        (
            &["replay", "--from-inbox"],
            "--yes: required where nobody can be asked: replay 3 events in ",
        ),
        (
            &["replay", "x", "--status", "dead"],
            "replay: only --from-inbox selects events by options",
        ),
    ] {
        let refused = command(&folder, &database, arguments).await.assert(2);
        let last = refused.stderr.lines().last().unwrap();
        assert!(
            last.starts_with(&format!("workos-sync: {message}")),
            "{refused:#?}"
        );
    }
    for arguments in [
        &["events", "discard", &dead, "--yes"][..],
        &["replay", "x", "--from-inbox"],
        &["replay"],
        &["pause", "--for", "soon"],
        &["events"],
    ] {
        command(&folder, &database, arguments).await.assert(2);
    }
    let list = command(
        &folder,
        &database,
        &["events", "list", "--status", "dead", "--json"],
    )
    .await;
    assert_eq!(objects(&list.assert(0)).len(), 1);
}

/// R48: retry and discard, by id and by filter; what is left alone is named.
#[tokio::test]
async fn events_are_retried_and_discarded() {
    let folder = Folder::new();
    let database = with_a_dead_letter(&folder).await;
    let (dead, fine) = (event_id(3), event_id(1));
    let retried = command(
        &folder,
        &database,
        &["events", "retry", &dead, &fine, "--yes", "--json"],
    )
    .await
    .assert(0);
    let done = &objects(&retried)[0];
    assert_eq!(
        (&done["action"], &done["count"]),
        (&"retry".into(), &1.into())
    );
    assert!(
        retried
            .stderr
            .contains(&format!("{fine} is processed, and left alone\n"))
    );
    let discarded = command(
        &folder,
        &database,
        &[
            "events",
            "discard",
            "--organization",
            "org_b",
            "--reason",
            "a test",
            "--yes",
        ],
    )
    .await
    .assert(0);
    assert!(
        discarded.stdout.starts_with("1 event discarded in "),
        "{discarded:#?}"
    );
    let shown = command(&folder, &database, &["events", "show", &dead])
        .await
        .assert(0);
    assert!(
        shown.stdout.contains("\nstatus        discarded\n"),
        "{shown:#?}"
    );
    assert!(shown.stdout.contains(": a test\n"), "{shown:#?}");
    let unknown = command(
        &folder,
        &database,
        &["events", "retry", "event_none", "--yes"],
    )
    .await;
    assert!(
        unknown
            .assert(1)
            .stderr
            .contains("there is no event event_none\n")
    );
}

/// R48: on a terminal, a question; only a yes is one.
#[tokio::test]
async fn a_terminal_is_asked() {
    let folder = Folder::new();
    let database = with_a_dead_letter(&folder).await;
    let answer = async |answer: &str| {
        let program = env!("CARGO_BIN_EXE_workos-sync");
        let line = format!("{program} events retry --status dead");
        let mut command = isolated("script", &folder);
        command
            .args(["-qec", &line, "/dev/null"])
            .env("DATABASE_URL", &database.url)
            .stdin(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        eventually("it asks", async || {
            process.stdout.so_far().contains("? [y/N] ")
        })
        .await;
        let mut stdin = process.stdin();
        stdin.write_all(answer.as_bytes()).unwrap();
        // It stays open: its end would be one for the terminal.
        let finished = process.finish().await;
        drop(stdin);
        finished
    };
    let refused = answer("n\n").await.assert(1);
    assert!(
        refused.stdout.contains("nothing is changed"),
        "{refused:#?}"
    );
    let taken = answer("y\n").await.assert(0);
    assert!(taken.stdout.contains("1 event retried in "), "{taken:#?}");
}

/// R49: a pause holds for a service that runs, and for one that starts; commands store, and say that events wait.
#[tokio::test]
async fn a_pause_holds_for_services_and_commands() {
    let (folder, database) = (Folder::new(), TestDatabase::new().await);
    let paused = command(
        &folder,
        &database,
        &["pause", "--for", "30m", "--reason", "a restore"],
    )
    .await;
    assert!(
        paused
            .assert(0)
            .stdout
            .contains(" (a restore); `workos-sync resume` ends it\n")
    );
    let service = Service::on(&folder, &database).await;
    assert!(
        service
            .log()
            .contains("(a restore): events are accepted, and nothing is applied")
    );
    let file = folder.write("event.json", event(1, Kind::Created, "org_a", "Acme"));
    let replayed = command(&folder, &database, &["replay", &file])
        .await
        .assert(1);
    assert!(
        replayed.stdout.contains("\n1 pending\npaused by "),
        "{replayed:#?}"
    );
    let status = command(&folder, &database, &["status"]).await.assert(3);
    assert!(status.stdout.contains("\npaused until "), "{status:#?}");
    let rows = async || -> i64 {
        sqlx::query_scalar("select count(*) from organization_metadata")
            .fetch_one(&database.pool)
            .await
            .unwrap()
    };
    assert_eq!(rows().await, 0);
    command(&folder, &database, &["resume"]).await.assert(0);
    eventually("it is applied", async || rows().await == 1).await;
    let nothing = command(&folder, &database, &["resume"]).await.assert(0);
    assert!(
        nothing.stdout.ends_with(": there was no pause\n"),
        "{nothing:#?}"
    );
}

/// R46: stored events are decided again, with or without a service.
#[tokio::test]
async fn the_inbox_is_replayed() {
    let folder = Folder::new();
    let database = with_a_dead_letter(&folder).await;
    database
        .pool
        .execute("delete from organization_metadata")
        .await
        .unwrap();
    let replayed = command(&folder, &database, &["replay", "--from-inbox", "--yes"])
        .await
        .assert(0);
    let lines: Vec<_> = replayed.stdout.lines().collect();
    assert!(
        lines[0].starts_with("3 events replayed in "),
        "{replayed:#?}"
    );
    let mut results = lines[1..].to_vec();
    results.sort_unstable();
    assert_eq!(results, ["1 created", "1 ignored", "1 stale"]);
    let of_a_type = ["replay", "--from-inbox", "--type", "user.created", "--yes"];
    let replayed = command(&folder, &database, &of_a_type).await.assert(0);
    assert!(
        replayed.stdout.starts_with("1 event replayed in "),
        "{replayed:#?}"
    );
    assert!(
        replayed.stderr.contains("of the last 24 hours"),
        "{replayed:#?}"
    );
}

//! `workos-sync replay FILE…`: saved events, through the same inbox and guard.

use std::fmt::Write as _;

use sqlx::Executor;

use crate::support::process::{Process, program};
use crate::support::{
    Finished, Folder, Kind, POLL, Service, TestDatabase, event, event_id, run, run_with_input,
};

/// The lines of the summary on standard output, the counts by result sorted.
fn summary(finished: &Finished) -> Vec<&str> {
    let mut lines: Vec<&str> = finished.stdout.lines().collect();
    if let Some((_, results)) = lines.split_first_mut() {
        results.sort_unstable();
    }
    lines
}

/// R24: events are applied in the order of their ids, whatever that of the files and their lines is.
#[tokio::test]
async fn the_order_of_the_ids_is_that_of_the_outcomes() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let of = |n, kind| event(n, kind, "org_a", &format!("Name {n}"));
    let files = [
        folder.write(
            "late.jsonl",
            format!("{}\n{}\n", of(4, Kind::Deleted), of(3, Kind::Updated)),
        ),
        folder.write(
            "early.jsonl",
            format!("{}\n{}\n", of(2, Kind::Updated), of(1, Kind::Created)),
        ),
    ];
    let finished = run(
        &folder,
        &[("DATABASE_URL", &database.url)],
        &["replay", &files[0], &files[1]],
    )
    .await
    .assert(0);
    assert_eq!(
        summary(&finished),
        [
            "accepted 4, duplicate 0, ignored 0, refused 0",
            "1 created",
            "1 disabled",
            "2 updated"
        ]
    );
}

fn created(n: u64) -> String {
    event(n, Kind::Created, &format!("org_{n}"), &format!("Org {n}"))
}

/// Section 8: every form in which events are saved, from files and from standard input, in one run; and a second
/// run changes nothing.
#[tokio::test]
async fn every_form_goes_in_once() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let pretty: serde_json::Value = serde_json::from_str(&created(1)).unwrap();
    let files = [
        folder.write(
            "object.json",
            serde_json::to_string_pretty(&pretty).unwrap(),
        ),
        folder.write("array.json", format!("[{},\n{}]", created(2), created(3))),
        folder.write("lines.jsonl", format!("{}\n\n{}\n", created(4), created(5))),
        folder.write(
            "page.json",
            format!(
                r#"{{"object":"list","data":[{}],"list_metadata":{{}}}}"#,
                created(6)
            ),
        ),
        "-".to_owned(),
    ];
    let input = format!(
        "{}\n{}\n{}\n",
        created(7),
        created(1),
        event(8, Kind::Other, "org_8", "x")
    );
    let mut arguments = vec!["replay"];
    arguments.extend(files.iter().map(String::as_str));
    let variables = [("DATABASE_URL", &database.url)];

    let first = run_with_input(&folder, &variables, &arguments, &input)
        .await
        .assert(0);
    assert_eq!(
        summary(&first),
        ["accepted 7, duplicate 1, ignored 1, refused 0", "7 created"]
    );
    let second = run_with_input(&folder, &variables, &arguments, &input)
        .await
        .assert(0);
    assert_eq!(
        summary(&second),
        ["accepted 0, duplicate 9, ignored 0, refused 0"]
    );

    let rows: Vec<String> =
        sqlx::query_scalar("select workos_id from organization_metadata order by workos_id")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(
        rows,
        (1..=7).map(|n| format!("org_{n}")).collect::<Vec<_>>()
    );
    let sources: Vec<String> =
        sqlx::query_scalar("select distinct source from workos_sync.webhook_events")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(sources, ["replay"]);
}

async fn payload(database: &TestDatabase, n: u64) -> String {
    sqlx::query_scalar("select payload::text from webhook_events where event_id = $1")
        .bind(event_id(n))
        .fetch_one(&database.pool)
        .await
        .unwrap()
}

/// Section 11, R27: several values in one file, on a line each or pretty-printed, and behind a byte order mark. What is
/// stored of an event in a list is its text, as it stands there.
#[tokio::test]
async fn values_are_read_however_they_are_laid_out() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let pretty = |json: &str| {
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    };
    let page = |first, second| {
        let page = r#"{"object":"list","data":[FIRST,SECOND],"list_metadata":{"before":null,"after":"x"}}"#;
        let page = page.replace("FIRST", &created(first));
        page.replace("SECOND", &created(second))
    };
    let files = [
        folder.write(
            "pages.json",
            format!("{}\n{}", pretty(&page(1, 2)), pretty(&page(3, 4))),
        ),
        folder.write(
            "objects.json",
            format!("\u{feff}{}\r\n{}\r\n", pretty(&created(5)), created(6)),
        ),
        folder.write(
            "bom.jsonl",
            format!("\u{feff}{}\n{}", created(7), created(8)),
        ),
        folder.write("one-line.json", [created(9), page(10, 11)].concat()),
    ];
    let mut arguments = vec!["replay"];
    arguments.extend(files.iter().map(String::as_str));
    let variables = [("DATABASE_URL", &database.url)];
    let finished = run(&folder, &variables, &arguments).await.assert(0);
    assert_eq!(
        summary(&finished),
        [
            "accepted 11, duplicate 0, ignored 0, refused 0",
            "11 created"
        ]
    );
    // Four spaces deeper, as it stood in the page.
    let indented = pretty(&created(3)).replace('\n', "\n    ");
    assert_eq!(payload(&database, 3).await, indented);
    assert_eq!(payload(&database, 5).await, pretty(&created(5)));
    assert_eq!(payload(&database, 11).await, created(11));
}

/// Section 11: a byte that is wrong costs its line, or its value where that has several, and not the file.
#[tokio::test]
async fn a_bad_byte_costs_its_line() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let second = created(2).into_bytes();
    let lines = [
        created(1).into_bytes(),
        [&second[..40], b"\xff", &second[40..]].concat(),
        created(3).into_bytes(),
        // Cut off, and not the last.
        created(4).into_bytes()[..100].to_vec(),
        created(5).into_bytes(),
    ];
    let file = folder.write("events.jsonl", lines.join(&b'\n'));
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("LOG_LEVEL", "warn"),
    ];
    let finished = run(&folder, &variables, &["replay", &file]).await.assert(1);
    let places = finished
        .stderr
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(place, _)| place);
    assert_eq!(
        places.collect::<Vec<_>>(),
        ["events.jsonl:2", "events.jsonl:4"],
        "{finished:?}"
    );
    assert_eq!(
        summary(&finished),
        ["accepted 3, duplicate 0, ignored 0, refused 2", "3 created"]
    );
}

/// Replays a file of so many events; says how much memory that took at most, in kB.
#[cfg(target_os = "linux")]
async fn peak_of_a_replay(events: u64, layout: impl Fn(String) -> String) -> u64 {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let mut lines = String::new();
    for n in 0..events {
        let event = event(n, Kind::Other, "org_a", &"x".repeat(4_000));
        writeln!(lines, "{event},").unwrap();
    }
    // The last comma.
    lines.truncate(lines.len() - 2);
    let file = folder.write("events.json", layout(lines));
    let variables = [("DATABASE_URL", database.url.as_str())];
    let mut process = Process::spawn(&mut program(&folder, &variables, &["replay", &file]));
    let mut peak = 0;
    while process.exit().is_none() {
        peak = process.peak_kb().unwrap_or(peak);
        tokio::time::sleep(POLL).await;
    }
    let finished = process.finish().await.assert(0);
    assert_eq!(
        summary(&finished),
        [format!(
            "accepted 0, duplicate 0, ignored {events}, refused 0"
        )]
    );
    peak
}

/// Section 11: what a replay takes of the memory doesn't depend on the length of its files, whatever their layout is.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_long_file_takes_no_more_memory_than_a_short_one() {
    let short = peak_of_a_replay(2_500, |events| events.replace(",\n", "\n")).await;
    let long = peak_of_a_replay(50_000, |events| events.replace(",\n", "\n")).await;
    let page = peak_of_a_replay(12_500, |events| {
        format!(r#"{{"object":"list","data":[{events}]}}"#).replace('\n', "")
    })
    .await;
    assert!(long * 2 < short * 3, "short: {short} kB, long: {long} kB");
    assert!(page * 2 < short * 3, "short: {short} kB, page: {page} kB");
}

/// Section 11: a replay waits for its own events, not for what others have put into the inbox.
#[tokio::test]
async fn a_replay_waits_for_its_own_events_only() {
    let (folder, database) = (Folder::new(), TestDatabase::new().await);
    // An event that can't be processed, for another session has its organization in hand.
    let mut holder = database.pool.begin().await.unwrap();
    holder
        .execute("select pg_advisory_xact_lock(1061423321, hashtext('org_2'))")
        .await
        .unwrap();
    sqlx::query(
        "insert into webhook_events (event_id, event_type, organization_id, payload)
         values ($1, 'organization.created', 'org_2', $2::text::json)",
    )
    .bind(event_id(2))
    .bind(created(2))
    .execute(&database.pool)
    .await
    .unwrap();
    let file = folder.write("event.json", created(1));
    let variables = [("DATABASE_URL", &database.url)];
    let finished = run(&folder, &variables, &["replay", &file]).await.assert(0);
    assert_eq!(
        summary(&finished),
        ["accepted 1, duplicate 0, ignored 0, refused 0", "1 created"]
    );
}

/// R12: events of one organization that are saved out of order end as if they had come in order.
#[tokio::test]
async fn the_order_in_the_file_does_not_matter() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let file = folder.write(
        "events.jsonl",
        [
            event(3, Kind::Updated, "org_a", "Third"),
            event(1, Kind::Created, "org_a", "First"),
            event(2, Kind::Updated, "org_a", "Second"),
            event(5, Kind::Deleted, "org_b", "Gone"),
            event(4, Kind::Created, "org_b", "Gone"),
        ]
        .join("\n"),
    );
    run(
        &folder,
        &[("DATABASE_URL", &database.url)],
        &["replay", &file],
    )
    .await
    .assert(0);
    let active: Vec<String> =
        sqlx::query_scalar("select name from organization_metadata where disabled_at is null")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(active, ["Third"]);
}

/// Section 8: what is no event is named by file and line and fails the run; the others go in all the same.
#[tokio::test]
async fn a_bad_line_is_named_and_the_others_go_in() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let file = folder.write(
        "events.jsonl",
        format!(
            "{}\nnot json\n{}\n{{\"id\":\"x\"}}\n",
            created(1),
            created(2)
        ),
    );
    let finished = run(
        &folder,
        &[
            ("DATABASE_URL", database.url.as_str()),
            ("LOG_LEVEL", "warn"),
        ],
        &["replay", &file],
    )
    .await
    .assert(1);
    let complaints: Vec<&str> = finished
        .stderr
        .lines()
        .filter_map(|line| line.split_once(": ").map(|(place, _)| place))
        .collect();
    assert_eq!(
        complaints,
        ["events.jsonl:2", "events.jsonl:4"],
        "{finished:?}"
    );
    assert_eq!(
        summary(&finished),
        ["accepted 2, duplicate 0, ignored 0, refused 2", "2 created"]
    );
}

/// R26: an event that can't be applied is a dead letter, and the run says so by its exit code.
#[tokio::test]
async fn a_dead_letter_fails_the_run() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let file = folder.write("event.json", event(1, Kind::Created, "org_a", "A\0B"));
    let finished = run(
        &folder,
        &[("DATABASE_URL", &database.url)],
        &["replay", &file],
    )
    .await
    .assert(1);
    assert_eq!(
        summary(&finished),
        ["accepted 1, duplicate 0, ignored 0, refused 0", "1 dead"]
    );
}

/// Section 8: a file that can't be read is named and fails the run; the others go in all the same.
#[tokio::test]
async fn an_unreadable_file_is_named_and_the_others_go_in() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let files = [
        folder.write("before.json", created(1)),
        "missing.json".to_owned(),
        folder.write("latin1.json", b"{\"id\":\"\xe9\"}"),
        folder.write("after.json", created(2)),
    ];
    let mut arguments = vec!["replay"];
    arguments.extend(files.iter().map(String::as_str));
    let finished = run(
        &folder,
        &[
            ("DATABASE_URL", database.url.as_str()),
            ("LOG_LEVEL", "warn"),
        ],
        &arguments,
    )
    .await
    .assert(1);
    let complaints: Vec<&str> = finished
        .stderr
        .lines()
        .filter_map(|line| line.split_once(": ").map(|(place, _)| place))
        .collect();
    assert_eq!(
        complaints,
        ["missing.json", "latin1.json:1"],
        "{finished:?}"
    );
    assert_eq!(
        summary(&finished),
        ["accepted 2, duplicate 0, ignored 0, refused 2", "2 created"]
    );
}

/// Section 8: without `DATABASE_URL`, the private Postgres is shared with a running `serve`, which goes on; and started
/// for the run where nobody serves.
#[tokio::test]
async fn the_private_database_is_shared_with_serve() {
    let folder = Folder::new();
    let none: [(&str, &str); 0] = [];
    let service = Service::start(&folder, &none).await;
    let file = folder.write("event.json", created(1));
    let beside = run(&folder, &none, &["replay", &file]).await.assert(0);
    assert_eq!(
        summary(&beside),
        ["accepted 1, duplicate 0, ignored 0, refused 0", "1 created"]
    );
    assert_eq!(service.get("/readyz").await, Some(200));
    assert_eq!(service.apply(&created(2)).await["outcome"], "created");
    service.terminate().await.assert(0);

    let alone = run_with_input(&folder, &none, &["replay", "-"], &created(3))
        .await
        .assert(0);
    assert_eq!(
        summary(&alone),
        ["accepted 1, duplicate 0, ignored 0, refused 0", "1 created"]
    );
    let place = "replaying into workos_sync at 127.0.0.1:";
    assert!(alone.stderr.contains(place), "{alone:?}");
    assert_eq!(folder.postmaster(), None, "it stops what it has started");
    let again = run(&folder, &none, &["migrate"]).await.assert(0);
    assert!(again.stdout.ends_with(" is current\n"), "{again:?}");
    assert_eq!(folder.processes(), [""; 0]);
}

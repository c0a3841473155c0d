//! `workos-sync migrate`, and what `serve` does about the schema.

use sqlx::{AssertSqlSafe, Executor};
use url::Url;

use crate::support::process::{Process, program};
use crate::support::service::answer;
use crate::support::{
    Folder, Kind, LateDatabase, SECRET, Service, TestDatabase, event, eventually, run,
    run_with_input,
};

/// How a database is called: `name at host:port`.
fn place(url: &str) -> String {
    let url = Url::parse(url).unwrap();
    let name = url.path().trim_start_matches('/');
    let port = url.port().unwrap_or(5432);
    format!("{name} at {}:{port}", url.host_str().unwrap())
}

/// Section 11: the first run says what it applied and where, the second that there is nothing to do.
#[tokio::test]
async fn a_second_run_finds_the_schema_current() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let variables = [("DATABASE_URL", &database.url)];
    let first = run(&folder, &variables, &["migrate"]).await.assert(0);
    assert!(!first.stdout.is_empty(), "{first:?}");
    let place = place(&database.url);
    let mut lines: Vec<&str> = first.stdout.lines().collect();
    let created = format!("created public.organization_metadata in {place}");
    assert_eq!(lines.pop(), Some(&*created));
    for line in lines {
        assert!(line.starts_with("applied 20"), "{first:?}");
        assert!(line.ends_with(&format!(" into {place}")), "{first:?}");
    }
    let second = run(&folder, &variables, &["migrate"]).await.assert(0);
    assert_eq!(second.stdout, format!("the schema of {place} is current\n"));
}

/// Section 11: only `serve` makes a private database; others say that there is none, and make nothing.
#[tokio::test]
async fn without_a_database_nothing_is_made() {
    let folder = Folder::new();
    folder.write("event.json", event(1, Kind::Created, "org_a", "Acme"));
    let none = [("", ""); 0];
    for command in [&["migrate"][..], &["replay", "event.json"]] {
        let refused = run(&folder, &none, command).await.assert(2);
        assert_eq!(
            refused.error_line(),
            "workos-sync: DATABASE_URL: not set, and there is no private database in .workos-sync; \
             set it, or run `workos-sync serve` first"
        );
    }
    assert!(!folder.data("").exists());
}

/// Section 8: in an init container, beside a database that starts too, it waits; so does `replay`.
#[tokio::test]
async fn a_late_database_is_waited_for() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let late = LateDatabase::before(&database, 3).await;
    let variables = [("DATABASE_URL", late.url.as_str())];
    let migrated = run(&folder, &variables, &["migrate"]).await.assert(0);
    assert!(migrated.stdout.contains("applied 20"), "{migrated:?}");
    assert_eq!(migrated.stderr.matches("can't be reached").count(), 1);

    let late = LateDatabase::before(&database, 3).await;
    let variables = [("DATABASE_URL", late.url.as_str())];
    let body = event(1, Kind::Created, "org_a", "Acme");
    let replayed = run_with_input(&folder, &variables, &["replay", "-"], &body)
        .await
        .assert(0);
    assert!(replayed.stdout.ends_with("1 created\n"), "{replayed:?}");
}

/// Section 8: it doesn't wait for ever, and its last word is one line that names the place.
#[tokio::test]
async fn a_database_that_does_not_come_is_given_up() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let away = LateDatabase::before(&database, usize::MAX).await;
    let variables = [("DATABASE_URL", away.url.as_str())];
    let refused = run(&folder, &variables, &["migrate"]).await.assert(1);
    let lines: Vec<&str> = refused.stderr.lines().collect();
    let [said, given_up] = lines[..] else {
        panic!("{refused:?}")
    };
    assert!(said.contains("trying again"), "{said}");
    let place = place(&away.url);
    let expected =
        format!("workos-sync: DATABASE_URL: the database {place} could not be reached for 30 s: ");
    assert!(given_up.starts_with(&expected), "{given_up}");
}

/// R22: replicas that start at once migrate once, and wait for each other.
#[tokio::test]
async fn four_at_once_migrate_once() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let variables = [("DATABASE_URL", &database.url)];
    let four: Vec<Process> = (0..4)
        .map(|_| Process::spawn(&mut program(&folder, &variables, &["migrate"])))
        .collect();
    let mut applied = Vec::new();
    for process in four {
        let finished = process.finish().await.assert(0);
        applied.extend(
            finished
                .stdout
                .lines()
                .filter(|line| line.starts_with("applied "))
                .map(str::to_owned),
        );
    }
    applied.sort_unstable();
    let recorded: Vec<String> = sqlx::query_scalar(
        "select 'applied ' || version || ' into ' || $1
         from workos_sync.migrations where success order by version",
    )
    .bind(place(&database.url))
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(applied, recorded);
}

/// Section 8: who migrates by hand is told so, and served once it is done.
#[tokio::test]
async fn serve_leaves_the_schema_alone_if_told_so() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", SECRET),
        ("MIGRATE_ON_START", "false"),
        ("LISTEN_ADDR", "127.0.0.1:0"),
    ];
    let refused = run(&folder, &variables, &[]).await.assert(1);
    assert!(
        refused.error_line().contains("run `workos-sync migrate`"),
        "{refused:?}"
    );
    let tables: i64 = sqlx::query_scalar(
        "select count(*) from pg_class where relnamespace = 'public'::regnamespace",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(tables, 0);

    run(&folder, &variables, &["migrate"]).await.assert(0);
    let service = Service::start(&folder, &variables).await;
    assert_eq!(service.get("/readyz").await, Some(200));
}

/// What the tests of a table of the application's own begin with.
async fn application(statements: &str) -> TestDatabase {
    let database = TestDatabase::empty().await;
    // Made of constants of these tests.
    let statements = AssertSqlSafe(statements.to_owned());
    database.pool.execute(statements).await.unwrap();
    database
}

/// R33: a table that can't work is refused by all who would write, with the same sentences, a line each, and nothing is
/// written.
#[tokio::test]
async fn a_table_that_cannot_work_is_refused() {
    let folder = Folder::new();
    folder.write("event.json", event(1, Kind::Created, "org_a", "Acme"));
    for (table, sentences) in [
        (
            "id text primary key, display_name text not null, slug text unique generated always as (lower(display_name)) stored",
            &[
                "has no column name: it has to have one",
                "column slug of public.organization_metadata is generated",
            ][..],
        ),
        (
            "id text primary key, name text not null, slug text not null unique, updated_at bigint not null default 0",
            &[
                "column updated_at of public.organization_metadata is bigint: it has to be timestamptz or timestamp",
            ],
        ),
    ] {
        let database = application(&format!("create table organization_metadata ({table})")).await;
        let variables = [
            ("DATABASE_URL", database.url.as_str()),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("LOG_LEVEL", "off"),
        ];
        for command in [&["migrate"][..], &[], &["replay", "event.json"]] {
            let refused = run(&folder, &variables, command).await.assert(1);
            let lines: Vec<&str> = refused.stderr.lines().collect();
            assert_eq!(lines.len(), sentences.len(), "{refused:?}");
            for (line, sentence) in lines.iter().zip(sentences) {
                assert!(line.contains(sentence), "{refused:?}");
            }
        }
        let ours: Option<String> =
            sqlx::query_scalar("select to_regnamespace('workos_sync')::text")
                .fetch_one(&database.pool)
                .await
                .unwrap();
        assert_eq!(ours, None);
    }
}

/// R33: in a database that is in use, what keeps the table from working is a condition: events are accepted, and applied
/// once it is mended, without a restart.
#[tokio::test]
async fn a_table_that_stops_working_is_waited_for() {
    let (folder, database) = (Folder::new(), TestDatabase::new().await);
    let service = Service::on(&folder, &database).await;
    let applied = service
        .apply(&event(1, Kind::Created, "org_a", "Acme"))
        .await;
    assert_eq!(applied["outcome"], "created", "{applied}");
    service.terminate().await.assert(0);

    let rename = "alter table organization_metadata rename column slug to handle";
    database.pool.execute(rename).await.unwrap();
    let refused = run(&folder, &[("DATABASE_URL", &database.url)], &["migrate"])
        .await
        .assert(1);
    assert!(
        refused
            .stderr
            .contains("\nworkos-sync: public.organization_metadata has no column slug"),
        "{refused:?}"
    );
    let service = Service::on(&folder, &database).await;
    assert!(
        service.log().contains("has no column slug"),
        "{}",
        service.log()
    );
    assert_eq!(service.get("/readyz").await, Some(200));
    let waiting = event(2, Kind::Created, "org_b", "Globex");
    assert_eq!(
        answer(service.delivery(&waiting)).await["status"],
        "accepted"
    );

    let rename = "alter table organization_metadata rename column handle to slug";
    database.pool.execute(rename).await.unwrap();
    eventually("the event is applied", async || {
        let applied: i64 = sqlx::query_scalar(
            "select count(*) from organization_metadata where workos_id = 'org_b'",
        )
        .fetch_one(&database.pool)
        .await
        .unwrap();
        applied == 1
    })
    .await;
}

fn with_schema(database: &TestDatabase, schema: &str) -> String {
    let mut url = Url::parse(&database.url).unwrap();
    url.query_pairs_mut().append_pair("schema", schema);
    url.into()
}

/// R32: the schema that the URL names is where the table is, for all that is written.
#[tokio::test]
async fn the_schema_of_the_url_is_used() {
    let database = application(
        "create schema app; create table app.organization_metadata (id text primary key, name text not null, slug text not null unique)",
    )
    .await;
    let folder = Folder::new();
    let refused = run(&folder, &[("DATABASE_URL", &database.url)], &["migrate"])
        .await
        .assert(1);
    assert!(
        refused
            .error_line()
            .contains("add ?schema=app to DATABASE_URL"),
        "{refused:?}"
    );
    let url = with_schema(&database, "app");
    let migrated = run(&folder, &[("DATABASE_URL", &url)], &["migrate"])
        .await
        .assert(0);
    assert!(
        migrated
            .stdout
            .contains(" to app.organization_metadata in "),
        "{migrated:?}"
    );

    let nowhere = with_schema(&database, "nowhere");
    let refused = run(&folder, &[("DATABASE_URL", &nowhere)], &["migrate"])
        .await
        .assert(1);
    assert!(
        refused
            .error_line()
            .contains("?schema= of DATABASE_URL names no schema"),
        "{refused:?}"
    );
}

/// R32: who else may write the inbox is said, for no signature is asked of what is there.
#[tokio::test]
async fn others_who_may_write_the_inbox_are_named() {
    let (folder, database) = (Folder::new(), TestDatabase::new().await);
    let variables = [("DATABASE_URL", &database.url)];
    let migrated = run(&folder, &variables, &["migrate"]).await.assert(0);
    assert!(!migrated.stderr.contains("may write"), "{migrated:?}");
    let grant = "grant insert on workos_sync.webhook_events to public";
    database.pool.execute(grant).await.unwrap();
    let migrated = run(&folder, &variables, &["migrate"]).await.assert(0);
    let warned = "not only the owner may write webhook_events, and what is written there is applied without a signature: public";
    assert!(migrated.stderr.contains(warned), "{migrated:?}");
}

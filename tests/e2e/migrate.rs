//! `workos-sync migrate`, and what `serve` does about the schema.

use url::Url;

use crate::support::process::{Process, program};
use crate::support::{
    Folder, Kind, LateDatabase, SECRET, Service, TestDatabase, event, run, run_with_input,
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
    for line in first.stdout.lines() {
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

//! `workos-sync migrate`, and what `serve` does about the schema.

use crate::support::process::{Process, program};
use crate::support::{Folder, SECRET, Service, TestDatabase, run};

/// Section 8: the first run says what it applied, the second that there is nothing to do.
#[tokio::test]
async fn a_second_run_finds_the_schema_current() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let variables = [("DATABASE_URL", &database.url)];
    let first = run(&folder, &variables, &["migrate"]).await.assert(0);
    assert!(!first.stdout.is_empty(), "{first:?}");
    for line in first.stdout.lines() {
        assert!(line.starts_with("applied 20"), "{first:?}");
    }
    let second = run(&folder, &variables, &["migrate"]).await.assert(0);
    assert_eq!(second.stdout, "the schema is current\n");
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
        "select 'applied ' || version from _workos_sync_migrations where success order by version",
    )
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

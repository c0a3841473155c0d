//! Behind PgBouncer as it comes: session pooling, and no startup parameter beyond those that it knows (R35).

use crate::support::{Folder, Kind, PgBouncer, SECRET, Service, TestDatabase, event, run};

/// R23, R35: every command works through it, and commits are durable though the database has another default.
#[tokio::test]
async fn every_command_works_through_it() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let off = "do $$ begin
        execute format('alter database %I set synchronous_commit = off', current_database());
    end $$";
    sqlx::raw_sql(off).execute(&database.pool).await.unwrap();
    let pgbouncer = PgBouncer::before(&database).await;
    let variables = [
        ("DATABASE_URL", pgbouncer.url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", SECRET),
    ];
    run(&folder, &variables, &["migrate"]).await.assert(0);
    let note = "create table seen (setting text);
        create function note() returns trigger language plpgsql as $$
        begin
            insert into seen values (current_setting('synchronous_commit'));
            return null;
        end $$;
        create trigger note after insert or update on workos_sync.webhook_events execute function note();
        create trigger note after insert or update on organization_metadata execute function note();";
    sqlx::raw_sql(note).execute(&database.pool).await.unwrap();

    let service = Service::start(&folder, &variables).await;
    assert_eq!(service.get("/readyz").await, Some(200));
    for n in 0..30 {
        let kind = if n < 10 { Kind::Created } else { Kind::Updated };
        let body = event(n, kind, &format!("org_{}", n % 10), &format!("Name {n}"));
        assert_eq!(service.apply(&body).await["status"], "processed");
    }
    service.terminate().await.assert(0);
    let saved = event(30, Kind::Deleted, "org_0", "Name 30");
    let file = folder.write("event.json", saved);
    let replayed = run(&folder, &variables, &["replay", &file]).await.assert(0);
    assert!(replayed.stdout.contains("1 disabled"), "{replayed:?}");

    let mut names: Vec<String> = sqlx::query_scalar("select name from organization_metadata")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    names.sort_unstable();
    let expected: Vec<String> = (20..30).map(|n| format!("Name {n}")).collect();
    assert_eq!(names, expected);
    let seen: Vec<String> = sqlx::query_scalar("select distinct setting from seen")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    assert_eq!(seen, ["on"]);
}

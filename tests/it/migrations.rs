//! Migrations: on an empty database, beside an application, and by several replicas at once.

use sqlx::{Connection, Executor};
use workos_sync::entities::organization::schema;
use workos_sync::postgres::migrate;

use crate::support::{TestDatabase, eventually};

/// A migrated database has the names that the code and the documentation speak of.
#[tokio::test]
async fn names_are_explicit() {
    let db = TestDatabase::new().await;
    let names: Vec<String> = sqlx::query_scalar(
        "select concat(nspname, '.', relname) collate \"C\" from pg_class join pg_namespace as schema on relnamespace = schema.oid
         where nspname in ('public', 'workos_sync') and relkind in ('r', 'i') order by 1",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert_eq!(
        names,
        [
            "public.organization_metadata",
            "public.organization_metadata_pkey",
            "public.organization_metadata_slug_key",
            "public.organization_metadata_workos_id_key",
            "workos_sync.event_attempts",
            "workos_sync.event_attempts_pkey",
            "workos_sync.event_poll",
            "workos_sync.event_poll_pkey",
            "workos_sync.external_id_pushes",
            "workos_sync.external_id_pushes_due_idx",
            "workos_sync.external_id_pushes_pkey",
            "workos_sync.external_id_pushes_refused_idx",
            "workos_sync.last_webhook",
            "workos_sync.last_webhook_pkey",
            "workos_sync.migrations",
            "workos_sync.migrations_pkey",
            "workos_sync.operator_actions",
            "workos_sync.operator_actions_pkey",
            "workos_sync.pause",
            "workos_sync.pause_pkey",
            "workos_sync.run_organizations",
            "workos_sync.run_organizations_pkey",
            "workos_sync.runs",
            "workos_sync.runs_kind_idx",
            "workos_sync.runs_pkey",
            "workos_sync.webhook_events",
            "workos_sync.webhook_events_cause_idx",
            "workos_sync.webhook_events_lane_idx",
            "workos_sync.webhook_events_next_attempt_at_idx",
            "workos_sync.webhook_events_organization_idx",
            "workos_sync.webhook_events_pkey",
            "workos_sync.webhook_events_received_at_idx",
            "workos_sync.webhook_events_status_idx",
            "workos_sync.webhook_events_unapplied_idx",
            "workos_sync.webhook_events_undelivered_idx",
            "workos_sync.workos_organization_syncs",
            "workos_sync.workos_organization_syncs_pkey",
        ]
    );
}

/// A second run has nothing to do, and says so.
#[tokio::test]
async fn a_second_run_applies_nothing() {
    let db = TestDatabase::empty().await;
    let first = schema::bring_up_to_date(&db.options, None).await.unwrap();
    assert!(
        migrate::pending(&mut db.connect().await)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(!first.applied.is_empty());
    assert_eq!(first.made, ["created public.organization_metadata"]);
    let second = schema::bring_up_to_date(&db.options, None).await.unwrap();
    assert!(second.applied.is_empty() && second.made.is_empty());
}

/// R5: an application's own table, with more columns and other names, is left as it is; only what is missing
/// is added. Its migrations table is none of our business, though it uses sqlx too.
#[tokio::test]
async fn an_application_that_was_there_first_keeps_its_table() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    connection
        .execute(
            "create table organization_metadata
             (
                 id text primary key,
                 name text not null,
                 slug text not null,
                 workos_id text,
                 workos_updated_at timestamptz,
                 workos_last_event_id text,
                 disabled_at timestamptz,
                 created_at timestamptz not null default now(),
                 updated_at timestamptz not null default now(),
                 plan text not null default 'free'
             );
             create unique index slugs on organization_metadata (slug);
             create unique index whatever on organization_metadata (workos_id);
             insert into organization_metadata (id, name, slug, plan) values ('1', 'One', 'one', 'gold');
             create table _sqlx_migrations
             (
                 version bigint primary key,
                 description text not null,
                 installed_on timestamptz not null default now(),
                 success boolean not null,
                 checksum bytea not null,
                 execution_time bigint not null
             );
             insert into _sqlx_migrations values (1, 'theirs', now(), true, '', 0);",
        )
        .await
        .unwrap();
    db.migrate().await;
    let row: (String, String) = sqlx::query_as("select slug, plan from organization_metadata")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(row, ("one".into(), "gold".into()));
    let indexes: Vec<String> = sqlx::query_scalar(
        "select indexname::text from pg_indexes where tablename = 'organization_metadata' order by 1",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert_eq!(indexes, ["organization_metadata_pkey", "slugs", "whatever"]);
}

/// A table that knows nothing of WorkOS yet gets the columns and the index that are missing.
#[tokio::test]
async fn missing_columns_are_added() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    connection
        .execute(
            "create table organization_metadata (id text primary key, name text, slug text unique)",
        )
        .await
        .unwrap();
    db.migrate().await;
    connection
        .execute(
            "insert into organization_metadata
                 (id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at)
             values ('1', 'One', 'one', 'org_1', now(), 'event_1', null)",
        )
        .await
        .unwrap();
    let error = connection
        .execute("insert into organization_metadata (id, name, slug, workos_id) values ('2', '', '', 'org_1')")
        .await
        .unwrap_err();
    let constraint = error
        .as_database_error()
        .unwrap()
        .constraint()
        .map(str::to_owned);
    assert_eq!(
        constraint.as_deref(),
        Some("organization_metadata_workos_id_key")
    );
}

/// R22: replicas that start at once take turns, and none hangs another: who waits for the lock holds no
/// snapshot and no statement open.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_take_turns() {
    let db = TestDatabase::empty().await;
    // Somebody is migrating.
    let mut migrating = db.connect().await;
    migrating
        .execute("select pg_advisory_lock(x'776f726b6f73'::bit(48)::bigint)")
        .await
        .unwrap();

    let mut replicas = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let options = db.options.clone();
        replicas.spawn(async move { schema::bring_up_to_date(&options, None).await });
    }
    eventually("the replicas try for the lock", async || {
        let tried: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity
             where datname = current_database() and query like '%pg_try_advisory_xact_lock%'
               and pid <> pg_backend_pid()",
        )
        .fetch_one(&db.pool)
        .await
        .unwrap();
        tried == 3
    })
    .await;
    assert_eq!(db.blocked_sessions().await, 0);
    migrating.close().await.unwrap();

    let mut applied: Vec<_> = replicas
        .join_all()
        .await
        .into_iter()
        .map(|result| result.unwrap().applied.len())
        .collect();
    applied.sort_unstable();
    assert_eq!(applied[..2], [0, 0]);
    assert!(applied[2] > 0, "one of them has migrated");
}

/// An older version starts, and serves, on a schema that a newer one has migrated.
#[tokio::test]
async fn versions_that_this_binary_does_not_know_are_no_matter() {
    let db = TestDatabase::new().await;
    let mut connection = db.connect().await;
    connection
        .execute(
            "insert into migrations (version, description, success, checksum, execution_time)
             values (99991231000000, 'from the future', true, '', 0)",
        )
        .await
        .unwrap();
    connection
        .execute("delete from migrations where version = (select min(version) from migrations)")
        .await
        .unwrap();
    let pending = migrate::pending(&mut connection).await.unwrap();
    assert_eq!(pending.len(), 1);
    // The first migration may run again.
    let schema = schema::bring_up_to_date(&db.options, None).await.unwrap();
    assert_eq!(schema.applied, pending);
}

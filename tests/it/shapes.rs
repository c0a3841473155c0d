//! Tables of the application's that are different in some way, with an event's whole way into them (R8, R9, R14, R34).

use std::sync::Arc;

use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::support::app::{InboxRow, Options};
use crate::support::event::{at, rfc3339};
use crate::support::logs::Logs;
use crate::support::{EventBuilder, TestApp, TestDatabase, created, deleted, updated};

/// A service beside a table that the application has made.
async fn beside(statements: &str) -> TestApp {
    let db = TestDatabase::empty().await;
    execute(&db, statements).await;
    db.migrate().await;
    TestApp::on(Arc::new(db), Options::default())
}

async fn execute(db: &TestDatabase, statements: &str) {
    let mut connection = db.connect().await;
    let result = connection.execute(AssertSqlSafe(statements)).await;
    result.unwrap_or_else(|error| panic!("{error}: {statements}"));
    connection.close().await.unwrap();
}

/// All rows, of the columns that are given, as text.
async fn rows(app: &TestApp, columns: &str) -> Vec<String> {
    let sql = format!("select concat_ws('|', {columns}) from organization_metadata order by 1");
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(&app.db.pool)
        .await
        .unwrap()
}

/// An event that came to nothing.
async fn failed(app: &TestApp, event: &EventBuilder, status: &str) -> InboxRow {
    assert_eq!(app.apply(event).await, status);
    app.inbox_row(event.event_id()).await
}

const COLUMNS: &str = "id text primary key, name text not null, slug text not null";

/// R9: taken is what the table's own index says, also where that can't be told from its description.
#[tokio::test]
async fn a_slug_that_is_taken_in_another_case_is_taken() {
    let text = format!("create table organization_metadata ({COLUMNS});");
    let of_type = |slug: &str| {
        format!(
            "create table organization_metadata (id text primary key, name text not null, slug {slug} not null unique);"
        )
    };
    let extension = "create extension citext;".to_owned();
    let collation = "create collation ignores_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);";
    let view = format!(
        "create table organizations ({COLUMNS}, workos_id text unique, workos_updated_at timestamptz,
             workos_last_event_id text, disabled_at timestamptz, updated_at timestamptz);
         create unique index on organizations (lower(slug));
         create view organization_metadata as select * from organizations;"
    );
    for (kind, table) in [
        ("citext", extension + &of_type("citext")),
        (
            "an index on lower(slug)",
            text.clone() + "create unique index on organization_metadata (lower(slug))",
        ),
        (
            "a collation",
            collation.to_owned() + &of_type("text collate ignores_case"),
        ),
        (
            "an exclusion constraint",
            text.clone()
                + "alter table organization_metadata add exclude using hash (lower(slug) with =)",
        ),
        (
            "another expression",
            text.clone() + "create unique index on organization_metadata (upper(slug))",
        ),
        ("an index behind a view", view),
    ] {
        let app = beside(&table).await;
        app.execute("insert into organization_metadata (id, name, slug) values ('local', 'Northwind', 'Northwind')")
            .await;
        for (n, workos_id) in [(1, "org_a"), (2, "org_b")] {
            let event = created(n, workos_id, "Northwind");
            assert_eq!(app.apply(&event).await, "created", "{kind}");
            assert_eq!(app.inbox_row(event.event_id()).await.attempts, 1, "{kind}");
        }
        let slugs = rows(&app, "slug").await;
        assert!(slugs.contains(&"Northwind".to_owned()), "{kind}: {slugs:?}");
        let suffixed = slugs.iter().filter(|slug| slug.starts_with("northwind-"));
        assert_eq!(suffixed.count(), 2, "{kind}: {slugs:?}");
    }
}

/// R9: a row that is outside of the unique index takes no slug.
#[tokio::test]
async fn a_removed_row_takes_no_slug() {
    let app = beside(&format!(
        "create table organization_metadata ({COLUMNS}, deleted_at timestamptz);
         create unique index on organization_metadata (slug) where deleted_at is null;
         insert into organization_metadata values ('gone', 'Old', 'northwind', now()), ('live', 'Live', 'contoso', null)"
    ))
    .await;
    app.apply(&created(1, "org_a", "Northwind")).await;
    app.apply(&created(2, "org_b", "Contoso")).await;
    let slugs = rows(&app, "slug").await;
    assert_eq!(slugs.iter().filter(|slug| *slug == "northwind").count(), 2);
    assert!(
        slugs.iter().any(|slug| slug.starts_with("contoso-")),
        "{slugs:?}"
    );
}

/// R9: many of one name get in beside one in capitals, a batch or more at a time.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_one_name_get_in_beside_one_in_capitals() {
    let app = beside(&format!(
        "create table organization_metadata ({COLUMNS});
         create unique index on organization_metadata (lower(slug));
         insert into organization_metadata values ('local', 'Acme', 'ACME')"
    ))
    .await;
    let events = (0..400).map(|n| {
        let body = created(n, &format!("org_{n}"), "Acme").body();
        app.inbox.read_saved(body.into_bytes()).unwrap()
    });
    let outcomes = app.inbox.record_all(events.collect()).await;
    assert!(outcomes.iter().all(Result::is_ok));
    app.settle().await;
    let slugs = rows(&app, "slug").await;
    assert_eq!(slugs.len(), 401);
    assert_eq!(
        slugs
            .iter()
            .filter(|slug| slug.starts_with("acme-"))
            .count(),
        400
    );
}

/// R8: a slug is no longer than its column.
#[tokio::test]
async fn a_slug_fits_into_its_column() {
    let app = beside(
        "create table organization_metadata (id varchar(36) primary key, name varchar(255) not null, slug varchar(50) not null unique)",
    )
    .await;
    let name = "The Northern Cooperative Society for Agricultural Machinery";
    for (n, workos_id) in [(1, "org_a"), (2, "org_b")] {
        assert_eq!(app.apply(&created(n, workos_id, name)).await, "created");
    }
    let slugs = rows(&app, "slug").await;
    assert_eq!(slugs.len(), 2);
    let fits = |slug: &String| slug.starts_with("the-northern-") && (40..=50).contains(&slug.len());
    assert!(slugs.iter().all(fits), "{slugs:?}");
}

/// R26: a value that a column can't hold is refused, and the reason names the column and how long it is.
#[tokio::test]
async fn a_column_that_is_too_short_is_named() {
    let app = beside(
        "create table organization_metadata (id varchar(36) primary key, name varchar(20) not null, slug text not null unique)",
    )
    .await;
    let name = "Northern Cooperative Society";
    let row = failed(&app, &created(1, "org_a", name), "failed").await;
    let reason = row.last_error.unwrap();
    let expected = "column name of public.organization_metadata is character varying(20), and its value has 28 characters";
    assert!(reason.starts_with(expected), "{reason}");
    let long = "a-tenant-whose-id-is-longer-than-a-uuid";
    let row = failed(&app, &created(2, "org_b", "B").external_id(long), "failed").await;
    let reason = row.last_error.unwrap();
    assert!(reason.starts_with("column id of "), "{reason}");
    assert_eq!(app.apply(&created(3, "org_c", "C")).await, "created");
    let row = failed(&app, &updated(4, "org_c", name), "failed").await;
    assert!(row.last_error.unwrap().starts_with(expected));
    // Postgres cuts blanks off by itself.
    assert_eq!(
        app.apply(&updated(5, "org_c", "C                        "))
            .await,
        "updated"
    );

    // Once it is long enough, nobody has to be told.
    execute(
        &app.db,
        "alter table organization_metadata alter column name type varchar(28)",
    )
    .await;
    assert_eq!(app.apply(&updated(6, "org_c", name)).await, "updated");
}

/// R34: where keys are UUIDs, an `external_id` that is none is a dead letter only where it would be the key.
#[tokio::test]
async fn an_external_id_that_is_no_uuid_is_a_dead_letter_where_it_would_be_the_key() {
    let app = beside(
        "create table organization_metadata (id uuid primary key, name text not null, slug text not null unique)",
    )
    .await;
    assert_eq!(app.apply(&created(1, "org_a", "Derived")).await, "created");
    let row = failed(
        &app,
        &created(2, "org_b", "B").external_id("signup-7"),
        "dead",
    )
    .await;
    assert_eq!(row.attempts, 1);
    let reason = row.last_error.unwrap();
    assert!(
        reason.starts_with(
            "external_id signup-7 is no UUID, as the ids of public.organization_metadata are"
        ),
        "{reason}"
    );
    let cause: String =
        sqlx::query_scalar("select cause from webhook_events where status = 'dead'")
            .fetch_one(&app.db.pool)
            .await
            .unwrap();
    assert_eq!(cause, "external_id:not_a_uuid");

    let logs = Logs::capture();
    let event = updated(3, "org_a", "Linked").external_id("signup-7");
    assert_eq!(app.apply(&event).await, "updated");
    let kept = |line: &String| line.contains("though its external_id is signup-7");
    assert!(logs.at("INFO").iter().any(kept), "{}", logs.text());
    let event = deleted(4, "org_c").external_id("signup-7");
    assert_eq!(app.apply(&event).await, "tombstoned");
}

/// R6, R34: an `external_id` in another spelling names the row all the same, and nothing is said of it.
#[tokio::test]
async fn another_spelling_of_an_id_is_the_same_id() {
    for (table, id, external_id) in [
        (
            "create table organization_metadata (id uuid primary key, name text not null, slug text not null unique)",
            "0189d6b5-7f1e-7c62-a5a1-1b6cd0a0f3e4",
            "{0189D6B5-7F1E-7C62-A5A1-1B6CD0A0F3E4}",
        ),
        (
            "create extension citext;
             create table organization_metadata (id citext primary key, name text not null, slug text not null unique)",
            "Signup-7",
            "signup-7",
        ),
        (
            "create table organization_metadata (id char(64) primary key, name text not null, slug text not null unique)",
            "signup-7",
            "signup-7",
        ),
    ] {
        let app = beside(table).await;
        let insert = format!("insert into organization_metadata values ('{id}', 'Signup', 'signup')");
        execute(&app.db, &insert).await;
        let logs = Logs::capture();
        let event = created(1, "org_a", "A").external_id(external_id);
        assert_eq!(app.apply(&event).await, "linked", "{id}");
        let event = updated(2, "org_a", "B").external_id(external_id);
        assert_eq!(app.apply(&event).await, "updated", "{id}");
        assert_eq!(rows(&app, "id::text, name").await, [format!("{id}|B")]);
        assert!(!logs.text().contains("keeps organization id"), "{}", logs.text());
    }
}

/// R7: where the row's time is of whole seconds, so is the event's that is compared with it.
#[tokio::test]
async fn a_time_is_compared_as_exactly_as_the_row_has_it() {
    let app = beside(&format!(
        "create table organization_metadata ({COLUMNS} unique, workos_id text unique, workos_updated_at timestamp(0))"
    ))
    .await;
    let fraction = at(5) + chrono::TimeDelta::milliseconds(750);
    let sql = format!(
        "insert into organization_metadata values ('signup', 'Signup', 'signup', 'org_a', '{}'::timestamptz at time zone 'UTC')",
        rfc3339(fraction)
    );
    execute(&app.db, &sql).await;
    let event = created(5, "org_a", "Newer").data("updated_at", rfc3339(fraction));
    assert_eq!(app.apply(&event).await, "updated");
    assert_eq!(rows(&app, "name").await, ["Newer"]);
}

/// R14: a trigger of the application's may choose the id: that one is written to WorkOS, whatever the table is.
#[tokio::test]
async fn the_id_that_a_trigger_chooses_is_written_back() {
    let app = beside(
        "create table tenants (key text primary key, title text not null, handle text not null unique, workos_org text unique,
             seen timestamp, event text, closed_at timestamp, changed_at timestamp);
         create view organization_metadata as select key as id, title as name, handle as slug, workos_org as workos_id,
             seen as workos_updated_at, event as workos_last_event_id, closed_at as disabled_at, changed_at as updated_at
             from tenants;
         create function own_id() returns trigger language plpgsql as $$
             begin new.key := 'tenant-' || new.handle; return new; end $$;
         create trigger own_id before insert on tenants for each row execute function own_id();",
    )
    .await;
    assert_eq!(
        app.apply(&created(1, "org_a", "Northwind")).await,
        "created"
    );
    assert_eq!(rows(&app, "id").await, ["tenant-northwind"]);
    let pushed: String = sqlx::query_scalar("select organization_id from external_id_pushes")
        .fetch_one(&app.db.pool)
        .await
        .unwrap();
    assert_eq!(pushed, "tenant-northwind");
    assert_eq!(app.apply(&updated(2, "org_a", "Renamed")).await, "updated");
}

/// R33: an empty `workos_id` is none, and an index that leaves such rows out is used.
#[tokio::test]
async fn an_empty_workos_id_is_none() {
    let app = beside(&format!(
        "create table organization_metadata ({COLUMNS} unique, workos_id text not null default '');
         create unique index on organization_metadata (workos_id) where workos_id <> '';
         insert into organization_metadata (id, name, slug) values ('one', 'One', 'one'), ('two', 'Two', 'two')"
    ))
    .await;
    let logs = Logs::capture();
    let event = created(1, "org_a", "Linked").external_id("one");
    assert_eq!(app.apply(&event).await, "linked");
    assert_eq!(logs.at("WARN"), [""; 0]);
    let event = deleted(2, "org_b").external_id("two");
    assert_eq!(app.apply(&event).await, "disabled");
    assert_eq!(
        rows(&app, "id, name, workos_id").await,
        ["one|Linked|org_a", "two|Two|org_b"]
    );
}

/// R6, R10: an `external_id` that a deleted organization leaves is taken by the next one, and the customer is back.
#[tokio::test]
async fn an_organization_that_is_made_again_is_enabled_where_times_are_coarse() {
    let app = beside(&format!(
        "create table organization_metadata ({COLUMNS} unique, disabled_at timestamp(0), workos_updated_at timestamp(0))"
    ))
    .await;
    let half = |n, event: EventBuilder| {
        let exact = rfc3339(at(n) + chrono::TimeDelta::milliseconds(250));
        event.data("updated_at", exact.clone()).created_at(&exact)
    };
    for (n, event, outcome) in [
        (1, created(1, "org_a", "Northwind"), "created"),
        (2, deleted(2, "org_a"), "disabled"),
        (3, created(3, "org_b", "Northwind"), "linked"),
    ] {
        let event = half(n, event.external_id("nw"));
        assert_eq!(app.apply(&event).await, outcome);
    }
    assert_eq!(
        rows(&app, "id, workos_id, disabled_at is null").await,
        ["nw|org_b|t"]
    );
}

/// R32: a table that was moved, made again, or altered is looked up again, and the event that found that out is applied.
#[tokio::test]
async fn a_table_that_changed_is_looked_up_again() {
    let app = TestApp::new().await;
    assert_eq!(app.apply(&created(1, "org_a", "A")).await, "created");
    let alter = async |sql: &str| execute(&app.db, sql).await;
    let uuids = "create table organization_metadata (id uuid primary key, name text not null, slug varchar(8) not null unique,
        workos_id text unique, workos_updated_at timestamp(0), workos_last_event_id text, disabled_at timestamp,
        updated_at timestamp)";

    alter("drop table organization_metadata").await;
    alter(uuids).await;
    let event = created(2, "org_b", "A longer name");
    assert_eq!(app.apply(&event).await, "created");
    assert_eq!(app.inbox_row(event.event_id()).await.attempts, 1);

    alter("alter table organization_metadata alter column id type char(64)").await;
    assert_eq!(app.apply(&updated(3, "org_b", "B")).await, "updated");

    alter(
        "alter table organization_metadata alter column slug type varchar(4) using left(slug, 4)",
    )
    .await;
    let event = created(4, "org_c", "A longer name");
    assert_eq!(app.apply(&event).await, "created");
    assert_eq!(app.inbox_row(event.event_id()).await.attempts, 1);

    // On the search path of the role, behind public.
    let path = "do $$ begin
        execute format('alter database %I set search_path = public, app', current_database());
    end $$";
    alter(&format!(
        "create schema app; alter table organization_metadata set schema app; {path}"
    ))
    .await;
    let moved = TestApp::on(Arc::clone(&app.db), Options::default());
    assert_eq!(moved.host.current().name, "app.organization_metadata");
    assert_eq!(moved.apply(&updated(5, "org_b", "C")).await, "updated");
    alter("alter table app.organization_metadata set schema public").await;
    let event = updated(6, "org_b", "D");
    assert_eq!(moved.apply(&event).await, "updated");
    assert_eq!(moved.inbox_row(event.event_id()).await.attempts, 1);
    assert_eq!(moved.host.current().name, "public.organization_metadata");
}

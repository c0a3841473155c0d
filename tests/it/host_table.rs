//! The application's table: where it is looked for, what is said of it, and what is made of it (R32 to R34).

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use tokio::task::JoinSet;
use tokio::time::Instant;
use workos_sync::entities::organization::host::{HostTable, Key, Rows, Severity, Value};
use workos_sync::entities::organization::schema::{self, Schema};

use crate::ops::read;
use crate::support::app::Options;
use crate::support::pooler::Pooler;
use crate::support::role::documented;
use crate::support::{Role, TestApp, TestDatabase, created, deleted, eventually, release, updated};

/// All that an event needs; the cases say what is different.
const COLUMNS: [(&str, &str); 9] = [
    ("id", "text primary key"),
    ("name", "text not null"),
    ("slug", "text not null unique"),
    ("workos_id", "text unique"),
    ("workos_updated_at", "timestamptz"),
    ("workos_last_event_id", "text"),
    ("disabled_at", "timestamptz"),
    ("created_at", "timestamptz not null default now()"),
    ("updated_at", "timestamptz not null default now()"),
];

/// The statement that makes the table with some columns different, some more, and those that are empty left out.
fn create(different: &[(&str, &str)]) -> String {
    let more = different
        .iter()
        .filter(|(name, _)| COLUMNS.iter().all(|(ours, _)| ours != name));
    let columns: Vec<_> = COLUMNS
        .iter()
        .map(|ours| {
            let mut replaced = different.iter().filter(|(name, _)| name == &ours.0);
            replaced.next().unwrap_or(ours)
        })
        .chain(more)
        .filter(|(_, definition)| !definition.is_empty())
        .map(|(name, definition)| format!("{name} {definition}"))
        .collect();
    format!(
        "create table organization_metadata ({})",
        columns.join(", ")
    )
}

async fn execute(connection: &mut PgConnection, sql: impl Into<String>) {
    let sql: String = sql.into();
    // Made of constants of these tests.
    if let Err(error) = connection.execute(AssertSqlSafe(sql.clone())).await {
        panic!("{error}: {sql}");
    }
}

async fn scalar<T>(connection: &mut PgConnection, sql: &'static str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

async fn bring_up_to_date(db: &TestDatabase, schema: Option<&str>) -> Schema {
    schema::bring_up_to_date(&db.options, schema).await.unwrap()
}

/// What `bring_up_to_date` does, while the test goes on.
fn spawn_update(db: &TestDatabase) -> JoinSet<Schema> {
    let options = db.options.clone();
    let mut updating = JoinSet::new();
    updating.spawn(async move { schema::bring_up_to_date(&options, None).await.unwrap() });
    updating
}

fn errors(table: &HostTable) -> Vec<&str> {
    table.errors().map(|finding| &*finding.sentence).collect()
}

fn warnings(table: &HostTable) -> Vec<&str> {
    table.warnings().map(|finding| &*finding.sentence).collect()
}

/// A table in a schema of its own, looked at in a transaction that is rolled back.
async fn look_at(connection: &mut PgConnection, statements: &str) -> HostTable {
    let mut tx = connection.begin().await.unwrap();
    execute(
        &mut tx,
        "create schema s; set local search_path = s, public",
    )
    .await;
    execute(&mut tx, statements).await;
    let table = HostTable::read(&mut tx, Some("s")).await.unwrap();
    tx.rollback().await.unwrap();
    table
}

/// R33: what can't work is said in a sentence that names the column, what it is, and what it has to be.
#[tokio::test]
async fn a_column_that_cannot_work_is_named() {
    assert_errors(&[
        (
            create(&[("slug", ""), ("name", "")]),
            &[
                "s.organization_metadata has no column name: it has to have one, of type text, varchar, citext or char(n)",
                "s.organization_metadata has no column slug: it has to have one, of type text, varchar, citext or char(n)",
            ][..],
        ),
        (
            create(&[("id", "bigint primary key"), ("name", "jsonb")]),
            &[
                "column id of s.organization_metadata is bigint: it has to be text, varchar, citext, char(n) or uuid",
                "column name of s.organization_metadata is jsonb: it has to be text, varchar, citext or char(n)",
            ],
        ),
        (
            create(&[
                ("updated_at", "bigint not null default 0"),
                ("disabled_at", "boolean"),
                ("workos_updated_at", "text"),
            ]),
            &[
                "column workos_updated_at of s.organization_metadata is text: it has to be timestamptz or timestamp",
                "column disabled_at of s.organization_metadata is boolean: it has to be timestamptz or timestamp",
                "column updated_at of s.organization_metadata is bigint: it has to be timestamptz or timestamp",
            ],
        ),
        (
            create(&[("workos_id", "uuid unique")]),
            &[
                "column workos_id of s.organization_metadata is uuid: it has to be text, varchar, citext or char(n)",
            ],
        ),
        (
            create(&[(
                "slug",
                "text generated always as (lower(replace(name, ' ', '-'))) stored unique",
            )]),
            &[
                "column slug of s.organization_metadata is generated: it has to be a plain column, for workos-sync writes it",
            ],
        ),
        (
            create(&[("id", "bigint generated always as identity primary key")]),
            &[
                "column id of s.organization_metadata is bigint: it has to be text, varchar, citext, char(n) or uuid",
            ],
        ),
        (
            create(&[
                ("workos_id", "varchar(20) unique"),
                ("workos_last_event_id", "char(32)"),
            ]),
            &[
                "column workos_id of s.organization_metadata is character varying(20): it has to hold 30 characters",
                "column workos_last_event_id of s.organization_metadata is character(32): it has to hold 35 characters",
            ],
        ),
    ])
    .await;
}

/// R33: so it is of a key, and of a relation.
#[tokio::test]
async fn a_key_or_a_relation_that_cannot_work_is_named() {
    assert_errors(&[
        (
            create(&[
                ("id", "text not null"),
                ("tenant", "text default '', unique (tenant, id)"),
            ]),
            &[
                "column id of s.organization_metadata isn't unique: it has to be the primary key, or have a valid unique index of its own",
            ][..],
        ),
        (
            create(&[("workos_id", "text"), ("deleted_at", "timestamptz")])
                + "; create unique index live on organization_metadata (workos_id) where deleted_at is null",
            &[
                "column workos_id of s.organization_metadata is unique only where (deleted_at IS NULL) (index live): it has to be unique in all rows, so give the others no workos_id, and drop that index",
            ],
        ),
        (
            create(&[
                ("id", "text"),
                ("slug", "text"),
                ("workos_id", "text"),
                (
                    "workos_updated_at",
                    "timestamptz, primary key (id, name, slug, workos_id, workos_updated_at)",
                ),
            ]) + " partition by hash (id)",
            &[
                "s.organization_metadata is partitioned: it has to be a plain table, so that workos_id can be unique in all of it",
            ],
        ),
        (
            "create materialized view organization_metadata as select 1 as id".to_owned(),
            &[
                "s.organization_metadata is a materialized view: it has to be a table, or a view that can be written to",
            ],
        ),
        (
            "create view organization_metadata as select 'a'::text as id group by 1".to_owned(),
            &[
                "s.organization_metadata is a view that can't be written to: it has to take INSERT and UPDATE",
            ],
        ),
        (
            create(&[("slug", "")]).replace("organization_metadata", "organizations")
                + "; create view organization_metadata as select *, lower(name) as slug from organizations",
            &[
                "column slug of s.organization_metadata is generated: it has to be a plain column, for workos-sync writes it",
            ],
        ),
    ])
    .await;
}

/// Fails the test if what is said of a table is anything else.
async fn assert_errors(cases: &[(String, &[&str])]) {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    for (statements, sentences) in cases {
        let table = look_at(&mut connection, statements).await;
        assert_eq!(errors(&table), *sentences, "{statements}");
        assert!(!table.is_usable());
    }
}

/// R33: what makes some events dead letters, or can't be seen, is a warning.
#[tokio::test]
async fn what_works_in_part_is_a_warning() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    let mapped = "create table organizations (key text primary key, title text not null, handle text not null unique,
            workos_org text unique, workos_seen timestamptz, workos_event text, closed_at timestamptz, changed_at timestamptz);
        create view organization_metadata as select key as id, title as name, handle as slug, workos_org as workos_id,
            workos_seen as workos_updated_at, workos_event as workos_last_event_id, closed_at as disabled_at, changed_at as updated_at
            from organizations";
    for (statements, sentences) in [
        (
            create(&[("plan", "text not null"), ("disabled_at", "timestamptz not null")]),
            &[
                "column disabled_at of s.organization_metadata is NOT NULL without a default, and workos-sync leaves it null: an organization that has no row yet can't be created",
                "column plan of s.organization_metadata is NOT NULL without a default, and workos-sync leaves it null: an organization that has no row yet can't be created",
            ][..],
        ),
        (
            create(&[("id", "varchar(32) primary key")]),
            &["column id of s.organization_metadata is character varying(32): an id derived from that of WorkOS has 36 characters, so an organization without external_id can't be created"],
        ),
        (
            create(&[("slug", "text not null")]),
            &["column slug of s.organization_metadata has no unique index: nothing keeps two organizations from having one slug, and each creation reads the whole table"],
        ),
        (
            create(&[]) + "; create table child () inherits (organization_metadata)",
            &["tables inherit from s.organization_metadata: their rows are taken for its own, though no key is unique across them"],
        ),
        (
            create(&[]) + "; alter table organization_metadata enable row level security, force row level security;
                create role no_superuser_of_a_test;
                grant usage on schema s to no_superuser_of_a_test;
                grant select, insert, update on organization_metadata to no_superuser_of_a_test;
                set local role no_superuser_of_a_test",
            &["row level security of s.organization_metadata applies to role no_superuser_of_a_test: a row that a policy hides is taken for missing, and what a policy refuses is a dead letter"],
        ),
        (
            mapped.to_owned(),
            &["s.organization_metadata is a view: whether id, workos_id and slug are unique in the table behind it, and what else that refuses, can't be seen"],
        ),
    ] {
        let table = look_at(&mut connection, &statements).await;
        assert_eq!(warnings(&table), sentences, "{statements}");
        assert_eq!(errors(&table), [""; 0], "{statements}");
    }
}

/// R33: missing rights are named with their columns, also where rights are given by column.
#[tokio::test]
async fn missing_rights_are_named() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    let all =
        "grant usage on schema s to few_rights_of_a_test; set local role few_rights_of_a_test";
    let mut read = async |grant: &str| {
        let role = "create role few_rights_of_a_test";
        let statements = format!("{}; {role}; {grant}; {all}", create(&[]));
        look_at(&mut connection, &statements).await
    };
    let table = read("grant insert on organization_metadata to few_rights_of_a_test").await;
    assert_eq!(
        errors(&table),
        [
            "role few_rights_of_a_test may not SELECT id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at of s.organization_metadata: it has to have that right",
            "role few_rights_of_a_test may not UPDATE name, workos_id, workos_updated_at, workos_last_event_id, disabled_at, updated_at of s.organization_metadata: it has to have that right",
        ]
    );
    let table = read(
        "grant select on organization_metadata to few_rights_of_a_test;
         grant update (name, workos_id, workos_updated_at, workos_last_event_id, disabled_at) on organization_metadata
             to few_rights_of_a_test",
    )
    .await;
    assert_eq!(
        errors(&table),
        [
            "role few_rights_of_a_test may not UPDATE updated_at of s.organization_metadata: it has to have that right"
        ]
    );
    assert_eq!(
        warnings(&table),
        [
            "role few_rights_of_a_test may not INSERT id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at, updated_at into s.organization_metadata: an organization that has no row yet can't be created"
        ]
    );
    let table = read(
        "grant select, insert on organization_metadata to few_rights_of_a_test;
         grant update (name, workos_id, workos_updated_at, workos_last_event_id, disabled_at, updated_at)
             on organization_metadata to few_rights_of_a_test",
    )
    .await;
    assert_eq!(table.findings, []);
}

/// R34: what the columns may be, and what is known of each.
#[tokio::test]
async fn the_types_of_the_columns_are_known() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    execute(
        &mut connection,
        r#"create schema "Ext"; create extension citext schema "Ext""#,
    )
    .await;
    let table = look_at(
        &mut connection,
        &(create(&[
            ("id", "uuid primary key"),
            ("name", "public_name"),
            ("slug", "varchar(50)"),
            ("workos_id", r#""Ext".citext not null default ''"#),
            ("workos_updated_at", "timestamp(0)"),
            ("workos_last_event_id", "char(64)"),
            ("updated_at", "moment"),
        ])
        .replace("create table", "create domain public_name as varchar(80) not null default '' check (value <> 'x');
             create domain moment as timestamptz(3);
             create table")
            + "; create unique index by_slug on organization_metadata (lower(slug)) include (name);
                create unique index by_workos_id on organization_metadata (workos_id) where workos_id is not null and workos_id <> ''"),
    )
    .await;
    assert_eq!(table.findings, []);
    let column = |name| table.column(name).unwrap();
    let facts = [
        "id",
        "name",
        "slug",
        "workos_id",
        "workos_updated_at",
        "workos_last_event_id",
        "updated_at",
    ]
    .map(|name| {
        let found = column(name);
        (
            found.declared.as_str(),
            found.value.clone(),
            found.cast(),
            found.equals(),
        )
    });
    let text = |max_length| Value::Text { max_length };
    let time = |with_time_zone, precision| Value::Timestamp {
        with_time_zone,
        precision,
    };
    assert_eq!(
        facts,
        [
            ("uuid", Value::Uuid, "uuid".to_owned(), "=".to_owned()),
            ("public_name", text(Some(80)), "text".into(), "=".into()),
            (
                "character varying(50)",
                text(Some(50)),
                "text".into(),
                "=".into()
            ),
            (
                r#""Ext".citext"#,
                Value::Citext {
                    schema: r#""Ext""#.into()
                },
                r#""Ext".citext"#.into(),
                r#"operator("Ext".=)"#.into()
            ),
            (
                "timestamp(0) without time zone",
                time(false, 0),
                "timestamp".into(),
                "=".into()
            ),
            (
                "character(64)",
                Value::Padded {
                    max_length: Some(64)
                },
                "bpchar".into(),
                "=".into()
            ),
            ("moment", time(true, 3), "timestamptz".into(), "=".into()),
        ]
    );
    assert!(column("name").not_null && !column("workos_updated_at").not_null);
    let rows = &table.unique_by("workos_id").unwrap().rows;
    assert!(matches!(rows, Rows::NotEmpty(_)), "{rows:?}");
    let slug = table.unique_covering("slug").next().unwrap();
    assert_eq!(slug.keys, [Key::Lower("slug".to_owned())]);
}

/// R33: names come in every script, so the database has to hold them all. `SQL_ASCII` holds any bytes.
#[tokio::test]
async fn another_encoding_than_utf8_is_refused() {
    let locale = "template template0 lc_collate 'C' lc_ctype 'C'";
    let db = TestDatabase::made(&format!("encoding 'LATIN1' {locale}")).await;
    let schema = bring_up_to_date(&db, None).await;
    assert_eq!(
        errors(&schema.table)[0],
        "the encoding of the database is LATIN1: it has to be UTF8, for organizations have names in every script"
    );
    // Nothing was written.
    assert_eq!(relations(&mut db.connect().await).await, [""; 0]);

    let db = TestDatabase::made(&format!("encoding 'SQL_ASCII' {locale}")).await;
    assert!(bring_up_to_date(&db, None).await.table.is_usable());
}

/// Every table of the database, with its schema.
async fn relations(connection: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar(
        "select concat(schemaname, '.', tablename) from pg_tables
         where schemaname not in ('pg_catalog', 'information_schema') order by 1",
    )
    .fetch_all(connection)
    .await
    .unwrap()
}

/// R32: the table is where the search path finds it, not where a new one would go.
#[tokio::test]
async fn the_table_is_found_along_the_search_path() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    execute(
        &mut connection,
        format!("{}; create schema own", create(&[])),
    )
    .await;
    let options = db.options.clone().options([("search_path", "own, public")]);
    let schema = schema::bring_up_to_date(&options, None).await.unwrap();
    assert_eq!(schema.table.name, "public.organization_metadata");
    assert_eq!(schema.made, [""; 0]);
    assert!(
        !relations(&mut connection)
            .await
            .contains(&"own.organization_metadata".to_owned())
    );
}

/// R32: a new table goes where the search path begins, but never into our own schema: the role of these tests is called
/// as that is, and so begins with it.
#[tokio::test]
async fn a_new_table_is_never_made_among_our_own() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    execute(
        &mut connection,
        r#"create schema workos_sync; create table workos_sync.organization_metadata (id int); create schema "It's""#,
    )
    .await;
    let options = |path: &str| db.options.clone().options([("search_path", path)]);
    let look = async |options: PgConnectOptions| {
        let mut connection = PgConnection::connect_with(&options).await.unwrap();
        HostTable::read(&mut connection, None)
            .await
            .map(|table| table.name)
    };
    assert_eq!(
        look(options("workos_sync, public")).await.unwrap(),
        "public.organization_metadata"
    );
    assert_eq!(
        look(options("workos_sync")).await.unwrap_err().to_string(),
        format!(
            "the search path of role {} has no schema that it may use: name that of organization_metadata by ?schema= in DATABASE_URL",
            db.options.get_username(),
        )
    );

    let schema = schema::bring_up_to_date(&options(r#"workos_sync,"It's",public"#), None)
        .await
        .unwrap();
    assert_eq!(schema.made, [r#"created "It's".organization_metadata"#]);
    assert!(
        relations(&mut connection)
            .await
            .contains(&"It's.organization_metadata".to_owned())
    );
    assert_eq!(schema.table.findings, []);
}

/// R32: a table that is elsewhere stops the start, for a second one beside it would be filled in vain.
#[tokio::test]
async fn a_table_off_the_search_path_is_named() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    let other = create(&[]).replace("organization_metadata", "app.organization_metadata");
    execute(&mut connection, format!("create schema app; {other}")).await;
    let refused = schema::bring_up_to_date(&db.options, None)
        .await
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "organization_metadata is in schema app, and not on the search path (public): add ?schema=app to DATABASE_URL"
    );
    assert_eq!(
        relations(&mut connection).await,
        ["app.organization_metadata"]
    );

    let schema = bring_up_to_date(&db, Some("app")).await;
    assert_eq!(schema.table.name, "app.organization_metadata");
    assert!(schema.table.is_usable());
    assert!(
        !relations(&mut connection)
            .await
            .contains(&"public.organization_metadata".to_owned())
    );

    // It goes before the search path.
    execute(&mut connection, create(&[])).await;
    assert_eq!(
        bring_up_to_date(&db, None).await.table.name,
        "public.organization_metadata"
    );
    assert_eq!(
        bring_up_to_date(&db, Some("app")).await.table.name,
        "app.organization_metadata"
    );
}

/// R32: `?schema=` must name one that is there, and isn't ours.
#[tokio::test]
async fn a_schema_that_is_not_there_is_refused() {
    let db = TestDatabase::new().await;
    let role = db.options.get_username();
    for (schema, reason) in [
        (
            "nowhere",
            format!("?schema= of DATABASE_URL names no schema that role {role} may use"),
        ),
        (
            "workos_sync",
            "?schema= of DATABASE_URL names the schema of our own tables: name the one of organization_metadata".to_owned(),
        ),
    ] {
        let refused = schema::bring_up_to_date(&db.options, Some(schema)).await;
        assert_eq!(refused.unwrap_err().to_string(), reason);
    }
}

/// R33: a table that can't work stops the first start before anything is written.
#[tokio::test]
async fn nothing_is_written_beside_a_table_that_cannot_work() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    execute(
        &mut connection,
        "create table organization_metadata (id text primary key, name text)",
    )
    .await;
    let schema = bring_up_to_date(&db, None).await;
    assert!(!schema.table.is_usable());
    assert_eq!(
        relations(&mut connection).await,
        ["public.organization_metadata"]
    );
    let columns: i64 = scalar(
        &mut connection,
        "select count(*) from pg_attribute where attrelid = 'organization_metadata'::regclass and attnum > 0",
    )
    .await;
    assert_eq!(columns, 2);
}

/// R33: what is unique only in part keeps its meaning: no index is built beside it.
#[tokio::test]
async fn a_table_with_removed_rows_is_left_as_it_is() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    let table = create(&[("workos_id", "text"), ("deleted_at", "timestamptz")]);
    let index =
        "create unique index live on organization_metadata (workos_id) where deleted_at is null";
    let rows = "insert into organization_metadata (id, name, slug, workos_id, deleted_at)
        values ('live', '', 'a', 'org_a', null), ('gone', '', 'b', 'org_a', now())";
    execute(&mut connection, format!("{table}; {index}; {rows}")).await;
    let schema = bring_up_to_date(&db, None).await;
    assert!(
        errors(&schema.table)[0].contains("unique only where"),
        "{:?}",
        schema.table.findings
    );
    assert_eq!(schema.made, [""; 0]);

    // The cure that the sentence names.
    execute(
        &mut connection,
        "update organization_metadata set workos_id = null where deleted_at is not null; drop index live",
    )
    .await;
    let schema = bring_up_to_date(&db, None).await;
    assert_eq!(
        schema.made,
        ["built the index organization_metadata_workos_id_key on public.organization_metadata"]
    );
    assert_eq!(schema.table.findings, []);
}

/// R33: rows that share a WorkOS organization keep the index from being made, and are listed.
#[tokio::test]
async fn duplicates_are_listed() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    let table = create(&[("workos_id", "text")]);
    let rows = "insert into organization_metadata (id, name, slug, workos_id)
        select chr(96 + n), '', n::text, 'org_' || n % 4 from generate_series(1, 16) n;
        insert into organization_metadata (id, name, slug, workos_id) values ('x', '', 'x', ''), ('y', '', 'y', '')";
    execute(&mut connection, format!("{table}; {rows}")).await;
    let schema = bring_up_to_date(&db, None).await;
    assert_eq!(
        errors(&schema.table),
        [
            "column workos_id of public.organization_metadata has to be unique, but some have several rows (their ids): org_0 (d, h, l); org_1 (a, e, i); org_2 (b, f, j); give it to one row of each"
        ]
    );
    assert_eq!(
        indexes(&mut connection).await,
        [
            "organization_metadata_pkey",
            "organization_metadata_slug_key"
        ]
    );

    // An empty one is none.
    execute(&mut connection, "delete from organization_metadata where id in ('e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p')").await;
    let schema = bring_up_to_date(&db, None).await;
    assert_eq!(schema.table.findings, []);
    let rows = &schema.table.unique_by("workos_id").unwrap().rows;
    assert!(matches!(rows, Rows::NotEmpty(_)), "{rows:?}");
}

async fn indexes(connection: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar(
        "select relname::text from pg_index join pg_class on oid = indexrelid
         where indrelid = 'organization_metadata'::regclass and indisvalid order by 1",
    )
    .fetch_all(connection)
    .await
    .unwrap()
}

/// R33: an index that a broken-off build left behind doesn't count, and is built again.
#[tokio::test]
async fn an_invalid_index_is_built_again() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    let table = create(&[("workos_id", "text")]);
    let rows = "insert into organization_metadata (id, name, slug, workos_id) values ('a', '', 'a', 'org_a'), ('b', '', 'b', 'org_a')";
    execute(&mut connection, format!("{table}; {rows}")).await;
    let build = "create unique index concurrently organization_metadata_workos_id_key on organization_metadata (workos_id)";
    connection.execute(build).await.unwrap_err();
    execute(
        &mut connection,
        "delete from organization_metadata where id = 'b'",
    )
    .await;
    let before = bring_up_to_date(&db, None).await;
    assert_eq!(before.made.len(), 1, "{before:?}");
    assert!(before.table.is_usable());
    assert!(
        indexes(&mut connection)
            .await
            .contains(&"organization_metadata_workos_id_key".to_owned())
    );
}

/// R22: while a transaction of the application's holds the table, the migration waits for it in short turns: the
/// application's queries never wait long behind it, and it ends once the transaction does.
#[tokio::test]
async fn the_application_reads_on_while_columns_are_added() {
    let db = TestDatabase::empty().await;
    let mut report = db.connect().await;
    execute(
        &mut report,
        create(&[("workos_id", ""), ("workos_last_event_id", "")]),
    )
    .await;
    execute(&mut report, "begin; select from organization_metadata").await;

    let mut migrating = spawn_update(&db);
    eventually("the migration waits for the report", async || {
        db.blocked_sessions().await == 1
    })
    .await;
    // Behind it, while it waits.
    let mut reader = db.connect().await;
    let began = Instant::now();
    execute(&mut reader, "select from organization_metadata").await;
    let waited = began.elapsed();
    assert!(waited < Duration::from_secs(4), "{waited:?}");
    assert!(migrating.try_join_next().is_none());

    release(report).await;
    let schema = migrating.join_next().await.unwrap().unwrap();
    assert_eq!(schema.table.findings, []);
    assert_eq!(
        schema.made[0],
        "added workos_id, workos_last_event_id to public.organization_metadata"
    );
}

/// R22: the index is built while the application writes.
#[tokio::test]
async fn the_application_writes_on_while_the_index_is_built() {
    let db = TestDatabase::empty().await;
    let mut writer = db.connect().await;
    execute(&mut writer, create(&[("workos_id", "text")])).await;
    let insert = |id| {
        format!("insert into organization_metadata (id, name, slug) values ('{id}', '', '{id}')")
    };
    execute(&mut writer, format!("begin; {}", insert("a"))).await;

    let mut migrating = spawn_update(&db);
    eventually("the build waits for the writer", async || {
        db.blocked_sessions().await == 1
    })
    .await;
    let mut another = db.connect().await;
    execute(
        &mut another,
        format!("set lock_timeout = '1s'; {}", insert("b")),
    )
    .await;
    assert!(migrating.try_join_next().is_none());

    release(writer).await;
    let schema = migrating.join_next().await.unwrap().unwrap();
    assert_eq!(schema.table.findings, []);
}

/// R35: a pooler in transaction mode can't part a replica from its turn, for that is a lock of a transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_held_by_a_transaction() {
    let db = TestDatabase::empty().await;
    let mut report = db.connect().await;
    execute(&mut report, create(&[("workos_id", "")])).await;
    execute(
        &mut report,
        "begin; lock table organization_metadata in access exclusive mode",
    )
    .await;
    let mut migrating = spawn_update(&db);
    eventually("the migration waits", async || {
        db.blocked_sessions().await == 1
    })
    .await;
    let states: Vec<String> = sqlx::query_scalar(
        "select state from pg_locks join pg_stat_activity using (pid)
         where locktype = 'advisory' and pg_locks.database = (select oid from pg_database where datname = current_database())",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert_eq!(states, ["idle in transaction"]);
    release(report).await;
    migrating.join_next().await.unwrap().unwrap();
}

/// R35: through a pooler in transaction mode everything is made, each by a transaction, but for the index: the settings that
/// its build needs would be somebody else's.
#[tokio::test]
async fn an_index_is_not_built_through_a_pooler() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    execute(&mut connection, create(&[("workos_id", "")])).await;
    let server = (db.options.get_host().to_owned(), db.options.get_port());
    // As many as a migration holds at once.
    let pooler = Pooler::start(server, 2).await.unwrap();
    let options = db.options.clone().host("127.0.0.1").port(pooler.port);
    let schema = schema::bring_up_to_date(&options, None).await.unwrap();
    assert_eq!(
        errors(&schema.table),
        [
            "column workos_id of public.organization_metadata isn't unique, and an index can't be built through a connection pooler: run `workos-sync migrate` with a DATABASE_URL that leads to Postgres itself"
        ]
    );
    assert_eq!(
        schema.made,
        ["added workos_id to public.organization_metadata"]
    );
    let held: i64 = scalar(&mut connection, "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())").await;
    assert_eq!(held, 0, "a lock is left behind");

    let schema = bring_up_to_date(&db, None).await;
    assert_eq!(schema.table.findings, []);
    let schema = schema::bring_up_to_date(&options, None).await.unwrap();
    assert_eq!((schema.made, schema.table.findings), (vec![], vec![]));
}

/// R33: a role that may not add what is missing says so, and who may.
#[tokio::test]
async fn what_a_role_may_not_make_is_said() {
    let db = TestDatabase::new().await;
    let mut connection = db.connect().await;
    execute(
        &mut connection,
        "alter table organization_metadata drop column workos_last_event_id",
    )
    .await;
    let role = Role::create(
        &db,
        &[
            "usage on schema workos_sync",
            "select on all tables in schema workos_sync",
            "select, insert, update on organization_metadata",
        ],
    )
    .await;
    let refused = schema::bring_up_to_date(&role.options, None).await.unwrap();
    assert_eq!(
        errors(&refused.table),
        [
            "workos_last_event_id of public.organization_metadata can't be added: must be owner of table organization_metadata (SQLSTATE 42501); run `workos-sync migrate` as the owner of the table"
        ]
    );
    // A column that somebody dropped is put back by who may.
    let made = bring_up_to_date(&db, None).await.made;
    assert_eq!(
        made,
        ["added workos_last_event_id to public.organization_metadata"]
    );
    role.drop(&db).await;
}

/// R33: with the rights on columns that `docs/your-table.md` grants, and those on our own tables of `docs/security.md`,
/// nothing is missing, and each thing is done to a row that an event can do to it.
#[tokio::test]
async fn the_documented_rights_on_columns_are_enough() {
    let mut db = TestDatabase::new().await;
    let whole_table = " organization_metadata,";
    let ours = read("docs/security.md").replace(whole_table, "");
    let columns = read("docs/your-table.md");
    let rights = [documented(&ours), documented(&columns)].concat();
    let role = Role::create(&db, &rights).await;
    db.options = role.options.clone();
    let mut connection = db.options.connect().await.unwrap();
    let table = HostTable::read(&mut connection, None).await.unwrap();
    assert_eq!(table.findings, []);
    let refused = connection
        .execute("update organization_metadata set slug = 'x'")
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("permission denied"),
        "{refused}"
    );

    let app = TestApp::on(Arc::new(db), Options::default());
    app.execute(
        "insert into organization_metadata (id, name, slug) values ('local-1', 'Before', 'before')",
    )
    .await;
    for (event, outcome) in [
        (created(1, "org_a", "Acme"), "created"),
        (created(2, "org_b", "Acme"), "created"),
        (
            created(3, "org_c", "After").external_id("local-1"),
            "linked",
        ),
        (updated(4, "org_a", "Acme, Inc."), "updated"),
        (deleted(5, "org_c"), "disabled"),
        (
            created(6, "org_d", "After").external_id("local-1"),
            "linked",
        ),
        (deleted(7, "org_e"), "tombstoned"),
    ] {
        assert_eq!(app.apply(&event).await, outcome, "{event:?}");
    }
    // The row of the customer who came back.
    let rows = app.organizations().await;
    assert!(rows.iter().all(|row| row.disabled_at.is_none()), "{rows:?}");
    role.drop(&app.db).await;
}

/// R32: whatever the database grants by default, and to whom, nobody but the owner has a right on what is ours; what an
/// operator grants stays.
#[tokio::test]
async fn our_tables_are_private() {
    let db = TestDatabase::empty().await;
    let mut connection = db.connect().await;
    let anon = Role::create(&db, &[]).await;
    for what in ["schemas", "tables", "sequences", "functions"] {
        let sql = format!(
            "alter default privileges grant all on {what} to {}, public",
            anon.name
        );
        execute(&mut connection, sql).await;
    }
    bring_up_to_date(&db, None).await;
    let granted = async |connection: &mut PgConnection| -> Vec<String> {
        sqlx::query_scalar(
            "select concat(object, ' ', privilege_type)
             from (select oid::regnamespace::text, nspacl, nspowner from pg_namespace where nspname = 'workos_sync'
                   union all
                   select relname, relacl, relowner from pg_class where relnamespace = 'workos_sync'::regnamespace
                   union all
                   select proname, coalesce(proacl, acldefault('f', proowner)), proowner
                   from pg_proc where pronamespace = 'workos_sync'::regnamespace) as objects (object, acl, owner),
                  aclexplode(acl)
             where grantee <> owner order by 1",
        )
        .fetch_all(connection)
        .await
        .unwrap()
    };
    assert_eq!(granted(&mut connection).await, [""; 0]);

    let grant = format!(
        "grant usage on schema workos_sync to {0}; grant select on workos_sync.webhook_events to {0}",
        anon.name
    );
    execute(&mut connection, grant).await;
    execute(
        &mut connection,
        "alter table organization_metadata drop column disabled_at",
    )
    .await;
    assert_eq!(bring_up_to_date(&db, None).await.made.len(), 1);
    assert_eq!(
        granted(&mut connection).await,
        ["webhook_events SELECT", "workos_sync USAGE"]
    );
    let off = format!(
        "alter default privileges revoke all on schemas from {}, public",
        anon.name
    );
    execute(&mut connection, off).await;
    anon.drop(&db).await;
}

/// R33: what changes while it is served is found out by those who ask again, and what was mended too.
#[tokio::test]
async fn a_description_is_read_again() {
    let app = TestApp::new().await;
    let mut connection = app.db.connect().await;
    let refresh = async || app.host.refresh(&app.db.pool).await.unwrap();
    assert_eq!(app.host.findings(), []);
    execute(
        &mut connection,
        "alter table organization_metadata drop column disabled_at",
    )
    .await;
    assert!(app.host.is_usable(), "nobody has looked");
    refresh().await;
    assert_eq!(
        errors(&app.host.current()),
        ["public.organization_metadata has no column disabled_at: `workos-sync migrate` adds it"]
    );
    execute(
        &mut connection,
        "alter table organization_metadata add column disabled_at timestamp(0)",
    )
    .await;
    refresh().await;
    assert!(app.host.is_usable());

    // It goes elsewhere.
    execute(
        &mut connection,
        "create schema app; alter table organization_metadata set schema app",
    )
    .await;
    refresh().await;
    assert!(errors(&app.host.current())[0].contains("?schema=app"));
    execute(
        &mut connection,
        "alter table app.organization_metadata set schema public",
    )
    .await;
    refresh().await;
    assert!(app.host.is_usable());

    // Another one takes its place.
    execute(
        &mut connection,
        "alter table organization_metadata rename to old",
    )
    .await;
    refresh().await;
    assert_eq!(
        errors(&app.host.current()),
        [
            "there is no organization_metadata: `workos-sync migrate` creates public.organization_metadata"
        ]
    );
    execute(
        &mut connection,
        "create view organization_metadata as select * from old",
    )
    .await;
    refresh().await;
    assert!(app.host.is_usable());
    assert_eq!(app.host.findings()[0].severity, Severity::Warning);
}

//! Every shape that the application's table may have, and all that an event can do to it (R34).

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};
use tokio::task::JoinSet;
use uuid::Uuid;
use workos_sync::entities::Outcome;
use workos_sync::entities::organization::host::HostTable;
use workos_sync::entities::organization::organization_id::default_namespace;
use workos_sync::entities::organization::precision::Precision;
use workos_sync::entities::organization::statements::Statements;
use workos_sync::entities::organization::{ApplyError, OrganizationEvent};
use workos_sync::event::Event;
use workos_sync::postgres;

use crate::support::event::{at, event_id, rfc3339};
use crate::support::logs::Logs;
use crate::support::{EventBuilder, NOW, TestDatabase, apply, created, deleted, look_at, updated};

const KEYS: [&str; 5] = ["text", "varchar(64)", "ext.citext", "char(64)", "uuid"];
const TIMES: [&str; 3] = ["timestamptz", "timestamp", "timestamp(0)"];
const SLUGS: [Slug; 4] = [
    Slug::Column("text"),
    Slug::Column("varchar(30)"),
    Slug::Column("ext.citext"),
    Slug::Lower,
];

/// How many shapes are tried at the same time.
const AT_ONCE: usize = 4;

/// How exact a slug is unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slug {
    /// A unique column of this type.
    Column(&'static str),
    /// Text, with a unique index on `lower(slug)`.
    Lower,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    key: &'static str,
    time: &'static str,
    slug: Slug,
    is_view: bool,
    /// Where it is.
    number: usize,
}

impl Shape {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for key in KEYS {
            for time in TIMES {
                for slug in SLUGS {
                    for is_view in [false, true] {
                        let number = all.len();
                        all.push(Self {
                            key,
                            time,
                            slug,
                            is_view,
                            number,
                        });
                    }
                }
            }
        }
        all
    }

    fn schema(&self) -> String {
        format!("Shape {}", self.number)
    }

    /// The statements that make it. What isn't in the matrix goes along with the key: the ways that `workos_id` is unique.
    fn definition(&self) -> String {
        let Self { key, time, .. } = self;
        let (slug, slug_index) = match self.slug {
            Slug::Column(slug) => (slug, "handle"),
            Slug::Lower => ("text", "lower(handle)"),
        };
        let (workos_id, rows) = match *key {
            "varchar(64)" => ("varchar(64) not null default ''", "where workos_org <> ''"),
            "ext.citext" => ("ext.citext not null default ''", "where workos_org <> ''"),
            "char(64)" => ("char(64)", ""),
            "uuid" => ("text", "where workos_org is not null"),
            _ => ("text", ""),
        };
        let event_id = if *key == "char(64)" {
            "char(64)"
        } else {
            "text"
        };
        let definition = format!(
            r#"create schema "{schema}";
               set search_path = "{schema}";
               create table organizations (plan text default 'free', key {key} primary key, title varchar(200) not null,
                   handle {slug} not null, workos_org {workos_id}, seen {time}, event {event_id}, closed_at {time},
                   changed_at {time} not null default now());
               create unique index on organizations ({slug_index});
               create unique index on organizations (workos_org) {rows};"#,
            schema = self.schema(),
        );
        if self.is_view {
            return definition
                + "create view organization_metadata as select key as id, title as name, handle as slug,
                       workos_org as workos_id, seen as workos_updated_at, event as workos_last_event_id,
                       closed_at as disabled_at, changed_at as updated_at from organizations";
        }
        let mut definition = definition.replace("organizations", "organization_metadata");
        for (theirs, ours) in [
            ("key ", "id "),
            ("title", "name"),
            ("handle", "slug"),
            ("workos_org", "workos_id"),
            ("seen", "workos_updated_at"),
            ("event ", "workos_last_event_id "),
            ("closed_at", "disabled_at"),
            ("changed_at", "updated_at"),
        ] {
            // `primary key` is none of them.
            definition = definition.replace(&format!(" {theirs}"), &format!(" {ours}"));
            definition = definition.replace(&format!("({theirs}"), &format!("({ours}"));
        }
        definition.replace("primary id", "primary key")
    }

    /// The WorkOS id of an organization of this shape's.
    fn workos_id(&self, n: u32) -> String {
        format!("org_{}_{n}", self.number)
    }

    /// An id of the application's, as the application writes it.
    fn id(&self, n: u32) -> String {
        let name = format!("Signup-{}-{n}", self.number);
        match self.key {
            "uuid" => Uuid::new_v5(&Uuid::NAMESPACE_DNS, name.as_bytes()).to_string(),
            _ => name,
        }
    }

    /// The same id, as WorkOS has it: another spelling, where the type doesn't tell one from the other.
    fn external_id(&self, n: u32) -> String {
        match self.key {
            "uuid" | "ext.citext" => self.id(n).to_uppercase(),
            "char(64)" => self.id(n) + " ",
            _ => self.id(n),
        }
    }

    fn ignores_case(&self) -> bool {
        matches!(self.slug, Slug::Lower | Slug::Column("ext.citext"))
    }

    /// A time as the shape's columns have it.
    fn kept(&self, at: DateTime<Utc>) -> DateTime<Utc> {
        let digits = if self.time == "timestamp(0)" { 0 } else { 6 };
        Precision::digits(digits).round(at)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_view { "view" } else { "table" };
        write!(f, "{} {:?} {} {kind}", self.key, self.slug, self.time)
    }
}

/// When event number `n` changed its organization: three quarters of a second after the time of its id.
fn changed_at(n: u64) -> DateTime<Utc> {
    at(n) + TimeDelta::milliseconds(750)
}

/// An event whose times no column of whole seconds can keep.
fn exact(event: EventBuilder, n: u64) -> OrganizationEvent {
    let at = rfc3339(changed_at(n));
    let body = event.created_at(&at).data("updated_at", at).body();
    OrganizationEvent::decode(&Event::parse(body.as_bytes()).unwrap()).unwrap()
}

/// A row, read as text.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    slug: String,
    workos_id: Option<String>,
    updated_at: Option<DateTime<Utc>>,
    last_event_id: Option<String>,
    disabled_at: Option<DateTime<Utc>>,
}

/// A table of some shape, on a pool that all shapes share.
struct Trial {
    shape: Shape,
    pool: PgPool,
    statements: Arc<Statements>,
    /// How often a slug was refused by an index that can't be seen.
    refused: usize,
}

impl Trial {
    async fn begin(shape: Shape, pool: PgPool) -> Self {
        let read = async |connection: &mut PgConnection| {
            HostTable::read(connection, Some(&shape.schema())).await
        };
        let table = postgres::transaction(&pool, postgres::PATIENCE, read);
        let table = table.await.unwrap();
        assert!(table.is_usable(), "{shape}: {:?}", table.findings);
        Self {
            statements: Arc::new(Statements::new(Arc::new(table))),
            shape,
            pool,
            refused: 0,
        }
    }

    /// Applies events in one transaction, as the inbox does: again with another slug where one is refused.
    async fn apply(&mut self, events: &[OrganizationEvent]) -> Vec<Outcome> {
        let mut refused = Vec::new();
        loop {
            let mut connection = self.pool.acquire().await.unwrap();
            let mut tx = postgres::begin(&mut connection).await.unwrap();
            let namespace = default_namespace();
            match apply(&mut tx, &self.statements, events, &namespace, &refused, NOW).await {
                Ok(outcomes) => {
                    tx.commit().await.unwrap();
                    return outcomes;
                }
                Err(ApplyError::SlugRefused(error)) => {
                    assert!(!refused.contains(&error.slug), "{}", self.shape);
                    tx.rollback().await.unwrap();
                    refused.push(error.slug);
                    self.refused += 1;
                }
                Err(error) => panic!("{}: {error}", self.shape),
            }
        }
    }

    async fn apply_one(&mut self, event: EventBuilder, n: u64) -> Outcome {
        self.apply(&[exact(event, n)]).await[0]
    }

    /// A row that the application has made.
    async fn insert(&self, columns: &str, values: &str) {
        let table = &self.statements.table().name;
        let sql = format!("insert into {table} (id, name, slug{columns}) values ({values})");
        self.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    }

    /// The row with an id, as the application reads it.
    async fn row(&self, id: &str) -> Row {
        let table = &self.statements.table().name;
        let zone = if self.shape.time == "timestamptz" {
            ""
        } else {
            "at time zone 'UTC'"
        };
        let sql = format!(
            "select id::text, name::text, slug::text, workos_id::text, workos_updated_at {zone} as updated_at,
                    workos_last_event_id::text as last_event_id, disabled_at {zone} as disabled_at
             from {table} where id::text = $1"
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(id)
            .fetch_one(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{}: {id}: {error}", self.shape))
    }

    /// The id of a WorkOS organization's row.
    async fn id_of(&self, workos_id: &str) -> String {
        let table = &self.statements.table().name;
        let sql = format!("select id::text from {table} where workos_id::text = $1");
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(workos_id)
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    async fn run(mut self) {
        let shape = self.shape;
        let values = |n: u32, slug: &str| format!("'{}', 'Signup', '{slug}'", shape.id(n));
        self.insert("", &values(1, "Northwind")).await;

        // Created, beside a slug in capitals; renamed; the same again.
        let first = shape.workos_id(1);
        let outcome = self.apply_one(created(1, &first, "Northwind"), 1).await;
        assert_eq!(outcome, Outcome::Created, "{shape}");
        let id = self.id_of(&first).await;
        let row = self.row(&id).await;
        let (base, suffix) = row.slug.split_at("northwind".len());
        assert_eq!(base, "northwind", "{shape}");
        assert_eq!(!suffix.is_empty(), shape.ignores_case(), "{shape}: {row:?}");
        let outcome = self.apply_one(updated(2, &first, "Renamed"), 2).await;
        assert_eq!(outcome, Outcome::Updated, "{shape}");
        let expected = Row {
            id: id.clone(),
            name: "Renamed".to_owned(),
            slug: row.slug,
            workos_id: Some(first.clone()),
            updated_at: Some(shape.kept(changed_at(2))),
            last_event_id: Some(event_id(2)),
            disabled_at: None,
        };
        assert_eq!(self.row(&id).await, expected, "{shape}");
        let outcome = self.apply_one(updated(2, &first, "Again"), 2).await;
        assert_eq!(outcome, Outcome::Stale, "{shape}");

        // Linked by external_id, relinked, disabled, and enabled for the successor.
        let [second, third, fourth] = [2, 3, 4].map(|n| shape.workos_id(n));
        let shared = shape.external_id(1);
        let link = |n, workos_id: &str| created(n, workos_id, "Linked").external_id(&shared);
        for (n, workos_id) in [(3, &second), (4, &third)] {
            let outcome = self.apply_one(link(n, workos_id), n).await;
            assert_eq!(outcome, Outcome::Linked, "{shape}");
        }
        let outcome = self
            .apply_one(updated(5, &third, "Kept").external_id(&shared), 5)
            .await;
        assert_eq!(outcome, Outcome::Updated, "{shape}");
        let outcome = self.apply_one(deleted(6, &third), 6).await;
        assert_eq!(outcome, Outcome::Disabled, "{shape}");
        let row = self.row(&shape.id(1)).await;
        assert_eq!(row.disabled_at, Some(shape.kept(changed_at(6))), "{shape}");
        assert_eq!(row.slug, "Northwind", "{shape}");
        let outcome = self.apply_one(link(7, &fourth), 7).await;
        assert_eq!(outcome, Outcome::Linked, "{shape}");
        let row = self.row(&shape.id(1)).await;
        assert_eq!(
            (row.workos_id, row.disabled_at),
            (Some(fourth), None),
            "{shape}"
        );

        // A new row with an id of the application's.
        let fifth = shape.workos_id(5);
        let event = created(8, &fifth, "Fifth").external_id(&shape.external_id(5));
        assert_eq!(self.apply_one(event, 8).await, Outcome::Created, "{shape}");
        let id = self.id_of(&fifth).await;
        assert!(id.eq_ignore_ascii_case(&shape.id(5)), "{shape}: {id}");

        self.collide().await;
        self.guard().await;

        let hidden = usize::from(shape.is_view && shape.slug == Slug::Lower);
        assert_eq!(self.refused, hidden, "{shape}");
    }

    /// Choices that collide, in one transaction and after it, and that are as long as the column.
    async fn collide(&mut self) {
        let shape = self.shape;
        let name = "The Northern Cooperative Society for Agricultural Machinery";
        let events = [10, 11, 12].map(|n| {
            let workos_id = shape.workos_id(u32::try_from(n).unwrap());
            exact(created(n, &workos_id, name), n)
        });
        assert_eq!(self.apply(&events).await, [Outcome::Created; 3], "{shape}");
        let outcome = self
            .apply_one(created(13, &shape.workos_id(13), name), 13)
            .await;
        assert_eq!(outcome, Outcome::Created, "{shape}");
        let longest = if shape.slug == Slug::Column("varchar(30)") {
            30
        } else {
            63
        };
        let mut slugs = Vec::new();
        for n in 10..=13 {
            let id = self.id_of(&shape.workos_id(n)).await;
            slugs.push(self.row(&id).await.slug);
        }
        let fits = |slug: &String| slug.starts_with("the-northern") && slug.len() <= longest;
        assert!(slugs.iter().all(fits), "{shape}: {slugs:?}");
        slugs.sort();
        slugs.dedup();
        assert_eq!(slugs.len(), 4, "{shape}: {slugs:?}");
    }

    /// Times of the application's own: as exact as the column, and none at all.
    async fn guard(&mut self) {
        let shape = self.shape;
        let time = changed_at(20).to_rfc3339();
        let utc = if shape.time == "timestamptz" {
            ""
        } else {
            " at time zone 'UTC'"
        };
        for (n, time) in [
            (20, format!("'{time}'::timestamptz{utc}")),
            (21, "'-infinity'".to_owned()),
            (22, "'infinity'".to_owned()),
        ] {
            let workos_id = shape.workos_id(n);
            let id = shape.id(n);
            let values = format!("'{id}', 'Signup', 'guarded-{n}', '{workos_id}', {time}");
            self.insert(", workos_id, workos_updated_at", &values).await;
            let event = updated(20, &workos_id, "Newer");
            let outcome = self.apply_one(event, 20).await;
            assert_eq!(outcome, Outcome::Updated, "{shape}: {time}");
            assert_eq!(self.row(&id).await.name, "Newer", "{shape}");
        }
    }
}

/// R1 to R10, R34: every shape is created in, updated, linked, relinked, disabled, and takes slugs that collide; times are
/// UTC, whatever the zone of the session.
#[tokio::test(flavor = "multi_thread")]
async fn every_shape_of_the_table_works() {
    let db = TestDatabase::new().await;
    let mut connection = db.connect().await;
    let extension = "create schema ext; create extension citext schema ext";
    connection.execute(extension).await.unwrap();
    for shape in Shape::all() {
        let definition = AssertSqlSafe(shape.definition());
        if let Err(error) = connection.execute(definition).await {
            panic!("{shape}: {error}: {}", shape.definition());
        }
    }
    let pool = PgPoolOptions::new()
        .max_connections(10)
        .after_connect(|connection, _| {
            Box::pin(async move {
                connection
                    .execute("set timezone = 'America/St_Johns'")
                    .await?;
                Ok(())
            })
        })
        .connect_lazy_with(db.options.clone());
    let mut waiting = Shape::all().into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < AT_ONCE {
            let Some(shape) = waiting.next() else { break };
            let pool = pool.clone();
            running.spawn(async move { Trial::begin(shape, pool).await.run().await });
        }
        match running.join_next().await {
            Some(done) => done.unwrap(),
            None => break,
        }
    }
}

/// R34: whatever the key's type, every statement goes by an index, also if it was prepared while the table had one row. (An
/// UPDATE may then be joined the other way round, until the table is analyzed.)
#[tokio::test]
async fn the_statements_go_by_the_index_of_every_type() {
    let db = TestDatabase::new().await;
    let mut connection = db.connect().await;
    let extension = "create schema ext; create extension citext schema ext";
    connection.execute(extension).await.unwrap();
    let logs = Logs::explained(&db).await;
    let pool = postgres::pool(db.options.clone(), 1);
    let shapes = Shape::all()
        .into_iter()
        .filter(|shape| shape.time == "timestamptz" && !shape.is_view)
        .filter(|shape| shape.slug != Slug::Column("varchar(30)"));
    for shape in shapes {
        let id = match shape.key {
            "uuid" => "md5(n::text)::uuid",
            _ => "'id-' || n",
        };
        let fill = |from: u32, to: u32| {
            format!(
                "insert into organization_metadata (id, name, slug, workos_id)
                     select {id}, 'Name', 'name-' || n, 'org_' || n from generate_series({from}, {to}) n"
            )
        };
        let sql = format!(
            "{};
             alter table organization_metadata set (autovacuum_enabled = off);
             {};
             analyze organization_metadata",
            shape.definition(),
            fill(0, 0),
        );
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
        let mut trial = Trial::begin(shape, pool.clone()).await;
        let mut before = 0;
        for n in 0..10 {
            // By now, the prepared statements have their generic plans.
            if n == 7 {
                connection
                    .execute(AssertSqlSafe(fill(1_000, 3_000)))
                    .await
                    .unwrap();
                before = logs.text().len();
            }
            let known = format!("org_{n}");
            for event in [
                created(n, &format!("new_{n}_{}", shape.number), "Name 7"),
                updated(100 + n, &known, "Renamed").external_id(&trial.shape.external_id(7)),
                deleted(200 + n, &known),
            ] {
                trial.apply_one(event, n).await;
            }
        }
        let text = logs.text().split_off(before);
        let plans: Vec<_> = text
            .split("Query Text:")
            .skip(1)
            .filter(|plan| plan.contains("organization_metadata"))
            .collect();
        assert!(plans.len() > 20, "{} plans", plans.len());
        for plan in plans {
            assert!(!plan.contains("Seq Scan"), "{shape}: {plan}");
            if plan.trim_start().starts_with("update") {
                continue;
            }
            for removed in plan.split("Rows Removed by ").skip(1) {
                let rows = removed.split(": ").nth(1).unwrap_or_default();
                let rows: String = rows.chars().take_while(char::is_ascii_digit).collect();
                assert!(rows.parse::<u32>().unwrap() < 100, "{shape}: {plan}");
            }
        }
    }
}

/// R35: a statement that is prepared goes on when a column gets another type of its kind.
#[tokio::test]
async fn another_type_changes_no_result() {
    let db = TestDatabase::new().await;
    let statements = look_at(&db).statements();
    let mut connection = db.connect().await;
    let namespace = default_namespace();
    let mut apply_one = async |event: EventBuilder| {
        let event =
            OrganizationEvent::decode(&Event::parse(event.body().as_bytes()).unwrap()).unwrap();
        let mut tx = postgres::begin(&mut connection).await.unwrap();
        let outcomes = apply(&mut tx, &statements, &[event], &namespace, &[], NOW).await;
        tx.commit().await.unwrap();
        outcomes.unwrap()[0]
    };
    apply_one(created(1, "org_a", "A").external_id("a")).await;
    apply_one(created(2, "org_b", "B").external_id("a")).await;
    db.pool
        .execute(
            "alter table organization_metadata
                 alter column id type varchar(50),
                 alter column slug type varchar(50),
                 alter column workos_id type varchar(50),
                 alter column workos_last_event_id type char(50),
                 alter column workos_updated_at type timestamptz(0),
                 alter column disabled_at type timestamp using disabled_at at time zone 'UTC'",
        )
        .await
        .unwrap();
    let link = created(3, "org_c", "C").external_id("a");
    assert_eq!(apply_one(link).await, Outcome::Linked);
    let again = updated(4, "org_c", "C");
    assert_eq!(apply_one(again).await, Outcome::Updated);
    assert_eq!(apply_one(created(5, "org_d", "A")).await, Outcome::Created);
}

/// R7: a time is rounded as Postgres rounds it.
#[tokio::test]
async fn times_are_rounded_as_postgres_does() {
    let db = TestDatabase::new().await;
    let times: Vec<DateTime<Utc>> = [
        "1970-01-01T00:00:00Z",
        "1999-12-31T23:59:59Z",
        "2026-03-02T09:15:05Z",
    ]
    .into_iter()
    .flat_map(|second| {
        [
            0, 1, 49_999, 50_000, 499_999, 500_000, 500_500, 999_500, 999_999,
        ]
        .map(|micros| second.parse::<DateTime<Utc>>().unwrap() + TimeDelta::microseconds(micros))
    })
    .collect();
    for digits in 0..=6_u8 {
        let sql = format!(
            "select time::timestamptz({digits}) from unnest($1::timestamptz[]) as times (time)"
        );
        let rounded: Vec<DateTime<Utc>> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(&times)
            .fetch_all(&db.pool)
            .await
            .unwrap();
        let ours: Vec<_> = times
            .iter()
            .map(|at| Precision::digits(digits).round(*at))
            .collect();
        assert_eq!(ours, rounded, "{digits} digits");
    }
}

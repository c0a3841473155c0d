//! Behind a pooler in transaction mode, where no session is ours (R35).

use std::sync::Arc;

use chrono::TimeDelta;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use workos_sync::http::health::Health;
use workos_sync::inbox::Recorded;

use crate::support::app::{Options, Organization};
use crate::support::event::event_id;
use crate::support::pooler::Pooler;
use crate::support::{EventBuilder, TestApp, TestDatabase, created, deleted, eventually, updated};

/// Fewer than the service has to the pooler.
const CONNECTIONS: usize = 4;

/// A pooler that has so many connections to a database, and the service behind it. The test's own connections go past it.
async fn pooled(mut database: TestDatabase, connections: usize) -> (Pooler, Arc<TestApp>) {
    let server = (
        database.options.get_host().to_owned(),
        database.options.get_port(),
    );
    let pooler = Pooler::start(server, connections).await.unwrap();
    database.options = database.options.clone().host("127.0.0.1").port(pooler.port);
    let app = TestApp::on(Arc::new(database), Options::default());
    (pooler, Arc::new(app))
}

/// Delivers events side by side, and has them applied.
async fn deliver_all(app: &Arc<TestApp>, events: impl IntoIterator<Item = EventBuilder>) {
    let mut deliveries = JoinSet::new();
    for event in events {
        let app = Arc::clone(app);
        deliveries.spawn(async move { app.deliver(&event.body()).await.assert(200) });
    }
    deliveries.join_all().await;
    app.settle().await;
}

/// Fails the test if an event wasn't applied at the first attempt.
async fn assert_applied_at_once(app: &TestApp) {
    let others: Vec<(String, String, i32, Option<String>)> = sqlx::query_as(
        "select event_id, status, attempts, last_error from webhook_events
         where status <> 'processed' or attempts <> 1",
    )
    .fetch_all(&app.db.pool)
    .await
    .unwrap();
    assert_eq!(others, []);
}

/// R35: deliveries and replays are applied, each event once.
#[tokio::test(flavor = "multi_thread")]
async fn deliveries_and_replays_are_applied() {
    let (_pooler, app) = pooled(TestDatabase::new().await, CONNECTIONS).await;
    let id = |n: u64| format!("org_{}", n % 20);
    let delivered = (0..100).map(|n| match n {
        0..20 => created(n, &id(n), &format!("Name {n}")),
        _ => updated(n, &id(n), &format!("Name {n}")),
    });
    deliver_all(&app, delivered).await;

    // Half of them were delivered.
    let saved = (50..150)
        .map(|n| match n {
            145.. => deleted(n, &id(n)),
            _ => updated(n, &id(n), &format!("Name {n}")),
        })
        .map(|event| app.inbox.read_saved(event.body().into_bytes()).unwrap());
    let replayed = app.inbox.record_all(saved.collect()).await;
    let new = replayed
        .into_iter()
        .filter(|replayed| replayed.as_ref().unwrap().recorded == Recorded::Accepted);
    assert_eq!(new.count(), 50);
    app.settle().await;

    assert_applied_at_once(&app).await;
    let rows = app.organizations().await;
    assert_eq!(rows.len(), 20);
    for n in 130..150 {
        let is_its = |row: &&Organization| row.workos_id == Some(id(n));
        let row = rows.iter().find(is_its).unwrap();
        assert_eq!(row.workos_last_event_id, Some(event_id(n)));
        let name = if n < 145 { n } else { n - 20 };
        assert_eq!(row.name, format!("Name {name}"));
        assert_eq!(row.disabled_at.is_some(), n >= 145);
    }
}

/// Notes the settings under which each of the tables is written, by whichever connection of the server.
const NOTE_SETTINGS: &str = r"
create table seen (by integer, name text, setting text);
create function note_settings() returns trigger language plpgsql as $$
begin
    insert into seen
    select pg_backend_pid(), name, current_setting(name)
    from unnest(array['synchronous_commit', 'transaction_isolation', 'statement_timeout', 'lock_timeout',
                      'idle_in_transaction_session_timeout', 'enable_seqscan', 'enable_hashjoin', 'enable_mergejoin'])
        as names (name);
    return null;
end $$;
create trigger note after insert or update on organization_metadata execute function note_settings();
create trigger note after insert or update on webhook_events execute function note_settings();
create trigger note after insert or update on workos_organization_syncs execute function note_settings();
create trigger note after insert or update on external_id_pushes execute function note_settings();
";

/// R23, R35: every transaction that writes has our settings, on whichever server connection it is, though the defaults of
/// the database are others; and whoever is lent one of them afterwards finds no setting and no lock of ours.
#[tokio::test(flavor = "multi_thread")]
async fn settings_are_those_of_the_transaction_on_every_connection() {
    let database = TestDatabase::new().await;
    sqlx::raw_sql(AssertSqlSafe(format!(
        "{NOTE_SETTINGS}
         do $$ begin
             execute format('alter database %I set synchronous_commit = off', current_database());
             execute format('alter database %I set default_transaction_isolation = serializable', current_database());
         end $$"
    )))
    .execute(&database.pool)
    .await
    .unwrap();
    let (_pooler, app) = pooled(database, CONNECTIONS).await;
    for round in 0..10 {
        let events = (0..40).map(|n| created(round * 40 + n, &format!("org_{n}"), "Acme"));
        deliver_all(&app, events).await;
        // Its settings are others.
        let (stop, host) = (CancellationToken::new(), app.host.clone());
        let health = Health::new(stop, app.db.options.clone(), host, None);
        assert!(health.check().await.is_ok());
    }
    assert_applied_at_once(&app).await;

    let settings: Vec<(String, String, i64)> = sqlx::query_as(
        "select name, string_agg(distinct setting, ',' order by setting), count(distinct by)
         from seen group by name order by name",
    )
    .fetch_all(&app.db.pool)
    .await
    .unwrap();
    let connections = i64::try_from(CONNECTIONS).unwrap();
    let expected = [
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        ("enable_seqscan", "off"),
        ("idle_in_transaction_session_timeout", "30s"),
        // A batch waits but a moment.
        ("lock_timeout", "200ms,5s"),
        ("statement_timeout", "15s"),
        ("synchronous_commit", "on"),
        ("transaction_isolation", "read committed"),
    ];
    assert_eq!(
        settings,
        expected.map(|(name, setting)| (name.to_owned(), setting.to_owned(), connections))
    );

    let mut others = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut other = app.db.options.connect().await.unwrap();
        // Lends one of the server's to each.
        other.execute("begin").await.unwrap();
        others.push(other);
    }
    for other in &mut others {
        let left: Vec<String> = sqlx::query_scalar(
            "select name || ' = ' || setting from pg_settings where source = 'session'
             and name not like 'transaction\\_%'
             union all
             select 'a lock' from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
        )
        .fetch_all(other)
        .await
        .unwrap();
        assert_eq!(left, [""; 0]);
    }
}

/// R35: the type of a column changes, and every server connection has a statement that doesn't know it, which no other
/// client connection gets rid of. Events are applied all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_another_type_is_no_matter() {
    let (_pooler, app) = pooled(TestDatabase::new().await, CONNECTIONS).await;
    let events = |from: u64| {
        (from..from + 60).map(|n| updated(n, &format!("org_{}", n % 30), &format!("Name {n}")))
    };
    for round in 0..4 {
        deliver_all(&app, events(round * 60)).await;
    }
    app.execute("alter table organization_metadata alter column slug type varchar(100), alter column id type varchar(100)")
        .await;
    deliver_all(&app, events(240)).await;
    assert_applied_at_once(&app).await;
}

/// R26, R35: a trigger of the application's can't get over a column of another type on any server connection that it ran on
/// before, until the pooler is told to make new ones. Its events wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_new_server_connections_mend_is_waited_for() {
    let (pooler, app) = pooled(TestDatabase::new().await, 1).await;
    app.execute(
        "create function watch() returns trigger language plpgsql as $$
         begin
             if new.slug <> old.slug then raise 'renamed'; end if;
             return new;
         end $$;
         create trigger watch before update on organization_metadata for each row execute function watch()",
    )
    .await;
    let events =
        |from: u64| (from..from + 10).map(|n| updated(n, &format!("org_{}", n % 5), "Acme"));
    for round in 0..2 {
        deliver_all(&app, events(round * 10)).await;
    }
    app.execute("alter table organization_metadata alter column slug type varchar(100)")
        .await;
    deliver_all(&app, events(20)).await;
    let standing: Vec<(String, Option<String>)> = sqlx::query_as(
        "select distinct status, last_error from webhook_events where status <> 'processed'",
    )
    .fetch_all(&app.db.pool)
    .await
    .unwrap();
    assert!(!standing.is_empty(), "the trigger got over it");
    assert!(
        standing.iter().all(|(status, _)| status != "dead"),
        "{standing:?}"
    );

    pooler.reconnect();
    app.clock.advance(TimeDelta::seconds(301));
    eventually("all are applied", async || {
        app.settle().await;
        let waiting: i64 =
            sqlx::query_scalar("select count(*) from webhook_events where status <> 'processed'")
                .fetch_one(&app.db.pool)
                .await
                .unwrap();
        waiting == 0
    })
    .await;
}

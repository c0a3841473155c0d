//! A database for each test.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool};
use workos_sync::entities::organization::schema;

use super::server::server;

/// A database of its own; removed when dropped, unless the test failed.
#[derive(Debug)]
pub(crate) struct TestDatabase {
    /// Where it is.
    pub(crate) options: PgConnectOptions,
    /// As the service would be given it.
    pub(crate) url: String,
    /// For the test's own statements: not the service's pool, so that it can hold transactions open.
    pub(crate) pool: PgPool,
    admin: Option<PgConnectOptions>,
    name: String,
}

impl TestDatabase {
    /// One with our schema.
    pub(crate) async fn new() -> Self {
        let database = Self::empty().await;
        database.migrate().await;
        database
    }

    /// Makes our schema, beside whatever table the test has made.
    pub(crate) async fn migrate(&self) {
        let schema = schema::bring_up_to_date(&self.options, None).await.unwrap();
        assert!(schema.table.is_usable(), "{:?}", schema.table.findings);
    }

    /// One with nothing in it.
    pub(crate) async fn empty() -> Self {
        Self::made("").await
    }

    /// The same, made in some way, as CREATE DATABASE takes it.
    pub(crate) async fn made(how: &str) -> Self {
        let server = server().await;
        let admin: PgConnectOptions = server.url.parse().unwrap();
        let name = format!("workos_sync_test_{}", uuid::Uuid::new_v4().simple());
        let mut connection = admin.connect().await.unwrap();
        // The name is ours.
        connection
            .execute(AssertSqlSafe(format!("create database {name} {how}")))
            .await
            .unwrap();
        connection.close().await.unwrap();
        let mut url = url::Url::parse(&server.url).unwrap();
        url.set_path(&name);
        let options = admin.clone().database(&name);
        Self {
            pool: PgPoolOptions::new()
                .max_connections(10)
                .connect_lazy_with(with_our_tables(&options)),
            options,
            url: url.into(),
            admin: server.lasting.then_some(admin),
            name,
        }
    }

    /// A connection outside every pool, past a proxy that the service may have.
    pub(crate) async fn connect(&self) -> PgConnection {
        let options: PgConnectOptions = self.url.parse().unwrap();
        with_our_tables(&options).connect().await.unwrap()
    }

    /// How many sessions wait for a lock: how a test knows that the service is blocked where it should be.
    pub(crate) async fn blocked_sessions(&self) -> i64 {
        sqlx::query_scalar(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }
}

/// Tests name our tables without their schema. The service, whose options these are not, never does.
fn with_our_tables(options: &PgConnectOptions) -> PgConnectOptions {
    options
        .clone()
        .options([("search_path", "public,workos_sync")])
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // A throw-away server takes its databases with it; a failed test's is kept for inspection.
        let Some(admin) = self.admin.take().filter(|_| !std::thread::panicking()) else {
            return;
        };
        let statement = format!("drop database if exists {} with (force)", self.name);
        // On a thread and a runtime of its own: this one may be about to end.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut connection = admin.connect().await?;
                connection.execute(AssertSqlSafe(statement)).await?;
                connection.close().await
            })?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
        assert!(
            matches!(dropped.join(), Ok(Ok(()))),
            "database {} can't be dropped",
            self.name
        );
    }
}

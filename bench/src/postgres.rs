//! A Postgres of the benchmark's own, with Postgres's own defaults: `fsync` and `synchronous_commit` are on,
//! and nothing is tuned. What is compared are programs on one and the same server.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use private_postgres::{Options, Temporary};
use secrecy::ExposeSecret;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::process::{self, Usage};

/// A running server; dropped, it stops and its data goes.
#[derive(Debug)]
pub(crate) struct Postgres(Temporary);

impl Postgres {
    /// Makes a cluster in a new directory in `parent`, and starts it.
    pub(crate) async fn start(parent: &Path) -> anyhow::Result<Self> {
        let options = Options {
            bin_dir: std::env::var_os("PG_BIN_DIR").map(Into::into),
            ..Options::default()
        };
        let server = Temporary::start(parent, &options).await?;
        // As root, it would be elsewhere, on another disk maybe.
        ensure!(
            server.pgdata().starts_with(parent.canonicalize()?),
            "{} isn't open to the user postgres",
            parent.display()
        );
        Ok(Self(server))
    }

    /// A client program that came with the server.
    pub(crate) fn client(&self, program: &str) -> tokio::process::Command {
        tokio::process::Command::new(self.0.program(program))
    }

    /// The address of a database of this server.
    pub(crate) fn url(&self, database: &str) -> String {
        self.0.url_of(database).expose_secret().to_owned()
    }

    /// A database to watch and check by.
    pub(crate) async fn connect(&self, database: &str) -> anyhow::Result<PgPool> {
        let pool = PgPoolOptions::new().max_connections(4);
        Ok(pool.connect(&self.url(database)).await?)
    }

    /// A new, empty database, in place of one of this name.
    pub(crate) async fn create_database(&self, database: &str) -> anyhow::Result<()> {
        let admin = self.connect("postgres").await?;
        for statement in [
            format!("drop database if exists {database} with (force)"),
            format!("create database {database}"),
        ] {
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&admin)
                .await?;
        }
        admin.close().await;
        Ok(())
    }

    pub(crate) async fn has_database(&self, database: &str) -> anyhow::Result<bool> {
        let admin = self.connect("postgres").await?;
        let there =
            sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
                .bind(database)
                .fetch_one(&admin)
                .await?;
        admin.close().await;
        Ok(there)
    }

    pub(crate) async fn drop_database(&self, database: &str) -> anyhow::Result<()> {
        let admin = self.connect("postgres").await?;
        let statement = format!("drop database if exists {database} with (force)");
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&admin)
            .await?;
        admin.close().await;
        Ok(())
    }

    /// What the server has used since its start: of the postmaster, of the processes that it has outlived, and
    /// of those that live.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        process::usage_of_family(self.0.pid().context("Postgres is down")?)
    }

    pub(crate) fn version(&self) -> anyhow::Result<String> {
        process::first_line(Command::new(self.0.program("postgres")).arg("--version"))
    }
}

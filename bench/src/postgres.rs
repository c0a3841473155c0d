//! A Postgres of the benchmark's own, with Postgres's own defaults: `fsync` and `synchronous_commit` are on,
//! and nothing is tuned. What is compared are programs on one and the same server.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tempfile::TempDir;

use crate::process::{self, Usage};

/// A running cluster; dropped, it stops and its folder goes.
#[derive(Debug)]
pub(crate) struct Postgres {
    bin: PathBuf,
    port: u16,
    as_postgres: bool,
    // Removed after the server has been stopped in `drop`.
    folder: TempDir,
}

impl Postgres {
    /// Makes a cluster in a new folder in `parent`, and starts it.
    pub(crate) fn start(parent: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("workos-sync-bench-")
            .tempdir_in(parent)?;
        let this = Self {
            bin: find_binaries()?,
            port: free_port()?,
            as_postgres: is_root()?,
            folder,
        };
        if this.as_postgres {
            // Postgres refuses root.
            run(Command::new("chown")
                .arg("postgres")
                .arg(this.folder.path()))?;
        }
        run(this.command("initdb").arg("-D").arg(this.data()).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]))?;
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''",
            this.port
        );
        run(this
            .command("pg_ctl")
            .arg("-D")
            .arg(this.data())
            .arg("-l")
            .arg(this.folder.path().join("log"))
            .args(["-w", "-t", "60", "start", "-o", &options]))
        .with_context(|| {
            std::fs::read_to_string(this.folder.path().join("log")).unwrap_or_default()
        })?;
        Ok(this)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// In a process group of its own: Ctrl-C reaches the benchmark alone, which then stops the server.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = if self.as_postgres {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.process_group(0).current_dir("/");
        command
    }

    /// A client program of the server's folder.
    pub(crate) fn client(&self, program: &str) -> tokio::process::Command {
        tokio::process::Command::new(self.bin.join(program))
    }

    /// The address of a database of this server.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// A database to watch and check by.
    pub(crate) async fn connect(&self, database: &str) -> anyhow::Result<PgPool> {
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("postgres")
            .database(database);
        Ok(PgPoolOptions::new()
            .max_connections(4)
            .connect_with(options)
            .await?)
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
        let pid = std::fs::read_to_string(self.data().join("postmaster.pid"))?;
        let pid = pid.lines().next().context("an empty postmaster.pid")?;
        process::usage_of_family(pid.parse()?)
    }

    pub(crate) fn version(&self) -> anyhow::Result<String> {
        process::first_line(Command::new(self.bin.join("postgres")).arg("--version"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = self.command("pg_ctl");
        stop.arg("-D").arg(self.data());
        // Nothing of it is kept, so nothing has to be written.
        stop.args(["-m", "immediate", "-w", "-t", "60", "stop"]);
        if let Err(error) = run(&mut stop) {
            eprintln!("Postgres could not be stopped: {error:#}");
        }
    }
}

/// `PG_BIN_DIR`, else `PATH`, else where Debian keeps them, the newest first: as the service does.
fn find_binaries() -> anyhow::Result<PathBuf> {
    let has_server = |folder: &PathBuf| folder.join("initdb").is_file();
    if let Some(folder) = std::env::var_os("PG_BIN_DIR").filter(|folder| !folder.is_empty()) {
        let folder = PathBuf::from(folder);
        ensure!(
            has_server(&folder),
            "PG_BIN_DIR: no initdb in {}",
            folder.display()
        );
        return Ok(folder);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(folder) = std::env::split_paths(&path).find(has_server) {
        // A link to a server's program says where the others are, pgbench among them.
        let initdb = folder.join("initdb").canonicalize()?;
        return Ok(initdb.parent().map_or(folder, Path::to_path_buf));
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, folder)| has_server(folder))
        .collect();
    versions.sort();
    match versions.pop() {
        Some((_, folder)) => Ok(folder),
        None => bail!("Postgres's server programs aren't installed; PG_BIN_DIR names their folder"),
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn is_root() -> anyhow::Result<bool> {
    Ok(process::first_line(Command::new("id").arg("-u"))? == "0")
}

/// Runs a program to its end. What it prints is shown only when it fails; to a file and not a pipe, which a
/// server that it leaves behind would hold open.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = tempfile::NamedTempFile::new()?;
    let status = command
        .stdin(Stdio::null())
        .stdout(output.reopen()?)
        .stderr(output.reopen()?)
        .status()
        .with_context(|| format!("{}", command.get_program().display()))?;
    ensure!(
        status.success(),
        "{}: {status}\n{}",
        command.get_program().display(),
        std::fs::read_to_string(output.path())?
    );
    Ok(())
}

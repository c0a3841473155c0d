//! A Postgres cluster that can be stopped in the middle of everything and started again, on the same port and data.
//! It is durable, as a production server is: what it has committed must be there afterwards.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tempfile::TempDir;
use tokio::sync::Mutex;
use workos_sync::entities::organization::schema;

use crate::{eventually, retry};

/// How each server is set.
///
/// Connections of replicas, of those that were killed a moment ago, and of the tests. By default, a commit is answered long
/// before it is durable: the service is to say otherwise (R23).
const SETTINGS: &str = "-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=300 \
    -c synchronous_commit=off -c wal_writer_delay=10s";

/// What a standby is called by its primary.
const STANDBY: &str = "standby";

/// What a database of a run is copied from: the schema, and the journal.
const TEMPLATE: &str = "workos_sync_template";

/// A trigger of the application's that takes its time, if it is told to.
const SLOW_TRIGGER: &str = "
create table slowness (seconds float8 not null);
insert into slowness values (0);

create function be_slow() returns trigger language plpgsql as $$
begin
    perform pg_sleep(seconds) from slowness where seconds > 0 and random() < 0.25;
    return new;
end $$;
create trigger slow before insert or update on organization_metadata for each row execute function be_slow();
";

/// Notes in the transaction itself what must never be committed. A look from outside, however often, would miss
/// what is put right a moment later.
const JOURNAL: &str = r#"
create table violations (what text not null);

create function watch_organization() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        insert into violations values (format('row %s was deleted', old.id));
        return null;
    end if;
    if new.id <> old.id or new.slug <> old.slug then
        insert into violations values (format('row %s (%s) became %s (%s)', old.id, old.slug, new.id, new.slug));
    end if;
    -- What the deletion of one organization set, the relink to another may clear; and what a reconcile found, an event of
    -- the same second.
    if old.disabled_at is not null and new.disabled_at is distinct from old.disabled_at
        and not (new.disabled_at is null and old.workos_last_event_id like 'snapshot\_%')
        and not (new.disabled_at is null and exists
            (select from workos_sync.workos_organization_syncs
             where deleted_at = old.disabled_at and workos_id <> new.workos_id)) then
        insert into violations values (format('row %s was disabled at %s, then %s', old.id, old.disabled_at, new.disabled_at));
    end if;
    -- The id of a snapshot isn't in the order of events.
    if old.workos_last_event_id like 'snapshot\_%' then
        return null;
    end if;
    if new.workos_id = old.workos_id and new.workos_last_event_id collate "C" < old.workos_last_event_id then
        insert into violations values (format('rewound: row %s from %s to %s', old.id, old.workos_last_event_id, new.workos_last_event_id));
    end if;
    -- A deletion that is applied together with the event before it writes its row twice.
    if new.workos_id = old.workos_id and new.workos_last_event_id = old.workos_last_event_id
        and new.disabled_at is not distinct from old.disabled_at then
        insert into violations values (format('doubled: row %s, %s', old.id, new.workos_last_event_id));
    end if;
    return null;
end $$;
create trigger watch after update or delete on organization_metadata
    for each row execute function watch_organization();

create function watch_cursor() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        insert into violations values (format('the cursor of %s was deleted', old.workos_id));
    elsif new.last_event_id collate "C" <= old.last_event_id and old.last_event_id not like 'snapshot\_%' then
        insert into violations values (format('rewound: the cursor of %s from %s to %s', old.workos_id, old.last_event_id, new.last_event_id));
    elsif old.deleted_at is not null and new.deleted_at is null and not old.deletion_is_inferred then
        insert into violations values (format('the deletion of %s was forgotten', old.workos_id));
    end if;
    return null;
end $$;
create trigger watch after update or delete on workos_sync.workos_organization_syncs
    for each row execute function watch_cursor();

create function watch_event() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        insert into violations values (format('lost: %s was deleted', old.event_id));
    -- That a delivery brought it, too, may be noted at any time.
    elsif old.status in ('processed', 'ignored', 'dead') and new.delivered_at is not distinct from old.delivered_at then
        insert into violations values (format('doubled: %s was %s %s already, then %s %s', old.event_id, old.status, old.outcome, new.status, new.outcome));
    end if;
    return null;
end $$;
create trigger watch after update or delete on workos_sync.webhook_events
    for each row execute function watch_event();
"#;

/// Makes the triggers of a run in a database that has our schema.
pub(crate) async fn watch(database: &PgConnectOptions) -> Result<()> {
    let mut connection = database.connect().await?;
    sqlx::raw_sql(SLOW_TRIGGER).execute(&mut connection).await?;
    sqlx::raw_sql(JOURNAL).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// A running cluster; dropped, it is stopped and its folder goes.
#[derive(Debug)]
pub(crate) struct Cluster {
    bin: PathBuf,
    pub(crate) port: u16,
    as_postgres: bool,
    /// Held while the server is down: two faults don't stop it twice.
    restarting: Mutex<()>,
    /// Ends the server if this process is killed: it waits on a pipe that only this process holds.
    _watchdog: std::process::Child,
    // Removed after the server has been stopped in `drop`.
    folder: TempDir,
    // Unmounted after that.
    disk: Option<Disk>,
}

impl Cluster {
    /// Makes a cluster, starts it, and prepares what databases are made from.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_on(None).await
    }

    /// The same on a small disk of its own.
    pub(crate) async fn start_on(disk: Option<Disk>) -> Result<Self> {
        let this = Self::new(disk).await?;
        let mut initdb = this.command("initdb");
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8"]);
        initdb.args(["--locale=C", "--no-sync"]);
        output(&mut initdb).await?;
        this.launch().await?;

        this.administer(format!("create database {TEMPLATE}"))
            .await?;
        let template = this.options(TEMPLATE);
        schema::bring_up_to_date(&template, None).await?;
        watch(&template).await?;
        Ok(this)
    }

    /// Makes a standby of this cluster, which streams from a port that leads to it.
    pub(crate) async fn standby(&self, port: u16) -> Result<Self> {
        let this = Self::new(None).await?;
        // In the clear, as the proxy wants it.
        let primary = format!(
            "host=127.0.0.1 port={port} user=postgres application_name={STANDBY} sslmode=disable gssencmode=disable"
        );
        let mut backup = this.command("pg_basebackup");
        backup.args(["-R", "-c", "fast", "--no-sync", "-d", &primary, "-D"]);
        output(backup.arg(this.data())).await?;
        this.launch().await?;
        eventually("the standby streams", async || {
            self.standbys_that("state = 'streaming'").await
        })
        .await?;
        Ok(this)
    }

    /// Has commits wait for the standby.
    pub(crate) async fn wait_for_the_standby(&self) -> Result<()> {
        self.set(&format!("synchronous_standby_names = {STANDBY}"))
            .await?;
        eventually("commits wait for the standby", async || {
            self.standbys_that("sync_state = 'sync'").await
        })
        .await
    }

    async fn standbys_that(&self, condition: &str) -> bool {
        let ask = async {
            let mut admin = self.options("postgres").connect().await?;
            let statement = format!("select from pg_stat_replication where {condition}");
            let found = sqlx::raw_sql(AssertSqlSafe(statement))
                .fetch_all(&mut admin)
                .await?;
            anyhow::Ok(!found.is_empty())
        };
        ask.await.unwrap_or(false)
    }

    /// Makes a primary of a standby.
    pub(crate) async fn promote(&self) -> Result<()> {
        output(self.command("pg_ctl").args(["promote", "-s", "-w"])).await?;
        Ok(())
    }

    /// A folder for one, and a port.
    async fn new(disk: Option<Disk>) -> Result<Self> {
        let parent = disk
            .as_ref()
            .map_or_else(std::env::temp_dir, |disk| disk.0.clone());
        let folder = tempfile::Builder::new()
            .prefix("workos-sync-faults-")
            .tempdir_in(parent)?;
        let this = Self {
            bin: find_binaries()?,
            port: free_port()?,
            as_postgres: output(Command::new("id").arg("-u")).await? == "0",
            restarting: Mutex::new(()),
            _watchdog: watchdog(&folder.path().join("data"), folder.path())?,
            folder,
            disk,
        };
        if this.as_postgres {
            // Postgres refuses root.
            output(
                Command::new("chown")
                    .arg("postgres")
                    .arg(this.folder.path()),
            )
            .await?;
        }
        Ok(this)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The disk that it has for itself.
    pub(crate) fn disk(&self) -> Option<&Path> {
        self.disk.as_ref().map(|disk| &*disk.0)
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// In a process group of its own: Ctrl-C reaches the tests alone, which then stop the server.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = if self.as_postgres {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .process_group(0)
            .current_dir("/")
            .env("PGDATA", self.data());
        command
    }

    async fn launch(&self) -> Result<()> {
        let settings = format!("-p {} {SETTINGS}", self.port);
        let mut start = self.command("pg_ctl");
        start.args(["start", "-s", "-w", "-t", "120", "-o", &settings, "-l"]);
        let status = tokio::process::Command::from({
            start
                .arg(self.log())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            start
        })
        .status()
        .await?;
        ensure!(
            status.success(),
            "Postgres did not start\n{}",
            std::fs::read_to_string(self.log()).unwrap_or_default()
        );
        Ok(())
    }

    /// Stops the server as a crash would, and starts it again after a while.
    pub(crate) async fn crash(&self, down: Duration) -> Result<()> {
        let _alone = self.restarting.lock().await;
        self.kill().await?;
        tokio::time::sleep(down).await;
        self.launch().await
    }

    /// Stops the server as a crash would: `pg_ctl` sends SIGQUIT.
    pub(crate) async fn kill(&self) -> Result<()> {
        let mut stop = self.command("pg_ctl");
        output(stop.args(["stop", "-s", "-w", "-m", "immediate"])).await?;
        Ok(())
    }

    /// Changes a setting of the whole server, which every session follows at once.
    pub(crate) async fn set(&self, setting: &str) -> Result<()> {
        self.administer(format!("alter system set {setting}"))
            .await?;
        self.administer("select pg_reload_conf()".to_owned()).await
    }

    /// Starts the server if it stopped by itself, as one does that can't write.
    pub(crate) async fn start_if_down(&self) -> Result<()> {
        let _alone = self.restarting.lock().await;
        if output(self.command("pg_ctl").arg("status")).await.is_err() {
            self.launch().await?;
        }
        Ok(())
    }

    /// Has every session only read, also those that are there already; or write again.
    pub(crate) async fn only_read(&self, only_read: bool) -> Result<()> {
        self.set(&format!("default_transaction_read_only = {only_read}"))
            .await
    }

    /// Kills a backend of a database by SIGKILL: the server ends all others, and recovers.
    pub(crate) async fn kill_backend(&self, database: &str) -> Result<()> {
        let _alone = self.restarting.lock().await;
        let pid: Option<i32> = retry(|| async {
            let mut admin = self.options("postgres").connect().await?;
            sqlx::query_scalar(
                "select pid from pg_stat_activity
                 where datname = $1 and application_name = 'workos-sync'
                 order by state = 'active' desc limit 1",
            )
            .bind(database)
            .fetch_optional(&mut admin)
            .await
        })
        .await?;
        if let Some(pid) = pid {
            // It may have ended by itself meanwhile.
            let _ = crate::signal(pid.unsigned_abs(), "KILL").await;
        }
        Ok(())
    }

    /// How to connect to a database, past every proxy.
    pub(crate) fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("postgres")
            .database(database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// Makes a database with our schema and the journal.
    pub(crate) async fn create_database(&self, name: &str) -> Result<()> {
        self.administer(format!("drop database if exists {name} with (force)"))
            .await?;
        self.administer(format!("create database {name} template {TEMPLATE}"))
            .await
    }

    pub(crate) async fn drop_database(&self, name: &str) -> Result<()> {
        self.administer(format!("drop database if exists {name} with (force)"))
            .await
    }

    /// A statement of an administrator's, once the server takes it.
    async fn administer(&self, statement: String) -> Result<()> {
        retry(|| async {
            let mut admin = self.options("postgres").connect().await?;
            admin.execute(AssertSqlSafe(statement.clone())).await?;
            admin.close().await
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut stop = self.command("pg_ctl");
        // Nothing of it is kept, so nothing has to be written. It may be down.
        let _ = stop.args(["stop", "-s", "-w", "-m", "immediate"]).output();
    }
}

/// A small disk; dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// Mounts one, which takes root and a kernel that lets it.
    pub(crate) fn mount() -> Result<Self> {
        let path = tempfile::tempdir()?.keep();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=180m,mode=755", "tmpfs"])
            .arg(&path)
            .output()?;
        if !mounted.status.success() {
            std::fs::remove_dir(&path)?;
            anyhow::bail!("{}", String::from_utf8_lossy(&mounted.stderr).trim());
        }
        Ok(Self(path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, should anybody still be in there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A shell that waits for this process to end, or for its own handle to be dropped, then stops the server of a data
/// directory, if it is there, and removes a folder.
pub(crate) fn watchdog(data: &Path, folder: &Path) -> Result<std::process::Child> {
    let script = r#"trap '' INT TERM HUP
        cat >/dev/null
        kill -QUIT "$(head -n 1 "$1/postmaster.pid")"
        while [ -e "$1/postmaster.pid" ]; do sleep 0.1; done
        rm -rf "$2""#;
    Ok(Command::new("sh")
        .args(["-c", script, "sh"])
        .args([data, folder])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?)
}

/// Ports that nothing but a listener gets: outside the range from which the kernel serves outgoing connections. While
/// a replica or a server is down, nobody else sits down on its port.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 15_000 + u16::try_from(std::process::id() % 10_000)?;
    for _ in 0..5_000 {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 5_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port from {start} on")
}

/// What a command printed; an error with it if the command failed.
async fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let mut owned = Command::new(command.get_program());
    owned.args(command.get_args());
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            owned.env(key, value);
        }
    }
    owned.process_group(0).current_dir("/");
    let output = tokio::process::Command::from(owned).output().await?;
    ensure!(
        output.status.success(),
        "{name}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `PG_BIN_DIR`, else `PATH`, else where Debian keeps them, the newest first: as the service does.
fn find_binaries() -> Result<PathBuf> {
    let has_server = |folder: &PathBuf| folder.join("initdb").is_file();
    if let Some(folder) = std::env::var_os("PG_BIN_DIR").filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(folder) = std::env::split_paths(&path).find(has_server) {
        // What is linked there may be only some of the programs.
        let initdb = folder.join("initdb").canonicalize()?;
        return Ok(initdb.parent().unwrap_or(&folder).to_owned());
    }
    std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, folder)| has_server(folder))
        .max()
        .map(|(_, folder)| folder)
        .context("no Postgres server programs: install `postgresql`, or set PG_BIN_DIR")
}

//! A Postgres cluster that can be stopped in the middle of everything and started again, on the same port and data.
//! It is durable, as a production server is: what it has committed must be there afterwards.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use private_postgres::{Options, Temporary};
use secrecy::ExposeSecret;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::sync::Mutex;
use url::Url;
use workos_sync::entities::organization::schema;

use crate::{eventually, retry};

/// How each server is set.
///
/// Connections of replicas, of those that were killed a moment ago, and of the tests. By default, a commit is answered long
/// before it is durable: the service is to say otherwise (R23).
const SETTINGS: &[&str] = &[
    "max_connections=300",
    "synchronous_commit=off",
    "wal_writer_delay=10s",
];

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

/// A running cluster; dropped, it is stopped and its data goes.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Locked while the server is down: two faults don't stop it twice.
    server: Mutex<Temporary>,
    pub(crate) port: u16,
    url: Url,
    log: PathBuf,
    // Unmounted after the server has been stopped.
    disk: Option<Disk>,
}

impl Cluster {
    /// Makes a cluster, starts it, and prepares what databases are made from.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_on(None).await
    }

    /// The same on a small disk of its own.
    pub(crate) async fn start_on(disk: Option<Disk>) -> Result<Self> {
        let parent = disk.as_ref().map(|disk| disk.0.clone());
        let parent = parent.unwrap_or_else(std::env::temp_dir);
        let server = Temporary::start(&parent, &options()).await?;
        let this = Self::new(server, disk)?;

        this.administer(format!("create database {TEMPLATE}"))
            .await?;
        let template = this.options(TEMPLATE);
        schema::bring_up_to_date(&template, None).await?;
        watch(&template).await?;
        Ok(this)
    }

    fn new(server: Temporary, disk: Option<Disk>) -> Result<Self> {
        Ok(Self {
            port: server.port(),
            url: Url::parse(server.url().expose_secret())?,
            log: server.log(),
            server: Mutex::new(server),
            disk,
        })
    }

    /// Makes a standby of this cluster, which streams from a port that leads to it.
    pub(crate) async fn standby(&self, port: u16) -> Result<Self> {
        let data_dir = std::env::temp_dir().join(format!("{STANDBY}-{}", uuid::Uuid::new_v4()));
        self.copy(port, &data_dir).await?;
        let this = Self::new(Temporary::start_on(data_dir, &options()).await?, None)?;
        eventually("the standby streams", async || {
            self.standbys_that("state = 'streaming'").await
        })
        .await?;
        Ok(this)
    }

    /// Makes the data directory of a standby.
    async fn copy(&self, port: u16, data_dir: &Path) -> Result<()> {
        let server = self.server.lock().await;
        let (password, pgdata) = (data_dir.join("password"), data_dir.join("postgres"));
        // Postgres may pass, whoever runs it.
        DirBuilder::new().mode(0o711).create(data_dir)?;
        fs::copy(server.data_dir().join("password"), password)?;
        DirBuilder::new().mode(0o700).create(&pgdata)?;
        let owner = fs::metadata(server.pgdata())?;
        chown(&pgdata, Some(owner.uid()), Some(owner.gid()))?;
        let primary = format!(
            "{}&application_name={STANDBY}&gssencmode=disable",
            self.url_by(port, "postgres")
        );
        let mut backup = server.command("pg_basebackup");
        backup.args(["-R", "-c", "fast", "--no-sync", "-d", &primary, "-D"]);
        let output = tokio::process::Command::from({
            backup.arg(pgdata);
            backup
        })
        .output()
        .await?;
        ensure!(
            output.status.success(),
            "pg_basebackup: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
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
        self.administer("select pg_promote()".to_owned()).await
    }

    /// The disk that it has for itself.
    pub(crate) fn disk(&self) -> Option<&Path> {
        self.disk.as_ref().map(|disk| &*disk.0)
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Stops the server as a crash would, and starts it again after a while.
    pub(crate) async fn crash(&self, down: Duration) -> Result<()> {
        let mut server = self.server.lock().await;
        server.crash().await?;
        tokio::time::sleep(down).await;
        Ok(server.start_if_down().await?)
    }

    /// Stops the server as a crash would.
    pub(crate) async fn kill(&self) -> Result<()> {
        Ok(self.server.lock().await.crash().await?)
    }

    /// Changes a setting of the whole server, which every session follows at once.
    pub(crate) async fn set(&self, setting: &str) -> Result<()> {
        self.administer(format!("alter system set {setting}"))
            .await?;
        self.administer("select pg_reload_conf()".to_owned()).await
    }

    /// Starts the server if it stopped by itself, as one does that can't write.
    pub(crate) async fn start_if_down(&self) -> Result<()> {
        Ok(self.server.lock().await.start_if_down().await?)
    }

    /// Has every session only read, also those that are there already; or write again.
    pub(crate) async fn only_read(&self, only_read: bool) -> Result<()> {
        self.set(&format!("default_transaction_read_only = {only_read}"))
            .await
    }

    /// Kills a backend of a database by SIGKILL: the server ends all others, and recovers.
    pub(crate) async fn kill_backend(&self, database: &str) -> Result<()> {
        let _alone = self.server.lock().await;
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
        let url = self.url_by(self.port, database);
        url.parse().expect("the address of a server of ours")
    }

    /// The address of a database by a port that leads to the server.
    pub(crate) fn url_by(&self, port: u16, database: &str) -> String {
        let mut url = self.url.clone();
        url.set_port(Some(port)).expect("it has a host");
        url.set_path(database);
        url.into()
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

fn options() -> Options {
    Options {
        bin_dir: std::env::var_os("PG_BIN_DIR").map(Into::into),
        settings: SETTINGS,
        ..Options::default()
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

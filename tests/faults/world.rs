//! One run's world: a database, replicas that reach it through a proxy, a WorkOS environment, and a sender between
//! them.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use fastrand::Rng;
use private_postgres::Watchdog;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgPool};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::{self, Cluster};
use crate::pooler::Pooler;
use crate::proxy::Proxy;
use crate::replica::{Replica, Settings};
use crate::report::{AMBUSHED, Report};
use crate::sender::{Habits, Sender};
use crate::workos::{CONSTRAINT, Giver, Kind, REFUSED, Workos, customer};
use crate::{POLL, oracle, retry, signal};

/// How long events may take to be settled when nothing is in their way any more: an event that failed in each of
/// the faults waits for its next attempt.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// How many connections the pooler has to the database.
const POOLED: usize = 4;

/// How long `external_id`s may take to be written: what a killed replica had in hand is leased to it for a minute.
const PUSHED_WITHIN: Duration = Duration::from_secs(180);

/// How far a clock is ahead that is wrong: longer than any lease and any pause.
const AN_HOUR: Duration = Duration::from_secs(3_600);

/// What a world is made of.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) replicas: usize,
    pub(crate) connections: u32,
    /// The first one runs a private Postgres, and is the only one.
    pub(crate) private: bool,
    /// The one that reaches the database through a pooler in transaction mode, if there is one.
    pub(crate) pooled: Option<usize>,
    /// The one whose clock is an hour ahead, if there is one.
    pub(crate) ahead: Option<usize>,
    pub(crate) habits: Habits,
    pub(crate) seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            replicas: 2,
            connections: 10,
            private: false,
            pooled: None,
            ahead: None,
            habits: Habits {
                connections: 24,
                window: Duration::from_millis(400),
                duplicates: 0.1,
                lost: 0.0,
            },
            seed: 1,
        }
    }
}

/// A world; its processes end with it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) database: String,
    /// Past the proxy.
    pub(crate) pool: PgPool,
    pub(crate) proxy: Proxy,
    pub(crate) pooler: Pooler,
    pub(crate) workos: Workos,
    pub(crate) replicas: Vec<Arc<Replica>>,
    pub(crate) sender: Arc<Sender>,
    pub(crate) report: Arc<Report>,
    /// What the run is, for whoever reads of its failure.
    pub(crate) about: String,
    _tasks: JoinSet<()>,
    private: Option<Private>,
    _folder: TempDir,
}

/// The private Postgres of a replica; stopped when dropped.
#[derive(Debug)]
struct Private {
    /// Its data directory, which is another one after none of its ends.
    data: PathBuf,
    _watchdog: Watchdog,
}

impl Private {
    /// Finds that of a replica which runs in a folder; says how to connect to it.
    fn find(folder: &Path) -> Result<(Self, PgConnectOptions)> {
        let of_the_service = folder.join(".workos-sync");
        let url = std::fs::read_to_string(of_the_service.join("database_url"))?;
        // As root, it may be a link to where Postgres can go.
        let data = of_the_service.join("postgres").canonicalize()?;
        let this = Self {
            _watchdog: Watchdog::over(&data, std::slice::from_ref(&data))?,
            data,
        };
        Ok((this, url.trim().parse()?))
    }
}

impl World {
    pub(crate) async fn start(
        cluster: &Arc<Cluster>,
        report: &Arc<Report>,
        about: String,
        options: Options,
    ) -> Result<Self> {
        let mut rng = Rng::with_seed(options.seed);
        let database = format!("faults_{}", uuid::Uuid::new_v4().simple());
        if !options.private {
            cluster.create_database(&database).await?;
        }
        let direct = cluster.options(&database);
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .connect_lazy_with(direct.clone());
        let proxy = Proxy::start(direct.get_port()).await?;
        // It reaches the database as the others do, by the same network.
        let pooler = Pooler::start(("127.0.0.1".to_owned(), proxy.port), POOLED).await?;
        let (workos, events) = Workos::start(pool.clone()).await?;

        let folder = tempfile::tempdir()?;
        // Whoever runs the private Postgres must be able to come in.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        let mut tasks = JoinSet::new();
        let mut replicas = Vec::new();
        for index in 0..options.replicas {
            let port = if options.pooled == Some(index) {
                pooler.port
            } else {
                proxy.port
            };
            let settings = Settings {
                database_url: (!options.private).then(|| cluster.url_by(port, &database)),
                workos_url: workos.url.clone(),
                connections: options.connections,
                // What is lost is to be found.
                poll: u32::from(options.habits.lost > 0.0),
                ahead: if options.ahead == Some(index) {
                    AN_HOUR
                } else {
                    Duration::ZERO
                },
            };
            let replica = Arc::new(Replica::new(index, folder.path(), settings)?);
            replica.start()?;
            replicas.push(replica);
        }
        for replica in &replicas {
            replica.answers().await?;
            let replica = Arc::clone(replica);
            tasks.spawn(async move { replica.supervise().await });
        }
        let mut private = None;
        if options.private {
            let (found, options) = Private::find(folder.path())?;
            cluster::watch(&options).await?;
            pool.set_connect_options(options);
            private = Some(found);
        }
        let sender = Arc::new(Sender::new(
            replicas.clone(),
            options.habits,
            Arc::clone(report),
        )?);
        tasks.spawn(Arc::clone(&sender).run(events, rng.fork()));
        Ok(Self {
            cluster: Arc::clone(cluster),
            database,
            pool,
            proxy,
            pooler,
            workos,
            replicas,
            sender,
            report: Arc::clone(report),
            about,
            _tasks: tasks,
            private,
            _folder: folder,
        })
    }

    /// The application has a rule of its own for names.
    pub(crate) async fn refuse_names(&self) -> Result<()> {
        self.execute(&format!(
            "alter table organization_metadata add constraint {CONSTRAINT} check (name not like '{REFUSED}%')"
        ))
        .await
    }

    /// Has the application execute a statement, as soon as it can.
    pub(crate) async fn execute(&self, statement: &str) -> Result<()> {
        retry(|| async {
            // A session of its own, for what is set in it.
            let mut session = self.cluster.options(&self.database).connect().await?;
            session.execute(AssertSqlSafe(statement.to_owned())).await?;
            session.close().await
        })
        .await
    }

    /// Asks the database whether something is so, as soon as it can.
    pub(crate) async fn is(&self, question: &'static str) -> Result<bool> {
        retry(|| async { sqlx::query_scalar(question).fetch_one(&self.pool).await }).await
    }

    /// Asks another server from now on.
    pub(crate) fn ask(&self, cluster: &Cluster) {
        self.pool
            .set_connect_options(cluster.options(&self.database));
        while let Some(mut idle) = self.pool.try_acquire() {
            idle.close_on_drop();
        }
    }

    /// Kills the private Postgres.
    pub(crate) async fn kill_private(&self) -> Result<()> {
        let private = self
            .private
            .as_ref()
            .context("there is no private Postgres")?;
        let file = std::fs::read_to_string(private.data.join("postmaster.pid"))?;
        let pid = file.lines().next().unwrap_or_default().trim().parse()?;
        signal(pid, "KILL").await
    }

    /// Holds a snapshot; a new one, should the server go down.
    pub(crate) async fn hold_snapshot(&self) {
        loop {
            let held: Result<(), sqlx::Error> = async {
                let mut session = self.cluster.options(&self.database).connect().await?;
                session
                    .execute("begin isolation level repeatable read")
                    .await?;
                loop {
                    session.execute("select 1").await?;
                    sleep(POLL * 4).await;
                }
            }
            .await;
            drop(held);
            sleep(POLL).await;
        }
    }

    /// Emits changes of organizations at random, evenly over a time. The more organizations, the more of them are
    /// quiet: the lower numbers get most.
    pub(crate) async fn load(
        &self,
        rng: &mut Rng,
        organizations: usize,
        changes: usize,
        window: Duration,
        odd: &[Kind],
    ) {
        let started = Instant::now();
        for change in 0..changes {
            let organization =
                rng.usize(..organizations) * rng.usize(1..=organizations) / organizations;
            self.happen(rng, &workos_id(organization), odd).await;
            let share = f64::from(u32::try_from(change).unwrap_or(0))
                / f64::from(u32::try_from(changes).unwrap_or(1));
            tokio::time::sleep_until(started + window.mul_f64(share)).await;
        }
    }

    /// Something happens to an organization, or to the last one that has its `external_id`.
    async fn happen(&self, rng: &mut Rng, workos_id: &str, odd: &[Kind]) {
        let name = name(rng);
        match self.workos.organization(workos_id) {
            None => {
                let giver = match rng.u8(..12) {
                    0..4 => Giver::Application,
                    4 => Giver::Stranger,
                    _ => Giver::Nobody,
                };
                // Most signup flows make the row first.
                let makes_row = giver == Giver::Application && rng.u8(..3) > 0;
                if makes_row && self.make_row(workos_id).await.is_err() {
                    // The signup failed, and WorkOS doesn't hear of it.
                    return;
                }
                self.workos.create(workos_id, &name, giver);
                // So short a life that the deletion may come first.
                if rng.u8(..5) == 0 {
                    self.workos.change(Kind::Deleted, workos_id, &name);
                }
            }
            Some(known) => match known.successor {
                Some(successor) => Box::pin(self.happen(rng, &successor, odd)).await,
                // Few come back.
                None if known.deleted => {
                    if known.giver == Giver::Application && rng.u8(..8) == 0 {
                        let successor = workos_id_of(rng.u128(..));
                        self.workos.succeed(workos_id, &successor, &name);
                    }
                }
                None => {
                    let kind = match rng.u8(..100) {
                        0..2 => Kind::Deleted,
                        2..8 => Kind::Unhandled,
                        8..14 if !odd.is_empty() => odd[rng.usize(..odd.len())],
                        _ => Kind::Updated,
                    };
                    self.workos.change(kind, workos_id, &name);
                }
            },
        }
    }

    /// The application makes the row of an organization that is to come.
    async fn make_row(&self, workos_id: &str) -> Result<(), sqlx::Error> {
        let id = customer(workos_id);
        // An INSERT whose answer got lost may have happened.
        let statement =
            "insert into organization_metadata (id, name, slug) values ($1, 'Local', $2)
                         on conflict do nothing";
        sqlx::query(statement)
            .bind(&id)
            .bind(id.to_lowercase().replace('_', "-"))
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// How many events wait.
    pub(crate) async fn unsettled(&self) -> Result<i64> {
        retry(|| async {
            sqlx::query_scalar(
                "select count(*) from workos_sync.webhook_events where status in ('pending', 'failed')",
            )
            .fetch_one(&self.pool)
            .await
        })
        .await
    }

    /// How many of the events that are never delivered weren't found yet.
    async fn missing(&self) -> Result<usize> {
        let history = self.workos.history();
        let lost = history
            .iter()
            .filter(|event| self.sender.is_lost(&event.id));
        let lost: Vec<_> = lost.map(|event| event.id.clone()).collect();
        if lost.is_empty() {
            return Ok(0);
        }
        let found: i64 = retry(|| async {
            sqlx::query_scalar(
                "select count(*) from workos_sync.webhook_events where event_id = any ($1)",
            )
            .bind(&lost)
            .fetch_one(&self.pool)
            .await
        })
        .await?;
        Ok(lost.len() - usize::try_from(found)?)
    }

    async fn pending_pushes(&self) -> Result<i64> {
        retry(|| async {
            sqlx::query_scalar(
                "select count(*) from workos_sync.external_id_pushes where status = 'pending'",
            )
            .fetch_one(&self.pool)
            .await
        })
        .await
    }

    /// Waits until every event is acknowledged and settled.
    pub(crate) async fn settle(&self) -> Result<()> {
        let settled = timeout(SETTLED_WITHIN, async {
            while self.sender.pending() > 0
                || self.missing().await? > 0
                || self.unsettled().await? > 0
            {
                sleep(POLL).await;
            }
            anyhow::Ok(())
        });
        match settled.await {
            Ok(settled) => settled,
            Err(_elapsed) => bail!(
                "never settled: {} deliveries and {:?} events wait, {:?} are missing",
                self.sender.pending(),
                self.unsettled().await,
                self.missing().await,
            ),
        }
    }

    /// Waits until everything is settled and written to WorkOS, then looks for what is wrong.
    pub(crate) async fn verify(&self) -> Result<()> {
        // What is left after a moment is leased to somebody who died: one replica is enough to wait with.
        let give_up = Instant::now() + PUSHED_WITHIN;
        let alone_at = Instant::now() + Duration::from_secs(3);
        let mut alone = false;
        while self.pending_pushes().await? > 0 || self.sender.pending() > 0 {
            ensure!(
                Instant::now() < give_up,
                "never written to WorkOS: {} intentions",
                self.pending_pushes().await?
            );
            if !alone && Instant::now() > alone_at {
                alone = true;
                for replica in &self.replicas[1..] {
                    replica.stop().await?;
                }
            }
            sleep(POLL * 4).await;
        }
        // The last writes come back as events.
        self.settle().await?;

        let history = self.workos.history();
        let organizations = self.workos.organizations();
        let mut wrong = oracle::check(&self.pool, &history, &organizations, |event_id| {
            self.sender.is_acknowledged(event_id) || self.sender.is_lost(event_id)
        })
        .await?;
        wrong.extend(self.workos.violations());
        wrong.extend(self.sender.violations());
        for replica in &self.replicas {
            if std::io::read_to_string(replica.log()?)?.contains("panicked") {
                wrong.push("a replica panicked".to_owned());
            }
            let ended = u64::try_from(replica.ended())?;
            self.report.add("replicas that ended by themselves", ended);
        }
        self.report.add("events", u64::try_from(history.len())?);
        self.report.add(AMBUSHED, self.proxy.caught());
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    /// Verifies, and removes what is left of the run; keeps the database of one that failed.
    pub(crate) async fn finish(self) -> Result<()> {
        let verified = self.verify().await.map_err(|error| self.explain(&error));
        for replica in &self.replicas {
            replica.end();
        }
        verified?;
        self.pool.close().await;
        self.cluster.drop_database(&self.database).await
    }

    /// A failure with all that tells how it came to it.
    pub(crate) fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        let mut text = format!("{error:#}\n{}\n", self.about);
        for (index, replica) in self.replicas.iter().enumerate() {
            let _ = writeln!(text, "--- replica {index}\n{}", replica.tail());
        }
        let _ = writeln!(
            text,
            "--- Postgres\n{}",
            crate::tail(self.cluster.log(), 20)
        );
        anyhow!(text)
    }
}

/// The WorkOS id of an organization of a run.
pub(crate) fn workos_id(organization: usize) -> String {
    workos_id_of(crate::scatter(organization as u64))
}

fn workos_id_of(random: u128) -> String {
    format!("org_{}", ulid::Ulid::from_parts(1_700_000_000_000, random))
}

/// Names that are all alike, so that slugs collide.
fn name(rng: &mut Rng) -> String {
    const NAMES: [&str; 6] = [
        "Acme",
        "Acme, Inc.",
        "Café Zoë",
        "Bob's Bakery",
        "!!!",
        "株式会社",
    ];
    let name = NAMES[rng.usize(..NAMES.len())];
    match rng.u8(..3) {
        0 => name.to_owned(),
        _ => format!("{name} {}", rng.u16(..20)),
    }
}

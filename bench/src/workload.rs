//! The workloads: what is in the database beforehand, what is sent, how it is measured.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, Utc};
use clap::ValueEnum;
use sqlx::pool::PoolConnection;
use sqlx::{Executor, PgPool};
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use ulid::Ulid;

use crate::check;
use crate::events::{Event, Kind, scatter};
use crate::lists;
use crate::load::{self, Answers};
use crate::measure::{Measurement, Metric, quantile};
use crate::postgres::Postgres;
use crate::process::{self, Receiver, Usage};

/// The rows that are there before most workloads.
const ORGANIZATIONS: u64 = 10_000;
/// What the repetitions of `dup` repeat.
const DUPLICATED: usize = 1_000;
/// `same-name` at its usual size.
const SAME_NAME: usize = 10_000;
/// The first applied of `same-name` count for nothing: connections are made, statements prepared.
const WARM_UP: usize = 1_000;
/// The least events of the window at either end of `same-name`.
const WINDOW: usize = 1_000;
/// How many files are replayed at once.
const REPLAYS: usize = 3;
/// The database of `update-1m`.
pub(crate) const MILLION: &str = "bench_million";
/// As many as pgbench may have clients, by default.
pub(crate) const FEW_CONNECTIONS: usize = 64;
/// The numbers of connections that `ack` tries.
const SWEEP: [usize; 2] = [256, 512];
/// Rows of the million's inbox that are made in one statement.
const FILL_CHUNK: i64 = 250_000;
/// Whether the page is open, by turns, in `update-watched`.
const WATCHED: [bool; 4] = [false, true, true, false];
const POLL: Duration = Duration::from_millis(20);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(900);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Workload {
    /// New organizations, each of its own name
    Create,
    /// Updates, spread over 10,000 organizations
    Update,
    /// The same, over 64 connections
    #[value(name = "update-64")]
    UpdateFew,
    /// The same as `update`, with a line in the log for each event
    UpdateLogged,
    /// The same as `update`, while another session holds a transaction open
    UpdateHeld,
    /// The same as `update`, with and without a browser that has the page open
    UpdateWatched,
    /// Updates of one organization
    Hot,
    /// New organizations, all of one name: 10,000
    SameName,
    /// The same: 100,000
    #[value(name = "same-name-100k")]
    SameNameLong,
    /// The same 1,000 events again and again
    Dup,
    /// Updates, over as many connections as are acknowledged fastest
    Ack,
    /// 20,000 updates at once, over 2,000 connections
    Burst,
    /// Updates at half the rate that `update-64` was applied at
    HalfRate,
    /// A file of updates, through `workos-sync replay`
    Replay,
    /// Three files of creations of one name, through `workos-sync replay`, one after the other
    ReplaySerial,
    /// The same, all three at once
    ReplayAtOnce,
    /// Updates, with a million organizations and an inbox of ten million settled events
    #[value(name = "update-1m")]
    UpdateMillion,
    /// The page and the API, asked for every list of theirs, beside the inbox of `update-1m` and 100,000 dead letters
    Lists,
    /// All organizations of WorkOS into an empty table, through `workos-sync backfill`
    Backfill,
    /// The same, as many requests a second as by default
    BackfillBudget,
    /// All organizations of WorkOS, compared with a table that is in step
    Reconcile,
}

impl Workload {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::UpdateFew => "update-64",
            Self::UpdateLogged => "update-logged",
            Self::UpdateHeld => "update-held",
            Self::UpdateWatched => "update-watched",
            Self::Hot => "hot",
            Self::SameName => "same-name",
            Self::SameNameLong => "same-name-100k",
            Self::Dup => "dup",
            Self::Ack => "ack",
            Self::Burst => "burst",
            Self::HalfRate => "half-rate",
            Self::Replay => "replay",
            Self::ReplaySerial => "replay-serial",
            Self::ReplayAtOnce => "replay-at-once",
            Self::UpdateMillion => "update-1m",
            Self::Lists => "lists",
            Self::Backfill => "backfill",
            Self::BackfillBudget => "backfill-budget",
            Self::Reconcile => "reconcile",
        }
    }

    /// What a reader of the table should know of it.
    pub(crate) const fn description(self) -> &'static str {
        match self {
            Self::Create => "new organizations, each of its own name",
            Self::Update => "updates, spread over 10,000 organizations",
            Self::UpdateFew => "the same, over fewer connections",
            Self::UpdateLogged => "as `update`, with a line in the log for each event",
            Self::UpdateHeld => {
                "as `update`, while another session holds a transaction open: nothing can be vacuumed"
            }
            Self::UpdateWatched => {
                "as `update`, while a browser has the page open, which is refreshed every 5 s"
            }
            Self::Hot => "updates of one organization",
            Self::SameName => "new organizations, all of one name",
            Self::SameNameLong => "more of the same",
            Self::Dup => "1,000 updates, delivered again and again",
            Self::Ack => {
                "updates, over 256 and 512 connections: the run that was acknowledged faster"
            }
            Self::Burst => {
                "as many updates at once as there are connections, then the rest of them"
            }
            Self::HalfRate => {
                "updates at half the rate that `update-64` was applied at, over as many connections"
            }
            Self::Replay => "a file of updates, through `workos-sync replay`",
            Self::ReplaySerial => {
                "three files of new organizations, all of one name, replayed one after the other"
            }
            Self::ReplayAtOnce => "the same, all three at once",
            Self::UpdateMillion => {
                "updates, spread over 1,000,000 organizations, with 10,000,000 settled events in the inbox"
            }
            Self::Lists => "the page and the API, asked for every list of theirs",
            Self::Backfill => {
                "`workos-sync backfill` into an empty table, with `WORKOS_API_RPS` lifted and a list that answers at once"
            }
            Self::BackfillBudget => "the same with `WORKOS_API_RPS` as it is by default",
            Self::Reconcile => {
                "`workos-sync reconcile` of a table in step, with `WORKOS_API_RPS` lifted and a list that answers after 10 ms"
            }
        }
    }

    /// Left out of the short form.
    pub(crate) const fn is_long(self) -> bool {
        matches!(
            self,
            Self::UpdateLogged
                | Self::UpdateHeld
                | Self::UpdateWatched
                | Self::SameNameLong
                | Self::ReplaySerial
                | Self::ReplayAtOnce
                | Self::UpdateMillion
                | Self::Lists
                | Self::BackfillBudget
        )
    }

    /// Reads the list of WorkOS, and receives nothing.
    pub(crate) const fn heals(self) -> bool {
        matches!(
            self,
            Self::Backfill | Self::BackfillBudget | Self::Reconcile
        )
    }

    const fn creates(self) -> bool {
        matches!(
            self,
            Self::Create
                | Self::SameName
                | Self::SameNameLong
                | Self::ReplaySerial
                | Self::ReplayAtOnce
        )
    }

    /// `count` events of this workload, from `first` on.
    fn events(self, first: u64, count: usize, organizations: u64) -> Vec<Event> {
        (first..)
            .take(count)
            .map(|number| match self {
                Self::Create => created(number, format!("Organization {number}, Inc.")),
                _ if self.creates() => created(number, "Acme, Inc.".to_owned()),
                Self::Hot => updated(number, 1),
                _ => {
                    let organization = scatter(number) % u128::from(organizations) + 1;
                    updated(number, u64::try_from(organization).unwrap_or(1))
                }
            })
            .collect()
    }
}

/// As if made in the dashboard: without an external id, so that the service records the intention to write one.
fn created(number: u64, name: String) -> Event {
    let id = Ulid::from_parts(1_735_689_600_000 + number, scatter(number));
    Event::new(number, Kind::Created, format!("org_{id}"), name, None)
}

fn updated(number: u64, organization: u64) -> Event {
    let workos_id = format!("org_01SEED{organization:020}");
    let name = format!("Organization {organization} as of {number}");
    Event::new(number, Kind::Updated, workos_id, name, None)
}

/// How large everything is.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    pub(crate) events: usize,
    pub(crate) same_name: usize,
    pub(crate) replay: usize,
    pub(crate) burst: usize,
    pub(crate) peer: usize,
    pub(crate) connections: usize,
    pub(crate) burst_connections: usize,
    pub(crate) million_organizations: u64,
    pub(crate) million_inbox: u64,
    pub(crate) organizations: usize,
}

/// The programs under test, and the server that they are tested on.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) postgres: Postgres,
    pub(crate) binary: PathBuf,
    pub(crate) peer: PathBuf,
    pub(crate) sizes: Sizes,
    /// The next event's number: ascending through the whole run, so that no event is older than one before.
    pub(crate) next_number: u64,
}

impl Bench {
    /// Runs a workload against the service.
    pub(crate) async fn run(
        &mut self,
        workload: Workload,
        rate: Option<f64>,
    ) -> anyhow::Result<Measurement> {
        if workload.heals() {
            return self.heal(workload).await;
        }
        let connections = match workload {
            Workload::Ack => SWEEP.to_vec(),
            Workload::Burst => vec![self.sizes.burst_connections],
            Workload::UpdateFew | Workload::HalfRate => vec![FEW_CONNECTIONS],
            _ => vec![self.sizes.connections],
        };
        let mut best = Measurement::default();
        for connections in connections {
            let measured = self.run_over(workload, connections, rate).await?;
            let acknowledged = Metric::AcknowledgedPerSecond;
            if measured.get(acknowledged) >= best.get(acknowledged) {
                best = measured;
            }
        }
        Ok(best)
    }

    /// Runs a workload over so many connections.
    async fn run_over(
        &mut self,
        workload: Workload,
        connections: usize,
        rate: Option<f64>,
    ) -> anyhow::Result<Measurement> {
        let million = workload == Workload::UpdateMillion;
        let organizations = match workload {
            creates if creates.creates() => 0,
            Workload::UpdateMillion => self.sizes.million_organizations,
            _ => ORGANIZATIONS,
        };
        let database = if million { MILLION } else { "bench" };
        if million {
            self.make_million().await?;
        } else {
            self.prepare(database, organizations).await?;
        }
        let pool = self.postgres.connect(database).await?;
        let before = check::Before::read(&pool).await?;

        let count = match workload {
            Workload::SameName => std::cmp::min(SAME_NAME, self.sizes.same_name),
            Workload::SameNameLong => self.sizes.same_name,
            Workload::Replay => self.sizes.replay,
            Workload::ReplaySerial | Workload::ReplayAtOnce => {
                REPLAYS * std::cmp::min(SAME_NAME, self.sizes.same_name)
            }
            Workload::Burst => self.sizes.burst,
            Workload::Dup => std::cmp::min(DUPLICATED, self.sizes.events),
            // Those that warm it up, and those that are measured.
            Workload::UpdateMillion => 2 * self.sizes.events,
            // Those that are watched, and as many that aren't.
            Workload::UpdateWatched => WATCHED.len() * self.sizes.events,
            _ => self.sizes.events,
        };
        let events = workload.events(self.next_number, count, organizations);
        self.next_number += u64::try_from(count)?;
        let events = with_external_ids(&pool, events).await?;
        settle_down(&pool).await?;

        let (warm_up, counted) = events.split_at(if million { self.sizes.events } else { 0 });
        if !warm_up.is_empty() {
            self.deliver(workload, database, &pool, warm_up, connections, rate)
                .await?;
        }
        let held = match workload {
            Workload::UpdateHeld => Some(hold_a_snapshot(&pool).await?),
            _ => None,
        };
        let costs = Costs::read(&pool).await?;
        let mut measured = match workload {
            Workload::Replay => self.replay(database, &[counted], true).await?,
            Workload::ReplaySerial | Workload::ReplayAtOnce => {
                let files: Vec<_> = counted.chunks(counted.len().div_ceil(REPLAYS)).collect();
                let at_once = workload == Workload::ReplayAtOnce;
                self.replay(database, &files, at_once).await?
            }
            Workload::UpdateWatched => {
                self.deliver_watched(database, &pool, counted, connections)
                    .await?
            }
            _ => {
                self.deliver(workload, database, &pool, counted, connections, rate)
                    .await?
            }
        };
        Costs::read(&pool).await?.since(&costs, &mut measured);
        if let Some(mut held) = held {
            held.execute("rollback").await?;
        }

        check::inbox(&pool, &before, &events).await?;
        let made = events
            .iter()
            .filter(|event| event.kind == Kind::Created)
            .count();
        check::organizations(&pool, &before, &events, made).await?;
        let [p50, p99] = lag(&pool, counted).await?;
        measured.set(Metric::LagP50, p50);
        measured.set(Metric::LagP99, p99);
        if matches!(workload, Workload::SameName | Workload::SameNameLong) {
            measured.set_some(Metric::LastToFirst, last_to_first(&pool, &events).await?);
        }
        pool.close().await;
        if !million {
            self.postgres.drop_database(database).await?;
        }
        Ok(measured)
    }

    /// Runs a workload against the peer, which applies before it answers.
    pub(crate) async fn run_peer(&mut self, workload: Workload) -> anyhow::Result<Measurement> {
        let database = "bench_peer";
        let organizations = if workload.creates() { 0 } else { ORGANIZATIONS };
        self.prepare(database, organizations).await?;
        let pool = self.postgres.connect(database).await?;
        let before = check::Before::read(&pool).await?;
        let events = workload.events(self.next_number, self.sizes.peer, organizations);
        self.next_number += u64::try_from(events.len())?;
        let events = with_external_ids(&pool, events).await?;
        settle_down(&pool).await?;

        let mut command = Command::new("node");
        command.arg(self.peer.join("server.js"));
        let receiver = Receiver::start(command, &self.postgres.url(database)).await?;
        let at_start = self.used(&receiver)?;
        let connections = self.sizes.connections;
        let answers = load::send(receiver.address, &events, events.len(), connections, None)
            .await
            .with_context(|| receiver.log())?;
        let at_end = self.used(&receiver)?;
        receiver.stop().await?;

        let mut measured = Measurement::default();
        acknowledgements(&mut measured, &answers);
        measured.set(
            Metric::AppliedPerSecond,
            per_second(events.len(), answers.elapsed),
        );
        resources(&mut measured, at_start, at_end);
        let made = events
            .iter()
            .filter(|event| event.kind == Kind::Created)
            .count();
        check::organizations(&pool, &before, &events, made).await?;
        pool.close().await;
        self.postgres.drop_database(database).await?;
        Ok(measured)
    }

    /// Runs the same deliveries against the server that verifies, parses and stores nothing.
    pub(crate) async fn run_without_database(&mut self) -> anyhow::Result<Measurement> {
        // It is so much faster that fewer would be over in a blink.
        let count = self.sizes.events * 4;
        let events = Workload::Update.events(self.next_number, self.sizes.events, ORGANIZATIONS);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("verify-server");
        let receiver = Receiver::start(command, "").await?;
        let at_start = self.used(&receiver)?;
        let connections = self.sizes.connections;
        let answers = load::send(receiver.address, &events, count, connections, None).await?;
        let at_end = self.used(&receiver)?;
        receiver.stop().await?;
        let mut measured = Measurement::default();
        acknowledgements(&mut measured, &answers);
        measured.set(
            Metric::CpuService,
            at_end.0.cpu_seconds - at_start.0.cpu_seconds,
        );
        measured.set(Metric::MaxRss, at_end.0.max_rss_mib);
        Ok(measured)
    }

    /// The database of `update-1m`: made once, it serves all repetitions, and `lists`.
    pub(crate) async fn make_million(&self) -> anyhow::Result<()> {
        if self.postgres.has_database(MILLION).await? {
            return Ok(());
        }
        let organizations = self.sizes.million_organizations;
        self.prepare(MILLION, organizations).await?;
        let pool = self.postgres.connect(MILLION).await?;
        fill_inbox(&pool, self.sizes.million_inbox, organizations).await?;
        pool.close().await;
        Ok(())
    }

    /// A new database with the service's schema and so many organizations that WorkOS's events made.
    pub(crate) async fn prepare(&self, database: &str, organizations: u64) -> anyhow::Result<()> {
        self.postgres.create_database(database).await?;
        let folder = tempfile::tempdir()?;
        let mut migrate = Command::new(&self.binary);
        migrate.arg("migrate");
        let status = process::quiet(&mut migrate, folder.path(), &self.postgres.url(database))?
            .status()
            .await
            .with_context(|| format!("{}", self.binary.display()))?;
        ensure!(
            status.success(),
            "migrate: {status}\n{}",
            std::fs::read_to_string(folder.path().join("log"))?
        );
        let pool = self.postgres.connect(database).await?;
        let organizations = i64::try_from(organizations)?;
        sqlx::query(
            "insert into organization_metadata
                 (id, name, slug, workos_id, workos_updated_at, workos_last_event_id)
             select md5(n::text)::uuid::text, 'Organization ' || n, 'organization-' || n,
                    'org_01SEED' || lpad(n::text, 20, '0'), '2025-01-01',
                    'event_01AAAAAAAA' || lpad(n::text, 16, '0')
             from generate_series(1, $1) n",
        )
        .bind(organizations)
        .execute(&pool)
        .await?;
        sqlx::query(
            "insert into workos_sync.workos_organization_syncs
                 (workos_id, last_event_id, last_event_updated_at, updated_at)
             select 'org_01SEED' || lpad(n::text, 20, '0'),
                    'event_01AAAAAAAA' || lpad(n::text, 16, '0'), '2025-01-01', now()
             from generate_series(1, $1) n",
        )
        .bind(organizations)
        .execute(&pool)
        .await?;
        pool.close().await;
        Ok(())
    }

    async fn deliver(
        &self,
        workload: Workload,
        database: &str,
        pool: &PgPool,
        events: &[Event],
        connections: usize,
        rate: Option<f64>,
    ) -> anyhow::Result<Measurement> {
        let count = match workload {
            Workload::Dup => self.sizes.events,
            _ => events.len(),
        };
        let mut command = Command::new(&self.binary);
        command.arg("serve");
        if workload == Workload::UpdateLogged {
            // A flag has precedence over the environment that is the same for all.
            command.args(["--log-level", "info"]);
        }
        let receiver = Receiver::start(command, &self.postgres.url(database)).await?;
        let measured = self
            .deliver_to(&receiver, pool, events, count, connections, rate)
            .await?;
        receiver.stop().await?;
        Ok(measured)
    }

    /// Delivers updates with the page open and without, by turns: what slows the machine down for a while slows both.
    async fn deliver_watched(
        &self,
        database: &str,
        pool: &PgPool,
        events: &[Event],
        connections: usize,
    ) -> anyhow::Result<Measurement> {
        let mut measured = Measurement::default();
        let (mut with, mut without) = (0.0, 0.0);
        let turns = WATCHED.iter().zip(events.chunks(self.sizes.events));
        for (&is_watched, events) in turns {
            let (receiver, page) = self.serve_page(database).await?;
            let delivering =
                self.deliver_to(&receiver, pool, events, events.len(), connections, None);
            let one = if is_watched {
                tokio::select! {
                    one = delivering => one?,
                    ended = lists::watch(page) => match ended? {},
                }
            } else {
                delivering.await?
            };
            receiver.stop().await?;
            let seconds = 1.0 / one.get(Metric::AppliedPerSecond).context("no rate")?;
            if is_watched {
                with += seconds;
                measured = one;
            } else {
                without += seconds;
            }
        }
        measured.set(Metric::WithToWithout, without / with);
        measured.set(Metric::Deliveries, events.len() as f64);
        Ok(measured)
    }

    /// Delivers to a receiver until nothing waits.
    async fn deliver_to(
        &self,
        receiver: &Receiver,
        pool: &PgPool,
        events: &[Event],
        count: usize,
        connections: usize,
        rate: Option<f64>,
    ) -> anyhow::Result<Measurement> {
        let at_start = self.used(receiver)?;
        let answers = load::send(receiver.address, events, count, connections, rate)
            .await
            .with_context(|| receiver.log())?;
        let acknowledged = Instant::now();
        drained(pool).await.with_context(|| receiver.log())?;
        let (applied_in, drained_in) = (answers.started.elapsed(), acknowledged.elapsed());
        let at_end = self.used(receiver)?;

        let repeated = count - events.len();
        ensure!(
            answers.duplicates == repeated,
            "{repeated} deliveries were repetitions, {} were answered as such",
            answers.duplicates
        );
        let mut measured = Measurement::default();
        acknowledgements(&mut measured, &answers);
        measured.set(Metric::Deliveries, count as f64);
        measured.set(Metric::Clients, connections as f64);
        measured.set(Metric::DrainedAfter, drained_in.as_secs_f64());
        // The rate of the repetitions' workload is that of the sender, not of the applying.
        if repeated == 0 {
            measured.set(
                Metric::AppliedPerSecond,
                per_second(events.len(), applied_in),
            );
        }
        resources(&mut measured, at_start, at_end);
        Ok(measured)
    }

    /// Replays files, all at once or one after the other.
    async fn replay(
        &self,
        database: &str,
        files: &[&[Event]],
        at_once: bool,
    ) -> anyhow::Result<Measurement> {
        let folder = tempfile::tempdir()?;
        let mut paths = Vec::new();
        for (number, events) in files.iter().enumerate() {
            let path = folder.path().join(format!("{number}.jsonl"));
            let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
            for event in *events {
                writeln!(file, "{}", event.body())?;
            }
            file.flush()?;
            paths.push(path);
        }

        let postgres_before = self.postgres.usage()?;
        let started = Instant::now();
        let replays = paths.iter().map(|path| self.replay_file(database, path));
        let used = if at_once {
            futures_util::future::try_join_all(replays).await?
        } else {
            let mut used = Vec::new();
            for replay in replays {
                used.push(replay.await?);
            }
            used
        };
        let elapsed = started.elapsed();
        let events = files.iter().map(|events| events.len()).sum();
        let mut measured = Measurement::default();
        measured.set(Metric::Deliveries, events as f64);
        measured.set(Metric::AppliedPerSecond, per_second(events, elapsed));
        let of_all = Usage {
            cpu_seconds: used.iter().map(|used| used.cpu_seconds).sum(),
            max_rss_mib: used.iter().map(|used| used.max_rss_mib).fold(0.0, f64::max),
        };
        resources(
            &mut measured,
            (Usage::default(), postgres_before),
            (of_all, self.postgres.usage()?),
        );
        Ok(measured)
    }

    /// Replays a file, and says what the process used.
    async fn replay_file(&self, database: &str, path: &Path) -> anyhow::Result<Usage> {
        let mut command = Command::new(&self.binary);
        command.arg("replay").arg(path);
        let (used, _) = self.run_to_its_end(command, database, &[]).await?;
        Ok(used)
    }

    /// Runs a command of the service to its good end; says what the process used, and what it said.
    pub(crate) async fn run_to_its_end(
        &self,
        mut command: Command,
        database: &str,
        settings: &[(&str, String)],
    ) -> anyhow::Result<(Usage, String)> {
        let folder = tempfile::tempdir()?;
        let url = self.postgres.url(database);
        let mut child = process::quiet(&mut command, folder.path(), &url)?
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .spawn()?;
        // Its last moments are lost, for a process that has ended has no /proc.
        let mut used = Usage::default();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if let Some(now) = child.id().and_then(|pid| process::usage(pid).ok())
                && now.max_rss_mib > 0.0
            {
                used = now;
            }
            sleep(POLL).await;
        };
        let said = std::fs::read_to_string(folder.path().join("log"))?;
        ensure!(status.success(), "{command:?}: {status}\n{said}");
        Ok((used, said))
    }

    fn used(&self, receiver: &Receiver) -> anyhow::Result<(Usage, Usage)> {
        Ok((receiver.usage()?, self.postgres.usage()?))
    }
}

/// What the server has written so far.
struct Costs {
    wal: f64,
    dead: f64,
}

impl Costs {
    async fn read(pool: &PgPool) -> anyhow::Result<Self> {
        // A backend reports what it did when it is idle, at most once a second; ended ones have reported all.
        sleep(Duration::from_millis(1_100)).await;
        let (wal, dead) = sqlx::query_as(
            "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8,
                    coalesce(sum(n_tup_upd + n_tup_del), 0)::float8
             from pg_stat_user_tables",
        )
        .fetch_one(pool)
        .await?;
        Ok(Self { wal, dead })
    }

    /// Enters what was written since, for each event.
    fn since(&self, before: &Self, measured: &mut Measurement) {
        if let Some(events) = measured.get(Metric::Deliveries) {
            measured.set(Metric::Wal, (self.wal - before.wal) / events);
            measured.set(Metric::DeadRows, (self.dead - before.dead) / events);
        }
    }
}

/// A session with a transaction that keeps every row that is there now from being vacuumed.
async fn hold_a_snapshot(pool: &PgPool) -> anyhow::Result<PoolConnection<sqlx::Postgres>> {
    let mut session = pool.acquire().await?;
    session
        .execute("begin isolation level repeatable read; select count(*) from pg_class")
        .await?;
    Ok(session)
}

/// An update of an organization that is there carries its external id, as WorkOS's do once it was written back.
async fn with_external_ids(pool: &PgPool, mut events: Vec<Event>) -> anyhow::Result<Vec<Event>> {
    let workos_ids: Vec<&str> = events
        .iter()
        .map(|event| event.workos_id.as_str())
        .collect();
    let ids: HashMap<String, String> = sqlx::query_as(
        "select workos_id, id from organization_metadata where workos_id = any ($1::text[])",
    )
    .bind(&workos_ids)
    .fetch_all(pool)
    .await?
    .into_iter()
    .collect();
    for event in &mut events {
        event.external_id = ids.get(&event.workos_id).cloned();
    }
    Ok(events)
}

/// Settled events of the past two months, younger than retention: rows as the service leaves them, with bodies as
/// long as those that are sent.
async fn fill_inbox(pool: &PgPool, events: u64, organizations: u64) -> anyhow::Result<()> {
    let (events, organizations) = (i64::try_from(events)?, i64::try_from(organizations)?);
    // One body for all: nobody reads it.
    let body = updated(0, 1).body();
    // Two at a time: making the rows costs more than writing them.
    let next = Cell::new(1);
    let fill = async || -> anyhow::Result<()> {
        while next.get() <= events {
            let from = next.get();
            next.set(from + FILL_CHUNK);
            sqlx::query(
                "insert into workos_sync.webhook_events
                     (event_id, status, outcome, event_type, organization_id, attempts,
                      received_at, processed_at, source, payload)
                 select event_id, 'processed', 'updated', 'organization.updated', workos_id, 1,
                        at, at + interval '10 ms', 'webhook', $5::json
                 from (select 'event_01BBBBBBBB' || lpad(n::text, 16, '0'),
                              'org_01SEED' || lpad((n % $3 + 1)::text, 20, '0'),
                              now() - interval '60 days' + n * interval '59 days' / $4
                       from generate_series($1, $2) n
                       offset 0) as event (event_id, workos_id, at)",
            )
            .bind(from)
            .bind(std::cmp::min(from + FILL_CHUNK - 1, events))
            .bind(organizations)
            .bind(events)
            .bind(&body)
            .execute(pool)
            .await?;
        }
        Ok(())
    };
    let vacuumed = |setting: &'static str| sqlx::raw_sql(setting).execute(pool);
    // It is vacuumed at the end, once.
    vacuumed("alter table workos_sync.webhook_events set (autovacuum_enabled = off)").await?;
    tokio::try_join!(fill(), fill())?;
    vacuumed("alter table workos_sync.webhook_events reset (autovacuum_enabled)").await?;
    Ok(())
}

/// Nothing that the preparation left behind is to be paid for by what is measured.
pub(crate) async fn settle_down(pool: &PgPool) -> anyhow::Result<()> {
    sqlx::raw_sql("vacuum analyze").execute(pool).await?;
    sqlx::raw_sql("checkpoint").execute(pool).await?;
    Ok(())
}

async fn drained(pool: &PgPool) -> anyhow::Result<()> {
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    loop {
        let waiting: bool = sqlx::query_scalar(
            "select exists (select from workos_sync.webhook_events where status = 'pending')
                 or exists (select from workos_sync.webhook_events where status = 'failed')",
        )
        .fetch_one(pool)
        .await?;
        if !waiting {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the inbox isn't drained after {DRAIN_TIMEOUT:?}");
        }
        sleep(POLL).await;
    }
}

/// From received to applied, in milliseconds: the median and the 99th percentile.
async fn lag(pool: &PgPool, events: &[Event]) -> anyhow::Result<[f64; 2]> {
    let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
    let lags: Vec<f64> = sqlx::query_scalar(
        "select percentile_disc(array[0.5, 0.99]) within group
                    (order by extract(epoch from processed_at - received_at)::float8 * 1000)
         from workos_sync.webhook_events
         where event_id = any ($1::text[])",
    )
    .bind(&ids)
    .fetch_one(pool)
    .await?;
    Ok(lags.try_into().expect("two were asked for"))
}

/// How fast the last were applied, beside the first: both while deliveries were still coming in, for they cost the
/// same processor; and not the very first, which pay for what is prepared but once. A window is a twentieth of the
/// events, and a thousand at least.
async fn last_to_first(pool: &PgPool, events: &[Event]) -> anyhow::Result<Option<f64>> {
    let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
    let times: Vec<DateTime<Utc>> = sqlx::query_scalar(
        "select processed_at from workos_sync.webhook_events
         where event_id = any ($1::text[])
           and processed_at <= (select max(received_at) from workos_sync.webhook_events where event_id = any ($1::text[]))
         order by processed_at",
    )
    .bind(&ids)
    .fetch_all(pool)
    .await?;
    let window = std::cmp::max(WINDOW, events.len() / 20);
    if times.len() <= WARM_UP + 2 * window {
        return Ok(None);
    }
    let span = |from: usize| (times[from + window] - times[from]).as_seconds_f64();
    let (first, last) = (span(WARM_UP), span(times.len() - window - 1));
    Ok((last > 0.0).then(|| first / last))
}

fn acknowledgements(measured: &mut Measurement, answers: &Answers) {
    measured.set(
        Metric::AcknowledgedPerSecond,
        per_second(answers.latencies.len(), answers.elapsed),
    );
    for (metric, share) in [
        (Metric::AckP50, 0.5),
        (Metric::AckP99, 0.99),
        (Metric::AckP999, 0.999),
    ] {
        let latency = quantile(&answers.latencies, share);
        measured.set_some(
            metric,
            latency.map(|latency| latency.as_secs_f64() * 1000.0),
        );
    }
    measured.set(Metric::CpuGenerator, answers.cpu_seconds);
}

pub(crate) fn resources(
    measured: &mut Measurement,
    at_start: (Usage, Usage),
    at_end: (Usage, Usage),
) {
    measured.set(Metric::MaxRss, at_end.0.max_rss_mib);
    measured.set(
        Metric::CpuService,
        at_end.0.cpu_seconds - at_start.0.cpu_seconds,
    );
    measured.set(
        Metric::CpuPostgres,
        at_end.1.cpu_seconds - at_start.1.cpu_seconds,
    );
}

pub(crate) fn per_second(count: usize, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

/// Where a path is, whatever the folder that a program is started in.
pub(crate) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("{}", path.display()))
}

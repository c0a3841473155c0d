//! Faults at random, under load, made from a seed: the same seed makes the same schedule.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::all;
use crate::cluster::Cluster;
use crate::proxy::{Ambush, Network};
use crate::report::Report;
use crate::sender::Habits;
use crate::workos::{Kind, Mood};
use crate::world::{Options, World};

/// Something that goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// SIGKILL, several times in a row.
    KillReplica {
        replica: usize,
        times: u32,
        down: Duration,
    },
    /// SIGSTOP, then SIGCONT.
    PauseReplica { replica: usize, lasts: Duration },
    /// SIGTERM, one after the other.
    RollingRestart,
    /// SIGQUIT to the server, and its start after a while.
    CrashPostgres { down: Duration },
    /// SIGKILL to a backend, which ends all the others.
    KillBackend,
    /// `pg_terminate_backend` on every connection of the replicas.
    TerminateBackends { times: u32 },
    /// See [`Network`].
    Network { network: Network, lasts: Duration },
    /// See [`Ambush`].
    Ambush { ambush: Ambush, times: u32 },
    /// Somebody holds the whole inbox: every connection of the pools waits.
    LockInbox { lasts: Duration },
    /// Somebody holds rows of organizations.
    LockRows { rows: i64, lasts: Duration },
    /// Somebody holds the locks of organizations.
    LockOrganizations {
        organizations: usize,
        lasts: Duration,
    },
    /// Somebody else makes an organization of a name, and takes his time.
    LockSlug { lasts: Duration },
    /// The whole server only reads, on standing connections too.
    ReadOnly { lasts: Duration },
    /// The application changes the type of a column: to a `varchar` of so many characters.
    AlterType {
        column: &'static str,
        characters: u32,
    },
    /// A trigger of the application's takes its time, at a write in four.
    SlowTrigger { takes: Duration, lasts: Duration },
    /// See [`Mood`].
    Workos { mood: Mood, lasts: Duration },
    /// The sender's clock is wrong half of the time.
    ClockJump { lasts: Duration },
    /// Events that can't be applied are among the others.
    Poison,
    /// The application refuses some names.
    Refusals,
}

impl Fault {
    /// What it is called in the report.
    const fn name(self) -> &'static str {
        match self {
            Self::KillReplica { .. } => "kill -9 of a replica, 1 to 3 times",
            Self::PauseReplica { .. } => "SIGSTOP and SIGCONT of a replica",
            Self::RollingRestart => "rolling restart by SIGTERM",
            Self::CrashPostgres { .. } => "Postgres stopped immediate and started",
            Self::KillBackend => "kill -9 of a Postgres backend",
            Self::TerminateBackends { .. } => "pg_terminate_backend on all, 1 to 3 times",
            Self::Network { network, .. } => match network {
                Network::Up => "network: up",
                Network::Slow(_) => "network: slow",
                Network::Stalled => "network: stalled",
                Network::Cut => "network: cut",
                Network::BlackHole => "network: black hole",
                Network::Vanished => "network: vanished",
            },
            Self::Ambush { ambush, .. } => match ambush {
                Ambush::CommitAnswer => "answers to COMMIT lost, 1 to 5",
                Ambush::CommitSent => "cut when COMMIT was sent, 1 to 5",
                Ambush::CommitLost => "cut before COMMIT, 1 to 5",
                Ambush::InsertAnswer => "answers to the inbox's INSERT lost, 1 to 5",
            },
            Self::LockInbox { .. } => "inbox locked, pools exhausted",
            Self::LockRows { .. } => "rows locked from outside",
            Self::LockOrganizations { .. } => "organizations locked from outside",
            Self::LockSlug { .. } => "a slug locked from outside",
            Self::ReadOnly { .. } => "the server only reads",
            Self::AlterType { .. } => "a column's type changed",
            Self::SlowTrigger { .. } => "a trigger of the application that sleeps",
            Self::Workos { mood, .. } => match mood {
                Mood::Fine => "WorkOS: fine",
                Mood::Slow(_) => "WorkOS: slow",
                Mood::Hanging => "WorkOS: hangs",
                Mood::Failing => "WorkOS: 500",
                Mood::Limiting(_) => "WorkOS: 429 with Retry-After",
                Mood::Resetting => "WorkOS: resets in the middle of the body",
            },
            Self::ClockJump { .. } => "clock jump of the sender",
            Self::Poison => "poison events in the stream",
            Self::Refusals => "names refused by a CHECK",
        }
    }

    fn random(rng: &mut Rng, replicas: usize) -> Self {
        let lasts = |rng: &mut Rng, from, to| Duration::from_millis(rng.u64(from..to));
        match rng.u8(..24) {
            0 | 1 => Self::KillReplica {
                replica: rng.usize(..replicas),
                times: rng.u32(1..=3),
                down: lasts(rng, 0, 700),
            },
            2 => Self::PauseReplica {
                replica: rng.usize(..replicas),
                lasts: lasts(rng, 500, 4_000),
            },
            3 => Self::RollingRestart,
            4 | 5 => Self::CrashPostgres {
                down: lasts(rng, 0, 1_500),
            },
            6 => Self::KillBackend,
            7 => Self::TerminateBackends {
                times: rng.u32(1..=3),
            },
            8 => Self::Network {
                network: Network::Cut,
                lasts: lasts(rng, 300, 2_000),
            },
            9 => {
                let network = match rng.u8(..3) {
                    0 => Network::BlackHole,
                    1 => Network::Stalled,
                    _ => Network::Slow(lasts(rng, 10, 100)),
                };
                Self::Network {
                    network,
                    lasts: lasts(rng, 500, 5_000),
                }
            }
            10 | 11 => {
                let ambushes = [Ambush::CommitAnswer, Ambush::CommitSent, Ambush::CommitLost];
                Self::Ambush {
                    ambush: ambushes[rng.usize(..3)],
                    times: rng.u32(1..=5),
                }
            }
            12 => Self::Ambush {
                ambush: Ambush::InsertAnswer,
                times: rng.u32(1..=5),
            },
            13 => Self::LockInbox {
                lasts: lasts(rng, 500, 5_000),
            },
            14 if rng.bool() => Self::LockRows {
                rows: rng.i64(1..4),
                lasts: lasts(rng, 500, 6_000),
            },
            14 => Self::LockOrganizations {
                organizations: rng.usize(1..4),
                lasts: lasts(rng, 500, 6_000),
            },
            15 | 16 => {
                let mood = match rng.u8(..5) {
                    0 => Mood::Slow(lasts(rng, 50, 1_000)),
                    1 => Mood::Hanging,
                    2 => Mood::Failing,
                    3 => Mood::Limiting(rng.u64(0..3)),
                    _ => Mood::Resetting,
                };
                Self::Workos {
                    mood,
                    lasts: lasts(rng, 500, 3_000),
                }
            }
            17 => Self::ClockJump {
                lasts: lasts(rng, 500, 3_000),
            },
            18 => Self::LockSlug {
                lasts: lasts(rng, 500, 7_000),
            },
            19 | 20 => Self::ReadOnly {
                lasts: lasts(rng, 500, 4_000),
            },
            21 | 22 => Self::AlterType {
                column: ["id", "name", "slug"][rng.usize(..3)],
                characters: rng.u32(100..1_000),
            },
            23 => Self::SlowTrigger {
                takes: lasts(rng, 10, 1_500),
                lasts: lasts(rng, 500, 3_000),
            },
            _ if rng.u8(..3) == 0 => Self::Refusals,
            _ => Self::Poison,
        }
    }

    /// Injects it, and returns when it is lifted.
    pub(crate) async fn inject(self, world: &World, lines: &Lines) -> Result<()> {
        world.report.fault(self.name());
        match self {
            Self::KillReplica {
                replica,
                times,
                down,
            } => {
                for _ in 0..times {
                    world.replicas[replica].kill(down).await?;
                    sleep(down).await;
                }
            }
            Self::PauseReplica { replica, lasts } => world.replicas[replica].pause(lasts).await?,
            Self::RollingRestart => {
                for replica in &world.replicas {
                    replica.restart().await?;
                }
            }
            Self::CrashPostgres { down } => world.cluster.crash(down).await?,
            Self::KillBackend => world.cluster.kill_backend(&world.database).await?,
            Self::TerminateBackends { times } => terminate_backends(world, times).await,
            Self::Network { network, lasts } => {
                let _alone = lines.network.lock().await;
                world.proxy.set(network);
                sleep(lasts).await;
                world.proxy.set(Network::Up);
            }
            Self::Ambush { ambush, times } => {
                for _ in 0..times {
                    world.proxy.ambush(ambush);
                    sleep(Duration::from_millis(300)).await;
                }
            }
            Self::LockInbox { lasts } => {
                let statement = "lock table workos_sync.webhook_events in access exclusive mode";
                hold(world, statement.to_owned(), lasts).await;
            }
            Self::LockRows { rows, lasts } => {
                let statement =
                    format!("select from organization_metadata limit {rows} for update");
                hold(world, statement, lasts).await;
            }
            Self::LockOrganizations {
                organizations,
                lasts,
            } => {
                // As a replica does that is stuck.
                let ids: Vec<_> = (0..organizations)
                    .map(|organization| format!("'{}'", crate::world::workos_id(organization)))
                    .collect();
                let statement = format!(
                    "select pg_advisory_xact_lock(1061423321, hashtext(id)) from unnest(array[{}]) as ids (id)",
                    ids.join(",")
                );
                hold(world, statement, lasts).await;
            }
            Self::LockSlug { lasts } => {
                // As a signup flow does, of a name that many have.
                let statement = "select pg_advisory_xact_lock(hashtext('acme'))";
                hold(world, statement.to_owned(), lasts).await;
            }
            Self::ReadOnly { lasts } => {
                let _alone = lines.read_only.lock().await;
                world.cluster.only_read(true).await?;
                sleep(lasts).await;
                world.cluster.only_read(false).await?;
            }
            Self::AlterType { column, characters } => {
                // Without a limit, everybody would wait behind it for whoever holds a row.
                let statement = format!(
                    "set lock_timeout = '500ms';
                     alter table organization_metadata alter column {column} type varchar({characters})"
                );
                world.execute(&statement).await?;
                // As its documentation asks for after such a change.
                world.pooler.reconnect();
            }
            Self::SlowTrigger { takes, lasts } => {
                let _alone = lines.trigger.lock().await;
                let set = |takes: Duration| {
                    format!("update slowness set seconds = {}", takes.as_secs_f64())
                };
                world.execute(&set(takes)).await?;
                sleep(lasts).await;
                world.execute(&set(Duration::ZERO)).await?;
            }
            Self::Workos { mood, lasts } => {
                let _alone = lines.workos.lock().await;
                world.workos.set(mood);
                sleep(lasts).await;
                world.workos.set(Mood::Fine);
            }
            Self::ClockJump { lasts } => {
                world.sender.skewed.store(true, Ordering::Relaxed);
                sleep(lasts).await;
                world.sender.skewed.store(false, Ordering::Relaxed);
            }
            // They are in the load.
            Self::Poison | Self::Refusals => {}
        }
        Ok(())
    }
}

/// Ends all sessions of the replicas, again and again.
async fn terminate_backends(world: &World, times: u32) {
    for _ in 0..times {
        // The server may be down, which is as good.
        let _ = sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'workos-sync'",
        )
        .execute(&world.pool)
        .await;
        sleep(Duration::from_millis(200)).await;
    }
}

/// Faults of one kind take turns: the end of one would be the end of the other.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    network: Mutex<()>,
    read_only: Mutex<()>,
    trigger: Mutex<()>,
    workos: Mutex<()>,
}

/// Holds locks for a while; not if the server goes down, which frees them too.
async fn hold(world: &World, statement: String, lasts: Duration) {
    let held = async {
        let mut connection = world.cluster.options(&world.database).connect().await?;
        let mut tx = connection.begin().await?;
        sqlx::raw_sql("set local lock_timeout = '2s'")
            .execute(&mut *tx)
            .await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
            .execute(&mut *tx)
            .await?;
        sleep(lasts).await;
        tx.rollback().await
    };
    let _ = held.await;
}

/// A schedule.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    seed: u64,
    options: Options,
    organizations: usize,
    changes: usize,
    window: Duration,
    /// Somebody holds a snapshot all the time, as a report or a dump does.
    snapshot: bool,
    faults: Vec<(Duration, Fault)>,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let replicas = rng.usize(1..=3);
        let one_in = |rng: &mut Rng, times| (rng.u8(..times) == 0).then(|| rng.usize(..replicas));
        let window = Duration::from_millis(rng.u64(2_500..4_500));
        let count = rng.usize(2..=5);
        let faults = (0..count)
            .map(|_| (window.mul_f64(rng.f64()), Fault::random(&mut rng, replicas)))
            .collect();
        Self {
            seed,
            options: Options {
                replicas,
                private: false,
                connections: [2, 3, 4, 8, 20][rng.usize(..5)],
                pooled: one_in(&mut rng, 3),
                ahead: one_in(&mut rng, 4),
                habits: Habits {
                    connections: rng.usize(8..32),
                    window: Duration::from_millis(rng.u64(0..800)),
                    duplicates: 0.2 * rng.f64(),
                    lost: 0.0,
                },
                seed: rng.u64(..),
            },
            organizations: rng.usize(10..=40),
            changes: rng.usize(150..=500),
            window,
            snapshot: rng.u8(..4) == 0,
            faults,
        }
    }

    /// Runs it, until every event is settled.
    pub(crate) async fn run(self, cluster: &Arc<Cluster>, report: &Arc<Report>) -> Result<World> {
        let about = self.to_string();
        let world = World::start(cluster, report, about, self.options.clone()).await?;
        let strained = self.strain(&world).await;
        strained.map_err(|error| world.explain(&error))?;
        Ok(world)
    }

    async fn strain(&self, world: &World) -> Result<()> {
        let has = |name: &str| self.faults.iter().any(|(_, fault)| fault.name() == name);
        let mut odd = Vec::new();
        if has(Fault::Poison.name()) {
            odd.extend([Kind::Nul, Kind::Undecodable]);
        }
        if has(Fault::Refusals.name()) {
            world.refuse_names().await?;
            odd.push(Kind::Refused);
        }
        let Options { pooled, ahead, .. } = self.options;
        for (is_so, what) in [
            (pooled.is_some(), "a pooler before a replica"),
            (ahead.is_some(), "a replica whose clock is an hour ahead"),
            (self.snapshot, "a snapshot held all the time"),
        ] {
            if is_so {
                world.report.fault(what);
            }
        }
        let lines = Lines::default();
        let mut rng = Rng::with_seed(self.options.seed);
        let faults = all(self.faults.iter().map(async |(at, fault)| {
            sleep(*at).await;
            fault
                .inject(world, &lines)
                .await
                .with_context(|| format!("{fault:?}"))
        }));
        let load = world.load(
            &mut rng,
            self.organizations,
            self.changes,
            self.window,
            &odd,
        );
        let strained = async {
            let (faults, ()) = tokio::join!(faults, load);
            faults?;
            world.proxy.call_off();
            let lifted = Instant::now();
            world.settle().await?;
            world.report.recovery(lifted.elapsed());
            world.report.count("schedules");
            Ok(())
        };
        tokio::select! {
            strained = strained => strained,
            () = world.hold_snapshot(), if self.snapshot => Ok(()),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "FAULT_SEED={}: {} replicas of {} connections (behind a pooler: {:?}, clock ahead: {:?}, snapshot held: {}), \
             {} organizations, {} changes in {:.1} s, {:?}",
            self.seed,
            self.options.replicas,
            self.options.connections,
            self.options.pooled,
            self.options.ahead,
            self.snapshot,
            self.organizations,
            self.changes,
            self.window.as_secs_f64(),
            self.options.habits,
        )?;
        for (at, fault) in &self.faults {
            writeln!(f, "  after {:.2} s: {fault:?}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

//! Situations that chance wouldn't find, or that take too long to be left to it. Each ends with the oracle too.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use fastrand::Rng;
use sqlx::{ConnectOptions, Connection};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Disk};
use crate::proxy::{Network, Proxy};
use crate::report::{Report, quantile};
use crate::sender::Habits;
use crate::workos::{Giver, Kind, Mood};
use crate::world::{Options, World, workos_id};
use crate::{eventually, retry};

/// A named situation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    TwoReplicas,
    ThreeReplicas,
    RollingRestart,
    PoisonInAStream,
    LockedOrganization,
    HotKey,
    PausedReplica,
    StalledNetwork,
    VanishedPeer,
    DiskFull,
    Crashes,
    PooledCrashes,
    Failover,
    FailoverOfStanding,
    FailoverWithLoss,
    PrivatePostgres,
    HeldSnapshot,
    LostWebhooks,
}

/// Longer than every timeout of the service, the lease of the outbox included.
const LONGER_THAN_ANY: Duration = Duration::from_secs(65);

impl Scenario {
    /// The long ones first: they run beside the others.
    pub(crate) const ALL: [Self; 18] = [
        Self::PausedReplica,
        Self::StalledNetwork,
        Self::VanishedPeer,
        Self::FailoverOfStanding,
        Self::Failover,
        Self::FailoverWithLoss,
        Self::PrivatePostgres,
        Self::HeldSnapshot,
        Self::Crashes,
        Self::PooledCrashes,
        Self::LostWebhooks,
        Self::TwoReplicas,
        Self::ThreeReplicas,
        Self::RollingRestart,
        Self::PoisonInAStream,
        Self::LockedOrganization,
        Self::HotKey,
        Self::DiskFull,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TwoReplicas => "two_replicas",
            Self::ThreeReplicas => "three_replicas",
            Self::RollingRestart => "rolling_restart",
            Self::PoisonInAStream => "poison_in_a_stream",
            Self::LockedOrganization => "locked_organization",
            Self::HotKey => "hot_key",
            Self::PausedReplica => "paused_replica",
            Self::StalledNetwork => "stalled_network",
            Self::VanishedPeer => "vanished_peer",
            Self::DiskFull => "disk_full",
            Self::Crashes => "crashes",
            Self::PooledCrashes => "pooled_crashes",
            Self::Failover => "failover",
            Self::FailoverOfStanding => "failover_of_standing_connections",
            Self::FailoverWithLoss => "failover_with_loss",
            Self::PrivatePostgres => "private_postgres",
            Self::HeldSnapshot => "held_snapshot",
            Self::LostWebhooks => "lost_webhooks",
        }
    }

    /// Whether it takes but seconds.
    pub(crate) const fn is_quick(self) -> bool {
        matches!(
            self,
            Self::TwoReplicas
                | Self::ThreeReplicas
                | Self::RollingRestart
                | Self::PoisonInAStream
                | Self::LockedOrganization
                | Self::Crashes
                | Self::PooledCrashes
                | Self::Failover
                | Self::LostWebhooks
        )
    }

    /// Runs it, until every event is settled; nothing, if this machine can't.
    pub(crate) async fn run(
        self,
        cluster: &Arc<Cluster>,
        report: &Arc<Report>,
    ) -> Result<Option<World>> {
        let mut standby = None;
        let own = match self {
            Self::DiskFull => match Disk::mount() {
                Ok(disk) => Some(Cluster::start_on(Some(disk)).await?),
                Err(error) => {
                    println!(
                        "SKIPPED scenario disk_full: no tmpfs can be mounted, which takes root: {error:#}"
                    );
                    return Ok(None);
                }
            },
            Self::Failover | Self::FailoverOfStanding | Self::FailoverWithLoss => {
                let primary = Cluster::start().await?;
                standby = Some(Standby::of(&primary).await?);
                Some(primary)
            }
            _ => None,
        };
        let own = own.map(Arc::new);
        let cluster = own.as_ref().unwrap_or(cluster);
        let options = Options {
            replicas: match self {
                Self::ThreeReplicas => 3,
                Self::PoisonInAStream
                | Self::LockedOrganization
                | Self::HotKey
                | Self::Crashes
                | Self::PooledCrashes
                | Self::PrivatePostgres => 1,
                _ => 2,
            },
            private: self == Self::PrivatePostgres,
            pooled: (self == Self::PooledCrashes).then_some(0),
            habits: match self {
                // As fast as it goes.
                Self::HotKey => Habits {
                    connections: 64,
                    window: Duration::ZERO,
                    duplicates: 0.0,
                    lost: 0.0,
                },
                // What is lost would be new a second time.
                Self::FailoverWithLoss => Habits {
                    duplicates: 0.0,
                    ..Options::default().habits
                },
                Self::LostWebhooks => Habits {
                    lost: 1.0 / 3.0,
                    ..Options::default().habits
                },
                _ => Options::default().habits,
            },
            ..Options::default()
        };
        let mut world = World::start(cluster, report, self.name().to_owned(), options).await?;
        let result = match self {
            Self::TwoReplicas | Self::ThreeReplicas => replicas(&world).await,
            Self::RollingRestart => rolling_restart(&world).await,
            Self::PoisonInAStream => poison(&world).await,
            Self::LockedOrganization => locked_organization(&world).await,
            Self::HotKey => hot_key(&world).await,
            Self::PausedReplica => paused_replica(&world).await,
            Self::StalledNetwork => {
                network(&world, Network::Stalled, Duration::from_secs(35)).await
            }
            Self::VanishedPeer => network(&world, Network::Vanished, Duration::from_secs(2)).await,
            Self::DiskFull => disk_full(&world, cluster.disk().unwrap_or(Path::new("."))).await,
            Self::Crashes | Self::PooledCrashes => crashes(&world).await,
            Self::LostWebhooks => lost_webhooks(&world).await,
            Self::PrivatePostgres => private_postgres(&world).await,
            Self::HeldSnapshot => tokio::select! {
                result = held_snapshot(&world) => result,
                () = world.hold_snapshot() => Ok(()),
            },
            Self::Failover | Self::FailoverOfStanding | Self::FailoverWithLoss => match standby {
                None => bail!("there is no standby"),
                Some(standby) if self == Self::FailoverWithLoss => {
                    failover_with_loss(&mut world, standby).await
                }
                Some(standby) => {
                    failover(&mut world, standby, self == Self::FailoverOfStanding).await
                }
            },
        };
        result.map_err(|error| world.explain(&error))?;
        world.report.count("scenarios");
        Ok(Some(world))
    }
}

/// R22: the events of few organizations, spread over all replicas.
async fn replicas(world: &World) -> Result<()> {
    let mut rng = Rng::with_seed(1);
    world
        .load(&mut rng, 12, 600, Duration::from_secs(3), &[])
        .await;
    world.settle().await
}

/// R31: replica after replica ends by SIGTERM under load, and each ends well.
async fn rolling_restart(world: &World) -> Result<()> {
    let mut rng = Rng::with_seed(2);
    let restarts = async {
        for _ in 0..2 {
            for replica in &world.replicas {
                let exit = replica.restart().await?;
                ensure!(exit.success(), "a replica ended by SIGTERM: {exit}");
                replica.answers().await?;
            }
        }
        Ok(())
    };
    let load = world.load(&mut rng, 30, 1_000, Duration::from_secs(4), &[]);
    let (restarts, ()) = tokio::join!(restarts, load);
    restarts?;
    world.settle().await
}

/// R26: events that can't be applied, and a name that the application refuses, in the middle of streams.
async fn poison(world: &World) -> Result<()> {
    world.refuse_names().await?;
    let ids: Vec<_> = (0..20).map(workos_id).collect();
    for id in &ids {
        world.workos.create(id, "Acme", Giver::Nobody);
    }
    for round in 0..10 {
        for (place, id) in ids.iter().enumerate() {
            let kind = match (place + round) % 7 {
                0 => Kind::Nul,
                1 => Kind::Undecodable,
                2 if place % 2 == 0 => Kind::Refused,
                _ => Kind::Updated,
            };
            world.workos.change(kind, id, &format!("Acme {round}"));
        }
    }
    // The last of an organization is refused for good: nothing comes after it that makes it stale.
    world.workos.change(Kind::Refused, &ids[0], "Acme");
    world.settle().await
}

/// R18, R26: somebody holds an organization's row for longer than a lock is waited for. The others don't wait, and
/// it is applied when the row is free.
async fn locked_organization(world: &World) -> Result<()> {
    let (locked, others) = (workos_id(0), 1..40);
    world.workos.create(&locked, "Locked", Giver::Nobody);
    for other in others.clone() {
        let name = format!("Other {other}");
        world.workos.create(&workos_id(other), &name, Giver::Nobody);
    }
    world.settle().await?;
    // The writes to WorkOS come back, and end in rows too.
    let pushed = async || {
        let organizations = world.workos.organizations();
        organizations
            .values()
            .all(|organization| organization.external_id.is_some())
    };
    eventually("every external_id is written", pushed).await?;
    world.settle().await?;

    let mut connection = world.cluster.options(&world.database).connect().await?;
    let mut tx = connection.begin().await?;
    sqlx::query("select from organization_metadata where workos_id = $1 for update")
        .bind(&locked)
        .execute(&mut *tx)
        .await?;
    let held_since = Instant::now();
    for round in 0..20 {
        world
            .workos
            .change(Kind::Updated, &locked, &format!("Locked {round}"));
        for other in others.clone() {
            world
                .workos
                .change(Kind::Updated, &workos_id(other), &format!("Other {round}"));
        }
    }
    let waiting = async |which: &str| -> Result<i64> {
        let statement = format!(
            "select count(*) from workos_sync.webhook_events
             where status in ('pending', 'failed') and organization_id {which} $1"
        );
        retry(|| async {
            sqlx::query_scalar(sqlx::AssertSqlSafe(statement.clone()))
                .bind(&locked)
                .fetch_one(&world.pool)
                .await
        })
        .await
    };
    let others_done = async || {
        world.sender.pending() == 0 && waiting("<>").await.is_ok_and(|waiting| waiting == 0)
    };
    eventually("the others are applied", others_done).await?;
    ensure!(
        waiting("=").await? == 20,
        "the locked organization didn't wait"
    );
    // Beyond the timeout, so that its events fail at least once.
    sleep(Duration::from_secs(6).saturating_sub(held_since.elapsed())).await;
    ensure!(
        waiting("=").await? == 20,
        "the locked organization didn't wait"
    );
    tx.rollback().await?;
    world.settle().await
}

/// R24: 20,000 events of one organization, and one each of 1,000 others in the middle of them. How long the others
/// wait is compared with how long the flood takes: both depend on the machine alike.
async fn hot_key(world: &World) -> Result<()> {
    let hot = workos_id(0);
    world.workos.create(&hot, "Hot", Giver::Nobody);
    world.settle().await?;
    for change in 0..20_000_usize {
        world
            .workos
            .change(Kind::Updated, &hot, &format!("Hot {change}"));
        if change % 20 == 0 {
            world.workos.create(
                &workos_id(1 + change / 20),
                &format!("Other {change}"),
                Giver::Application,
            );
        }
    }
    world.settle().await?;
    let lags: Vec<(bool, f64)> = sqlx::query_as(
        "select organization_id = $1, extract(epoch from processed_at - received_at)::float8 from workos_sync.webhook_events",
    )
    .bind(&hot)
    .fetch_all(&world.pool)
    .await?;
    let flood: f64 = sqlx::query_scalar(
        "select extract(epoch from max(processed_at) - min(received_at))::float8
         from workos_sync.webhook_events where organization_id = $1",
    )
    .bind(&hot)
    .fetch_one(&world.pool)
    .await?;
    let lags_of = |hot: bool| -> Vec<Duration> {
        let lags = lags.iter().filter(|(of_hot, _)| *of_hot == hot);
        lags.map(|(_, lag)| Duration::from_secs_f64(lag.max(0.0)))
            .collect()
    };
    let (others, own) = (lags_of(false), lags_of(true));
    let (median, worst) = (quantile(&others, 0.5), quantile(&others, 1.0));
    let line = format!(
        "hot key: the flood took {flood:.1} s (an event of it waited {:.2} s, p50), an event of the others {:.3} s \
         (p50), {:.3} s (max)",
        quantile(&own, 0.5).as_secs_f64(),
        median.as_secs_f64(),
        worst.as_secs_f64(),
    );
    ensure!(
        worst.as_secs_f64() < flood / 4.0 && median.as_secs_f64() < flood / 20.0,
        "the others waited: {line}"
    );
    println!("        {line}");
    Ok(())
}

/// R36–R44: a third of all events is never delivered, and the poll brings them. Who polls, a backfill and a reconcile are
/// killed while they read, again and again, and each of them at least once in the middle.
async fn lost_webhooks(world: &World) -> Result<()> {
    const NEVER: Duration = Duration::from_secs(60);
    const IS_POLLING: &str =
        "select exists (select from workos_sync.event_poll where lease_until > now())";
    const IS_IN_BACKFILL: &str = "select exists (select from workos_sync.runs where kind = 'backfill' and status = 'running')";
    const IS_IN_RECONCILE: &str = "select exists (select from workos_sync.runs where kind = 'reconcile' and status = 'running')";

    let mut rng = Rng::with_seed(4);
    let mut moments = rng.fork();
    // So that pages take their time.
    world.workos.set(Mood::Slow(Duration::from_millis(40)));
    let load = async {
        for change in 0..500 {
            let (id, name) = (workos_id(rng.usize(..150)), format!("Acme {change}"));
            match world.workos.organization(&id) {
                None if rng.bool() => world.workos.create(&id, &name, Giver::Nobody),
                None => world.workos.create(&id, &name, Giver::Application),
                Some(_) if rng.u8(..25) == 0 => world.workos.change(Kind::Deleted, &id, &name),
                Some(_) => world.workos.change(Kind::Updated, &id, &name),
            }
            sleep(Duration::from_millis(6)).await;
        }
    };
    let kills = async {
        let mut cut = [0; 3];
        for round in 0.. {
            if round >= 5 && cut.iter().all(|times| *times > 0) {
                break;
            }
            ensure!(
                round < 30,
                "of backfill, reconcile and poll, {cut:?} were killed in the middle"
            );
            let replica = &world.replicas[moments.usize(..2)];
            let commands: [(&[&str], &str); 2] = [
                (&["backfill"], IS_IN_BACKFILL),
                (&["reconcile", "--apply"], IS_IN_RECONCILE),
            ];
            for (times, (arguments, is_in)) in cut.iter_mut().zip(commands) {
                // The next one goes on with the run of one that was killed.
                let goes_on = world.is(is_in).await?;
                let mut command = replica.begin(arguments)?;
                let begun = async || {
                    !matches!(command.try_wait(), Ok(None))
                        || world.is(is_in).await.unwrap_or(false)
                };
                eventually("the run begins, or ends", begun).await?;
                sleep(Duration::from_millis(moments.u64(..150))).await;
                command.kill()?;
                command.wait()?;
                *times += usize::from(!goes_on && world.is(is_in).await?);
            }
            let polls = async || world.is(IS_POLLING).await.unwrap_or(false);
            eventually("somebody polls", polls).await?;
            replica.kill(Duration::from_millis(100)).await?;
            // The other one would have given it back.
            cut[2] += usize::from(world.is(IS_POLLING).await?);
            // The lease of a dead one lasts a minute; as if that were over.
            world
                .execute("update workos_sync.event_poll set lease_until = now()")
                .await?;
        }
        anyhow::Ok(())
    };
    let ((), killed) = tokio::join!(load, kills);
    killed?;
    for replica in &world.replicas {
        replica.answers().await?;
    }
    let replica = &world.replicas[0];
    // The lock of one that was killed may be held a moment longer.
    let ends_well = async |arguments: &[&str]| {
        eventually(arguments[0], async || {
            let ended = replica.command(arguments, NEVER).await;
            ended.is_ok_and(|exit| exit.success())
        })
        .await
    };
    ends_well(&["backfill"]).await?;
    world.settle().await?;
    ends_well(&["reconcile", "--apply"]).await?;
    world.workos.set(Mood::Fine);
    world.settle().await
}

/// R11, R22: a replica is stopped for longer than every timeout, and goes on with what it had in hand. The other one
/// does everything meanwhile, once Postgres has ended the transactions of the stopped one.
async fn paused_replica(world: &World) -> Result<()> {
    let mut rng = Rng::with_seed(3);
    let pause = async {
        sleep(Duration::from_secs(1)).await;
        world.replicas[0].pause(LONGER_THAN_ANY).await
    };
    let load = async {
        let few = Duration::from_secs(4);
        world.load(&mut rng, 20, 300, few, &[]).await;
        let done = async || {
            // What the stopped one doesn't answer is sent to the other; what met its locks backs off.
            let untried = retry(|| async {
                sqlx::query_scalar(
                    "select count(*) from workos_sync.webhook_events where status = 'pending'",
                )
                .fetch_one(&world.pool)
                .await
            });
            world.sender.pending() == 0 && matches!(untried.await, Ok(0_i64))
        };
        eventually("the other replica goes on", done).await?;
        ensure!(
            world.replicas[0].undisturbed().is_none(),
            "the pause was too short"
        );
        Ok(())
    };
    let (pause, load) = tokio::join!(pause, load);
    pause?;
    load?;
    world
        .load(&mut rng, 20, 100, Duration::from_secs(1), &[])
        .await;
    world.settle().await
}

/// R23, R26: the database is there, but nothing comes back from it, for longer than anything waits.
async fn network(world: &World, network: Network, lasts: Duration) -> Result<()> {
    let mut rng = Rng::with_seed(4);
    let fault = async {
        sleep(Duration::from_secs(1)).await;
        world.proxy.set(network);
        sleep(lasts).await;
        world.proxy.set(Network::Up);
    };
    let load = world.load(&mut rng, 20, 300, Duration::from_secs(3), &[]);
    tokio::join!(fault, load);
    let lifted = Instant::now();
    world.settle().await?;
    println!(
        "        settled {:.1} s after the network was back ({network:?})",
        lifted.elapsed().as_secs_f64()
    );
    Ok(())
}

/// R23, R26: Postgres has no room to write. Nothing is acknowledged that isn't durable; when there is room, all goes
/// on.
async fn disk_full(world: &World, disk: &Path) -> Result<()> {
    let mut rng = Rng::with_seed(5);
    let fault = async {
        sleep(Duration::from_secs(1)).await;
        let ballast = disk.join("ballast");
        // Until there is no room left.
        let filled = tokio::process::Command::new("dd")
            .args(["if=/dev/zero", "bs=64k"])
            .arg(format!("of={}", ballast.display()))
            .output()
            .await?;
        ensure!(!filled.status.success(), "the disk isn't full");
        sleep(Duration::from_secs(5)).await;
        std::fs::remove_file(ballast)?;
        sleep(Duration::from_secs(1)).await;
        // It may have given up when it couldn't write its log.
        world.cluster.start_if_down().await
    };
    // More than the pages that are there hold.
    let load = world.load(&mut rng, 40, 4_000, Duration::from_secs(6), &[]);
    let (fault, ()) = tokio::join!(fault, load);
    fault?;
    world.settle().await?;
    let log = std::fs::read_to_string(world.cluster.log())?;
    ensure!(
        log.contains("No space left on device"),
        "the disk was never full"
    );
    world.report.fault("disk full for Postgres");
    Ok(())
}

/// R23: Postgres crashes again and again, and by its default answers a COMMIT before it is durable. What was acknowledged
/// is there all the same.
async fn crashes(world: &World) -> Result<()> {
    const CRASHES: u32 = 4;

    let mut rng = Rng::with_seed(6);
    let each = Duration::from_millis(1_200);
    let faults = async {
        for _ in 0..CRASHES {
            sleep(each).await;
            world.report.fault("kill -QUIT of Postgres under load");
            world.cluster.kill().await?;
            world.cluster.start_if_down().await?;
        }
        anyhow::Ok(())
    };
    let load = world.load(&mut rng, 40, 1_500, each * CRASHES, &[]);
    let (faults, ()) = tokio::join!(faults, load);
    faults?;
    world.settle().await
}

/// R23, section 11: the private Postgres is killed under load, then the service, then Postgres again, which the next service
/// had adopted. Nobody but a supervisor of the service starts anything.
async fn private_postgres(world: &World) -> Result<()> {
    let mut rng = Rng::with_seed(8);
    let faults = async {
        for _ in 0..2 {
            sleep(Duration::from_secs(2)).await;
            world.report.fault("kill -9 of the private Postgres");
            world.kill_private().await?;
            eventually("it is started again", async || {
                sqlx::query("select 1").execute(&world.pool).await.is_ok()
            })
            .await?;
            sleep(Duration::from_millis(500)).await;
            world.replicas[0].kill(Duration::from_millis(200)).await?;
            world.replicas[0].answers().await?;
        }
        anyhow::Ok(())
    };
    let load = world.load(&mut rng, 40, 1_500, Duration::from_secs(10), &[]);
    let (faults, ()) = tokio::join!(faults, load);
    faults?;
    world.settle().await
}

/// R24: somebody holds a snapshot, as a dump does, and half a million events are applied meanwhile: none of what is left of
/// them in the index of pending ones can go. The looks for what waits don't read all of that every second.
async fn held_snapshot(world: &World) -> Result<()> {
    const EVENTS: i64 = 500_000;
    const WATCHED: Duration = Duration::from_secs(30);

    let mut rng = Rng::with_seed(9);
    let few = Duration::from_secs(1);
    world.load(&mut rng, 20, 100, few, &[]).await;
    world.settle().await?;
    // In one transaction, so that nobody finds them waiting.
    world
        .execute(&format!(
            "insert into workos_sync.webhook_events (event_id, event_type, payload)
             select 'event_' || n, 'organization.updated', '{{}}' from generate_series(1, {EVENTS}) as events (n);
             update workos_sync.webhook_events set status = 'processed', outcome = 'stale', processed_at = now()
             where payload::text = '{{}}'"
        ))
        .await?;
    let entries_read = async || -> Result<i64> {
        let read = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'webhook_events_lane_idx'";
        Ok(sqlx::query_scalar(read).fetch_one(&world.pool).await?)
    };
    let before = entries_read().await?;
    sleep(WATCHED).await;
    let read = entries_read().await? - before;
    let once_a_second = EVENTS * i64::try_from(WATCHED.as_secs() * world.replicas.len() as u64)?;
    println!("        {read} index entries read in {WATCHED:?}, of {EVENTS} that can't go");
    ensure!(read < once_a_second / 2, "{read} entries were read");
    // They are in no history. The triggers don't look.
    world
        .execute(
            "set session_replication_role = replica;
             delete from workos_sync.webhook_events where payload::text = '{}'",
        )
        .await?;
    world.load(&mut rng, 20, 100, few, &[]).await;
    world.settle().await
}

/// A server that streams from the primary of a run.
struct Standby {
    cluster: Cluster,
    /// The network between the two.
    link: Proxy,
}

impl Standby {
    async fn of(primary: &Cluster) -> Result<Self> {
        let link = Proxy::start(primary.port).await?;
        let cluster = primary.standby(link.port).await?;
        Ok(Self { cluster, link })
    }
}

/// How long after a failover events may wait for the service to go on by itself: longer than any wait for a server that
/// doesn't answer.
const GOES_ON_WITHIN: Duration = Duration::from_secs(30);

/// Changes organizations, and makes a primary of the standby meanwhile. The old one is killed, or lives on and keeps its
/// connections. Says how long it took until an event of afterwards was applied.
async fn fail_over(world: &World, standby: &Cluster, lives_on: bool) -> Result<Duration> {
    let mut rng = Rng::with_seed(7);
    let switch = async {
        sleep(Duration::from_secs(2)).await;
        if !lives_on {
            world.cluster.kill().await?;
        }
        standby.promote().await?;
        // As a changed DNS record or a virtual address.
        world.proxy.lead_to(standby.port);
        world.ask(standby);
        let switched = Instant::now();
        let after = workos_id(1_000);
        world.workos.create(&after, "After", Giver::Application);
        let is_applied = async || {
            let rows = sqlx::query_scalar(
                "select count(*) from organization_metadata where workos_id = $1",
            )
            .bind(&after)
            .fetch_one(&world.pool)
            .await;
            matches!(rows, Ok(1_i64))
        };
        eventually("an event of afterwards is applied", is_applied).await?;
        let took = switched.elapsed();
        ensure!(took < GOES_ON_WITHIN, "it went on after {took:?}");
        Ok(took)
    };
    let load = world.load(&mut rng, 40, 1_000, Duration::from_secs(5), &[]);
    let (switched, ()) = tokio::join!(switch, load);
    world.report.fault(if lives_on {
        "failover, the old primary lives on"
    } else {
        "failover, the old primary killed"
    });
    switched
}

/// R23, R35: the primary is lost, and commits have waited for the standby that takes its place. Nothing is lost, and the
/// service goes on by itself.
async fn failover(world: &mut World, standby: Standby, lives_on: bool) -> Result<()> {
    world.cluster.wait_for_the_standby().await?;
    let took = fail_over(world, &standby.cluster, lives_on).await?;
    println!(
        "        went on {:.1} s after the failover (the old primary lives on: {lives_on})",
        took.as_secs_f64()
    );
    world.cluster = Arc::new(standby.cluster);
    world.settle().await
}

/// The same where commits don't wait for the standby, which is behind a slow link. What the old primary alone had is lost,
/// though it was acknowledged; delivered again, it is applied like the rest.
async fn failover_with_loss(world: &mut World, standby: Standby) -> Result<()> {
    standby.link.set(Network::Slow(Duration::from_millis(100)));
    fail_over(world, &standby.cluster, false).await?;
    world.cluster = Arc::new(standby.cluster);
    world.settle().await?;
    let stored: Vec<String> = sqlx::query_scalar("select event_id from workos_sync.webhook_events")
        .fetch_all(&world.pool)
        .await?;
    let stored: HashSet<_> = stored.into_iter().collect();
    let mut lost = world.workos.history();
    lost.retain(|event| !stored.contains(&event.id));
    println!(
        "        {} of {} acknowledged events were lost with a primary that waited for no standby",
        lost.len(),
        stored.len() + lost.len()
    );
    world.report.add(
        "acknowledged events lost with a primary that waited for no standby",
        u64::try_from(lost.len())?,
    );
    for event in lost {
        world.sender.forget(&event.id);
        world.workos.emit_again(event);
    }
    world.workos.forgive();
    world.settle().await
}

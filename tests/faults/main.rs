//! Nothing that was acknowledged is ever lost, doubled or rewound: real replicas, a real Postgres, and everything that
//! can go wrong between them.
//!
//! `cargo test --test faults` runs the scenarios (`scenarios`), then random schedules (`schedule`), each against a
//! sender that behaves as WorkOS does (`sender`, `workos`), and compares what is left with the history applied in
//! order (`oracle`). A program of its own rather than libtest's, because it shares clusters between runs, lets runs
//! finish beside the next ones, and ends with figures.
//!
//! | variable | |
//! | --- | --- |
//! | `FAULT_RUNS` | how many schedules (200) |
//! | `FAULT_SEED` | just the schedule of this seed; a failure prints its own |
//! | `FAULT_QUICK` | if set, only the scenarios that take seconds, and 8 schedules |
//! | `FAULT_JOBS` | how many runs at once, each on a cluster of its own (2) |
//! | `FAULT_LOG` | `LOG_LEVEL` of the replicas |
//! | `FAULT_BINARY` | another build of the service |
//!
//! Arguments choose scenarios by a part of their names; `schedule` is all of the random ones.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "to clippy, this program is outside of tests"
)]

mod cluster;
mod oracle;
#[path = "../it/support/pooler.rs"]
mod pooler;
mod proxy;
mod replica;
mod report;
mod scenarios;
mod schedule;
mod sender;
#[path = "../it/support/torn.rs"]
mod torn;
mod workos;
mod world;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use cluster::Cluster;
use report::Report;
use scenarios::Scenario;
use schedule::Plan;
use world::World;

/// How long anything may take that nobody disturbs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause of a poll, not a guess of how long something takes.
const POLL: Duration = Duration::from_millis(25);

/// Something to run.
enum Job {
    Scenario(Scenario),
    Schedule(u64),
}

impl Job {
    fn name(&self) -> String {
        match self {
            Self::Scenario(scenario) => format!("scenario {}", scenario.name()),
            Self::Schedule(seed) => format!("schedule FAULT_SEED={seed}"),
        }
    }

    async fn run(self, cluster: &Arc<Cluster>, report: &Arc<Report>) -> Result<Option<World>> {
        match self {
            Self::Scenario(scenario) => scenario.run(cluster, report).await,
            Self::Schedule(seed) => Plan::new(seed).run(cluster, report).await.map(Some),
        }
    }
}

/// What the workers share.
struct Shared {
    jobs: Mutex<VecDeque<Job>>,
    report: Arc<Report>,
    failures: Mutex<Vec<String>>,
}

impl Shared {
    fn done(&self, name: &str, started: Instant, result: Result<()>) {
        let took = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("ok      {name} ({took:.1} s)"),
            Err(error) => {
                println!("FAILED  {name} ({took:.1} s)\n{error:#}\n");
                self.failures.lock().unwrap().push(name.to_owned());
            }
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}: expected a number: {value:?}")),
    )
}

fn jobs() -> VecDeque<Job> {
    let chosen: Vec<_> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted =
        |name: &str| chosen.is_empty() || chosen.iter().any(|part| name.contains(part.as_str()));
    if let Some(seed) = variable("FAULT_SEED") {
        return VecDeque::from([Job::Schedule(seed)]);
    }
    let quick = std::env::var_os("FAULT_QUICK").is_some();
    let mut jobs: VecDeque<_> = Scenario::ALL
        .into_iter()
        .filter(|scenario| wanted(scenario.name()) && (!quick || scenario.is_quick()))
        .map(Job::Scenario)
        .collect();
    if wanted("schedule") {
        let runs = variable("FAULT_RUNS").unwrap_or(if quick { 8 } else { 200 });
        jobs.extend((0..runs).map(|_| Job::Schedule(fastrand::u64(..1_000_000_000))));
    }
    jobs
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    // Both reqwest and sqlx ask for one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let started = Instant::now();
    let shared = Arc::new(Shared {
        jobs: Mutex::new(jobs()),
        report: Arc::default(),
        failures: Mutex::default(),
    });
    let count = shared.jobs.lock().unwrap().len();
    let workers = variable("FAULT_JOBS").unwrap_or(2);
    let workers = std::cmp::min(usize::try_from(workers)?, count);
    println!("{count} runs, {workers} at once");
    let mut watching = JoinSet::new();
    watching.spawn({
        let report = Arc::clone(&shared.report);
        async move { report.watch_for_hiccups().await }
    });
    all((0..workers).map(|_| work(&shared))).await?;
    println!("\n{}", shared.report);
    let failures = shared.failures.lock().unwrap();
    let took = started.elapsed().as_secs_f64();
    if failures.is_empty() {
        println!("nothing lost, doubled or rewound in {count} runs ({took:.0} s)");
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{} of {count} runs FAILED ({took:.0} s):\n{}",
        failures.len(),
        failures.join("\n")
    );
    Ok(ExitCode::FAILURE)
}

/// Takes job after job, on a cluster of its own. What a run leaves to wait for (the lease of a killed replica lasts a
/// minute) is waited for beside the next ones.
async fn work(shared: &Arc<Shared>) -> Result<()> {
    let cluster = Arc::new(Cluster::start().await?);
    let mut finishing = JoinSet::new();
    loop {
        let Some(job) = shared.jobs.lock().unwrap().pop_front() else {
            break;
        };
        let (name, started) = (job.name(), Instant::now());
        match job.run(&cluster, &shared.report).await {
            Err(error) => shared.done(&name, started, Err(error)),
            Ok(None) => {}
            Ok(Some(world)) => {
                let shared = Arc::clone(shared);
                finishing.spawn(async move {
                    let result = world.finish().await;
                    shared.done(&name, started, result);
                });
            }
        }
        while finishing.try_join_next().is_some() {}
    }
    while let Some(finished) = finishing.join_next().await {
        finished?;
    }
    Ok(())
}

/// Runs futures side by side; all of them, whatever one of them says.
async fn all<F: Future<Output = Result<()>>>(futures: impl Iterator<Item = F>) -> Result<()> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        let mut pending = false;
        for (future, result) in &mut futures {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(ready) => *result = Some(ready),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    futures
        .into_iter()
        .filter_map(|(_, result)| result)
        .collect()
}

/// Asks the database until it answers: it may be down, or just be starting.
async fn retry<T, F>(mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    let give_up = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > give_up => return Err(error.into()),
            Err(_) => sleep(POLL * 2).await,
        }
    }
}

/// Waits for a condition.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Result<()> {
    let waited = timeout(PATIENCE, async {
        while !condition().await {
            sleep(POLL).await;
        }
    });
    waited.await.with_context(|| format!("never: {what}"))
}

/// Sends a signal, by the shell's own `kill`.
async fn signal(pid: u32, name: &str) -> Result<()> {
    let sent = tokio::process::Command::new("sh")
        .args(["-c", r#"kill -s "$1" "$2""#, "sh", name, &pid.to_string()])
        .stderr(std::process::Stdio::null())
        .status()
        .await?;
    ensure!(sent.success(), "kill -s {name} {pid}");
    Ok(())
}

/// An HTTP client that talks to this machine only.
fn http(limit: Duration) -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .no_proxy()
        .timeout(limit)
        .build()?)
}

/// The last lines of a file, cut to what tells something.
fn tail(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.chars().take(240).collect())
        .collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Spreads consecutive numbers over the whole range (the finalizer of `SplitMix64`): for the parts of ids that say
/// nothing.
fn scatter(number: u64) -> u128 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    u128::from(z ^ (z >> 31))
}

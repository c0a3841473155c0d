//! Measures the service as it is deployed: the release binary, over HTTP, on a Postgres of its own with that
//! one's default durability; beside it what Postgres does by itself, and a peer in Node.js.
//!
//! A package of its own, so that its dependencies and its lock file are none of the service's. The service is
//! known by its binary only (another version's binary can be measured, with `--binary`) and by its tables.
//! `workos-sync` is linked for one limit alone, the server that verifies and parses and stores nothing.

mod check;
mod events;
mod heal;
mod limits;
mod load;
mod measure;
mod postgres;
mod process;
mod report;
mod verify_server;
mod workload;
mod workos;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::measure::{Metric, Results};
use crate::postgres::Postgres;
use crate::report::Machine;
use crate::workload::{Bench, Sizes, Workload, absolute};

/// Where this package is, for the defaults: the same from every folder.
const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

#[derive(Debug, Parser)]
#[command(about = "Measures workos-sync", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, and print the report
    Run(Box<Run>),
    /// Verify and parse deliveries and store nothing (run by `run`)
    #[command(hide = true)]
    VerifyServer,
}

#[derive(Debug, Args)]
struct Run {
    /// Fewer events, one repetition, and without the long workloads: under three minutes
    #[arg(long)]
    quick: bool,
    /// The binary to measure
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/workos-sync"), hide_default_value = true)]
    binary: PathBuf,
    /// The workloads, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    only: Vec<Workload>,
    /// Leave out what Postgres does by itself
    #[arg(long)]
    no_limits: bool,
    /// Leave out the peer
    #[arg(long)]
    no_peer: bool,
    /// Write the report to this file too, and a chart beside it
    #[arg(long)]
    out: Option<PathBuf>,
    /// How often everything is repeated [default: 3, or 1 if quick]
    #[arg(long)]
    repeats: Option<u32>,
    /// Events a workload [default: 50,000, or 10,000 if quick]
    #[arg(long)]
    events: Option<usize>,
    /// Events of `same-name-100k`
    #[arg(long, default_value_t = 100_000)]
    same_name: usize,
    /// Events of `replay` [default: 100,000, or 10,000 if quick]
    #[arg(long)]
    replay: Option<usize>,
    /// Events of `burst`
    #[arg(long, default_value_t = 20_000)]
    burst: usize,
    /// Events for the peer, which needs more time for each [default: 6,000, or 3,000 if quick]
    #[arg(long)]
    peer_events: Option<usize>,
    /// Connections of the generator
    #[arg(long, default_value_t = 256)]
    connections: usize,
    /// Connections of the generator in `burst`
    #[arg(long, default_value_t = 2_000)]
    burst_connections: usize,
    /// Seconds for each run of pgbench [default: 3, or 2 if quick]
    #[arg(long)]
    pgbench_seconds: Option<u32>,
    /// Organizations of `update-1m`
    #[arg(long, default_value_t = 1_000_000)]
    million_organizations: u64,
    /// Settled events in the inbox of `update-1m`
    #[arg(long, default_value_t = 10_000_000)]
    million_inbox: u64,
    /// Organizations of `backfill` and `reconcile` [default: 100,000, or 10,000 if quick]
    #[arg(long)]
    organizations: Option<usize>,
    /// Folder for the temporary cluster; the disk that is measured [default: the system's temporary folder]
    #[arg(long)]
    data_parent: Option<PathBuf>,
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // The generator is to take as little from what it measures as it can: one thread, nothing to hand over.
    let mut runtime = match command {
        Command::Run(_) => Builder::new_current_thread(),
        Command::VerifyServer => Builder::new_multi_thread(),
    };
    let result = match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(run(command)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(run) => tokio::select! {
            result = measure(&run) => result,
            // What runs is ended as it is dropped with the branch above.
            () = interrupted() => bail!("interrupted"),
        },
        Command::VerifyServer => verify_server::run().await,
    }
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

async fn measure(run: &Run) -> anyhow::Result<()> {
    let quick = |quick, long| if run.quick { quick } else { long };
    let repeats = run.repeats.unwrap_or(quick(1, 3));
    let seconds = run.pgbench_seconds.unwrap_or(quick(2, 3));
    let or =
        |given: Option<usize>, quick, long| given.unwrap_or(if run.quick { quick } else { long });
    let sizes = Sizes {
        events: or(run.events, 10_000, 50_000),
        same_name: run.same_name,
        replay: or(run.replay, 10_000, 100_000),
        burst: run.burst,
        peer: or(run.peer_events, 3_000, 6_000),
        connections: run.connections,
        burst_connections: run.burst_connections,
        million_organizations: run.million_organizations,
        million_inbox: run.million_inbox,
        organizations: or(run.organizations, 10_000, 100_000),
    };
    let workloads: Vec<Workload> = Workload::value_variants()
        .iter()
        .copied()
        .filter(|workload| match run.only.as_slice() {
            [] => !run.quick || !workload.is_long(),
            only => only.contains(workload),
        })
        .collect();

    let parent = run.data_parent.clone().unwrap_or_else(std::env::temp_dir);
    let mut bench = Bench {
        binary: absolute(&run.binary)?,
        peer: absolute(&Path::new(PACKAGE).join("peer"))?,
        postgres: Postgres::start(&parent).await?,
        sizes: sizes.clone(),
        next_number: 0,
    };
    if !run.no_peer && !bench.peer.join("node_modules").is_dir() {
        bail!("the peer isn't installed: npm ci --prefix bench/peer, or --no-peer");
    }
    let machine = Machine::look(&bench.postgres, &bench.binary)?;

    let mut results = Results::default();
    for repeat in 1..=repeats {
        // Everything once, and then everything again: what is compared is measured close to each other.
        if !run.no_limits {
            bench.prepare_limits().await?;
            for limit in limits::ALL {
                say(repeat, limit.name);
                let measured = bench.run_limit(limit, seconds).await?;
                results.add(limit.name, measured);
            }
            say(repeat, report::WITHOUT_DATABASE);
            let measured = bench.run_without_database().await?;
            results.add(report::WITHOUT_DATABASE, measured);
        }
        let mut applied_updates = None;
        for &workload in &workloads {
            let rate = match (workload, applied_updates) {
                (Workload::HalfRate, None) => continue,
                (Workload::HalfRate, Some(rate)) => Some(rate / 2.0),
                _ => None,
            };
            say(repeat, workload.name());
            let measured = bench
                .run(workload, rate)
                .await
                .with_context(|| format!("workload {}", workload.name()))?;
            if workload == Workload::UpdateFew {
                applied_updates = measured.get(Metric::AppliedPerSecond);
            }
            results.add(workload.name(), measured);
            if workload == Workload::UpdateMillion && !run.no_limits {
                say(repeat, report::UPDATE_MILLION);
                let measured = bench.run_limit_on_million(limits::UPDATE, seconds).await?;
                results.add(report::UPDATE_MILLION, measured);
            }
            if let Some(rate) = rate
                && !run.no_limits
            {
                say(repeat, report::INSERT_AT_RATE);
                let measured = bench.run_limit_at(limits::INSERT, seconds, rate).await?;
                results.add(report::INSERT_AT_RATE, measured);
            }
        }
        for workload in report::PEER_WORKLOADS {
            if run.no_peer || !workloads.contains(&workload) {
                continue;
            }
            let name = report::peer(workload);
            say(repeat, &name);
            let measured = bench
                .run_peer(workload)
                .await
                .with_context(|| name.clone())?;
            results.add(&name, measured);
        }
    }

    println!(
        "{}",
        report::markdown(&results, &machine, &sizes, repeats, None)
    );
    if let Some(out) = &run.out {
        let chart = out.with_extension("svg");
        let name = chart.file_name().map(|name| name.display().to_string());
        let page = report::markdown(&results, &machine, &sizes, repeats, name.as_deref());
        std::fs::write(out, page).with_context(|| out.display().to_string())?;
        std::fs::write(&chart, report::svg(&results))
            .with_context(|| chart.display().to_string())?;
    }
    Ok(())
}

/// Progress, beside the report.
fn say(repeat: u32, what: &str) {
    eprintln!("{} run {repeat}: {what}", chrono::Utc::now().format("%T"));
}

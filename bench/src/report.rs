//! The report: Markdown with every figure, and a bar chart of the rates. Written from the results alone; it
//! claims nothing that wasn't measured in this run.

use std::fmt::Write as _;
use std::process::Command;

use clap::ValueEnum;

use crate::heal::DEFAULT_BUDGET;
use crate::limits;
use crate::lists;
use crate::measure::{Figure, Metric, Results};
use crate::postgres::Postgres;
use crate::process::first_line;
use crate::workload::{Sizes, Workload};

pub(crate) const WITHOUT_DATABASE: &str = "no database";
pub(crate) const UPDATE_MILLION: &str = "pgbench update, a million";
pub(crate) const INSERT_AT_RATE: &str = "pgbench insert, half rate";

/// Where and with what the figures were made.
#[derive(Debug)]
pub(crate) struct Machine {
    cores: usize,
    cpu: String,
    memory_gib: f64,
    versions: Vec<String>,
}

impl Machine {
    pub(crate) fn look(postgres: &Postgres, binary: &std::path::Path) -> anyhow::Result<Self> {
        let field = |file: &str, name: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory_kib = field("/proc/meminfo", "MemTotal")
            .and_then(|value| value.split(' ').next()?.parse::<f64>().ok())
            .unwrap_or_default();
        let version = |program: &str| {
            first_line(Command::new(program).arg("--version"))
                .unwrap_or_else(|_| "not found".to_owned())
        };
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            memory_gib: memory_kib / 1024.0 / 1024.0,
            versions: vec![
                first_line(Command::new(binary).arg("--version"))?,
                postgres.version()?,
                version("rustc"),
                format!("node {}", version("node")),
            ],
        })
    }
}

/// The whole page.
pub(crate) fn markdown(
    results: &Results,
    machine: &Machine,
    sizes: &Sizes,
    repeats: u32,
    chart: Option<&str>,
) -> String {
    let mut page = String::new();
    let _ = write!(
        page,
        "# Benchmarks\n\n\
         Written by `scripts/bench`; figures are of one run, on one machine, which generator, service and Postgres share.\n\n\
         {}; {} cores ({}), {:.0} GiB of memory; {}.\n\
         Postgres has its own defaults: `fsync` and `synchronous_commit` are on. {} events a workload; {} connections of the generator; \
         {repeats} {}, of which the median is shown, with the least and the greatest where there are several.\n\n",
        chrono::Utc::now().format("%Y-%m-%d"),
        machine.cores,
        machine.cpu,
        machine.memory_gib,
        machine.versions.join(", "),
        grouped(sizes.events),
        grouped(sizes.connections),
        if repeats == 1 { "run" } else { "runs" },
    );
    if let Some(chart) = chart {
        let _ = write!(page, "![Rates]({chart})\n\n");
    }
    page.push_str("## Workloads\n\n");
    workloads(&mut page, results);
    heals(&mut page, results);
    page.push_str("\n## Limits and the peer\n\n");
    limits(&mut page, results);
    lists(&mut page, results);
    page.push_str(
        "\n## Ratios\n\nEach from the figures of one repetition.\n\n| | ratio |\n| --- | ---: |\n",
    );
    for Ratio { label, figure, .. } in ratios(results) {
        let _ = writeln!(
            page,
            "| {label} | {} |",
            cell(Some(figure), digits(&figure))
        );
    }
    page.push_str(NOTES);
    goals(&mut page, results);
    page
}

const NOTES: &str = "
## How it is measured

- Each workload has a database of its own, filled beforehand, vacuumed and checkpointed, and a service of its own, started anew. The repetitions of `update-1m` share one database, whose inbox was filled with rows as the service leaves them, with bodies as long as those that are sent. It begins with as many updates that are not counted: the first change of a page after a checkpoint is logged as a whole page, and a million organizations have a hundred times the pages of `update`.
- Deliveries are built and signed just before, and connections are made: what the generator does meanwhile is to write, to read and to look at the clock, on one thread. A connection sends its next event when the last one is answered; *acknowledged/s* and the latencies of acknowledgement are seen from there.
- *applied/s* is events by the time from the first send until nothing in the inbox waits. *received→applied* is `processed_at - received_at` in the inbox.
- Afterwards the database is compared with what was sent: each event once, settled by one attempt; each organization as its newest event says. Anything else, or any answer but 2xx, fails the run.
- *RSS* is the kernel's own peak. CPU seconds are those of the service's process, of all of Postgres, and of the generator. `replay`'s are without the process's last moments.
- `same-name` compares the last events that were applied while deliveries still came in with the second thousand: what is applied when nothing is received any more has the processor for itself, and the first thousand pay for what is prepared but once. At 100,000 a window is 5,000 events, and not 1,000: a tenth of a second says nothing.
- `half-rate` measures from the moment an event was due, if no connection was free for it. pgbench's `-R` counts in the same way, with as many clients.
- The limits' transactions do for one event what the service does, but have no inbox and take no locks of organizations or slugs: the least that one transaction an event costs. Each is the best of 8, 16 and 32 clients, as `ack` is the better of 256 and 512 connections.
- The service logs warnings and errors, and the peer logs nothing. By default the service also logs a line for each event that it applied, as it does in `update-logged`.
- *WAL* is what the server wrote of it while a workload ran, and *dead rows* what updates and deletions left in all tables. Full pages after a checkpoint are in it.
- `update-watched` delivers four times, with the page open in the second and the third: the ratio is of the sums, the other figures are of the third. A browser asks for the overview, and then every 5 s for the same again.
- The lists are those of the page, each asked 100 times by turns, over one connection, with another organization and event each time. The inbox is that of `update-1m`, with dead letters of 10,000 organizations over the same two months, and 1,000 events each that wait, have failed and are discarded. A list that says *none* looks at 10,000 events, as many as a page of a list looks at.
- `backfill` and `reconcile` read organizations from a list that the generator serves, with bodies as long as WorkOS's own. `backfill`'s have no `external_id`, so each leaves the intention to write one. A request for a page can't be made before the page ahead of it has come: over a network, the list takes as long as the answers are away, and 10 ms is less than any of WorkOS's.
- The peer is one Node.js process with 20 connections, as many as the service has. It has no inbox, so its answer is its commit. It doesn't record the write-back.
";

const CPU: [Metric; 3] = [
    Metric::CpuService,
    Metric::CpuPostgres,
    Metric::CpuGenerator,
];

fn workloads(page: &mut String, results: &Results) {
    page.push_str(
        "| workload | events | connections | acknowledged/s | applied/s | ack p50 / p99 / p99.9, ms | received→applied p50 / p99, ms | drained after, s | RSS, MiB | CPU, service / Postgres / generator, s |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let present = Workload::value_variants()
        .iter()
        .filter(|workload| !workload.heals() && results.has(workload.name()));
    for workload in present.clone() {
        let name = workload.name();
        let figure = |metric| results.figure(name, metric);
        let _ = writeln!(
            page,
            "| `{name}` | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            medians(results, name, &[Metric::Deliveries], 0),
            medians(results, name, &[Metric::Clients], 0),
            cell(figure(Metric::AcknowledgedPerSecond), 0),
            cell(figure(Metric::AppliedPerSecond), 0),
            medians(
                results,
                name,
                &[Metric::AckP50, Metric::AckP99, Metric::AckP999],
                1
            ),
            medians(results, name, &[Metric::LagP50, Metric::LagP99], 1),
            medians(results, name, &[Metric::DrainedAfter], 2),
            medians(results, name, &[Metric::MaxRss], 0),
            medians(results, name, &CPU, 1),
        );
    }
    page.push('\n');
    for workload in present.clone() {
        let _ = writeln!(page, "- `{}`: {}", workload.name(), workload.description());
    }
    page.push_str(
        "\n## What an event costs\n\n\
         | workload | CPU of the service, µs | CPU of Postgres, µs | WAL, bytes | dead rows |\n\
         | --- | ---: | ---: | ---: | ---: |\n",
    );
    for workload in present {
        let name = workload.name();
        // Its seconds are those of one turn of four.
        if name == Workload::UpdateWatched.name() {
            continue;
        }
        let micros = |metric| {
            let seconds = results.ratio((name, metric), (name, Metric::Deliveries));
            cell(seconds.map(|seconds| seconds.times(1e6)), 0)
        };
        let _ = writeln!(
            page,
            "| `{name}` | {} | {} | {} | {} |",
            micros(Metric::CpuService),
            micros(Metric::CpuPostgres),
            cell(results.figure(name, Metric::Wal), 0),
            cell(results.figure(name, Metric::DeadRows), 2),
        );
    }
}

/// Those that read the list of WorkOS.
fn heals(page: &mut String, results: &Results) {
    let mut present = Workload::value_variants()
        .iter()
        .filter(|workload| workload.heals() && results.has(workload.name()))
        .peekable();
    if present.peek().is_none() {
        return;
    }
    page.push_str(
        "\n## Backfill and reconcile\n\n\
         | workload | organizations | s | organizations/s | a bare client lists them in, s | RSS, MiB | CPU, process / Postgres, s |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let mut descriptions = String::new();
    for workload in present {
        let name = workload.name();
        let figure = |metric| results.figure(name, metric);
        let _ = writeln!(
            page,
            "| `{name}` | {} | {} | {} | {} | {} | {} |",
            medians(results, name, &[Metric::Deliveries], 0),
            cell(figure(Metric::Elapsed), 1),
            cell(figure(Metric::AppliedPerSecond), 0),
            cell(figure(Metric::Listing), 1),
            cell(figure(Metric::MaxRss), 0),
            medians(results, name, &[Metric::CpuService, Metric::CpuPostgres], 1),
        );
        let _ = writeln!(descriptions, "- `{name}`: {}", workload.description());
    }
    let _ = write!(page, "\n{descriptions}");
}

fn limits(page: &mut String, results: &Results) {
    page.push_str(
        "| | per second | clients | p50 / p99 / p99.9, ms | RSS, MiB | CPU, process / Postgres / generator, s |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let mut row = |name: &str, label: &str, metric| {
        if !results.has(name) {
            return;
        }
        let _ = writeln!(
            page,
            "| {label} | {} | {} | {} | {} | {} |",
            cell(results.figure(name, metric), 0),
            medians(results, name, &[Metric::Clients], 0),
            medians(
                results,
                name,
                &[Metric::AckP50, Metric::AckP99, Metric::AckP999],
                1
            ),
            medians(results, name, &[Metric::MaxRss], 0),
            medians(results, name, &CPU, 1),
        );
    };
    for limit in limits::ALL {
        let label = format!("{}: {}", limit.name, limit.description);
        row(limit.name, &label, Metric::AppliedPerSecond);
    }
    let million = format!(
        "{}, over the organizations of `update-1m`",
        limits::UPDATE.name
    );
    row(UPDATE_MILLION, &million, Metric::AppliedPerSecond);
    row(
        INSERT_AT_RATE,
        "pgbench insert, at the rate of `half-rate`",
        Metric::AppliedPerSecond,
    );
    row(
        WITHOUT_DATABASE,
        "axum, signature and parser, without a database",
        Metric::AcknowledgedPerSecond,
    );
    for workload in PEER_WORKLOADS {
        let name = peer(workload);
        let label = format!("peer `{}` (Node.js, Express, pg)", workload.name());
        row(&name, &label, Metric::AppliedPerSecond);
    }
}

/// How long the page and the API take for each list.
fn lists(page: &mut String, results: &Results) {
    let mut names = lists::names().filter(|name| results.has(name)).peekable();
    if names.peek().is_none() {
        return;
    }
    page.push_str(
        "\n## The page and its lists\n\n\
         With 10,000,000 settled events and 100,000 dead letters.\n\n\
         | | page p50 / p95, ms | API p50 / p95, ms |\n\
         | --- | ---: | ---: |\n",
    );
    for name in names {
        let _ = writeln!(
            page,
            "| {name} | {} | {} |",
            medians(results, name, &[Metric::PageP50, Metric::PageP95], 1),
            medians(results, name, &[Metric::ApiP50, Metric::ApiP95], 1),
        );
    }
}

/// The p95 of the list that takes longest.
fn slowest_list(results: &Results) -> Option<Figure> {
    let p95 = |name| [Metric::PageP95, Metric::ApiP95].map(|metric| results.figure(name, metric));
    let figures = lists::names().flat_map(p95).flatten();
    figures.max_by(|one, other| one.median.total_cmp(&other.median))
}

/// What the peer is asked to do.
pub(crate) const PEER_WORKLOADS: [Workload; 2] = [Workload::Create, Workload::Update];

/// The name of the peer's results.
pub(crate) fn peer(workload: Workload) -> String {
    format!("peer {}", workload.name())
}

/// A ratio, and what it is to be.
struct Ratio {
    label: &'static str,
    figure: Figure,
    goal: Option<Goal>,
}

#[derive(Debug, Clone, Copy)]
enum Goal {
    AtLeast(f64),
    Below(f64),
}

fn ratios(results: &Results) -> Vec<Ratio> {
    use Goal::{AtLeast, Below};
    use Metric::{
        AckP99, AcknowledgedPerSecond, AppliedPerSecond, Elapsed, LastToFirst, Listing, MaxRss,
        WithToWithout,
    };
    let applied = |name| (name, AppliedPerSecond);
    let acknowledged = |name| (name, AcknowledgedPerSecond);
    let (update, create, insert) = (
        applied(limits::UPDATE.name),
        applied(limits::CREATE.name),
        applied(limits::INSERT.name),
    );
    let over = |label, goal, over, under| {
        let figure = results.ratio(over, under)?;
        Some(Ratio {
            label,
            figure,
            goal,
        })
    };
    let plain_over = |label, goal, name, metric, under: f64| {
        let figure = results.figure(name, metric)?.times(1.0 / under);
        Some(Ratio {
            label,
            figure,
            goal,
        })
    };
    let plain = |label, goal, name, metric| plain_over(label, goal, name, metric, 1.0);
    [
        over(
            "`update` applied ÷ pgbench update",
            Some(AtLeast(1.5)),
            applied("update"),
            update,
        ),
        over(
            "`create` applied ÷ pgbench create",
            Some(AtLeast(1.5)),
            applied("create"),
            create,
        ),
        over(
            "`update` applied ÷ peer",
            Some(AtLeast(8.0)),
            applied("update"),
            applied("peer update"),
        ),
        over(
            "`create` applied ÷ peer",
            Some(AtLeast(8.0)),
            applied("create"),
            applied("peer create"),
        ),
        over(
            "`ack` acknowledged ÷ pgbench insert",
            None,
            acknowledged("ack"),
            insert,
        ),
        // Both are answered by the same path; one of them writes nothing.
        over(
            "`ack` acknowledged ÷ `dup` acknowledged",
            Some(AtLeast(0.5)),
            acknowledged("ack"),
            acknowledged("dup"),
        ),
        over(
            "`update` acknowledged ÷ pgbench insert",
            None,
            acknowledged("update"),
            insert,
        ),
        over(
            "`burst` acknowledged ÷ pgbench insert",
            None,
            acknowledged("burst"),
            insert,
        ),
        over(
            "`ack` acknowledged ÷ no database",
            None,
            acknowledged("ack"),
            acknowledged(WITHOUT_DATABASE),
        ),
        over(
            "`hot` applied ÷ `update` applied",
            Some(AtLeast(1.0)),
            applied("hot"),
            applied("update"),
        ),
        over(
            "`update-logged` applied ÷ `update` applied",
            None,
            applied("update-logged"),
            applied("update"),
        ),
        over(
            "`update-held` applied ÷ `update` applied",
            Some(AtLeast(0.9)),
            applied("update-held"),
            applied("update"),
        ),
        over(
            "`update-1m` applied ÷ `update` applied",
            None,
            applied("update-1m"),
            applied("update"),
        ),
        over(
            "`update-1m` applied ÷ pgbench update, over the same organizations",
            Some(AtLeast(1.2)),
            applied("update-1m"),
            applied(UPDATE_MILLION),
        ),
        over(
            "pgbench update over the organizations of `update-1m` ÷ over 10,000",
            None,
            applied(UPDATE_MILLION),
            update,
        ),
        plain(
            "`same-name`: the last applied ÷ the first, per second",
            Some(AtLeast(0.8)),
            "same-name",
            LastToFirst,
        ),
        plain(
            "`same-name-100k`: the last applied ÷ the first, per second",
            Some(AtLeast(0.8)),
            "same-name-100k",
            LastToFirst,
        ),
        over(
            "`replay` applied ÷ pgbench update",
            Some(AtLeast(3.0)),
            applied("replay"),
            update,
        ),
        over(
            "`replay-at-once` applied ÷ `replay-serial` applied",
            Some(AtLeast(0.8)),
            applied("replay-at-once"),
            applied("replay-serial"),
        ),
        over(
            "`half-rate` p99 of acknowledgement ÷ p99 of pgbench insert at that rate, with as many clients",
            Some(Below(2.0)),
            ("half-rate", AckP99),
            (INSERT_AT_RATE, AckP99),
        ),
        over(
            "`backfill` organizations/s ÷ `replay` applied",
            Some(AtLeast(0.5)),
            applied("backfill"),
            applied("replay"),
        ),
        plain_over(
            "`backfill-budget` organizations/s ÷ what the budget lets through",
            Some(AtLeast(0.9)),
            "backfill-budget",
            AppliedPerSecond,
            DEFAULT_BUDGET,
        ),
        over(
            "`reconcile` ÷ the time in which a bare client lists as many",
            Some(Below(1.2)),
            ("reconcile", Elapsed),
            ("reconcile", Listing),
        ),
        plain(
            "`backfill` resident memory, MiB",
            Some(Below(80.0)),
            "backfill",
            MaxRss,
        ),
        plain(
            "`reconcile` resident memory, MiB",
            Some(Below(80.0)),
            "reconcile",
            MaxRss,
        ),
        plain(
            "`burst` resident memory, MiB",
            Some(Below(150.0)),
            "burst",
            MaxRss,
        ),
        plain(
            "`update-watched`: applied with the page open ÷ without",
            Some(AtLeast(0.97)),
            "update-watched",
            WithToWithout,
        ),
        slowest_list(results).map(|figure| Ratio {
            label: "the page and its lists: p95 of the slowest, ms",
            figure,
            goal: Some(Below(100.0)),
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Which goals are reached, by the median; and by how much one isn't.
fn goals(page: &mut String, results: &Results) {
    page.push_str(
        "\n## Goals\n\nBy the median.\n\n| | goal | measured | |\n| --- | ---: | ---: | --- |\n",
    );
    for Ratio {
        label,
        figure,
        goal,
    } in ratios(results)
    {
        let Some(goal) = goal else { continue };
        let (text, reached, goal) = match goal {
            Goal::AtLeast(goal) => (format!("≥ {goal}"), figure.median >= goal, goal),
            Goal::Below(goal) => (format!("< {goal}"), figure.median < goal, goal),
        };
        let verdict = if reached {
            "reached".to_owned()
        } else {
            format!("**not reached**: {:.2} × the goal", figure.median / goal)
        };
        let digits = digits(&figure);
        let _ = writeln!(
            page,
            "| {label} | {text} | {} | {verdict} |",
            cell(Some(figure), digits)
        );
    }
}

/// A ratio has two, memory needs none.
fn digits(figure: &Figure) -> usize {
    if figure.median < 30.0 { 2 } else { 0 }
}

/// A median, and the spread where there is one.
fn cell(figure: Option<Figure>, digits: usize) -> String {
    match figure {
        None => "–".to_owned(),
        Some(one) if one.least.total_cmp(&one.greatest).is_eq() => number(one.median, digits),
        Some(several) => format!(
            "{} ({}–{})",
            number(several.median, digits),
            number(several.least, digits),
            number(several.greatest, digits)
        ),
    }
}

fn medians(results: &Results, name: &str, metrics: &[Metric], digits: usize) -> String {
    let values = metrics
        .iter()
        .filter_map(|metric| results.figure(name, *metric));
    let texts: Vec<String> = values.map(|figure| number(figure.median, digits)).collect();
    if texts.is_empty() {
        "–".to_owned()
    } else {
        texts.join(" / ")
    }
}

fn grouped(count: usize) -> String {
    number(count as f64, 0)
}

/// With a comma between thousands.
fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// What a bar is of; the names are classes of the chart's style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Party {
    Service,
    Limit,
    Peer,
}

impl Party {
    const fn class(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Limit => "limit",
            Self::Peer => "peer",
        }
    }
}

struct Bar {
    label: String,
    rate: f64,
    party: Party,
}

/// Bars that are compared with each other. The ratios beside them are of the first to each.
struct Group {
    title: &'static str,
    bars: Vec<Bar>,
}

fn groups(results: &Results) -> Vec<Group> {
    use Metric::{AcknowledgedPerSecond, AppliedPerSecond};
    let bar = |label: &str, name: &str, metric, party| {
        Some(Bar {
            label: label.to_owned(),
            rate: results.figure(name, metric)?.median,
            party,
        })
    };
    let service = |workload: Workload| {
        let name = workload.name();
        bar(name, name, AppliedPerSecond, Party::Service)
    };
    let against = |workload: Workload, limit: limits::Limit| {
        vec![
            bar(
                "workos-sync",
                workload.name(),
                AppliedPerSecond,
                Party::Service,
            ),
            bar(
                "pgbench, one a transaction",
                limit.name,
                AppliedPerSecond,
                Party::Limit,
            ),
            bar(
                "Express, the SDK, pg",
                &peer(workload),
                AppliedPerSecond,
                Party::Peer,
            ),
        ]
    };
    [
        (
            "Updates applied per second",
            against(Workload::Update, limits::UPDATE),
        ),
        (
            "Creations applied per second",
            against(Workload::Create, limits::CREATE),
        ),
        (
            "Deliveries acknowledged per second, each durable",
            vec![
                bar(
                    "workos-sync",
                    Workload::Ack.name(),
                    AcknowledgedPerSecond,
                    Party::Service,
                ),
                bar(
                    "pgbench, one a transaction",
                    limits::INSERT.name,
                    AppliedPerSecond,
                    Party::Limit,
                ),
            ],
        ),
        (
            "Applied per second, whatever comes",
            [
                Workload::Update,
                Workload::UpdateMillion,
                Workload::Hot,
                Workload::SameNameLong,
                Workload::Burst,
                Workload::Replay,
            ]
            .map(service)
            .into(),
        ),
    ]
    .into_iter()
    .map(|(title, bars)| Group {
        title,
        bars: bars.into_iter().flatten().collect(),
    })
    .filter(|group| !group.bars.is_empty())
    .collect()
}

/// Opaque, so that it can be read on every page; dark where the reader prefers that.
const STYLE: &str = "<style>
.page{fill:#fff;stroke:#d1d9e0}.title{fill:#1f2328;font-weight:600}.label{fill:#1f2328}.ratio{fill:#59636e}
.service{fill:#2563eb}.limit{fill:#94a3b8}.peer{fill:#f59e0b}
@media(prefers-color-scheme:dark){
.page{fill:#0d1117;stroke:#3d444d}.title{fill:#f0f6fc}.label{fill:#f0f6fc}.ratio{fill:#9198a1}
.service{fill:#4c8dff}.limit{fill:#6e7681}.peer{fill:#d29922}}
</style>
";

/// Horizontal bars of the rates, in groups of what belongs together, all of one scale.
pub(crate) fn svg(results: &Results) -> String {
    const PAGE: f64 = 760.0;
    const LEFT: f64 = 220.0;
    const LONGEST: f64 = 360.0;
    const ROW: f64 = 24.0;
    const TITLE: f64 = 36.0;

    let groups = groups(results);
    let rates = groups
        .iter()
        .flat_map(|group| &group.bars)
        .map(|bar| bar.rate);
    let greatest = rates.fold(1.0, f64::max);
    let mut body = String::new();
    let mut y = 4.0;
    for Group { title, bars } in &groups {
        y += TITLE;
        let _ = writeln!(
            body,
            "<text x=\"20\" y=\"{:.0}\" class=\"title\">{title}</text>",
            y - 10.0
        );
        for (place, bar) in bars.iter().enumerate() {
            let length = LONGEST * bar.rate / greatest;
            let ratio = match place {
                0 => String::new(),
                // Shapes of load as a share of the first; others as what the first makes of them.
                _ if bar.party == Party::Service => {
                    format!("{:.2} × {}", bar.rate / bars[0].rate, bars[0].label)
                }
                _ => format!("workos-sync is {:.1} × as fast", bars[0].rate / bar.rate),
            };
            let _ = writeln!(
                body,
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\" class=\"label\">{}</text>\
                 <rect x=\"{LEFT:.0}\" y=\"{:.0}\" width=\"{length:.1}\" height=\"16\" rx=\"2\" class=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.0}\" class=\"label\">{}<tspan dx=\"8\" class=\"ratio\">{ratio}</tspan></text>",
                LEFT - 10.0,
                y + 12.0,
                bar.label,
                y,
                bar.party.class(),
                LEFT + length + 8.0,
                y + 12.0,
                number(bar.rate, 0),
            );
            y += ROW;
        }
    }
    let height = y + 12.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {PAGE:.0} {height:.0}\" font-family=\"system-ui, -apple-system, 'Segoe UI', sans-serif\" font-size=\"13\">\n\
         {STYLE}<rect x=\"0.5\" y=\"0.5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"6\" class=\"page\"/>\n{body}</svg>\n",
        PAGE - 1.0,
        height - 1.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Measurement;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(number(0.5, 2), "0.50");
        assert_eq!(number(999.4, 0), "999");
        assert_eq!(number(1_234_567.0, 0), "1,234,567");
        assert_eq!(number(12_345.67, 1), "12,345.7");
    }

    fn results() -> Results {
        let mut results = Results::default();
        let mut add = |name: &str, metric, value| {
            let mut measurement = Measurement::default();
            measurement.set(metric, value);
            results.add(name, measurement);
        };
        for (name, rate) in [
            ("update", 9_000.0),
            (limits::UPDATE.name, 8_000.0),
            ("peer update", 1_000.0),
            ("create", 9_600.0),
            (limits::CREATE.name, 5_000.0),
            ("peer create", 750.0),
            ("hot", 11_500.0),
            ("update-1m", 8_400.0),
            ("same-name-100k", 8_700.0),
            ("burst", 12_000.0),
            ("replay", 30_000.0),
            (limits::INSERT.name, 19_000.0),
        ] {
            add(name, Metric::AppliedPerSecond, rate);
        }
        add("ack", Metric::AcknowledgedPerSecond, 40_000.0);
        results
    }

    #[test]
    fn a_goal_says_by_how_much_it_is_missed() {
        let mut page = String::new();
        goals(&mut page, &results());
        for line in [
            "| `update` applied ÷ pgbench update | ≥ 1.5 | 1.12 | **not reached**: 0.75 × the goal |",
            "| `update` applied ÷ peer | ≥ 8 | 9.00 | reached |",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }

    #[test]
    fn the_chart_has_a_bar_for_each_rate() {
        let chart = svg(&results());
        assert_eq!(chart.matches("class=\"service\"").count(), 9);
        assert!(chart.contains("workos-sync is 9.0 × as fast"), "{chart}");
    }
}

//! The report: Markdown with every figure, and a bar chart of the rates. Written from the results alone; it
//! claims nothing that wasn't measured in this run.

use std::fmt::Write as _;
use std::process::Command;

use clap::ValueEnum;

use crate::limits;
use crate::measure::{Figure, Metric, Results};
use crate::postgres::Postgres;
use crate::process::first_line;
use crate::workload::{Sizes, Workload};

pub(crate) const WITHOUT_DATABASE: &str = "no database";
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
         Postgres has its own defaults: `fsync` and `synchronous_commit` are on. {} events a workload, {} in `burst`; {} connections; \
         {repeats} {}, of which the median is shown, with the least and the greatest where there are several.\n\n",
        chrono::Utc::now().format("%Y-%m-%d"),
        machine.cores,
        machine.cpu,
        machine.memory_gib,
        machine.versions.join(", "),
        sizes.events,
        sizes.burst,
        sizes.connections,
        if repeats == 1 { "run" } else { "runs" },
    );
    if let Some(chart) = chart {
        let _ = write!(page, "![Rates]({chart})\n\n");
    }
    page.push_str("## Workloads\n\n");
    workloads(&mut page, results);
    page.push_str("\n## Limits and the peer\n\n");
    limits(&mut page, results);
    page.push_str(
        "\n## Ratios\n\nEach from the figures of one repetition.\n\n| | ratio |\n| --- | ---: |\n",
    );
    for (label, figure) in ratios(results) {
        let _ = writeln!(page, "| {label} | {} |", cell(Some(figure), 2));
    }
    page.push_str(NOTES);
    page
}

const NOTES: &str = "
## How it is measured

- Each workload has a database of its own, filled beforehand, vacuumed and checkpointed, and a service of its own, started anew.
- A connection sends its next event when the last one is answered, signed at that moment; *acknowledged/s* and the latencies of acknowledgement are seen from there.
- *applied/s* is events by the time from the first send until nothing in the inbox waits. *received→applied* is `processed_at - received_at` in the inbox.
- Afterwards the database is compared with what was sent: each event once, settled by one attempt; each organization as its newest event says. Anything else, or any answer but 2xx, fails the run.
- *RSS* is the kernel's own peak. CPU seconds are those of the service's process, and of all of Postgres.
- `same-name`'s last thousand are applied when nothing is being received any more, its first thousand while much is.
- `half-rate` measures from the moment an event was due, if no connection was free for it. pgbench's `-R` counts in the same way.
- The limits' transactions do for one event what the service does, but have no inbox and take no locks of organizations or slugs: the least that one transaction an event costs.
- The peer is one Node.js process with 20 connections, as many as the service has. It has no inbox, so its answer is its commit. It doesn't record the write-back.
";

fn workloads(page: &mut String, results: &Results) {
    page.push_str(
        "| workload | acknowledged/s | applied/s | ack p50 / p99 / p99.9, ms | received→applied p50 / p99, ms | drained after, s | RSS, MiB | CPU, service / Postgres, s |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let present = Workload::value_variants()
        .iter()
        .filter(|workload| results.has(workload.name()));
    for workload in present.clone() {
        let name = workload.name();
        let figure = |metric| results.figure(name, metric);
        let _ = writeln!(
            page,
            "| `{name}` | {} | {} | {} | {} | {} | {} | {} |",
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
            medians(results, name, &[Metric::CpuService, Metric::CpuPostgres], 1),
        );
    }
    page.push('\n');
    for workload in present {
        let _ = writeln!(page, "- `{}`: {}", workload.name(), workload.description());
    }
}

fn limits(page: &mut String, results: &Results) {
    page.push_str(
        "| | per second | clients | p50 / p99 / p99.9, ms | RSS, MiB | CPU, process / Postgres, s |\n\
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
            medians(results, name, &[Metric::CpuService, Metric::CpuPostgres], 1),
        );
    };
    for limit in limits::ALL {
        let label = format!("{}: {}", limit.name, limit.description);
        row(limit.name, &label, Metric::AppliedPerSecond);
    }
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

/// What the peer is asked to do.
pub(crate) const PEER_WORKLOADS: [Workload; 2] = [Workload::Create, Workload::Update];

/// The name of the peer's results.
pub(crate) fn peer(workload: Workload) -> String {
    format!("peer {}", workload.name())
}

fn ratios(results: &Results) -> Vec<(&'static str, Figure)> {
    use Metric::{AckP99, AcknowledgedPerSecond, AppliedPerSecond};
    let applied = |name| (name, AppliedPerSecond);
    let acknowledged = |name| (name, AcknowledgedPerSecond);
    let (update, create, insert) = (
        limits::UPDATE.name,
        limits::CREATE.name,
        limits::INSERT.name,
    );
    [
        (
            "`update` applied ÷ pgbench update",
            applied("update"),
            applied(update),
        ),
        (
            "`create` applied ÷ pgbench create",
            applied("create"),
            applied(create),
        ),
        (
            "`update` applied ÷ peer",
            applied("update"),
            applied("peer update"),
        ),
        (
            "`create` applied ÷ peer",
            applied("create"),
            applied("peer create"),
        ),
        (
            "`update` acknowledged ÷ pgbench insert",
            acknowledged("update"),
            applied(insert),
        ),
        (
            "`create` acknowledged ÷ pgbench insert",
            acknowledged("create"),
            applied(insert),
        ),
        (
            "`burst` acknowledged ÷ pgbench insert",
            acknowledged("burst"),
            applied(insert),
        ),
        (
            "`update` acknowledged ÷ no database",
            acknowledged("update"),
            acknowledged(WITHOUT_DATABASE),
        ),
        (
            "`hot` applied ÷ `update` applied",
            applied("hot"),
            applied("update"),
        ),
        (
            "`replay` applied ÷ pgbench update",
            applied("replay"),
            applied(update),
        ),
        (
            "`update-1m` applied ÷ `update` applied",
            applied("update-1m"),
            applied("update"),
        ),
        (
            "`half-rate` p99 of acknowledgement ÷ p99 of pgbench insert at that rate",
            ("half-rate", AckP99),
            (INSERT_AT_RATE, AckP99),
        ),
    ]
    .into_iter()
    .filter_map(|(label, over, under)| Some((label, results.ratio(over, under)?)))
    .chain(
        results
            .figure("same-name", Metric::LastToFirst)
            .map(|figure| {
                (
                    "`same-name`: last 1,000 applied ÷ first 1,000, per second",
                    figure,
                )
            }),
    )
    .collect()
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

/// Horizontal bars of the rates, longest first within what belongs together.
pub(crate) fn svg(results: &Results) -> String {
    const OURS: &str = "#2563eb";
    const LIMIT: &str = "#94a3b8";
    const PEER: &str = "#f59e0b";
    const LEFT: f64 = 210.0;
    const WIDTH: f64 = 420.0;
    const ROW: f64 = 24.0;

    let mut bars: Vec<(String, f64, &str)> = Vec::new();
    let mut add = |label: String, name: &str, metric, colour| {
        if let Some(figure) = results.figure(name, metric) {
            bars.push((label, figure.median, colour));
        }
    };
    for (workload, limit) in [
        (Workload::Update, limits::UPDATE),
        (Workload::Create, limits::CREATE),
    ] {
        let name = workload.name();
        add(
            format!("{name}, applied/s"),
            name,
            Metric::AppliedPerSecond,
            OURS,
        );
        add(
            format!("{}, one a tx/s", limit.name),
            limit.name,
            Metric::AppliedPerSecond,
            LIMIT,
        );
        add(
            format!("{name}, peer/s"),
            &peer(workload),
            Metric::AppliedPerSecond,
            PEER,
        );
    }
    for workload in [
        Workload::Hot,
        Workload::SameName,
        Workload::Replay,
        Workload::UpdateMillion,
    ] {
        let name = workload.name();
        add(
            format!("{name}, applied/s"),
            name,
            Metric::AppliedPerSecond,
            OURS,
        );
    }
    add(
        "update, acknowledged/s".to_owned(),
        "update",
        Metric::AcknowledgedPerSecond,
        OURS,
    );
    add(
        "pgbench insert, one a tx/s".to_owned(),
        limits::INSERT.name,
        Metric::AppliedPerSecond,
        LIMIT,
    );

    let longest = bars.iter().map(|bar| bar.1).fold(1.0, f64::max);
    let height = ROW * bars.len() as f64 + 16.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 {height:.0}\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <rect width=\"720\" height=\"{height:.0}\" fill=\"#ffffff\"/>\n"
    );
    for (row, (label, value, colour)) in bars.iter().enumerate() {
        let top = 8.0 + ROW * row as f64;
        let (text, length) = (top + 16.0, WIDTH * value / longest);
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{text:.0}\" text-anchor=\"end\" fill=\"#0f172a\">{label}</text>\
             <rect x=\"{LEFT:.0}\" y=\"{:.0}\" width=\"{length:.1}\" height=\"16\" rx=\"2\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{text:.0}\" fill=\"#0f172a\">{}</text>",
            LEFT - 8.0,
            top + 4.0,
            LEFT + length + 6.0,
            number(*value, 0),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(number(0.5, 2), "0.50");
        assert_eq!(number(999.4, 0), "999");
        assert_eq!(number(1_234_567.0, 0), "1,234,567");
        assert_eq!(number(12_345.67, 1), "12,345.7");
    }
}

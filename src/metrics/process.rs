//! The process itself, under the names that Prometheus's own clients use. Linux only; elsewhere these are absent.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Reads `/proc` when somebody asks.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, unit: Option<&Unit>, help: &str, value: Option<f64>| {
            let Some(value) = value else {
                return Ok(());
            };
            let gauge = ConstGauge::new(value);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, help, unit, kind)?)
        };
        let stat = Stat::read();
        gauge(
            "process_start_time",
            Some(&Unit::Seconds),
            "When the process started.",
            stat.as_ref().and_then(Stat::started_at),
        )?;
        gauge(
            "process_resident_memory",
            Some(&Unit::Bytes),
            "Resident memory.",
            stat.as_ref().map(|stat| stat.resident_bytes),
        )?;
        gauge("process_open_fds", None, "Open files.", open_files())?;
        gauge(
            "process_max_fds",
            None,
            "Limit of open files.",
            getrlimit(Resource::Nofile).current.map(as_f64),
        )?;
        if let Some(stat) = stat {
            let counter = ConstCounter::new(stat.cpu_seconds);
            let kind = counter.metric_type();
            let help = "CPU time used.";
            counter.encode(encoder.encode_descriptor(
                "process_cpu",
                help,
                Some(&Unit::Seconds),
                kind,
            )?)?;
        }
        Ok(())
    }
}

/// What `/proc/self/stat` says (<https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    /// Since the machine was started.
    started_after: f64,
    resident_bytes: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let ticks = as_f64(clock_ticks_per_second());
        Self::parse(
            &fs::read_to_string("/proc/self/stat").ok()?,
            ticks,
            as_f64(page_size() as u64),
        )
    }

    fn parse(stat: &str, ticks_per_second: f64, page_size: f64) -> Option<Self> {
        // The second field is a name in parentheses, which may hold anything; the third follows it.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let (utime, stime, starttime, rss) = (field(14)?, field(15)?, field(22)?, field(24)?);
        Some(Self {
            cpu_seconds: (utime + stime) / ticks_per_second,
            started_after: starttime / ticks_per_second,
            resident_bytes: rss * page_size,
        })
    }

    fn started_at(&self) -> Option<f64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(boot.trim().parse::<f64>().ok()? + self.started_after)
    }
}

fn open_files() -> Option<f64> {
    // Among them the one that counts them.
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(as_f64(count.saturating_sub(1) as u64))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53, and a metric beyond"
)]
const fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of a program may look like the fields behind it.
    #[test]
    fn the_fields_are_counted_from_behind_the_name() {
        let stat = "7 (a) S 9 (b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 1200 9000000 300 \
                    18446744073709551615 1 1";
        assert_eq!(
            Stat::parse(stat, 100.0, 4_096.0),
            Some(Stat {
                cpu_seconds: 3.0,
                started_after: 12.0,
                resident_bytes: 1_228_800.0,
            })
        );
        for odd in ["", "7 (a S 1", "7 (a) S 1 2"] {
            assert_eq!(Stat::parse(odd, 100.0, 4_096.0), None, "{odd}");
        }
    }

    /// What is read of this process is about this process.
    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_measured() {
        let stat = Stat::read().unwrap();
        assert!(stat.resident_bytes > 1_000_000.0, "{stat:?}");
        assert!(stat.started_at().unwrap() > 1_700_000_000.0, "{stat:?}");
        let before = open_files().unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert!(open_files().unwrap() > before - 1.0);
        drop(file);
    }
}

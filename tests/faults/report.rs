//! What the suite has done and seen: the figures at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

/// The figures of all runs together.
#[derive(Debug, Default)]
pub(crate) struct Report(Mutex<Figures>);

#[derive(Debug, Default)]
struct Figures {
    counts: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
    recoveries: Vec<Duration>,
    slowest_answer: Duration,
}

impl Report {
    pub(crate) fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    pub(crate) fn add(&self, what: &'static str, count: u64) {
        *self.0.lock().unwrap().counts.entry(what).or_default() += count;
    }

    pub(crate) fn fault(&self, what: &'static str) {
        *self.0.lock().unwrap().faults.entry(what).or_default() += 1;
    }

    /// How long it took from the end of the last fault until every event was settled.
    pub(crate) fn recovery(&self, took: Duration) {
        self.0.lock().unwrap().recoveries.push(took);
    }

    pub(crate) fn slowest_answer(&self, took: Duration) {
        let slowest = &mut self.0.lock().unwrap().slowest_answer;
        *slowest = std::cmp::max(*slowest, took);
    }
}

/// The value below which the share of the values lies.
pub(crate) fn quantile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a list, rounded"
    )]
    let place = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(place).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.0.lock().unwrap();
        writeln!(f, "| what | count |\n| --- | ---: |")?;
        for (what, count) in &figures.counts {
            writeln!(f, "| {what} | {count} |")?;
        }
        writeln!(f, "\n| fault | injected |\n| --- | ---: |")?;
        for (fault, count) in &figures.faults {
            writeln!(f, "| {fault} | {count} |")?;
        }
        let seconds = |share| quantile(&figures.recoveries, share).as_secs_f64();
        write!(
            f,
            "\nfrom the end of the last fault until every event was settled: p50 {:.1} s, p95 {:.1} s, max {:.1} s\n\
             slowest answer of a replica that was left alone: {:.1} s\n",
            seconds(0.5),
            seconds(0.95),
            seconds(1.0),
            figures.slowest_answer.as_secs_f64(),
        )
    }
}

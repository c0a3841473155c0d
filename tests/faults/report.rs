//! What the suite has done and seen: the figures at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The figures of all runs together.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: Mutex<Figures>,
    /// How often this process itself was kept from running: what was late then, was late because of the machine.
    hiccups: AtomicU64,
}

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
        *self.figures.lock().unwrap().counts.entry(what).or_default() += count;
    }

    pub(crate) fn fault(&self, what: &'static str) {
        *self.figures.lock().unwrap().faults.entry(what).or_default() += 1;
    }

    /// Watches for moments in which the machine has no time for us.
    pub(crate) async fn watch_for_hiccups(&self) {
        const BEAT: Duration = Duration::from_millis(100);
        loop {
            let started = Instant::now();
            sleep(BEAT).await;
            if started.elapsed() > BEAT * 3 {
                self.hiccups.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn hiccups(&self) -> u64 {
        self.hiccups.load(Ordering::Relaxed)
    }

    /// How long it took from the end of the last fault until every event was settled.
    pub(crate) fn recovery(&self, took: Duration) {
        self.figures.lock().unwrap().recoveries.push(took);
    }

    pub(crate) fn slowest_answer(&self, took: Duration) {
        let slowest = &mut self.figures.lock().unwrap().slowest_answer;
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
        let figures = self.figures.lock().unwrap();
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
             slowest answer of a replica that was left alone: {:.1} s; the machine had no time for us {} times\n",
            seconds(0.5),
            seconds(0.95),
            seconds(1.0),
            figures.slowest_answer.as_secs_f64(),
            self.hiccups(),
        )
    }
}

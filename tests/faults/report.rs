//! What the suite has done and seen: the figures at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What the proxy's ambushes are counted as.
pub(crate) const AMBUSHED: &str = "ambushes that caught a transaction";

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

/// The table of `docs/reliability.md`, and what else was counted.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.figures.lock().unwrap();
        let counted = |what| thousands(figures.counts.get(what).copied().unwrap_or_default());
        let answers = [
            "answers 200",
            "answers 401",
            "answers 503",
            "deliveries without an answer",
        ];
        let seconds = |share| quantile(&figures.recoveries, share).as_secs_f64();
        let rows = [
            (
                "schedules / scenarios".to_owned(),
                ["schedules", "scenarios"].map(counted).join(" / "),
            ),
            ("events".to_owned(), counted("events")),
            ("deliveries".to_owned(), counted("deliveries")),
            (
                "answered 200 / 401 / 503 / not at all".to_owned(),
                answers.map(counted).join(" / "),
            ),
            (
                format!("faults injected, of {} kinds", figures.faults.len()),
                thousands(figures.faults.values().sum()),
            ),
            (
                "transactions that lost their answer, or were cut at COMMIT or INSERT".to_owned(),
                counted(AMBUSHED),
            ),
            (
                "from the end of the last fault until every event was settled".to_owned(),
                format!(
                    "p50 {:.1} s, p95 {:.1} s, max {:.1} s",
                    seconds(0.5),
                    seconds(0.95),
                    seconds(1.0)
                ),
            ),
            (
                "slowest answer of a replica that was left alone".to_owned(),
                format!("{:.1} s", figures.slowest_answer.as_secs_f64()),
            ),
        ];
        writeln!(f, "| what | |\n| --- | ---: |")?;
        for (what, value) in rows {
            writeln!(f, "| {what} | {value} |")?;
        }
        writeln!(f, "\n| counted | |\n| --- | ---: |")?;
        for (what, count) in figures.counts.iter().chain(&figures.faults) {
            writeln!(f, "| {what} | {} |", thousands(*count))?;
        }
        writeln!(
            f,
            "| moments in which the machine had no time for us | {} |",
            thousands(self.hiccups())
        )
    }
}

/// With a comma before each three digits.
fn thousands(number: u64) -> String {
    match (number / 1000, number % 1000) {
        (0, rest) => rest.to_string(),
        (more, rest) => format!("{},{rest:03}", thousands(more)),
    }
}

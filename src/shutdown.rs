//! The end of the process: the one owner of signals, of the tokens that ask tasks to stop, and of every
//! background task (R31).
//!
//! | what happens | then | exit code |
//! | --- | --- | --- |
//! | SIGTERM, SIGINT or SIGHUP, or [`Shutdown::request`] | the ending token is cancelled: say that the end has begun, and go on | 0 |
//! | the delay is over | the soft token is cancelled: take nothing new, finish what is in hand | 0 |
//! | the grace period is over | the hard token is cancelled: stop where you are; what is in hand is still in the inbox | 0 |
//! | a second signal, or [`Shutdown::insist`] | the hard token is cancelled; nobody is waited for | 1 |
//! | a background task ends that nobody asked to, or [`Shutdown::fail`] | as the end of the delay | 1 |
//!
//! The second signal is a failure because whoever sent it wants to be told that the orderly end didn't happen;
//! the grace period isn't, because nothing is lost with it.
//!
//! A SIGHUP that came ignored stays so: whoever used `nohup` wants the service to outlive the terminal.

use std::io;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long tasks have to see the hard token.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// How the process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All that was in hand is finished.
    Clean,
    /// The grace period was too short. What did not finish is still in the inbox.
    GraceExceeded,
    /// A second signal came.
    Forced,
    /// This background task ended by itself.
    Failed(&'static str),
}

impl Exit {
    /// Whether the process exits with 0.
    #[must_use]
    pub const fn is_success(self) -> bool {
        match self {
            Self::Clean | Self::GraceExceeded => true,
            Self::Forced | Self::Failed(_) => false,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        if exit.is_success() {
            Self::SUCCESS
        } else {
            Self::FAILURE
        }
    }
}

/// Owns the tokens and the tasks. One a process; tests make one without signals.
#[derive(Debug)]
pub struct Shutdown {
    /// A child of `soft`: without a delay, both are cancelled.
    ending: CancellationToken,
    soft: CancellationToken,
    /// A child of `insisted`.
    hard: CancellationToken,
    /// Cancelled by a second signal.
    insisted: CancellationToken,
    tracker: TaskTracker,
    /// The first background task that ended by itself.
    failed: Arc<OnceLock<&'static str>>,
    /// Turns signals into cancelled tokens. Not on the tracker: it lasts as long as this value.
    signals: Option<JoinHandle<()>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// One that only [`Self::request`] or a failed task begins: for tests.
    #[must_use]
    pub fn new() -> Self {
        let (soft, insisted) = (CancellationToken::new(), CancellationToken::new());
        Self {
            ending: soft.child_token(),
            soft,
            hard: insisted.child_token(),
            insisted,
            tracker: TaskTracker::new(),
            failed: Arc::default(),
            signals: None,
        }
    }

    /// Listens to SIGTERM, SIGINT and SIGHUP from now on, for the rest of the process: a start that takes its
    /// time can look at [`Self::ending`].
    ///
    /// # Errors
    /// The handlers can't be installed.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one task that is not on the tracker: it is what ends the others"
    )]
    pub fn on_signals() -> io::Result<Self> {
        let mut shutdown = Self::new();
        let mut signals = Signals::install()?;
        let (ending, insisted) = (shutdown.ending.clone(), shutdown.insisted.clone());
        shutdown.signals = Some(tokio::spawn(async move {
            let signal = signals.next().await;
            tracing::info!(signal, "shutting down");
            ending.cancel();
            let signal = signals.next().await;
            tracing::warn!(signal, "second signal: stopping at once");
            insisted.cancel();
        }));
        Ok(shutdown)
    }

    /// Cancelled when the end has begun. The service goes on, so that load balancers have the time to see it.
    #[must_use]
    pub const fn ending(&self) -> &CancellationToken {
        &self.ending
    }

    /// Cancelled when the service should take nothing new and finish what it has in hand.
    #[must_use]
    pub const fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Cancelled when whoever is still at work should stop where it is.
    #[must_use]
    pub const fn hard(&self) -> &CancellationToken {
        &self.hard
    }

    /// For tasks that end by themselves, such as connections. Whoever is on it is waited for.
    #[must_use]
    pub const fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Begins the end, as the first signal does.
    pub fn request(&self) {
        self.ending.cancel();
    }

    /// Ends it at once, as the second signal does.
    pub fn insist(&self) {
        self.insisted.cancel();
    }

    /// Ends it because something is broken that the service can't be without: its exit is a failure.
    pub fn fail(&self, name: &'static str) {
        // Only the first counts: the others may be its consequence.
        let _first = self.failed.set(name);
        self.soft.cancel();
    }

    /// An exit, unless a second signal has come since.
    #[must_use]
    pub fn unless_forced(&self, exit: Exit) -> Exit {
        if self.insisted.is_cancelled() {
            Exit::Forced
        } else {
            exit
        }
    }

    /// Runs a background task that should live until [`Self::soft`] is cancelled, and finish soon after.
    ///
    /// If it returns before, or panics at any time, the service is no longer whole, and a living door in front
    /// of a dead worker is worse than none: that is logged, ends the process, and makes its exit a failure.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let watch = Watch {
            name,
            soft: self.soft.clone(),
            failed: Arc::clone(&self.failed),
        };
        self.tracker.spawn(async move {
            let _watch = watch;
            task.await;
        });
    }

    /// Waits for the end to begin, then for `delay`, then at most `grace` for the tasks.
    pub async fn finish(&self, delay: Duration, grace: Duration) -> Exit {
        self.ending.cancelled().await;
        // Every arm only watches: cancel-safe.
        tokio::select! {
            () = self.soft.cancelled() => {}
            () = self.insisted.cancelled() => {}
            () = sleep(delay) => {}
        }
        self.soft.cancel();
        self.tracker.close();
        let exit = tokio::select! {
            biased;
            () = self.insisted.cancelled() => Exit::Forced,
            drained = timeout(grace, self.tracker.wait()) => match drained {
                Ok(()) => Exit::Clean,
                Err(_elapsed) => Exit::GraceExceeded,
            },
        };
        if exit == Exit::GraceExceeded {
            tracing::warn!(
                tasks = self.tracker.len(),
                grace_s = grace.as_secs_f64(),
                "the grace period is over; what did not finish is still in the inbox"
            );
            self.hard.cancel();
            // Time to see the token; whoever doesn't is dropped with the runtime.
            drop(timeout(LAST_MOMENT, self.tracker.wait()).await);
        }
        match (exit, self.failed.get()) {
            (Exit::Clean | Exit::GraceExceeded, Some(name)) => Exit::Failed(name),
            (exit, _) => exit,
        }
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        if let Some(signals) = &self.signals {
            signals.abort();
        }
    }
}

/// The signals that ask for the end.
struct Signals {
    term: Signal,
    int: Signal,
    /// `None`: it came ignored.
    hangup: Option<Signal>,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hangup: if came_ignored(SignalKind::hangup()) {
                None
            } else {
                Some(signal(SignalKind::hangup())?)
            },
        })
    }

    async fn next(&mut self) -> &'static str {
        let Self { term, int, hangup } = self;
        let hangup = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        // All are cancel-safe: a signal that isn't taken stays.
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
        }
    }
}

/// Whether this process was started with the signal ignored. Known on Linux only; elsewhere nothing tells without
/// code that is unsafe.
fn came_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (signal.as_raw_value() - 1) & 1 == 1)
}

/// Sees a task end, however it does: dropped when it returns, panics or is thrown away.
struct Watch {
    name: &'static str,
    soft: CancellationToken,
    failed: Arc<OnceLock<&'static str>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let panicked = std::thread::panicking();
        if !panicked && self.soft.is_cancelled() {
            return;
        }
        let name = self.name;
        let how = if panicked { "panicked" } else { "ended" };
        tracing::error!(
            task = name,
            "the background task {name} {how} by itself: shutting down"
        );
        // Only the first counts: the others may be its consequence.
        let _first = self.failed.set(name);
        self.soft.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any test takes; where it passes, the test fails.
    const LONG: Duration = Duration::from_mins(1);

    /// R31: tasks in hand finish, and the exit is a success.
    #[tokio::test]
    async fn tasks_finish_within_the_grace_period() {
        let shutdown = Shutdown::new();
        let soft = shutdown.soft().clone();
        let done = Arc::new(OnceLock::new());
        let did = Arc::clone(&done);
        shutdown.spawn("worker", async move {
            soft.cancelled().await;
            tokio::task::yield_now().await;
            did.set(()).unwrap();
        });
        shutdown.request();
        assert_eq!(shutdown.finish(Duration::ZERO, LONG).await, Exit::Clean);
        assert!(done.get().is_some());
    }

    /// R31: who doesn't finish in time is told to stop, and the exit is a success all the same.
    #[tokio::test]
    async fn the_end_of_the_grace_period_is_no_failure() {
        let shutdown = Shutdown::new();
        let hard = shutdown.hard().clone();
        shutdown.spawn("worker", async move { hard.cancelled().await });
        shutdown.request();
        let tracker = shutdown.tracker().clone();
        let exit = shutdown.finish(Duration::ZERO, Duration::ZERO).await;
        assert_eq!(exit, Exit::GraceExceeded);
        assert!(exit.is_success());
        assert!(tracker.is_empty(), "the task saw the hard token");
    }

    /// A living door in front of a dead worker is worse than none: its end is the service's.
    #[tokio::test]
    async fn a_task_that_ends_by_itself_ends_the_service() {
        let shutdown = Shutdown::new();
        shutdown.spawn("sweeper", async {});
        let exit = shutdown.finish(Duration::ZERO, LONG).await;
        assert_eq!(exit, Exit::Failed("sweeper"));
        assert!(!exit.is_success());
    }

    /// As when it returns; and a panic while finishing is one too.
    #[tokio::test]
    async fn a_task_that_panics_ends_the_service() {
        let shutdown = Shutdown::new();
        shutdown.spawn("sweeper", async { panic!("as this test wants") });
        assert_eq!(
            shutdown.finish(Duration::ZERO, LONG).await,
            Exit::Failed("sweeper")
        );

        let shutdown = Shutdown::new();
        let soft = shutdown.soft().clone();
        shutdown.spawn("outbox", async move {
            soft.cancelled().await;
            panic!("as this test wants")
        });
        shutdown.request();
        assert_eq!(
            shutdown.finish(Duration::ZERO, LONG).await,
            Exit::Failed("outbox")
        );
    }

    /// R31: for a while the end is only told; then it begins, unless whoever asked for it insists, or something
    /// breaks.
    #[tokio::test]
    async fn the_delay_comes_before_the_end() {
        let shutdown = Shutdown::new();
        let soft = shutdown.soft().clone();
        shutdown.spawn("worker", async move { soft.cancelled().await });
        shutdown.request();
        let waiting = timeout(Duration::from_millis(50), shutdown.finish(LONG, LONG)).await;
        assert!(waiting.is_err(), "{waiting:?}");
        assert!(shutdown.ending().is_cancelled() && !shutdown.soft().is_cancelled());
        let moment = Duration::from_millis(1);
        assert_eq!(shutdown.finish(moment, LONG).await, Exit::Clean);

        let shutdown = Shutdown::new();
        shutdown.request();
        shutdown.insist();
        assert_eq!(shutdown.finish(Duration::MAX, LONG).await, Exit::Forced);

        let shutdown = Shutdown::new();
        shutdown.fail("postgres");
        assert!(shutdown.ending().is_cancelled());
        let exit = shutdown.finish(Duration::MAX, LONG).await;
        assert_eq!(exit, Exit::Failed("postgres"));
    }

    /// R31: whoever insists isn't made to wait, and is told that it wasn't orderly.
    #[tokio::test]
    async fn the_hard_token_ends_the_wait() {
        let shutdown = Shutdown::new();
        shutdown.spawn("worker", std::future::pending());
        shutdown.request();
        shutdown.insist();
        let exit = shutdown.finish(Duration::ZERO, LONG).await;
        assert_eq!(exit, Exit::Forced);
        assert!(!exit.is_success());
    }

    /// R31: the first signal asks, the second insists. The signals are real; no other test of this binary
    /// listens to any.
    #[tokio::test]
    async fn the_second_signal_is_not_waited_for() {
        use rustix::process::{Signal, getpid, kill_process};

        let kill = |signal| kill_process(getpid(), signal).unwrap();

        let shutdown = Shutdown::on_signals().unwrap();
        shutdown.spawn("worker", std::future::pending());
        kill(Signal::TERM);
        timeout(LONG, shutdown.ending().cancelled()).await.unwrap();
        assert!(!shutdown.hard().is_cancelled());
        // Tests that `nohup` began don't get that one.
        let came_ignored = came_ignored(SignalKind::hangup());
        kill(if came_ignored {
            Signal::TERM
        } else {
            Signal::HUP
        });
        let exit = timeout(LONG, shutdown.finish(Duration::ZERO, Duration::MAX)).await;
        assert_eq!(exit.unwrap(), Exit::Forced);
    }
}

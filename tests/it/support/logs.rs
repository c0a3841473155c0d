//! Reads what the code under test logs.

use std::io;
use std::sync::{Arc, LazyLock, Mutex};

use tracing::subscriber::{DefaultGuard, NoSubscriber};
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::fmt::MakeWriter;

use super::TestDatabase;

/// The log of this thread, at every level, while it lives. A `#[tokio::test]` has one thread, so that is the log
/// of the test.
pub(crate) struct Logs {
    lines: Lines,
    _guard: DefaultGuard,
}

/// Makes a subscriber that of this thread.
///
/// While there is one subscriber in the process, whichever thread comes first to a line of the code decides whether it
/// is ever logged, and most have none. Beside a second one, each thread decides for itself.
pub(crate) fn set_default(subscriber: impl Subscriber + Send + Sync + 'static) -> DefaultGuard {
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::default()));
    LazyLock::force(&SECOND);
    tracing::subscriber::set_default(subscriber)
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Logs {
    /// Reads from now on.
    pub(crate) fn capture() -> Self {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(lines.clone())
            .with_ansi(false)
            .finish();
        Self {
            lines,
            _guard: set_default(subscriber),
        }
    }

    /// Captures the plans of the statements to come: Postgres explains each to its own session, and sqlx logs what it
    /// says.
    pub(crate) async fn explained(db: &TestDatabase) -> Self {
        sqlx::raw_sql(
            "do $$ begin
                 execute format('alter database %I set session_preload_libraries = auto_explain', current_database());
                 execute format('alter database %I set auto_explain.log_min_duration = 0', current_database());
                 execute format('alter database %I set auto_explain.log_analyze = on', current_database());
                 execute format('alter database %I set auto_explain.log_level = notice', current_database());
             end $$",
        )
        .execute(&db.pool)
        .await
        .unwrap();
        Self::capture()
    }

    /// Everything so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap()
    }

    /// The lines of a level, such as `ERROR`, that this crate logged.
    pub(crate) fn at(&self, level: &str) -> Vec<String> {
        self.text()
            .lines()
            .filter(|line| {
                // After the time and the level come the spans that the line is in, then its target.
                let (_, rest) = line.split_once('Z').unwrap_or_default();
                let said = rest.trim_start().strip_prefix(level).unwrap_or_default();
                said.contains(" workos_sync::") || said.contains(" workos_sync: ")
            })
            .map(str::to_owned)
            .collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

//! `workos-sync replay FILE…`: saved events, through the same inbox and guard. Files are read and stored chunk by chunk:
//! their length costs no memory.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::values::{Value, Values};
use super::{Database, bring_schema_up_to_date, open};
use crate::clock::DatabaseClock;
use crate::config::Config;
use crate::inbox::{Inbox, RecordError, Recorded, SavedEvent};
use crate::outbox::Outbox;
use crate::postgres;
use crate::telemetry::{self, Metrics};

/// The most events of a chunk. So many may wait to be applied, too.
const CHUNK_EVENTS: usize = 8_000;

/// The most bytes of a chunk's events, but for the last.
const CHUNK_BYTES: usize = 8 * 1_024 * 1_024;

pub(super) async fn run(mut config: Config, files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let database = Database::open(&config).await?;
    let pool = postgres::pool(database.options.clone(), config.database_max_connections);
    let result = replay(&config, &database, &pool, files).await;
    pool.close().await;
    database.close().await?;
    result
}

async fn replay(
    config: &Config,
    database: &Database,
    pool: &PgPool,
    files: &[PathBuf],
) -> anyhow::Result<ExitCode> {
    bring_schema_up_to_date(&database.options).await?;
    let clock = postgres::transaction(pool, postgres::PATIENCE, DatabaseClock::ask).await?;
    let clock = Arc::new(clock);
    let shutdown = CancellationToken::new();
    let inbox = Inbox::new(
        pool.clone(),
        clock.clone(),
        // Intentions are recorded; `serve` delivers them.
        Outbox::new(pool.clone(), None, clock),
        config.org_id_namespace,
        Metrics::default(),
        usize::try_from(config.database_max_connections / 2)?,
        shutdown.clone(),
    );
    let mut replay = Replay {
        inbox: &inbox,
        chunk: Chunk::default(),
        waiting: Vec::new(),
        report: Report::default(),
    };
    let done = replay.run(files).await;
    // Lanes that our events are in may have others without end: what is in hand is finished, and nothing more begun.
    shutdown.cancel();
    inbox.idle().await;
    done?;
    Ok(replay.report.print())
}

/// Where an event stands in a file.
struct Place<'a> {
    file: &'a Path,
    line: usize,
}

impl Display for Place<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Events that were read, and are to be stored together.
#[derive(Default)]
struct Chunk<'a> {
    events: Vec<(SavedEvent, Place<'a>)>,
    bytes: usize,
}

/// What became of the events.
#[derive(Default)]
struct Report {
    accepted: u64,
    duplicates: u64,
    ignored: u64,
    refused: u64,
    /// How the accepted ones ended, or where they stand.
    results: BTreeMap<String, u64>,
}

struct Replay<'a> {
    inbox: &'a Inbox,
    chunk: Chunk<'a>,
    /// The events that were accepted, and not applied at once.
    waiting: Vec<String>,
    report: Report,
}

impl<'a> Replay<'a> {
    /// Stores the events of the files, and has them applied. What is wrong with a file or an event is said, and counted.
    async fn run(&mut self, files: &'a [PathBuf]) -> anyhow::Result<()> {
        for file in files {
            match open(file) {
                Ok(source) => self.read(file, Values::new(source)).await?,
                Err(error) => self.report.refuse(&format!("{error:#}")),
            }
        }
        self.store().await?;
        self.settle().await
    }

    /// Reads a file; its last events may share a chunk with the first of the next.
    async fn read(&mut self, file: &'a Path, mut values: Values<impl Read>) -> anyhow::Result<()> {
        loop {
            let Value { line, text } = match values.next() {
                Ok(Some(value)) => value,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.report.refuse(&format!("{}: {error}", file.display()));
                    return Ok(());
                }
            };
            let place = Place { file, line };
            let bytes = text.as_ref().map_or(0, Vec::len);
            let event = text.and_then(|text| {
                let event = self.inbox.read_saved(text);
                event.map_err(|error| error.to_string())
            });
            match event {
                Ok(event) => self.chunk.events.push((event, place)),
                Err(reason) => self.report.refuse(&format!("{place}: {reason}")),
            }
            self.chunk.bytes += bytes;
            if self.chunk.events.len() >= CHUNK_EVENTS || self.chunk.bytes >= CHUNK_BYTES {
                self.store().await?;
            }
        }
    }

    /// Stores the chunk; applies what nobody is in the way of.
    async fn store(&mut self) -> anyhow::Result<()> {
        let mut events = std::mem::take(&mut self.chunk).events;
        // In the order in which they happened, as far as a chunk goes, whatever that of the files is.
        events.sort_by_cached_key(|(event, _)| event.id().order());
        let (events, places): (Vec<_>, Vec<_>) = events.into_iter().unzip();
        let report = &mut self.report;
        for (replayed, place) in self.inbox.record_all(events).await.into_iter().zip(places) {
            let replayed = match replayed {
                Ok(replayed) => replayed,
                Err(error @ RecordError::Unavailable { .. }) => {
                    return Err(error).with_context(|| place.to_string());
                }
                Err(error) => {
                    report.refuse(&format!("{place}: {error}"));
                    continue;
                }
            };
            match (replayed.recorded, replayed.outcome) {
                (Recorded::Duplicate, _) => report.duplicates += 1,
                (Recorded::Ignored, _) => report.ignored += 1,
                (Recorded::Accepted, outcome) => {
                    report.accepted += 1;
                    match outcome {
                        Some(outcome) => report.count(outcome.as_str().to_owned(), 1),
                        None => self.waiting.push(replayed.event_id.to_string()),
                    }
                }
            }
        }
        if self.waiting.len() > CHUNK_EVENTS {
            self.settle().await?;
        }
        Ok(())
    }

    /// Has those applied that wait.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        for (result, count) in self.inbox.settle_events(waiting).await? {
            self.report.count(result, count);
        }
        Ok(())
    }
}

impl Report {
    #[expect(
        clippy::print_stderr,
        reason = "each event or file that is refused, beside the result"
    )]
    fn refuse(&mut self, reason: &str) {
        self.refused += 1;
        eprintln!("{reason}");
    }

    fn count(&mut self, result: String, count: u64) {
        *self.results.entry(result).or_default() += count;
    }

    #[expect(clippy::print_stdout, reason = "the result is what was asked for")]
    fn print(self) -> ExitCode {
        let Self {
            accepted,
            duplicates,
            ignored,
            refused,
            results,
        } = self;
        println!(
            "accepted {accepted}, duplicate {duplicates}, ignored {ignored}, refused {refused}"
        );
        let mut results: Vec<_> = results.into_iter().collect();
        results.sort_by_key(|(_, count)| Reverse(*count));
        let mut all_applied = refused == 0;
        for (result, count) in results {
            println!("{count} {result}");
            all_applied &= !matches!(result.as_str(), "pending" | "failed" | "dead");
        }
        if all_applied {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

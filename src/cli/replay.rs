//! `workos-sync replay FILE…`: saved events, through the same inbox and guard. Files are read and stored chunk by chunk:
//! their length costs no memory.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::mpsc::{self, error::SendError};
use tracing::info;

use super::operating::{self, Desk};
use super::values::{Value, Values};
use super::{Database, Intent, open};
use crate::config::Config;
use crate::inbox::{DrainError, Inbox, RecordError, Recorded, Status};
use crate::operate::{FilterTexts, Selection, Verb, bulk};
use crate::pause::Pause;
use crate::service::Engine;
use crate::telemetry;

/// The most events of a chunk. As many may wait to be applied.
const CHUNK_EVENTS: usize = 8_000;

/// The most bytes of a chunk's events, but for the last one. Three chunks are in memory: one is read, one waits, and one
/// is stored.
const CHUNK_BYTES: usize = 4 * 1_024 * 1_024;

pub(super) async fn run(config: Config, files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    with_engine(config, async |_, engine| {
        let mut replay = Replay {
            inbox: &engine.inbox,
            waiting: Vec::new(),
            report: Report::default(),
        };
        replay.run(files).await?;
        Ok(replay.report.print())
    })
    .await
}

/// `workos-sync replay --from-inbox`: stored events, decided again (R46).
#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn from_inbox(
    config: Config,
    filter: FilterTexts,
    yes: bool,
) -> anyhow::Result<ExitCode> {
    with_engine(config, async |desk, engine| {
        let selection = Selection::Filter(desk.filter(filter)?);
        let count = bulk::count(&desk.pool, Verb::Replay, &selection).await?;
        let question = format!("replay {} in {}", operating::events(count), desk.url);
        if count > 0 && !operating::confirm(&question, yes)? {
            return Ok(ExitCode::FAILURE);
        }
        let actor = operating::actor();
        let mut bulk = bulk::begin(&desk.pool, Verb::Replay, selection, None, &actor).await?;
        let bar = operating::bar("replay", count);
        let mut report = Report::default();
        // Batch by batch, so that those that are to be applied don't pile up before what comes meanwhile.
        while let Some(ids) = bulk.next().await? {
            report.settle(&engine.inbox, ids).await?;
            bar.set_position(bulk.progress().count.unsigned_abs());
        }
        bar.finish_and_clear();
        bulk.log();
        let replayed = operating::events(bulk.progress().count);
        println!("{replayed} replayed in {}", desk.url);
        Ok(report.print_results())
    })
    .await
}

async fn with_engine(
    mut config: Config,
    work: impl AsyncFnOnce(&Desk, &Engine) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    Database::with(&config, async |database| {
        info!(database = %database.url, "replaying into {}", database.url);
        let replay = async |engine: &Engine| {
            let desk = Desk {
                pool: engine.pool.clone(),
                url: database.url.clone(),
                now: engine.clock.now(),
            };
            work(&desk, engine).await
        };
        database.with_engine(&config, Intent::Write, replay).await
    })
    .await
}

/// A file, or a line of it.
struct Place {
    file: Arc<Path>,
    line: Option<usize>,
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match self.line {
            Some(line) => write!(f, ":{line}"),
            None => Ok(()),
        }
    }
}

/// What was read somewhere; or why there is nothing.
type Found = (Place, Result<Vec<u8>, String>);

/// Reads files, chunk by chunk. On a thread of its own: what comes through a pipe may never end, and a signal has to be
/// seen all the same.
struct Reader {
    chunks: mpsc::Sender<Vec<Found>>,
    chunk: Vec<Found>,
    bytes: usize,
}

impl Reader {
    /// An error: nobody takes the chunks any more.
    fn read(mut self, files: Vec<PathBuf>) -> Result<(), SendError<Vec<Found>>> {
        for file in files {
            let file = Arc::from(file);
            let mut values = match open(&file) {
                Ok(source) => Values::new(source),
                Err(error) => {
                    self.put(&file, None, Err(error.to_string()))?;
                    continue;
                }
            };
            loop {
                match values.next() {
                    Ok(Some(Value { line, text })) => self.put(&file, Some(line), text)?,
                    Ok(None) => break,
                    Err(error) => {
                        self.put(&file, None, Err(error.to_string()))?;
                        break;
                    }
                }
            }
        }
        self.chunks.blocking_send(self.chunk)
    }

    fn put(
        &mut self,
        file: &Arc<Path>,
        line: Option<usize>,
        found: Result<Vec<u8>, String>,
    ) -> Result<(), SendError<Vec<Found>>> {
        let file = Arc::clone(file);
        self.bytes += found.as_ref().map_or(0, Vec::len);
        self.chunk.push((Place { file, line }, found));
        if self.chunk.len() < CHUNK_EVENTS && self.bytes < CHUNK_BYTES {
            return Ok(());
        }
        self.bytes = 0;
        self.chunks.blocking_send(std::mem::take(&mut self.chunk))
    }
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
    /// Until when those that are pending wait, if it is for that.
    pause: Option<Pause>,
}

struct Replay<'a> {
    inbox: &'a Inbox,
    /// The events that were accepted, and not applied at once.
    waiting: Vec<String>,
    report: Report,
}

impl Replay<'_> {
    /// Stores the events of the files, and has them applied.
    async fn run(&mut self, files: &[PathBuf]) -> anyhow::Result<()> {
        let (sender, mut chunks) = mpsc::channel(1);
        let reader = Reader {
            chunks: sender,
            chunk: Vec::new(),
            bytes: 0,
        };
        let files = files.to_vec();
        let reader = tokio::task::spawn_blocking(|| reader.read(files));
        while let Some(chunk) = chunks.recv().await {
            self.store(chunk).await?;
        }
        // It ended because there is no more.
        let _ = reader.await?;
        self.settle().await
    }

    /// Stores the events of a chunk, and applies those that nobody is in the way of.
    async fn store(&mut self, chunk: Vec<Found>) -> anyhow::Result<()> {
        let report = &mut self.report;
        let mut events = Vec::with_capacity(chunk.len());
        for (place, found) in chunk {
            let event = found.and_then(|text| {
                let event = self.inbox.read_saved(text);
                event.map_err(|error| error.to_string())
            });
            match event {
                Ok(event) => events.push((event, place)),
                Err(reason) => report.refuse(&place, &reason),
            }
        }
        // In the order in which they happened, as far as the chunk goes, whatever that of the files is.
        events.sort_by_cached_key(|(event, _)| event.id().order());
        let (events, places): (Vec<_>, Vec<_>) = events.into_iter().unzip();
        for (replayed, place) in self.inbox.record_all(events).await.into_iter().zip(places) {
            let replayed = match replayed {
                Ok(replayed) => replayed,
                Err(error @ RecordError::Unavailable { .. }) => {
                    return Err(error).with_context(|| place.to_string());
                }
                Err(error) => {
                    report.refuse(&place, &error);
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
        self.report.settle(self.inbox, waiting).await
    }
}

impl Report {
    #[expect(
        clippy::print_stderr,
        reason = "each event or file that is refused, beside the result"
    )]
    fn refuse(&mut self, place: &Place, reason: &dyn Display) {
        self.refused += 1;
        eprintln!("{place}: {reason}");
    }

    /// Has events applied, and counts how they end. During a pause they wait.
    async fn settle(&mut self, inbox: &Inbox, events: Vec<String>) -> anyhow::Result<()> {
        match inbox.drain_events(events).await {
            Ok(results) => {
                for (result, count) in results {
                    self.count(result, count);
                }
            }
            Err(DrainError::Paused {
                ended,
                waiting,
                pause,
            }) => {
                for (result, count) in ended {
                    self.count(result, count);
                }
                self.count(Status::Pending.as_str().to_owned(), waiting);
                self.pause = Some(pause);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
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
            ..
        } = self;
        println!(
            "accepted {accepted}, duplicate {duplicates}, ignored {ignored}, refused {refused}"
        );
        self.print_results()
    }

    #[expect(clippy::print_stdout, reason = "the result is what was asked for")]
    fn print_results(self) -> ExitCode {
        let mut results: Vec<_> = self.results.into_iter().collect();
        results.sort_by_key(|(_, count)| Reverse(*count));
        let mut all_applied = self.refused == 0;
        for (result, count) in results {
            println!("{count} {result}");
            all_applied &= !matches!(result.as_str(), "pending" | "failed" | "dead");
        }
        if let Some(pause) = self.pause {
            println!("{pause}: they wait until then");
        }
        if all_applied {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

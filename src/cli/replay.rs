//! `workos-sync replay FILE…`: saved events, through the same inbox and guard.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::PgPool;
use tracing::info;

use super::{Database, bring_schema_up_to_date, sign};
use crate::clock::DatabaseClock;
use crate::config::Config;
use crate::event::Event;
use crate::inbox::{Capacity, Inbox, RecordError, Recorded};
use crate::outbox::Outbox;
use crate::postgres;
use crate::telemetry::{self, Metrics};

/// How many events are stored before the next ones are: it bounds the memory beyond that of the files.
const CHUNK: usize = 8_000;

pub(super) async fn run(mut config: Config, files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    Database::with(&config, async |database| {
        info!(database = %database.url, "replaying into {}", database.url);
        let pool = postgres::pool(
            database.url.options.clone(),
            config.database_max_connections,
        );
        let result = replay(&config, database, &pool, files).await;
        pool.close().await;
        result
    })
    .await
}

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
#[expect(
    clippy::print_stderr,
    reason = "each event or file that is refused, beside the result"
)]
async fn replay(
    config: &Config,
    database: &Database,
    pool: &PgPool,
    files: &[PathBuf],
) -> anyhow::Result<ExitCode> {
    bring_schema_up_to_date(&database.url).await?;
    let clock = postgres::transaction(pool, postgres::PATIENCE, DatabaseClock::ask).await?;
    let clock = Arc::new(clock);
    let capacity = Capacity {
        apply_connections: usize::try_from(config.database_max_connections / 2)?,
        lock_places: postgres::transaction(pool, postgres::PATIENCE, postgres::lock_places).await?,
    };
    let inbox = Inbox::new(
        pool.clone(),
        clock.clone(),
        // Intentions are recorded; `serve` delivers them.
        Outbox::new(pool.clone(), None, clock),
        config.org_id_namespace,
        Metrics::default(),
        capacity,
        database.stop.clone(),
    );

    let (mut accepted, mut duplicates, mut ignored, mut refused) =
        (Vec::new(), 0_u64, 0_u64, 0_u64);
    let mut texts = Vec::new();
    for file in files {
        match sign::read(file).and_then(|bytes| text(bytes, file)) {
            Ok(text) => texts.push((file, text)),
            Err(error) => {
                refused += 1;
                eprintln!("{error:#}");
            }
        }
    }
    let mut refuse = |file, line, reason: &dyn Display| {
        refused += 1;
        eprintln!("{}: {reason}", at(file, line));
    };
    let mut read = Vec::new();
    for (file, text) in &texts {
        for (line, event) in events(text) {
            match Event::parse(event.as_bytes()) {
                Ok(event) => read.push((event, (*file, line))),
                Err(error) => refuse(file, line, &error),
            }
        }
    }
    // In the order in which they happened, whatever that of the files is.
    read.sort_by_cached_key(|(event, _)| event.id.order());
    let (events, places): (Vec<_>, Vec<_>) = read.into_iter().unzip();
    for (events, places) in events.chunks(CHUNK).zip(places.chunks(CHUNK)) {
        let recorded = inbox.record_all(events).await;
        for ((event, &(file, line)), recorded) in events.iter().zip(places).zip(recorded) {
            match recorded {
                Ok(Recorded::Accepted) => accepted.push(event.id.to_string()),
                Ok(Recorded::Duplicate) => duplicates += 1,
                Ok(Recorded::Ignored) => ignored += 1,
                Err(error @ RecordError::Unavailable { .. }) => {
                    return Err(error).with_context(|| at(file, line));
                }
                Err(error) => refuse(file, line, &error),
            }
        }
    }
    inbox.drain().await?;

    println!(
        "accepted {}, duplicate {duplicates}, ignored {ignored}, refused {refused}",
        accepted.len()
    );
    let mut unsettled = 0;
    for (result, count) in inbox.results(&accepted).await? {
        println!("{count} {result}");
        if matches!(result.as_str(), "failed" | "dead") {
            unsettled += count;
        }
    }
    Ok(if refused == 0 && unsettled == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn text(bytes: Vec<u8>, file: &Path) -> anyhow::Result<String> {
    String::from_utf8(bytes).with_context(|| format!("{}: not UTF-8", file.display()))
}

fn at(file: &Path, line: usize) -> String {
    format!("{}:{line}", file.display())
}

/// The events of a file, each as it stands there, with the number of its line: one JSON object, an array of
/// them, a list page of the Events API (`{"data":[…]}`), or JSON lines of any of these.
fn events(text: &str) -> Vec<(usize, &str)> {
    if let Ok(value) = serde_json::from_str::<&RawValue>(text) {
        return flatten(value.get(), 1);
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .flat_map(|(index, line)| flatten(line, index + 1))
        .collect()
}

fn flatten(value: &str, line: usize) -> Vec<(usize, &str)> {
    #[derive(Deserialize)]
    struct Page<'a> {
        #[serde(borrow)]
        event: Option<&'a RawValue>,
        #[serde(borrow)]
        data: Vec<&'a RawValue>,
    }

    let value = value.trim();
    let items = if value.starts_with('[') {
        serde_json::from_str::<Vec<&RawValue>>(value).ok()
    } else {
        // Were it an event, its data would be an object.
        serde_json::from_str::<Page<'_>>(value)
            .ok()
            .filter(|page| page.event.is_none())
            .map(|page| page.data)
    };
    match items {
        Some(items) => items.into_iter().map(|item| (line, item.get())).collect(),
        None => vec![(line, value)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_saved_events_is_taken() {
        let (a, b) = (
            r#"{"id":"a","event":"x","data":{}}"#,
            r#"{"id":"b","event":"x","data":[]}"#,
        );
        for (text, expected) in [
            (a.to_owned(), vec![(1, a)]),
            (format!("{a}\n\n{b}\n"), vec![(1, a), (3, b)]),
            (format!("[{a},\n {b}]"), vec![(1, a), (1, b)]),
            (
                format!(r#"{{"object":"list","data":[{a},{b}]}}"#),
                vec![(1, a), (1, b)],
            ),
            (
                format!("{a}\nnot json\r\n[{b}]"),
                vec![(1, a), (2, "not json"), (3, b)],
            ),
            (String::new(), vec![]),
        ] {
            assert_eq!(events(&text), expected, "{text}");
        }
    }
}

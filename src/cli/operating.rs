//! What the commands of operators share.

use std::io::{self, BufRead, IsTerminal, Write, stderr, stdin};
use std::process::Command;

use anyhow::bail;
use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use sqlx::PgPool;

use super::{Database, NOT_CURRENT};
use crate::clock::{Clock, DatabaseClock};
use crate::config::{Config, ConfigError};
use crate::operate::{Actor, Filter, FilterTexts, OperateError};
use crate::postgres::error::describe;
use crate::postgres::{self, DatabaseUrl, migrate};
use crate::telemetry;

/// The database, as an operator's command needs it.
pub(super) struct Desk {
    pub(super) pool: PgPool,
    pub(super) url: DatabaseUrl,
    /// The database's time.
    pub(super) now: DateTime<Utc>,
}

impl Desk {
    /// Runs a command's work on a database whose schema is current; changes nothing by itself.
    pub(super) async fn with<T>(
        mut config: Config,
        work: impl AsyncFnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
        Database::with(&config, async |database| {
            let pool = postgres::pool(database.url.options.clone(), 1);
            let result = async {
                let asked = postgres::transaction(&pool, postgres::PATIENCE, async |connection| {
                    let pending = migrate::pending(&mut *connection).await?;
                    Ok::<_, sqlx::Error>((pending, DatabaseClock::ask(connection).await?))
                });
                let (pending, clock) = asked
                    .await
                    .map_err(|error| anyhow::anyhow!("{}", describe(&error)))?;
                if !pending.is_empty() {
                    bail!(NOT_CURRENT);
                }
                let desk = Self {
                    pool: pool.clone(),
                    url: database.url.clone(),
                    now: clock.now(),
                };
                work(&desk).await
            }
            .await;
            pool.close().await;
            result
        })
        .await
    }

    /// Reads a filter, and says what it leaves out.
    pub(super) fn filter(&self, texts: FilterTexts) -> anyhow::Result<Filter> {
        let filter = texts.read(self.now).map_err(OperateError::from)?;
        if filter.is_last_day {
            say("of the last 24 hours: --since 7d looks further back");
        }
        Ok(filter)
    }
}

/// Says something beside the result.
#[expect(clippy::print_stderr, reason = "beside the result, and not logged")]
pub(super) fn say(text: &str) {
    eprintln!("{text}");
}

/// The user of the system who runs the command. The standard library knows no users.
pub(super) fn actor() -> Actor {
    let name = Command::new("id").arg("-un").output().ok();
    let name = name.filter(|answer| answer.status.success());
    let name = name.and_then(|answer| String::from_utf8(answer.stdout).ok());
    let name = name.map(|name| name.trim().to_owned());
    let name = name.filter(|name| !name.is_empty());
    Actor::User(name.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw())))
}

/// Asks whether to go on, unless that is said already.
///
/// # Errors
/// There is nobody to ask.
pub(super) fn confirm(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    if !stdin().is_terminal() || !stderr().is_terminal() {
        return Err(ConfigError {
            variable: "--yes",
            problem: format!("required where nobody can be asked: {question}?"),
        }
        .into());
    }
    let mut asking = stderr().lock();
    write!(asking, "{question}? [y/N] ")?;
    asking.flush()?;
    let answer = answer(&mut stdin().lock())?;
    if !answer {
        say("nothing is changed");
    }
    Ok(answer)
}

fn answer(from: &mut impl BufRead) -> io::Result<bool> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.trim();
    Ok(line.eq_ignore_ascii_case("y") || line.eq_ignore_ascii_case("yes"))
}

/// A bar on a terminal; nothing elsewhere.
pub(super) fn bar(what: &'static str, all: i64) -> ProgressBar {
    let bar = if stderr().is_terminal() {
        ProgressBar::new(all.unsigned_abs())
    } else {
        ProgressBar::hidden()
    };
    let style = ProgressStyle::with_template("{prefix}: {bar:30} {pos} of {len}, {elapsed}")
        .expect("a template that is right stays right");
    bar.with_style(style).with_prefix(what)
}

/// `1 event`, `2 events`.
pub(super) fn events(count: i64) -> String {
    format!("{count} event{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R48: only a yes is one.
    #[test]
    fn anything_but_yes_is_no() {
        for (text, is_yes) in [
            ("y\n", true),
            (" YES \n", true),
            ("\n", false),
            ("", false),
            ("n\n", false),
            ("yes please\n", false),
        ] {
            assert_eq!(answer(&mut text.as_bytes()).unwrap(), is_yes, "{text:?}");
        }
    }
}

//! What the commands share that ask WorkOS for everything.

use std::io::{IsTerminal, stderr};

use chrono::{DateTime, TimeDelta, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use tracing::info;

use super::Database;
use crate::config::{Config, ConfigError};
use crate::event::parse_timestamp;
use crate::heal::{Means, Progress};
use crate::service::Engine;
use crate::workos::{Priority, WorkosClient};

/// Has a command's work done with all that it needs to ask WorkOS, and ends what it has begun.
pub(super) async fn with<T>(
    config: &Config,
    what: &str,
    work: impl AsyncFnOnce(&Means) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let Some(key) = &config.api_key else {
        return Err(ConfigError {
            variable: "WORKOS_API_KEY",
            problem: format!("required by {what}"),
        }
        .into());
    };
    let client = WorkosClient::new(config.api_url.clone(), key.clone())?
        .limited_to(config.api_rps)
        .with_priority(Priority::Command);
    Database::with(config, async |database| {
        info!(database = %database.url, "{what}: into {}", database.url);
        let ask = async |engine: &Engine| {
            let Engine {
                pool,
                inbox,
                clock,
                target,
                ..
            } = engine.clone();
            let means = Means {
                pool,
                options: database.url.options.clone(),
                inbox,
                client,
                clock,
                target,
            };
            work(&means).await
        };
        database.with_engine(config, ask).await
    })
    .await
}

/// Shows how far a command is: a bar on a terminal, a log line a page elsewhere.
pub(super) struct Meter {
    what: &'static str,
    bar: Option<ProgressBar>,
}

impl Meter {
    pub(super) fn new(what: &'static str) -> Self {
        let bar = stderr().is_terminal().then(|| {
            // How many there are, WorkOS doesn't tell.
            let style = ProgressStyle::with_template(
                "{spinner} {prefix}: {pos} organizations, {per_sec}, {elapsed}",
            )
            .expect("a template that is right stays right");
            ProgressBar::no_length().with_style(style).with_prefix(what)
        });
        Self { what, bar }
    }

    pub(super) fn show(&self, progress: Progress) {
        let Progress { pages, seen } = progress;
        if let Some(bar) = &self.bar {
            bar.set_position(seen.unsigned_abs());
        } else {
            let what = self.what;
            info!(
                pages,
                organizations = seen,
                "{what}: {seen} organizations are read"
            );
        }
    }

    /// Has something printed beside it.
    pub(super) fn aside(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A time, as the command line takes it: RFC 3339, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    At(DateTime<Utc>),
    Ago(TimeDelta),
}

impl When {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(at) = parse_timestamp(text) {
            return Ok(Self::At(at));
        }
        let ago = || {
            let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
            let number: u32 = number.parse().ok()?;
            let of_one = match unit {
                "s" => TimeDelta::seconds(1),
                "m" => TimeDelta::minutes(1),
                "h" => TimeDelta::hours(1),
                "d" => TimeDelta::days(1),
                _ => return None,
            };
            of_one.checked_mul(i32::try_from(number).ok()?)
        };
        ago()
            .map(Self::Ago)
            .ok_or_else(|| "expected a time such as 2026-11-26T08:00:00Z, or 2h or 7d".to_owned())
    }

    pub(super) fn before(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.checked_sub_signed(ago).unwrap_or(DateTime::UNIX_EPOCH),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_or_how_long_ago() {
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        for (text, seconds) in [
            ("30s", 30),
            ("5m", 300),
            ("2h", 7_200),
            ("7d", 604_800),
            ("1970-01-12T13:46:30Z", 10),
        ] {
            let at = When::parse(text).unwrap().before(now);
            assert_eq!(at, now - TimeDelta::seconds(seconds), "{text}");
        }
        for text in ["", "h", "-2h", "2", "2w", "yesterday", "99999999999d", "é"] {
            assert!(When::parse(text).is_err(), "{text}");
        }
    }
}

//! What the commands share that ask WorkOS for everything.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};
use tracing::info;

use super::{Database, Intent};
use crate::config::{Config, ConfigError};
use crate::heal::{Means, Progress};
use crate::service::Engine;
use crate::workos::{Priority, WorkosClient};

/// Has a command's work done with all that it needs to ask WorkOS, and ends what it has begun.
pub(super) async fn with<T>(
    config: &Config,
    what: &str,
    intent: Intent,
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
        let place = match intent {
            Intent::Write => "into",
            Intent::Look => "looks at",
        };
        info!(database = %database.url, "{what}: {place} {}", database.url);
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
        database.with_engine(config, intent, ask).await
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

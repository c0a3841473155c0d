//! `workos-sync catch-up`: the events of a time, read by hand (R40).

use std::process::ExitCode;

use chrono::{DateTime, Utc};

use super::{Intent, asking};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::heal::catch_up;
use crate::operate::When;
use crate::telemetry;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(
    mut config: Config,
    since: &str,
    until: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let since = when("--since", since)?;
    let until = until.map(|until| when("--until", until)).transpose()?;
    check(since, until, SystemClock.now())?;
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let caught_up = asking::with(&config, "catch-up", Intent::Write, async |means| {
        let now = means.clock.now();
        let until = until.map(|until| until.before(now));
        Ok(catch_up::run(means, since.before(now), until).await?)
    })
    .await?;
    if caught_up.skipped > 0 {
        println!(
            "{} periods of 30 days are skipped: WorkOS doesn't show them any more",
            caught_up.skipped
        );
    }
    println!("{} new, {} known", caught_up.new, caught_up.known);
    let tally = caught_up.tally;
    for (count, result) in [
        (tally.created, "created"),
        (tally.updated, "updated"),
        (tally.linked, "linked"),
        (tally.disabled, "disabled"),
        (tally.stale, "stale"),
        (tally.dead, "dead"),
        (tally.unsettled, "failed"),
    ] {
        if count > 0 {
            println!("{count} {result}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn when(argument: &'static str, text: &str) -> Result<When, ConfigError> {
    When::parse(text).map_err(|expected| wrong(argument, format!("{expected}: {text:?}")))
}

/// A period that has no event is a mistake.
fn check(since: When, until: Option<When>, now: DateTime<Utc>) -> Result<(), ConfigError> {
    if since.before(now) >= now {
        let problem = "the period has to begin in the past";
        return Err(wrong("--since", problem.to_owned()));
    }
    if until.is_some_and(|until| until.before(now) <= since.before(now)) {
        let problem = "the period has to end after it begins";
        return Err(wrong("--until", problem.to_owned()));
    }
    Ok(())
}

const fn wrong(variable: &'static str, problem: String) -> ConfigError {
    ConfigError { variable, problem }
}

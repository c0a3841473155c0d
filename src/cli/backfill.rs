//! `workos-sync backfill`: all organizations of WorkOS, as snapshots (R41).

use std::process::ExitCode;

use tracing::warn;

use super::Intent;
use super::asking::{self, Meter};
use crate::config::Config;
use crate::heal::Tally;
use crate::heal::backfill::{self, Options};
use crate::telemetry;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(mut config: Config, options: Options) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let meter = Meter::new("backfill");
    let intent = if options.dry_run {
        Intent::Look
    } else {
        Intent::Write
    };
    let (done, tally) = asking::with(&config, "backfill", intent, async |means| {
        Ok(backfill::run(means, options, |progress| meter.show(progress)).await?)
    })
    .await?;
    drop(meter);
    let Tally {
        created,
        updated,
        linked,
        disabled,
        stale,
        dead,
        unsettled,
    } = tally;
    if dead > 0 {
        warn!(
            dead,
            "{dead} organizations can't be applied: they are dead letters in workos_sync.webhook_events"
        );
    }
    let would_be = if options.dry_run { "would be " } else { "" };
    println!("{} organizations", done.seen);
    for (count, result) in [
        (created, "created"),
        (updated, "updated"),
        (linked, "linked"),
        (disabled, "disabled"),
        (stale, "stale"),
        (dead, "dead"),
    ] {
        println!("{count} {would_be}{result}");
    }
    if unsettled > 0 {
        println!("{unsettled} will be tried again");
    }
    Ok(ExitCode::SUCCESS)
}

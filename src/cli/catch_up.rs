//! `workos-sync catch-up`: the events of a time, read by hand (R40).

use std::process::ExitCode;

use super::asking;
use crate::config::Config;
use crate::heal::catch_up;
use crate::operate::When;
use crate::telemetry;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(
    mut config: Config,
    since: When,
    until: Option<When>,
) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let caught_up = asking::with(&config, "catch-up", async |means| {
        let now = means.clock.now();
        let until = until.map(|until| until.before(now));
        Ok(catch_up::run(means, since.before(now), until).await?)
    })
    .await?;
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

//! `workos-sync pause` and `workos-sync resume` (R49).

use std::process::ExitCode;

use chrono::TimeDelta;
use serde_json::json;

use super::operating::{self, Desk};
use crate::config::Config;
use crate::operate::pausing;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn pause(
    config: Config,
    length: TimeDelta,
    reason: Option<&str>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    Desk::with(config, async |desk| {
        let pause = pausing::pause(&desk.pool, length, reason, &operating::actor()).await?;
        if json {
            println!("{}", json!(pause));
        } else {
            println!("{}: {pause}; `workos-sync resume` ends it", desk.url);
        }
        Ok(ExitCode::SUCCESS)
    })
    .await
}

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn resume(config: Config, json: bool) -> anyhow::Result<ExitCode> {
    Desk::with(config, async |desk| {
        let ended = pausing::resume(&desk.pool, &operating::actor()).await?;
        if json {
            println!("{}", json!({ "ended": ended }));
        } else if ended.is_some() {
            println!("{}: events are applied again", desk.url);
        } else {
            println!("{}: there was no pause", desk.url);
        }
        Ok(ExitCode::SUCCESS)
    })
    .await
}

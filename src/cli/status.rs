//! `workos-sync status`: may the mirror be trusted? (R45)

use std::process::ExitCode;

use serde_json::json;

use super::operating::Desk;
use super::table::{Facts, time};
use crate::config::Config;
use crate::heal::trust::{self, Status};
use crate::postgres::error::describe;

/// It may not.
const NOT_TRUSTED: u8 = 3;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(config: Config, json: bool) -> anyhow::Result<ExitCode> {
    let status = Desk::with(config, async |desk| {
        let status = trust::status(&desk.pool).await;
        status.map_err(|error| anyhow::anyhow!("{}", describe(&error)))
    })
    .await?;
    if json {
        println!("{}", json!(status));
    } else {
        print!("{}", text(&status));
    }
    Ok(if status.trusted {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_TRUSTED)
    })
}

fn text(status: &Status) -> String {
    let verdict = if status.trusted {
        "in step: the table may be trusted"
    } else {
        "the table may not be trusted:"
    };
    let mut lines = vec![verdict.to_owned()];
    lines.extend(status.reasons.iter().map(|reason| format!("  - {reason}")));
    let mut facts = Facts::default();
    for (what, at) in [
        ("last webhook", status.last_webhook_at),
        ("last poll", status.last_poll_at),
        ("last drained poll", status.last_drained_poll_at),
        ("last backfill", status.last_backfill_at),
        ("last reconcile", status.last_reconcile_at),
    ] {
        facts.push(what, at.map_or_else(|| "never".to_owned(), time));
    }
    for (what, count) in [
        ("pending", status.pending),
        ("failed", status.failed),
        ("dead", status.dead),
        ("write-backs", status.pushes),
    ] {
        facts.push(what, count);
    }
    if let Some(until) = status.paused_until {
        let reason = status.pause_reason.as_deref();
        let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        facts.push("paused until", format!("{}{reason}", time(until)));
    }
    facts.push_some("oldest unapplied", status.oldest_unapplied_at.map(time));
    format!("{}\n{facts}", lines.join("\n"))
}

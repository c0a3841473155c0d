//! `workos-sync status`: may the mirror be trusted? (R45)

use std::process::ExitCode;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;

use super::Database;
use crate::config::Config;
use crate::heal::trust::{self, Status};
use crate::postgres;
use crate::telemetry;

/// It may not.
const NOT_TRUSTED: u8 = 3;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(mut config: Config, json: bool) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let status = Database::with(&config, async |database| {
        let pool = postgres::pool(database.url.options.clone(), 1);
        let status = trust::status(&pool).await;
        pool.close().await;
        status.map_err(|error| anyhow::anyhow!("{}", postgres::error::describe(&error)))
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
    let time = |at: Option<DateTime<Utc>>| {
        at.map_or_else(
            || "never".to_owned(),
            |at| at.to_rfc3339_opts(SecondsFormat::Secs, true),
        )
    };
    let mut lines = vec![if status.trusted {
        "in step: the table may be trusted".to_owned()
    } else {
        "the table may not be trusted:".to_owned()
    }];
    lines.extend(status.reasons.iter().map(|reason| format!("  - {reason}")));
    for (what, at) in [
        ("last webhook", status.last_webhook_at),
        ("last poll", status.last_poll_at),
        ("last drained poll", status.last_drained_poll_at),
        ("last backfill", status.last_backfill_at),
        ("last reconcile", status.last_reconcile_at),
    ] {
        lines.push(format!("{what:<18} {}", time(at)));
    }
    for (what, count) in [
        ("pending", status.pending),
        ("failed", status.failed),
        ("dead", status.dead),
        ("write-backs", status.pushes),
    ] {
        lines.push(format!("{what:<18} {count}"));
    }
    if let Some(until) = status.paused_until {
        let reason = status.pause_reason.as_deref();
        let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        lines.push(format!(
            "{:<18} {}{reason}",
            "paused until",
            time(Some(until))
        ));
    }
    if let Some(at) = status.oldest_unapplied_at {
        lines.push(format!("{:<18} {}", "oldest unapplied", time(Some(at))));
    }
    lines.join("\n") + "\n"
}

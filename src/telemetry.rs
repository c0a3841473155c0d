//! The log.
//!
//! Fields have the same names everywhere: `event.id`, `event.type`, `workos.organization_id` (theirs),
//! `organization_id` (ours), `source`, `attempts`, `outcome`, `error`. A message can be read without its
//! fields, and found by them. Times are RFC 3339. Bodies, secrets and signatures are never logged, at no level.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Begins to log, to standard error: standard output is for data.
pub fn init(format: Option<LogFormat>, level: EnvFilter) {
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(std::io::stderr)
        // It would say on standard error that standard error is gone, and panic.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => {
            let colour =
                terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            builder.with_ansi(colour).with_target(false).init();
        }
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .init(),
    }
}

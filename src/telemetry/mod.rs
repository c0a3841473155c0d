//! The log.
//!
//! Fields have the same names everywhere: `event.id`, `event.type`, `workos.organization_id` (theirs),
//! `organization_id` (ours), `source`, `attempts`, `outcome`, `error`. A message can be read without its
//! fields, and found by them. Times are RFC 3339. Bodies, secrets and signatures are never logged, at no level.

#[cfg(feature = "otlp")]
mod otlp;

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::LogFormat;

/// Begins to log, to standard error: standard output is for data. With the feature `otlp`, begins to trace.
pub fn init(format: Option<LogFormat>, level: EnvFilter) {
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // It would say on standard error that standard error is gone, and panic.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => {
            let colour =
                terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            install(log.with_ansi(colour).with_target(false), level);
        }
        LogFormat::Json => install(
            log.json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false),
            level,
        ),
    }
}

/// Sends what has been traced: at the end of the process.
pub fn end() {
    #[cfg(feature = "otlp")]
    otlp::end();
}

#[cfg(not(feature = "otlp"))]
fn install(log: impl Layer<Registry> + Send + Sync, level: EnvFilter) {
    tracing_subscriber::registry().with(log).with(level).init();
}

/// The level is the log's alone: traces have one of their own.
#[cfg(feature = "otlp")]
fn install(log: impl Layer<Registry> + Send + Sync, level: EnvFilter) {
    let log = log.with_filter(level);
    match otlp::layer() {
        Ok(traces) => tracing_subscriber::registry().with(log).with(traces).init(),
        Err(error) => {
            tracing_subscriber::registry().with(log).init();
            tracing::error!(%error, "nothing is traced: {error}");
        }
    }
}

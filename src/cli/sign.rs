//! `workos-sync sign FILE`: prints a fresh signature header.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use super::open;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::postgres::embedded;
use crate::signature;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) fn run(config: &Config, file: &Path) -> anyhow::Result<ExitCode> {
    let secret = match config.webhook_secrets.first() {
        Some(secret) => secret.clone(),
        None if config.database_url.is_none() => embedded::webhook_secret(&config.data_dir)?,
        None => {
            return Err(ConfigError {
                variable: "WORKOS_WEBHOOK_SECRET",
                problem: "required to sign".to_owned(),
            }
            .into());
        }
    };
    let mut body = Vec::new();
    open(file)?
        .read_to_end(&mut body)
        .with_context(|| file.display().to_string())?;
    println!(
        "WorkOS-Signature: {}",
        signature::sign(&secret, &body, SystemClock.now())
    );
    Ok(ExitCode::SUCCESS)
}

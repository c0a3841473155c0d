//! `workos-sync sign FILE`: prints a fresh signature header.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use secrecy::SecretString;

use super::open;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::postgres::embedded;
use crate::signature;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) fn run(config: &Config, file: &Path) -> anyhow::Result<ExitCode> {
    let secret = match config.webhook_secrets.first() {
        Some(secret) => secret.clone(),
        None => made_secret(config)?,
    };
    let mut body = Vec::new();
    open(file)
        .and_then(|mut source| source.read_to_end(&mut body))
        .with_context(|| file.display().to_string())?;
    println!(
        "WorkOS-Signature: {}",
        signature::sign(&secret, &body, SystemClock.now())
    );
    Ok(ExitCode::SUCCESS)
}

/// The one that `serve` made beside its private database. None is made here: nobody would accept its signatures.
fn made_secret(config: &Config) -> anyhow::Result<SecretString> {
    let wrong = |problem| ConfigError {
        variable: "WORKOS_WEBHOOK_SECRET",
        problem,
    };
    if config.database_url.is_some() {
        return Err(wrong("required to sign".to_owned()).into());
    }
    let made = embedded::webhook_secret(&config.data_dir)?;
    Ok(made.ok_or_else(|| {
        wrong(format!(
            "not set, and `workos-sync serve` has made none in {}",
            config.data_dir.display()
        ))
    })?)
}

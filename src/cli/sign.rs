//! `workos-sync sign FILE`: prints a fresh signature header.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use secrecy::SecretString;

use super::{open, private};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::signature;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) fn run(config: &Config, file: &Path) -> anyhow::Result<ExitCode> {
    let secret = match config.webhook_secrets.first() {
        Some(secret) => secret.clone(),
        None => the_made_one(config)?,
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

fn the_made_one(config: &Config) -> anyhow::Result<SecretString> {
    let wrong = |problem| ConfigError {
        variable: "WORKOS_WEBHOOK_SECRET",
        problem,
    };
    if config.database_url.is_some() {
        return Err(wrong("required to sign".to_owned()).into());
    }
    Ok(private::webhook_secret(config)?.ok_or_else(|| {
        wrong(format!(
            "not set, and `workos-sync serve` has made none in {}",
            config.data_dir.display()
        ))
    })?)
}

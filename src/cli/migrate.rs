//! `workos-sync migrate`

use std::process::ExitCode;

use anyhow::Context;

use super::Database;
use crate::config::Config;
use crate::postgres::migrate;
use crate::telemetry;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(mut config: Config) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let database = Database::open(&config).await?;
    let applied = migrate::run(&database.options)
        .await
        .context("the schema can't be brought up to date");
    database.close().await?;
    let applied = applied?;
    if applied.is_empty() {
        println!("the schema is current");
    }
    for version in applied {
        println!("applied {version}");
    }
    Ok(ExitCode::SUCCESS)
}

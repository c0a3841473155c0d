//! `workos-sync migrate`

use std::process::ExitCode;

use super::{Database, bring_schema_up_to_date};
use crate::config::Config;
use crate::telemetry;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(mut config: Config) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let applied = Database::with(&config, async |database| {
        bring_schema_up_to_date(&database.options).await
    })
    .await?;
    if applied.is_empty() {
        println!("the schema is current");
    }
    for version in applied {
        println!("applied {version}");
    }
    Ok(ExitCode::SUCCESS)
}

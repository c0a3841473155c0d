//! `workos-sync migrate`

use std::process::ExitCode;

use super::{Database, bring_schema_up_to_date};
use crate::config::Config;
use crate::telemetry;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(mut config: Config) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let (applied, place) = Database::with(&config, async |database| {
        let applied = bring_schema_up_to_date(&database.url).await?;
        Ok((applied, database.url.to_string()))
    })
    .await?;
    if applied.is_empty() {
        println!("the schema of {place} is current");
    }
    for version in applied {
        println!("applied {version} into {place}");
    }
    Ok(ExitCode::SUCCESS)
}

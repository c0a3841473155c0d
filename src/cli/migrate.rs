//! `workos-sync migrate`

use std::process::ExitCode;

use super::{Database, bring_schema_up_to_date, unusable, warn_of};
use crate::config::Config;
use crate::telemetry;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(mut config: Config) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let database = Database::open(&config).await?;
    let schema = bring_schema_up_to_date(&database.options).await;
    database.close().await?;
    let schema = schema?;
    for version in &schema.applied {
        println!("applied {version}");
    }
    for made in &schema.made {
        println!("{made}");
    }
    warn_of(&schema.table);
    if !schema.table.is_usable() {
        return Err(unusable(&schema.table));
    }
    if schema.applied.is_empty() && schema.made.is_empty() {
        println!("the schema is current");
    }
    Ok(ExitCode::SUCCESS)
}

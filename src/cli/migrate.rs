//! `workos-sync migrate`

use std::process::ExitCode;

use tracing::warn;

use super::{Database, bring_schema_up_to_date, unusable};
use crate::config::Config;
use crate::postgres::migrate;
use crate::telemetry;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(mut config: Config) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let (schema, writers, place) = Database::with(&config, async |database| {
        let schema = bring_schema_up_to_date(&database.url).await?;
        let writers = migrate::inbox_writers(&database.url.options).await?;
        Ok((schema, writers, database.url.to_string()))
    })
    .await?;
    for version in &schema.applied {
        println!("applied {version} into {place}");
    }
    for made in &schema.made {
        println!("{made} in {place}");
    }
    for finding in schema.table.warnings() {
        warn!("{finding}");
    }
    if !writers.is_empty() {
        let writers = writers.join(", ");
        warn!(
            "not only the owner may write webhook_events, and what is written there is applied without a signature: {writers}"
        );
    }
    if !schema.table.is_usable() {
        return Err(unusable(&schema.table));
    }
    if schema.applied.is_empty() && schema.made.is_empty() {
        println!("the schema of {place} is current");
    }
    Ok(ExitCode::SUCCESS)
}

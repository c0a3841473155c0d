//! `workos-sync doctor`: presents what the doctor finds (R52).

use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;
use url::Url;

use super::{Database, private};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::doctor::{Check, Level, Setup};
use crate::telemetry;
use crate::workos::{Priority, WorkosClient};

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(
    mut config: Config,
    url: Option<Url>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let mut secrets = std::mem::take(&mut config.webhook_secrets);
    if secrets.is_empty() && config.database_url.is_none() {
        secrets.extend(private::webhook_secret(&config)?);
    }
    let client = match &config.api_key {
        Some(key) => {
            let client = WorkosClient::new(config.api_url.clone(), key.clone())?;
            let client = client.limited_to(config.api_rps);
            Some(client.with_priority(Priority::Command))
        }
        None => None,
    };
    let checks = Database::reached_or_not(&config, async |database| {
        let setup = Setup {
            database: database.url.clone(),
            migrates_on_start: config.migrate_on_start,
            secrets,
            tolerance: config.webhook_tolerance,
            client,
            webhook_path: config.webhook_path.clone(),
            url,
            clock: Arc::new(SystemClock),
        };
        Ok(setup.examine().await)
    })
    .await?;
    for check in &checks {
        if json {
            println!("{}", json!(check));
        } else {
            let Check { check, level, says } = check;
            println!("{:<5} {check:<14} {says}", level.as_str());
        }
    }
    let fails = checks.iter().any(|check| check.level == Level::Fail);
    Ok(if fails {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Where WorkOS is to deliver to.
pub(super) fn public_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    });
    url.ok_or_else(|| {
        "expected the URL that WorkOS delivers to, such as https://example.com/webhooks/workos"
            .to_owned()
    })
}

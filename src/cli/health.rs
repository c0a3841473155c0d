//! `workos-sync health`: asks `healthz` of the service that runs here, for containers.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use super::reachable;
use crate::config::{Config, ConfigError};
use crate::workos::{self, Timeouts};

/// It touches nothing else, so it answers at once.
const TIMEOUT: Duration = Duration::from_secs(2);

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let address = reachable(config.listen_addr);
    if address.port() == 0 {
        return Err(ConfigError {
            variable: "LISTEN_ADDR",
            problem:
                "port 0 is one that nobody knows; expected the port that the service listens on"
                    .to_owned(),
        }
        .into());
    }
    let timeouts = Timeouts {
        connect: TIMEOUT,
        total: TIMEOUT,
    };
    // A proxy of the environment is for what is elsewhere.
    let client = workos::http(timeouts)?.no_proxy().build()?;
    let request = client.get(format!("http://{address}/healthz"));
    let response = request
        .send()
        .await
        .map_err(|error| anyhow::anyhow!(workos::chain(&error.without_url())))
        .with_context(|| format!("LISTEN_ADDR: {address}"))?;
    let status = response.status();
    if !status.is_success() {
        bail!("LISTEN_ADDR: {address} answers {status}");
    }
    println!("ok");
    Ok(ExitCode::SUCCESS)
}

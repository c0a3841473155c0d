//! Parses the command line, builds the runtime, runs one command, exits with its code.

use std::io::Write;
use std::process::ExitCode;

use mimalloc::MiMalloc;
use workos_sync::cli::{self, Cli};
use workos_sync::config::ConfigError;
use workos_sync::dotenv;
use workos_sync::operate::OperateError;
use workos_sync::telemetry;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Wrong usage or configuration, as clap has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            let operation = error.downcast_ref::<OperateError>();
            if error.is::<ConfigError>() || operation.is_some_and(OperateError::is_usage) {
                ExitCode::from(USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    // Before the runtime has threads: the environment isn't theirs to read while it changes.
    dotenv::load()?;
    let cli = Cli::read()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(cli.run());
    // A thread may still wait for standard input, or for a name server; the process doesn't.
    runtime.shutdown_background();
    telemetry::end();
    code
}

/// One line with the whole chain of causes, and the cure on the next where one is known.
fn report(error: &anyhow::Error) {
    let mut report = format!("workos-sync: {error:#}\n");
    if let Some(hint) = cli::hint(error) {
        report = format!("{report}hint: {hint}\n");
    }
    // Standard error may be gone with its terminal; the exit code says it too.
    let _unread = std::io::stderr().write_all(report.as_bytes());
}

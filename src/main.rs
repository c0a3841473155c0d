//! Parses the command line, builds the runtime, runs one command, exits with its code.

use std::process::ExitCode;

use workos_sync::cli::Cli;
use workos_sync::config::ConfigError;
use workos_sync::dotenv;
use workos_sync::postgres::embedded::EmbeddedError;

/// Wrong usage or configuration, as clap has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            if error.is::<ConfigError>() {
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
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(cli.run())
}

/// One line with the whole chain of causes, and the cure on the next where one is known.
#[expect(
    clippy::print_stderr,
    reason = "the last word of a command, whether or not it logs"
)]
fn report(error: &anyhow::Error) {
    eprintln!("workos-sync: {error:#}");
    if let Some(hint) = error
        .downcast_ref::<EmbeddedError>()
        .and_then(EmbeddedError::hint)
    {
        eprintln!("hint: {hint}");
    }
}

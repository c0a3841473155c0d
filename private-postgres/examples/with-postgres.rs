//! Runs a command with `DATABASE_URL` naming a throw-away server, which is gone afterwards: `with-postgres COMMAND…`

use std::env;
use std::error::Error;
use std::process::ExitCode;

use private_postgres::{Options, Temporary};
use secrecy::ExposeSecret;
use tokio::process::Command;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut command = env::args_os().skip(1);
    let program = command.next().ok_or("usage: with-postgres COMMAND…")?;
    let options = Options {
        bin_dir: env::var_os("PG_BIN_DIR").map(Into::into),
        durable: false,
        ..Options::default()
    };
    let server = Temporary::start(&env::temp_dir(), &options).await?;
    let status = Command::new(program)
        .args(command)
        .env("DATABASE_URL", server.url().expose_secret())
        .status()
        .await?;
    // None if it was ended by a signal.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

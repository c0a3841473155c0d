//! `workos-sync completions SHELL` and `workos-sync man`: the command line, written down for a shell and for `man`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap_complete::Shell;
use clap_mangen::Man;

use super::command;

pub(super) fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut command = command(|argument| argument);
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    print(&script)
}

pub(super) fn man() -> anyhow::Result<ExitCode> {
    let mut page = Vec::new();
    Man::new(command(|argument| argument)).render(&mut page)?;
    print(&page)
}

fn print(text: &[u8]) -> anyhow::Result<ExitCode> {
    io::stdout().write_all(text)?;
    Ok(ExitCode::SUCCESS)
}

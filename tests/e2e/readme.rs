//! The README, as a newcomer follows it: every command in it runs, and prints what is shown.

use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::process::{Process, isolated};
use crate::support::{Folder, Service};

/// Where the README says that it listens.
const URL: &str = "http://127.0.0.1:8080";
const PAGE: &str = "http://127.0.0.1:8081/";

/// A command, and what it is shown to print.
#[derive(Debug, Default)]
struct Example {
    command: String,
    output: Vec<String>,
}

/// What is in the blocks of commands, in their order.
fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut block = String::new();
    let mut goes_on = false;
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    for line in std::fs::read_to_string(readme)
        .unwrap()
        .lines()
        .map(str::trim)
    {
        if let Some(language) = line.strip_prefix("```") {
            language.clone_into(&mut block);
            continue;
        }
        let command = match &*block {
            "console" => line.strip_prefix("$ "),
            "sh" => Some(line),
            _ => continue,
        };
        match (command, examples.last_mut()) {
            (Some(command), Some(example)) if goes_on => {
                example.command.push_str(command.trim_end_matches('\\'));
            }
            (Some(command), _) => examples.push(Example {
                command: command.trim_end_matches('\\').to_owned(),
                output: Vec::new(),
            }),
            (None, Some(example)) => example.output.push(line.to_owned()),
            (None, None) => panic!("an output without a command: {line}"),
        }
        goes_on = block == "sh" && line.ends_with('\\');
    }
    examples
}

/// Says whether a line is what is shown, where `…` stands for anything.
fn is_shown(line: &str, shown: &str) -> bool {
    let mut pieces = shown.split('…');
    let first = pieces.next().unwrap();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut ends_open = true;
    for piece in pieces {
        let Some(at) = rest.find(piece) else {
            return false;
        };
        rest = &rest[at + piece.len()..];
        ends_open = piece.is_empty();
    }
    rest.is_empty() || (ends_open && shown.contains('…'))
}

impl Example {
    /// Fails the test if a line that is shown isn't printed, or not in this order.
    fn assert_prints(&self, printed: &str, here: impl Fn(&str) -> String) {
        let mut lines = printed.lines().map(str::trim);
        for shown in self.output.iter().filter(|line| *line != "…") {
            let shown = here(shown);
            assert!(
                lines.any(|line| is_shown(line, &shown)),
                "{}\ndoesn't print\n{shown}\nbut\n{printed}",
                self.command
            );
        }
    }
}

#[tokio::test]
async fn every_command_runs_and_prints_what_is_shown() {
    let folder = Folder::new();
    let program = env!("CARGO_BIN_EXE_workos-sync");
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::create_dir_all(folder.path().join("target/debug")).unwrap();
    symlink(program, folder.path().join("target/debug/workos-sync")).unwrap();
    symlink(repository.join("examples"), folder.path().join("examples")).unwrap();

    let service = Service::start(&folder, &[]).await;
    let (url, page) = (service.url(""), service.page_url());
    let here = |text: &str| text.replace(URL, &url).replace(PAGE, &page);
    let curl = service.curl_line().await;
    let settings = include_str!("../../.env.example");
    let mut ran = 0;
    for example in examples() {
        let command = example.command.as_str();
        if command == "make run" {
            // It is running, but for the ports.
            example.assert_prints(&service.printed(), here);
        } else if let Some(variables) = command.strip_suffix("workos-sync serve") {
            for variable in variables.split_whitespace() {
                let (name, _) = variable.split_once('=').unwrap();
                assert!(settings.contains(&format!("#{name}=")), "{command}");
            }
        } else {
            let mut shell = isolated("bash", &folder);
            shell.args(["-ec", &here(command)]);
            let done = Process::spawn(&mut shell).finish().await.assert(0);
            example.assert_prints(&done.stdout, here);
        }
        ran += 1;
    }
    assert!(ran > 3, "{ran} commands");

    // "Paste the curl into another terminal."
    for outcome in [r#""outcome":"created""#, r#""status":"duplicate""#] {
        let mut shell = isolated("bash", &folder);
        let answer = Process::spawn(shell.args(["-ec", &curl])).finish().await;
        let answer = answer.assert(0);
        assert!(answer.stdout.contains(outcome), "{answer:?}");
    }
}

#[test]
fn what_is_shown_is_compared() {
    assert!(is_shown("1 created", "1 created"));
    assert!(is_shown("curl -H 't=1, v1=2' x", "curl -H 't=…, v1=…' …"));
    assert!(!is_shown("1 created", "2 created"));
    assert!(!is_shown("1 created, 2 dead", "1 created"));
    assert!(!is_shown("curl", "curl -H …"));
}

//! What builds, checks and ships the program: the image, compose, the workflows, the scripts. There is no engine and no
//! forge here, so each is held against what it names.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory;
use serde_json::Value;
use workos_sync::cli::Cli;

use crate::ops::{all_of, path, program, read, settings, succeeds, texts, yaml};

/// What runs in the image: its last stage.
fn last_stage() -> String {
    let image = read("Dockerfile");
    image.rsplit("\nFROM ").next().unwrap().to_owned()
}

/// The rest of the line, in a text that has it.
fn after<'a>(text: &'a str, words: &str) -> &'a str {
    let found = text.split_once(words);
    let (_, rest) = found.unwrap_or_else(|| panic!("no {words}: {text}"));
    rest.lines().next().unwrap()
}

/// What COPY takes from this repository, without the place that it goes to.
fn copied() -> Vec<String> {
    let image = read("Dockerfile");
    let copies = image.lines().filter_map(|line| line.strip_prefix("COPY "));
    let copies = copies.filter(|arguments| !arguments.starts_with("--from"));
    copies
        .flat_map(|arguments| arguments.rsplit_once(' ').unwrap().0.split(' '))
        .map(str::to_owned)
        .collect()
}

/// The image runs as nobody in particular, and compose gives it a file system that it can't write to and no
/// capabilities.
#[test]
fn the_image_asks_for_little() {
    let stage = last_stage();
    assert!(stage.contains("\nUSER 10001:10001\n"), "{stage}");
    let service = &yaml("compose.yaml")[0]["services"]["workos-sync"];
    assert_eq!(service["read_only"], true);
    assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]));
    assert_eq!(
        service["security_opt"],
        serde_json::json!(["no-new-privileges:true"])
    );
}

/// The image is built from what there is: each file that is copied, and a stub of each target that Cargo.toml names and
/// the image leaves out, for Cargo refuses a manifest whose targets aren't there.
#[test]
fn the_image_can_be_built() {
    let (image, ignore) = (read("Dockerfile"), read(".dockerignore"));
    let copied = copied();
    assert!(copied.contains(&"Cargo.toml".to_owned()), "{copied:?}");
    for file in &copied {
        assert!(path(file).exists(), "there is no {file}");
        let let_in = format!("!{file}");
        assert!(
            ignore.lines().any(|line| line == let_in),
            ".dockerignore keeps {file} out"
        );
    }
    let manifest = read("Cargo.toml");
    // A package beside ours, of which there is no stub.
    let beside = manifest
        .lines()
        .filter_map(|line| line.split_once(" = { path = \"")?.1.split_once('"'));
    for (package, _) in beside {
        assert!(
            copied.iter().any(|copied| copied == package),
            "the image lacks {package}"
        );
    }
    let paths = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \""));
    for target in paths
        .map(|rest| rest.trim_end_matches('"'))
        .chain(["src/lib.rs", "src/main.rs"])
    {
        assert!(path(target).exists(), "there is no {target}");
        assert!(
            image.contains(&format!(" {target}")),
            "the image has no stub of {target}"
        );
    }
}

/// The packages, and the image, are built by one compiler.
#[test]
fn every_package_asks_for_the_same_compiler() {
    let version = |file: &str, before: &str| {
        let text = read(file);
        let found = text.lines().find_map(|line| line.strip_prefix(before));
        found.unwrap().trim_matches('"').to_owned()
    };
    let asked_for = version("Cargo.toml", "rust-version = ");
    assert_eq!(version("Dockerfile", "ARG RUST_VERSION="), asked_for);
    for package in ["private-postgres", "bench", "fuzz", "loom"] {
        let manifest = format!("{package}/Cargo.toml");
        assert_eq!(
            version(&manifest, "rust-version = "),
            asked_for,
            "{package}"
        );
    }
}

/// The image holds what the program reads when it is compiled: all of it is copied.
#[test]
fn the_image_has_what_is_compiled_in() {
    let copied: Vec<_> = copied().iter().map(|file| path(file)).collect();
    let mut unread = vec![path("src")];
    let mut seen = 0;
    while let Some(at) = unread.pop() {
        if at.is_dir() {
            unread.extend(at.read_dir().unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        if at.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let code = std::fs::read_to_string(&at).unwrap();
        // Up to the tests, which the image doesn't compile.
        let code = code.split("#[cfg(test)]").next().unwrap();
        for rest in code.split("include_str!(\"").skip(1) {
            let file = at.parent().unwrap().join(rest.split('"').next().unwrap());
            let file = file.canonicalize().unwrap();
            assert!(
                copied.iter().any(|copied| file.starts_with(copied)),
                "{} reads {}, which the image hasn't",
                at.display(),
                file.display()
            );
            seen += 1;
        }
    }
    assert!(seen > 3, "{seen} files");
}

/// The image starts what there is, and its health is asked by a command that there is, at the port that it exposes.
#[test]
fn the_image_runs_commands_that_exist() {
    let stage = last_stage();
    let line = |instruction: &str| after(&stage, instruction);
    assert_eq!(line("ENTRYPOINT "), r#"["workos-sync"]"#);
    let health: Vec<String> = serde_json::from_str(line(" CMD ")).unwrap();
    let [name, subcommand] = &health[..] else {
        panic!("{health:?}");
    };
    let command = Cli::command();
    assert_eq!(name, command.get_name());
    assert!(command.find_subcommand(subcommand).is_some(), "{health:?}");
    let port = line("EXPOSE ");
    assert_eq!(line("ENV LISTEN_ADDR="), format!("0.0.0.0:{port}"));
}

/// Compose sets settings that there are, publishes the port of the image on loopback, and gives the service the time that it
/// takes to end.
#[test]
fn compose_fits_the_image() {
    let compose = &yaml("compose.yaml")[0];
    let service = &compose["services"]["workos-sync"];
    let settings = settings();
    for name in service["environment"].as_object().unwrap().keys() {
        assert!(settings.contains(name), "there is no {name}");
    }
    let stage = last_stage();
    let port = after(&stage, "EXPOSE ");
    assert_eq!(
        service["ports"],
        serde_json::json!([format!("127.0.0.1:{port}:{port}")])
    );
    let given = service["stop_grace_period"].as_str().unwrap();
    let given: u64 = given.strip_suffix('s').unwrap().parse().unwrap();
    let command = Cli::command();
    let takes: u64 = ["shutdown_grace_seconds", "shutdown_delay_seconds"]
        .iter()
        .map(|name| {
            let mut arguments = command.get_arguments();
            let argument = arguments.find(|argument| argument.get_id() == *name);
            let default = &argument.unwrap().get_default_values()[0];
            default.to_str().unwrap().parse::<u64>().unwrap()
        })
        .sum();
    assert!(given > takes, "{given} s, and it takes {takes}");

    // Whom it waits for, and the database that it is told of.
    let postgres = &compose["services"]["postgres"];
    assert_eq!(
        service["depends_on"]["postgres"]["condition"],
        "service_healthy"
    );
    assert!(postgres["healthcheck"]["test"].is_array());
    let of = |name: &str| postgres["environment"][name].as_str().unwrap();
    let url = format!(
        "postgres://{}:{}@postgres:5432/{}",
        of("POSTGRES_USER"),
        of("POSTGRES_PASSWORD"),
        of("POSTGRES_DB")
    );
    assert_eq!(service["environment"]["DATABASE_URL"], url);
    let volume = texts(postgres["volumes"].as_array().unwrap())[0];
    let (name, _) = volume.split_once(':').unwrap();
    assert!(compose["volumes"].get(name).is_some(), "{volume}");
}

/// Checks a script's syntax, and, where shellcheck is (CI installs it), its habits.
fn check(shell: &mut [Option<Command>], script: &str, at: &str) {
    for command in shell.iter_mut().flatten() {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(script.as_bytes()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{at}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// What reads scripts from its input.
fn checkers() -> [Option<Command>; 2] {
    let mut bash = Command::new("bash");
    bash.arg("-n");
    let shellcheck = program("shellcheck").map(|mut command| {
        // Its lesser remarks are about taste.
        command.args(["--shell=bash", "--severity=warning", "-"]);
        command
    });
    [Some(bash), shellcheck]
}

/// What a forge runs is a script that a shell understands, made of files and targets that there are.
#[test]
fn the_workflows_run_what_exists() {
    let mut shell = checkers();
    let mut seen = 0;
    for file in [".github/workflows/ci.yml", ".github/workflows/release.yml"] {
        let workflow = yaml(file);
        let jobs = workflow[0]["jobs"].as_object().unwrap();
        for (name, job) in jobs {
            assert!(
                job["timeout-minutes"].is_u64() || name == "release",
                "{name}"
            );
            for needed in texts(job["needs"].as_array().into_iter().flatten()) {
                assert!(jobs.contains_key(needed), "{name} needs {needed}");
            }
        }
        let mut runs = Vec::new();
        all_of(&workflow[0], "run", &mut runs);
        for script in texts(runs) {
            check(
                &mut shell,
                &without_expressions(script),
                &format!("{file}: {script}"),
            );
            for word in script.split_whitespace() {
                let is_a_file = word.starts_with(".ci/") || word.starts_with("scripts/");
                assert!(!is_a_file || path(word).exists(), "{file}: {word}");
            }
            seen += 1;
        }
        let mut uses = Vec::new();
        all_of(&workflow[0], "uses", &mut uses);
        for action in texts(uses) {
            assert!(action.contains("@v"), "{file}: {action} is of no version");
        }
    }
    assert!(seen > 5, "{seen} scripts");
}

/// The forge puts a value in the place of `${{ … }}` before a shell sees it.
fn without_expressions(script: &str) -> String {
    let mut pieces = script.split("${{");
    let mut plain = pieces.next().unwrap().to_owned();
    for piece in pieces {
        let (_, rest) = piece.split_once("}}").unwrap();
        plain.push_str("value");
        plain.push_str(rest);
    }
    plain
}

/// The scripts are ones that a shell understands, and can be run.
#[test]
fn the_scripts_are_sound() {
    let mut shell = checkers();
    let mut scripts: Vec<PathBuf> = path("scripts")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    scripts.push(path(".ci/run"));
    for script in scripts {
        let text = std::fs::read_to_string(&script).unwrap();
        let at = script.display().to_string();
        assert!(text.starts_with("#!/usr/bin/env bash\n"), "{at}");
        assert!(text.contains("\nset -euo pipefail\n"), "{at}");
        check(&mut shell, &text, &at);
        succeeds(Command::new("test").arg("-x").arg(&script));
    }
}

/// The release packs files that there are, and makes what it packs by commands that there are.
#[test]
fn the_release_packs_what_exists() {
    let workflow = &yaml(".github/workflows/release.yml")[0];
    let mut runs = Vec::new();
    all_of(workflow, "run", &mut runs);
    let pack = texts(runs)
        .into_iter()
        .find(|script| script.contains("\ncp "))
        .unwrap();
    let line = pack.lines().find(|line| line.starts_with("cp ")).unwrap();
    let files = line
        .split(' ')
        .skip(1)
        .filter(|word| !word.starts_with('"'));
    for file in files {
        assert!(path(file).exists(), "there is no {file}");
    }
    let command = Cli::command();
    let runs = pack
        .lines()
        .filter_map(|line| line.trim().strip_prefix("\"$program\" "));
    for arguments in runs {
        let word = arguments.split(' ').next().unwrap();
        assert!(
            word.starts_with("--") || command.find_subcommand(word).is_some(),
            "there is no {word}"
        );
    }
}

/// Each lock file of this repository is looked after: of Cargo's and npm's, none is left out, and none that isn't there is
/// named.
#[test]
fn dependencies_are_looked_after() {
    let config = &yaml(".github/dependabot.yml")[0];
    let updates = config["updates"].as_array().unwrap();
    for (ecosystem, lock) in [("cargo", "Cargo.lock"), ("npm", "package-lock.json")] {
        let update = updates
            .iter()
            .find(|update| update["package-ecosystem"] == ecosystem)
            .unwrap();
        let told: BTreeSet<_> = texts(update["directories"].as_array().unwrap())
            .into_iter()
            .map(|directory| path(directory.trim_start_matches('/')))
            .collect();
        let mut found = BTreeSet::new();
        find(&path(""), lock, &mut found);
        assert_eq!(told, found, "{ecosystem}");
    }
}

/// The directories that have such a file, but for those that are made by a build.
fn find(directory: &Path, name: &str, found: &mut BTreeSet<PathBuf>) {
    if directory.join(name).exists() {
        found.insert(directory.to_owned());
    }
    for entry in directory.read_dir().unwrap() {
        let entry = entry.unwrap();
        let file_name = entry.file_name();
        let file_name = file_name.to_str().unwrap();
        let is_made = file_name.starts_with('.') || ["target", "node_modules"].contains(&file_name);
        if entry.file_type().unwrap().is_dir() && !is_made {
            find(&entry.path(), name, found);
        }
    }
}

/// The forms for issues are ones that the forge shows: each has a name, and each field a label.
#[test]
fn the_forms_of_issues_are_whole() {
    let mut seen = 0;
    for entry in path(".github/ISSUE_TEMPLATE").read_dir().unwrap() {
        let file = entry.unwrap().path();
        let form: &Value = &yaml(file.to_str().unwrap())[0];
        let Some(body) = form["body"].as_array() else {
            assert!(file.ends_with("config.yml"), "{}", file.display());
            continue;
        };
        assert!(form["name"].is_string() && form["description"].is_string());
        let mut ids = BTreeSet::new();
        for field in body {
            if field["type"] == "markdown" {
                assert!(field["attributes"]["value"].is_string(), "{field}");
                continue;
            }
            assert!(field["attributes"]["label"].is_string(), "{field}");
            assert!(ids.insert(field["id"].as_str().unwrap()), "{field}");
        }
        seen += 1;
    }
    assert_eq!(seen, 2);
}

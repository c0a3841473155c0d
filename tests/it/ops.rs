//! What `ops/` ships: alert rules, a dashboard, a Kubernetes manifest, a systemd unit (R51).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use serde_json::Value;
use workos_sync::cli::Cli;

use crate::metrics::{busy_app, named, scrape};

pub(crate) fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

pub(crate) fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).unwrap()
}

/// The documents of a YAML file.
pub(crate) fn yaml(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// A program, if this machine has it; CI installs each.
pub(crate) fn program(name: &str) -> Option<Command> {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$0\"", name])
        .output()
        .unwrap();
    found.status.success().then(|| Command::new(name))
}

#[track_caller]
pub(crate) fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{command:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// The settings, as environment variables.
pub(crate) fn settings() -> BTreeSet<String> {
    let command = Cli::command();
    let variables = command.get_arguments().filter_map(|argument| {
        let variable = argument.get_env()?.to_str()?;
        Some(variable.to_owned())
    });
    variables.collect()
}

pub(crate) fn texts<'a>(values: impl IntoIterator<Item = &'a Value>) -> Vec<&'a str> {
    values.into_iter().filter_map(Value::as_str).collect()
}

/// All values of a key, however deep.
pub(crate) fn all_of<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if name == key {
                    found.push(value);
                }
                all_of(value, key, found);
            }
        }
        Value::Array(values) => {
            for value in values {
                all_of(value, key, found);
            }
        }
        _ => {}
    }
}

/// The names of all families that a scrape shows.
async fn shown_by_a_scrape() -> BTreeSet<String> {
    let app = busy_app().await;
    scrape(&app).await.families.into_keys().collect()
}

/// Each alarm is about metrics that there are, is tested, and has its page: what it means, and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn each_alarm_is_tested_and_explained() {
    let rules = yaml("ops/prometheus/alerts.yaml");
    let rules = rules[0]["groups"][0]["rules"].as_array().unwrap();
    let names: BTreeSet<_> = texts(rules.iter().map(|rule| &rule["alert"]))
        .into_iter()
        .collect();
    assert_eq!(names.len(), rules.len(), "{names:?}");

    let page = read("docs/alarms.md");
    let explained: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    assert_eq!(names, explained);
    let shown = shown_by_a_scrape().await;
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        let metrics = named(rule["expr"].as_str().unwrap());
        assert!(metrics.is_subset(&shown), "{name}: {metrics:?}");
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("page" | "ticket")), "{name}");
        let runbook = format!("docs/alarms.md#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook_url"], runbook);
        assert!(rule["annotations"]["summary"].is_string(), "{name}");
    }

    // That each rings, and that none rings while all is well.
    let mut tests = Vec::new();
    let cases = yaml("ops/prometheus/alerts.test.yaml");
    all_of(&cases[0], "alert_rule_test", &mut tests);
    let (mut rings, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for test in tests.iter().flat_map(|tests| tests.as_array().unwrap()) {
        let name = test["alertname"].as_str().unwrap();
        let set = if test["exp_alerts"].is_array() {
            &mut rings
        } else {
            &mut silent
        };
        set.insert(name);
    }
    assert_eq!((&rings, &silent), (&names, &names));
    if let Some(mut promtool) = program("promtool") {
        promtool.current_dir(path("ops/prometheus"));
        succeeds(promtool.args(["test", "rules", "alerts.test.yaml"]));
    }
}

/// The commands that the page of alarms gives are ones that there are.
#[test]
fn the_alarms_name_commands_that_exist() {
    let command = Cli::command();
    for (_, rest) in read("docs/alarms.md").split('`').filter_map(|code| {
        code.split_once("workos-sync ")
            .filter(|(before, _)| before.is_empty())
    }) {
        let mut known = &command;
        for word in rest.split(' ') {
            if let Some(flag) = word.strip_prefix("--") {
                let mut flags = known
                    .get_arguments()
                    .filter_map(|argument| argument.get_long());
                assert!(
                    flags.any(|known| known == flag),
                    "workos-sync {rest}: {flag}"
                );
            } else if let Some(subcommand) = known.find_subcommand(word) {
                known = subcommand;
            } else {
                let is_a_value = known.get_name() != "workos-sync" && !known.has_subcommands();
                assert!(is_a_value, "workos-sync {rest}: {word}");
            }
        }
    }
}

/// Each query of the dashboard is about metrics that there are, of the instances that are chosen.
#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_shows_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(&read("ops/grafana/workos-sync.json")).unwrap();
    let mut queries = Vec::new();
    all_of(&dashboard, "expr", &mut queries);
    let shown = shown_by_a_scrape().await;
    let mut asked = BTreeSet::new();
    for query in texts(queries) {
        for selector in query.split('{').skip(1) {
            assert!(
                selector.starts_with(r#"job=~"$job",instance=~"$instance""#),
                "{query}"
            );
        }
        // The name is what stands before the braces.
        for part in query.split('{').rev().skip(1) {
            let is_of_a_name = |c: char| c.is_ascii_lowercase() || c == '_';
            let name = part.rsplit(|c| !is_of_a_name(c)).next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(name);
            assert!(shown.contains(family), "there is no {name}: {query}");
            asked.insert(family.to_owned());
        }
    }
    assert_eq!(asked, shown, "the dashboard shows all of them");

    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(panel["title"].is_string());
        if panel["type"] != "row" {
            assert_ne!(panel["description"].as_str(), Some(""), "{panel}");
        }
    }
    assert_eq!(dashboard["uid"], "workos-sync");
}

/// The manifest sets settings that there are, gives the service the time that it takes, and asks for as little as the image.
#[test]
fn the_manifest_fits_the_service() {
    let documents = yaml("ops/kubernetes/workos-sync.yaml");
    let kinds = texts(documents.iter().map(|document| &document["kind"]));
    assert_eq!(
        kinds,
        ["Deployment", "Service", "PodDisruptionBudget", "Ingress"]
    );
    let labels = &documents[0]["metadata"]["labels"];
    let pod = &documents[0]["spec"]["template"];
    for found in [
        &pod["metadata"]["labels"],
        &documents[0]["spec"]["selector"]["matchLabels"],
        &documents[1]["spec"]["selector"],
        &documents[2]["spec"]["selector"]["matchLabels"],
    ] {
        assert_eq!(found, labels);
    }
    let pod = &pod["spec"];
    let container = &pod["containers"][0];
    let settings = settings();
    let mut value_of = std::collections::BTreeMap::new();
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(settings.contains(name), "there is no {name}");
        value_of.insert(name, variable["value"].as_str().unwrap());
    }
    // The secret that the head of the file makes.
    let text = read("ops/kubernetes/workos-sync.yaml");
    let head: String = text
        .lines()
        .take_while(|line| line.starts_with('#'))
        .collect();
    for literal in head.split("--from-literal=").skip(1) {
        let (name, _) = literal.split_once('=').unwrap();
        assert!(settings.contains(name), "there is no {name}");
    }
    let seconds = |name: &str| value_of[name].parse::<u64>().unwrap();
    let takes = seconds("SHUTDOWN_DELAY_SECONDS") + seconds("SHUTDOWN_GRACE_SECONDS");
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > takes);
    assert!(value_of["LISTEN_ADDR"].ends_with(":8080"));
    assert_eq!(container["ports"][0]["containerPort"], 8080);
    let command = Cli::command();
    for argument in texts(container["args"].as_array().unwrap()) {
        assert!(command.find_subcommand(argument).is_some(), "{argument}");
    }
    for (probe, path) in [
        ("startupProbe", "/healthz"),
        ("livenessProbe", "/healthz"),
        ("readinessProbe", "/readyz"),
    ] {
        assert_eq!(container[probe]["httpGet"]["path"], path);
    }
    assert!(read("Dockerfile").contains("USER 10001:10001"));
    assert_eq!(pod["securityContext"]["runAsUser"], 10_001);
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["capabilities"]["drop"][0], "ALL");
    // From outside, the webhook alone.
    let paths = documents[3]["spec"]["rules"][0]["http"]["paths"]
        .as_array()
        .unwrap();
    assert_eq!(
        texts(paths.iter().map(|path| &path["path"])),
        ["/webhooks/workos"]
    );
}

/// The unit sets settings that there are, runs a command that there is, and is one that systemd takes.
#[test]
fn the_unit_fits_the_service() {
    let unit = read("ops/systemd/workos-sync.service");
    let values = |key: &str| -> Vec<&str> {
        let prefix = format!("{key}=");
        unit.lines()
            .filter_map(|line| line.strip_prefix(&prefix))
            .collect()
    };
    let settings = settings();
    for setting in values("Environment") {
        let (name, _) = setting.split_once('=').unwrap();
        assert!(settings.contains(name), "there is no {name}");
    }
    let [run] = values("ExecStart")[..] else {
        panic!("{unit}");
    };
    let (program_path, argument) = run.split_once(' ').unwrap();
    assert!(program_path.ends_with("/workos-sync"));
    assert!(
        Cli::command().find_subcommand(argument).is_some(),
        "{argument}"
    );
    let defaults = Cli::command();
    let default_of = |name: &str| -> u64 {
        let mut arguments = defaults.get_arguments();
        let argument = arguments
            .find(|argument| argument.get_id() == name)
            .unwrap();
        argument.get_default_values()[0]
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    };
    let takes = default_of("shutdown_delay_seconds") + default_of("shutdown_grace_seconds");
    assert!(values("TimeoutStopSec")[0].parse::<u64>().unwrap() > takes);

    if let Some(mut systemd) = program("systemd-analyze") {
        // It looks for the program, too.
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("workos-sync.service");
        std::fs::write(&copy, unit.replace(program_path, "/bin/true")).unwrap();
        succeeds(systemd.arg("verify").arg(&copy));
    }
}

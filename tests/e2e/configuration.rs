//! Settings: flags, variables, `.env`, and what is said about wrong ones (section 8).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::support::{Folder, SECRET, Service, TestDatabase, run};

/// A part of every secret here: nothing that is printed may hold it.
const PRIVATE: &str = "hunter2";

/// The settings of section 8 of the specification, and their defaults.
const SPECIFIED: [(&str, Option<&str>); 13] = [
    ("DATABASE_URL", None),
    ("WORKOS_WEBHOOK_SECRET", None),
    ("WORKOS_API_KEY", None),
    ("WORKOS_API_URL", Some("https://api.workos.com")),
    ("LISTEN_ADDR", Some("127.0.0.1:8080")),
    ("WEBHOOK_PATH", Some("/webhooks/workos")),
    ("WEBHOOK_TOLERANCE_SECONDS", Some("180")),
    ("MAX_BODY_BYTES", Some("1048576")),
    (
        "ORG_ID_NAMESPACE",
        Some("df708297-209f-5667-8ac5-74ec5d2582b7"),
    ),
    ("DATABASE_MAX_CONNECTIONS", Some("20")),
    ("SHUTDOWN_GRACE_SECONDS", Some("25")),
    ("INBOX_RETENTION_DAYS", Some("90")),
    ("LOG_FORMAT", None),
];

/// Wrong values, one variable each.
const WRONG: [(&str, &str); 20] = [
    ("DATABASE_URL", "mysql//user:hunter2@host/app"),
    ("DATABASE_URL", "postgres://user:hunter2@host:port/app"),
    ("WORKOS_WEBHOOK_SECRET", "hunter2,"),
    ("WORKOS_WEBHOOK_SECRET", " ,hunter2"),
    ("WORKOS_API_KEY", "hunter2\nhunter2"),
    ("WORKOS_API_URL", "https://user:hunter2@api.workos.com"),
    ("WORKOS_API_URL", "api.workos.com"),
    ("LISTEN_ADDR", "8080"),
    ("LISTEN_ADDR", "127.0.0.1:65536"),
    ("WEBHOOK_PATH", "webhooks"),
    ("WEBHOOK_PATH", "/healthz"),
    ("WEBHOOK_TOLERANCE_SECONDS", "3m"),
    ("MAX_BODY_BYTES", "1MiB"),
    ("ORG_ID_NAMESPACE", "speakeasy.com"),
    ("DATABASE_MAX_CONNECTIONS", "0"),
    ("MIGRATE_ON_START", "yes please"),
    ("SHUTDOWN_GRACE_SECONDS", "-1"),
    ("INBOX_RETENTION_DAYS", "1.5"),
    ("LOG_FORMAT", "xml"),
    ("LOG_LEVEL", "verbose"),
];

/// The settings that `--help` shows: variable and default.
async fn settings(variables: &[(&str, &str)]) -> BTreeMap<String, Option<String>> {
    let folder = Folder::new();
    let help = run(&folder, variables, &["--help"]).await.assert(0);
    assert!(!help.stdout.contains(PRIVATE), "{}", help.stdout);
    // It is wrapped: as one line.
    let words: Vec<&str> = help.stdout.split_whitespace().collect();
    let text = words.join(" ");
    text.split("[env: ")
        .skip(1)
        .map(|rest| {
            let (variable, rest) = rest.split_once(']').unwrap();
            let default = rest
                .strip_prefix(" [default: ")
                .map(|rest| rest.split_once(']').unwrap().0.to_owned());
            assert!(
                text.contains(&format!("{} <", flag(variable))),
                "{variable}"
            );
            (variable.to_owned(), default)
        })
        .collect()
}

fn flag(variable: &str) -> String {
    format!("--{}", variable.to_lowercase().replace('_', "-"))
}

/// Section 8: every setting has a flag, a variable and a default in `--help`, also when variables are set; a secret's
/// value is never in it.
#[tokio::test]
async fn help_shows_every_setting_and_no_secret() {
    let shown = settings(&[]).await;
    for (variable, default) in SPECIFIED {
        assert_eq!(
            shown.get(variable).map(Option::as_deref),
            Some(default),
            "{variable}"
        );
    }
    let set = [
        ("DATABASE_URL", "postgres://user:hunter2@host/app"),
        ("WORKOS_WEBHOOK_SECRET", "whsec_hunter2"),
        ("WORKOS_API_KEY", "sk_hunter2"),
        ("LISTEN_ADDR", ""),
    ];
    assert_eq!(settings(&set).await, shown);
}

/// `.env.example` has every setting, with its default, commented out; uncommented, it changes nothing.
#[tokio::test]
async fn the_example_file_agrees_with_the_settings() {
    let example = include_str!("../../.env.example");
    let lines: Vec<&str> = example
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
        .map(|line| {
            line.strip_prefix('#')
                .unwrap_or_else(|| panic!("not commented out: {line}"))
        })
        .collect();
    let documented: BTreeMap<String, Option<String>> = lines
        .iter()
        .map(|line| {
            let (variable, default) = line.split_once('=').unwrap();
            let default = (!default.is_empty()).then(|| default.to_owned());
            (variable.to_owned(), default)
        })
        .collect();
    assert_eq!(documented.len(), lines.len(), "each once");
    assert_eq!(documented, settings(&[]).await);

    let folder = Folder::new();
    folder.write(".env", lines.join("\n"));
    let file = folder.write("event.json", "{}");
    run(
        &folder,
        &[("WORKOS_WEBHOOK_SECRET", SECRET)],
        &["sign", &file],
    )
    .await
    .assert(0);
}

/// Section 8: a wrong value, as variable or as flag, for any command, ends with code 2 and one line that names the
/// variable and repeats no secret.
#[tokio::test]
async fn a_wrong_value_is_one_line_that_names_the_variable() {
    let folder = Folder::new();
    let none: [(&str, &str); 0] = [];
    for (variable, value) in WRONG {
        let flag = format!("{}={value}", flag(variable));
        for finished in [
            run(&folder, &[(variable, value)], &[]).await,
            run(&folder, &none, &["migrate", &flag]).await,
        ] {
            let finished = finished.assert(2);
            let line = finished.error_line();
            assert!(
                line.starts_with(&format!("workos-sync: {variable}: ")),
                "{line}"
            );
            assert!(!line.contains(PRIVATE), "{line}");
        }
    }
    assert!(!folder.data("").exists(), "nothing was begun");
}

/// Section 8: so does a value that is no text at all.
#[tokio::test]
async fn a_value_that_is_no_text_is_named_too() {
    let folder = Folder::new();
    for variable in ["DATABASE_URL", "LISTEN_ADDR", "DATA_DIR"] {
        let value: OsString = OsStr::from_bytes(b"hunter2\xff").to_owned();
        let finished = run(&folder, &[(variable, value)], &[]).await.assert(2);
        let line = finished.error_line();
        assert!(line.contains(variable), "{line}");
        assert!(!line.contains(PRIVATE), "{line}");
    }
}

/// An empty variable is one that isn't set: compose files and CI systems can't leave one out.
#[tokio::test]
async fn empty_variables_are_as_if_not_set() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let variables = settings(&[]).await;
    let mut variables: Vec<(&str, &str)> = variables
        .keys()
        .filter(|variable| *variable != "PG_BIN_DIR")
        .map(|variable| (variable.as_str(), ""))
        .collect();
    for (variable, value) in &mut variables {
        match *variable {
            "DATABASE_URL" => *value = &database.url,
            "WORKOS_WEBHOOK_SECRET" => *value = SECRET,
            "LISTEN_ADDR" => *value = "127.0.0.1:0",
            _ => {}
        }
    }
    let service = Service::start(&folder, &variables).await;
    assert_eq!(service.get("/readyz").await, Some(200));
}

/// Section 8: with a database of one's own, the secret is required: one made up would refuse every delivery.
#[tokio::test]
async fn a_database_requires_a_secret() {
    let folder = Folder::new();
    for secret in [None, Some("")] {
        let mut variables = vec![("DATABASE_URL", "postgres://user:hunter2@localhost/app")];
        variables.extend(secret.map(|secret| ("WORKOS_WEBHOOK_SECRET", secret)));
        let finished = run(&folder, &variables, &[]).await.assert(2);
        assert_eq!(
            finished.error_line(),
            "workos-sync: WORKOS_WEBHOOK_SECRET: required when DATABASE_URL is set"
        );
    }
}

/// Section 8: `.env` of the working folder is read; the environment wins over it, and a flag over both.
#[tokio::test]
async fn the_dotenv_file_is_read_and_the_environment_wins() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    folder.write(
        ".env",
        format!(
            "# settings\nDATABASE_URL={}\nexport WORKOS_WEBHOOK_SECRET='{SECRET}'\nWEBHOOK_PATH=\"/from-file\"\nLISTEN_ADDR=wrong\n",
            database.url
        ),
    );
    let service = Service::start(
        &folder,
        &[
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
        ],
    )
    .await;
    assert_eq!(
        service.get("/from-file").await,
        Some(405),
        "GET of the path"
    );
    assert_eq!(service.get("/webhooks/workos").await, Some(404));

    let none: [(&str, &str); 0] = [];
    let wrong = run(&folder, &none, &[]).await.assert(2);
    assert!(wrong.error_line().contains("LISTEN_ADDR"), "{wrong:?}");
    let flag = run(
        &folder,
        &[("LISTEN_ADDR", "127.0.0.1:0")],
        &["--listen-addr=by-flag"],
    )
    .await
    .assert(2);
    assert!(flag.error_line().contains("by-flag"), "{flag:?}");
}

/// Section 8: a `.env` that can't be read as one is an error, not half of a configuration; its lines, which may hold
/// secrets, are not repeated.
#[tokio::test]
async fn a_malformed_dotenv_file_is_an_error() {
    let folder = Folder::new();
    for content in [
        "WORKOS_API_KEY=sk_hunter2 and more\n",
        "LOG_LEVEL=info\nhunter2\n",
        "WORKOS_API_KEY='hunter2\n",
    ] {
        folder.write(".env", content);
        let none: [(&str, &str); 0] = [];
        let finished = run(&folder, &none, &["migrate"]).await.assert(2);
        let line = finished.error_line();
        assert!(line.starts_with("workos-sync: .env: "), "{line}");
        assert!(!line.contains(PRIVATE), "{line}");
    }
}

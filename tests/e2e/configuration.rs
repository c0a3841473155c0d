//! Settings: flags, variables, `.env`, and what is said about wrong ones (section 8).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use url::Url;
use workos_sync::clock::{Clock, SystemClock};
use workos_sync::signature;

use crate::support::service::answer;
use crate::support::{Folder, Kind, SECRET, Service, TestDatabase, event, run};

/// A part of every secret here: nothing that is printed may hold it.
const PRIVATE: &str = "hunter2";

/// The settings of section 8 of the specification, and their defaults.
const SPECIFIED: [(&str, Option<&str>); 18] = [
    ("DATABASE_URL", None),
    ("WORKOS_WEBHOOK_SECRET", None),
    ("WORKOS_API_KEY", None),
    ("WORKOS_API_URL", Some("https://api.workos.com")),
    ("WORKOS_API_RPS", Some("10")),
    ("EVENTS_POLL_SECONDS", Some("60")),
    ("LISTEN_ADDR", Some("127.0.0.1:8080")),
    ("ADMIN_ADDR", None),
    ("ADMIN_TOKEN", None),
    ("ADMIN_READ_ONLY", Some("false")),
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
const WRONG: [(&str, &str); 34] = [
    ("DATABASE_URL", "mysql//user:hunter2@host/app"),
    ("DATABASE_URL", "postgres://user:hunter2@host:port/app"),
    ("DATABASE_URL", "\"postgres://user:hunter2@host/app\""),
    ("DATABASE_URL", "postgres://user:hunter2/hunter2@host/app"),
    ("DATABASE_URL", "postgres://user:hunter2@host,hunter2/app"),
    ("DATABASE_URL", "postgres://host/app?ssl=hunter2"),
    ("DATABASE_URL", "postgres://host/app?sslmode=hunter2"),
    ("DATABASE_URL_FILE", "hunter2"),
    ("WORKOS_WEBHOOK_SECRET", "hunter2,"),
    ("WORKOS_WEBHOOK_SECRET", " ,hunter2"),
    ("WORKOS_WEBHOOK_SECRET", "'hunter2'"),
    ("WORKOS_WEBHOOK_SECRET", "older,\"hunter2\""),
    ("WORKOS_API_KEY", "hunter2\nhunter2"),
    ("WORKOS_API_KEY", "\"hunter2\""),
    ("WORKOS_API_URL", "https://user:hunter2@api.workos.com"),
    ("WORKOS_API_URL", "api.workos.com"),
    ("WORKOS_API_RPS", "0"),
    ("EVENTS_POLL_SECONDS", "1m"),
    ("LISTEN_ADDR", "8080"),
    ("ADMIN_ADDR", "8081"),
    ("ADMIN_TOKEN", "'hunter2'"),
    ("ADMIN_READ_ONLY", "no"),
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

/// The settings that the help of a command shows, or that of the program: variable and default.
async fn settings(
    command: &[&str],
    variables: &[(&str, &str)],
) -> BTreeMap<String, Option<String>> {
    let folder = Folder::new();
    let arguments = [command, &["--help"]].concat();
    let help = run(&folder, variables, &arguments).await.assert(0);
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
    let shown = settings(&[], &[]).await;
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
    assert_eq!(settings(&[], &set).await, shown);
}

/// Section 11: the help of a command shows the settings that it uses, with their defaults, and no others.
#[tokio::test]
async fn help_of_a_command_shows_what_it_uses() {
    let all = settings(&[], &[]).await;
    assert_eq!(settings(&["serve"], &[]).await, all);
    for (command, used) in [
        (
            "migrate",
            &[
                "DATABASE_URL",
                "DATABASE_URL_FILE",
                "DATA_DIR",
                "LOG_FORMAT",
                "LOG_LEVEL",
                "PG_BIN_DIR",
            ][..],
        ),
        (
            "sign",
            &[
                "DATA_DIR",
                "WORKOS_WEBHOOK_SECRET",
                "WORKOS_WEBHOOK_SECRET_FILE",
            ],
        ),
    ] {
        let shown = settings(&[command], &[]).await;
        let names: Vec<&String> = shown.keys().collect();
        assert_eq!(names, used, "{command}");
        for (variable, default) in &shown {
            assert_eq!(all.get(variable), Some(default));
        }
    }
    let replay = settings(&["replay"], &[]).await;
    assert!(replay.contains_key("ORG_ID_NAMESPACE") && !replay.contains_key("LISTEN_ADDR"));

    // Taken all the same: one set of flags serves every command.
    let (folder, none) = (Folder::new(), [("", ""); 0]);
    let file = folder.write("event.json", "{}");
    run(
        &folder,
        &none,
        &[
            "sign",
            &file,
            "--listen-addr=0.0.0.0:80",
            "--workos-webhook-secret=s",
        ],
    )
    .await
    .assert(0);
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
    assert_eq!(documented, settings(&[], &[]).await);

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
    let none = [("", ""); 0];
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
    let variables = settings(&[], &[]).await;
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

/// Section 11: what `.env` says counts where the environment says nothing.
#[tokio::test]
async fn an_empty_variable_does_not_hide_the_file() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    folder.write(
        ".env",
        format!(
            "DATABASE_URL={}\nWORKOS_WEBHOOK_SECRET={SECRET}\n",
            database.url
        ),
    );
    let empty = [("DATABASE_URL", ""), ("WORKOS_WEBHOOK_SECRET", "")];
    let migrated = run(&folder, &empty, &["migrate"]).await.assert(0);
    let url = Url::parse(&database.url).unwrap();
    let name = url.path().trim_start_matches('/');
    assert!(
        migrated.stdout.contains(&format!(" into {name} at ")),
        "{migrated:?}"
    );
    assert!(!folder.data("").exists(), "no private database was made");
    let file = folder.write("event.json", "{}");
    run(&folder, &empty, &["sign", &file]).await.assert(0);
}

/// Section 11: no character of a secret is lost between `.env` and the signature.
#[tokio::test]
async fn a_secret_of_the_dotenv_file_is_taken_as_it_stands() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let secret = r#"ab$cd$1ef${HOME}it's"a\n"#;
    folder.write(
        ".env",
        format!("WORKOS_WEBHOOK_SECRET={secret}   # ours\r\n"),
    );
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", ""),
    ];
    let service = Service::start(&folder, &variables).await;
    let body = event(1, Kind::Created, "org_a", "Acme");
    let signed = signature::sign(&secret.into(), body.as_bytes(), SystemClock.now());
    let sent = service.delivery_with(&body, &format!("WorkOS-Signature: {signed}"));
    assert_eq!(answer(sent).await["status"], "accepted");
}

/// Section 11: secrets can be files, as orchestrators mount them.
#[tokio::test]
async fn secrets_are_read_from_files() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    folder.write("url", format!("{}\n", database.url));
    folder.write("secrets", format!("{SECRET},older\r\n"));
    folder.write("key", "sk_hunter2");
    let service = Service::start(
        &folder,
        &[
            ("DATABASE_URL_FILE", "url"),
            ("WORKOS_WEBHOOK_SECRET_FILE", "secrets"),
            ("WORKOS_API_KEY_FILE", "key"),
            // Empty, so not set.
            ("WORKOS_WEBHOOK_SECRET", ""),
        ],
    )
    .await;
    assert_eq!(service.get("/readyz").await, Some(200));
    assert!(!service.log().contains("WORKOS_API_KEY is not set"));
    assert!(!service.log().contains(PRIVATE), "{}", service.log());
    let body = event(1, Kind::Created, "org_a", "Acme");
    let signed = signature::sign(&SECRET.into(), body.as_bytes(), SystemClock.now());
    let sent = service.delivery_with(&body, &format!("WorkOS-Signature: {signed}"));
    assert_eq!(answer(sent).await["status"], "accepted");
}

/// Section 11: a file that holds nothing, or no secret, is a wrong value, and so is one beside the secret itself. Neither
/// content nor name is repeated: the name may be a secret that was given to the wrong variable.
#[tokio::test]
async fn a_wrong_secret_file_is_one_line_that_names_the_variable() {
    let folder = Folder::new();
    folder.write("empty", "\n");
    folder.write("quoted", "\"hunter2\"\n");
    folder.write("lines", "hunter2\nhunter2\n");
    folder.write("binary", b"hunter2\xff");
    folder.write("good", "hunter2");
    for variable in ["DATABASE_URL", "WORKOS_WEBHOOK_SECRET", "WORKOS_API_KEY"] {
        let file_variable = format!("{variable}_FILE");
        for (file, problem) in [
            ("hunter2", "the file can't be read: "),
            ("empty", "the file is empty"),
            ("binary", "the file can't be read: "),
            ("quoted", "the value is in quotes"),
        ] {
            let finished = run(&folder, &[(&file_variable, file)], &["migrate"]).await;
            let finished = finished.assert(2);
            let line = finished.error_line();
            let expected = format!("workos-sync: {file_variable}: {problem}");
            assert!(line.starts_with(&expected), "{line}");
            assert!(!line.contains(PRIVATE), "{line}");
        }
        let both = [(variable, PRIVATE), (file_variable.as_str(), "good")];
        let finished = run(&folder, &both, &["migrate"]).await.assert(2);
        assert_eq!(
            finished.error_line(),
            format!("workos-sync: {file_variable}: {variable} is set too; expected one of them")
        );
    }
    let lines = [("WORKOS_API_KEY_FILE", "lines")];
    let finished = run(&folder, &lines, &[]).await.assert(2);
    assert_eq!(
        finished.error_line(),
        "workos-sync: WORKOS_API_KEY_FILE: expected visible ASCII characters"
    );
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

    let none = [("", ""); 0];
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
        "WORKOS_API_KEY=\"hunter2\\x\"\n",
    ] {
        folder.write(".env", content);
        let none = [("", ""); 0];
        let finished = run(&folder, &none, &["migrate"]).await.assert(2);
        let line = finished.error_line();
        assert!(line.starts_with("workos-sync: .env: "), "{line}");
        assert!(!line.contains(PRIVATE), "{line}");
    }
}

/// Section 11: what describes the command line works in a place where nothing is configured rightly, and names every
/// command that `--help` does.
#[tokio::test]
async fn the_command_line_is_described_for_shells_and_for_man() {
    let folder = Folder::new();
    let wrong = [("LISTEN_ADDR", "wrong")];
    let help = run(&folder, &wrong, &["--help"]).await.assert(0).stdout;
    let commands = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // A line that is indented further goes on with a description.
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|command| !command.is_empty());
    let commands: Vec<_> = commands.collect();
    assert!(
        commands.contains(&"completions") && !commands.contains(&"man"),
        "{help}"
    );
    for arguments in [
        &["completions", "bash"][..],
        &["completions", "fish"],
        &["man"],
    ] {
        let described = run(&folder, &wrong, arguments).await.assert(0).stdout;
        for command in &commands {
            // In roff, a hyphen that is to be one.
            let command = if arguments == ["man"] {
                command.replace('-', "\\-")
            } else {
                (*command).to_owned()
            };
            assert!(described.contains(&command), "{arguments:?}: {command}");
        }
        // Settings are mostly given by the names of their variables.
        assert!(
            arguments != ["man"] || described.contains("WORKOS_API_RPS"),
            "{described}"
        );
    }
    let version = run(&folder, &wrong, &["--version"]).await.assert(0).stdout;
    let version = version.trim_end();
    assert!(
        version.starts_with(concat!("workos-sync ", env!("CARGO_PKG_VERSION"))),
        "{version}"
    );
}

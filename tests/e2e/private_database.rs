//! `serve` in an empty folder: a private Postgres, found again and never left behind.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::process::{Process, isolated, program};
use crate::support::programs::Programs;
use crate::support::service::answer;
use crate::support::{Folder, Kind, Service, alive, event, eventually, run, signal};

/// No variable at all: what a newcomer has.
const NOTHING: [(&str, &str); 0] = [];

/// Runs a command line exactly as it is printed.
fn paste(line: &str) -> Value {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(&stdout).unwrap_or_else(|error| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        panic!("{error}\n{line}\n{stdout}\n{stderr}")
    })
}

async fn names(folder: &Folder) -> Vec<String> {
    sqlx::query_scalar("select name from organization_metadata order by name")
        .fetch_all(&mut folder.connect().await)
        .await
        .unwrap()
}

/// Section 8, the embedded default: what it prints can be pasted and works; its end is the end of its Postgres;
/// it finds its secret and its data again, after an orderly end and after a kill.
#[tokio::test]
async fn it_works_at_once_and_finds_its_data_again() {
    let folder = Folder::new();
    let service = Service::start(&folder, &NOTHING).await;
    let answered = paste(&service.curl_line().await);
    assert_eq!(answered["status"], "processed", "{answered}");
    assert_eq!(answered["outcome"], "created", "{answered}");
    assert_eq!(names(&folder).await, ["Acme, Inc."]);
    let secret = std::fs::read_to_string(folder.data("webhook_secret")).unwrap();
    assert!(!service.log().contains(secret.trim()), "{}", service.log());

    // A header by `sign`, which finds the secret by itself.
    let body = event(1, Kind::Created, "org_b", "Beta");
    let file = folder.write("event.json", &body);
    let signed = run(&folder, &NOTHING, &["sign", &file]).await.assert(0);
    let sent = service.delivery_with(&body, signed.stdout.trim_end());
    assert_eq!(
        answer(sent.header("prefer", "wait=30")).await["outcome"],
        "created"
    );

    let (postmaster, url) = (folder.postmaster().unwrap(), folder.database_url());
    service.terminate().await.assert(0);
    assert!(!alive(postmaster));
    assert!(!folder.data("database_url").exists());
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");

    let service = Service::start(&folder, &NOTHING).await;
    assert_eq!(
        std::fs::read_to_string(folder.data("webhook_secret")).unwrap(),
        secret
    );
    assert_eq!(names(&folder).await, ["Acme, Inc.", "Beta"]);
    assert_eq!(
        folder.database_url(),
        url,
        "who was connected needs no news"
    );

    let postmaster = folder.postmaster().unwrap();
    service.kill().await;
    assert!(
        alive(postmaster),
        "Postgres outlives an owner that is killed"
    );
    let service = Service::start(&folder, &NOTHING).await;
    assert_eq!(folder.postmaster(), Some(postmaster), "and is adopted");
    let answered = paste(&service.curl_line().await);
    assert_eq!(answered["outcome"], "updated", "{answered}");
    assert_eq!(names(&folder).await, ["Acme, Inc.", "Beta"]);
    service.terminate().await.assert(0);
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
}

/// Section 8: two `serve` in one folder would be two owners of one Postgres: the second is refused, and told who
/// the first is; the first goes on.
#[tokio::test]
async fn a_second_owner_is_refused() {
    let folder = Folder::new();
    let first = Service::start(&folder, &NOTHING).await;
    let second = run(&folder, &[("LISTEN_ADDR", "127.0.0.1:0")], &["serve"])
        .await
        .assert(1);
    let told = format!("workos-sync: another process ({}) serves from", first.id());
    assert!(second.stderr.starts_with(&told), "{second:?}");
    assert!(second.stderr.contains("\nhint: stop it"), "{second:?}");
    first.ready().await;
}

/// Section 8: an end that is asked for while Postgres is still being set up is orderly too, and nothing is left
/// that stands in the way of the next start.
#[tokio::test]
async fn an_end_during_the_first_start_leaves_nothing_behind() {
    let folder = Folder::new();
    let starting = Service::launch(&folder, &NOTHING);
    eventually("the start has begun", async || {
        folder.data("password").exists()
    })
    .await;
    signal(starting.id(), "TERM");
    let ended = starting.finish().await.assert(0);
    assert_eq!(folder.postmaster(), None, "{ended:?}");
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");

    let service = Service::start(&folder, &NOTHING).await;
    service.ready().await;
}

/// Section 8: a wrong password is no matter of time. It is said at once, and the password isn't.
#[tokio::test]
async fn a_wrong_password_ends_the_start_at_once() {
    let (folder, other) = (Folder::new(), Folder::new());
    let service = Service::start(&folder, &NOTHING).await;
    let mut url = url::Url::parse(&folder.database_url()).unwrap();
    url.set_password(Some("hunter2")).unwrap();
    for command in ["serve", "migrate", "replay"] {
        let file = other.write("event.json", "{}");
        let mut arguments = vec![command];
        if command == "replay" {
            arguments.push(&file);
        }
        let refused = run(
            &other,
            &[
                ("DATABASE_URL", url.as_str()),
                ("WORKOS_WEBHOOK_SECRET", "whsec_x"),
                ("LISTEN_ADDR", "127.0.0.1:0"),
            ],
            &arguments,
        )
        .await
        .assert(1);
        let line = refused.error_line();
        assert!(line.contains("password authentication failed"), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
    service.ready().await;
}

/// Section 11: a Postgres that dies is started again, at the same address; the service goes on by itself.
#[tokio::test]
async fn a_postgres_that_dies_is_started_again() {
    let folder = Folder::new();
    let service = Service::start(&folder, &NOTHING).await;
    let before = event(1, Kind::Created, "org_a", "Acme");
    assert_eq!(service.apply(&before).await["outcome"], "created");
    let url = folder.database_url();
    for n in 2..4 {
        let postmaster = folder.postmaster().unwrap();
        signal(postmaster, "KILL");
        // Its orphans may still have answered.
        eventually("another runs", async || {
            folder
                .postmaster()
                .is_some_and(|another| another != postmaster)
        })
        .await;
        let body = event(n, Kind::Updated, "org_a", &format!("Acme {n}"));
        eventually("deliveries are accepted again", async || {
            let sent = service.delivery(&body).send().await.unwrap();
            sent.status() == 200
        })
        .await;
        assert_eq!(folder.database_url(), url);
        eventually("the event is applied", async || {
            names(&folder).await == [format!("Acme {n}")]
        })
        .await;
        service.ready().await;
    }
    service.terminate().await.assert(0);
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
}

/// Section 11: if it can't be started again, the service ends as a failure, so that whoever supervises it knows.
#[tokio::test]
async fn a_postgres_that_cannot_be_started_again_ends_the_service() {
    let folder = Folder::new();
    let programs = Programs::new(&folder);
    let service = Service::start(&folder, &[("PG_BIN_DIR", programs.dir())]).await;
    programs.replace("postgres", "echo 'the disk is gone' >&2; exit 1");
    signal(folder.postmaster().unwrap(), "KILL");
    let ended = service.finish().await.assert(1);
    let reason = "workos-sync: postgres did not start: ";
    assert!(ended.stderr.contains(reason), "{ended:?}");
    assert!(ended.stderr.ends_with("the disk is gone\n"), "{ended:?}");
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
    assert!(!folder.data("database_url").exists());
}

/// R31, section 11: however the service is asked to end, Postgres ends with it. A SIGHUP that came ignored asks for
/// nothing.
#[tokio::test]
async fn postgres_ends_with_the_service() {
    let folder = Folder::new();
    for name in ["TERM", "INT", "HUP"] {
        let service = Service::start(&folder, &NOTHING).await;
        service.signal(name);
        service.finish().await.assert(0);
        assert_eq!(folder.processes(), [""; 0], "{name}: nobody is left behind");
    }

    let mut nohup = isolated("sh", &folder);
    nohup
        .args(["-c", r#"trap "" HUP; exec "$0""#])
        .arg(env!("CARGO_BIN_EXE_workos-sync"))
        .env("LISTEN_ADDR", "127.0.0.1:0");
    let service = Service::listening(Process::spawn(&mut nohup), &folder, &[]).await;
    service.signal("HUP");
    let body = event(1, Kind::Created, "org_a", "Acme");
    assert_eq!(service.apply(&body).await["outcome"], "created");
    service.terminate().await.assert(0);
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
}

/// R31: the terminal that is closed is also where the log goes: that nobody reads it any more is no reason to panic.
#[tokio::test]
async fn a_log_that_nobody_reads_keeps_nobody_from_ending() {
    let folder = Folder::new();
    let variables = [("LISTEN_ADDR", "127.0.0.1:0")];
    let mut command = program(&folder, &variables, &[]);
    let mut service = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(service.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("listening on")));
    drop(log);
    signal(service.id(), "HUP");
    eventually("it ends", async || service.try_wait().unwrap().is_some()).await;
    assert_eq!(service.wait().unwrap().code(), Some(0));
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
}

/// Section 11: so it does with a start that fails after Postgres has begun to run.
#[tokio::test]
async fn postgres_ends_with_a_start_that_fails() {
    let folder = Folder::new();
    Service::start(&folder, &NOTHING)
        .await
        .terminate()
        .await
        .assert(0);
    std::fs::write(folder.data("webhook_secret"), "\n").unwrap();
    let refused = run(&folder, &[("LISTEN_ADDR", "127.0.0.1:0")], &[])
        .await
        .assert(1);
    let told = "webhook_secret: the secret is empty\nhint: remove the file";
    assert!(refused.stderr.contains(told), "{refused:?}");
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
}

/// Section 11: so it does with another command that started it, and that is asked to end while it waits for events.
#[tokio::test]
async fn postgres_ends_with_a_replay() {
    let folder = Folder::new();
    Service::start(&folder, &NOTHING)
        .await
        .terminate()
        .await
        .assert(0);
    for name in ["TERM", "INT", "HUP"] {
        let mut command = program(&folder, &NOTHING, &["replay", "-"]);
        let mut replay = Process::spawn(command.stdin(Stdio::piped()));
        let stdin = replay.stdin();
        eventually("it has started Postgres", async || {
            folder.data("database_url").exists()
        })
        .await;
        signal(replay.id(), name);
        let ended = replay.finish().await.assert(1);
        assert!(ended.stderr.contains("ended by a signal"), "{ended:?}");
        assert_eq!(folder.processes(), [""; 0], "{name}: nobody is left behind");
        drop(stdin);
    }
}

/// Section 11: what somebody else has made, or can change, is refused before anything in it is touched.
#[tokio::test]
async fn a_data_directory_that_is_not_ours_alone_is_refused() {
    let folder = Folder::new();
    let victim = folder.path().join("victim");
    std::fs::write(&victim, "important").unwrap();
    std::fs::create_dir(folder.data("")).unwrap();
    symlink(&victim, folder.data("lock")).unwrap();
    let file = folder.write("event.json", "{}");
    let refused = run(&folder, &[("LISTEN_ADDR", "127.0.0.1:0")], &[])
        .await
        .assert(1);
    let path = folder.data("lock").canonicalize().unwrap();
    assert_eq!(path, victim.canonicalize().unwrap());
    let told = ".workos-sync/lock: is a symbolic link\nhint: remove it";
    assert!(refused.stderr.contains(told), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "important");

    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.data(""), open).unwrap();
    std::fs::write(folder.data("webhook_secret"), "whsec_known").unwrap();
    let nothing: [&str; 0] = [];
    for arguments in [
        &nothing[..],
        &["migrate"],
        &["replay", &file],
        &["sign", &file],
    ] {
        let refused = run(&folder, &[("LISTEN_ADDR", "127.0.0.1:0")], arguments)
            .await
            .assert(1);
        let told = "workos-sync: .workos-sync: can be written to by others (mode 0777)\nhint: ";
        assert!(
            refused.stderr.starts_with(told),
            "{arguments:?}: {refused:?}"
        );
    }
}

/// A wrong `PG_BIN_DIR` is named, and what to set it to.
#[tokio::test]
async fn a_directory_without_the_server_binaries_is_named() {
    let folder = Folder::new();
    let wrong = [("PG_BIN_DIR", "/"), ("LISTEN_ADDR", "127.0.0.1:0")];
    let refused = run(&folder, &wrong, &["serve"]).await.assert(1);
    let told = "workos-sync: PG_BIN_DIR: no executable postgres in /\nhint: set PG_BIN_DIR to";
    assert!(refused.stderr.contains(told), "{refused:?}");
}

/// The image started without `DATABASE_URL`, as everybody does first: there is no room for a private Postgres, and what
/// to set instead is said.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn where_nothing_may_be_written_the_database_is_asked_for() {
    let folder = Folder::new();
    // A file system that takes no directories, not even of root.
    let nowhere = [
        ("DATA_DIR", "/sys/workos-sync"),
        ("LISTEN_ADDR", "127.0.0.1:0"),
    ];
    let refused = run(&folder, &nowhere, &["serve"]).await.assert(1);
    let hint = refused
        .stderr
        .lines()
        .find(|line| line.starts_with("hint: "));
    let hint = hint.unwrap_or_else(|| panic!("{refused:?}"));
    assert!(
        hint.contains("DATABASE_URL") && hint.contains("DATA_DIR"),
        "{hint}"
    );
}

//! `serve` in an empty folder: a private Postgres, found again and never left behind.

use std::process::Command;

use serde_json::Value;

use crate::support::service::answer;
use crate::support::{Folder, Kind, Service, alive, event, eventually, run};

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

    let postmaster = folder.postmaster().unwrap();
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
    let told = format!(
        "workos-sync: another workos-sync (process {}) serves",
        first.id()
    );
    assert!(second.stderr.starts_with(&told), "{second:?}");
    assert!(second.stderr.contains("\nhint: stop it"), "{second:?}");
    assert_eq!(first.get("/readyz").await, Some(200));
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
    crate::support::signal(starting.id(), "TERM");
    let ended = starting.finish().await.assert(0);
    assert_eq!(folder.postmaster(), None, "{ended:?}");
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");

    let service = Service::start(&folder, &NOTHING).await;
    assert_eq!(service.get("/readyz").await, Some(200));
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
    assert_eq!(service.get("/readyz").await, Some(200));
}

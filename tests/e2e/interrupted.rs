//! Starts that are asked to end while they wait for programs of Postgres that hang: they end soon, leave no process
//! behind, and nothing that the next start trips over (section 11).

use std::time::Duration;

use tokio::time::timeout;

use crate::support::process::{Process, program};
use crate::support::programs::{HANGS, Programs};
use crate::support::{Finished, Folder, Service, alive, eventually, signal};

/// An orchestrator waits for half a minute; a person at a terminal not even so long.
const SOON: Duration = Duration::from_secs(10);

async fn launched(folder: &Folder, programs: &Programs, hangs: &str) -> Process {
    let starting = Service::launch(folder, &[("PG_BIN_DIR", programs.dir())]);
    // The stand-in's child.
    let stuck = format!("tail -f {}/{hangs}", programs.dir());
    eventually("the program hangs", async || {
        folder.processes().iter().any(|line| line.contains(&stuck))
    })
    .await;
    starting
}

/// The names of what an `initdb` has made so far.
fn half_a_cluster(folder: &Folder) -> Vec<String> {
    let files = std::fs::read_dir(folder.data("")).into_iter().flatten();
    files
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("postgres.initdb"))
        .collect()
}

async fn ends_soon(starting: Process) -> Finished {
    timeout(SOON, starting.finish())
        .await
        .expect("it ends soon")
}

async fn starts_again(folder: &Folder, programs: &Programs) {
    programs.restore("initdb");
    programs.restore("postgres");
    let service = Service::start(folder, &[("PG_BIN_DIR", programs.dir())]).await;
    service.ready().await;
    service.terminate().await.assert(0);
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
}

/// R31: each signal ends an `initdb` that hangs; half a cluster is cleared away.
#[tokio::test]
async fn an_initdb_that_hangs() {
    let folder = Folder::new();
    let programs = Programs::new(&folder);
    programs.replace("initdb", HANGS);
    for name in ["TERM", "INT", "HUP"] {
        let starting = launched(&folder, &programs, "initdb").await;
        signal(starting.id(), name);
        ends_soon(starting).await.assert(0);
        assert_eq!(folder.processes(), [""; 0], "{name}: nobody is left behind");
        assert_eq!(half_a_cluster(&folder), [""; 0], "{name}");
    }
    starts_again(&folder, &programs).await;
}

/// R31: a second signal doesn't find it deaf either.
#[tokio::test]
async fn two_signals() {
    let folder = Folder::new();
    let programs = Programs::new(&folder);
    programs.replace("initdb", HANGS);
    let starting = launched(&folder, &programs, "initdb").await;
    let twice = format!("kill -INT {0}; kill -INT {0}", starting.id());
    let sent = std::process::Command::new("sh")
        .args(["-c", &twice])
        .status();
    assert!(sent.unwrap().success());
    let ended = ends_soon(starting).await;
    // The first may have been enough.
    assert!(matches!(ended.code, Some(0 | 1)), "{ended:?}");
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
    starts_again(&folder, &programs).await;
}

/// R31: a server that doesn't become ready, as in a recovery without end, is ended too. One that doesn't even say its
/// version is no reason to wait.
#[tokio::test]
async fn a_server_that_hangs() {
    let folder = Folder::new();
    let programs = Programs::new(&folder);
    starts_again(&folder, &programs).await;
    for replace in [Programs::replace, Programs::replace_all] {
        replace(&programs, "postgres", HANGS);
        let starting = launched(&folder, &programs, "postgres").await;
        signal(starting.id(), "TERM");
        ends_soon(starting).await.assert(0);
        assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
    }

    // A command that starts the server of the database that is there.
    programs.replace("postgres", HANGS);
    let variables = [("PG_BIN_DIR", programs.dir())];
    let starting = Process::spawn(&mut program(&folder, &variables, &["migrate"]));
    eventually("the program hangs", async || {
        folder
            .processes()
            .iter()
            .any(|line| line.contains("tail -f"))
    })
    .await;
    signal(starting.id(), "TERM");
    ends_soon(starting).await.assert(1);
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
    starts_again(&folder, &programs).await;
}

/// R31: a server that a killed service left, and that doesn't answer, is not waited for either; it ends with the start
/// that would have adopted it.
#[tokio::test]
async fn a_server_that_was_left_and_hangs() {
    let folder = Folder::new();
    let programs = Programs::new(&folder);
    let variables = [("PG_BIN_DIR", programs.dir())];
    let service = Service::start(&folder, &variables).await;
    let postmaster = folder.postmaster().unwrap();
    signal(postmaster, "STOP");
    service.kill().await;
    assert!(alive(postmaster));

    let starting = Service::launch(&folder, &variables);
    eventually("it waits for an answer", async || {
        starting
            .stderr
            .so_far()
            .contains("of a killed process still runs")
    })
    .await;
    signal(starting.id(), "TERM");
    ends_soon(starting).await.assert(0);
    assert!(!alive(postmaster));
    assert_eq!(folder.processes(), [""; 0], "nobody is left behind");
    starts_again(&folder, &programs).await;
}

/// Section 11: a service that is killed while it makes its database is no obstacle for the next one, although its
/// `initdb` may not have noticed yet.
#[tokio::test]
async fn a_kill_in_the_middle_of_initdb() {
    let folder = Folder::new();
    let variables: [(&str, &str); 0] = [];
    let mut starting = Service::launch(&folder, &variables);
    eventually("it makes its database", async || {
        half_a_cluster(&folder)
            .iter()
            .any(|half| folder.data(half).join("data/global").exists())
    })
    .await;
    starting.kill();
    let service = Service::start(&folder, &variables).await;
    service.ready().await;
    service.terminate().await.assert(0);
    eventually("nobody is left behind", async || {
        folder.processes().is_empty()
    })
    .await;
}

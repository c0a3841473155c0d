//! `make demo`: the page that the README promises, with events on it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::process::{Process, isolated};
use crate::support::{Folder, eventually, http, signal};

/// Builds the demo, which `cargo test --test e2e` doesn't, and puts it beside the program, in a folder of its own: its data is
/// where it is.
fn built(folder: &Folder) -> Process {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--example", "demo"])
        .args(["--manifest-path", manifest])
        .status()
        .unwrap();
    assert!(built.success(), "{built}");
    let program = Path::new(env!("CARGO_BIN_EXE_workos-sync"));
    let demo = folder.path().join("examples/demo");
    std::fs::create_dir(folder.path().join("examples")).unwrap();
    std::fs::copy(program.with_file_name("examples").join("demo"), &demo).unwrap();
    std::os::unix::fs::symlink(program, folder.path().join("workos-sync")).unwrap();
    Process::spawn(&mut isolated(demo, folder))
}

/// The page has events, of which some are applied and some are poison; and nothing runs on when the demo ends.
#[tokio::test]
async fn the_page_has_events() {
    let folder = Folder::new();
    let mut demo = built(&folder);
    let look_at = |line: &str| {
        let (_, rest) = line.split_once("Look at ")?;
        rest.split(' ').next().map(str::to_owned)
    };
    let page = demo.await_line(|demo| &demo.stdout, look_at).await;
    let get = async |path: &str| {
        let answer = http().get(format!("{page}{path}")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    };
    assert!(get("").await.contains("workos-sync"));
    eventually("webhooks arrive and are applied", async || {
        let events: Value =
            serde_json::from_str(&get("api/v1/events?source=webhook&status=processed").await)
                .unwrap();
        events["items"]
            .as_array()
            .is_some_and(|events| events.len() > 2)
    })
    .await;
    signal(demo.id(), "TERM");
    demo.finish().await.assert(0);
    assert_eq!(folder.processes(), [""; 0]);
}

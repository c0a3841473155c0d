//! What the modules may know of each other. An architecture that nothing checks is a wish.

use std::path::Path;

/// The functional core has no I/O: no database, no runtime, no HTTP, no clock, no chance.
#[test]
fn pure_modules_know_no_io() {
    for file in [
        "event.rs",
        "signature.rs",
        "backoff.rs",
        "heal/snapshot.rs",
        "inbox/retry.rs",
        "outbox/pace.rs",
        "outbox/verdict.rs",
        "sync/decide.rs",
        "sync/host/check.rs",
        "sync/slug.rs",
        "sync/organization_id.rs",
    ] {
        assert_knows_none_of(
            file,
            &[
                "sqlx",
                "tokio",
                "reqwest",
                "axum",
                "fastrand",
                "std::fs",
                "std::net",
                "crate::clock",
            ],
        );
    }
}

/// `cli → http → inbox → sync → event`, never back.
#[test]
fn arrows_go_one_way() {
    for (folder, above) in [
        ("http", &["crate::cli"][..]),
        ("inbox", &["crate::cli", "crate::http"]),
        ("sync", &["crate::cli", "crate::http", "crate::inbox"]),
        ("sync/host", &["crate::cli", "crate::http", "crate::inbox"]),
        (
            "outbox",
            &["crate::cli", "crate::http", "crate::inbox", "crate::sync"],
        ),
        (
            "postgres",
            &[
                "crate::cli",
                "crate::http",
                "crate::inbox",
                "crate::sync",
                "crate::outbox",
            ],
        ),
        (
            "metrics",
            &[
                "crate::cli",
                "crate::http",
                "crate::inbox",
                "crate::sync",
                "crate::outbox",
                "crate::workos",
            ],
        ),
    ] {
        for entry in source(folder).read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                assert_knows_none_of(
                    path.strip_prefix(source("")).unwrap().to_str().unwrap(),
                    above,
                );
            }
        }
    }
}

/// What is around them knows none of them.
#[test]
fn what_all_use_uses_none_of_them() {
    for file in [
        "telemetry.rs",
        "workos/mod.rs",
        "workos/budget.rs",
        "workos/list.rs",
        "clock.rs",
        "backoff.rs",
    ] {
        assert_knows_none_of(
            file,
            &[
                "crate::cli",
                "crate::http",
                "crate::inbox",
                "crate::sync",
                "crate::outbox",
            ],
        );
    }
}

/// The image runs as nobody in particular, and compose gives it a file system that it can't write to and no
/// capabilities.
#[test]
fn the_image_asks_for_little() {
    let read =
        |file| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let image = read("Dockerfile");
    let last_stage = image.rsplit("\nFROM ").next().unwrap();
    assert!(last_stage.contains("\nUSER 10001:10001\n"), "{last_stage}");
    let compose = read("compose.yaml");
    let service = compose.split("\n  postgres:\n").next().unwrap();
    for line in [
        "read_only: true",
        "cap_drop: [ALL]",
        "security_opt: [\"no-new-privileges:true\"]",
    ] {
        assert!(service.lines().any(|found| found.trim() == line), "{line}");
    }
}

fn source(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path)
}

fn assert_knows_none_of(file: &str, names: &[&str]) {
    let code = std::fs::read_to_string(source(file)).unwrap();
    // Up to the tests, which may use anything.
    let code = code.split("#[cfg(test)]").next().unwrap();
    for line in code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
    {
        for name in names {
            assert!(!line.contains(name), "{file} knows {name}: {line}");
        }
    }
}

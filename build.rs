//! Migrations are embedded at compile time: a new one must rebuild the crate. And `--version` tells the commit.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=sqlx.toml");
    // For builds that have no repository, such as that of the image.
    println!("cargo:rerun-if-env-changed=WORKOS_SYNC_REVISION");
    let package = env!("CARGO_PKG_VERSION");
    let given = std::env::var("WORKOS_SYNC_REVISION").unwrap_or_default();
    let revision = Some(given)
        .filter(|given| !given.is_empty())
        .or_else(commit);
    let version = match revision {
        Some(revision) => format!("{package} ({revision})"),
        None => package.to_owned(),
    };
    println!("cargo:rustc-env=WORKOS_SYNC_VERSION={version}");
}

/// The commit that is checked out, if this is a repository of its own: as a dependency, it may lie in somebody else's.
///
/// For releases only: every commit would rebuild what tests need.
fn commit() -> Option<String> {
    let directory = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    let is_release = std::env::var("PROFILE").ok()? == "release";
    if !is_release || !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    let head = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    println!(
        "cargo:rerun-if-changed={}",
        Path::new(&directory).join(head).display()
    );
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

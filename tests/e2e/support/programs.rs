//! The programs of the Postgres server, to be replaced by stand-ins that hang or fail.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Folder;

/// A directory for `PG_BIN_DIR`. At first its programs are the real ones.
pub(crate) struct Programs {
    dir: PathBuf,
    real: PathBuf,
}

/// Never ends by itself. Its children can be told by their command lines ([`Folder::processes`]).
pub(crate) const HANGS: &str = r#"tail -f "$0""#;

impl Programs {
    /// In the folder that the service runs in.
    pub(crate) fn new(folder: &Folder) -> Self {
        let programs = Self {
            dir: folder.path().join("bin"),
            real: real(),
        };
        std::fs::create_dir(&programs.dir).unwrap();
        programs.restore("postgres");
        programs.restore("initdb");
        programs
    }

    /// What to set `PG_BIN_DIR` to.
    pub(crate) fn dir(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    /// Has the program do this instead; it still knows its version.
    pub(crate) fn replace(&self, name: &str, script: &str) {
        let real = self.real.join(name).display().to_string();
        self.replace_all(
            name,
            &format!("[ \"$1\" = --version ] && exec '{real}' \"$@\"\n{script}"),
        );
    }

    /// Has the program do this instead, whatever it is asked.
    pub(crate) fn replace_all(&self, name: &str, script: &str) {
        // Written by a shell: a descriptor of ours that is open for writing could be in another test's child when
        // the program is run, and the kernel refuses that.
        let mut shell = Command::new("sh")
            .args([
                "-c",
                r#"cat > "$1.new" && chmod 755 "$1.new" && mv "$1.new" "$1""#,
                "sh",
            ])
            .arg(self.dir.join(name))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = shell.stdin.take().unwrap();
        write!(stdin, "#!/bin/sh\n{script}\n").unwrap();
        drop(stdin);
        assert!(shell.wait().unwrap().success());
    }

    /// Makes the program the real one again.
    pub(crate) fn restore(&self, name: &str) {
        self.replace_all(
            name,
            &format!("exec '{}' \"$@\"", self.real.join(name).display()),
        );
    }
}

/// Where the service would find them by itself.
fn real() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut distributed: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .map(|version| version.unwrap().path().join("bin"))
        .collect();
    distributed.sort();
    std::env::var_os("PG_BIN_DIR")
        .map(PathBuf::from)
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(distributed.into_iter().rev())
        .find(|dir| has_all(dir))
        .unwrap()
}

fn has_all(dir: &Path) -> bool {
    dir.join("postgres").is_file() && dir.join("initdb").is_file()
}

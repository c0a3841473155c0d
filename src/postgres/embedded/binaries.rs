//! Finds the programs of the Postgres server and runs them.
//!
//! Why not a downloaded server: the distribution's binaries get its security updates.

use std::cmp::Reverse;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cluster::ServerUser;
use super::error::{EmbeddedError, When};

/// Where Debian and its relatives keep the server binaries, a folder a major version.
const DISTRIBUTION: &str = "/usr/lib/postgresql";
/// The oldest major version that the service supports.
const OLDEST: u32 = 13;
const PROGRAMS: [&str; 3] = ["postgres", "initdb", "pg_ctl"];

/// The folder of the programs for a cluster: the first whose major version is the cluster's, for a
/// new one (no version yet) simply the first.
pub(super) fn find(
    bin_dir: Option<&Path>,
    pgdata: &Path,
    version: Option<u32>,
) -> Result<PathBuf, EmbeddedError> {
    let found = if let Some(dir) = bin_dir {
        // Absolute: children run in another folder than we do.
        let dir = std::path::absolute(dir).when("resolve PG_BIN_DIR", dir)?;
        let checked = Binaries::check(dir.clone()).map_err(|problem| {
            EmbeddedError::unusable(
                "PG_BIN_DIR",
                format!("{problem} in {}", dir.display()),
                format!(
                    "set it to a folder like {DISTRIBUTION}/17/bin, or unset it to search PATH"
                ),
            )
        })?;
        vec![checked]
    } else {
        let path = env::var_os("PATH").unwrap_or_default();
        search(&path, Path::new(DISTRIBUTION))
    };
    let Some(Binaries { dir, major }) = found.first() else {
        let programs = PROGRAMS.join(", ");
        return Err(EmbeddedError::unusable(
            "PATH",
            format!(
                "no Postgres server binaries ({programs}, {OLDEST} or newer) there or in {DISTRIBUTION}/*/bin"
            ),
            "install them (`apt install postgresql`), or set PG_BIN_DIR to their folder, or set DATABASE_URL to a database of yours",
        ));
    };
    let Some(version) = version else {
        return Ok(dir.clone());
    };
    match found.iter().find(|binaries| binaries.major == version) {
        Some(matching) => Ok(matching.dir.clone()),
        None => Err(EmbeddedError::unusable(
            pgdata.display(),
            format!(
                "the data is of Postgres {version}, the server binaries in {} are of Postgres {major}",
                dir.display()
            ),
            format!(
                "install Postgres {version} or set PG_BIN_DIR to its binaries; to move to the newer version, dump with the old one and restore into a new data folder"
            ),
        )),
    }
}

/// What is on `PATH`, in its order, then the distribution's versions, the highest first.
fn search(path: &OsStr, distribution: &Path) -> Vec<Binaries> {
    let usable = |dir| Binaries::check(dir).ok();
    let versions = fs::read_dir(distribution).into_iter().flatten().flatten();
    let mut distributed: Vec<_> = versions
        .filter_map(|version| usable(version.path().join("bin")))
        .collect();
    distributed.sort_by_key(|binaries| Reverse(binaries.major));
    env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .filter_map(usable)
        .chain(distributed)
        .collect()
}

/// A folder that has all the programs.
#[derive(Debug)]
struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    /// What is wrong with the folder comes back as text: a search passes it over.
    fn check(dir: PathBuf) -> Result<Self, String> {
        let executable = |program: &&str| {
            fs::metadata(dir.join(program))
                .is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
        };
        if let Some(missing) = PROGRAMS.iter().find(|program| !executable(program)) {
            return Err(format!("no executable {missing}"));
        }
        let version = command(&dir.join("postgres"), None)
            .arg("--version")
            .output()
            .map_err(|error| format!("a postgres that can't be run ({error})"))?;
        match parse_major(&String::from_utf8_lossy(&version.stdout)) {
            Some(major) if major >= OLDEST => Ok(Self { dir, major }),
            Some(major) => Err(format!("Postgres {major} (older than {OLDEST})")),
            None => Err("a postgres that doesn't tell its version".to_owned()),
        }
    }
}

/// Of `postgres (PostgreSQL) 15.14 (Debian …)`, also `18beta1` and `19devel`.
fn parse_major(text: &str) -> Option<u32> {
    let version = text.split_once("(PostgreSQL) ")?.1;
    let end = version.find(|character: char| !character.is_ascii_digit())?;
    version[..end].parse().ok()
}

/// A program run as the server's user, from a folder that everybody may enter and with next to no
/// environment: it would hand our secrets to the server, whose own variables (`PGPORT`,
/// `PGOPTIONS`, `LC_ALL`) would change what it does.
pub(super) fn command(program: &Path, user: Option<ServerUser>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C");
    for kept in ["PATH", "LD_LIBRARY_PATH", "TZ"] {
        command.envs(env::var_os(kept).map(|value| (kept, value)));
    }
    command.current_dir("/").stdin(Stdio::null());
    if let Some(ServerUser { uid, gid }) = user {
        // Supplementary groups go too: the standard library drops them with the uid.
        command.uid(uid).gid(gid);
    }
    command
}

/// Runs a program to its end. Not for one that leaves a server behind: that would hold our pipes.
pub(super) async fn run(what: &'static str, command: Command) -> Result<(), EmbeddedError> {
    let program = PathBuf::from(command.get_program());
    let mut command = tokio::process::Command::from(command);
    let output = command.kill_on_drop(true).output().await;
    let output = output.when("run", &program)?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(EmbeddedError::Program { what, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs that only know their version. Written by a shell: a descriptor of ours that is open
    /// for writing could be in another test's child when the program is run, and the kernel refuses
    /// that.
    fn fake_binaries(dir: &Path, major: u32) -> PathBuf {
        let bin = dir.join(major.to_string()).join("bin");
        fs::create_dir_all(&bin).expect("a folder");
        let script = r#"
            for program in postgres initdb pg_ctl; do
                printf '#!/bin/sh\necho "postgres (PostgreSQL) %s.1"\n' "$1" > "$program"
                chmod 755 "$program"
            done"#;
        let made = Command::new("sh")
            .args(["-c", script, "sh", &major.to_string()])
            .current_dir(&bin)
            .status();
        assert!(made.expect("a shell").success());
        bin
    }

    #[test]
    fn binaries_come_from_path_first_then_the_highest_version() {
        let dir = tempfile::tempdir().expect("a folder");
        let on_path = fake_binaries(&dir.path().join("path"), 14);
        let distribution = dir.path().join("distribution");
        for major in [9, 16, 12, 17] {
            fake_binaries(&distribution, major);
        }
        fs::create_dir_all(distribution.join("18/bin")).expect("a folder without programs");

        let found = search(on_path.as_os_str(), &distribution);
        let majors: Vec<_> = found.iter().map(|binaries| binaries.major).collect();
        assert_eq!(majors, [14, 17, 16], "12 and 9 are too old");
    }

    #[test]
    fn a_cluster_of_another_version_names_both() {
        let dir = tempfile::tempdir().expect("a folder");
        let bin = fake_binaries(dir.path(), 17);
        let pgdata = Path::new("/data/postgres");
        let same = find(Some(&bin), pgdata, Some(17)).expect("the same version");
        assert_eq!(same, bin);
        let refused = find(Some(&bin), pgdata, Some(15)).expect_err("17 can't read 15");
        let expected = format!(
            "/data/postgres: the data is of Postgres 15, the server binaries in {} are of Postgres 17",
            bin.display()
        );
        assert_eq!(refused.to_string(), expected);
        let hint = refused.hint().expect("a hint");
        assert!(hint.contains("PG_BIN_DIR"), "{hint}");
    }

    #[test]
    fn a_pg_bin_dir_without_the_programs_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let pgdata = Path::new("/data/postgres");
        let refused = find(Some(dir.path()), pgdata, None).expect_err("there is no server");
        let expected = format!(
            "PG_BIN_DIR: no executable postgres in {}",
            dir.path().display()
        );
        assert_eq!(refused.to_string(), expected);
        assert!(refused.hint().is_some());

        let bin = fake_binaries(dir.path(), 12);
        let refused = find(Some(&bin), pgdata, None).expect_err("12 is too old");
        assert!(refused.to_string().contains("Postgres 12"), "{refused}");
    }

    #[test]
    fn versions_are_read_from_releases_and_pre_releases() {
        assert_eq!(
            parse_major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_major("postgres (PostgreSQL) 13\n"), Some(13));
        assert_eq!(parse_major("sh: postgres: not found\n"), None);
    }
}

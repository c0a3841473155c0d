//! Finds the programs of the Postgres server and runs them.
//!
//! Why not a downloaded server: the distribution's binaries get its security updates.

use std::cmp::Reverse;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::error::{Error, When};
use crate::process::run;
use crate::user::{ServerUser, command};

/// Where Debian and its relatives keep the server binaries, a directory a major version.
const DISTRIBUTION: &str = "/usr/lib/postgresql";
/// The oldest major version that is supported.
const OLDEST: u32 = 13;
const PROGRAMS: [&str; 2] = ["postgres", "initdb"];

/// The directory of the programs for a cluster: the first whose major version is the cluster's, for a
/// new one (no version yet) simply the first.
pub(crate) async fn find(
    bin_dir: Option<&Path>,
    cluster: &Cluster,
    stop: &CancellationToken,
) -> Result<PathBuf, Error> {
    let user = cluster.user;
    let found = if let Some(dir) = bin_dir.filter(|dir| !dir.as_os_str().is_empty()) {
        // Absolute: children run in another directory than we do.
        let dir = std::path::absolute(dir).when("resolve", dir)?;
        let checked = Binaries::check(dir.clone(), user, stop).await;
        checked
            .map(|binaries| vec![binaries])
            .map_err(|problem| Error::BinDir { dir, problem })
    } else {
        let path = env::var_os("PATH").unwrap_or_default();
        Ok(search(&path, Path::new(DISTRIBUTION), user, stop).await)
    };
    if stop.is_cancelled() {
        return Err(Error::Interrupted);
    }
    let found = found?;
    let Some(Binaries { dir, major }) = found.first() else {
        let programs = PROGRAMS.join(", ");
        return Err(Error::unusable(
            "PATH",
            format!(
                "no Postgres server binaries ({programs}, {OLDEST} or newer) there or in {DISTRIBUTION}/*/bin"
            ),
            "install them (`apt install postgresql`), or set {bin_dir} to their directory, or {instead}",
        ));
    };
    let Some(version) = cluster.version else {
        return Ok(dir.clone());
    };
    match found.iter().find(|binaries| binaries.major == version) {
        Some(matching) => Ok(matching.dir.clone()),
        None => Err(Error::unusable(
            cluster.pgdata.display(),
            format!(
                "the data is of Postgres {version}, the server binaries in {} are of Postgres {major}",
                dir.display()
            ),
            format!(
                "install Postgres {version} or set {{bin_dir}} to its binaries; to move to the newer version, dump with the old one and restore into a new data directory"
            ),
        )),
    }
}

/// What is on `PATH`, in its order, then the distribution's versions, the highest first.
async fn search(
    path: &OsStr,
    distribution: &Path,
    user: Option<ServerUser>,
    stop: &CancellationToken,
) -> Vec<Binaries> {
    let mut on_path = Vec::new();
    for dir in env::split_paths(path).filter(|dir| dir.is_absolute()) {
        on_path.extend(Binaries::check(dir, user, stop).await);
    }
    let mut distributed = Vec::new();
    for version in fs::read_dir(distribution).into_iter().flatten().flatten() {
        distributed.extend(Binaries::check(version.path().join("bin"), user, stop).await);
    }
    distributed.sort_by_key(|binaries: &Binaries| Reverse(binaries.major));
    on_path.into_iter().chain(distributed).collect()
}

/// A directory that has all the programs.
#[derive(Debug)]
struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    /// What is wrong with the directory comes back as text: a search passes it over. Asked as the
    /// user who will run them.
    async fn check(
        dir: PathBuf,
        user: Option<ServerUser>,
        stop: &CancellationToken,
    ) -> Result<Self, String> {
        let executable = |program: &&str| {
            fs::metadata(dir.join(program))
                .is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
        };
        if let Some(missing) = PROGRAMS.iter().find(|program| !executable(program)) {
            return Err(format!("no executable {missing}"));
        }
        let mut version = command(&dir.join("postgres"), user);
        version.arg("--version");
        let version = run("postgres --version", version, stop)
            .await
            .map_err(|error| format!("a postgres that can't be run ({error})"))?;
        match parse_major(&version) {
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::tests::NAMES;

    /// Programs that only know their version. Written by a shell: a descriptor of ours that is open
    /// for writing could be in another test's child when the program is run, and the kernel refuses
    /// that.
    fn fake_binaries(dir: &Path, major: u32) -> PathBuf {
        let bin = dir.join(major.to_string()).join("bin");
        fs::create_dir_all(&bin).expect("a directory");
        let script = r#"
            for program in postgres initdb; do
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

    fn cluster(version: Option<u32>) -> Cluster {
        Cluster {
            pgdata: "/data/postgres".into(),
            user: None,
            version,
        }
    }

    #[tokio::test]
    async fn binaries_come_from_path_first_then_the_highest_version() {
        let dir = tempfile::tempdir().expect("a directory");
        let on_path = fake_binaries(&dir.path().join("path"), 14);
        let distribution = dir.path().join("distribution");
        for major in [9, 16, 12, 17] {
            fake_binaries(&distribution, major);
        }
        fs::create_dir_all(distribution.join("18/bin")).expect("a directory without programs");

        let never = CancellationToken::new();
        let found = search(on_path.as_os_str(), &distribution, None, &never).await;
        let majors: Vec<_> = found.iter().map(|binaries| binaries.major).collect();
        assert_eq!(majors, [14, 17, 16], "12 and 9 are too old");
    }

    #[tokio::test]
    async fn a_cluster_of_another_version_names_both() {
        let dir = tempfile::tempdir().expect("a directory");
        let bin = fake_binaries(dir.path(), 17);
        let never = CancellationToken::new();
        let same = find(Some(&bin), &cluster(Some(17)), &never).await;
        assert_eq!(same.expect("the same version"), bin);
        let refused = find(Some(&bin), &cluster(Some(15)), &never).await;
        let refused = refused.expect_err("17 can't read 15");
        let expected = format!(
            "/data/postgres: the data is of Postgres 15, the server binaries in {} are of Postgres 17",
            bin.display()
        );
        assert_eq!(refused.to_string(), expected);
        let hint = refused.hint(&NAMES).expect("a hint");
        assert!(hint.contains("or set BINARIES to its"), "{hint}");
    }

    #[tokio::test]
    async fn a_directory_without_the_programs_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let never = CancellationToken::new();
        let refused = find(Some(dir.path()), &cluster(None), &never).await;
        let refused = refused.expect_err("there is no server");
        let expected = format!("no executable postgres in {}", dir.path().display());
        assert_eq!(refused.to_string(), expected);
        let hint = refused.hint(&NAMES).expect("a hint");
        assert!(hint.starts_with("set BINARIES to"), "{hint}");

        let bin = fake_binaries(dir.path(), 12);
        let refused = find(Some(&bin), &cluster(None), &never).await;
        let refused = refused.expect_err("12 is too old");
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

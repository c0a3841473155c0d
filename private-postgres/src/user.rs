//! Whom the server runs as: Postgres refuses to run as root.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whom the server runs as, if not as ourselves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl ServerUser {
    /// The user of a new cluster that root makes.
    pub(crate) fn for_root() -> Option<Self> {
        Self::named("postgres").or_else(|| Self::named("nobody"))
    }

    /// The standard library knows no users, and a crate for it is too much.
    fn named(name: &str) -> Option<Self> {
        let id = |what| {
            let answer = command(Path::new("id"), None).args([what, name]).output();
            str::from_utf8(&answer.ok()?.stdout)
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        let (uid, gid) = (id("-u")?, id("-g")?);
        Some(Self { uid, gid })
    }

    /// Whether the user can pass through the directory, all its parents included. Asked of the
    /// kernel, because modes, ACLs and mounts together decide it.
    pub(crate) fn can_enter(self, dir: &Path) -> bool {
        let mut shell = command(Path::new("/bin/sh"), Some(self));
        let cd = shell.args(["-c", r#"cd -- "$1""#, "sh"]).arg(dir).output();
        cd.is_ok_and(|cd| cd.status.success())
    }
}

/// Our own user id.
pub(crate) fn our_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub(crate) fn is_root() -> bool {
    our_uid() == 0
}

/// A program run as the server's user, from a directory that everybody may enter and with next to no
/// environment: it would hand our secrets to the server, whose own variables (`PGPORT`,
/// `PGOPTIONS`, `LC_ALL`) would change what it does.
pub(crate) fn command(program: &Path, user: Option<ServerUser>) -> Command {
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

//! Whom the server runs as: Postgres refuses to run as root.

use std::path::Path;

use super::binaries::command;

/// Whom the server runs as, if not as ourselves.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl ServerUser {
    /// The user of a new cluster that root makes.
    pub(super) fn for_root() -> Option<Self> {
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
    pub(super) fn can_enter(self, dir: &Path) -> bool {
        let mut shell = command(Path::new("/bin/sh"), Some(self));
        let cd = shell.args(["-c", r#"cd -- "$1""#, "sh"]).arg(dir).output();
        cd.is_ok_and(|cd| cd.status.success())
    }
}

/// Our own user id.
pub(super) fn our_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub(super) fn is_root() -> bool {
    our_uid() == 0
}

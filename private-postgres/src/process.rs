//! Child processes: how they are started, awaited and ended.
//!
//! Each leads a process group of its own. So Ctrl-C in a terminal reaches us alone, and a signal of
//! ours reaches also what the child has started. (The backends of a server have left its group;
//! they end with it.)

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, When};

/// Between two looks at what can't be awaited.
pub(crate) const POLL: Duration = Duration::from_millis(50);
/// How long what a killed child had started may take to be gone.
const GONE: Duration = Duration::from_secs(2);

/// A child and its group; killed when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    child: tokio::process::Child,
    pub(crate) pid: Pid,
}

impl Child {
    pub(crate) fn spawn(mut command: Command) -> Result<Self, Error> {
        command.process_group(0);
        let program = PathBuf::from(command.get_program());
        let child = tokio::process::Command::from(command).spawn();
        let child = child.when("run", &program)?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        Ok(Self {
            child,
            pid: pid.expect("a child that nobody has waited for has an id"),
        })
    }

    pub(crate) async fn ended(&mut self) {
        // No error that would be worth more than the process: it is gone.
        let _status = self.child.wait().await;
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// To the whole group. What has ended needs none, and its id may be another's.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if !self.has_ended() {
            let _ended_since = kill_process_group(self.pid, signal);
        }
    }

    /// Kills the group, and waits until nobody in it writes to the disk any more.
    async fn kill(mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
        let deadline = Instant::now() + GONE;
        while test_kill_process_group(self.pid).is_ok() && Instant::now() < deadline {
            sleep(POLL).await;
        }
    }

    async fn output(&mut self) -> std::io::Result<Output> {
        async fn all(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_end(&mut bytes).await?;
            }
            Ok(bytes)
        }
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let (stdout, stderr, status): (_, _, ExitStatus) =
            tokio::try_join!(all(stdout), all(stderr), self.child.wait())?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Runs a program to its end; says what it has printed on standard output. Once `stop` is
/// cancelled, it is killed with all that it has started.
pub(crate) async fn run(
    what: &'static str,
    mut command: Command,
    stop: &CancellationToken,
) -> Result<String, Error> {
    let program = PathBuf::from(command.get_program());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Child::spawn(command)?;
    let output = tokio::select! {
        biased;
        () = stop.cancelled() => {
            child.kill().await;
            return Err(Error::Interrupted);
        }
        output = child.output() => output.when("run", &program)?,
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Program { what, output })
}

//! Child processes: what they print, how they end, and that they do end.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::time::{Instant, sleep};

use super::{Folder, PATIENCE, POLL};

/// A running process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) stdout: Text,
    pub(crate) stderr: Text,
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// `None`: a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Fails the test, with all that was printed, if the exit code is another.
    #[track_caller]
    pub(crate) fn assert(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// The one line on standard error; fails the test if there are more, or none.
    #[track_caller]
    pub(crate) fn error_line(&self) -> &str {
        let line = self.stderr.strip_suffix('\n').unwrap_or_default();
        assert!(!line.is_empty() && !line.contains('\n'), "{self:#?}");
        line
    }
}

/// What a process has printed so far.
pub(crate) struct Text {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Text {
    fn collect(mut source: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, reader }
    }

    pub(crate) fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// The whole lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = self.so_far();
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        text[..end].lines().map(str::to_owned).collect()
    }
}

impl Process {
    /// Starts a command. What it prints is collected, and doesn't block it.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            stdout: Text::collect(child.stdout.take().unwrap()),
            stderr: Text::collect(child.stderr.take().unwrap()),
            child,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, where that is a pipe; closed when dropped.
    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Waits for a line that says something, in what is printed to one of the two; fails if it ends first.
    pub(crate) async fn await_line<T>(
        &mut self,
        printed: impl Fn(&Self) -> &Text,
        says: impl Fn(&str) -> Option<T>,
    ) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let lines = printed(self).lines();
            if let Some(said) = lines.iter().find_map(|line| says(line)) {
                return said;
            }
            let ended = self.exit();
            assert!(
                ended.is_none() && Instant::now() < give_up,
                "it doesn't say what is waited for ({ended:?})\n{}",
                self.stderr.so_far()
            );
            sleep(POLL).await;
        }
    }

    /// How it ended, if it did.
    pub(crate) fn exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// How much memory it has had in use at most, in kB; nothing of a process that has ended.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_kb(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        status.lines().find_map(|line| {
            let peak = line.strip_prefix("VmHWM:")?.strip_suffix("kB")?;
            peak.trim().parse().ok()
        })
    }

    /// SIGKILL, at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Waits for its end, and for the end of what it prints: a process that it leaves behind must not hold the
    /// terminal or the pipe of whoever called it.
    pub(crate) async fn finish(mut self) -> Finished {
        let give_up = Instant::now() + PATIENCE;
        let mut status = None;
        while status.is_none()
            || !self.stdout.reader.is_finished()
            || !self.stderr.reader.is_finished()
        {
            assert!(
                Instant::now() < give_up,
                "never: the process ends ({status:?})\n{}\n{}",
                self.stdout.so_far(),
                self.stderr.so_far(),
            );
            sleep(POLL).await;
            status = self.exit();
        }
        Finished {
            code: status.and_then(|status| status.code()),
            stdout: self.stdout.so_far(),
            stderr: self.stderr.so_far(),
        }
    }
}

impl Drop for Process {
    #[expect(
        clippy::print_stderr,
        reason = "who looks into a failed test wants to see it"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (id, exit) = (self.id(), self.exit());
            eprintln!("process {id}, ended: {exit:?}\n{}", self.stderr.so_far());
        }
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The built program, in a folder, with these variables and no others: neither a `.env` of the working copy nor
/// a variable of whoever runs the tests has a say.
pub(crate) fn program<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    folder: &Folder,
    variables: &[(K, V)],
    arguments: &[&str],
) -> Command {
    let mut command = isolated(env!("CARGO_BIN_EXE_workos-sync"), folder);
    // Where the servers of these tests come from.
    if let Some(bin_dir) = std::env::var_os("PG_BIN_DIR") {
        command.env("PG_BIN_DIR", bin_dir);
    }
    command
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)));
    command
}

/// A program in a folder, with nothing of this process's environment but `PATH`.
pub(crate) fn isolated(program: impl AsRef<OsStr>, folder: &Folder) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder.path())
        .stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) async fn run<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    folder: &Folder,
    variables: &[(K, V)],
    arguments: &[&str],
) -> Finished {
    Process::spawn(&mut program(folder, variables, arguments))
        .finish()
        .await
}

/// Runs the program to its end, with something on its standard input.
pub(crate) async fn run_with_input<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    folder: &Folder,
    variables: &[(K, V)],
    arguments: &[&str],
    input: &str,
) -> Finished {
    let mut process = Process::spawn(program(folder, variables, arguments).stdin(Stdio::piped()));
    let mut stdin = process.stdin();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    process.finish().await
}

/// Sends a signal, by the shell's own `kill`.
pub(crate) fn signal(pid: u32, name: &str) {
    let sent = Command::new("sh")
        .args(["-c", r#"kill -s "$1" "$2""#, "sh", name, &pid.to_string()])
        .status()
        .unwrap();
    assert!(sent.success(), "kill -s {name} {pid}");
}

/// Whether a process runs. One that has ended and that nobody has asked for its exit code doesn't.
pub(crate) fn alive(pid: u32) -> bool {
    let listing = Command::new("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output()
        .unwrap();
    let state = String::from_utf8_lossy(&listing.stdout);
    !state.trim().is_empty() && !state.trim().starts_with('Z')
}

//! The processes that are measured: started, asked of `/proc` what they use, ended.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use private_postgres::free_port;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use crate::events::SECRET;

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Lines of a log that are shown when something failed.
const LOG_SHOWN: usize = 10;
const STOP_TIMEOUT: Duration = Duration::from_secs(40);
/// Linux tells user space 100 to the second, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used since its start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    /// The most memory it ever had resident, in MiB. The kernel keeps it, so no peak is missed between two looks.
    pub(crate) max_rss_mib: f64,
}

/// A process that receives webhooks. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Receiver {
    child: Child,
    pub(crate) address: SocketAddr,
    folder: TempDir,
}

impl Receiver {
    /// Starts it, and waits until it is ready.
    pub(crate) async fn start(
        mut command: tokio::process::Command,
        database_url: &str,
    ) -> anyhow::Result<Self> {
        // An empty folder: no `.env` of whoever runs the benchmark has a say.
        let folder = tempfile::tempdir()?;
        let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
        let child = quiet(&mut command, folder.path(), database_url)?
            .env("LISTEN_ADDR", address.to_string())
            .env("PORT", address.port().to_string())
            .spawn()
            .with_context(|| format!("{}", command.as_std().get_program().display()))?;
        let mut this = Self {
            child,
            address,
            folder,
        };
        let deadline = Instant::now() + START_TIMEOUT;
        while !is_ready(address).await {
            if let Some(status) = this.child.try_wait()? {
                bail!("it ended at its start: {status}\n{}", this.log());
            }
            ensure!(
                Instant::now() < deadline,
                "it isn't ready after {START_TIMEOUT:?}\n{}",
                this.log()
            );
            sleep(Duration::from_millis(20)).await;
        }
        Ok(this)
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        usage(self.child.id().context("it has ended")?)
    }

    /// The end of what it logged.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_SHOWN)..].join("\n")
    }

    /// Ends it as an orchestrator does, and wants a clean end.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().context("it has ended")?;
        // The shell has it built in; the program is in a package of its own.
        let kill = format!("kill -s TERM {pid}");
        Command::new("sh").args(["-c", &kill]).status()?;
        let status = timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .context("it doesn't stop")??;
        ensure!(status.success(), "it stopped with {status}\n{}", self.log());
        Ok(())
    }
}

/// Environment and output of what is measured: nothing inherited that configures it, warnings and errors into
/// a file.
pub(crate) fn quiet<'a>(
    command: &'a mut tokio::process::Command,
    folder: &Path,
    database_url: &str,
) -> anyhow::Result<&'a mut tokio::process::Command> {
    let log = File::create(folder.join("log"))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(command
        .env_clear()
        .env("PATH", path)
        .env("NODE_ENV", "production")
        .env("DATABASE_URL", database_url)
        .env("WORKOS_WEBHOOK_SECRET", SECRET)
        .env("LOG_LEVEL", "warn")
        .env("LOG_FORMAT", "json")
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true))
}

async fn is_ready(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        std::io::Result::Ok(status.ends_with(b" 200"))
    };
    matches!(timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)))
}

/// What one process has used.
pub(crate) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let stat = Stat::read(pid)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let max_rss_kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|value| value.split_whitespace().next())
        .and_then(|value| value.parse().ok())
        .unwrap_or_default();
    Ok(Usage {
        cpu_seconds: stat.own,
        max_rss_mib: max_rss_kib / 1024.0,
    })
}

/// What a process, its ended children and its living children have used of the processor.
pub(crate) fn usage_of_family(pid: u32) -> anyhow::Result<Usage> {
    let parent = Stat::read(pid)?;
    let mut cpu_seconds = parent.own + parent.ended_children;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        // One that ends while we look is in neither sum; it is a moment's worth.
        if let Ok(stat) = Stat::read(child)
            && stat.parent == pid
        {
            cpu_seconds += stat.own;
        }
    }
    Ok(Usage {
        cpu_seconds,
        max_rss_mib: 0.0,
    })
}

struct Stat {
    parent: u32,
    own: f64,
    ended_children: f64,
}

impl Stat {
    /// `/proc/<pid>/stat`: see proc(5). The name, in parentheses, may hold blanks; what follows it may not.
    fn read(pid: u32) -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, rest) = stat.rsplit_once(')').context("a stat without a name")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The state, field 3, is the first here.
        let ticks = |field: usize| -> anyhow::Result<f64> {
            let value = fields.get(field - 3).context("a short stat")?;
            Ok(value.parse::<f64>()? / TICKS_PER_SECOND)
        };
        Ok(Self {
            parent: fields.get(1).context("a short stat")?.parse()?,
            own: ticks(14)? + ticks(15)?,
            ended_children: ticks(16)? + ticks(17)?,
        })
    }
}

/// The first line that a program prints.
pub(crate) fn first_line(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{}", command.get_program().display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

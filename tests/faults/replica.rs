//! A replica of the service: the built program as a process, which somebody starts again when it ends.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use private_postgres::free_port;
use tokio::time::{Instant, sleep};

use crate::{PATIENCE, POLL, eventually, signal};

/// The webhook's secret.
pub(crate) const SECRET: &str = "whsec_faults";

/// What a replica is given.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// None: it runs a private Postgres.
    pub(crate) database_url: Option<String>,
    pub(crate) workos_url: String,
    pub(crate) connections: u32,
    /// How often it polls, in seconds; 0: never.
    pub(crate) poll: u32,
    /// How far its clock is ahead.
    pub(crate) ahead: Duration,
}

/// A replica; killed when dropped.
#[derive(Debug)]
pub(crate) struct Replica {
    port: u16,
    settings: Settings,
    folder: PathBuf,
    log: PathBuf,
    slot: Mutex<Slot>,
    /// Grows with everything that is done to it.
    disturbances: AtomicU64,
    /// One fault at a time: what was just killed can't be told to end.
    fault: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Slot {
    child: Option<Child>,
    /// Somebody is doing something to it: it may be down, or doesn't answer.
    disturbed: bool,
    /// How it ended when nobody asked it to.
    ended: Vec<ExitStatus>,
}

impl Replica {
    pub(crate) fn new(index: usize, folder: &Path, settings: Settings) -> Result<Self> {
        Ok(Self {
            port: free_port()?,
            settings,
            folder: folder.to_owned(),
            log: folder.join(format!("replica-{index}.log")),
            slot: Mutex::default(),
            disturbances: AtomicU64::new(0),
            fault: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it.
    pub(crate) fn start(&self) -> Result<()> {
        let child = self.program(&["serve"])?.spawn()?;
        self.slot.lock().unwrap().child = Some(child);
        Ok(())
    }

    /// Begins a command beside it.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Result<Child> {
        Ok(self.program(arguments)?.spawn()?)
    }

    /// Runs a command beside it, and kills that after a while if it hasn't ended; says how it ended.
    pub(crate) async fn command(
        &self,
        arguments: &[&str],
        killed_after: Duration,
    ) -> Result<ExitStatus> {
        let mut child = self.begin(arguments)?;
        let kill_at = Instant::now() + killed_after;
        loop {
            if let Some(exit) = child.try_wait()? {
                return Ok(exit);
            }
            if Instant::now() >= kill_at {
                child.kill()?;
                return Ok(child.wait()?);
            }
            sleep(POLL / 5).await;
        }
    }

    /// Nothing but the settings of the test: neither a `.env` of the working copy nor a variable of whoever runs it.
    fn program(&self, arguments: &[&str]) -> Result<Command> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let built = env!("CARGO_BIN_EXE_workos-sync").into();
        let mut program = Command::new(std::env::var_os("FAULT_BINARY").unwrap_or(built));
        program
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .env(
                "DATABASE_MAX_CONNECTIONS",
                self.settings.connections.to_string(),
            )
            .env("WORKOS_WEBHOOK_SECRET", SECRET)
            .env("WORKOS_API_KEY", "sk_faults")
            .env("EVENTS_POLL_SECONDS", self.settings.poll.to_string())
            .env("WORKOS_API_RPS", "100")
            .env("WORKOS_API_URL", &self.settings.workos_url)
            .env("LISTEN_ADDR", format!("127.0.0.1:{}", self.port))
            .env("SHUTDOWN_GRACE_SECONDS", "10")
            .env("LOG_FORMAT", "text")
            .env(
                "LOG_LEVEL",
                std::env::var("FAULT_LOG").unwrap_or_else(|_| "info".to_owned()),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(url) = &self.settings.database_url {
            program.env("DATABASE_URL", url);
        } else {
            let where_programs_are = ["PATH", "PG_BIN_DIR"];
            program.envs(std::env::vars_os().filter(|(name, _)| {
                where_programs_are
                    .iter()
                    .any(|wanted| name == std::ffi::OsStr::new(wanted))
            }));
        }
        if self.settings.ahead > Duration::ZERO {
            program
                .env("LD_PRELOAD", faketime()?)
                .env("FAKETIME", format!("+{}", self.settings.ahead.as_secs()))
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        Ok(program)
    }

    /// How far its clock is ahead.
    pub(crate) fn ahead(&self) -> Duration {
        self.settings.ahead
    }

    /// Waits until it answers.
    pub(crate) async fn answers(&self) -> Result<()> {
        let http = crate::http(Duration::from_secs(1))?;
        let url = format!("{}/healthz", self.url());
        eventually("a replica answers", async || {
            let answer = http.get(&url).send().await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await
    }

    /// Starts it again when it ends by itself, as an operator's supervisor does.
    pub(crate) async fn supervise(&self) {
        loop {
            sleep(POLL * 4).await;
            let ended = {
                let mut slot = self.slot.lock().unwrap();
                let exit = slot.child.as_mut().and_then(|child| child.try_wait().ok()?);
                match exit {
                    Some(exit) if !slot.disturbed => {
                        slot.ended.push(exit);
                        true
                    }
                    _ => false,
                }
            };
            if ended {
                self.disturbances.fetch_add(1, Ordering::SeqCst);
                let _ = self.start();
            }
        }
    }

    /// How often it ended when nobody asked it to.
    pub(crate) fn ended(&self) -> usize {
        self.slot.lock().unwrap().ended.len()
    }

    /// The number of disturbances, while there is none.
    pub(crate) fn undisturbed(&self) -> Option<u64> {
        let slot = self.slot.lock().unwrap();
        (!slot.disturbed).then(|| self.disturbances.load(Ordering::SeqCst))
    }

    fn disturb(&self, disturbed: bool) {
        self.slot.lock().unwrap().disturbed = disturbed;
        self.disturbances.fetch_add(1, Ordering::SeqCst);
    }

    fn id(&self) -> Option<u32> {
        self.slot.lock().unwrap().child.as_ref().map(Child::id)
    }

    /// SIGKILL; it is started again after a while.
    pub(crate) async fn kill(&self, down: Duration) -> Result<()> {
        let _alone = self.fault.lock().await;
        self.disturb(true);
        self.end();
        sleep(down).await;
        self.start()?;
        self.disturb(false);
        Ok(())
    }

    /// SIGTERM; it is started again when it has ended. Says how it ended.
    pub(crate) async fn restart(&self) -> Result<ExitStatus> {
        let _alone = self.fault.lock().await;
        let exit = self.stop().await?;
        self.start()?;
        self.disturb(false);
        Ok(exit)
    }

    /// SIGTERM, for good. Says how it ended.
    pub(crate) async fn stop(&self) -> Result<ExitStatus> {
        self.disturb(true);
        if let Some(id) = self.id() {
            signal(id, "TERM").await?;
        }
        let give_up = Instant::now() + PATIENCE;
        loop {
            let exit = {
                let mut slot = self.slot.lock().unwrap();
                match slot.child.as_mut() {
                    Some(child) => child.try_wait()?,
                    None => None,
                }
            };
            if let Some(exit) = exit {
                return Ok(exit);
            }
            ensure!(Instant::now() < give_up, "a replica doesn\'t end");
            sleep(POLL).await;
        }
    }

    /// SIGSTOP; SIGCONT after a while.
    pub(crate) async fn pause(&self, pause: Duration) -> Result<()> {
        let _alone = self.fault.lock().await;
        self.disturb(true);
        if let Some(id) = self.id() {
            signal(id, "STOP").await?;
            sleep(pause).await;
            signal(id, "CONT").await?;
        }
        self.disturb(false);
        Ok(())
    }

    /// SIGKILL, for good.
    pub(crate) fn end(&self) {
        let mut slot = self.slot.lock().unwrap();
        slot.disturbed = true;
        if let Some(mut child) = slot.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> Result<File> {
        Ok(File::open(&self.log)?)
    }

    /// The end of what it has logged.
    pub(crate) fn tail(&self) -> String {
        crate::tail(&self.log, 25)
    }
}

/// What is loaded into a process whose clock is to be wrong.
fn faketime() -> Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib")?.flatten();
    let libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let mut found = libraries.filter(|library| library.is_file());
    found
        .next()
        .context("libfaketime is missing: `make faults` installs it (`faketime` on Debian)")
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.end();
    }
}

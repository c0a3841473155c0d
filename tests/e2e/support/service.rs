//! `workos-sync serve` as a process.

use std::net::SocketAddr;

use reqwest::RequestBuilder;
use serde_json::Value;
use workos_sync::clock::{Clock, SystemClock};
use workos_sync::signature;

use super::process::{Process, isolated, program};
use super::{Finished, Folder, TestDatabase, eventually, http, signal};

/// The webhook's secret where a test gives one.
pub(crate) const SECRET: &str = "whsec_end_to_end";

/// A service that listens; killed when dropped.
pub(crate) struct Service {
    process: Process,
    pub(crate) address: SocketAddr,
    secret: String,
    http: reqwest::Client,
}

impl Service {
    /// Starts `serve` on a free port, and waits until it says that it listens.
    pub(crate) async fn start(folder: &Folder, variables: &[(&str, &str)]) -> Self {
        let process = Self::launch(folder, variables);
        Self::listening(process, folder, variables).await
    }

    /// The same, where no more files may be open than this (`ulimit -n`).
    pub(crate) async fn start_with_open_files(
        folder: &Folder,
        variables: &[(&str, &str)],
        open_files: u32,
    ) -> Self {
        let script = r#"ulimit -n "$1" && exec "$2""#;
        let mut command = isolated("sh", folder);
        command
            .args(["-c", script, "sh", &open_files.to_string()])
            .arg(env!("CARGO_BIN_EXE_workos-sync"))
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .envs(variables.iter().copied());
        Self::listening(Process::spawn(&mut command), folder, variables).await
    }

    /// Waits until a process says that it listens.
    pub(crate) async fn listening(
        mut process: Process,
        folder: &Folder,
        variables: &[(&str, &str)],
    ) -> Self {
        let listening = |line: &str| {
            // In either form of the log.
            let (_, address) = line.split_once("listening on ")?;
            let end = address.find(|c: char| !c.is_ascii_digit() && !".:".contains(c));
            address[..end.unwrap_or(address.len())].parse().ok()
        };
        let address = process
            .await_line(|process| &process.stderr, listening)
            .await;
        let given = variables
            .iter()
            .find(|(name, _)| *name == "WORKOS_WEBHOOK_SECRET");
        let secret = match given {
            // Of several, any is good.
            Some((_, secrets)) => secrets.split(',').next().unwrap().to_owned(),
            None => std::fs::read_to_string(folder.data("webhook_secret"))
                .unwrap()
                .trim()
                .to_owned(),
        };
        Self {
            process,
            address,
            secret,
            http: http(),
        }
    }

    /// Starts it on a database, with [`SECRET`].
    pub(crate) async fn on(folder: &Folder, database: &TestDatabase) -> Self {
        Self::start(
            folder,
            &[
                ("DATABASE_URL", &database.url),
                ("WORKOS_WEBHOOK_SECRET", SECRET),
            ],
        )
        .await
    }

    /// Starts `serve` on a free port, and waits for nothing.
    pub(crate) fn launch(folder: &Folder, variables: &[(&str, &str)]) -> Process {
        let mut command = program::<&str, &str>(folder, &[("LISTEN_ADDR", "127.0.0.1:0")], &[]);
        Process::spawn(command.envs(variables.iter().copied()))
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Where its page is, as it says.
    pub(crate) fn page_url(&self) -> String {
        let log = self.log();
        let (_, url) = log.split_once("the admin API are at ").unwrap();
        let end = url.find(|c: char| c == '"' || c.is_whitespace());
        url[..end.unwrap_or(url.len())].to_owned()
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.process.stderr.so_far()
    }

    /// What it has printed so far, beside the log.
    pub(crate) fn printed(&self) -> String {
        self.process.stdout.so_far()
    }

    /// The command that a newcomer is asked to paste; waited for.
    pub(crate) async fn curl_line(&self) -> String {
        let find = || {
            let lines = self.process.stdout.lines();
            lines.into_iter().find(|line| line.starts_with("curl "))
        };
        eventually("a curl line is printed", async || find().is_some()).await;
        find().unwrap()
    }

    /// A good signature of a body, now: the value of the header.
    pub(crate) fn sign(&self, body: &str) -> String {
        signature::sign(
            &self.secret.as_str().into(),
            body.as_bytes(),
            SystemClock.now(),
        )
    }

    /// A delivery, signed.
    pub(crate) fn delivery(&self, body: &str) -> RequestBuilder {
        self.delivery_with(body, &format!("WorkOS-Signature: {}", self.sign(body)))
    }

    /// A delivery with a header line that somebody else has made.
    pub(crate) fn delivery_with(&self, body: &str, header: &str) -> RequestBuilder {
        let (name, value) = header.split_once(": ").unwrap();
        self.http
            .post(self.url("/webhooks/workos"))
            .header(name, value)
            .body(body.to_owned())
    }

    /// Delivers an event and waits for its outcome: the answer's body. Fails the test if it isn't 200.
    pub(crate) async fn apply(&self, body: &str) -> Value {
        answer(self.delivery(body).header("prefer", "wait=30")).await
    }

    /// The status that a path answers with.
    pub(crate) async fn get(&self, path: &str) -> Option<u16> {
        let answer = self.http.get(self.url(path)).send().await.ok()?;
        Some(answer.status().as_u16())
    }

    /// Waits until it is ready: on a busy machine, a probe's second may be too short.
    pub(crate) async fn ready(&self) {
        eventually("it is ready", async || {
            self.get("/readyz").await == Some(200)
        })
        .await;
    }

    /// How much memory it has in use, in kB.
    #[cfg(target_os = "linux")]
    pub(crate) fn resident_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let resident = status.lines().find_map(|line| {
            let resident = line.strip_prefix("VmRSS:")?.strip_suffix("kB")?;
            resident.trim().parse().ok()
        });
        resident.unwrap()
    }

    /// How much memory it has had in use at most, in kB.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_kb(&self) -> u64 {
        self.process.peak_kb().unwrap()
    }

    /// Asks it to end, without waiting.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// Waits for its end.
    pub(crate) async fn finish(self) -> Finished {
        self.process.finish().await
    }

    /// Asks it to end, and waits for that.
    pub(crate) async fn terminate(self) -> Finished {
        self.signal("TERM");
        self.finish().await
    }

    /// Ends it as the kernel does when memory is short, and waits for that.
    pub(crate) async fn kill(mut self) {
        self.kill_now();
        self.finish().await;
    }

    /// Ends it as the kernel does when memory is short.
    pub(crate) fn kill_now(&mut self) {
        self.process.kill();
    }
}

/// The body of an answer that must be 200.
pub(crate) async fn answer(request: RequestBuilder) -> Value {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

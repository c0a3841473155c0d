//! The emulator of the official WorkOS command line: it keeps organizations in memory, and sends webhooks.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use super::process::{Process, isolated};
use super::{Folder, PATIENCE, POLL, http};

/// The key that the emulator knows.
pub(crate) const API_KEY: &str = "sk_test_default";

/// A running emulator; gone when dropped.
pub(crate) struct Emulator {
    url: String,
    http: reqwest::Client,
    _process: Process,
    _folder: Folder,
}

impl Emulator {
    /// Starts it on a free port.
    pub(crate) async fn start() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/e2e/emulator/node_modules/.bin/workos");
        assert!(
            program.exists(),
            "the WorkOS emulator is not installed: run `make e2e`"
        );
        // It reads a seed file from the working folder, and settings from the home folder.
        let folder = Folder::new();
        let mut process = Process::spawn(
            isolated(program, &folder)
                .args(["emulate", "--port", "0", "--json"])
                .env("WORKOS_TELEMETRY", "false"),
        );
        let give_up = tokio::time::Instant::now() + PATIENCE;
        let url = loop {
            let started = process.stdout.lines().iter().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                Some(line["url"].as_str()?.to_owned())
            });
            if let Some(url) = started {
                break url;
            }
            let ended = process.exit();
            assert!(
                ended.is_none() && tokio::time::Instant::now() < give_up,
                "the emulator doesn't start ({ended:?})\n{}\n{}",
                process.stdout.so_far(),
                process.stderr.so_far(),
            );
            tokio::time::sleep(POLL).await;
        };
        Self {
            url,
            http: http(),
            _process: process,
            _folder: folder,
        }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Sends every event to this address from now on; signs with this secret.
    pub(crate) async fn send_events_to(&self, url: &str, secret: &str) {
        let body = json!({ "endpoint_url": url, "secret": secret, "events": [] });
        let endpoint = self.call(Method::POST, "/webhook_endpoints", &body).await;
        assert_eq!(endpoint["secret"], secret, "{endpoint}");
    }

    /// Creates an organization; answers its id.
    pub(crate) async fn create(&self, name: &str) -> String {
        let body = json!({ "name": name });
        let organization = self.call(Method::POST, "/organizations", &body).await;
        organization["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn rename(&self, id: &str, name: &str) {
        let path = format!("/organizations/{id}");
        self.call(Method::PUT, &path, &json!({ "name": name }))
            .await;
    }

    pub(crate) async fn delete(&self, id: &str) {
        let path = format!("/organizations/{id}");
        self.call(Method::DELETE, &path, &Value::Null).await;
    }

    /// The `external_id` that it holds for an organization.
    pub(crate) async fn external_id(&self, id: &str) -> Option<String> {
        let path = format!("/organizations/{id}");
        let organization = self.call(Method::GET, &path, &Value::Null).await;
        organization["external_id"].as_str().map(str::to_owned)
    }

    /// Every event so far, as a list page of the Events API: its text.
    pub(crate) async fn events(&self) -> String {
        let path = "/events?limit=100&order=asc";
        self.call(Method::GET, path, &Value::Null).await.to_string()
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(API_KEY);
        if !body.is_null() {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status}: {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }
}

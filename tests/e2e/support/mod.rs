//! What the tests share: the program as a process, folders to run it in, databases, events, the emulator.

#[path = "../../it/support/answer.rs"]
#[expect(dead_code, reason = "the other tests misbehave in more ways")]
pub(crate) mod answer;
#[path = "../../it/support/database.rs"]
pub(crate) mod database;
pub(crate) mod emulator;
pub(crate) mod event;
#[path = "../../it/support/fake_workos.rs"]
#[expect(dead_code, reason = "the other tests ask for more")]
pub(crate) mod fake_workos;
pub(crate) mod folder;
pub(crate) mod late;
pub(crate) mod pgbouncer;
pub(crate) mod process;
pub(crate) mod programs;
#[path = "../../it/support/server.rs"]
pub(crate) mod server;
pub(crate) mod service;
#[path = "../../it/support/serving.rs"]
pub(crate) mod serving;
pub(crate) mod tls;
#[path = "../../it/support/torn.rs"]
mod torn;

pub(crate) use answer::Answer;
pub(crate) use database::TestDatabase;
pub(crate) use emulator::Emulator;
pub(crate) use event::{Kind, event, event_id};
pub(crate) use folder::Folder;
pub(crate) use late::LateDatabase;
pub(crate) use pgbouncer::PgBouncer;
pub(crate) use process::{Finished, alive, run, run_with_input, signal};
pub(crate) use service::{SECRET, Service};

use std::time::Duration;

/// How long anything may take. Only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The pause of a poll, not a guess of how long something takes.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Waits for a condition, and fails the test if it doesn't come true.
pub(crate) async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(POLL).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// An HTTP client that talks to this machine only.
pub(crate) fn http() -> reqwest::Client {
    // reqwest takes the provider of the process; that it stands already is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

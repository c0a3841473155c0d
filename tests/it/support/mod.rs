//! What the tests share: a database each, the whole application around it, events, and a fake WorkOS.

pub(crate) mod admin;
pub(crate) mod answer;
pub(crate) mod app;
pub(crate) mod applying;
pub(crate) mod database;
pub(crate) mod event;
pub(crate) mod fake_workos;
pub(crate) mod logs;
pub(crate) mod pooler;
pub(crate) mod proxy;
pub(crate) mod role;
pub(crate) mod server;
pub(crate) mod serving;
pub(crate) mod torn;
pub(crate) mod workos;

pub(crate) use app::{NOW, TestApp, insert, look_at, put, release};
pub(crate) use applying::apply;
pub(crate) use database::TestDatabase;
pub(crate) use event::{EventBuilder, created, deleted, updated};
pub(crate) use role::Role;

use std::sync::Arc;
use std::time::Duration;

use workos_sync::clock::ManualClock;

/// The clock of a test.
pub(crate) fn manual_clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(NOW))
}

/// Waits for a condition, and fails the test if it doesn't come true.
pub(crate) async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition().await {
            // The pause of a poll, not a guess of how long something takes.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

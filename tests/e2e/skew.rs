//! A replica whose clock is wrong, by libfaketime.

use std::process::Command;

use chrono::TimeDelta;
use sqlx::Executor;
use workos_sync::clock::{Clock, SystemClock};
use workos_sync::signature;

use crate::support::{Folder, Kind, SECRET, Service, TestDatabase, event, event_id, eventually};

/// How the program is told another time.
fn library() -> String {
    let output = Command::new("faketime")
        .args(["-m", "-f", "+0s", "printenv", "LD_PRELOAD"])
        .output()
        .expect("faketime is installed: `make e2e` does it, or `apt-get install faketime`");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// R22: what a replica leases or puts off, whose clock is an hour ahead, is due by the database's clock: another one takes
/// it up when that replica dies.
#[tokio::test]
async fn a_replica_whose_clock_is_ahead_keeps_nothing_from_the_others() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let ahead = Service::start(
        &folder,
        &[
            ("DATABASE_URL", database.url.as_str()),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("LD_PRELOAD", &library()),
            ("FAKETIME", "+1h"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    )
    .await;
    database
        .pool
        .execute("alter table organization_metadata add constraint no_evil check (name <> 'Evil')")
        .await
        .unwrap();
    let deliver = async |body: String| {
        // Signed now, it is an hour old there.
        let refused = ahead.delivery(&body).send().await.unwrap();
        assert_eq!(refused.status(), 401);
        let there = SystemClock.now() + TimeDelta::hours(1);
        let header = signature::sign(&SECRET.into(), body.as_bytes(), there);
        let header = format!("WorkOS-Signature: {header}");
        let accepted = ahead.delivery_with(&body, &header).send().await.unwrap();
        assert_eq!(accepted.status(), 200);
    };
    deliver(event(1, Kind::Created, "org_a", "Evil")).await;
    deliver(event(2, Kind::Created, "org_b", "Name")).await;
    let status = async |n| -> String {
        sqlx::query_scalar("select status from webhook_events where event_id = $1")
            .bind(event_id(n))
            .fetch_one(&database.pool)
            .await
            .unwrap()
    };
    eventually("one has failed, one is applied", async || {
        (status(1).await, status(2).await) == ("failed".to_owned(), "processed".to_owned())
    })
    .await;
    let ahead_of_the_database: bool = sqlx::query_scalar(
        "select exists (select from webhook_events
                        where greatest(received_at, processed_at, next_attempt_at) > now() + interval '1 minute')
             or exists (select from external_id_pushes where next_attempt_at > now() + interval '1 minute')",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert!(!ahead_of_the_database);
    ahead.kill().await;
    database
        .pool
        .execute("alter table organization_metadata drop constraint no_evil")
        .await
        .unwrap();
    let other = Service::on(&Folder::new(), &database).await;
    eventually("the other replica applies it", async || {
        status(1).await == "processed"
    })
    .await;
    other.terminate().await.assert(0);
}

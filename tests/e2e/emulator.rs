//! Against the emulator of the official command line: events that we didn't make up, an API that we didn't write.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::emulator::API_KEY;
use crate::support::{
    Emulator, Folder, SECRET, Service, TestDatabase, eventually, run, run_with_input,
};

/// A row of `organization_metadata`.
#[derive(Debug, sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    slug: String,
    disabled_at: Option<DateTime<Utc>>,
}

/// The service and the emulator, each knowing of the other.
struct Pair {
    folder: Folder,
    database: TestDatabase,
    emulator: Emulator,
    service: Service,
}

impl Pair {
    async fn start() -> Self {
        let emulator = Emulator::start().await;
        let (folder, database) = (Folder::new(), TestDatabase::empty().await);
        let service = serve(&folder, &database, &emulator, "127.0.0.1:0").await;
        emulator
            .send_events_to(&service.url("/webhooks/workos"), SECRET)
            .await;
        Self {
            folder,
            database,
            emulator,
            service,
        }
    }

    /// The row of a WorkOS organization.
    async fn row(&self, workos_id: &str) -> Option<Row> {
        sqlx::query_as(
            "select id, name, slug, disabled_at from organization_metadata where workos_id = $1",
        )
        .bind(workos_id)
        .fetch_optional(&self.database.pool)
        .await
        .unwrap()
    }

    /// Waits until so many events are in the inbox and nothing is left to do: every event is settled, and every
    /// organization id is written to WorkOS. What is quiet then stays quiet, for nothing is under way that could
    /// make the emulator send more.
    async fn quiet(&self, events: i64) {
        eventually(
            "every event is settled, every id written back",
            async || {
                let (all, processed, pushes): (i64, i64, i64) = sqlx::query_as(
                    "select (select count(*) from workos_sync.webhook_events),
                        (select count(*) from workos_sync.webhook_events where status = 'processed'),
                        (select count(*) from workos_sync.external_id_pushes where status <> 'done')",
                )
                .fetch_one(&self.database.pool)
                .await
                .unwrap();
                all >= events && processed == all && pushes == 0
            },
        )
        .await;
        let types: Vec<(String, String)> = sqlx::query_as(
            "select event_type, event_id from workos_sync.webhook_events order by event_order",
        )
        .fetch_all(&self.database.pool)
        .await
        .unwrap();
        assert_eq!(i64::try_from(types.len()).unwrap(), events, "{types:#?}");
    }
}

/// A service that knows of events by webhooks alone.
async fn serve(
    folder: &Folder,
    database: &TestDatabase,
    emulator: &Emulator,
    address: &str,
) -> Service {
    serve_and_poll(folder, database, emulator, address, "0").await
}

async fn serve_and_poll(
    folder: &Folder,
    database: &TestDatabase,
    emulator: &Emulator,
    address: &str,
    poll_seconds: &str,
) -> Service {
    Service::start(
        folder,
        &[
            ("DATABASE_URL", &database.url),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("WORKOS_API_KEY", API_KEY),
            ("WORKOS_API_URL", emulator.url()),
            ("LISTEN_ADDR", address),
            ("EVENTS_POLL_SECONDS", poll_seconds),
        ],
    )
    .await
}

/// R4, R5, R9, R10, R14, R17: the life of two organizations of the same name.
#[tokio::test]
async fn two_organizations_of_one_name_live_and_die() {
    let pair = Pair::start().await;
    let first = pair.emulator.create("Acme, Inc.").await;
    // created, and the echo of the write-back.
    pair.quiet(2).await;
    let second = pair.emulator.create("Acme, Inc.").await;
    pair.quiet(4).await;

    let (row, other) = (
        pair.row(&first).await.unwrap(),
        pair.row(&second).await.unwrap(),
    );
    assert_eq!(row.slug, "acme-inc");
    assert!(other.slug.starts_with("acme-inc-"), "{other:?}");
    assert_eq!(
        (
            pair.emulator.external_id(&first).await.unwrap(),
            pair.emulator.external_id(&second).await.unwrap()
        ),
        (row.id.clone(), other.id.clone())
    );

    pair.emulator.rename(&second, "Ajax").await;
    // One event: an organization that has its external_id is not written to again.
    pair.quiet(5).await;
    let renamed = pair.row(&second).await.unwrap();
    assert_eq!(
        (renamed.name.as_str(), &renamed.slug, &renamed.id),
        ("Ajax", &other.slug, &other.id)
    );

    pair.emulator.delete(&first).await;
    pair.quiet(6).await;
    let deleted = pair.row(&first).await.unwrap();
    assert!(deleted.disabled_at.is_some(), "{deleted:?}");
    assert_eq!((&deleted.slug, &deleted.id), (&row.slug, &row.id));
    assert!(pair.row(&second).await.unwrap().disabled_at.is_none());

    let outcomes: Vec<(String, String)> = sqlx::query_as(
        "select event_type, outcome from workos_sync.webhook_events order by event_order",
    )
    .fetch_all(&pair.database.pool)
    .await
    .unwrap();
    let outcomes: Vec<(&str, &str)> = outcomes
        .iter()
        .map(|(event_type, outcome)| (event_type.as_str(), outcome.as_str()))
        .collect();
    assert_eq!(
        outcomes,
        [
            ("organization.created", "created"),
            ("organization.updated", "updated"),
            ("organization.created", "created"),
            ("organization.updated", "updated"),
            ("organization.updated", "updated"),
            ("organization.deleted", "disabled"),
        ]
    );
    pair.service.terminate().await.assert(0);
}

/// R9, R14, R17, R20: fifty organizations at once, of the same name, each with a slug, a row, and its id written back.
#[tokio::test]
async fn a_burst_gets_in_completely() {
    const ORGANIZATIONS: usize = 50;

    let pair = Pair::start().await;
    let mut creations = JoinSet::new();
    let emulator = std::sync::Arc::new(pair.emulator);
    for _ in 0..ORGANIZATIONS {
        let emulator = std::sync::Arc::clone(&emulator);
        creations.spawn(async move { emulator.create("Acme").await });
    }
    let ids = creations.join_all().await;
    let emulator = std::sync::Arc::into_inner(emulator).unwrap();
    let pair = Pair { emulator, ..pair };
    pair.quiet(100).await;

    let rows: BTreeMap<String, String> =
        sqlx::query_as("select workos_id, id from organization_metadata where slug like 'acme%'")
            .fetch_all(&pair.database.pool)
            .await
            .unwrap()
            .into_iter()
            .collect();
    assert_eq!(rows.len(), ORGANIZATIONS);
    for id in ids {
        assert_eq!(pair.emulator.external_id(&id).await.as_ref(), rows.get(&id));
    }
    pair.service.terminate().await.assert(0);
}

/// R22, R23: nothing that was accepted is lost by a restart. What the emulator sends while nobody listens it doesn't
/// send again (WorkOS does): a saved page of its Events API brings that in.
#[tokio::test]
async fn a_restart_loses_nothing_and_a_saved_page_fills_the_gap() {
    let pair = Pair::start().await;
    let before = pair.emulator.create("Before").await;
    eventually("it is accepted", async || {
        let accepted: i64 = sqlx::query_scalar("select count(*) from workos_sync.webhook_events")
            .fetch_one(&pair.database.pool)
            .await
            .unwrap();
        accepted > 0
    })
    .await;
    let address = pair.service.address.to_string();
    pair.service.terminate().await.assert(0);

    let during = pair.emulator.create("During").await;
    let pair = Pair {
        service: serve(&pair.folder, &pair.database, &pair.emulator, &address).await,
        ..pair
    };
    eventually(
        "what was accepted is applied and written back",
        async || {
            let row = pair.row(&before).await;
            row.is_some() && pair.emulator.external_id(&before).await == row.map(|row| row.id)
        },
    )
    .await;

    let page = pair.emulator.events().await;
    let saved: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(saved["object"], "list", "{page}");
    let replayed = run_with_input(
        &pair.folder,
        &[("DATABASE_URL", &pair.database.url)],
        &["replay", "-"],
        &page,
    )
    .await
    .assert(0);
    assert!(replayed.stdout.contains("refused 0"), "{replayed:?}");
    assert!(replayed.stdout.contains("1 created"), "{replayed:?}");
    // The intention of the replay is delivered by the service, and its echo comes in.
    pair.quiet(4).await;
    let row = pair.row(&during).await.unwrap();
    assert_eq!(
        (row.name.as_str(), pair.emulator.external_id(&during).await),
        ("During", Some(row.id))
    );
    pair.service.terminate().await.assert(0);
}

/// R36, R39, R45: not a single webhook arrives, and the table is in step all the same.
#[tokio::test]
async fn the_poll_brings_what_no_webhook_brings() {
    let emulator = Emulator::start().await;
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let before = emulator.create("Before").await;
    let service = serve_and_poll(&folder, &database, &emulator, "127.0.0.1:0", "1").await;
    let name = async |id: &str| -> Option<(String, bool)> {
        sqlx::query_as(
            "select name, disabled_at is not null from organization_metadata where workos_id = $1",
        )
        .bind(id)
        .fetch_optional(&database.pool)
        .await
        .unwrap()
    };
    eventually("what was there is found", async || {
        name(&before).await.is_some()
    })
    .await;
    let during = emulator.create("During").await;
    emulator.rename(&before, "Renamed").await;
    eventually("what changes is found", async || {
        name(&before).await == Some(("Renamed".to_owned(), false)) && name(&during).await.is_some()
    })
    .await;
    emulator.delete(&during).await;
    eventually("a deletion is found", async || {
        name(&during).await == Some(("During".to_owned(), true))
    })
    .await;
    eventually("its id is written back", async || {
        emulator.external_id(&before).await.is_some()
    })
    .await;
    let sources: Vec<String> =
        sqlx::query_scalar("select distinct source from workos_sync.webhook_events")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(sources, ["events_api"]);
    let status = run(&folder, &[("DATABASE_URL", &database.url)], &["status"])
        .await
        .assert(3);
    assert!(
        status.stdout.contains("no reconcile has ended in step"),
        "{status:?}"
    );
    service.terminate().await.assert(0);
}

/// R41, R43, R44, R45: a table that begins empty is filled, compared, mended, and then trusted.
#[tokio::test]
async fn a_table_is_filled_compared_and_mended() {
    let emulator = Emulator::start().await;
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    for n in 0..120 {
        emulator.create(&format!("Org {n}")).await;
    }
    let variables = [
        ("DATABASE_URL", &*database.url),
        ("WORKOS_API_KEY", API_KEY),
        ("WORKOS_API_URL", emulator.url()),
    ];
    let command = async |arguments: &[&str]| run(&folder, &variables, arguments).await;
    command(&["migrate"]).await.assert(0);
    let dry = command(&["backfill", "--dry-run"]).await.assert(0);
    assert!(dry.stdout.contains("120 would be created"), "{dry:?}");
    let filled = command(&["backfill"]).await.assert(0);
    assert!(filled.stdout.contains("120 created"), "{filled:?}");
    assert!(
        filled.stderr.contains("120 organizations are read"),
        "{filled:?}"
    );

    // Without serve, no id is written back; what is so fresh is on its way.
    let fresh = command(&["reconcile"]).await.assert(0);
    assert!(fresh.stdout.contains("in step"), "{fresh:?}");
    sqlx::query("delete from organization_metadata where name = 'Org 7'")
        .execute(&database.pool)
        .await
        .unwrap();
    let service = serve_and_poll(&folder, &database, &emulator, "127.0.0.1:0", "1").await;
    eventually("the table is trusted", async || {
        let status = command(&["status", "--json"]).await;
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        status["trusted"] == true
    })
    .await;
    service.terminate().await.assert(0);

    let no_key = run(
        &folder,
        &[("DATABASE_URL", &database.url)],
        &["reconcile", "--json"],
    )
    .await
    .assert(2);
    assert!(no_key.stderr.contains("WORKOS_API_KEY"), "{no_key:?}");
    command(&["reconcile", "--max-disable", "3"])
        .await
        .assert(2);
    command(&["catch-up", "--since", "yesterday"])
        .await
        .assert(2);
    let caught_up = command(&["catch-up", "--since", "1h"]).await.assert(0);
    assert!(caught_up.stdout.contains("known"), "{caught_up:?}");
}

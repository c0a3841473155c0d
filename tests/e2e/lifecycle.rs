//! Signals and kills: what is in hand is finished, and what was acknowledged is never lost.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sqlx::PgConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::service::answer;
use crate::support::{
    Folder, Kind, SECRET, Service, TestDatabase, event, event_id, eventually, http,
};

/// Holds the lock of an organization from outside, as another replica would that applies an event of it.
struct Blocked(PgConnection);

impl Blocked {
    async fn lane(database: &TestDatabase, workos_id: &str) -> Self {
        let mut connection = database.connect().await;
        sqlx::query("select pg_advisory_lock(hashtext('workos-sync organization'), hashtext($1))")
            .bind(workos_id)
            .execute(&mut connection)
            .await
            .unwrap();
        Self(connection)
    }

    async fn release(mut self) {
        sqlx::query("select pg_advisory_unlock_all()")
            .execute(&mut self.0)
            .await
            .unwrap();
    }
}

/// The status of an event in the inbox.
async fn status(database: &TestDatabase, event_id: &str) -> Option<String> {
    sqlx::query_scalar("select status from workos_sync.webhook_events where event_id = $1")
        .bind(event_id)
        .fetch_optional(&database.pool)
        .await
        .unwrap()
}

async fn no_longer_accepts(service: &Service) {
    eventually("no new connection is taken", async || {
        service.get("/healthz").await.is_none()
    })
    .await;
}

/// R31: a request in flight is answered with its outcome, the door is closed to new ones, and the exit is 0.
#[tokio::test]
async fn a_request_in_flight_is_answered() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    let blocked = Blocked::lane(&database, "org_a").await;
    let body = event(1, Kind::Created, "org_a", "Acme");
    let mut requests = JoinSet::new();
    requests.spawn(answer(service.delivery(&body).header("prefer", "wait=30")));
    eventually("the event is in hand", async || {
        database.blocked_sessions().await > 0
    })
    .await;

    service.signal("TERM");
    no_longer_accepts(&service).await;
    blocked.release().await;
    let answered: Value = requests.join_next().await.unwrap().unwrap();
    assert_eq!(answered["outcome"], "created", "{answered}");
    service.finish().await.assert(0);
}

/// R31: what doesn't finish within the grace period is still in the inbox, the exit is 0 all the same, and the
/// next start goes on with it.
#[tokio::test]
async fn what_does_not_finish_in_time_is_applied_after_the_restart() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", SECRET),
        ("SHUTDOWN_GRACE_SECONDS", "1"),
    ];
    let service = Service::start(&folder, &variables).await;
    let blocked = Blocked::lane(&database, "org_a").await;
    let body = event(1, Kind::Created, "org_a", "Acme");
    assert_eq!(answer(service.delivery(&body)).await["status"], "accepted");
    eventually("the event is in hand", async || {
        database.blocked_sessions().await > 0
    })
    .await;
    // Far below the default of the grace period.
    let finished = timeout(Duration::from_secs(15), service.terminate())
        .await
        .unwrap()
        .assert(0);
    assert!(
        finished.stderr.contains("still in the inbox"),
        "{finished:?}"
    );
    assert_eq!(status(&database, &event_id(1)).await.unwrap(), "pending");

    blocked.release().await;
    let service = Service::start(&folder, &variables).await;
    eventually("the event is applied", async || {
        status(&database, &event_id(1)).await.unwrap() == "processed"
    })
    .await;
    service.terminate().await.assert(0);
}

/// R31: for as long as `SHUTDOWN_DELAY_SECONDS` says, `readyz` is 503 and everything else as before; then new
/// connections are refused.
#[tokio::test]
async fn load_balancers_have_time_to_see_the_end() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = |delay| {
        let variables = [
            ("DATABASE_URL", database.url.as_str()),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("SHUTDOWN_DELAY_SECONDS", delay),
        ];
        let folder = &folder;
        async move { Service::start(folder, &variables).await }
    };
    let patient = service("3600").await;
    patient.signal("TERM");
    eventually("it says that it ends", async || {
        patient.get("/readyz").await == Some(503)
    })
    .await;
    for n in 1..4 {
        let body = event(n, Kind::Updated, "org_a", "Acme");
        // On a new connection each.
        let delivery = http()
            .post(patient.url("/webhooks/workos"))
            .header("workos-signature", patient.sign(&body))
            .header("prefer", "wait=30")
            .body(body);
        assert_eq!(answer(delivery).await["status"], "processed");
        assert_eq!(patient.get("/healthz").await, Some(200));
    }
    patient.signal("TERM");
    let insisted = timeout(Duration::from_secs(15), patient.finish()).await;
    insisted.unwrap().assert(1);

    let brief = service("1").await;
    brief.signal("TERM");
    no_longer_accepts(&brief).await;
    brief.finish().await.assert(0);
}

/// R31: connections that the kernel has accepted, and the service hasn't yet, are served: their senders know of no
/// difference.
#[tokio::test]
async fn connections_in_the_accept_queue_are_served() {
    const CONNECTIONS: u64 = 200;

    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    // It accepts nothing for now; the kernel does.
    service.signal("STOP");
    let mut clients = Vec::new();
    for n in 0..CONNECTIONS {
        let body = event(n, Kind::Updated, &format!("org_{n}"), "Acme");
        let request = format!(
            "POST /webhooks/workos HTTP/1.1\r\nhost: x\r\nworkos-signature: {}\r\ncontent-length: {}\r\n\r\n{body}",
            service.sign(&body),
            body.len()
        );
        let (start, last) = request.split_at(request.len() - 1);
        let mut client = TcpStream::connect(service.address).await.unwrap();
        client.write_all(start.as_bytes()).await.unwrap();
        clients.push((client, last.to_owned()));
    }
    service.signal("TERM");
    service.signal("CONT");
    eventually("it has seen the signal", async || {
        service.log().contains("shutting down")
    })
    .await;
    let mut answers = JoinSet::new();
    for (mut client, last) in clients {
        answers.spawn(async move {
            client.write_all(last.as_bytes()).await?;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        });
    }
    while let Some(answer) = answers.join_next().await {
        let answer = answer.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
    }
    service.finish().await.assert(0);
}

/// R22: an event survives the death of the replica that accepted it; another one applies it.
#[tokio::test]
async fn another_replica_applies_what_a_killed_one_accepted() {
    let (folder, database) = (Folder::new(), TestDatabase::new().await);
    let doomed = Service::on(&folder, &database).await;
    let other = Service::on(&folder, &database).await;
    let blocked = Blocked::lane(&database, "org_a").await;
    let body = event(1, Kind::Created, "org_a", "Acme");
    assert_eq!(answer(doomed.delivery(&body)).await["status"], "accepted");
    doomed.kill().await;
    blocked.release().await;
    eventually("the event is applied", async || {
        status(&database, &event_id(1)).await.unwrap() == "processed"
    })
    .await;
    assert_eq!(other.apply(&body).await["status"], "duplicate");
}

/// R23, R22: the service is killed in the middle of a rush of deliveries; every one that was acknowledged is
/// settled after the restart, and the others can be delivered again.
#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    const DELIVERIES: u64 = 200;
    const BEFORE_THE_KILL: usize = 60;

    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let mut service = Service::on(&folder, &database).await;
    // Four events for each of fifty organizations.
    let body = |n| {
        event(
            n,
            Kind::Updated,
            &format!("org_{}", n % 50),
            &format!("Name {n}"),
        )
    };
    let at_once = Arc::new(Semaphore::new(20));
    let mut deliveries = JoinSet::new();
    for n in 0..DELIVERIES {
        let (request, at_once) = (service.delivery(&body(n)), Arc::clone(&at_once));
        deliveries.spawn(async move {
            let _turn = at_once.acquire().await.unwrap();
            let answer = request.send().await.ok()?;
            (answer.status() == 200).then(|| event_id(n))
        });
    }
    let mut acknowledged = Vec::new();
    while let Some(delivery) = deliveries.join_next().await {
        acknowledged.extend(delivery.unwrap());
        if acknowledged.len() == BEFORE_THE_KILL {
            service.kill_now();
        }
    }
    assert!(acknowledged.len() >= BEFORE_THE_KILL);
    let lost = usize::try_from(DELIVERIES).unwrap() - acknowledged.len();
    assert!(lost > 0, "the kill came too late to be a test");
    service.finish().await;

    let service = Service::on(&folder, &database).await;
    eventually("every acknowledged event is settled", async || {
        let settled: i64 = sqlx::query_scalar(
            "select count(*) from workos_sync.webhook_events where event_id = any ($1) and status = 'processed'",
        )
        .bind(&acknowledged)
        .fetch_one(&database.pool)
        .await
        .unwrap();
        usize::try_from(settled).unwrap() == acknowledged.len()
    })
    .await;

    for n in 0..DELIVERIES {
        service.apply(&body(n)).await;
    }
    let wrong: i64 = sqlx::query_scalar(
        "select count(*) from workos_sync.webhook_events where status <> 'processed'",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(wrong, 0);
    let mut names: Vec<String> = sqlx::query_scalar("select name from organization_metadata")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    names.sort_unstable();
    let mut expected: Vec<String> = (150..DELIVERIES).map(|n| format!("Name {n}")).collect();
    expected.sort_unstable();
    assert_eq!(names, expected, "the last of each organization");
}

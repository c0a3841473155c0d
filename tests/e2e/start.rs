//! How `serve` starts, or doesn't: databases that are late, wrong or away, and a port that is taken.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use crate::support::{
    Folder, LateDatabase, SECRET, Service, TestDatabase, eventually, run, signal,
};

/// Section 8: a database that starts beside the service, as in a compose file, is waited for.
#[tokio::test]
async fn a_late_database_is_waited_for() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let late = LateDatabase::before(&database, 3).await;
    let service = Service::start(
        &folder,
        &[
            ("DATABASE_URL", &late.url),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
        ],
    )
    .await;
    service.ready().await;
    let complaints = service.log().matches("can't be reached").count();
    assert_eq!(complaints, 1, "once is enough: {}", service.log());
}

/// R31: a start that waits for its database can be ended, at once, as a success.
#[tokio::test]
async fn a_start_that_waits_ends_when_asked() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let away = LateDatabase::before(&database, usize::MAX).await;
    let starting = Service::launch(
        &folder,
        &[
            ("DATABASE_URL", &away.url),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
        ],
    );
    eventually("it says so, and tries again and again", async || {
        starting
            .stderr
            .so_far()
            .contains("can't be reached, trying again")
            && away.connections.load(Ordering::Relaxed) >= 3
    })
    .await;
    signal(starting.id(), "TERM");
    // Before the wait for the database would be over.
    timeout(Duration::from_secs(15), starting.finish())
        .await
        .unwrap()
        .assert(0);
}

/// R23: a delivery to a service that still waits for its database is refused by the kernel, and comes back. Let in, it
/// would wait for an answer until the sender gives up.
#[tokio::test]
async fn a_start_that_waits_lets_nobody_in() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let away = LateDatabase::before(&database, usize::MAX).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let starting = Service::launch(
        &folder,
        &[
            ("DATABASE_URL", &away.url),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("LISTEN_ADDR", &address.to_string()),
        ],
    );
    eventually("it waits for the database", async || {
        starting.stderr.so_far().contains("can't be reached")
    })
    .await;
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Section 8: a database that isn't there is no matter of time.
#[tokio::test]
async fn a_wrong_database_ends_the_start_at_once() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let mut url = Url::parse(&database.url).unwrap();
    url.set_path("there_is_no_such_database");
    for command in ["serve", "migrate"] {
        let refused = run(
            &folder,
            &[
                ("DATABASE_URL", url.as_str()),
                ("WORKOS_WEBHOOK_SECRET", SECRET),
                ("LISTEN_ADDR", "127.0.0.1:0"),
            ],
            &[command],
        )
        .await
        .assert(1);
        let line = refused.error_line();
        assert!(line.contains("there_is_no_such_database"), "{line}");
        assert!(line.contains("DATABASE_URL"), "{line}");
    }
}

/// Section 8: a port that is taken names the setting, before a database is touched.
#[tokio::test]
async fn a_taken_port_names_the_setting() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = taken.local_addr().unwrap();
    let refused = run(&folder, &[("LISTEN_ADDR", address.to_string())], &[])
        .await
        .assert(1);
    let line = refused.error_line();
    assert!(
        line.contains(&format!("LISTEN_ADDR: {address}: ")),
        "{line}"
    );
    assert!(
        !folder.data("").exists(),
        "no Postgres was set up for nothing"
    );
}

/// R16: without an API key nothing is written back, and the service says so when it starts.
#[tokio::test]
async fn a_missing_api_key_is_said_at_the_start() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    assert!(
        service.log().contains("WORKOS_API_KEY is not set"),
        "{}",
        service.log()
    );
}

/// An idle service is small enough to run beside the application.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_idle_service_takes_less_than_50_mb() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    service.ready().await;
    let resident = service.resident_kb();
    assert!(resident < 50 * 1024, "{resident} kB");
}

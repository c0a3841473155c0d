//! `workos-sync doctor` and `workos-sync health`: what they print, and how they exit.

use serde_json::Value;

use crate::support::{Folder, SECRET, Service, TestDatabase, run};

/// R52: a line for each check; 0 where nothing fails, 1 where something does, and no secret anywhere.
#[tokio::test]
async fn the_doctor_prints_a_line_for_each_check() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", SECRET),
    ];
    let url = service.url("/");
    let found = run(&folder, &variables, &["doctor", "--url", &url])
        .await
        .assert(0);
    let levels: Vec<_> = found
        .stdout
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert!(levels.len() >= 6, "{found:?}");
    assert!(
        levels.iter().all(|level| matches!(*level, "ok" | "warn")),
        "{found:?}"
    );
    // Its API key.
    assert!(levels.contains(&"warn"), "{found:?}");
    assert!(
        found.stdout.contains("a signed event came through"),
        "{found:?}"
    );
    assert!(!format!("{found:?}").contains(SECRET), "{found:?}");

    // Another secret than the service's.
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", "whsec_another"),
    ];
    let found = run(&folder, &variables, &["doctor", "--url", &url, "--json"])
        .await
        .assert(1);
    let checks: Vec<Value> = found
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check["level"] == "fail")
        .map(|check| check["check"].as_str().unwrap())
        .collect();
    assert_eq!(failed, ["ping"], "{found:?}");
    assert!(!format!("{found:?}").contains("whsec_another"), "{found:?}");
    service.terminate().await.assert(0);
}

/// R52: a database that is away is a line, too, and not waited for; where there is none, nothing can be looked at, and
/// none is made.
#[tokio::test]
async fn the_doctor_needs_a_database_to_look_at() {
    let folder = Folder::new();
    let variables = [("DATABASE_URL", "postgres://me:hunter2@127.0.0.1:1/app")];
    let found = run(&folder, &variables, &["doctor"]).await.assert(1);
    assert!(found.stdout.starts_with("fail  database "), "{found:?}");
    assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");

    let none: [(&str, &str); 0] = [];
    let found = run(&folder, &none, &["doctor"]).await.assert(2);
    assert!(found.error_line().contains("DATABASE_URL"), "{found:?}");
    assert!(!folder.path().join(".workos-sync").exists());

    let found = run(&folder, &variables, &["doctor", "--url", "example.com"]).await;
    found.assert(2);
}

/// Section 11: `health` asks the service that runs here, whichever way it was told to listen.
#[tokio::test]
async fn health_asks_the_service() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    let port = service.address.port();
    for address in [format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}")] {
        let variables = [
            ("LISTEN_ADDR", address.as_str()),
            // It is for what is elsewhere.
            ("HTTP_PROXY", "http://127.0.0.1:1"),
        ];
        let found = run(&folder, &variables, &["health"]).await.assert(0);
        assert_eq!((found.stdout.as_str(), found.stderr.as_str()), ("ok\n", ""));
    }
    service.terminate().await.assert(0);
    let address = format!("127.0.0.1:{port}");
    let gone = run(&folder, &[("LISTEN_ADDR", &address)], &["health"])
        .await
        .assert(1);
    assert!(gone.error_line().contains("refused"), "{gone:?}");
    let unknown = run(&folder, &[("LISTEN_ADDR", "127.0.0.1:0")], &["health"])
        .await
        .assert(2);
    assert!(
        unknown
            .error_line()
            .starts_with("workos-sync: LISTEN_ADDR: ")
    );
}

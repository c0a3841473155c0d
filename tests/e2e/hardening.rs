//! The built program against those who mean it no good: more connections than it can serve, and readers of its
//! logs. And with no more rights than it needs.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sqlx::{AssertSqlSafe, Executor};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use url::Url;
use uuid::Uuid;

use crate::support::service::answer;
use crate::support::serving::serve;
use crate::support::{Folder, Kind, SECRET, Service, TestDatabase, event, eventually, http};

/// Within this a sender has its answer (R23).
const IN_TIME: Duration = Duration::from_secs(4);

/// Connections that are open and have nothing to say: silent, in the middle of a head, or answered.
#[derive(Default)]
struct Idle(Vec<TcpStream>);

impl Idle {
    async fn add(&mut self, service: &Service, count: usize) {
        const STARTS: [&str; 3] = [
            "",
            "POST /webhooks/workos HTTP/1.1\r\nhost: x\r\nx: ",
            "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        ];
        for start in STARTS.iter().cycle().take(count) {
            let mut connection = TcpStream::connect(service.address).await.unwrap();
            connection.write_all(start.as_bytes()).await.unwrap();
            self.0.push(connection);
        }
    }
}

/// The service answers a probe and takes an event, each over a new connection, in time.
async fn assert_responsive(service: &Service, n: u64) {
    let began = Instant::now();
    let probe = http().get(service.url("/healthz")).send().await.unwrap();
    assert_eq!(probe.status(), 200);
    assert!(began.elapsed() < IN_TIME, "{:?}", began.elapsed());

    let body = event(n, Kind::Updated, "org_a", "Acme");
    let began = Instant::now();
    // A client of its own: no connection from before.
    let delivery = http()
        .post(service.url("/webhooks/workos"))
        .header("workos-signature", service.sign(&body))
        .body(body);
    let answered = answer(delivery).await;
    assert_eq!(answered["status"], "accepted");
    assert!(began.elapsed() < IN_TIME, "{:?}", began.elapsed());
}

/// R30, R23: ten thousand connections that do nothing lock nobody out, and take a bounded part of the memory.
#[cfg(target_os = "linux")]
#[tokio::test]
#[expect(
    clippy::print_stderr,
    reason = "who reads the result must know what was tested"
)]
async fn ten_thousand_idle_connections_lock_nobody_out() {
    const CONNECTIONS: u64 = 10_000;
    const OTHER_FILES: u64 = 1_000;

    // They are open files of this process.
    let limit = getrlimit(Resource::Nofile);
    let allowed = limit.maximum.unwrap_or(u64::MAX);
    let current = Some(std::cmp::min(CONNECTIONS + OTHER_FILES, allowed));
    if limit.current < current {
        setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    }
    let connections = std::cmp::min(CONNECTIONS, allowed.saturating_sub(OTHER_FILES));
    if connections < CONNECTIONS {
        eprintln!(
            "ONLY {connections} CONNECTIONS instead of {CONNECTIONS}: ulimit -Hn is {allowed}"
        );
    }

    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    let mut idle = Idle::default();
    for n in 0..10 {
        idle.add(&service, usize::try_from(connections / 10).unwrap())
            .await;
        assert_responsive(&service, n).await;
    }
    let resident = service.resident_kb();
    assert!(resident < 150 * 1024, "{resident} kB");
    assert!(
        service.log().contains("all connections are taken"),
        "{}",
        service.log()
    );
    drop(idle);
    service.terminate().await.assert(0);
}

/// R30, R23: where few files may be open, connections take none of those that the database needs.
#[tokio::test]
async fn few_open_files_are_enough() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", SECRET),
    ];
    let service = Service::start_with_open_files(&folder, &variables, 200).await;
    let mut idle = Idle::default();
    for n in 0..4 {
        idle.add(&service, 100).await;
        assert_responsive(&service, n).await;
        assert_eq!(service.get("/readyz").await, Some(200));
    }
    let log = service.log();
    assert!(log.contains("at most 116 connections"), "{log}");
    assert!(!log.contains("no connection can be accepted"), "{log}");
}

/// R30: while the database hangs, signed bodies take a bounded part of the memory, however many come; and when it goes
/// on, so do deliveries.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn bodies_take_a_bounded_part_of_the_memory_while_the_database_hangs() {
    const SENDERS: usize = 200;
    const DELIVERIES: usize = 2;

    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    let body = event(1, Kind::Other, "org_a", &"x".repeat(1_000_000));
    let header = service.sign(&body);
    let body = Bytes::from(body);
    let mut lock = database.pool.begin().await.unwrap();
    lock.execute("lock table webhook_events").await.unwrap();
    let http = http();
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let delivery = http
            .post(service.url("/webhooks/workos"))
            .header("workos-signature", &header)
            .body(body.clone());
        senders.spawn(async move {
            for _ in 0..DELIVERIES {
                let answer = delivery.try_clone().unwrap().send().await.unwrap();
                // 408 where this machine is too busy to read them all in time.
                assert!([503, 408].contains(&answer.status().as_u16()), "{answer:?}");
            }
        });
    }
    senders.join_all().await;
    let peak = service.peak_kb();
    assert!(peak < 256 * 1024, "{peak} kB");
    lock.rollback().await.unwrap();
    assert_responsive(&service, 2).await;
    service.terminate().await.assert(0);
}

/// A role with the rights that `docs/security.md` grants, and a password that is easy to find; gone when the database is.
struct Role {
    name: String,
    url: String,
}

const PASSWORD: &str = "pg-passw0rd-marker";

impl Role {
    /// On a database that somebody else has migrated.
    async fn create(database: &TestDatabase) -> Self {
        let page = include_str!("../../docs/security.md");
        let grants: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("grant "))
            .collect();
        assert!(grants.len() > 3, "{grants:?}");
        let name = format!("workos_sync_{}", Uuid::new_v4().simple());
        let grants = grants
            .join("\n")
            .replace(" to workos_sync;", &format!(" to {name};"));
        // All of it is ours.
        let sql = format!("create role {name} login password '{PASSWORD}'; {grants}");
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
        let mut url = Url::parse(&database.url).unwrap();
        url.set_username(&name).unwrap();
        url.set_password(Some(PASSWORD)).unwrap();
        Self {
            name,
            url: url.into(),
        }
    }

    /// Ends its connections and lets it have no new ones.
    async fn lock_out(&self, database: &TestDatabase) {
        let sql = format!(
            "alter role {0} nologin; select pg_terminate_backend(pid) from pg_stat_activity where usename = '{0}'",
            self.name
        );
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    }

    async fn let_in(&self, database: &TestDatabase) {
        let sql = format!("alter role {} login", self.name);
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    }

    async fn drop(self, database: &TestDatabase) {
        let sql = format!("drop owned by {0}; drop role {0}", self.name);
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    }
}

/// A WorkOS that refuses every API key; gone when dropped.
async fn refusing_workos() -> (String, JoinSet<()>) {
    let router = Router::new().fallback(async || StatusCode::UNAUTHORIZED);
    let (address, server) = serve(router).await;
    (format!("http://{address}"), server)
}

/// Everything that the service does, it can do with the rights that the page names, and with no others: it
/// creates, updates and disables organizations, keeps the outbox, and removes what is old.
#[tokio::test]
async fn the_documented_rights_are_enough() {
    let (folder, database) = (Folder::new(), TestDatabase::new().await);
    let role = Role::create(&database).await;
    let old = "insert into workos_sync.webhook_events (event_id, event_type, payload, source, status, received_at, processed_at)
               values ('old', 'x', '{}', 'webhook', 'ignored', now() - interval '1 year', now() - interval '1 year')";
    database.pool.execute(old).await.unwrap();
    let (workos, _server) = refusing_workos().await;
    let service = Service::start(
        &folder,
        &[
            ("DATABASE_URL", &role.url),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("WORKOS_API_KEY", "sk_test"),
            ("WORKOS_API_URL", &workos),
        ],
    )
    .await;
    service.ready().await;
    for (n, kind, workos_id, name, outcome) in [
        (1, Kind::Created, "org_a", "Acme", "created"),
        (2, Kind::Created, "org_b", "Acme", "created"),
        (3, Kind::Updated, "org_a", "Acme, Inc.", "updated"),
        (4, Kind::Deleted, "org_a", "", "disabled"),
        (5, Kind::Deleted, "org_c", "", "tombstoned"),
    ] {
        let answered = service.apply(&event(n, kind, workos_id, name)).await;
        assert_eq!(answered["outcome"], outcome, "{answered}");
    }
    eventually("the write-back is tried", async || {
        service.log().contains("refuses the API key")
    })
    .await;
    eventually("what is old is removed", async || {
        let old: i64 = sqlx::query_scalar(
            "select count(*) from workos_sync.webhook_events where event_id = 'old'",
        )
        .fetch_one(&database.pool)
        .await
        .unwrap();
        old == 0
    })
    .await;
    let finished = service.terminate().await.assert(0);
    assert!(
        !finished.stderr.contains("permission denied"),
        "{finished:?}"
    );
    role.drop(&database).await;
}

/// R30, section 8: whatever happens, and however much is logged, nothing that the service prints or answers holds a
/// secret, a signature, a body, or the path to send one to.
#[tokio::test]
async fn no_secret_is_printed_at_any_level() {
    const API_KEY: &str = "sk_test_marker";
    const OLD_SECRET: &str = "whsec_old_marker";
    const PATH: &str = "/webhooks/path-marker";
    const BODY: &str = "body-marker";

    for format in ["json", "text"] {
        let (folder, database) = (Folder::new(), TestDatabase::new().await);
        let role = Role::create(&database).await;
        let (workos, _server) = refusing_workos().await;
        let secrets = format!("{OLD_SECRET},{SECRET}");
        let variables = [
            ("DATABASE_URL", role.url.as_str()),
            ("WORKOS_WEBHOOK_SECRET", &secrets),
            ("WORKOS_API_KEY", API_KEY),
            ("WORKOS_API_URL", &workos),
            ("WEBHOOK_PATH", PATH),
            ("LOG_LEVEL", "trace"),
            ("LOG_FORMAT", format),
        ];
        let service = Service::start(&folder, &variables).await;
        let mut answers = String::new();
        let mut signatures = Vec::new();
        let mut deliver = async |body: String, header: Option<&str>| {
            let good = service.sign(&body);
            let delivery = http()
                .post(service.url(PATH))
                .header("workos-signature", header.unwrap_or(&good))
                .header("prefer", "wait=30")
                .body(body);
            let answer = delivery.send().await.unwrap();
            let status = answer.status().as_u16();
            for value in answer.headers().values() {
                answers += &String::from_utf8_lossy(value.as_bytes());
            }
            answers += &answer.text().await.unwrap();
            signatures.push(good.split_once("v1=").unwrap().1.to_owned());
            status
        };
        let good = event(1, Kind::Created, "org_a", BODY);
        assert_eq!(deliver(good.clone(), None).await, 200);
        let forged = format!("t=1, v1={}", "0".repeat(64));
        assert_eq!(deliver(good, Some(&forged)).await, 401);
        assert_eq!(deliver(format!(r#"{{"id":"{BODY}""#), None).await, 400);
        let dead = event(2, Kind::Updated, "org_a", &format!("{BODY}\0"));
        assert_eq!(deliver(dead, None).await, 200);
        eventually("the API key is refused", async || {
            service.log().contains("refuses the API key")
        })
        .await;

        role.lock_out(&database).await;
        let lost = event(3, Kind::Updated, "org_a", BODY);
        assert_eq!(deliver(lost.clone(), None).await, 503);
        let mut probed = String::new();
        let astray = format!("{PATH}/x");
        for path in ["/readyz", "/metrics", "/healthz", &astray] {
            let request = http().get(service.url(path));
            let answer = request
                .header("workos-signature", "x")
                .send()
                .await
                .unwrap();
            probed += &answer.text().await.unwrap();
        }
        role.let_in(&database).await;
        eventually("the database is there again", async || {
            service.get("/readyz").await == Some(200)
        })
        .await;
        assert_eq!(deliver(lost, None).await, 200);

        let finished = service.terminate().await.assert(0);
        let printed = [finished.stdout, finished.stderr, answers, probed].concat();
        assert!(printed.contains("TRACE"), "{printed}");
        assert!(printed.contains("database_unavailable"), "{printed}");
        let secrets = [OLD_SECRET, SECRET, API_KEY, PASSWORD, PATH];
        for secret in secrets.into_iter().chain(signatures.iter().map(|v1| &**v1)) {
            assert!(!printed.contains(secret), "{secret} in {printed}");
        }
        let bodies: Vec<&str> = printed.lines().filter(|line| line.contains(BODY)).collect();
        assert_eq!(bodies, [""; 0]);
        role.drop(&database).await;
    }
}

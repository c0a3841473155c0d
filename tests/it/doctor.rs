//! What `doctor` finds (R52).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Redirect;
use axum::routing::post;
use hyper::StatusCode;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::Url;
use workos_sync::doctor::{Check, Level, Setup};
use workos_sync::postgres::DatabaseUrl;
use workos_sync::workos::WorkosClient;

use crate::support::app::SECRET;
use crate::support::fake_workos::{Dates, FakeEnvironment, Habits};
use crate::support::pooler::Pooler;
use crate::support::serving::serve;
use crate::support::{Role, TestApp, created};

const TYPES: [&str; 3] = [
    "organization.created",
    "organization.updated",
    "organization.deleted",
];

/// A service, the WorkOS that it is for, and the setup that the doctor looks at.
struct Patient {
    app: TestApp,
    workos: FakeEnvironment,
    setup: Setup,
}

impl Patient {
    /// One that is well.
    async fn new() -> Self {
        let app = TestApp::new().await;
        let workos = FakeEnvironment::start(app.clock.clone()).await;
        workos.set_endpoints([endpoint(
            "we_1",
            "https://example.com/webhooks/workos",
            SECRET,
        )]);
        let setup = Setup {
            database: DatabaseUrl::parse(&app.db.url.clone().into()).unwrap(),
            migrates_on_start: true,
            secrets: vec![SECRET.into()],
            tolerance: Duration::from_secs(180),
            client: Some(workos.client()),
            webhook_path: "/webhooks/workos".to_owned(),
            url: None,
            clock: app.clock.clone(),
        };
        Self { app, workos, setup }
    }

    /// What is not well: level and check, and what is said.
    async fn complaints(&self) -> Vec<(Level, &'static str, String)> {
        let checks = self.setup.examine().await;
        for check in &checks {
            let says = &check.says;
            assert!(!says.is_empty() && !says.contains('\n'), "{says}");
            assert!(!says.contains("whsec"), "a secret: {says}");
            assert!(!says.contains("sk_test"), "a key: {says}");
        }
        let complaints = checks.into_iter().filter(|check| check.level != Level::Ok);
        complaints
            .map(|Check { check, level, says }| (level, check, says))
            .collect()
    }

    /// Fails the test unless this is the one thing that is not well.
    #[track_caller]
    fn assert_one(
        complaints: &[(Level, &'static str, String)],
        level: Level,
        check: &str,
        words: &str,
    ) {
        let [(found_level, found_check, says)] = complaints else {
            panic!("{check}: {words}: {complaints:?}");
        };
        assert_eq!((*found_level, *found_check), (level, check), "{says}");
        assert!(says.contains(words), "{words}: {says}");
    }
}

fn endpoint(id: &str, url: &str, secret: &str) -> Value {
    json!({
        "object": "webhook_endpoint",
        "id": id,
        "endpoint_url": url,
        "secret": secret,
        "status": "enabled",
        "events": TYPES,
    })
}

/// R52: a list of endpoints that leads in a circle ends the look at it.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_an_end_is_a_failure() {
    let patient = Patient::new().await;
    // A page goes on behind the first endpoint of its last one's id: 100, 101, 102, 100 and so on.
    let url = "https://example.com/webhooks/workos";
    patient
        .workos
        .set_endpoints((0..300).map(|n| endpoint(&format!("we_{}", n % 3), url, SECRET)));
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Fail, "api key", "pages without an end");
}

/// R52: of a setup that is right there is nothing to say but that; every check is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_setup_has_no_complaints() {
    let mut patient = Patient::new().await;
    let (address, _server) = serve(patient.app.router.clone()).await;
    let url = format!("http://{address}/webhooks/workos");
    patient
        .workos
        .set_endpoints([endpoint("we_1", &url, SECRET)]);
    // Without a path, it is WEBHOOK_PATH.
    patient.setup.url = Some(Url::parse(&format!("http://{address}")).unwrap());
    let checks = patient.setup.examine().await;
    assert!(
        checks.iter().all(|check| check.level == Level::Ok),
        "{checks:#?}"
    );
    let names: BTreeSet<_> = checks.iter().map(|check| check.check).collect();
    assert_eq!(
        names,
        BTreeSet::from([
            "database",
            "migrations",
            "rights",
            "table",
            "api key",
            "clock",
            "environment",
            "endpoint",
            "subscriptions",
            "secret",
            "ping",
        ])
    );
    // The ping is an event that changes nothing.
    let pings: Vec<(String, String, String)> =
        sqlx::query_as("select event_id, event_type, status from webhook_events")
            .fetch_all(&patient.app.db.pool)
            .await
            .unwrap();
    let [(id, event_type, status)] = &pings[..] else {
        panic!("{pings:?}");
    };
    assert!(id.starts_with("ping_"), "{id}");
    assert_eq!((event_type.as_str(), status.as_str()), ("ping", "ignored"));
}

/// R52: a database that can't be reached is said, without the password, and WorkOS is looked at all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_said() {
    let mut patient = Patient::new().await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let url = format!("postgres://me:hunter2@127.0.0.1:{port}/app");
    patient.setup.database = DatabaseUrl::parse(&url.into()).unwrap();
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Fail, "database", "refused");
    assert!(!complaints[0].2.contains("hunter2"), "{complaints:?}");

    // Of its name there is none.
    let url = patient.app.db.url.replace("workos_sync_test_", "no_such_");
    patient.setup.database = DatabaseUrl::parse(&url.into()).unwrap();
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Fail, "database", "does not exist");
}

/// R52: a database that takes no writes can't be served on.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_said() {
    let patient = Patient::new().await;
    patient
        .app
        .execute(
            "do $$ begin
                 execute format('alter database %I set default_transaction_read_only = on', current_database());
             end $$",
        )
        .await;
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Fail, "database", "no writes");
}

/// R52: migrations that are pending are applied by the next start, unless that is switched off.
#[tokio::test(flavor = "multi_thread")]
async fn pending_migrations_are_said() {
    let mut patient = Patient::new().await;
    patient
        .app
        .execute("delete from workos_sync.migrations where version = (select max(version) from workos_sync.migrations)")
        .await;
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Warn, "migrations", "1 migrations");
    patient.setup.migrates_on_start = false;
    let complaints = patient.complaints().await;
    Patient::assert_one(
        &complaints,
        Level::Fail,
        "migrations",
        "workos-sync migrate",
    );
}

/// R52: each right that is missing is said as the statement that gives it; without it, all that shows is a 503.
#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_are_said() {
    let mut patient = Patient::new().await;
    let db = Arc::clone(&patient.app.db);
    let role = Role::create(&db, &["select, insert, update on organization_metadata"]).await;
    patient.setup.database.options = role.options.clone();
    let complaints = patient.complaints().await;
    Patient::assert_one(
        &complaints,
        Level::Fail,
        "rights",
        &format!("grant usage on schema workos_sync to {}", role.name),
    );

    let grants = documented_grants();
    for (rights, relation) in &grants {
        let grant = format!("grant {rights} on {relation} to {}", role.name);
        sqlx::raw_sql(sqlx::AssertSqlSafe(grant))
            .execute(&db.pool)
            .await
            .unwrap();
    }
    let usage = format!("grant usage on schema workos_sync to {}", role.name);
    sqlx::raw_sql(sqlx::AssertSqlSafe(usage))
        .execute(&db.pool)
        .await
        .unwrap();
    assert_eq!(patient.complaints().await, []);

    for (rights, relation) in &grants {
        if !relation.contains("workos_sync.") {
            continue;
        }
        for right in rights.split(", ") {
            let sql = |verb, to| format!("{verb} {right} on {relation} {to} {}", role.name);
            let run = async |sql: String| {
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                    .execute(&db.pool)
                    .await
                    .unwrap();
            };
            run(sql("revoke", "from")).await;
            let complaints = patient.complaints().await;
            let failed: Vec<_> = complaints
                .iter()
                .filter(|(_, check, _)| *check == "rights")
                .collect();
            let [(Level::Fail, _, says)] = failed[..] else {
                panic!("{right} on {relation}: {complaints:?}");
            };
            assert!(says.contains(&sql("grant", "to")), "{says}");
            run(sql("grant", "to")).await;
        }
    }
    role.drop(&db).await;
}

/// The grants that `docs/security.md` has: rights and relation.
fn documented_grants() -> Vec<(String, String)> {
    let mut grants = Vec::new();
    for line in include_str!("../../docs/security.md").lines() {
        let Some(grant) = line.strip_prefix("grant ") else {
            continue;
        };
        let Some((rights, rest)) = grant.split_once(" on ") else {
            continue;
        };
        let Some((relations, _)) = rest.split_once(" to ") else {
            continue;
        };
        if !relations.starts_with("schema ") {
            grants.extend(
                relations
                    .split(", ")
                    .map(|relation| (rights.to_owned(), relation.to_owned())),
            );
        }
    }
    assert!(grants.len() > 8, "{grants:?}");
    grants
}

/// R52: a role that may write the inbox needs no signature.
#[tokio::test(flavor = "multi_thread")]
async fn other_writers_of_the_inbox_are_said() {
    let patient = Patient::new().await;
    let db = Arc::clone(&patient.app.db);
    let role = Role::create(&db, &["insert on workos_sync.webhook_events"]).await;
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Warn, "rights", &role.name);
    role.drop(&db).await;
}

/// R33, R52: what keeps the application's table from working, and what is to be known of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_table_is_said() {
    let patient = Patient::new().await;
    patient
        .app
        .execute("alter table organization_metadata add column plan text not null")
        .await;
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Warn, "table", "plan");
    patient
        .app
        .execute("alter table organization_metadata drop column plan, drop column name")
        .await;
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Fail, "table", "has no column name");
}

/// R35, R52: a pooler in transaction mode is seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_is_seen() {
    let mut patient = Patient::new().await;
    let options = patient.setup.database.options.clone();
    let server = (options.get_host().to_owned(), options.get_port());
    let pooler = Pooler::start(server, 3).await.unwrap();
    patient.setup.database.options = options.host("127.0.0.1").port(pooler.port);
    let checks = patient.setup.examine().await;
    let pooler = checks.iter().find(|check| check.check == "pooler").unwrap();
    assert_eq!(pooler.level, Level::Ok, "{pooler:?}");
    assert!(
        checks.iter().all(|check| check.level == Level::Ok),
        "{checks:#?}"
    );
}

/// R52: a key that is missing, wrong, or may not read something.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_key_may_not_is_said() {
    let mut patient = Patient::new().await;
    let refuse = |workos: &FakeEnvironment, refuses: &[(&'static str, u16)]| {
        workos.set_habits(Habits {
            refuses: refuses.to_vec(),
            ..Habits::default()
        });
    };
    for (path, status, level, words) in [
        (
            "/organizations",
            403,
            Level::Fail,
            "may not read organizations (403)",
        ),
        ("/events", 403, Level::Fail, "may not read events (403)"),
        (
            "/webhook_endpoints",
            403,
            Level::Warn,
            "may not read webhook endpoints (403)",
        ),
        ("/webhook_endpoints", 429, Level::Warn, "try again later"),
        ("/events", 404, Level::Fail, "WORKOS_API_URL"),
        ("/events", 500, Level::Fail, "asked for events"),
    ] {
        refuse(&patient.workos, &[(path, status)]);
        // A budget of its own each time: a 429 pauses all that share one.
        patient.setup.client = Some(patient.workos.client());
        let complaints = patient.complaints().await;
        Patient::assert_one(&complaints, level, "api key", words);
    }
    refuse(&patient.workos, &[("/", 401)]);
    patient.setup.client = Some(patient.workos.client());
    let complaints = patient.complaints().await;
    assert_eq!(complaints.len(), 3, "{complaints:?}");
    assert!(complaints.iter().all(|(level, check, says)| {
        (*level, *check) == (Level::Fail, "api key") && says.contains("401")
    }));

    // Nobody is there: that is said once, not with each timeout.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let client = WorkosClient::new(Url::parse(&url).unwrap(), SecretString::from("sk_test_1"));
    patient.setup.client = Some(client.unwrap());
    let complaints = patient.complaints().await;
    Patient::assert_one(
        &complaints,
        Level::Fail,
        "api key",
        "can this machine reach",
    );

    patient.setup.client = None;
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Warn, "api key", "not set");
}

/// R52: a key of another environment is found out before it writes anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_environment_is_said() {
    let patient = Patient::new().await;
    for n in 1..=3 {
        let event = created(n, &format!("org_{n}"), "Elsewhere");
        patient.app.apply(&event).await;
    }
    let complaints = patient.complaints().await;
    Patient::assert_one(
        &complaints,
        Level::Fail,
        "environment",
        "another environment",
    );
    let requests = patient.workos.requests();
    assert!(
        requests.iter().all(|request| request.starts_with("GET ")),
        "{requests:?}"
    );
}

/// R52: the clock, against the `Date` of WorkOS: within the tolerance it is worth a word, beyond it no delivery is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_said() {
    let mut patient = Patient::new().await;
    let later = |date| Habits {
        date,
        ..Habits::default()
    };
    for (seconds, level, words) in [
        (90, Level::Warn, "90 s behind"),
        (-90, Level::Warn, "s ahead of"),
        (200, Level::Fail, "every delivery is refused"),
        (-200, Level::Fail, "every delivery is refused"),
    ] {
        patient.workos.set_habits(later(Dates::Later(seconds)));
        let complaints = patient.complaints().await;
        Patient::assert_one(&complaints, level, "clock", words);
    }
    patient.workos.set_habits(later(Dates::Later(20)));
    assert_eq!(patient.complaints().await, []);
    patient.workos.set_habits(later(Dates::Unreadable));
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Fail, "clock", "no readable Date");
    // The time of signatures isn't looked at.
    patient.setup.tolerance = Duration::ZERO;
    patient.workos.set_habits(later(Dates::Later(200)));
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Warn, "clock", "200 s behind");
}

/// R52: which endpoint is ours: by `--url`, else by its secret, else by its path.
#[tokio::test(flavor = "multi_thread")]
async fn our_endpoint_is_found() {
    let mut patient = Patient::new().await;
    let here = "https://example.com/webhooks/workos";
    let elsewhere = "https://staging.example.com/webhooks/workos";
    let fail = async |patient: &Patient, words: &str| {
        let complaints = patient.complaints().await;
        Patient::assert_one(&complaints, Level::Fail, "endpoint", words);
    };
    patient.workos.set_endpoints([]);
    fail(&patient, "no webhook endpoint in this environment").await;
    patient
        .workos
        .set_endpoints([endpoint("we_1", "https://example.com/other", "whsec_other")]);
    fail(&patient, "none of the 1 webhook endpoints").await;

    // By its secret, whatever the path; on whichever page.
    let others = (0..150).map(|n| endpoint(&format!("we_{n}"), here, "whsec_other"));
    let ours = endpoint("we_ours", "https://example.com/by/secret", SECRET);
    patient.workos.set_endpoints(others.chain([ours]));
    assert_eq!(patient.complaints().await, []);

    // By its path: then it is the secret that is wrong.
    patient
        .workos
        .set_endpoints([endpoint("we_1", &format!("{here}/"), "whsec_other")]);
    let complaints = patient.complaints().await;
    Patient::assert_one(
        &complaints,
        Level::Fail,
        "secret",
        "none of WORKOS_WEBHOOK_SECRET",
    );
    // Two of them: it isn't guessed.
    let both = [
        endpoint("we_1", here, "whsec_other"),
        endpoint("we_2", elsewhere, "whsec_another"),
    ];
    patient.workos.set_endpoints(both.clone());
    fail(&patient, "by --url").await;

    // By --url, though another one has our secret. What answers there isn't asked by this test.
    let (address, _server) = serve(patient.app.router.clone()).await;
    let url = format!("http://{address}/webhooks/workos");
    patient.setup.url = Some(Url::parse(&url).unwrap());
    let named = endpoint("we_3", &url, "whsec_other");
    let with_our_secret = endpoint("we_4", here, SECRET);
    patient.workos.set_endpoints([with_our_secret, named]);
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Fail, "secret", "we_3");
    patient.workos.set_endpoints(both);
    fail(&patient, "none of the 2 webhook endpoints in WorkOS is for").await;
}

/// R52: whether it is enabled, subscribed to what is handled, and signs with a secret of ours, whose place is said.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_our_endpoint_is_said() {
    let mut patient = Patient::new().await;
    let with = |key: &str, value: Value| {
        let mut endpoint = endpoint("we_1", "https://example.com/webhooks/workos", SECRET);
        endpoint[key] = value;
        endpoint
    };
    patient
        .workos
        .set_endpoints([with("status", json!("disabled"))]);
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Fail, "endpoint", "is disabled");

    let events = json!(["user.created", "organization.created"]);
    patient.workos.set_endpoints([with("events", events)]);
    let complaints = patient.complaints().await;
    Patient::assert_one(
        &complaints,
        Level::Fail,
        "subscriptions",
        "isn't subscribed to organization.updated, organization.deleted",
    );

    patient.workos.set_endpoints([with("secret", json!(null))]);
    let complaints = patient.complaints().await;
    Patient::assert_one(&complaints, Level::Warn, "secret", "can't be compared");

    patient
        .workos
        .set_endpoints([with("status", json!("enabled"))]);
    patient.setup.secrets = vec!["whsec_old".into(), SECRET.into()];
    let checks = patient.setup.examine().await;
    let secret = checks.iter().find(|check| check.check == "secret").unwrap();
    assert_eq!(secret.level, Level::Ok);
    assert!(secret.says.contains("secret 2 of the 2"), "{secret:?}");
}

/// R52: a ping that doesn't come through says why, as far as that can be told from outside.
#[tokio::test(flavor = "multi_thread")]
async fn a_ping_that_does_not_come_through_is_said() {
    let mut patient = Patient::new().await;
    patient.setup.client = None;
    let elsewhere = TestApp::new().await;
    let router = elsewhere.router.clone();
    let router = router
        .route("/up", post(async || "hello"))
        .route("/moved", post(async || Redirect::permanent("/elsewhere")))
        .route("/login", post(async || StatusCode::UNAUTHORIZED))
        .route("/down", post(async || StatusCode::BAD_GATEWAY))
        .route("/odd", post(async || StatusCode::IM_A_TEAPOT));
    let (address, mut server) = serve(router).await;
    let mut ping = async |path: &str, secret: &str| {
        patient.setup.url = Some(Url::parse(&format!("http://{address}{path}")).unwrap());
        patient.setup.secrets = vec![secret.into()];
        let mut complaints = patient.complaints().await;
        complaints.retain(|(_, check, _)| *check == "ping");
        complaints
    };
    for (path, secret, words) in [
        ("/webhooks/workos", SECRET, "isn't in this database"),
        ("/webhooks/workos", "whsec_other", "signature_mismatch"),
        ("/nowhere", SECRET, "is not found (404)"),
        ("/up", SECRET, "something else is there"),
        ("/moved", SECRET, "redirects"),
        ("/login", SECRET, "asks for a login"),
        ("/down", SECRET, "doesn't reach workos-sync"),
        ("/odd", SECRET, "answers 418"),
    ] {
        let complaints = ping(path, secret).await;
        Patient::assert_one(&complaints, Level::Fail, "ping", words);
    }
    elsewhere
        .execute("alter table webhook_events rename to gone")
        .await;
    let complaints = ping("/webhooks/workos", SECRET).await;
    Patient::assert_one(&complaints, Level::Fail, "ping", "can't store events now");
    server.shutdown().await;
    let complaints = ping("/webhooks/workos", SECRET).await;
    Patient::assert_one(&complaints, Level::Fail, "ping", "can't be reached");

    patient.setup.secrets.clear();
    let complaints = patient.complaints().await;
    let last = complaints.last().unwrap();
    assert!(
        last.2.contains("there is no WORKOS_WEBHOOK_SECRET"),
        "{last:?}"
    );
}

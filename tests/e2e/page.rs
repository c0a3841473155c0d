//! The operator's page in a real browser (R50): Chromium, driven by `tests/e2e/browser/check.mjs`. And where the page is.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Executor;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::support::{Folder, Kind, SECRET, Service, TestDatabase, event, event_id, http, run};

const TOKEN: &str = "s3cr3t-of-the-page";

/// How long a browser may take: on a busy machine, each of some sixty looks takes a second.
const BROWSING: Duration = Duration::from_mins(8);

/// A service with organizations, dead letters of two causes, and everything else that there is to see.
struct World {
    service: Service,
    given: Value,
    _folder: Folder,
    _database: TestDatabase,
}

impl World {
    async fn new(token: Option<&str>) -> Self {
        let (folder, database) = (Folder::new(), TestDatabase::empty().await);
        let mut variables = vec![
            ("DATABASE_URL", &*database.url),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("ADMIN_ADDR", "127.0.0.1:0"),
        ];
        variables.extend(token.map(|token| ("ADMIN_TOKEN", token)));
        let service = Service::start(&folder, &variables).await;
        for n in 1..=8 {
            let name = format!("Organization number {n} & <b>Sons</b>");
            service
                .apply(&event(n, Kind::Created, &format!("org_{n}"), &name))
                .await;
        }
        for n in 11..=14 {
            let poison = event(n, Kind::Updated, &format!("org_{}", n - 10), "a\0b");
            assert_eq!(service.apply(&poison).await["status"], "dead");
        }
        service
            .apply(&event(21, Kind::Deleted, "org_5", "gone"))
            .await;
        service
            .apply(&event(22, Kind::Updated, "org_5", "late"))
            .await;
        service
            .apply(&event(23, Kind::Other, "user_1", "somebody"))
            .await;
        database
            .pool
            .execute(
                "update workos_sync.webhook_events
                 set cause = 'check:name_is_short', last_error = 'the row violates \"name_is_short\" (SQLSTATE 23514)'
                 where organization_id = 'org_4' and status = 'dead';
                 insert into workos_sync.runs (kind, status, started_at, ended_at, pages, seen, created)
                 values ('backfill', 'complete', now() - interval '1 minute', now(), 1, 8, 8)",
            )
            .await
            .unwrap();
        let given = json!({
            "url": service.page_url(),
            "processed": event_id(1),
            "dead": event_id(11),
            "organization": "org_1",
            "cause": "decode:data.name",
            "count": 3,
            "other": "check:name_is_short",
            "token": token,
        });
        Self {
            service,
            given,
            _folder: folder,
            _database: database,
        }
    }

    /// Has the browser go through a scenario.
    async fn drive(&self, scenario: &str) {
        let browser = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/browser");
        assert!(
            browser.join("node_modules/playwright-core").exists(),
            "what drives the browser is not installed: run `make e2e`"
        );
        let driven = Command::new("node")
            .arg(browser.join("check.mjs"))
            .args([scenario, &self.given.to_string()])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let driven = timeout(BROWSING, driven)
            .await
            .expect("the browser is done")
            .unwrap();
        assert!(
            driven.status.success(),
            "{scenario}\n{}\n{}",
            String::from_utf8_lossy(&driven.stdout),
            String::from_utf8_lossy(&driven.stderr)
        );
    }
}

/// R50: every page is accessible (WCAG 2.2 AA), dark and light, wide and at 360 px, where nothing scrolls sideways.
#[tokio::test]
async fn pages_are_accessible_in_every_form() {
    World::new(None).await.drive("looks").await;
}

/// R50: an operator filters, opens, retries all of a cause, discards with a reason, pauses and resumes.
#[tokio::test]
async fn an_operator_finds_their_way() {
    World::new(None).await.drive("flows").await;
}

/// R50: the same without script.
#[tokio::test]
async fn pages_work_without_script() {
    World::new(None).await.drive("scriptless").await;
}

/// R50: the same with the keyboard alone.
#[tokio::test]
async fn pages_work_with_the_keyboard() {
    World::new(None).await.drive("keyboard").await;
}

/// R50: lists refresh by themselves, not in hidden tabs; focus, selection and what was typed survive.
#[tokio::test]
async fn lists_refresh_and_leave_the_reader_alone() {
    let world = World::new(None).await;
    let arriving = async {
        for n in 100.. {
            let body = event(n, Kind::Created, &format!("org_{n}"), "Acme");
            world.service.apply(&body).await;
            // A pace, not a guess of how long something takes.
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = world.drive("refresh") => {}
        () = arriving => {}
    }
}

/// R50: the token opens a session; a link from elsewhere finds it, another site's form doesn't.
#[tokio::test]
async fn the_token_opens_a_session() {
    World::new(Some(TOKEN)).await.drive("login").await;
}

/// R50: a private database comes with a page, at a free port if the usual one is taken.
#[tokio::test]
async fn a_private_database_comes_with_a_page() {
    let taken = std::net::TcpListener::bind("127.0.0.1:8081");
    let folder = Folder::new();
    let service = Service::start(&folder, &[]).await;
    let page = service.page_url();
    // Either this test has the usual port, or somebody else on this machine.
    drop(taken);
    assert_ne!(page, "http://127.0.0.1:8081/");
    let answer = http().get(&page).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("workos-sync"));
    service.terminate().await.assert(0);
}

/// R50: without `ADMIN_ADDR` there is no page beside a database of one's own; a token is required unless only this machine
/// can ask; a taken address names the setting.
#[tokio::test]
async fn an_address_is_wanted_and_guarded() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    assert!(
        !service.log().contains("the admin API"),
        "{}",
        service.log()
    );
    let refused = run(
        &folder,
        &[
            ("DATABASE_URL", &*database.url),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("ADMIN_ADDR", "0.0.0.0:0"),
        ],
        &["serve"],
    )
    .await
    .assert(2);
    let line = refused.error_line();
    assert!(
        line.contains("ADMIN_TOKEN: required when ADMIN_ADDR is not a loopback address"),
        "{line}"
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = run(
        &folder,
        &[("LISTEN_ADDR", "127.0.0.1:0"), ("ADMIN_ADDR", &address)],
        &["serve"],
    )
    .await
    .assert(1);
    let line = refused.error_line();
    assert!(line.contains(&format!("ADMIN_ADDR: {address}: ")), "{line}");
}

/// R50: neither the token, nor one that is nearly right, nor a session is printed at any level.
#[tokio::test]
async fn the_token_is_printed_at_no_level() {
    const WRONG: &str = "s3cr3t-of-the-pagf";
    for format in ["json", "text"] {
        let (folder, database) = (Folder::new(), TestDatabase::empty().await);
        let variables = [
            ("DATABASE_URL", &*database.url),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("ADMIN_ADDR", "127.0.0.1:0"),
            ("ADMIN_TOKEN", TOKEN),
            ("LOG_LEVEL", "trace"),
            ("LOG_FORMAT", format),
        ];
        let service = Service::start(&folder, &variables).await;
        let page = service.page_url();
        let mut session = String::new();
        for (token, status) in [(TOKEN, 200), (WRONG, 401)] {
            let asked = http()
                .get(format!("{page}api/v1/status"))
                .bearer_auth(token);
            assert_eq!(asked.send().await.unwrap().status(), status);
            let signed_in = reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .unwrap()
                .post(format!("{page}login"))
                .body(format!("token={token}&next=/runs"))
                .send()
                .await
                .unwrap();
            for cookie in signed_in.headers().get_all("set-cookie") {
                let cookie = cookie.to_str().unwrap();
                cookie.split(';').next().unwrap().clone_into(&mut session);
            }
        }
        let (_, proof) = session.split_once('=').expect("the token opens a session");
        let asked = http().get(&page).header("cookie", &session);
        assert_eq!(asked.send().await.unwrap().status(), 200);
        let finished = service.terminate().await.assert(0);
        let printed = [finished.stdout, finished.stderr].concat();
        assert!(printed.contains("a wrong token"), "{printed}");
        for secret in [TOKEN, WRONG, proof] {
            assert!(!printed.contains(secret), "{secret}");
        }
    }
}

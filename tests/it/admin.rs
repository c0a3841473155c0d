//! The operator's page and who may ask it, and the admin API (R50).

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method};
use chrono::TimeDelta;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::support::admin::{TOKEN, TestAdmin};
use crate::support::app::Answer;
use crate::support::event::event_id;
use crate::support::logs::Logs;
use crate::support::{EventBuilder, TestApp, created, insert, release};

/// Every page that there is without an id.
const PAGES: [&str; 12] = [
    "/",
    "/events",
    "/events?status=dead",
    "/causes",
    "/organizations",
    "/runs",
    "/actions",
    "/retry?status=dead",
    "/discard?status=dead",
    "/pause",
    "/resume",
    "/login",
];

fn cookie(answer: &Answer) -> String {
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    cookie.split_once(';').unwrap().0.to_owned()
}

/// R50: a name that somebody else's name server points to this machine is not ours; nothing is answered to it.
#[tokio::test]
async fn without_a_token_only_local_hosts_are_answered() {
    let app = TestApp::new().await;
    let admin = TestAdmin::open(&app);
    for path in [
        "/",
        "/nothing",
        "/api/v1/status",
        "/api/v1/nothing",
        "/login",
    ] {
        for method in [Method::GET, Method::POST] {
            for host in [
                "evil.example",
                "evil.example:8081",
                "localhost.evil.example",
            ] {
                let request = TestAdmin::request(method.clone(), path).header("host", host);
                // Beside the host that the helper names, and alone.
                admin.send(request, "").await.assert(421);
                let alone = axum::http::Request::builder()
                    .method(method.clone())
                    .uri(path)
                    .header("host", host);
                let answer = admin.send(alone, "").await.assert(421);
                if path.starts_with("/api") {
                    assert_eq!(answer.json()["code"], "unknown_host");
                }
            }
        }
    }
    for host in ["localhost", "127.0.0.1:8081", "[::1]:8081"] {
        let request = axum::http::Request::builder().uri("/").header("host", host);
        admin.send(request, "").await.assert(200);
    }
    // Whoever has a token may come by any name.
    let guarded = TestAdmin::guarded(&app);
    let request = axum::http::Request::builder()
        .uri("/api/v1/status")
        .header("host", "ops.example")
        .header("authorization", format!("Bearer {TOKEN}"));
    guarded.send(request, "").await.assert(200);
}

/// R50: without the token, every path of the API answers the same 401, whether there is something or not; a session's
/// cookie doesn't open it.
#[tokio::test]
async fn the_api_wants_the_token() {
    let app = TestApp::new().await;
    let admin = TestAdmin::guarded(&app);
    let session = admin
        .submit("/login", &[("token", TOKEN)])
        .await
        .assert(303);
    let expected = admin.get("/api/v1/status").await.assert(401);
    assert_eq!(
        expected.headers["www-authenticate"],
        r#"Bearer realm="workos-sync""#
    );
    assert_eq!(expected.json()["code"], "unauthorized");
    for (method, path) in [
        (Method::GET, "/api/v1/events"),
        (Method::GET, "/api/v1/events/event_1/payload"),
        (Method::GET, "/api/v1/nothing"),
        (Method::GET, "/api"),
        (Method::GET, "/api/v1/openapi.json"),
        (Method::DELETE, "/api/v1/events"),
        (Method::POST, "/api/v1/pause"),
        (Method::POST, "/api/v1/nothing"),
    ] {
        for (name, value) in [
            ("authorization", String::new()),
            ("authorization", "Bearer".to_owned()),
            ("authorization", "Bearer wrong".to_owned()),
            ("authorization", format!("Basic {TOKEN}")),
            ("authorization", format!("Bearer {TOKEN}x")),
            ("cookie", cookie(&session)),
        ] {
            let request = TestAdmin::request(method.clone(), path).header(name, value);
            let answer = admin.send(request, "").await.assert(401);
            assert_eq!(answer.text, expected.text, "{method} {path}");
            let headers = |headers: &HeaderMap| {
                let mut headers = headers.clone();
                headers.remove("x-request-id");
                headers
            };
            assert_eq!(headers(&answer.headers), headers(&expected.headers));
        }
    }
    for scheme in ["Bearer", "bearer"] {
        let request = TestAdmin::request(Method::GET, "/api/v1/status")
            .header("authorization", format!("{scheme} {TOKEN}"));
        admin.send(request, "").await.assert(200);
    }
}

/// R50: the page asks for the token on every path alike; the right one opens a session, which leads to where one wanted to
/// go, and ends after half a day.
#[tokio::test]
async fn the_page_asks_for_the_token() {
    let app = TestApp::new().await;
    let admin = TestAdmin::guarded(&app);
    for path in ["/", "/causes", "/events/event_1?payload=yes", "/nothing"] {
        let asked = admin.get(path).await.assert(401);
        assert!(asked.text.contains(r#"name="token""#));
        assert!(
            asked
                .text
                .contains(&format!(r#"name="next" value="{path}""#)),
            "{}",
            asked.text
        );
    }
    let logs = Logs::capture();
    let wrong = admin
        .submit("/login", &[("token", "nearly-right"), ("next", "/causes")])
        .await;
    let wrong = wrong.assert(401);
    assert!(
        wrong.text.contains("This is not the token.") && !wrong.headers.contains_key("set-cookie")
    );
    assert!(
        logs.text().contains("with a wrong token"),
        "{}",
        logs.text()
    );
    assert!(
        !logs.text().contains("nearly-right"),
        "what was tried may be"
    );

    let opened = admin
        .submit("/login", &[("token", TOKEN), ("next", "/causes")])
        .await;
    let opened = opened.assert(303);
    assert_eq!(opened.headers["location"], "/causes");
    let session = cookie(&opened);
    let ask = || TestAdmin::request(Method::GET, "/causes").header("cookie", &session);
    admin.send(ask(), "").await.assert(200);
    // A process that was started anew, and another replica, don't know it.
    TestAdmin::guarded(&app).send(ask(), "").await.assert(401);
    app.clock.advance(TimeDelta::hours(12));
    admin.send(ask(), "").await.assert(401);
    sign_out(&admin, &session).await.assert(401);
}

/// R50: whoever signs out ends the session at once, also for somebody who has kept the cookie, and no other session.
#[tokio::test]
async fn signing_out_ends_the_session() {
    let app = TestApp::new().await;
    let admin = TestAdmin::guarded(&app);
    let open = async || {
        cookie(
            &admin
                .submit("/login", &[("token", TOKEN)])
                .await
                .assert(303),
        )
    };
    let (session, other) = (open().await, open().await);
    let ask = |session| TestAdmin::request(Method::GET, "/").header("cookie", session);
    admin.send(ask(&session), "").await.assert(200);
    let ended = sign_out(&admin, &session).await.assert(303);
    assert_eq!(cookie(&ended), "workos_sync_session=");
    admin.send(ask(&session), "").await.assert(401);
    admin.send(ask(&other), "").await.assert(200);
}

async fn sign_out(admin: &TestAdmin, session: &str) -> Answer {
    let request = TestAdmin::request(Method::POST, "/logout")
        .header("cookie", session)
        .header("sec-fetch-site", "same-origin");
    admin.send(request, "").await
}

/// R50: where a form leads to is a page of ours, whatever somebody has made of it.
#[tokio::test]
async fn a_form_leads_nowhere_else() {
    let app = TestApp::new().await;
    let admin = TestAdmin::guarded(&app);
    for next in [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example/",
        "javascript:alert(1)",
        "",
        "/a\r\nb: c",
    ] {
        let opened = admin
            .submit("/login", &[("token", TOKEN), ("next", next)])
            .await;
        assert_eq!(opened.assert(303).headers["location"], "/", "{next:?}");
    }
    let open = TestAdmin::open(&app);
    let resumed = open
        .submit("/resume", &[("back", "//evil.example")])
        .await
        .assert(303);
    assert_eq!(resumed.headers["location"], "/?done=resume");
    let resumed = open
        .submit("/resume", &[("back", "/events?status=dead&done=x")])
        .await
        .assert(303);
    assert_eq!(
        resumed.headers["location"],
        "/events?status=dead&done=resume"
    );
}

/// R50: what another site sends changes nothing, with and without a token, by the page's forms and by the API.
#[tokio::test]
async fn another_site_changes_nothing() {
    let app = TestApp::new().await;
    let (open, guarded) = (TestAdmin::open(&app), TestAdmin::guarded(&app));
    let session = cookie(
        &guarded
            .submit("/login", &[("token", TOKEN)])
            .await
            .assert(303),
    );
    for path in [
        "/pause",
        "/retry",
        "/discard",
        "/resume",
        "/api/v1/pause",
        "/api/v1/events/retry",
    ] {
        for headers in [
            vec![
                ("sec-fetch-site", "cross-site"),
                ("origin", "https://evil.example"),
            ],
            vec![
                ("sec-fetch-site", "same-site"),
                ("origin", "http://localhost:3000"),
            ],
            vec![("sec-fetch-site", "cross-site"), ("origin", "null")],
            vec![("origin", "http://localhost:3000")],
            vec![("origin", "null")],
        ] {
            let with = |mut request: axum::http::request::Builder| {
                for (name, value) in &headers {
                    request = request.header(*name, *value);
                }
                request
            };
            let request = with(TestAdmin::request(Method::POST, path));
            open.send(request, r#"{"ids":["a"]}"#).await.assert(403);
            let request = with(TestAdmin::request(Method::POST, path))
                .header("cookie", &session)
                .header("authorization", format!("Bearer {TOKEN}"));
            guarded.send(request, r#"{"ids":["a"]}"#).await.assert(403);
        }
    }
    // With the cookie, somebody has to say where it comes from; signing somebody in from elsewhere is a change, too.
    let bare = TestAdmin::request(Method::POST, "/pause").header("cookie", &session);
    guarded.send(bare, "").await.assert(403);
    let foreign =
        TestAdmin::request(Method::POST, "/login").header("origin", "https://evil.example");
    guarded
        .send(foreign, format!("token={TOKEN}"))
        .await
        .assert(403);
    let paused: i64 = sqlx::query_scalar("select count(*) from pause")
        .fetch_one(&app.db.pool)
        .await
        .unwrap();
    assert_eq!(paused, 0);
    // Nothing is changed by a GET.
    for path in [
        "/pause",
        "/retry?status=dead",
        "/discard?status=dead",
        "/resume",
    ] {
        open.get(path).await.assert(200);
    }
    let actions: i64 = sqlx::query_scalar("select count(*) from operator_actions")
        .fetch_one(&app.db.pool)
        .await
        .unwrap();
    assert_eq!(actions, 0);
}

/// R50: `ADMIN_READ_ONLY` refuses every change in the API, and in the page, which offers none.
#[tokio::test]
async fn read_only_refuses_every_change() {
    let app = TestApp::new().await;
    app.apply(&created(1, "org_1", "a\0b")).await;
    let admin = TestAdmin::with(&app, Some(TOKEN.into()), true);
    let session = cookie(
        &admin
            .submit("/login", &[("token", TOKEN)])
            .await
            .assert(303),
    );
    let id = event_id(1);
    for path in [
        "/api/v1/events/retry",
        "/api/v1/events/discard",
        "/api/v1/pause",
        "/api/v1/resume",
        "/api/v1/nothing",
    ] {
        let request = TestAdmin::request(Method::POST, path)
            .header("authorization", format!("Bearer {TOKEN}"));
        let answer = admin
            .send(request, format!(r#"{{"ids":["{id}"],"reason":"x"}}"#))
            .await
            .assert(403);
        assert_eq!(answer.json()["code"], "read_only");
    }
    for path in ["/retry", "/discard", "/pause", "/resume"] {
        let request = TestAdmin::request(Method::POST, path)
            .header("cookie", &session)
            .header("sec-fetch-site", "same-origin");
        admin
            .send(request, format!("id={id}&reason=x"))
            .await
            .assert(403);
    }
    assert_eq!(app.inbox_row(&id).await.status, "dead");
    let event = format!("/events/{id}");
    for path in ["/", "/causes", "/events", &event] {
        let request = TestAdmin::request(Method::GET, path).header("cookie", &session);
        let page = admin.send(request, "").await.assert(200);
        for word in ["Retry", "Discard", "Pause…"] {
            assert!(!page.text.contains(word), "{path} offers {word}");
        }
    }
}

/// R50: every answer has the headers that keep a browser from doing more than it should; nothing is inline.
#[tokio::test]
async fn answers_keep_browsers_on_a_short_leash() {
    let app = TestApp::new().await;
    app.apply(&created(1, "org_1", "a\0b")).await;
    let admin = TestAdmin::open(&app);
    let event = format!("/events/{}?payload=yes", event_id(1));
    let mut paths = PAGES.to_vec();
    paths.extend([
        &*event,
        "/organizations/org_1",
        "/nothing",
        "/events?status=x",
        "/api/v1/status",
        "/api/v1/x",
    ]);
    for path in paths {
        let answer = admin.get(path).await;
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(answer.headers["referrer-policy"], "same-origin");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert!(answer.headers.contains_key("x-request-id"));
        for inline in [" style=", " onclick=", " onload=", "<style", "javascript:"] {
            assert!(!answer.text.contains(inline), "{path}: {inline}");
        }
        let scripts = answer.text.matches("<script").count();
        assert_eq!(
            scripts,
            answer.text.matches(r#"<script src="/assets/"#).count(),
            "{path}"
        );
    }

    // What a page consists of may be kept, for its name says what is in it.
    let page = admin.get("/").await.text;
    for extension in ["css", "js", "svg"] {
        let end = page.find(&format!(".{extension}\"")).unwrap() + 1 + extension.len();
        let path = &page[page[..end].rfind("/assets/").unwrap()..end];
        let asset = admin.get(path).await.assert(200);
        assert_eq!(
            asset.headers["cache-control"],
            "public, max-age=31536000, immutable"
        );
        assert_eq!(asset.headers["x-content-type-options"], "nosniff");
        let again =
            TestAdmin::request(Method::GET, path).header("if-none-match", &asset.headers["etag"]);
        assert_eq!(admin.send(again, "").await.assert(304).text, "");
    }
    admin.get("/assets/page.0.css").await.assert(404);
}

/// R50: markup in any field of an event, and in what operators write, stays text on every page.
#[tokio::test]
async fn markup_stays_text() {
    const EVIL: &str =
        r#"<script>alert(1)</script>"><img src=x onerror=alert(2)>'javascript:alert(3)"#;
    let app = TestApp::new().await;
    let id = format!("event_{EVIL}");
    let organization = format!("org_{EVIL}");
    let event = EventBuilder::new(1, &format!("organization.created{EVIL}"), &organization)
        .id(&id)
        .data("name", EVIL)
        .external_id(EVIL)
        .data("metadata", serde_json::json!({ EVIL: EVIL }));
    insert(&app.db.pool, &event).await;
    app.apply(&created(2, &organization, EVIL).external_id(EVIL))
        .await;
    sqlx::query(
        "update webhook_events set status = 'dead', cause = $1, last_error = $1, source = $1, outcome = null,
                                   compared = jsonb_build_object($1, $1)
         where event_id = $2",
    )
    .bind(EVIL)
    .bind(&id)
    .execute(&app.db.pool)
    .await
    .unwrap();
    sqlx::query("insert into event_attempts (event_id, attempt, at, cause, error) values ($1, 1, now(), $2, $2)")
        .bind(&id)
        .bind(EVIL)
        .execute(&app.db.pool)
        .await
        .unwrap();
    let admin = TestAdmin::open(&app);
    admin
        .submit("/pause", &[("reason", EVIL)])
        .await
        .assert(303);
    admin
        .submit("/discard", &[("id", &id), ("reason", EVIL)])
        .await
        .assert(303);
    sqlx::query("update webhook_events set status = 'dead' where event_id = $1")
        .bind(&id)
        .execute(&app.db.pool)
        .await
        .unwrap();

    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let (id, organization, evil) = (encoded(&id), encoded(&organization), encoded(EVIL));
    let mut paths: Vec<_> = PAGES.iter().map(|page| (*page).to_owned()).collect();
    paths.extend([
        format!("/events/{id}"),
        format!("/events/{id}?payload=yes"),
        format!("/organizations/{organization}"),
        format!("/organizations/{evil}"),
        format!(
            "/events?cause={evil}&type={evil}&organization={evil}&error={evil}&until=1h&since=2h"
        ),
        format!("/retry?cause={evil}&back={evil}"),
        format!("/?done={evil}&count={evil}"),
        // What can't be used is said again.
        format!("/events?status={evil}"),
        format!("/events?{evil}=1"),
        format!("/events/none{evil}"),
        format!("/{evil}"),
    ]);
    let mut seen = 0;
    for path in paths {
        let page = admin.get(&path).await.text;
        for raw in ["<script>", "<img", "\"><"] {
            // An attribute may end with an escaped quotation mark only.
            let raw = if raw == "\"><" {
                "alert(1)</script>\""
            } else {
                raw
            };
            assert!(!page.contains(raw), "{path}: {page}");
        }
        assert!(!page.contains("href=\"javascript:"), "{path}");
        seen += page.matches("&lt;script&gt;alert(1)").count();
    }
    assert!(seen > 40, "{seen}: the pages show it, as text");
}

/// R50: a payload is hidden until it is asked for, and asking is logged.
#[tokio::test]
async fn payloads_are_hidden_until_asked_for() {
    let app = TestApp::new().await;
    let event = created(1, "org_1", "Acme").data("metadata", serde_json::json!({ "card": "4711" }));
    app.apply(&event).await;
    let admin = TestAdmin::open(&app);
    let page = format!("/events/{}", event_id(1));
    for path in [
        "/",
        "/events",
        &page,
        &format!("/api/v1{page}"),
        "/organizations/org_1",
    ] {
        let answer = admin.get(path).await.assert(200);
        assert!(!answer.text.contains("4711"), "{path}");
    }
    let logs = Logs::capture();
    for path in [
        format!("{page}?payload=yes"),
        format!("/api/v1{page}/payload"),
    ] {
        let answer = admin.get(&path).await.assert(200);
        assert!(answer.text.contains("4711"), "{path}");
    }
    let said = format!("an operator looks at the payload of event {}", event_id(1));
    assert_eq!(logs.text().matches(&said).count(), 2);
    assert!(!logs.text().contains("4711"));
}

/// R50: a question takes 2 seconds at most in the database, two at a time, whatever is asked; then it is given up there,
/// too.
#[tokio::test]
async fn questions_are_bounded() {
    let app = TestApp::new().await;
    app.apply(&created(1, "org_1", "Acme")).await;
    let admin = TestAdmin::open(&app);
    admin.get("/").await.assert(200);
    let holder = app
        .hold("lock table webhook_events in access exclusive mode")
        .await;
    // The lock alone would be waited for longer, and told otherwise.
    let slow = admin.get("/api/v1/causes").await.assert(503);
    assert_eq!(slow.json()["code"], "too_slow");
    assert_eq!(slow.headers["retry-after"], "1");
    assert_eq!(app.db.blocked_sessions().await, 0);
    let started = tokio::time::Instant::now();
    let event = format!("/events/{}", event_id(1));
    let asked = async {
        tokio::join!(
            admin.get("/events"),
            admin.get("/api/v1/events"),
            admin.get("/api/v1/causes"),
            admin.get(&event),
            admin.get("/"),
            admin.get("/retry?status=dead"),
        )
    };
    let watched = async {
        let mut most = 0;
        while most < 2 || app.db.blocked_sessions().await > 0 {
            most = std::cmp::max(most, app.db.blocked_sessions().await);
        }
        most
    };
    let (answers, most) = tokio::join!(asked, watched);
    assert_eq!(most, 2);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    for answer in [
        answers.0, answers.1, answers.2, answers.3, answers.4, answers.5,
    ] {
        let answer = answer.assert(503);
        assert_eq!(answer.headers["cache-control"], "no-store");
    }
    release(holder).await;
    admin.get("/").await.assert(200);
}

/// R48, R50: the page counts, asks, acts and says what was done; the API does the same.
#[tokio::test]
async fn a_cause_is_retried_and_discarded() {
    let app = TestApp::new().await;
    for n in 1..=3 {
        app.apply(&created(n, &format!("org_{n}"), "a\0b")).await;
    }
    let cause = sqlx::query_scalar::<_, String>("select cause from webhook_events limit 1")
        .fetch_one(&app.db.pool)
        .await
        .unwrap();
    let admin = TestAdmin::open(&app);
    let causes = admin.get("/causes").await.assert(200).text;
    assert!(causes.contains("Retry 3…"), "{causes}");
    let question = format!(
        "/retry?cause={}&back=%2Fcauses",
        utf8_percent_encode(&cause, NON_ALPHANUMERIC)
    );
    let question = admin.get(&question).await.assert(200).text;
    assert!(question.contains("Retry 3 events"), "{question}");
    let done = admin
        .submit("/retry", &[("cause", &cause), ("back", "/causes")])
        .await
        .assert(303);
    assert_eq!(
        done.headers["location"],
        "/causes?done=retry&count=3&left=0"
    );
    let said = admin.get("/causes?done=retry&count=3&left=0").await.text;
    assert!(said.contains("3 events will be tried again"), "{said}");
    app.settle().await;

    // Discarding takes a reason, and is final.
    let ids = [event_id(1), event_id(2)];
    for reason in ["", "  "] {
        admin
            .submit("/discard", &[("id", &ids[0]), ("reason", reason)])
            .await
            .assert(400);
    }
    let fields = [
        ("id", &*ids[0]),
        ("id", &*ids[1]),
        ("id", "event_unknown"),
        ("reason", "a test"),
    ];
    let done = admin.submit("/discard", &fields).await.assert(303);
    assert_eq!(done.headers["location"], "/?done=discard&count=2&left=1");
    assert_eq!(app.inbox_row(&ids[0]).await.status, "discarded");
    let body = serde_json::json!({ "filter": { "status": "dead" }, "reason": "by the API" });
    let done = admin
        .post("/api/v1/events/discard", &body.to_string())
        .await
        .assert(200);
    assert_eq!(done.json(), serde_json::json!({ "count": 1, "left": [] }));
    let actions = admin.get("/actions").await.assert(200).text;
    assert!(
        actions.contains("a test")
            && actions.contains("by the API")
            && actions.contains("loopback")
    );
    // Nothing is selected by nothing.
    for path in ["/retry", "/discard"] {
        admin.submit(path, &[("reason", "x")]).await.assert(400);
        admin.get(path).await.assert(400);
    }
}

/// R49, R50: pause and resume, with the reason on the overview.
#[tokio::test]
async fn the_page_pauses_and_resumes() {
    let app = TestApp::new().await;
    let admin = TestAdmin::open(&app);
    let paused = admin
        .submit("/pause", &[("for", "4h"), ("reason", "a move")])
        .await
        .assert(303);
    assert_eq!(paused.headers["location"], "/?done=pause");
    let overview = admin.get("/").await.assert(200).text;
    assert!(
        overview.contains("<h1 id=\"verdict\">Paused</h1>") && overview.contains("(a move)"),
        "{overview}"
    );
    for length in ["25h", "0s", "soon", "-1h"] {
        admin.submit("/pause", &[("for", length)]).await.assert(400);
    }
    admin.submit("/resume", &[]).await.assert(303);
    assert!(!admin.get("/").await.text.contains("Paused"));
    // A second time, there is nothing to end.
    admin.submit("/resume", &[]).await.assert(303);
    let ended = admin.post("/api/v1/resume", "").await.assert(200);
    assert_eq!(ended.json(), serde_json::json!({ "ended": null }));
}

/// R47, R50: paging meets each event once, also where times are equal.
#[tokio::test]
async fn pages_of_events_meet_each_once() {
    let app = TestApp::new().await;
    for n in 1..=7 {
        app.record(&created(n, &format!("org_{n}"), "Acme")).await;
    }
    app.settle().await;
    let admin = TestAdmin::open(&app);
    let (mut path, mut seen) = ("/events?limit=3".to_owned(), Vec::new());
    loop {
        let page = admin.get(&path).await.assert(200).text;
        seen.extend(
            page.split("data-key=\"")
                .skip(1)
                .map(|row| row.split('"').next().unwrap().to_owned()),
        );
        let Some(older) = page
            .split("rel=\"next\"")
            .next()
            .filter(|_| page.contains("rel=\"next\""))
        else {
            break;
        };
        let href = older.rsplit("href=\"").next().unwrap();
        path = href.split('"').next().unwrap().replace("&amp;", "&");
    }
    let mut expected: Vec<_> = (1..=7).map(event_id).collect();
    expected.sort();
    seen.sort();
    assert_eq!(seen, expected);
}

/// R50: an unusable parameter is 400, an unknown id 404, another method 405; for programs a problem, for people a page.
#[tokio::test]
async fn what_cannot_be_answered_says_why() {
    let app = TestApp::new().await;
    let admin = TestAdmin::open(&app);
    for (path, status) in [
        ("/events?status=deed", 400),
        ("/events?limit=0", 400),
        ("/events?limit=1001", 400),
        ("/events?since=soon", 400),
        ("/events?source=x", 400),
        ("/events?stauts=dead", 400),
        ("/events?type=a&type=b", 400),
        ("/events?after=event_unknown", 400),
        ("/events?cause=%00", 400),
        ("/events?after=%00", 400),
        ("/events/event_unknown", 404),
        ("/events/%00", 404),
        ("/events/%FF", 404),
        ("/organizations/org_unknown", 404),
        ("/organizations/%00", 404),
        ("/nothing", 404),
    ] {
        let page = admin.get(path).await.assert(status);
        assert!(page.text.starts_with("<!DOCTYPE html>"), "{path}");
        let problem = admin.get(&format!("/api/v1{path}")).await.assert(status);
        assert_eq!(
            problem.headers["content-type"], "application/problem+json",
            "{path}"
        );
        assert_eq!(problem.json()["status"], status);
    }
    for (method, path, allow) in [
        (Method::POST, "/events", "GET,HEAD"),
        (Method::DELETE, "/pause", "GET,HEAD,POST"),
        (Method::PUT, "/api/v1/events", "GET,HEAD"),
        (Method::GET, "/api/v1/pause", "POST"),
    ] {
        let answer = admin
            .send(TestAdmin::request(method, path), Body::empty())
            .await
            .assert(405);
        assert_eq!(answer.headers["allow"], allow, "{path}");
        assert_eq!(
            path.starts_with("/api"),
            answer.headers["content-type"] == "application/problem+json"
        );
    }
    for (path, body) in [
        ("/api/v1/events/retry", "{}"),
        ("/api/v1/events/retry", ""),
        ("/api/v1/events/retry", "["),
        (
            "/api/v1/events/retry",
            r#"{"ids":["a"],"filter":{"status":"dead"}}"#,
        ),
        ("/api/v1/events/retry", r#"{"ids":["a\u0000"]}"#),
        ("/api/v1/events/retry", r#"{"filter":{"stauts":"dead"}}"#),
        ("/api/v1/events/retry", r#"{"everything":true}"#),
        ("/api/v1/events/discard", r#"{"ids":["a"]}"#),
        ("/api/v1/events/discard", r#"{"ids":["a"],"reason":" "}"#),
        (
            "/api/v1/events/discard",
            r#"{"ids":["a"],"reason":"\u0000"}"#,
        ),
        ("/api/v1/pause", r#"{"for":"25h"}"#),
        ("/api/v1/pause", r#"{"for":"1 hour"}"#),
        ("/api/v1/pause", r#"{"reason":"\u0000"}"#),
    ] {
        let problem = admin.post(path, body).await.assert(400);
        assert_eq!(problem.json()["code"], "unusable_parameter", "{body}");
    }
}

//! The admin API does what its description says (R50).

use axum::http::Method;
use axum::http::request::Builder;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::admin::{TOKEN, TestAdmin};
use crate::support::app::Answer;
use crate::support::event::event_id;
use crate::support::{TestApp, created, deleted, release, updated};

/// What of JSON Schema the description uses; another keyword fails the test.
fn violations(schema: &Value, value: &Value, root: &Value, at: &str, found: &mut Vec<String>) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = |choice: &&Value| {
            let mut found = Vec::new();
            violations(choice, value, root, at, &mut found);
            found.is_empty()
        };
        if choices.iter().filter(fits).count() != 1 {
            found.push(format!("{at}: {value} fits none, or more than one"));
        }
        return;
    }
    let known = [
        "type",
        "description",
        "enum",
        "format",
        "items",
        "properties",
        "required",
        "additionalProperties",
    ];
    for keyword in schema.as_object().unwrap().keys() {
        assert!(known.contains(&&**keyword), "{keyword}");
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is_of = |types: &Value| match types {
        Value::Array(types) => types.iter().any(|name| name == kind),
        name => name.is_null() || name == kind,
    };
    if !is_of(&schema["type"]) {
        found.push(format!("{at}: {value} is no {}", schema["type"]));
    }
    if let Some(choices) = schema["enum"].as_array()
        && !choices.contains(value)
    {
        found.push(format!("{at}: {value} is none of {choices:?}"));
    }
    if schema["format"] == "date-time"
        && let Some(text) = value.as_str()
        && chrono::DateTime::parse_from_rfc3339(text).is_err()
    {
        found.push(format!("{at}: {text} is no time"));
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (n, value) in values.iter().enumerate() {
            violations(items, value, root, &format!("{at}/{n}"), found);
        }
    }
    if let (Some(properties), Some(members)) = (schema["properties"].as_object(), value.as_object())
    {
        for name in schema["required"].as_array().unwrap() {
            if !members.contains_key(name.as_str().unwrap()) {
                found.push(format!("{at}: lacks {name}"));
            }
        }
        for (name, value) in members {
            match properties.get(name) {
                Some(schema) => violations(schema, value, root, &format!("{at}/{name}"), found),
                None => found.push(format!("{at}: {name} is not described")),
            }
        }
    }
}

/// Fails the test if an answer isn't what the description says of its status.
#[track_caller]
fn assert_described(api: &Value, method: &str, path: &str, answer: &Answer) {
    let status = answer.status.as_str();
    let response = &api["paths"][path][method]["responses"][status];
    let response = match response["$ref"].as_str() {
        Some(reference) => api.pointer(reference.trim_start_matches('#')).unwrap(),
        None => response,
    };
    assert!(
        !response.is_null(),
        "{method} {path}: {status} is not described: {}",
        answer.text
    );
    let media_type = answer.headers["content-type"].to_str().unwrap();
    let schema = &response["content"][media_type]["schema"];
    assert!(
        !schema.is_null(),
        "{method} {path} {status}: {media_type} is not described"
    );
    let mut found = Vec::new();
    if schema.as_object().is_some_and(|schema| !schema.is_empty()) {
        violations(schema, &answer.json(), api, "", &mut found);
    }
    assert!(found.is_empty(), "{method} {path} {status}: {found:#?}");
}

/// Organizations and events of every kind.
async fn populated() -> TestApp {
    let app = TestApp::new().await;
    app.apply(&created(1, "org_1", "Acme")).await;
    app.apply(&created(2, "org_2", "a\0b")).await;
    app.apply(&created(3, "org_3", "a\0b")).await;
    app.apply(&created(4, "org_4", "Globex")).await;
    app.apply(&deleted(5, "org_4")).await;
    app.apply(&updated(6, "org_4", "Globex")).await;
    app.execute(
        "update webhook_events set status = 'failed', next_attempt_at = now() where organization_id = 'org_3';
         insert into runs (kind, status, started_at, ended_at) values ('backfill', 'complete', now(), now());
         insert into runs (kind, started_at) values ('reconcile', now())",
    )
    .await;
    app
}

/// An operation that the description names, and a request that it answers with 200.
#[derive(Clone)]
struct Operation {
    path: String,
    method: String,
    verb: Method,
    address: String,
    body: String,
    statuses: Vec<String>,
}

impl Operation {
    fn all(api: &Value) -> Vec<Self> {
        let paths = api["paths"].as_object().unwrap();
        let operations = paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap();
            methods.iter().map(move |(method, operation)| {
                let id = if path.starts_with("/events") {
                    event_id(1)
                } else {
                    "org_1".to_owned()
                };
                let body = match path.as_str() {
                    "/events/retry" => json!({ "ids": [event_id(2), event_id(1), "unknown"] }),
                    "/events/discard" => {
                        json!({ "filter": { "status": "failed" }, "reason": "a test" })
                    }
                    _ => json!({}),
                };
                let responses = operation["responses"].as_object().unwrap();
                Self {
                    path: path.clone(),
                    method: method.clone(),
                    verb: Method::from_bytes(method.to_uppercase().as_bytes()).unwrap(),
                    address: format!("/api/v1{}", path.replace("{id}", &id)),
                    body: body.to_string(),
                    statuses: responses.keys().cloned().collect(),
                }
            })
        });
        operations.collect()
    }

    fn request(&self) -> Builder {
        TestAdmin::request(self.verb.clone(), &self.address)
    }

    /// Has a status answered.
    async fn provoke(&self, status: &str, open: &TestAdmin, guarded: &TestAdmin) -> Answer {
        let unknown = format!("/api/v1{}", self.path.replace("{id}", "unknown"));
        match status {
            "200" | "503" => open.send(self.request(), self.body.clone()).await,
            "400" if self.verb == Method::GET => {
                open.get(&format!("{}?limit=0", self.address)).await
            }
            "400" => open.send(self.request(), "[").await,
            "401" => guarded.send(self.request(), self.body.clone()).await,
            "403" => {
                let foreign = self.request().header("sec-fetch-site", "cross-site");
                open.send(foreign, self.body.clone()).await
            }
            "404" => open.get(&unknown).await,
            "405" => {
                let request = TestAdmin::request(Method::DELETE, &self.address);
                open.send(request, "").await
            }
            "413" => open.send(self.request(), "x".repeat(600_000)).await,
            "421" => {
                let elsewhere = self.request().header("host", "evil.example");
                open.send(elsewhere, self.body.clone()).await
            }
            other => panic!("{other}: how is it provoked?"),
        }
    }
}

/// R50: every answer of every route, whatever its status, is as the description says; and every status that it names is
/// provoked.
#[tokio::test]
async fn answers_are_as_they_are_described() {
    let app = populated().await;
    let (open, guarded) = (TestAdmin::open(&app), TestAdmin::guarded(&app));
    let api = open.get("/api/v1/openapi.json").await.assert(200).json();
    let operations = Operation::all(&api);
    assert_eq!(operations.len(), 13);
    for operation in &operations {
        for status in operation.statuses.iter().filter(|status| *status != "503") {
            let answer = operation.provoke(status, &open, &guarded).await;
            let Operation { path, method, .. } = operation;
            assert_eq!(
                answer.status.as_str(),
                status,
                "{method} {path}: {}",
                answer.text
            );
            assert_described(&api, method, path, &answer);
        }
    }

    // A database that doesn't answer: all at once, for it takes its time.
    let holder = app
        .hold(
            "lock table webhook_events, workos_organization_syncs, runs, operator_actions, pause, event_poll
             in access exclusive mode",
        )
        .await;
    let mut asked = JoinSet::new();
    for operation in operations {
        if operation.statuses.iter().any(|status| status == "503") {
            let (open, guarded) = (open.clone(), guarded.clone());
            asked.spawn(async move {
                let answer = operation.provoke("503", &open, &guarded).await;
                (operation, answer)
            });
        }
    }
    assert_eq!(asked.len(), 12);
    while let Some(answered) = asked.join_next().await {
        let (Operation { path, method, .. }, answer) = answered.unwrap();
        assert_eq!(
            answer.status.as_u16(),
            503,
            "{method} {path}: {}",
            answer.text
        );
        assert_described(&api, &method, &path, &answer);
    }
    release(holder).await;
}

/// R50: what may be asked of a list is what the description names, and all of it is understood.
#[tokio::test]
async fn parameters_are_as_they_are_described() {
    let app = populated().await;
    let admin = TestAdmin::open(&app);
    let api = admin.get("/api/v1/openapi.json").await.assert(200).json();
    for (path, operation) in api["paths"].as_object().unwrap() {
        for parameter in operation["get"]["parameters"]
            .as_array()
            .into_iter()
            .flatten()
        {
            if parameter["in"] != "query" {
                continue;
            }
            let name = parameter["name"].as_str().unwrap();
            let choices = parameter["schema"]["enum"].as_array();
            let values = match (name, choices) {
                (_, Some(choices)) => choices
                    .iter()
                    .map(|choice| choice.as_str().unwrap().to_owned())
                    .collect(),
                ("after", _) => vec![event_id(1)],
                ("since" | "until", _) => vec!["2h".to_owned(), "2027-01-15T08:00:00Z".to_owned()],
                ("limit", _) => vec!["1".to_owned(), "1000".to_owned()],
                _ => vec!["x".to_owned()],
            };
            for value in values {
                let answer = admin
                    .get(&format!("/api/v1{path}?{name}={value}"))
                    .await
                    .assert(200);
                assert_described(&api, "get", path, &answer);
            }
        }
        if operation["get"].is_object()
            && !path.contains('{')
            && path != "/openapi.json"
            && path != "/causes"
            && path != "/status"
        {
            admin
                .get(&format!("/api/v1{path}?nothing=x"))
                .await
                .assert(400);
        }
    }
    // The period that was assumed is said.
    let listed = admin
        .get("/api/v1/events?type=organization.created")
        .await
        .assert(200)
        .json();
    assert!(listed["filter"]["since"].is_string(), "{listed}");
    let listed = admin
        .get("/api/v1/events?status=processed&organization=org_1")
        .await
        .assert(200)
        .json();
    assert_eq!(
        listed["filter"],
        json!({ "status": "processed", "organization": "org_1" })
    );
    assert_eq!(listed["items"][0]["event_id"], event_id(1));
}

/// R50: an action by the API is recorded with whoever did it.
#[tokio::test]
async fn the_actor_is_recorded() {
    let app = populated().await;
    let admin = TestAdmin::guarded(&app);
    let request = TestAdmin::request(Method::POST, "/api/v1/events/retry")
        .header("authorization", format!("Bearer {TOKEN}"));
    let body = json!({ "ids": [event_id(2), event_id(1)] });
    let done = admin
        .send(request, body.to_string())
        .await
        .assert(200)
        .json();
    assert_eq!(
        done,
        json!({ "count": 1, "left": [{ "event_id": event_id(1), "status": "processed" }] })
    );
    let request = TestAdmin::request(Method::GET, "/api/v1/actions?limit=1")
        .header("authorization", format!("Bearer {TOKEN}"));
    let actions = admin.send(request, "").await.assert(200).json();
    assert_eq!(actions["items"][0]["actor"], "token");
    assert_eq!(actions["items"][0]["count"], 1);
}

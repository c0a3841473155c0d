//! A WorkOS that keeps organizations in memory, remembers what it was asked, and can misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::{AUTHORIZATION, USER_AGENT};
use hyper::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

pub(crate) use super::answer::{Answer, Held};
use super::serving::serve;

/// How long a test waits for a request before it fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A fake WorkOS API on a port of its own; it is gone when this is dropped.
pub(crate) struct FakeWorkos {
    url: Url,
    state: Arc<FakeState>,
    _server: JoinSet<()>,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) body: String,
    pub(crate) authorization: Option<String>,
    pub(crate) user_agent: Option<String>,
}

#[derive(Default)]
struct FakeState {
    /// `external_id` by id.
    organizations: Mutex<BTreeMap<String, Option<String>>>,
    /// For the next requests, in order.
    next: Mutex<VecDeque<Answer>>,
    /// For every request about an organization.
    about: Mutex<BTreeMap<String, Answer>>,
    /// For every request that has no other.
    always: Mutex<Option<Answer>>,
    received: watch::Sender<Vec<Received>>,
}

impl FakeWorkos {
    /// Starts it.
    pub(crate) async fn start() -> Self {
        let state = Arc::new(FakeState::default());
        let router = Router::new()
            .fallback(handle)
            .with_state(Arc::clone(&state));
        let (address, server) = serve(router).await;
        Self {
            url: Url::parse(&format!("http://{address}")).unwrap(),
            state,
            _server: server,
        }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> Url {
        self.url.clone()
    }

    /// Adds an organization.
    pub(crate) fn add_organization(&self, id: &str, external_id: Option<&str>) {
        self.state
            .organizations
            .lock()
            .unwrap()
            .insert(id.to_owned(), external_id.map(str::to_owned));
    }

    /// What it holds for an organization.
    pub(crate) fn external_id(&self, id: &str) -> Option<String> {
        self.state.organizations.lock().unwrap()[id].clone()
    }

    /// Answers the next request so; may be called several times, for as many requests.
    pub(crate) fn answer_next(&self, answer: Answer) {
        self.state.next.lock().unwrap().push_back(answer);
    }

    /// Answers every request about an organization so.
    pub(crate) fn answer_about(&self, id: &str, answer: Answer) {
        let path = format!("/organizations/{id}");
        self.state.about.lock().unwrap().insert(path, answer);
    }

    /// Answers every request so.
    pub(crate) fn answer_all(&self, answer: Answer) {
        *self.state.always.lock().unwrap() = Some(answer);
    }

    /// Answers as WorkOS would again.
    pub(crate) fn recover(&self) {
        *self.state.always.lock().unwrap() = None;
        self.state.about.lock().unwrap().clear();
        self.state.next.lock().unwrap().clear();
    }

    /// Keeps the answer to the next request back.
    pub(crate) fn hold_next(&self) -> Held {
        let (held, answer) = Held::new();
        self.answer_next(answer);
        held
    }

    /// Every request so far.
    pub(crate) fn requests(&self) -> Vec<Received> {
        self.state.received.borrow().clone()
    }

    /// The methods of every request so far.
    pub(crate) fn methods(&self) -> Vec<String> {
        let requests = self.requests();
        requests.iter().map(|r| r.method.to_string()).collect()
    }

    /// Waits until it has received so many requests.
    pub(crate) async fn received(&self, count: usize) {
        let mut receiver = self.state.received.subscribe();
        tokio::time::timeout(PATIENCE, receiver.wait_for(|all| all.len() >= count))
            .await
            .unwrap_or_else(|_| panic!("{count} requests expected: {:#?}", self.requests()))
            .expect("the fake outlives its tests");
    }
}

async fn handle(State(state): State<Arc<FakeState>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let text = |headers: &HeaderMap, name| {
        let value = headers.get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    let received = Received {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(str::to_owned),
        body: String::from_utf8(body.to_vec()).unwrap(),
        authorization: text(&head.headers, AUTHORIZATION),
        user_agent: text(&head.headers, USER_AGENT),
    };
    // Chosen before the test can know of the request.
    let answer = state.next.lock().unwrap().pop_front();
    let answer = answer
        .or_else(|| state.about.lock().unwrap().get(&received.path).cloned())
        .or_else(|| state.always.lock().unwrap().clone());
    state.received.send_modify(|all| all.push(received.clone()));

    let by_order = match answer {
        Some(answer) => answer.given().await,
        None => None,
    };
    by_order.unwrap_or_else(|| state.answer(&received))
}

impl FakeState {
    /// Answers as WorkOS does, as far as it is known.
    fn answer(&self, request: &Received) -> Response {
        let mut organizations = self.organizations.lock().unwrap();
        if request.path == "/organizations" {
            let list = json!({"object": "list", "data": [], "list_metadata": {}});
            return Json(list).into_response();
        }
        let id = request.path.strip_prefix("/organizations/");
        let Some(id) = id.filter(|id| organizations.contains_key(*id)) else {
            let body = json!({"message": "Organization not found.", "code": "entity_not_found"});
            return (StatusCode::NOT_FOUND, Json(body)).into_response();
        };
        if request.method == Method::PUT {
            let update: Value = serde_json::from_str(&request.body).unwrap();
            let external_id = update["external_id"].as_str().map(str::to_owned);
            let taken = organizations
                .iter()
                .any(|(other, held)| other != id && held.is_some() && *held == external_id);
            if taken {
                let body = json!({
                    "message": "The external_id is used by another organization.",
                    "code": "external_id_already_used",
                });
                return (StatusCode::BAD_REQUEST, Json(body)).into_response();
            }
            organizations.insert(id.to_owned(), external_id);
        }
        Json(json!({
            "object": "organization",
            "id": id,
            "name": "Acme",
            "external_id": organizations[id],
            "metadata": {},
            "domains": [],
        }))
        .into_response()
    }
}

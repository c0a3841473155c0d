//! A WorkOS environment: organizations that are made, renamed and deleted, the events that belong to it, and the API
//! that shows both, with the habits of the real one. What it sends as webhooks the test delivers, or loses.

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use hyper::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use ulid::Ulid;
use url::Url;
use workos_sync::clock::Clock;
use workos_sync::workos::WorkosClient;

use super::answer::{Answer, Held};
use super::serving::serve;

/// An environment with an API on a port of its own; gone when dropped.
pub(crate) struct FakeEnvironment {
    url: Url,
    state: Arc<Mutex<Environment>>,
    _server: JoinSet<()>,
}

/// How the API is to behave.
#[derive(Debug, Clone)]
pub(crate) struct Habits {
    /// How long a new event isn't shown.
    pub(crate) hides_events_for: TimeDelta,
    /// How long events are kept.
    pub(crate) keeps_events_for: TimeDelta,
    /// A `range_start` from before that is refused; otherwise what is kept is shown.
    pub(crate) refuses_what_is_gone: bool,
    /// The list of types isn't looked at, as by the emulator.
    pub(crate) shows_every_type: bool,
    /// Whether answers have a `Date`, and which.
    pub(crate) date: Dates,
    /// How lists end.
    pub(crate) lists: Lists,
    /// Organizations that are known, but not in the list.
    pub(crate) unlisted: HashSet<String>,
    /// What the key may not read: the beginning of a path, and the status.
    pub(crate) refuses: Vec<(&'static str, u16)>,
}

/// The `Date` of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dates {
    Right,
    /// Later than the clock by so many seconds.
    Later(i64),
    Unreadable,
}

/// How lists end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lists {
    /// With a page that says so.
    End,
    /// No page but the first is shown.
    RefuseToGoOn,
    /// The last page leads back to the first.
    RunInCircles,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            hides_events_for: TimeDelta::seconds(5),
            keeps_events_for: TimeDelta::days(30),
            refuses_what_is_gone: false,
            shows_every_type: false,
            date: Dates::Right,
            lists: Lists::End,
            unlisted: HashSet::new(),
            refuses: Vec::new(),
        }
    }
}

struct Environment {
    clock: Arc<dyn Clock>,
    habits: Habits,
    organizations: Vec<Organization>,
    events: Vec<MadeEvent>,
    endpoints: Vec<Value>,
    /// The events that are still to be delivered.
    deliveries: Vec<String>,
    requests: Vec<String>,
    next: VecDeque<Answer>,
    /// For all requests that have no other.
    always: Option<Answer>,
    last: DateTime<Utc>,
    count: u128,
}

#[derive(Debug, Clone)]
struct Organization {
    id: String,
    name: String,
    external_id: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

struct MadeEvent {
    id: String,
    event_type: String,
    created_at: DateTime<Utc>,
    body: Value,
}

impl Organization {
    fn json(&self) -> Value {
        json!({
            "object": "organization",
            "id": self.id,
            "name": self.name,
            "external_id": self.external_id,
            "domains": [],
            "metadata": {},
            "allow_profiles_outside_organization": false,
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
        })
    }
}

impl FakeEnvironment {
    /// An empty one, whose time is the clock's.
    pub(crate) async fn start(clock: Arc<dyn Clock>) -> Self {
        let state = Arc::new(Mutex::new(Environment {
            clock,
            habits: Habits::default(),
            organizations: Vec::new(),
            events: Vec::new(),
            endpoints: Vec::new(),
            deliveries: Vec::new(),
            requests: Vec::new(),
            next: VecDeque::new(),
            always: None,
            last: DateTime::<Utc>::MIN_UTC,
            count: 0,
        }));
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

    fn state(&self) -> MutexGuard<'_, Environment> {
        self.state.lock().unwrap()
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// The names of all organizations, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let state = self.state();
        let mut names: Vec<_> = state
            .organizations
            .iter()
            .map(|found| found.name.clone())
            .collect();
        names.sort();
        names
    }

    /// A client of it, with a budget that no test feels.
    pub(crate) fn client(&self) -> WorkosClient {
        let key = SecretString::from("sk_test_the_key");
        WorkosClient::new(self.url.clone(), key)
            .unwrap()
            .limited_to(NonZeroU32::new(10_000).unwrap())
    }

    pub(crate) fn set_habits(&self, habits: Habits) {
        self.state().habits = habits;
    }

    /// Answers the next request so.
    pub(crate) fn answer_next(&self, answer: Answer) {
        self.state().next.push_back(answer);
    }

    /// Answers every request so from now on.
    pub(crate) fn answer_all(&self, answer: Option<Answer>) {
        self.state().always = answer;
    }

    /// Keeps the answer to the next request back.
    pub(crate) fn hold_next(&self) -> Held {
        let (held, answer) = Held::new();
        self.answer_next(answer);
        held
    }

    /// What it was asked so far: method, path and query of each.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// The same from now on.
    pub(crate) fn forget_requests(&self) {
        self.state().requests.clear();
    }

    /// Makes an organization; says its id.
    pub(crate) fn create(&self, name: &str) -> String {
        self.create_with(name, None)
    }

    /// Adds organizations that have the ids `own-0`, `own-1` and so on; says what WorkOS calls them.
    pub(crate) fn create_own(&self, count: usize) -> Vec<String> {
        (0..count)
            .map(|n| self.create_with(&format!("Org {n}"), Some(&format!("own-{n}"))))
            .collect()
    }

    pub(crate) fn create_with(&self, name: &str, external_id: Option<&str>) -> String {
        let mut state = self.state();
        let (at, n) = state.tick();
        let organization = Organization {
            id: format!("org_{}", ulid(at, n)),
            name: name.to_owned(),
            external_id: external_id.map(str::to_owned),
            created_at: at,
            updated_at: at,
        };
        let id = organization.id.clone();
        state.emit("organization.created", &organization.json());
        state.organizations.push(organization);
        id
    }

    /// Replaces the webhook endpoints, each as the API shows it.
    pub(crate) fn set_endpoints(&self, endpoints: impl IntoIterator<Item = Value>) {
        self.state().endpoints = endpoints.into_iter().collect();
    }

    /// Changes its name.
    pub(crate) fn rename(&self, id: &str, name: &str) {
        self.change(id, |organization| name.clone_into(&mut organization.name));
    }

    pub(crate) fn set_external_id(&self, id: &str, external_id: Option<&str>) {
        self.change(id, |organization| {
            organization.external_id = external_id.map(str::to_owned);
        });
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Organization)) {
        let mut state = self.state();
        let (at, _) = state.tick();
        let organization = state
            .organizations
            .iter_mut()
            .find(|organization| organization.id == id)
            .unwrap();
        change(organization);
        organization.updated_at = at;
        let json = organization.json();
        state.emit("organization.updated", &json);
    }

    pub(crate) fn delete(&self, id: &str) {
        let mut state = self.state();
        state.tick();
        let place = state
            .organizations
            .iter()
            .position(|organization| organization.id == id)
            .unwrap();
        let organization = state.organizations.remove(place);
        state.emit("organization.deleted", &organization.json());
    }

    /// An event of a type that isn't handled.
    pub(crate) fn emit(&self, event_type: &str) {
        let mut state = self.state();
        state.tick();
        state.emit(event_type, &json!({ "id": "other_1" }));
    }

    /// The bodies of the events that it hasn't delivered yet; the test delivers them, in any order, once, twice or
    /// never.
    pub(crate) fn take_deliveries(&self) -> Vec<String> {
        std::mem::take(&mut self.state().deliveries)
    }

    /// The ids of all events so far.
    pub(crate) fn event_ids(&self) -> Vec<String> {
        let state = self.state();
        state.events.iter().map(|event| event.id.clone()).collect()
    }
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn ulid(at: DateTime<Utc>, n: u128) -> Ulid {
    Ulid::from_parts(u64::try_from(at.timestamp_millis()).unwrap(), n)
}

impl Environment {
    /// No two things happen in one millisecond.
    fn tick(&mut self) -> (DateTime<Utc>, u128) {
        let next = self.last + TimeDelta::milliseconds(1);
        self.last = std::cmp::max(self.clock.now(), next);
        self.count += 1;
        (self.last, self.count)
    }

    fn emit(&mut self, event_type: &str, data: &Value) {
        let id = format!("event_{}", ulid(self.last, self.count));
        let body = json!({
            "object": "event",
            "id": id,
            "event": event_type,
            "data": data,
            "created_at": rfc3339(self.last),
            "context": {"new": true},
        });
        self.deliveries.push(body.to_string());
        self.events.push(MadeEvent {
            id,
            event_type: event_type.to_owned(),
            created_at: self.last,
            body,
        });
    }

    fn answer(&mut self, method: &Method, path: &str, query: &Query, body: &str) -> Response {
        let mut refuses = self.habits.refuses.iter();
        if let Some((_, status)) = refuses.find(|(prefix, _)| path.starts_with(prefix)) {
            return refusal(*status, json!({"message": "Refused"}));
        }
        match (method, path.strip_prefix("/organizations")) {
            (&Method::GET, Some("")) => self.list_organizations(query),
            (_, Some(id)) => self.organization(method, id.trim_start_matches('/'), body),
            _ if path == "/events" => self.list_events(query),
            _ if path == "/webhook_endpoints" => self.list_endpoints(query),
            _ => refusal(404, json!({"message": "Not Found"})),
        }
    }

    fn list_organizations(&self, query: &Query) -> Response {
        let is_listed = |found: &&Organization| !self.habits.unlisted.contains(&found.id);
        let mut all: Vec<_> = self.organizations.iter().filter(is_listed).collect();
        if query.get("order") != Some("asc") {
            all.reverse();
        }
        let start = match query.get("after") {
            None => 0,
            Some(_) if self.habits.lists == Lists::RefuseToGoOn => {
                return refusal(400, json!({"message": "Invalid cursor"}));
            }
            Some(after) => match all.iter().position(|found| found.id == after) {
                Some(place) if self.habits.lists == Lists::RunInCircles => (place + 1) % all.len(),
                Some(place) => place + 1,
                None => {
                    return refusal(400, json!({"message": "Invalid cursor", "code": "invalid"}));
                }
            },
        };
        let rest = &all[start..];
        let page: Vec<_> = rest.iter().take(query.limit()).collect();
        let is_last = page.len() == rest.len() && self.habits.lists != Lists::RunInCircles;
        let after = (!is_last).then(|| page[page.len() - 1].id.clone());
        let data: Vec<_> = page.iter().map(|found| found.json()).collect();
        Json(json!({"object": "list", "data": data, "list_metadata": {"before": null, "after": after}}))
            .into_response()
    }

    fn list_endpoints(&self, query: &Query) -> Response {
        let id = |endpoint: &Value| endpoint["id"].as_str().unwrap().to_owned();
        let start = query.get("after").map_or(0, |after| {
            let mut ids = self.endpoints.iter().map(id);
            ids.position(|id| id == after).unwrap() + 1
        });
        let rest = &self.endpoints[start..];
        let page: Vec<_> = rest.iter().take(query.limit()).collect();
        let after = (page.len() < rest.len()).then(|| id(page[page.len() - 1]));
        Json(json!({"object": "list", "data": page, "list_metadata": {"before": null, "after": after}}))
            .into_response()
    }

    fn list_events(&self, query: &Query) -> Response {
        let Some(types) = query.get("events") else {
            let errors = json!([{"code": "required", "field": "events"}]);
            return refusal(
                422,
                json!({"message": "Validation failed.", "errors": errors}),
            );
        };
        let time = |name| query.get(name).map(|text| text.parse().unwrap());
        let (start, end): (Option<DateTime<Utc>>, Option<DateTime<Utc>>) =
            (time("range_start"), time("range_end"));
        let now = self.clock.now();
        let kept_since = now - self.habits.keeps_events_for;
        let is_refused = match (query.get("after"), start) {
            (Some(_), Some(_)) => true,
            (Some(_), None) if self.habits.lists == Lists::RefuseToGoOn => true,
            (Some(after), None) => !self
                .events
                .iter()
                .any(|event| event.id == after && event.created_at >= kept_since),
            (None, Some(start)) => {
                end.unwrap_or(now) - start > TimeDelta::days(30)
                    || (self.habits.refuses_what_is_gone && start < kept_since)
            }
            (None, None) => false,
        };
        if is_refused {
            return refusal(400, json!({"message": "Invalid range or cursor"}));
        }
        let is_shown = |event: &MadeEvent| event.created_at <= now - self.habits.hides_events_for;
        let last = self.events.iter().rfind(|event| is_shown(event));
        // From the last one, the circle leads to the first.
        let after = query.get("after").filter(|after| {
            self.habits.lists != Lists::RunInCircles || last.is_none_or(|last| last.id != **after)
        });
        let visible: Vec<_> = self
            .events
            .iter()
            .filter(|event| event.created_at >= kept_since)
            .filter(|event| is_shown(event))
            .filter(|event| start.is_none_or(|start| event.created_at >= start))
            .filter(|event| end.is_none_or(|end| event.created_at <= end))
            .filter(|event| after.is_none_or(|after| *event.id > *after))
            .filter(|event| {
                self.habits.shows_every_type
                    || types.split(',').any(|kind| kind == event.event_type)
            })
            .collect();
        let page: Vec<_> = visible.iter().take(query.limit()).collect();
        let is_last = page.len() == visible.len() && self.habits.lists != Lists::RunInCircles;
        let after = (!is_last).then(|| page[page.len() - 1].id.clone());
        let data: Vec<_> = page.iter().map(|event| event.body.clone()).collect();
        Json(json!({"object": "list", "data": data, "list_metadata": {"after": after}}))
            .into_response()
    }

    fn organization(&mut self, method: &Method, id: &str, body: &str) -> Response {
        let Some(place) = self.organizations.iter().position(|found| found.id == id) else {
            let body = json!({"message": "Organization not found.", "code": "entity_not_found"});
            return refusal(404, body);
        };
        if method == Method::PUT {
            let update: Value = serde_json::from_str(body).unwrap();
            let external_id = update["external_id"].as_str().map(str::to_owned);
            if self
                .organizations
                .iter()
                .any(|found| found.id != id && found.external_id == external_id)
            {
                return refusal(
                    400,
                    json!({"message": "taken", "code": "external_id_already_used"}),
                );
            }
            let (at, _) = self.tick();
            self.organizations[place].external_id = external_id;
            self.organizations[place].updated_at = at;
            let json = self.organizations[place].json();
            self.emit("organization.updated", &json);
        }
        Json(self.organizations[place].json()).into_response()
    }
}

fn refusal(status: u16, body: Value) -> Response {
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

struct Query(Vec<(String, String)>);

impl Query {
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }

    fn limit(&self) -> usize {
        self.get("limit").map_or(10, |limit| limit.parse().unwrap())
    }
}

async fn handle(State(state): State<Arc<Mutex<Environment>>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let query = head.uri.query().unwrap_or_default();
    let query = url::form_urlencoded::parse(query.as_bytes());
    let query = Query(query.into_owned().collect());
    let next = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{} {}", head.method, head.uri));
        state.next.pop_front().or_else(|| state.always.clone())
    };
    let by_order = match next {
        Some(answer) => answer.given().await,
        None => None,
    };
    let mut state = state.lock().unwrap();
    let mut response =
        by_order.unwrap_or_else(|| state.answer(&head.method, head.uri.path(), &query, &body));
    let http_date = |at: DateTime<Utc>| at.to_rfc2822().replace("+0000", "GMT");
    let date = match state.habits.date {
        Dates::Right => http_date(state.clock.now()),
        Dates::Later(seconds) => http_date(state.clock.now() + TimeDelta::seconds(seconds)),
        Dates::Unreadable => "yesterday".to_owned(),
    };
    response.headers_mut().insert("date", date.parse().unwrap());
    response
}

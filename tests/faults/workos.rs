//! The WorkOS environment: what its organizations are, the events that it emits, and its API, which can fail in
//! chosen ways. It is the truth that the database is compared with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use chrono::{DateTime, SecondsFormat, SubsecRound, TimeDelta, Utc};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use ulid::Ulid;
use workos_sync::clock::{Clock, SystemClock};

use crate::retry;
use crate::torn::Torn;

/// How long an event isn't shown by the list of events.
const HIDDEN_FOR: TimeDelta = TimeDelta::milliseconds(200);

/// How the API is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Fine,
    /// Answers after so long.
    Slow(Duration),
    /// Doesn't answer until it is better, and then cuts the connection.
    Hanging,
    /// Answers 500, every other time after it has done what it was asked for.
    Failing,
    /// Answers 429, with so many seconds of `Retry-After`.
    Limiting(u64),
    /// Breaks off in the middle of the answer, after it has done what it was asked for.
    Resetting,
}

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Created,
    Updated,
    Deleted,
    /// Of a type that is not handled.
    Unhandled,
    /// An update whose name holds a NUL.
    Nul,
    /// An update without the id of its organization.
    Undecodable,
    /// An update with a name that the application refuses: see [`REFUSED`].
    Refused,
}

impl Kind {
    const fn event_type(self) -> &'static str {
        match self {
            Self::Created => "organization.created",
            Self::Deleted => "organization.deleted",
            Self::Unhandled => "organization_domain.verified",
            Self::Updated | Self::Nul | Self::Undecodable | Self::Refused => "organization.updated",
        }
    }
}

/// The beginning of names that a CHECK of the application refuses, and the name of the constraint.
pub(crate) const REFUSED: &str = "Refused";
pub(crate) const CONSTRAINT: &str = "organization_metadata_name_check";

/// An event, as it was emitted.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) workos_id: String,
    pub(crate) name: String,
    pub(crate) external_id: Option<String>,
    pub(crate) body: String,
    at: DateTime<Utc>,
}

/// Who gave an organization its `external_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Giver {
    /// Nobody: that is for the service to do.
    Nobody,
    /// The application, when it made the organization.
    Application,
    /// Somebody else, behind the back of its events: they say that it has none.
    Stranger,
}

/// An organization of the environment.
#[derive(Debug, Clone)]
pub(crate) struct Organization {
    pub(crate) name: String,
    pub(crate) external_id: Option<String>,
    /// Who gave it its `external_id`, if anybody did when it was made.
    pub(crate) giver: Giver,
    pub(crate) deleted: bool,
    /// The organization that was given its `external_id` after it was deleted.
    pub(crate) successor: Option<String>,
    /// Events of it were emitted again, because a database lost them after they were acknowledged.
    pub(crate) was_lost: bool,
    /// The number of the event that made it: the order of the list.
    made: usize,
    updated_at: DateTime<Utc>,
}

impl Organization {
    fn json(&self, workos_id: &str) -> Value {
        json!({
            "object": "organization",
            "id": workos_id,
            "name": self.name,
            "external_id": self.external_id,
            "domains": [],
            "metadata": {},
            "updated_at": rfc3339(self.updated_at),
        })
    }
}

#[derive(Debug)]
struct Truth {
    organizations: BTreeMap<String, Organization>,
    history: Vec<Arc<Event>>,
    violations: Vec<String>,
    requests: u64,
}

#[derive(Debug)]
struct Shared {
    truth: Mutex<Truth>,
    mood: watch::Sender<Mood>,
    emitted: mpsc::UnboundedSender<Arc<Event>>,
    /// Past every proxy.
    database: PgPool,
}

/// The environment and its API; gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Workos {
    pub(crate) url: String,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

impl Workos {
    /// Starts it; it emits its events into a channel.
    pub(crate) async fn start(
        database: PgPool,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Arc<Event>>)> {
        let (emitted, events) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            truth: Mutex::new(Truth {
                organizations: BTreeMap::new(),
                history: Vec::new(),
                violations: Vec::new(),
                requests: 0,
            }),
            mood: watch::Sender::new(Mood::Fine),
            emitted,
            database,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new()
            .fallback(handle)
            .with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        let this = Self {
            url,
            shared,
            _server: server,
        };
        Ok((this, events))
    }

    /// Changes how the API is.
    pub(crate) fn set(&self, mood: Mood) {
        self.shared.mood.send_replace(mood);
    }

    /// An organization is made.
    pub(crate) fn create(&self, workos_id: &str, name: &str, giver: Giver) {
        let external_id = match giver {
            Giver::Nobody => None,
            Giver::Application => Some(customer(workos_id)),
            Giver::Stranger => Some(format!("stranger-{workos_id}")),
        };
        let mut truth = self.shared.truth.lock().unwrap();
        self.shared
            .create(&mut truth, workos_id, name, giver, external_id);
    }

    /// A customer whose organization was deleted is back, with a new one.
    pub(crate) fn succeed(&self, predecessor: &str, workos_id: &str, name: &str) {
        let mut truth = self.shared.truth.lock().unwrap();
        let Some(predecessor) = truth.organizations.get_mut(predecessor) else {
            return;
        };
        predecessor.successor = Some(workos_id.to_owned());
        let external_id = predecessor.external_id.clone();
        let giver = Giver::Application;
        self.shared
            .create(&mut truth, workos_id, name, giver, external_id);
    }

    /// Something happens to an organization; nothing more once it is deleted.
    pub(crate) fn change(&self, kind: Kind, workos_id: &str, name: &str) {
        let mut truth = self.shared.truth.lock().unwrap();
        let Some(organization) = truth.organizations.get_mut(workos_id) else {
            return;
        };
        if organization.deleted {
            return;
        }
        match kind {
            Kind::Created | Kind::Unhandled | Kind::Undecodable => {}
            Kind::Updated => name.clone_into(&mut organization.name),
            // Only this one event has the odd name.
            Kind::Nul | Kind::Refused => {
                let odd = match kind {
                    Kind::Nul => format!("{name}\0"),
                    _ => format!("{REFUSED} {name}"),
                };
                let usual = std::mem::replace(&mut organization.name, odd);
                self.shared.emit(&mut truth, kind, workos_id);
                if let Some(organization) = truth.organizations.get_mut(workos_id) {
                    organization.name = usual;
                }
                return;
            }
            Kind::Deleted => organization.deleted = true,
        }
        self.shared.emit(&mut truth, kind, workos_id);
    }

    /// Emits an event once more.
    pub(crate) fn emit_again(&self, event: Arc<Event>) {
        let mut truth = self.shared.truth.lock().unwrap();
        if let Some(organization) = truth.organizations.get_mut(&event.workos_id) {
            organization.was_lost = true;
        }
        drop(truth);
        // Nobody listens any more at the end of a run.
        let _ = self.shared.emitted.send(event);
    }

    /// Forgets what the API was asked: what it was told of may be lost.
    pub(crate) fn forgive(&self) {
        self.shared.truth.lock().unwrap().violations.clear();
    }

    /// Everything that was emitted, in order.
    pub(crate) fn history(&self) -> Vec<Arc<Event>> {
        self.shared.truth.lock().unwrap().history.clone()
    }

    pub(crate) fn organization(&self, workos_id: &str) -> Option<Organization> {
        let truth = self.shared.truth.lock().unwrap();
        truth.organizations.get(workos_id).cloned()
    }

    pub(crate) fn organizations(&self) -> BTreeMap<String, Organization> {
        self.shared.truth.lock().unwrap().organizations.clone()
    }

    /// What the API was asked and shouldn't have been.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.shared.truth.lock().unwrap().violations.clone()
    }
}

/// The id of the row that the application makes for an organization.
pub(crate) fn customer(workos_id: &str) -> String {
    format!("customer-{workos_id}")
}

impl Shared {
    fn create(
        &self,
        truth: &mut Truth,
        workos_id: &str,
        name: &str,
        giver: Giver,
        external_id: Option<String>,
    ) {
        let organization = Organization {
            name: name.to_owned(),
            giver,
            external_id,
            deleted: false,
            successor: None,
            was_lost: false,
            made: truth.history.len(),
            updated_at: SystemClock.now(),
        };
        truth
            .organizations
            .insert(workos_id.to_owned(), organization);
        self.emit(truth, Kind::Created, workos_id);
    }

    fn emit(&self, truth: &mut Truth, kind: Kind, workos_id: &str) {
        let number = truth.history.len();
        // No two in one millisecond: the order of ids is the order of numbers.
        let next = truth
            .history
            .last()
            .map_or(DateTime::<Utc>::MIN_UTC, |last| {
                last.at + TimeDelta::milliseconds(1)
            });
        let at = std::cmp::max(SystemClock.now().trunc_subsecs(3), next);
        let Some(organization) = truth.organizations.get_mut(workos_id) else {
            return;
        };
        organization.updated_at = at;
        let external_id = organization
            .external_id
            .clone()
            .filter(|_| organization.giver != Giver::Stranger);
        let ms = u64::try_from(at.timestamp_millis()).unwrap_or(0);
        // What follows the time says nothing.
        let id = format!(
            "event_{}",
            Ulid::from_parts(ms, crate::scatter(number as u64))
        );
        let text = rfc3339(at);
        let event_type = kind.event_type();
        let mut data = json!({
            "object": "organization",
            "id": workos_id,
            "name": organization.name,
            "external_id": external_id,
            "domains": [],
            "metadata": {},
            "created_at": text,
            "updated_at": text,
        });
        if kind == Kind::Undecodable {
            data["name"] = json!({ "en": organization.name });
        }
        let body = json!({ "id": id, "event": event_type, "created_at": text, "data": data });
        let event = Arc::new(Event {
            id,
            kind,
            workos_id: workos_id.to_owned(),
            name: organization.name.clone(),
            external_id,
            body: body.to_string(),
            at,
        });
        truth.history.push(Arc::clone(&event));
        // Nobody listens any more at the end of a run.
        let _ = self.emitted.send(event);
    }

    /// Does what a request asks for, as WorkOS does.
    fn answer(&self, method: &Method, workos_id: &str, body: &str) -> Response {
        let mut truth = self.truth.lock().unwrap();
        let known = truth.organizations.get(workos_id);
        let Some(held) = known.filter(|organization| !organization.deleted) else {
            let body = json!({"message": "Organization not found.", "code": "entity_not_found"});
            return (StatusCode::NOT_FOUND, Json(body)).into_response();
        };
        let external_id = held.external_id.clone();
        if method == Method::PUT {
            let update: Value = serde_json::from_str(body).unwrap_or_default();
            let wanted = update["external_id"].as_str().map(str::to_owned);
            if wanted.is_none() || update.as_object().is_none_or(|keys| keys.len() != 1) {
                truth.violations.push(format!("PUT {workos_id}: {body}"));
            }
            if external_id.is_some() && external_id != wanted {
                truth.violations.push(format!(
                    "overwritten: {workos_id} had external_id {external_id:?}, then {wanted:?}"
                ));
            }
            let taken = truth.organizations.iter().any(|(other, organization)| {
                other != workos_id && wanted.is_some() && organization.external_id == wanted
            });
            if taken {
                let body = json!({"message": "Taken.", "code": "external_id_already_used"});
                return (StatusCode::BAD_REQUEST, Json(body)).into_response();
            }
            if external_id != wanted {
                if let Some(organization) = truth.organizations.get_mut(workos_id) {
                    organization.external_id = wanted;
                }
                // R17: the write comes back as an event.
                self.emit(&mut truth, Kind::Updated, workos_id);
            }
        }
        match truth.organizations.get(workos_id) {
            Some(organization) => Json(organization.json(workos_id)).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    }

    /// A page of the organizations that there are, the oldest first.
    fn list_organizations(&self, query: &BTreeMap<String, String>) -> Response {
        let truth = self.truth.lock().unwrap();
        let behind = query
            .get("after")
            .and_then(|after| truth.organizations.get(after))
            .map(|organization| organization.made);
        let mut rest: Vec<_> = truth
            .organizations
            .iter()
            .filter(|(_, organization)| !organization.deleted)
            .filter(|(_, organization)| behind.is_none_or(|behind| organization.made > behind))
            .collect();
        rest.sort_by_key(|(_, organization)| organization.made);
        let elements = rest
            .iter()
            .map(|(id, organization)| (id.as_str(), organization.json(id).to_string()));
        page(elements, rest.len(), query)
    }

    /// A page of the events of these types, the oldest first.
    fn list_events(&self, query: &BTreeMap<String, String>) -> Response {
        let truth = self.truth.lock().unwrap();
        let types = query.get("events").map_or("", String::as_str);
        let start = query
            .get("range_start")
            .and_then(|start| start.parse::<DateTime<Utc>>().ok());
        let after = query.get("after");
        let shown_until = SystemClock.now() - HIDDEN_FOR;
        let rest: Vec<_> = truth
            .history
            .iter()
            .filter(|event| {
                types
                    .split(',')
                    .any(|asked| asked == event.kind.event_type())
            })
            .filter(|event| start.is_none_or(|start| event.at >= start))
            .filter(|event| after.is_none_or(|after| event.id > *after))
            .filter(|event| event.at <= shown_until)
            .collect();
        let elements = rest
            .iter()
            .map(|event| (event.id.as_str(), event.body.clone()));
        page(elements, rest.len(), query)
    }

    /// R14: what WorkOS is told must be committed before.
    async fn check_committed(&self, workos_id: &str, body: &str) {
        let update: Value = serde_json::from_str(body).unwrap_or_default();
        let id = update["external_id"].as_str().unwrap_or_default();
        let committed: Result<bool> = retry(|| async {
            sqlx::query_scalar(
                "select exists (select from organization_metadata where id = $1 and workos_id = $2)",
            )
            .bind(id)
            .bind(workos_id)
            .fetch_one(&self.database)
            .await
        })
        .await;
        if !matches!(committed, Ok(true)) {
            let violation =
                format!("PUT {workos_id} {body} before its row was committed ({committed:?})");
            self.truth.lock().unwrap().violations.push(violation);
        }
    }
}

/// The first of the elements that are left, each with its id, as a list shows them.
fn page<'a>(
    elements: impl Iterator<Item = (&'a str, String)>,
    left: usize,
    query: &BTreeMap<String, String>,
) -> Response {
    let limit = query.get("limit").and_then(|limit| limit.parse().ok());
    let (ids, texts): (Vec<_>, Vec<_>) = elements.take(limit.unwrap_or(10)).unzip();
    let after = ids.last().filter(|_| ids.len() < left);
    let metadata = json!({ "after": after });
    let data = texts.join(",");
    let body = format!(r#"{{"object":"list","data":[{data}],"list_metadata":{metadata}}}"#);
    ([("content-type", "application/json")], body).into_response()
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 65_536).await.unwrap_or_default();
    let body = String::from_utf8_lossy(&body).into_owned();
    let path = head.uri.path();
    let workos_id = path.strip_prefix("/organizations/").unwrap_or_default();
    if head.method == Method::PUT {
        shared.check_committed(workos_id, &body).await;
    }
    let even = {
        let mut truth = shared.truth.lock().unwrap();
        truth.requests += 1;
        truth.requests.is_multiple_of(2)
    };
    let query = head.uri.query().unwrap_or_default();
    let query: BTreeMap<_, _> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let answer = || match path {
        "/organizations" => shared.list_organizations(&query),
        "/events" => shared.list_events(&query),
        _ => shared.answer(&head.method, workos_id, &body),
    };
    let mood = *shared.mood.borrow();
    match mood {
        Mood::Fine => answer(),
        Mood::Slow(delay) => {
            tokio::time::sleep(delay).await;
            answer()
        }
        Mood::Hanging => {
            let mut mood = shared.mood.subscribe();
            let _ = mood.wait_for(|mood| *mood != Mood::Hanging).await;
            Body::new(Torn::default()).into_response()
        }
        Mood::Failing => {
            if even {
                answer();
            }
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        Mood::Limiting(seconds) => (
            StatusCode::TOO_MANY_REQUESTS,
            [("retry-after", seconds.to_string())],
        )
            .into_response(),
        Mood::Resetting => {
            answer();
            Body::new(Torn::default()).into_response()
        }
    }
}

//! The page: HTML that is made here, and works without script.

mod causes;
mod changes;
mod events;
mod json;
mod layout;
mod organizations;
mod overview;
mod parts;
mod records;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use maud::{Markup, html};

pub(super) use layout::{failure, login};

use self::layout::{Page, Tab, live_heading};
use super::form::Parameters;
use super::questions::{self, id_of, read_events};
use super::security::{LOGIN, LOGOUT};
use super::{Admin, RECORDS};
use crate::heal::trust;
use crate::http::problem::Problem;
use crate::operate::{self, Filter, organization};

/// How many events the overview shows.
const LATEST: i64 = 10;

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/", get(overview))
        .route("/events", get(events))
        .route("/events/{id}", get(event))
        .route("/causes", get(causes))
        .route("/organizations", get(organizations))
        .route("/organizations/{id}", get(organization))
        .route("/runs", get(runs))
        .route("/actions", get(actions))
        .route("/retry", get(changes::ask_retry).post(changes::retry))
        .route("/discard", get(changes::ask_discard).post(changes::discard))
        .route("/pause", get(changes::ask_pause).post(changes::pause))
        .route("/resume", get(changes::ask_resume).post(changes::resume))
        .route(LOGIN, get(changes::ask_login).post(changes::login))
        .route(LOGOUT, post(changes::logout))
}

/// Answers with a page, or with one that says why not.
fn answer(admin: &Admin, tab: Tab, title: &str, content: Result<Markup, Problem>) -> Response {
    let content = match content {
        Ok(content) => content,
        Err(problem) => return failure(admin, &problem),
    };
    let page = Page {
        admin,
        now: admin.now(),
        title,
        tab: Some(tab),
    };
    page.show(&content).into_response()
}

/// Leads on, or shows a page that says why not.
fn led(admin: &Admin, led: Result<Response, Problem>) -> Response {
    led.unwrap_or_else(|problem| failure(admin, &problem))
}

/// Leads to another page of ours.
fn lead_to(path: &str) -> Response {
    (StatusCode::SEE_OTHER, [(LOCATION, path.to_owned())]).into_response()
}

async fn overview(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let content = async {
        let status = trust::status(admin.pool())
            .await
            .map_err(|error| questions::unanswered(&error))?;
        let causes = operate::events::causes(admin.pool()).await?;
        let latest = operate::Page {
            limit: LATEST,
            after: None,
        };
        let listed = operate::events::list(admin.pool(), &Filter::default(), &latest).await?;
        let table = admin.host().current();
        let conditions: Vec<_> = table.errors().map(ToString::to_string).collect();
        let overview = overview::Overview {
            status: &status,
            conditions: &conditions,
            causes: &causes,
            events: &listed,
            may_change: admin.may_change(),
            now: admin.now(),
        };
        Ok(html! { (changes::notice(query.as_deref())) (overview.show()) })
    };
    answer(&admin, Tab::Overview, "Overview", content.await)
}

async fn events(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let notice = changes::notice(query.as_deref());
    let parameters = Parameters::filled(query.unwrap_or_default().as_bytes());
    let parameters = parameters.without(&changes::NOTICE);
    let content = async {
        let (filter, page) = read_events(&parameters, admin.now())?;
        let listed = operate::events::list(admin.pool(), &filter, &page).await?;
        let list = events::List {
            filter: &filter,
            parameters: &parameters,
            listed: &listed,
            may_change: admin.may_change(),
            now: admin.now(),
        };
        Ok(html! { (notice) (list.show()) })
    };
    answer(&admin, Tab::Events, "Events", content.await)
}

async fn event(
    State(admin): State<Admin>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Response {
    let parameters = Parameters::parse(query.as_deref().unwrap_or_default().as_bytes());
    let is_payload_wanted = parameters.get("payload") == Some("yes");
    let content = async {
        let id = id_of(path)?;
        let event = operate::events::show(admin.pool(), &id).await?;
        let event = event.ok_or_else(|| questions::no_event(&id))?;
        let payload = if is_payload_wanted {
            questions::payload(&admin, &id).await?
        } else {
            None
        };
        let one = events::One {
            event: &event,
            payload: payload.as_deref(),
            may_change: admin.may_change(),
            now: admin.now(),
        };
        Ok(html! { (changes::notice(query.as_deref())) (one.show()) })
    };
    answer(&admin, Tab::Events, "Event", content.await)
}

async fn causes(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let content = async {
        let causes = operate::events::causes(admin.pool()).await?;
        Ok(html! {
            (changes::notice(query.as_deref()))
            (live_heading(&html! { h1 { "What fails, by cause" } }))
            div #causes data-live { (causes::table(&causes, admin.may_change(), "/causes", admin.now())) }
        })
    };
    answer(&admin, Tab::Causes, "Causes", content.await)
}

async fn organizations(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let parameters = Parameters::parse(query.unwrap_or_default().as_bytes());
    match parameters.get("id").map(str::trim) {
        None | Some("") => {}
        Some(id) => return lead_to(&events::organization_address(id)),
    }
    answer(
        &admin,
        Tab::Organizations,
        "Organizations",
        Ok(organizations::ask()),
    )
}

async fn organization(
    State(admin): State<Admin>,
    path: Result<Path<String>, PathRejection>,
) -> Response {
    let content = async {
        let id = id_of(path)?;
        let found = organization::find(admin.pool(), admin.host(), &id).await?;
        let found = found.ok_or_else(|| questions::no_organization(&id))?;
        Ok(organizations::one(&found, admin.now()))
    };
    answer(&admin, Tab::Organizations, "Organization", content.await)
}

async fn runs(State(admin): State<Admin>) -> Response {
    let content = async {
        let runs = operate::records::runs(admin.pool(), RECORDS).await?;
        Ok(html! {
            (live_heading(&html! { h1 { "Runs of backfill, reconcile and catch-up" } }))
            div #runs .box data-live { (records::runs(&runs, admin.now())) }
        })
    };
    answer(&admin, Tab::Runs, "Runs", content.await)
}

async fn actions(State(admin): State<Admin>) -> Response {
    let content = async {
        let actions = operate::records::actions(admin.pool(), RECORDS).await?;
        Ok(html! {
            (live_heading(&html! { h1 { "Actions of operators, here and at the command line" } }))
            div #actions .box data-live { (records::actions(&actions, admin.now())) }
        })
    };
    answer(&admin, Tab::Actions, "Actions", content.await)
}

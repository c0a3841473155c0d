//! The admin API, as `openapi.json` describes it.

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::form::{Parameters, body};
use super::questions::{self, id_of, pause_length, read_events, unusable};
use super::{Admin, RECORDS};
use crate::heal::trust::{self, Status};
use crate::http::problem::Problem;
use crate::operate::events::{self, EventDetail};
use crate::operate::organization::{self, OrganizationDetail};
use crate::operate::pausing;
use crate::operate::{
    Filter, FilterTexts, Listed, Page, Pause, Progress, Selection, Verb, bulk, records,
};

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/events", get(list))
        .route("/events/{id}", get(show))
        .route("/events/{id}/payload", get(payload))
        .route("/events/retry", post(retry))
        .route("/events/discard", post(discard))
        .route("/causes", get(causes))
        .route("/organizations/{id}", get(organization))
        .route("/status", get(status))
        .route("/runs", get(runs))
        .route("/actions", get(actions))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
}

type Id = Result<Path<String>, PathRejection>;

async fn openapi() -> Response {
    let json = [(CONTENT_TYPE, "application/json")];
    (json, include_str!("openapi.json")).into_response()
}

/// A part of a list, and the filter that it was selected by: with the period that was assumed, if none was given.
#[derive(Serialize)]
struct Selected {
    filter: Filter,
    #[serde(flatten)]
    listed: Listed,
}

async fn list(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<Selected>, Problem> {
    let parameters = Parameters::parse(query.unwrap_or_default().as_bytes());
    let (filter, page) = read_events(&parameters, admin.now())?;
    let listed = events::list(admin.pool(), &filter, &page).await?;
    Ok(Json(Selected { filter, listed }))
}

async fn show(State(admin): State<Admin>, id: Id) -> Result<Json<EventDetail>, Problem> {
    let id = id_of(id)?;
    let event = events::show(admin.pool(), &id).await?;
    event.map(Json).ok_or_else(|| questions::no_event(&id))
}

async fn payload(State(admin): State<Admin>, id: Id) -> Result<Response, Problem> {
    let id = id_of(id)?;
    let payload = questions::payload(&admin, &id).await?;
    let payload = payload.ok_or_else(|| questions::no_event(&id))?;
    let json = [(CONTENT_TYPE, "application/json")];
    Ok((json, payload).into_response())
}

/// A list that has no next part.
#[derive(Serialize)]
struct All<T> {
    items: Vec<T>,
}

async fn causes(State(admin): State<Admin>) -> Result<Json<All<events::CauseSummary>>, Problem> {
    let items = events::causes(admin.pool()).await?;
    Ok(Json(All { items }))
}

async fn organization(
    State(admin): State<Admin>,
    id: Id,
) -> Result<Json<OrganizationDetail>, Problem> {
    let id = id_of(id)?;
    let found = organization::find(admin.pool(), admin.host(), &id).await?;
    found
        .map(Json)
        .ok_or_else(|| questions::no_organization(&id))
}

async fn status(State(admin): State<Admin>) -> Result<Json<Status>, Problem> {
    let status = trust::status(admin.pool()).await;
    status
        .map(Json)
        .map_err(|error| questions::unanswered(&error))
}

async fn runs(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<All<records::RunSummary>>, Problem> {
    let items = records::runs(admin.pool(), limit(query)?).await?;
    Ok(Json(All { items }))
}

async fn actions(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<All<records::Action>>, Problem> {
    let items = records::actions(admin.pool(), limit(query)?).await?;
    Ok(Json(All { items }))
}

/// Reads how many of the latest are asked for: the only parameter there is.
fn limit(query: Option<String>) -> Result<i64, Problem> {
    let parameters = Parameters::parse(query.unwrap_or_default().as_bytes());
    if let Some((name, _)) = parameters.iter().find(|(name, _)| *name != "limit") {
        return Err(unusable(format!("{name}: there is no such parameter")));
    }
    let Some(limit) = parameters.get("limit") else {
        return Ok(RECORDS);
    };
    Ok(Page::read(Some(limit), None)?.limit)
}

/// Which events are to be changed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    #[serde(default)]
    ids: Vec<String>,
    #[serde(default)]
    filter: FilterTexts,
    reason: Option<String>,
}

async fn retry(State(admin): State<Admin>, body: Body) -> Result<Json<Progress>, Problem> {
    change(&admin, body, Verb::Retry).await
}

async fn discard(State(admin): State<Admin>, body: Body) -> Result<Json<Progress>, Problem> {
    change(&admin, body, Verb::Discard).await
}

async fn change(admin: &Admin, body: Body, verb: Verb) -> Result<Json<Progress>, Problem> {
    let Change {
        ids,
        filter,
        reason,
    } = read(body).await?;
    if ids.iter().any(|id| id.contains('\0')) {
        return Err(unusable("ids: one contains a NUL character"));
    }
    let selection = Selection::of(ids, filter.read(admin.now())?)?;
    let reason = without_nul(reason)?;
    let bulk = bulk::begin(
        admin.pool(),
        verb,
        selection,
        reason.as_deref(),
        &admin.actor(),
    )
    .await?;
    Ok(Json(bulk.finish(|_| {}).await?))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PauseWish {
    r#for: Option<String>,
    reason: Option<String>,
}

async fn pause(State(admin): State<Admin>, body: Body) -> Result<Json<Pause>, Problem> {
    let wish: PauseWish = read(body).await?;
    let length = pause_length(wish.r#for.as_deref())?;
    let reason = without_nul(wish.reason)?;
    let pause = pausing::pause(admin.pool(), length, reason.as_deref(), &admin.actor()).await?;
    Ok(Json(pause))
}

/// Answers the pause that was ended, or that there was none.
async fn resume(State(admin): State<Admin>) -> Result<Json<serde_json::Value>, Problem> {
    let ended = pausing::resume(admin.pool(), &admin.actor()).await?;
    Ok(Json(json!({ "ended": ended })))
}

fn without_nul(reason: Option<String>) -> Result<Option<String>, Problem> {
    match reason {
        Some(reason) if reason.contains('\0') => Err(unusable("reason: contains a NUL character")),
        reason => Ok(reason),
    }
}

/// Reads a body of JSON; an empty one says nothing.
async fn read<T: for<'a> Deserialize<'a>>(body: Body) -> Result<T, Problem> {
    let bytes = self::body(body).await?;
    let bytes = if bytes.trim_ascii().is_empty() {
        b"{}"
    } else {
        &*bytes
    };
    serde_json::from_slice(bytes).map_err(|error| unusable(format!("the body: {error}")))
}

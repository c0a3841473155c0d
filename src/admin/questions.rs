//! What the API and the page have in common: how parameters are read, and how errors are told.

use std::time::Duration;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::StatusCode;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};
use tracing::{error, info};

use super::Admin;
use super::form::Parameters;
use crate::http::problem::Problem;
use crate::operate::filter::parse_length;
use crate::operate::pausing::DEFAULT_LENGTH;
use crate::operate::{Filter, FilterError, FilterTexts, OperateError, Page, events};
use crate::postgres::error::describe;

/// When to ask again for what the database didn't answer.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);

/// Reads which events are meant, and which part of the list.
pub(super) fn read_events(
    parameters: &Parameters,
    now: DateTime<Utc>,
) -> Result<(Filter, Page), Problem> {
    let filter = read_filter(&parameters.without(&["limit", "after"]), now)?;
    refuse_nul(parameters)?;
    let after = parameters.get("after").map(str::to_owned);
    Ok((filter, Page::read(parameters.get("limit"), after)?))
}

/// Reads which events are meant. A parameter that doesn't exist, or is there twice, is refused.
pub(super) fn read_filter(parameters: &Parameters, now: DateTime<Utc>) -> Result<Filter, Problem> {
    let mut object = Map::new();
    for (name, value) in parameters.iter() {
        if object.insert(name.to_owned(), Value::from(value)).is_some() {
            return Err(unusable(format!("{name}: given twice")));
        }
    }
    let texts: FilterTexts =
        serde_json::from_value(object.into()).map_err(|error| unusable(error.to_string()))?;
    Ok(texts.read(now)?)
}

/// The id in a path. One that can't be stored is unknown.
pub(super) fn id_of(path: Result<Path<String>, PathRejection>) -> Result<String, Problem> {
    match path {
        Ok(Path(id)) if !id.contains('\0') => Ok(id),
        _ => Err(Problem::not_found()),
    }
}

/// Refuses what can't be stored.
pub(super) fn refuse_nul(parameters: &Parameters) -> Result<(), Problem> {
    match parameters.iter().find(|(_, value)| value.contains('\0')) {
        Some((name, _)) => Err(unusable(format!("{name}: contains a NUL character"))),
        None => Ok(()),
    }
}

/// Reads how long a pause is to be.
pub(super) fn pause_length(text: Option<&str>) -> Result<TimeDelta, Problem> {
    text.map_or(Ok(DEFAULT_LENGTH), |text| {
        parse_length(text).map_err(|problem| unusable(format!("for: {problem}")))
    })
}

/// The body of an event, and a line in the log that says who looked at it.
pub(super) async fn payload(admin: &Admin, id: &str) -> Result<Option<String>, Problem> {
    let payload = events::payload(admin.pool(), id).await?;
    if payload.is_some() {
        info!(event.id = id, actor = %admin.actor(), "an operator looks at the payload of event {id}");
    }
    Ok(payload)
}

/// 400: a parameter can't be used.
pub(super) fn unusable(detail: impl Into<String>) -> Problem {
    let detail = detail.into();
    Problem::new(StatusCode::BAD_REQUEST, "unusable_parameter", detail.into())
}

/// 404
pub(super) fn no_event(id: &str) -> Problem {
    let detail = format!("there is no event {id}");
    Problem::new(StatusCode::NOT_FOUND, "unknown_event", detail.into())
}

/// 404
pub(super) fn no_organization(id: &str) -> Problem {
    let detail = format!("neither the table nor an event has an organization {id}");
    Problem::new(StatusCode::NOT_FOUND, "unknown_organization", detail.into())
}

/// 503: the database doesn't answer, or takes longer than an operator's question may.
pub(super) fn unanswered(error: &sqlx::Error) -> Problem {
    // query_canceled: by the limit of the statement.
    let is_slow = error
        .as_database_error()
        .is_some_and(|error| error.code().as_deref() == Some("57014"));
    if is_slow {
        return Problem::unavailable(
            "too_slow",
            "the database takes too long for this: narrow the filter, or use the command line",
            COME_BACK_AFTER,
        );
    }
    let reason = describe(error);
    error!(reason, "an operator's question is not answered: {reason}");
    Problem::unavailable(
        "database_unavailable",
        "the database does not answer, or refuses; the log of the server says why",
        COME_BACK_AFTER,
    )
}

impl From<FilterError> for Problem {
    fn from(error: FilterError) -> Self {
        unusable(error.to_string())
    }
}

impl From<OperateError> for Problem {
    fn from(error: OperateError) -> Self {
        match error {
            OperateError::Database(error) => unanswered(&error),
            OperateError::StillApplying { .. } => {
                error!(%error, "{error}");
                Self::unavailable(
                    "still_applying",
                    "the pause holds, but what was begun before it has not ended yet",
                    COME_BACK_AFTER,
                )
            }
            error => unusable(error.to_string()),
        }
    }
}

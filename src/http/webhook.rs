//! `POST /webhooks/workos`: verify, record, answer (R23, R29).

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_ENCODING;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::problem::Problem;
use super::{App, Inner, REQUEST_ID};
use crate::inbox::{EventName, NewEvent, Receipt, RecordError, Recorded, Source};
use crate::signature;

/// How long the body may take.
const BODY_TIMEOUT: Duration = Duration::from_millis(2_500);

/// When the sender is answered at the latest, whatever the database does. Senders give up: the official
/// emulator after 5 s (R23).
const ANSWER_TIMEOUT: Duration = Duration::from_millis(3_500);

/// The longest wait for an outcome that is granted.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a delivery is answered.
#[derive(Debug, Serialize)]
struct Answer {
    event_id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What else the sender should know.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Receives one delivery.
///
/// # Errors
/// The delivery is refused, or its event could not be made durable.
pub(super) async fn receive(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let app = &*app.inner;
    let result = accept(app, &headers, body).await;
    match &result {
        Ok((recorded, _)) => app.metrics.delivery(recorded.as_str()),
        Err(problem) => app.metrics.delivery(problem.code()),
    }
    result.map(|(_, response)| response)
}

async fn accept(
    app: &Inner,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Recorded, Response), Problem> {
    let started = Instant::now();
    let answer_by = started + ANSWER_TIMEOUT;
    let event = verified(app, headers, body, started + BODY_TIMEOUT, answer_by).await?;
    let wait = preferred_wait(headers);
    let watch = wait.map(|wait| (app.inbox.watch(event.id().clone()), wait));
    let name = event.name();
    let Receipt { recorded, detail } = record(app, event, &name, answer_by).await?;

    let mut answer = Answer {
        event_id: name.id,
        status: recorded.as_str(),
        outcome: None,
        error: None,
        detail,
    };
    if let Some((watch, wait)) = watch.filter(|_| recorded == Recorded::Accepted) {
        // Apart, for it is large and rare: a request's future is allocated, and copied, as a whole.
        let ended = Box::pin(watch.outcome(Instant::now() + wait)).await;
        if let Some(ended) = ended {
            answer.status = ended.status.as_str();
            answer.outcome = ended.outcome.map(crate::entities::Outcome::as_str);
            answer.error = ended.error;
        }
    }
    let mut response = Json(answer).into_response();
    if let Some(wait) = wait {
        let applied = format!("wait={}", wait.as_secs());
        let applied = applied.parse().expect("ASCII is a header value");
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    Ok((recorded, response))
}

/// Reads a delivery, and believes it if its signature is right.
async fn verified(
    app: &Inner,
    headers: &HeaderMap,
    body: Body,
    complete_by: Instant,
    answer_by: Instant,
) -> Result<NewEvent, Problem> {
    if is_encoded(headers) {
        return Err(Problem::content_encoding());
    }
    let (body, permit) = app.bodies.read(body, complete_by, answer_by).await?;

    let header = headers.get_all(signature::HEADER);
    let header = header.iter().map(HeaderValue::as_bytes);
    let now = app.clock.now();
    let position =
        signature::verify(header, &body, &app.secrets, app.tolerance, now).map_err(|error| {
            warn!(reason = %error, "a delivery is refused: {error}");
            error
        })?;
    app.metrics.secret_used(position);
    let event = app
        .inbox
        .read(body, Some(permit), Source::Webhook)
        .map_err(|error| {
            warn!(reason = %error, "a signed delivery is no event: {error}");
            error
        })?;
    Ok(event.brought_by(request_id(headers)))
}

/// Makes an event durable.
async fn record(
    app: &Inner,
    event: NewEvent,
    name: &EventName,
    answer_by: Instant,
) -> Result<Receipt, Problem> {
    let EventName {
        id,
        event_type,
        organization,
    } = name;
    let receipt = match timeout_at(answer_by, app.inbox.record(event)).await {
        Ok(Ok(receipt)) => receipt,
        Ok(Err(RecordError::Unstorable(reason))) => {
            warn!(
                event.id = id,
                event.r#type = event_type,
                workos.organization_id = organization,
                reason,
                "{event_type} {id} can't be stored: {reason}",
            );
            return Err(Problem::unstorable());
        }
        Ok(Err(RecordError::Unavailable { reason })) => {
            app.inbox.not_durable(name, &reason);
            return Err(Problem::not_durable());
        }
        Err(_elapsed) => {
            let reason = "the database didn't answer in time";
            app.inbox.not_durable(name, reason);
            return Err(Problem::not_durable());
        }
    };
    let answer = receipt.recorded.as_str();
    debug!(
        event.id = id,
        event.r#type = event_type,
        workos.organization_id = organization,
        answer,
        "{event_type} {id}: {answer}",
    );
    if let Some(detail) = &receipt.detail {
        warn!(
            event.id = id,
            event.r#type = event_type,
            workos.organization_id = organization,
            "a delivery is taken for a duplicate: {detail}",
        );
    }
    Ok(receipt)
}

/// The id of the request, which it has been given if it came without.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    Some(id.to_owned())
}

/// Whether the body is not as it was signed (RFC 9110, section 8.4): nothing here would decode it.
fn is_encoded(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(CONTENT_ENCODING);
    encodings.iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|coding| {
            let coding = coding.trim_ascii();
            !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")
        })
    })
}

/// How long the sender wants to wait for the outcome: `Prefer: wait=N`
/// (<https://www.rfc-editor.org/rfc/rfc7240#section-4.3>). What can't be read is ignored, as section 2 wants.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|preference| preference.split(';').next()?.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, value)| value.trim().trim_matches('"').parse().ok())
        .map(|seconds| std::cmp::min(Duration::from_secs(seconds), LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7240: several preferences, in one header or more, in any case.
    #[test]
    fn the_wait_preference_is_found_among_others() {
        let wait = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(PREFER, value.parse().unwrap());
            }
            preferred_wait(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(wait(&["wait=10"]), Some(10));
        assert_eq!(wait(&["respond-async, Wait = \"3\"; x=y"]), Some(3));
        assert_eq!(wait(&["return=minimal", "wait=2"]), Some(2));
        assert_eq!(wait(&["wait=99999999999"]), Some(60));
        for unreadable in ["wait", "wait=-1", "wait=soon", "await=3", ""] {
            assert_eq!(wait(&[unreadable]), None, "{unreadable}");
        }
    }
}

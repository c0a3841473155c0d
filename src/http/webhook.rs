//! `POST /webhooks/workos`: verify, record, answer (R23, R29).

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::Instant;
use tracing::{error, warn};

use super::body::read_body;
use super::problem::Problem;
use super::{App, Inner};
use crate::event::Event;
use crate::inbox::{Ended, RecordError, Recorded, Source};
use crate::signature;

/// How long the body may take.
const BODY_TIMEOUT: Duration = Duration::from_millis(2_500);

/// When the sender is answered at the latest, whatever the database does. Senders give up: the official
/// emulator after 5 s (R23).
const ANSWER_TIMEOUT: Duration = Duration::from_millis(3_500);

/// When a sender whose event could not be made durable should come back.
const RETRY_AFTER: Duration = Duration::from_secs(5);

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

    // What bodies take in memory is bounded: so many are read at once, the others wait for their turn.
    let permit = tokio::time::timeout_at(answer_by, app.bodies.acquire())
        .await
        .map_err(|_elapsed| {
            Problem::unavailable("busy", "too many deliveries at once", RETRY_AFTER)
        })?;
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse().ok());
    let body = read_body(body, length, app.max_body_bytes, started + BODY_TIMEOUT).await?;

    let header = headers.get(signature::HEADER).map(HeaderValue::as_bytes);
    signature::verify(header, &body, &app.secrets, app.tolerance, app.clock.now()).map_err(
        |error| {
            warn!(reason = %error, "a delivery is refused: {error}");
            error
        },
    )?;
    let event = Event::parse(&body).map_err(|error| {
        warn!(reason = %error, "a signed delivery is no event: {error}");
        error
    })?;

    let wait = preferred_wait(headers);
    let watch = wait.map(|wait| (app.inbox.watch(event.id.clone()), wait));
    let recorded = tokio::time::timeout_at(answer_by, app.inbox.record(&event, Source::Webhook))
        .await
        .map_err(|_elapsed| {
            error!(event.id = %event.id, "event {} could not be made durable in time", event.id);
            not_durable()
        })?
        .map_err(|error| match error {
            RecordError::Unstorable(reason) => {
                warn!(event.id = %event.id, reason, "event {} can't be stored: {reason}", event.id);
                Problem::unstorable()
            }
            RecordError::Unavailable { .. } => {
                error!(event.id = %event.id, %error, "event {}: {error}", event.id);
                not_durable()
            }
        })?;

    // Whoever waits for an outcome is in nobody's way.
    drop(permit);

    let ended = match watch {
        Some((watch, wait)) if recorded == Recorded::Accepted => {
            watch.outcome(Instant::now() + wait).await
        }
        _ => None,
    };
    let mut response = Json(answer(event.id.to_string(), recorded, ended)).into_response();
    if let Some(wait) = wait {
        let applied = format!("wait={}", wait.as_secs());
        let applied = applied.parse().expect("ASCII is a header value");
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    Ok((recorded, response))
}

fn answer(event_id: String, recorded: Recorded, ended: Option<Ended>) -> Answer {
    match ended {
        None => Answer {
            event_id,
            status: recorded.as_str(),
            outcome: None,
            error: None,
        },
        Some(ended) => Answer {
            event_id,
            status: ended.status.as_str(),
            outcome: ended.outcome.map(crate::sync::Outcome::as_str),
            error: ended.error,
        },
    }
}

fn not_durable() -> Problem {
    Problem::unavailable(
        "not_durable",
        "the event could not be made durable; deliver it again",
        RETRY_AFTER,
    )
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

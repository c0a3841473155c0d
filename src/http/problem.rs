//! The one place where an error becomes an answer: `application/problem+json` (R30,
//! <https://www.rfc-editor.org/rfc/rfc9457>).
//!
//! `type` is always `about:blank`, so `title` is the status's own phrase (section 4.2.1 of the RFC); what a
//! program tells apart is in `code`, what a person reads in `detail`.
//!
//! Requests that are no HTTP never get here: hyper answers those itself, with a bare status and no body (see
//! [`super::listener`]).

use std::borrow::Cow;
use std::time::Duration;

use axum::http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::event::EnvelopeError;
use crate::signature::SignatureError;

/// When a sender whose event could not be made durable should come back.
const COME_BACK_AFTER: Duration = Duration::from_secs(5);

/// An error as the sender is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    status: StatusCode,
    /// What a program tells apart; never changes once released.
    code: &'static str,
    /// What a person reads. Static in every 5xx: what the database says goes to the log, never to the sender.
    detail: Cow<'static, str>,
    /// By how much the signature's time differs from ours.
    skew_seconds: Option<f64>,
    retry_after: Option<Duration>,
    /// Of a 401: how to be let in (RFC 9110, section 11.6.1).
    challenge: Option<&'static str>,
    /// The rest of the body is not going to be read, so this connection can't carry another request.
    closes: bool,
}

impl Problem {
    /// The codes that a delivery can be answered with.
    pub(super) const DELIVERY_CODES: [&str; 14] = [
        "body_incomplete",
        "body_too_large",
        "body_too_slow",
        "busy",
        "content_encoding",
        "not_an_event",
        "not_durable",
        "not_found",
        "signature_in_future",
        "signature_malformed",
        "signature_mismatch",
        "signature_missing",
        "signature_too_old",
        "unstorable",
    ];

    /// An answer of this status, with no more to it than these.
    #[must_use]
    pub const fn new(status: StatusCode, code: &'static str, detail: Cow<'static, str>) -> Self {
        Self {
            status,
            code,
            detail,
            skew_seconds: None,
            retry_after: None,
            challenge: None,
            closes: false,
        }
    }

    const fn fixed(status: StatusCode, code: &'static str, detail: &'static str) -> Self {
        Self::new(status, code, Cow::Borrowed(detail))
    }

    const fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// 400: the body broke off, or its chunks are malformed.
    #[must_use]
    pub const fn body_incomplete() -> Self {
        Self::fixed(
            StatusCode::BAD_REQUEST,
            "body_incomplete",
            "the body broke off, or its chunks are malformed",
        )
        .closing()
    }

    /// 400: Postgres can't store this body, now or ever; delivered again, it would be refused again.
    #[must_use]
    pub const fn unstorable() -> Self {
        Self::fixed(
            StatusCode::BAD_REQUEST,
            "unstorable",
            "the body is no JSON that Postgres can store",
        )
    }

    /// 401: no token, or a wrong one.
    #[must_use]
    pub const fn unauthorized() -> Self {
        let mut problem = Self::fixed(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "the Authorization header must be `Bearer` and the value of ADMIN_TOKEN",
        );
        problem.challenge = Some("Bearer realm=\"workos-sync\"");
        problem
    }

    /// 404.
    #[must_use]
    pub const fn not_found() -> Self {
        Self::fixed(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is nothing at this path",
        )
    }

    /// 405. The `Allow` header is added by axum's router, which knows the route's methods.
    #[must_use]
    pub const fn method_not_allowed() -> Self {
        Self::fixed(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this path does not take this method; the Allow header names those it takes",
        )
    }

    /// 408: the body did not come in time. Says so and closes, as RFC 9110, section 15.5.9, wants it.
    #[must_use]
    pub const fn body_too_slow() -> Self {
        Self::fixed(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            "the body did not arrive in time",
        )
        .closing()
    }

    /// 413: the body is longer than `limit` bytes.
    #[must_use]
    pub fn body_too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            Cow::Owned(format!("the body is longer than {limit} bytes")),
        )
        .closing()
    }

    /// 415: the body has a `Content-Encoding`, and is left unread.
    #[must_use]
    pub const fn content_encoding() -> Self {
        Self::fixed(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_encoding",
            "the body has a Content-Encoding; send it as it was signed",
        )
        .closing()
    }

    /// 500: a bug. Tells nothing; the log has it.
    #[must_use]
    pub const fn internal() -> Self {
        Self::fixed(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "something went wrong here; the log of the server says what",
        )
    }

    /// 503: come again after `retry_after`, which is told in whole seconds, rounded up.
    #[must_use]
    pub const fn unavailable(
        code: &'static str,
        detail: &'static str,
        retry_after: Duration,
    ) -> Self {
        let mut problem = Self::fixed(StatusCode::SERVICE_UNAVAILABLE, code, detail);
        problem.retry_after = Some(retry_after);
        problem
    }

    /// The same, with more to read.
    pub(super) fn with_detail(mut self, detail: String) -> Self {
        self.detail = Cow::Owned(detail);
        self
    }

    /// 503: there is no room for the body, which is left unread.
    #[must_use]
    pub const fn busy() -> Self {
        Self::unavailable("busy", "too many deliveries at once", COME_BACK_AFTER).closing()
    }

    /// 503: the event is not durable.
    #[must_use]
    pub const fn not_durable() -> Self {
        Self::unavailable(
            "not_durable",
            "the event could not be made durable; deliver it again",
            COME_BACK_AFTER,
        )
    }

    /// The status it is answered with.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// What a person reads.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The extension member `code`, for logs and metrics: few values, none from outside.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.code
    }
}

/// 400: signed, but no event.
impl From<EnvelopeError> for Problem {
    fn from(error: EnvelopeError) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "not_an_event",
            Cow::Owned(error.to_string()),
        )
    }
}

/// 401: says which check the signature failed, and the skew seen.
impl From<SignatureError> for Problem {
    fn from(error: SignatureError) -> Self {
        let (code, skew) = match &error {
            SignatureError::Missing => ("signature_missing", None),
            SignatureError::Malformed(_) => ("signature_malformed", None),
            SignatureError::NoMatch => ("signature_mismatch", None),
            SignatureError::TooOld { skew, .. } => ("signature_too_old", Some(skew)),
            SignatureError::InFuture { skew, .. } => ("signature_in_future", Some(skew)),
        };
        let mut problem = Self::new(
            StatusCode::UNAUTHORIZED,
            code,
            Cow::Owned(error.to_string()),
        );
        // The scheme is not a registered one: there is none.
        problem.challenge = Some("WorkOS-Signature");
        problem.skew_seconds = skew.map(|skew| skew.0.as_secs_f64());
        problem
    }
}

/// The body, its members in the order of the RFC's own example.
#[derive(Serialize)]
struct Members<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    skew_seconds: Option<f64>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&Members {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            skew_seconds: self.skew_seconds,
        })
        .expect("strings and finite numbers are always JSON");

        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            // RFC 9110, section 15.5.16.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::http::HeaderMap;

    use super::*;
    use crate::event::Event;
    use crate::signature::Seconds;

    async fn answer(problem: impl Into<Problem>) -> (HeaderMap, String) {
        let problem: Problem = problem.into();
        let status = problem.status();
        let response = problem.into_response();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        (parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    /// R30: each answer, to the letter.
    #[tokio::test]
    async fn answers_are_problem_json() {
        let not_an_event = Event::parse(b"[]").unwrap_err();
        for (problem, body) in [
            (
                Problem::from(not_an_event),
                r#"{"type":"about:blank","title":"Bad Request","status":400,"detail":"the body is not a JSON object","code":"not_an_event"}"#,
            ),
            (
                Problem::body_incomplete(),
                r#"{"type":"about:blank","title":"Bad Request","status":400,"detail":"the body broke off, or its chunks are malformed","code":"body_incomplete"}"#,
            ),
            (
                Problem::not_found(),
                r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"there is nothing at this path","code":"not_found"}"#,
            ),
            (
                Problem::method_not_allowed(),
                r#"{"type":"about:blank","title":"Method Not Allowed","status":405,"detail":"this path does not take this method; the Allow header names those it takes","code":"method_not_allowed"}"#,
            ),
            (
                Problem::body_too_slow(),
                r#"{"type":"about:blank","title":"Request Timeout","status":408,"detail":"the body did not arrive in time","code":"body_too_slow"}"#,
            ),
            (
                Problem::body_too_large(1_048_576),
                r#"{"type":"about:blank","title":"Payload Too Large","status":413,"detail":"the body is longer than 1048576 bytes","code":"body_too_large"}"#,
            ),
            (
                Problem::internal(),
                r#"{"type":"about:blank","title":"Internal Server Error","status":500,"detail":"something went wrong here; the log of the server says what","code":"internal_error"}"#,
            ),
            (
                Problem::unavailable("not_durable", "try again", Duration::from_secs(1)),
                r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"try again","code":"not_durable"}"#,
            ),
        ] {
            assert_eq!(answer(problem).await.1, body);
        }
    }

    /// R29, R30: which check failed, with the skew seen, and a challenge (RFC 9110, section 15.5.2).
    #[tokio::test]
    async fn a_refused_signature_says_why() {
        let skew = Seconds(Duration::from_millis(200_500));
        let tolerance = Seconds(Duration::from_mins(3));
        for (error, members) in [
            (
                SignatureError::Missing,
                r#""detail":"the WorkOS-Signature header is missing","code":"signature_missing""#,
            ),
            (
                SignatureError::Malformed("it has no t"),
                r#""detail":"the WorkOS-Signature header is malformed: it has no t","code":"signature_malformed""#,
            ),
            (
                SignatureError::NoMatch,
                r#""detail":"the signature matches none of the configured secrets","code":"signature_mismatch""#,
            ),
            (
                SignatureError::TooOld { skew, tolerance },
                r#""detail":"the signature is too old: signed 200.500 s ago, the tolerance is 180.000 s","code":"signature_too_old","skew_seconds":200.5"#,
            ),
            (
                SignatureError::InFuture { skew, tolerance },
                r#""detail":"the signature is from the future: signed 200.500 s ahead of this clock, the tolerance is 180.000 s","code":"signature_in_future","skew_seconds":200.5"#,
            ),
        ] {
            let (headers, body) = answer(error).await;
            assert_eq!(
                body,
                format!(
                    r#"{{"type":"about:blank","title":"Unauthorized","status":401,{members}}}"#
                )
            );
            assert_eq!(headers[WWW_AUTHENTICATE], "WorkOS-Signature");
        }
    }

    /// R30: a 503 says when to come again, in whole seconds and never too early.
    #[tokio::test]
    async fn retry_after_is_rounded_up() {
        for (ms, seconds) in [(1, "1"), (1_000, "1"), (1_001, "2"), (0, "0")] {
            let problem = Problem::unavailable("x", "x", Duration::from_millis(ms));
            assert_eq!(answer(problem).await.0[RETRY_AFTER], seconds);
        }
        assert!(
            !answer(Problem::internal())
                .await
                .0
                .contains_key(RETRY_AFTER)
        );
    }

    /// R30: where the rest of a body stays unread, the connection ends with the answer; elsewhere it is kept.
    #[tokio::test]
    async fn an_unread_body_ends_the_connection() {
        for problem in [
            Problem::body_too_large(1),
            Problem::body_too_slow(),
            Problem::body_incomplete(),
            Problem::content_encoding(),
            Problem::busy(),
        ] {
            assert_eq!(answer(problem).await.0[CONNECTION], "close");
        }
        for problem in [Problem::not_found(), Problem::internal()] {
            assert!(!answer(problem).await.0.contains_key(CONNECTION));
        }
    }
}

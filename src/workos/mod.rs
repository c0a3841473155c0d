//! The WorkOS API, as far as it is used: list organizations and events, read an organization, write its
//! `external_id`.
//!
//! The answers are typed by what a caller does about them; see <https://workos.com/docs/reference/errors>
//! for what WorkOS says with which status.

mod budget;
mod list;
mod trail;

pub use budget::Priority;
pub use list::{
    Answered, Lookup, Object, PAGE_ELEMENTS, Page, ReadFrom, WebhookEndpoint, WebhookEndpoints,
};

pub use trail::{Endless, Trail};

use std::error::Error;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, ClientBuilder, Method, RequestBuilder, Response, StatusCode, redirect};
use rustls_platform_verifier::BuilderVerifierExt;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use crate::event::{OrganizationId, WorkosId};
use crate::metrics::Metrics;
use budget::Budget;

/// How we introduce ourselves.
const USER_AGENT: &str = concat!("workos-sync/", env!("CARGO_PKG_VERSION"));

/// An organization with all its domains and metadata has some 10 KB: what is longer is no answer of WorkOS.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// A page has 100 of them.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// How much of what WorkOS says goes into logs and `last_error`, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// What stays as it is in a path segment: the unreserved characters of RFC 3986, section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The code of the 400 with which WorkOS keeps `external_id` unique.
const EXTERNAL_ID_ALREADY_USED: &str = "external_id_already_used";

/// The statuses that are counted each for itself: those that we tell apart, and the usual ones of a WorkOS in trouble.
const COUNTED_STATUSES: [&str; 12] = [
    "200", "400", "401", "403", "404", "409", "422", "429", "500", "502", "503", "504",
];

/// All others, so that the label has a bound.
const OTHER_STATUS: &str = "other";

/// No answer.
const NO_STATUS: &str = "none";

/// What is asked of WorkOS.
#[derive(Debug, Clone, Copy)]
enum Endpoint {
    GetOrganization,
    UpdateOrganization,
    ListOrganizations,
    ListEvents,
    ListWebhookEndpoints,
}

impl Endpoint {
    const ALL: [Self; 5] = [
        Self::GetOrganization,
        Self::UpdateOrganization,
        Self::ListOrganizations,
        Self::ListEvents,
        Self::ListWebhookEndpoints,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::GetOrganization => "get_organization",
            Self::UpdateOrganization => "update_organization",
            Self::ListOrganizations => "list_organizations",
            Self::ListEvents => "list_events",
            Self::ListWebhookEndpoints => "list_webhook_endpoints",
        }
    }

    /// A longer answer is none of WorkOS's.
    const fn longest_answer(self) -> usize {
        match self {
            Self::GetOrganization | Self::UpdateOrganization => MAX_BODY_BYTES,
            Self::ListOrganizations | Self::ListEvents | Self::ListWebhookEndpoints => {
                MAX_PAGE_BYTES
            }
        }
    }
}

/// How long a request may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until the connection stands, TLS included.
    pub connect: Duration,
    /// From the start to the last byte of the answer.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            total: Duration::from_secs(15),
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address can't be that of an API.
    #[error(
        "the API's URL has to be http or https, with a host, and without user, query and fragment"
    )]
    BaseUrl,
    /// The key can't be sent in a header. The message doesn't repeat it.
    #[error("the API key is empty, or contains characters that no header can hold")]
    ApiKey,
    /// No TLS, such as in an image without CA certificates.
    #[error("TLS for the API client: {0}")]
    Tls(String),
}

/// What WorkOS answers instead of doing what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkosError {
    /// 404: there is no such organization in the key's environment.
    #[error("WorkOS knows no such organization (404)")]
    NotFound,
    /// 401, 403: the key is wrong, or may not do this.
    #[error("WorkOS refuses the API key ({status})")]
    Unauthorized {
        /// Which of the two.
        status: u16,
    },
    /// 429: too many requests of this key or address.
    #[error("WorkOS limits the rate of requests (429)")]
    RateLimited {
        /// How long to wait, if WorkOS says so; not negative, not bounded.
        retry_after: Option<Duration>,
    },
    /// 400: another organization of the environment has this `external_id`.
    #[error("another WorkOS organization has this external_id ({EXTERNAL_ID_ALREADY_USED})")]
    ExternalIdAlreadyUsed,
    /// 400, 409, 422: the same request would be refused again.
    #[error("WorkOS refuses the request ({status}): {message}")]
    Rejected {
        /// Which of them.
        status: u16,
        /// Why, as WorkOS puts it, shortened.
        message: String,
    },
    /// 5xx, a status that isn't foreseen, a timeout, no connection, half an answer: later, perhaps.
    #[error("WorkOS is unavailable: {reason}")]
    Unavailable {
        /// What happened, shortened.
        reason: String,
        /// How long to wait, if WorkOS says so; not negative, not bounded.
        retry_after: Option<Duration>,
    },
}

impl WorkosError {
    /// Whether what was asked for is refused, and would be again.
    #[must_use]
    pub const fn is_rejected(&self) -> bool {
        matches!(self, Self::Rejected { .. })
    }
}

/// Talks to the WorkOS API. Cloning is cheap; clones share the connections.
#[derive(Clone)]
pub struct WorkosClient {
    http: Client,
    base_url: Url,
    /// Kept besides the header, to strike it out of what WorkOS says.
    api_key: SecretString,
    /// Counts the requests, where somebody wants to know.
    metrics: Option<Metrics>,
    /// What all clones may ask together, if that is limited.
    budget: Option<Arc<Budget>>,
    priority: Priority,
}

impl fmt::Debug for WorkosClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkosClient")
            .field("base_url", &self.base_url.as_str())
            .finish_non_exhaustive()
    }
}

/// TLS as reqwest sets it up, by a provider that we name: reqwest takes that of the process, which isn't ours to choose.
fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?;
    Ok(config.with_no_client_auth())
}

/// Each key but `external_id` is ignored: what isn't used can't fail us (R13).
#[derive(Deserialize)]
struct Organization {
    external_id: Option<String>,
}

/// The whole body: any other key could clear remote data (R14).
#[derive(Serialize)]
struct ExternalIdUpdate<'a> {
    external_id: &'a str,
}

impl WorkosClient {
    /// A client of the API at `base_url`, which may have a path of its own, with or without a slash at the end.
    ///
    /// # Errors
    /// The address or the key can't be used, or there is no TLS.
    pub fn new(base_url: Url, api_key: SecretString) -> Result<Self, ClientError> {
        Self::with_timeouts(base_url, api_key, Timeouts::default())
    }

    /// The same with other timeouts.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_timeouts(
        base_url: Url,
        api_key: SecretString,
        timeouts: Timeouts,
    ) -> Result<Self, ClientError> {
        let usable = matches!(base_url.scheme(), "http" | "https")
            && base_url.has_host()
            // reqwest would send them as the Authorization, in the place of the key.
            && base_url.username().is_empty()
            && base_url.password().is_none()
            && base_url.query().is_none()
            && base_url.fragment().is_none();
        if !usable {
            return Err(ClientError::BaseUrl);
        }

        if api_key.expose_secret().is_empty() {
            return Err(ClientError::ApiKey);
        }
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {}", api_key.expose_secret()))
                .map_err(|_| ClientError::ApiKey)?;
        authorization.set_sensitive(true);
        let headers = HeaderMap::from_iter([(AUTHORIZATION, authorization)]);

        let http = http(timeouts)?
            .default_headers(headers)
            .build()
            .map_err(|error| ClientError::Tls(chain(&error)))?;
        Ok(Self {
            http,
            base_url,
            api_key,
            metrics: None,
            budget: None,
            priority: Priority::WriteBack,
        })
    }

    /// The same client, whose clones share a budget of so many requests a second.
    #[must_use]
    pub fn limited_to(mut self, requests_per_second: NonZeroU32) -> Self {
        self.budget = Some(Arc::new(Budget::new(requests_per_second.get())));
        self
    }

    /// The same client, for requests of another priority within the budget.
    #[must_use]
    pub fn with_priority(&self, priority: Priority) -> Self {
        Self {
            priority,
            ..self.clone()
        }
    }

    /// The same client, whose requests are counted.
    #[must_use]
    pub fn counted_by(mut self, metrics: Metrics) -> Self {
        for endpoint in Endpoint::ALL {
            for status in COUNTED_STATUSES
                .into_iter()
                .chain([OTHER_STATUS, NO_STATUS])
            {
                metrics.expect_workos_request(endpoint.as_str(), status);
            }
        }
        self.metrics = Some(metrics);
        self
    }

    /// The `external_id` that WorkOS holds for the organization; an empty one is none. `now` is what a date in
    /// `Retry-After` counts from.
    ///
    /// # Errors
    /// WorkOS answers something else, or nothing.
    pub async fn get_external_id(
        &self,
        id: &WorkosId,
        now: DateTime<Utc>,
    ) -> Result<Option<String>, WorkosError> {
        let request = self.http.request(Method::GET, self.organization_url(id)?);
        let (body, _) = self.send(Endpoint::GetOrganization, request, now).await?;
        let organization: Organization = serde_json::from_slice(&body).map_err(|error| {
            unavailable(self.shorten(&format!("the answer is no organization: {error}")))
        })?;
        Ok(organization.external_id.filter(|id| !id.is_empty()))
    }

    /// Sets the `external_id` of the organization, and nothing else (R14).
    ///
    /// # Errors
    /// WorkOS answers something else, or nothing. [`WorkosError::Unavailable`] doesn't say that it wasn't written.
    pub async fn put_external_id(
        &self,
        id: &WorkosId,
        external_id: &OrganizationId,
        now: DateTime<Utc>,
    ) -> Result<(), WorkosError> {
        let update = ExternalIdUpdate {
            external_id: external_id.as_str(),
        };
        let request = self
            .http
            .request(Method::PUT, self.organization_url(id)?)
            .json(&update);
        self.send(Endpoint::UpdateOrganization, request, now)
            .await
            .map(drop)
    }

    /// Asks for a list of one organization: the cheapest request that the key has to be good for.
    ///
    /// # Errors
    /// WorkOS answers something else than a list, or nothing.
    pub async fn check(&self, now: DateTime<Utc>) -> Result<(), WorkosError> {
        let mut url = self.url("organizations");
        url.set_query(Some("limit=1"));
        let request = self.http.request(Method::GET, url);
        match self.send(Endpoint::ListOrganizations, request, now).await {
            Ok(_) => Ok(()),
            // Final for an organization, but there is always a list.
            Err(
                refusal @ (WorkosError::NotFound
                | WorkosError::ExternalIdAlreadyUsed
                | WorkosError::Rejected { .. }),
            ) => {
                self.count_ok(false);
                let reason = format!("it doesn't list organizations: {refusal}");
                Err(unavailable(reason))
            }
            Err(trouble) => Err(trouble),
        }
    }

    fn organization_url(&self, id: &WorkosId) -> Result<Url, WorkosError> {
        // Encoded or not, these two are steps up the path in every URL: no organization can be asked for so.
        if matches!(id.as_str(), "." | "..") {
            return Err(WorkosError::NotFound);
        }
        let segment = segment(id.as_str());
        Ok(self.url(&format!("organizations/{segment}")))
    }

    /// The URL of a path of the API, which is encoded already.
    fn url(&self, path: &str) -> Url {
        let prefix = self.base_url.path().trim_end_matches('/');
        let mut url = self.base_url.clone();
        url.set_path(&format!("{prefix}/{path}"));
        url
    }

    /// Sends the request; the body of a good answer, else what the answer means.
    async fn send(
        &self,
        endpoint: Endpoint,
        request: RequestBuilder,
        now: DateTime<Utc>,
    ) -> Result<(Vec<u8>, Answered), WorkosError> {
        let response = self.ask(endpoint, request).await?;
        let date = response.date;
        let started = response.started;
        let body = self.read(endpoint, response.http, now).await?;
        let took = started.elapsed();
        Ok((body, Answered { date, took }))
    }

    /// Sends the request, once the budget allows it.
    async fn ask(&self, endpoint: Endpoint, request: RequestBuilder) -> Result<Asked, WorkosError> {
        if let Some(budget) = &self.budget
            && let Err(left) = budget.take(self.priority).await
        {
            return Err(WorkosError::RateLimited {
                retry_after: Some(left),
            });
        }
        let started = Instant::now();
        let sent = request.send().await;
        self.count(endpoint, sent.as_ref().ok().map(Response::status));
        let http = sent.map_err(|error| self.no_answer(error))?;
        if let Some(budget) = &self.budget
            && http.status() != StatusCode::TOO_MANY_REQUESTS
        {
            budget.taken();
        }
        let date = header(&http, DATE).and_then(http_date);
        Ok(Asked {
            http,
            date,
            started,
        })
    }

    /// Reads the body of a good answer, else what the answer means.
    async fn read(
        &self,
        endpoint: Endpoint,
        response: Response,
        now: DateTime<Utc>,
    ) -> Result<Vec<u8>, WorkosError> {
        let status = response.status();
        let retry_after = header(&response, RETRY_AFTER).and_then(|value| retry_after(value, now));
        match status {
            _ if status.is_success() => self.body(response, endpoint.longest_answer()).await,
            StatusCode::NOT_FOUND => Err(WorkosError::NotFound),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(WorkosError::Unauthorized {
                status: status.as_u16(),
            }),
            // The body isn't asked: it may be an object, or a bare string.
            StatusCode::TOO_MANY_REQUESTS => {
                let retry_after = match &self.budget {
                    Some(budget) => Some(budget.limited(retry_after)),
                    None => retry_after,
                };
                Err(WorkosError::RateLimited { retry_after })
            }
            StatusCode::BAD_REQUEST | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => {
                // The status is final whether or not the reason gets here.
                let body = self
                    .body(response, endpoint.longest_answer())
                    .await
                    .unwrap_or_default();
                let refusal = Refusal::read(&body);
                if refusal.has_code(EXTERNAL_ID_ALREADY_USED) {
                    return Err(WorkosError::ExternalIdAlreadyUsed);
                }
                Err(WorkosError::Rejected {
                    status: status.as_u16(),
                    message: self.shorten(&refusal.to_string()),
                })
            }
            _ => Err(WorkosError::Unavailable {
                reason: format!("it answered {status}"),
                retry_after,
            }),
        }
    }

    fn count(&self, endpoint: Endpoint, status: Option<StatusCode>) {
        if let Some(metrics) = &self.metrics {
            let status = status.as_ref().map_or(NO_STATUS, |status| {
                COUNTED_STATUSES
                    .into_iter()
                    .find(|known| *known == status.as_str())
                    .unwrap_or(OTHER_STATUS)
            });
            metrics.workos_request(endpoint.as_str(), status);
        }
        match status {
            // It says nothing about the key.
            Some(StatusCode::TOO_MANY_REQUESTS) => {}
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) | None => self.count_ok(false),
            // A refusal of what was asked for is an answer.
            Some(status) => self.count_ok(status.is_success() || status.is_client_error()),
        }
    }

    fn count_ok(&self, ok: bool) {
        if let Some(metrics) = &self.metrics {
            metrics.workos_ok(ok);
        }
    }

    async fn body(&self, mut response: Response, longest: usize) -> Result<Vec<u8>, WorkosError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.no_answer(error))?
        {
            if body.len() + chunk.len() > longest {
                let reason = format!("the answer is longer than {longest} bytes");
                return Err(unavailable(reason));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn no_answer(&self, error: reqwest::Error) -> WorkosError {
        unavailable(self.shorten(&chain(&error.without_url())))
    }

    /// Shortens what came from outside, and strikes out the key: nobody promised that WorkOS doesn't repeat it.
    fn shorten(&self, text: &str) -> String {
        shorten(&text.replace(self.api_key.expose_secret(), "[API key]"))
    }
}

/// How requests are made, here and where somebody else does it. An API doesn't move: a redirect would carry a PUT to who
/// knows where.
pub(crate) fn http(timeouts: Timeouts) -> Result<ClientBuilder, ClientError> {
    let tls = tls().map_err(|error| ClientError::Tls(chain(&error)))?;
    Ok(Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(USER_AGENT)
        .connect_timeout(timeouts.connect)
        .timeout(timeouts.total)
        .redirect(redirect::Policy::none()))
}

/// An answer of which the head has come.
struct Asked {
    http: Response,
    date: Option<DateTime<Utc>>,
    started: Instant,
}

fn header(response: &Response, name: HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

impl From<Endless> for WorkosError {
    fn from(endless: Endless) -> Self {
        unavailable(endless.to_string())
    }
}

const fn unavailable(reason: String) -> WorkosError {
    WorkosError::Unavailable {
        reason,
        retry_after: None,
    }
}

/// A text as a segment of a path.
pub(crate) fn segment(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, SEGMENT)
}

/// Makes a text from outside fit for one line of a log and for Postgres: no control characters (which include
/// NUL), and not too long.
pub(crate) fn shorten(text: &str) -> String {
    let mut characters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = characters.by_ref().take(MAX_MESSAGE_CHARS).collect();
    if characters.next().is_some() {
        short.pop();
        short.push('…');
    }
    short
}

/// An error with its causes; reqwest's own message says only what it was doing.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Reads `Retry-After`: whole seconds, or a date (RFC 9110, section 10.2.3). One that is past is no wait.
fn retry_after(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    Some((http_date(value)? - now).to_std().unwrap_or(Duration::ZERO))
}

/// Reads a date of HTTP. Of its three forms only this one may be sent nowadays; it is one of RFC 2822's.
fn http_date(value: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc2822(value.trim())
        .ok()
        .map(|at| at.to_utc())
}

/// The body of a refusal: `{"code", "message", "errors": […]}`, where each may be missing, `message` may be a
/// list, and an entry of `errors` may be a text or an object with `code` and `message` of its own.
#[derive(Default)]
struct Refusal {
    codes: Vec<String>,
    messages: Vec<String>,
}

impl Refusal {
    fn read(body: &[u8]) -> Self {
        let mut refusal = Self::default();
        if let Ok(body) = serde_json::from_slice::<Value>(body) {
            refusal.add(&body);
            for error in body["errors"].as_array().into_iter().flatten() {
                refusal.add(error);
            }
        }
        refusal
    }

    fn add(&mut self, part: &Value) {
        self.codes.extend(part["code"].as_str().map(str::to_owned));
        let messages = match part {
            Value::String(_) => part,
            _ if part["message"].is_null() => &part["error"],
            _ => &part["message"],
        };
        match messages {
            Value::Array(list) => self
                .messages
                .extend(list.iter().filter_map(Value::as_str).map(str::to_owned)),
            one => self.messages.extend(one.as_str().map(str::to_owned)),
        }
    }

    fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|known| known == code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.messages.join("; "), self.codes.join(", ")) {
            (messages, codes) if messages.is_empty() && codes.is_empty() => {
                f.write_str("no reason given")
            }
            (messages, codes) if codes.is_empty() => f.write_str(&messages),
            (messages, codes) if messages.is_empty() => f.write_str(&codes),
            (messages, codes) => write!(f, "{messages} ({codes})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn client(base_url: &str) -> WorkosClient {
        let key = SecretString::from("sk_test_secret");
        WorkosClient::new(Url::parse(base_url).unwrap(), key).unwrap()
    }

    fn path(base_url: &str, id: &str) -> String {
        let id = WorkosId::new(id).unwrap();
        client(base_url).organization_url(&id).unwrap().to_string()
    }

    /// The TLS provider of the process is the host's to choose, where the service is inside an application.
    #[test]
    fn a_client_installs_no_tls_provider() {
        client("https://api.workos.com");
        assert!(rustls::crypto::CryptoProvider::get_default().is_none());
    }

    #[test]
    fn a_base_url_may_have_a_path_and_a_slash_at_its_end() {
        for (base_url, expected) in [
            (
                "https://api.workos.com",
                "https://api.workos.com/organizations/org_1",
            ),
            (
                "https://api.workos.com/",
                "https://api.workos.com/organizations/org_1",
            ),
            (
                "http://proxy:81/a%20b",
                "http://proxy:81/a%20b/organizations/org_1",
            ),
            (
                "http://proxy:81/a/b/",
                "http://proxy:81/a/b/organizations/org_1",
            ),
        ] {
            assert_eq!(path(base_url, "org_1"), expected);
        }
    }

    /// An id comes from an event: it must never become another path, a query, or another id.
    #[test]
    fn an_id_is_one_path_segment() {
        for (id, segment) in [
            ("org_1/../2?x#y", "org_1%2F..%2F2%3Fx%23y"),
            ("a%2e b+c", "a%252e%20b%2Bc"),
            ("\torg_1\n", "%09org_1%0A"),
            ("Zoë\\", "Zo%C3%AB%5C"),
        ] {
            assert_eq!(
                path("http://a", id),
                format!("http://a/organizations/{segment}")
            );
        }
        for id in [".", ".."] {
            let id = WorkosId::new(id).unwrap();
            let url = client("http://a").organization_url(&id);
            assert_eq!(url, Err(WorkosError::NotFound));
        }
    }

    proptest! {
        /// The same for any id: decoded, the last segment is the id again.
        #[test]
        fn the_last_path_segment_decodes_to_the_id(text in "[^\0]{1,40}") {
            prop_assume!(text != "." && text != "..");
            let url = client("http://a/b").organization_url(&WorkosId::new(&*text).unwrap()).unwrap();
            let segments: Vec<_> = url.path_segments().unwrap().collect();
            prop_assert_eq!(segments.len(), 3);
            let decoded = percent_encoding::percent_decode_str(segments[2]).decode_utf8().unwrap();
            prop_assert_eq!(&*decoded, &*text);
        }

        /// Whatever comes from outside fits one line, Postgres, and its bound.
        #[test]
        fn a_shortened_text_is_one_short_line(text in any::<String>()) {
            let short = shorten(&text);
            prop_assert!(short.chars().count() <= MAX_MESSAGE_CHARS);
            prop_assert!(!short.contains(char::is_control));
        }
    }

    #[test]
    fn unusable_addresses_and_keys_are_refused_without_repeating_the_key() {
        let key = || SecretString::from("sk_test_secret");
        for url in [
            "ftp://a",
            "mailto:a@b",
            "https://user@a",
            "https://:password@a",
            "https://a/?b",
            "https://a/#b",
        ] {
            let error = WorkosClient::new(Url::parse(url).unwrap(), key()).unwrap_err();
            assert!(matches!(error, ClientError::BaseUrl), "{url}: {error}");
        }
        for key in ["", "sk_test_\nsecret"] {
            let url = Url::parse("https://a").unwrap();
            let error = WorkosClient::new(url, SecretString::from(key)).unwrap_err();
            assert!(matches!(error, ClientError::ApiKey), "{error}");
            assert!(!format!("{error} {error:?}").contains("sk_test"));
        }
    }

    #[test]
    fn the_key_shows_in_no_debug_and_in_no_message() {
        let client = client("https://api.workos.com");
        assert_eq!(
            format!("{client:?}"),
            r#"WorkosClient { base_url: "https://api.workos.com/", .. }"#
        );
        assert!(!format!("{:?}", client.http).contains("sk_test"));
        let long = format!("{}sk_test_secret", "x".repeat(MAX_MESSAGE_CHARS - 5));
        assert!(!client.shorten(&long).contains("sk_t"));
        assert_eq!(client.shorten("a\nsk_test_secret"), "a [API key]");
    }

    /// R16
    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = DateTime::parse_from_rfc3339("2015-10-21T07:27:00Z")
            .unwrap()
            .to_utc();
        let read = |value| retry_after(value, now);
        assert_eq!(read("120"), Some(Duration::from_mins(2)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        assert_eq!(
            read("Wed, 21 Oct 2015 07:28:00 GMT"),
            Some(Duration::from_mins(1))
        );
        assert_eq!(read("Wed, 21 Oct 2015 07:26:00 GMT"), Some(Duration::ZERO));
        assert_eq!(
            retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now - TimeDelta::minutes(1)),
            Some(Duration::from_mins(2))
        );
        for odd in ["", "-1", "soon", "1.5", "2015-10-21T07:28:00Z"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn the_reason_of_a_refusal_is_found_in_every_shape() {
        for (body, expected) in [
            (r#"{"message":"Nope","code":"no"}"#, "Nope (no)"),
            (r#"{"message":["a","b"],"error":"Bad Request"}"#, "a; b"),
            (r#"{"error":"Bad Request"}"#, "Bad Request"),
            (
                r#"{"message":"Validation failed","errors":[{"field":"x","code":"too_long"}]}"#,
                "Validation failed (too_long)",
            ),
            (r#"{"errors":["one","two"]}"#, "one; two"),
            (r#"{"code":7,"message":{},"errors":{}}"#, "no reason given"),
            ("[1]", "no reason given"),
            ("<html>", "no reason given"),
        ] {
            assert_eq!(
                Refusal::read(body.as_bytes()).to_string(),
                expected,
                "{body}"
            );
        }
        let body = br#"{"message":"x","errors":[{"code":"external_id_already_used"}]}"#;
        assert!(Refusal::read(body).has_code(EXTERNAL_ID_ALREADY_USED));
    }
}

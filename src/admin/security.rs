//! Who may ask, and where a change may come from (R50).
//!
//! A token in the `Authorization` header, or, for the page, a session in a cookie, which the process that opened it knows
//! until it ends. Wrong tokens are slowed down, all together. Without a token, the listener is on a loopback address, and
//! only names that can't be pointed there by others are answered: a page whose name leads to 127.0.0.1 must not be taken
//! for ours.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::Admin;
use crate::http::problem::Problem;

/// The cookie of a session.
const SESSION: &str = "workos_sync_session";

/// How long a session lasts: a working day.
const SESSION_LIFETIME: TimeDelta = TimeDelta::hours(12);

/// How many sessions are open at once; another one ends the oldest. Operators are few.
const MOST_SESSIONS: usize = 256;

/// How long after a wrong token no other one is looked at: so many can be tried in a second, and no more, by all who try.
/// The right one waits behind them too, behind one of each connection at most.
const AFTER_WRONG_TOKEN: Duration = Duration::from_millis(50);

/// Hosts that lead to this machine, whatever anybody's name server says.
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Where the login form is sent to.
pub(super) const LOGIN: &str = "/login";

/// Where a session is ended.
pub(super) const LOGOUT: &str = "/logout";

/// What every answer says. Nothing inline, nothing from elsewhere, no frame around it; nothing is stored.
///
/// `no-referrer` would be stricter, but with it browsers send `Origin: null`, and over plain HTTP no form could be told
/// from a stranger's.
pub(super) const HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    ("referrer-policy", "same-origin"),
    ("x-content-type-options", "nosniff"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// The token, and what may be done with it.
#[derive(Debug)]
pub(super) struct Guard {
    token: Option<SecretString>,
    pub(super) read_only: bool,
    /// When the next token may be looked at.
    next_token_at: AsyncMutex<Instant>,
    sessions: Mutex<VecDeque<Session>>,
}

/// A session that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    /// A hash of the cookie's value: how long it takes to find it tells nothing of the value.
    hash: [u8; 32],
    end: DateTime<Utc>,
}

impl Guard {
    pub(super) fn new(token: Option<SecretString>, read_only: bool) -> Self {
        Self {
            token,
            read_only,
            next_token_at: AsyncMutex::new(Instant::now()),
            sessions: Mutex::default(),
        }
    }

    pub(super) const fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Says whether it is the token, in constant time, one after the other.
    pub(super) async fn is_token(&self, given: &str) -> bool {
        let Some(token) = &self.token else {
            return false;
        };
        let mut next_at = self.next_token_at.lock().await;
        tokio::time::sleep_until(*next_at).await;
        let message = b"workos-sync token";
        let given = mac(given, message).finalize().into_bytes();
        let is_token = mac(token.expose_secret(), message).verify(&given).is_ok();
        if !is_token {
            // Whoever hangs up now makes it no shorter.
            *next_at = Instant::now() + AFTER_WRONG_TOKEN;
            warn!("somebody tried to get in with a wrong token");
        }
        is_token
    }

    /// A cookie that opens a session now. It is sent over TLS only, if that is how the browser came.
    pub(super) fn open_session(&self, headers: &HeaderMap, now: DateTime<Utc>) -> HeaderValue {
        let value = Uuid::new_v4().simple().to_string();
        let mut sessions = self.sessions();
        sessions.retain(|session| session.end > now);
        if sessions.len() == MOST_SESSIONS {
            sessions.pop_front();
        }
        sessions.push_back(Session {
            hash: hash(&value),
            end: now + SESSION_LIFETIME,
        });
        let age = SESSION_LIFETIME.num_seconds();
        let origin = headers.get(ORIGIN).map(HeaderValue::as_bytes);
        let secure = if origin.is_some_and(|origin| origin.starts_with(b"https://")) {
            "; Secure"
        } else {
            ""
        };
        let cookie =
            format!("{SESSION}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
        cookie.parse().expect("ASCII is a header value")
    }

    /// Ends the sessions that a request brings; says so to the browser by a cookie.
    pub(super) fn end_session(&self, headers: &HeaderMap) -> HeaderValue {
        let brought: Vec<_> = cookies(headers).map(hash).collect();
        self.sessions()
            .retain(|session| !brought.contains(&session.hash));
        let cookie = format!("{SESSION}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict");
        cookie.parse().expect("ASCII is a header value")
    }

    fn is_session(&self, value: &str, now: DateTime<Utc>) -> bool {
        let hash = hash(value);
        self.sessions()
            .iter()
            .any(|session| session.hash == hash && session.end > now)
    }

    fn sessions(&self) -> MutexGuard<'_, VecDeque<Session>> {
        // What panicked while it had them has changed nothing by halves.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says why a request is refused, if it is.
    async fn refusal(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        now: DateTime<Utc>,
    ) -> Option<Problem> {
        let path = uri.path();
        if self.token.is_none() && !is_local(uri, headers) {
            return Some(misdirected());
        }
        if self.token.is_some() && !is_open(path) {
            // The API has no use for a cookie: what can't be used can't be abused.
            let has_session =
                !super::is_api(path) && cookies(headers).any(|value| self.is_session(value, now));
            let has_token = match bearer(headers) {
                Some(given) if !has_session => self.is_token(given).await,
                _ => false,
            };
            if !has_session && !has_token {
                return Some(Problem::unauthorized());
            }
        }
        if is_change(method) {
            if !is_from_here(uri, headers, cookies(headers).next().is_some()) {
                return Some(foreign());
            }
            if self.read_only && ![LOGIN, LOGOUT].contains(&path) {
                return Some(read_only());
            }
        }
        None
    }
}

/// Lets requests through that may be answered, and says to the others why not.
pub(super) async fn admit(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    let refusal = admin.guard().refusal(method, uri, headers, admin.now());
    match refusal.await {
        None => next.run(request).await,
        Some(problem) => {
            tracing::debug!(
                code = problem.code(),
                "an operator's request is refused: {}",
                problem.detail()
            );
            admin.refuse(&request, problem)
        }
    }
}

/// What is answered before anybody has shown a token.
fn is_open(path: &str) -> bool {
    path == LOGIN || path.starts_with(super::assets::PREFIX)
}

fn is_change(method: &Method) -> bool {
    ![Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
}

/// Says whether the request names this machine in each place where a host is named.
fn is_local(uri: &Uri, headers: &HeaderMap) -> bool {
    let is_local = |authority: &Authority| {
        let host = authority.host();
        LOCAL_HOSTS
            .iter()
            .any(|local| local.eq_ignore_ascii_case(host))
            && !authority.as_str().contains('@')
    };
    let mut hosts = headers.get_all(HOST).iter().peekable();
    (hosts.peek().is_some() || uri.authority().is_some())
        && uri.authority().is_none_or(is_local)
        && hosts.all(|host| {
            let host = host.to_str().ok().and_then(|host| host.parse().ok());
            host.as_ref().is_some_and(is_local)
        })
}

/// Says whether a change comes from our own page, or from no page at all. A browser says where a form comes from by
/// `Sec-Fetch-Site`, which it doesn't send over plain HTTP, and by `Origin`; what brings the cookie is a browser.
fn is_from_here(uri: &Uri, headers: &HeaderMap, has_cookie: bool) -> bool {
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        // `none` is the person, not a page.
        return site == "same-origin" || site == "none";
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return !has_cookie;
    };
    let named = uri.authority().map(Authority::as_str);
    let host = named.or_else(|| headers.get(HOST)?.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| {
        let http = origin.strip_prefix("http://");
        http.or_else(|| origin.strip_prefix("https://"))
    });
    matches!((origin, host), (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host))
}

/// The token of the `Authorization` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The sessions that a request brings: other servers of this host may have set cookies of any name.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .filter(|(name, _)| *name == SESSION)
        .map(|(_, value)| value)
}

fn hash(value: &str) -> [u8; 32] {
    Sha256::digest(value).into()
}

fn mac(key: &str, message: &[u8]) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(message);
    mac
}

fn misdirected() -> Problem {
    Problem::new(
        StatusCode::MISDIRECTED_REQUEST,
        "unknown_host",
        "without ADMIN_TOKEN, only the hosts localhost, 127.0.0.1 and [::1] are answered".into(),
    )
}

fn foreign() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "foreign_origin",
        "a change has to come from the page itself: the Origin header must be of the host that is asked".into(),
    )
}

fn read_only() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "read_only",
        "ADMIN_READ_ONLY is set: nothing can be changed here".into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: DateTime<Utc> = DateTime::from_timestamp(1_800_000_000, 0).unwrap();

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn guard(token: &str) -> Guard {
        Guard::new(Some(token.into()), false)
    }

    /// R50: only names that lead here whatever a name server says, with any port, in any place where a host is named.
    #[test]
    fn local_hosts_are_told_from_others() {
        let local = |hosts: &[&str], uri: &str| {
            let hosts: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            is_local(&uri.parse().unwrap(), &headers(&hosts))
        };
        for host in [
            "localhost",
            "LocalHost:8081",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8081",
        ] {
            assert!(local(&[host], "/"), "{host}");
            assert!(local(&[], &format!("http://{host}/")), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "127.0.0.2",
            "10.0.0.1:8081",
            "localhost@evil.example",
            "evil.example@localhost",
            "[::2]",
            "::1",
            "localhost.",
        ] {
            assert!(!local(&[host], "/"), "{host}");
            assert!(!local(&["localhost", host], "/"), "{host}");
            assert!(!local(&[host], "http://localhost/"), "{host}");
        }
        assert!(!local(&[], "/"));
        assert!(!local(&["localhost"], "http://evil.example/"));
    }

    /// R50: a change comes from the same origin: `Sec-Fetch-Site` decides, else `Origin` = `Host`; with the cookie, one
    /// of them is needed.
    #[test]
    fn changes_come_from_the_same_origin() {
        let from_here = |lines: &[(&'static str, &str)], has_cookie| {
            let mut lines = lines.to_vec();
            lines.push(("host", "ops.example:8081"));
            is_from_here(&"/pause".parse().unwrap(), &headers(&lines), has_cookie)
        };
        assert!(from_here(&[], false), "curl");
        assert!(!from_here(&[], true));
        for has_cookie in [false, true] {
            for (lines, expected) in [
                (vec![("sec-fetch-site", "same-origin")], true),
                (vec![("sec-fetch-site", "none")], true),
                (vec![("sec-fetch-site", "same-site")], false),
                (vec![("sec-fetch-site", "cross-site")], false),
                (
                    vec![
                        ("sec-fetch-site", "cross-site"),
                        ("origin", "http://ops.example:8081"),
                    ],
                    false,
                ),
                (vec![("origin", "http://ops.example:8081")], true),
                (vec![("origin", "https://ops.example:8081")], true),
                (vec![("origin", "http://ops.example")], false),
                (vec![("origin", "http://evil.example:8081")], false),
                (vec![("origin", "null")], false),
                (vec![("origin", "ops.example:8081")], false),
            ] {
                assert_eq!(from_here(&lines, has_cookie), expected, "{lines:?}");
            }
        }
    }

    /// R50: a session lasts half a day or until it is ended; nothing else is one, and there are only so many.
    #[test]
    fn sessions_end() {
        let ours = guard("s3cr3t");
        let open = |origin| {
            let cookie = ours.open_session(&headers(&[("origin", origin)]), NOW);
            cookie.to_str().unwrap().to_owned()
        };
        let brought = |cookie: &str| {
            let value = cookie.split_once(';').unwrap().0;
            headers(&[("cookie", &format!("a=b; {value}")), ("cookie", "c=d")])
        };
        let is_open = |cookie: &str, now| {
            let brought = brought(cookie);
            ours.is_session(cookies(&brought).next().unwrap(), now)
        };
        let first = open("http://a");
        assert!(
            first.ends_with("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"),
            "{first}"
        );
        assert!(open("https://a").ends_with("; SameSite=Strict; Secure"));
        assert!(is_open(&first, NOW));
        assert!(is_open(&first, NOW + TimeDelta::seconds(43_199)));
        assert!(!is_open(&first, NOW + SESSION_LIFETIME));
        for made_up in ["", "x", "00000000000000000000000000000000"] {
            assert!(!ours.is_session(made_up, NOW), "{made_up}");
        }
        let second = open("http://a");
        ours.end_session(&brought(&first));
        assert!(!is_open(&first, NOW), "it was ended");
        assert!(is_open(&second, NOW), "it is another one");
        for _ in 0..MOST_SESSIONS {
            open("http://a");
        }
        assert!(!is_open(&second, NOW), "it was the oldest");
        assert_eq!(ours.sessions().len(), MOST_SESSIONS);
        ours.open_session(&headers(&[]), NOW + SESSION_LIFETIME);
        assert_eq!(ours.sessions().len(), 1, "what has ended isn't kept");
    }

    /// R50: after a wrong token the next one waits, also the right one.
    #[tokio::test]
    async fn wrong_tokens_are_slowed_down() {
        let guard = guard("s3cr3t");
        let began = Instant::now();
        for tries in 0..3 {
            assert!(!guard.is_token("wrong").await);
            assert!(began.elapsed() >= AFTER_WRONG_TOKEN * tries);
        }
        assert!(guard.is_token("s3cr3t").await);
        assert!(began.elapsed() >= AFTER_WRONG_TOKEN * 3);
    }

    /// R50
    #[tokio::test]
    async fn the_token_is_compared_whole() {
        let guard = guard("s3cr3t");
        assert!(guard.is_token("s3cr3t").await);
        for wrong in ["", "s3cr3", "s3cr3t ", "S3CR3T", "s3cr3ts3cr3t"] {
            assert!(!guard.is_token(wrong).await, "{wrong}");
        }
        assert!(!Guard::new(None, false).is_token("").await);
        assert_eq!(
            bearer(&headers(&[("authorization", "bearer  x")])),
            Some("x")
        );
        assert_eq!(bearer(&headers(&[("authorization", "Basic x")])), None);
    }
}

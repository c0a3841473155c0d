//! What an answer means, and what to do about it. No I/O.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;
use serde::Serialize;
use url::Url;

use crate::entities;
use crate::entities::organization::host::HostTable;
use crate::heal::HealError;
use crate::signature;
use crate::workos::{Answered, WebhookEndpoint, WorkosError};

/// The oldest Postgres that is supported.
const OLDEST_POSTGRES: i32 = 130_000;

/// Clocks that differ by more than this are worth a word.
const CLOCK_WARNING: TimeDelta = TimeDelta::seconds(30);

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, or it can't be told; it is worth a look.
    Warn,
    /// It doesn't work.
    Fail,
}

impl Level {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A short name, the same in every version.
    pub check: &'static str,
    /// How it ended.
    pub level: Level,
    /// What was found and, unless all is well, what to do: one line.
    pub says: String,
}

impl Check {
    pub(super) fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, says)
    }

    pub(super) fn warn(check: &'static str, says: impl Into<String>) -> Self {
        Self::new(check, Level::Warn, says)
    }

    pub(super) fn fail(check: &'static str, says: impl Into<String>) -> Self {
        Self::new(check, Level::Fail, says)
    }

    fn new(check: &'static str, level: Level, says: impl Into<String>) -> Self {
        // What the server says may have several lines.
        let says = says.into().replace('\n', "; ");
        Self { check, level, says }
    }
}

/// What a server says of itself.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) version: String,
    /// Such as 150018.
    pub(super) version_num: i32,
    pub(super) role: String,
    pub(super) read_only: bool,
}

pub(super) fn server(place: &str, server: &Server) -> Check {
    let Server {
        version,
        version_num,
        role,
        read_only,
    } = server;
    let found = format!("Postgres {version}, {place}, as role {role}");
    if *version_num < OLDEST_POSTGRES {
        Check::fail("database", format!("{found}: it has to be 13 or newer"))
    } else if *read_only {
        Check::fail(
            "database",
            format!("{found}: it takes no writes; let DATABASE_URL lead to the primary"),
        )
    } else {
        Check::ok("database", found)
    }
}

/// What stands between us and the server, as far as that shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// Each connection has a server of its own.
    None,
    /// The server changes from transaction to transaction.
    Transaction,
    /// The same, and prepared statements get lost with it.
    LosesStatements,
}

/// A server of one's own isn't worth a line.
pub(super) fn pooling(pooling: Pooling) -> Option<Check> {
    match pooling {
        Pooling::None => None,
        Pooling::Transaction => Some(Check::ok(
            "pooler",
            "a pooler in transaction mode, which keeps prepared statements",
        )),
        Pooling::LosesStatements => Some(Check::fail(
            "pooler",
            "a pooler in transaction mode, which loses prepared statements: PgBouncer has to be 1.21 or newer, with \
             max_prepared_statements above 0; or use session mode",
        )),
    }
}

pub(super) fn migrations(pending: &[i64], migrates_on_start: bool) -> Check {
    if pending.is_empty() {
        return Check::ok("migrations", "the schema is current");
    }
    let count = pending.len();
    if migrates_on_start {
        let says = format!(
            "{count} migrations are pending: the next start of `serve` applies them, or `workos-sync migrate`"
        );
        Check::warn("migrations", says)
    } else {
        let says = format!(
            "{count} migrations are pending, and MIGRATE_ON_START is false: run `workos-sync migrate`"
        );
        Check::fail("migrations", says)
    }
}

/// `missing`: the rights, by what they are on.
pub(super) fn rights(role: &str, may_use_schema: bool, missing: &[(String, String)]) -> Check {
    if !may_use_schema {
        let says = format!(
            "role {role} may not use the schema: grant usage on schema workos_sync to {role}"
        );
        return Check::fail("rights", says);
    }
    if missing.is_empty() {
        let says = format!("role {role} has all rights that it needs on our tables");
        return Check::ok("rights", says);
    }
    let grants: Vec<_> = missing
        .iter()
        .map(|(object, rights)| format!("grant {rights} on {object} to {role}"))
        .collect();
    let says = format!("role {role} lacks rights: {}", grants.join("; "));
    Check::fail("rights", says)
}

/// `writers` may write the inbox, beside its owner and our role.
pub(super) fn writers(writers: &[String]) -> Option<Check> {
    if writers.is_empty() {
        return None;
    }
    let says = format!(
        "other roles may write webhook_events too, and what is written there is applied without a signature: {}",
        writers.join(", ")
    );
    Some(Check::warn("rights", says))
}

pub(super) fn table(table: &HostTable) -> Vec<Check> {
    let errors = table.errors();
    let errors = errors.map(|finding| Check::fail("table", finding.to_string()));
    let warnings = table.warnings();
    let warnings = warnings.map(|finding| Check::warn("table", finding.to_string()));
    let mut checks: Vec<_> = errors.chain(warnings).collect();
    if checks.is_empty() {
        checks.push(Check::ok("table", format!("{} works", table.name)));
    }
    checks
}

/// Something of WorkOS that the key has to be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource {
    Organizations,
    Events,
    Endpoints,
}

impl Resource {
    const fn name(self) -> &'static str {
        match self {
            Self::Organizations => "organizations",
            Self::Events => "events",
            Self::Endpoints => "webhook endpoints",
        }
    }
}

pub(super) fn access<T>(resource: Resource, answer: &Result<T, WorkosError>) -> Check {
    const CHECK: &str = "api key";
    let what = resource.name();
    match answer {
        Ok(_) => Check::ok(CHECK, format!("WORKOS_API_KEY may read {what}")),
        Err(WorkosError::Unauthorized { status: 401 }) => Check::fail(
            CHECK,
            format!(
                "WorkOS refuses WORKOS_API_KEY (401, asked for {what}): take it anew from the WorkOS dashboard"
            ),
        ),
        // Nothing but this command asks for them.
        Err(WorkosError::Unauthorized { status }) if resource == Resource::Endpoints => {
            Check::warn(
                CHECK,
                format!(
                    "WORKOS_API_KEY may not read {what} ({status}): what WorkOS knows of the webhook can't be checked"
                ),
            )
        }
        Err(WorkosError::Unauthorized { status }) => Check::fail(
            CHECK,
            format!(
                "WORKOS_API_KEY may not read {what} ({status}): give it that permission in the WorkOS dashboard"
            ),
        ),
        Err(trouble @ WorkosError::RateLimited { .. }) => Check::warn(
            CHECK,
            format!("asked for {what}: {trouble}; try again later"),
        ),
        Err(trouble @ WorkosError::Unavailable { .. }) => Check::fail(
            CHECK,
            format!("asked for {what}: {trouble}; can this machine reach WORKOS_API_URL?"),
        ),
        Err(trouble) => Check::fail(
            CHECK,
            format!("asked for {what}: {trouble}; is WORKOS_API_URL right?"),
        ),
    }
}

pub(super) fn environment(checked: &Result<(), HealError>) -> Check {
    const CHECK: &str = "environment";
    match checked {
        Ok(()) => Check::ok(
            CHECK,
            "no sign that WORKOS_API_KEY belongs to another environment than this database",
        ),
        Err(HealError::WrongKey { .. }) => Check::fail(
            CHECK,
            "WORKOS_API_KEY belongs to another environment than this database: WorkOS knows none of the organizations \
             that are linked here; use the key of their environment",
        ),
        Err(error) => Check::warn(
            CHECK,
            format!("whether WORKOS_API_KEY is of this environment can't be told: {error}"),
        ),
    }
}

/// `now`: our time when the answer had come. That of WorkOS is in whole seconds.
pub(super) fn clock(answered: &Answered, now: DateTime<Utc>, tolerance: Duration) -> Check {
    const CHECK: &str = "clock";
    let Some(date) = answered.date else {
        return Check::fail(
            CHECK,
            "the answers of WorkOS have no readable Date, which snapshots are dated by: is there a proxy that removes it?",
        );
    };
    let latest =
        date + TimeDelta::seconds(1) + TimeDelta::from_std(answered.took).unwrap_or_default();
    let (skew, direction) = if now < date {
        (date - now, "behind")
    } else {
        (std::cmp::max(now - latest, TimeDelta::zero()), "ahead of")
    };
    let tolerance = TimeDelta::from_std(tolerance).unwrap_or(TimeDelta::MAX);
    let seconds = skew.num_seconds();
    let found = format!("this machine's clock is {seconds} s {direction} that of WorkOS");
    if !tolerance.is_zero() && skew > tolerance {
        let says = format!(
            "{found}, more than WEBHOOK_TOLERANCE_SECONDS: every delivery is refused; synchronize the clock"
        );
        Check::fail(CHECK, says)
    } else if skew > CLOCK_WARNING {
        Check::warn(CHECK, format!("{found}: synchronize the clock"))
    } else {
        Check::ok(CHECK, "this machine's clock agrees with that of WorkOS")
    }
}

/// What we know of our endpoint.
#[derive(Debug)]
pub(super) struct Ours<'a> {
    pub(super) url: Option<&'a Url>,
    pub(super) path: &'a str,
    pub(super) secrets: &'a [SecretString],
}

/// Judges the webhook endpoint as WorkOS knows it.
pub(super) fn endpoint(
    ours: &Ours<'_>,
    endpoints: &[WebhookEndpoint],
    now: DateTime<Utc>,
) -> Vec<Check> {
    const CHECK: &str = "endpoint";
    let endpoint = match find(ours, endpoints, now) {
        Ok(endpoint) => endpoint,
        Err(says) => return vec![Check::fail(CHECK, says)],
    };
    let WebhookEndpoint {
        id, url, events, ..
    } = endpoint;
    let mut checks = Vec::new();
    if endpoint.enabled {
        checks.push(Check::ok(CHECK, format!("WorkOS delivers to {url} ({id})")));
    } else {
        let says = format!("{url} ({id}) is disabled in WorkOS: enable it in the dashboard");
        checks.push(Check::fail(CHECK, says));
    }
    let missing: Vec<_> = entities::types_of_workos()
        .filter(|handled| !events.iter().any(|event| event == handled))
        .collect();
    checks.push(if missing.is_empty() {
        Check::ok(
            "subscriptions",
            "every type that is handled is subscribed to",
        )
    } else {
        let missing = missing.join(", ");
        Check::fail(
            "subscriptions",
            format!("{url} ({id}) isn't subscribed to {missing}: add them in the dashboard"),
        )
    });
    checks.push(match (position(endpoint, ours.secrets, now), ours.secrets.len()) {
        (Some(_), 1) => Check::ok("secret", "WORKOS_WEBHOOK_SECRET is the endpoint's"),
        (Some(position), count) => Check::ok(
            "secret",
            format!("secret {position} of the {count} in WORKOS_WEBHOOK_SECRET is the endpoint's"),
        ),
        (None, _) if endpoint.secret.is_none() => Check::warn(
            "secret",
            "WorkOS doesn't show the endpoint's secret: it can't be compared",
        ),
        (None, _) => Check::fail(
            "secret",
            format!("the secret of {url} ({id}) is none of WORKOS_WEBHOOK_SECRET: take it from the dashboard"),
        ),
    });
    checks
}

/// Ours: by `--url`, else by a secret of ours, else by the path.
fn find<'e>(
    ours: &Ours<'_>,
    endpoints: &'e [WebhookEndpoint],
    now: DateTime<Utc>,
) -> Result<&'e WebhookEndpoint, String> {
    if endpoints.is_empty() {
        let place = ours
            .url
            .map_or_else(|| "its public URL".to_owned(), Url::to_string);
        return Err(format!(
            "WorkOS has no webhook endpoint in this environment: add one for {place} in the dashboard"
        ));
    }
    let count = endpoints.len();
    if let Some(url) = ours.url {
        let is_ours = |endpoint: &&WebhookEndpoint| {
            endpoint.url.trim_end_matches('/') == url.as_str().trim_end_matches('/')
        };
        return endpoints.iter().find(is_ours).ok_or_else(|| {
            format!("none of the {count} webhook endpoints in WorkOS is for {url}: add it, or correct --url")
        });
    }
    let has_our_secret =
        |endpoint: &&WebhookEndpoint| position(endpoint, ours.secrets, now).is_some();
    if let Some(endpoint) = endpoints.iter().find(has_our_secret) {
        return Ok(endpoint);
    }
    let has_our_path = |endpoint: &&WebhookEndpoint| {
        let path = Url::parse(&endpoint.url);
        path.is_ok_and(|url| url.path().trim_end_matches('/') == ours.path.trim_end_matches('/'))
    };
    let with_our_path: Vec<_> = endpoints.iter().filter(has_our_path).collect();
    match with_our_path[..] {
        [endpoint] => Ok(endpoint),
        [] => Err(format!(
            "none of the {count} webhook endpoints in WorkOS has a secret of WORKOS_WEBHOOK_SECRET, or the path \
             WEBHOOK_PATH: add it in the dashboard, or take its secret from there"
        )),
        _ => Err(format!(
            "{} webhook endpoints in WorkOS have the path WEBHOOK_PATH, and none a secret of WORKOS_WEBHOOK_SECRET: take \
             the secret from the dashboard, or say which it is by --url",
            with_our_path.len()
        )),
    }
}

/// Which of our secrets verifies what the endpoint's signs, from 1. Verifying compares in constant time.
fn position(
    endpoint: &WebhookEndpoint,
    secrets: &[SecretString],
    now: DateTime<Utc>,
) -> Option<usize> {
    let header = signature::sign(endpoint.secret.as_ref()?, b"", now);
    let header = [header.as_bytes()];
    signature::verify(header, b"", secrets, Duration::ZERO, now).ok()
}

/// How a ping was answered.
#[derive(Debug)]
pub(super) struct Pong {
    pub(super) status: u16,
    /// The `code` of a refusal of ours, or the `status` of an acknowledgement.
    pub(super) word: Option<String>,
}

/// Judges a ping. `arrived`: whether it is in the inbox, if that could be looked into.
pub(super) fn ping(url: &Url, pong: &Result<Pong, String>, arrived: Option<bool>) -> Check {
    const CHECK: &str = "ping";
    let Pong { status, word } = match pong {
        Ok(pong) => pong,
        Err(reason) => {
            let says = format!(
                "{url} can't be reached: {reason}; look at DNS, firewall, proxy and certificate"
            );
            return Check::fail(CHECK, says);
        }
    };
    let fail = |says: &str| Check::fail(CHECK, format!("{url} {says}"));
    match (status, word.as_deref()) {
        (200, Some("ignored")) => match arrived {
            Some(true) => Check::ok(CHECK, format!("a signed event came through {url}")),
            Some(false) => fail(
                "acknowledged a signed event, which isn't in this database: another workos-sync answers there, with \
                 another DATABASE_URL",
            ),
            None => Check::warn(
                CHECK,
                format!(
                    "{url} acknowledged a signed event; whether it is in the database can't be seen"
                ),
            ),
        },
        (200..=299, _) => fail("answers, but not as workos-sync does: something else is there"),
        (300..=399, _) => {
            fail("redirects, and WorkOS follows no redirect: use the URL that it leads to")
        }
        (401, Some(code)) if code.starts_with("signature_") => Check::fail(
            CHECK,
            format!(
                "{url} refuses our signature ({code}): the service that runs there has another WORKOS_WEBHOOK_SECRET, \
                 another clock, or a proxy changes the body"
            ),
        ),
        (401 | 403, _) => {
            fail("asks for a login before workos-sync is reached: let WorkOS through")
        }
        (404, _) => fail(
            "is not found (404): correct the path of the URL, WEBHOOK_PATH, or the proxy's route",
        ),
        (502..=504, None) => fail("is a proxy that doesn't reach workos-sync: is it running?"),
        (503, Some(code)) => Check::fail(
            CHECK,
            format!("{url} can't store events now ({code}): look at its database"),
        ),
        (status, _) => Check::fail(
            CHECK,
            format!("{url} answers {status}: look at the log of what is there"),
        ),
    }
}

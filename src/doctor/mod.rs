//! Looks at everything that is usually wrong (R52). Each check is a question, asked here, and a verdict on the answer,
//! which is pure. Nothing is written but the ping.

mod store;
mod verdict;

pub use verdict::{Check, Level};

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use reqwest::header::CONTENT_TYPE;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::timeout;
use ulid::Ulid;
use url::Url;

use crate::clock::Clock;
use crate::entities;
use crate::entities::organization::Host;
use crate::entities::organization::host::{HostTable, LookupError};
use crate::event::rfc3339;
use crate::heal::key::KeyGuard;
use crate::postgres::error::describe;
use crate::postgres::{self, DatabaseUrl, migrate};
use crate::signature;
use crate::workos::{self, ReadFrom, Trail, WebhookEndpoint, WorkosClient, WorkosError};
use verdict::{Ours, Pong, Pooling, Resource};

/// How long the database may take to let us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a transaction behind a pooler may wait for a server.
const POOLER_TIMEOUT: Duration = Duration::from_secs(3);

/// The type of the event that is posted: none that is handled, so it is recorded and changes nothing.
pub const PING: &str = "ping";

/// What is looked at.
#[derive(Debug)]
pub struct Setup {
    /// `DATABASE_URL`
    pub database: DatabaseUrl,
    /// `MIGRATE_ON_START`
    pub migrates_on_start: bool,
    /// `WORKOS_WEBHOOK_SECRET`
    pub secrets: Vec<SecretString>,
    /// `WEBHOOK_TOLERANCE_SECONDS`
    pub tolerance: Duration,
    /// `WORKOS_API_KEY` and `WORKOS_API_URL`
    pub client: Option<WorkosClient>,
    /// `WEBHOOK_PATH`
    pub webhook_path: String,
    /// Where WorkOS is to deliver to; without a path, `WEBHOOK_PATH` is that.
    pub url: Option<Url>,
    /// This machine's clock.
    pub clock: Arc<dyn Clock>,
}

impl Setup {
    /// Looks at everything.
    pub async fn examine(&self) -> Vec<Check> {
        let url = self.url.clone().map(|mut url| {
            if url.path() == "/" {
                url.set_path(&self.webhook_path);
            }
            url
        });
        let mut checks = Vec::new();
        let table = self.look_at_database(&mut checks).await;
        self.look_at_workos(table.clone(), url.as_ref(), &mut checks)
            .await;
        if let Some(url) = &url {
            checks.push(self.ping(url).await);
        }
        checks
    }

    /// Says what the application's table is, if it can be asked for.
    async fn look_at_database(&self, checks: &mut Vec<Check>) -> Option<HostTable> {
        let place = self.database.to_string();
        for parameter in &self.database.ignored {
            let says =
                format!("DATABASE_URL: unknown parameter {parameter:?} is ignored: remove it");
            checks.push(Check::warn("database", says));
        }
        let unreachable = |reason: String| {
            let says =
                format!("{place}: {reason}; correct DATABASE_URL, or what keeps it from answering");
            Check::fail("database", says)
        };
        let connected = timeout(CONNECT_TIMEOUT, self.database.options.connect()).await;
        let mut connection = match connected {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                checks.push(unreachable(describe(&error)));
                return None;
            }
            Err(_elapsed) => {
                checks.push(unreachable("no answer".to_owned()));
                return None;
            }
        };
        let asked = self.ask_database(&mut connection, &place, checks).await;
        // What there is to be said is said.
        let _ = connection.close().await;
        match asked {
            Ok(table) => Some(table),
            Err(LookupError::Database(error)) => {
                checks.push(unreachable(describe(&error)));
                None
            }
            Err(error) => {
                checks.push(Check::fail("table", error.to_string()));
                None
            }
        }
    }

    async fn ask_database(
        &self,
        connection: &mut PgConnection,
        place: &str,
        checks: &mut Vec<Check>,
    ) -> Result<HostTable, LookupError> {
        checks.extend(verdict::pooling(self.find_pooler().await?));
        let mut tx = postgres::begin(connection).await?;
        let server = store::server(&mut tx).await?;
        checks.push(verdict::server(place, &server));
        let mut may_ask_version = true;
        if let Some(may_use) = store::may_use_schema(&mut tx).await? {
            let missing = store::missing_rights(&mut tx).await?;
            may_ask_version =
                may_use && missing.iter().all(|(on, _)| on != "workos_sync.migrations");
            checks.push(verdict::rights(&server.role, may_use, &missing));
            let writers = store::other_writers(&mut tx).await?;
            checks.extend(verdict::writers(&writers));
        }
        if may_ask_version {
            let pending = migrate::pending(&mut tx).await?;
            checks.push(verdict::migrations(&pending, self.migrates_on_start));
        }
        let table = HostTable::read(&mut tx, self.database.schema.as_deref()).await?;
        tx.rollback().await?;
        checks.extend(verdict::table(&table));
        Ok(table)
    }

    /// Finds out whether two transactions of one connection have one server: another connection takes it in between, if
    /// a pooler lends it.
    async fn find_pooler(&self) -> Result<Pooling, sqlx::Error> {
        let options = &self.database.options;
        let (mut one, mut other) = (options.connect().await?, options.connect().await?);
        let asked = async {
            let first = store::backend(&mut one).await?;
            let mut between = other.begin().await?;
            store::backend(&mut between).await?;
            let second = store::backend(&mut one).await?;
            Ok::<_, sqlx::Error>(first == second)
        };
        let pooling = match timeout(POOLER_TIMEOUT, asked).await {
            Ok(Ok(true)) => Pooling::None,
            // It has one server, and the other connection holds that.
            Ok(Ok(false)) | Err(_) => Pooling::Transaction,
            Ok(Err(error)) if store::lost_a_statement(&error) => Pooling::LosesStatements,
            Ok(Err(error)) => return Err(error),
        };
        Ok(pooling)
    }

    async fn look_at_workos(
        &self,
        table: Option<HostTable>,
        url: Option<&Url>,
        checks: &mut Vec<Check>,
    ) {
        let Some(client) = &self.client else {
            checks.push(Check::warn(
                "api key",
                "WORKOS_API_KEY is not set: nothing is written to WorkOS, polled or compared",
            ));
            return;
        };
        let organizations = client.list_organizations(None, self.clock.now()).await;
        let answered_at = self.clock.now();
        checks.push(verdict::access(Resource::Organizations, &organizations));
        if let Ok(page) = &organizations {
            checks.push(verdict::clock(&page.answered, answered_at, self.tolerance));
        }
        if let Err(WorkosError::Unavailable { .. }) = organizations {
            return;
        }
        let now = self.clock.now();
        let types: Vec<_> = entities::types_of_workos().collect();
        let hour = TimeDelta::hours(1);
        let events = client
            .list_events(&types, ReadFrom::Time(now - hour), None, now)
            .await;
        checks.push(verdict::access(Resource::Events, &events));
        if organizations.is_ok()
            && let Some(table) = table.filter(HostTable::is_usable)
        {
            checks.push(self.look_at_environment(client, table).await);
        }
        let endpoints = self.endpoints(client).await;
        checks.push(verdict::access(Resource::Endpoints, &endpoints));
        if let Ok(endpoints) = endpoints {
            let ours = Ours {
                url,
                path: &self.webhook_path,
                secrets: &self.secrets,
            };
            checks.extend(verdict::endpoint(&ours, &endpoints, now));
        }
    }

    async fn look_at_environment(&self, client: &WorkosClient, table: HostTable) -> Check {
        let pool = postgres::pool(self.database.options.clone(), 1);
        let host = Host::new(table, self.database.schema.clone());
        let clock = Arc::clone(&self.clock);
        let guard = KeyGuard::new(pool.clone(), host, client.clone(), clock);
        let checked = guard.check().await;
        pool.close().await;
        verdict::environment(&checked)
    }

    async fn endpoints(&self, client: &WorkosClient) -> Result<Vec<WebhookEndpoint>, WorkosError> {
        let mut endpoints = Vec::new();
        let (mut after, mut trail) = (None, Trail::default());
        loop {
            let now = self.clock.now();
            let page = client.list_webhook_endpoints(after.as_deref(), now).await?;
            endpoints.extend(page.endpoints);
            match page.after {
                Some(next) => {
                    trail.go_on(&next)?;
                    after = Some(next);
                }
                None => return Ok(endpoints),
            }
        }
    }

    /// Posts a signed event to the public address, and looks whether it arrives.
    async fn ping(&self, url: &Url) -> Check {
        let Some(secret) = self.secrets.first() else {
            return Check::fail(
                "ping",
                "there is no WORKOS_WEBHOOK_SECRET to sign with: set it",
            );
        };
        let now = self.clock.now();
        let ms = u64::try_from(now.timestamp_millis()).unwrap_or(0);
        let id = format!("{PING}_{}", Ulid::from_parts(ms, fastrand::u128(..)));
        let at = rfc3339(now);
        let body = json!({"id": id, "event": PING, "data": {}, "created_at": at}).to_string();
        let header = signature::sign(secret, body.as_bytes(), now);
        let pong = post(url, header, body).await;
        let arrived = match &pong {
            Ok(pong) if pong.status == 200 => self.has_arrived(&id).await,
            _ => None,
        };
        verdict::ping(url, &pong, arrived)
    }

    /// Whether an event is in the inbox, if that can be looked into. It is stored before it is acknowledged.
    async fn has_arrived(&self, event_id: &str) -> Option<bool> {
        let connect = timeout(CONNECT_TIMEOUT, self.database.options.connect());
        let mut connection = connect.await.ok()?.ok()?;
        store::is_recorded(&mut connection, event_id).await.ok()
    }
}

/// What an answer of ours has.
#[derive(Deserialize)]
struct Answer {
    code: Option<String>,
    /// A number, in a refusal.
    status: Option<serde_json::Value>,
}

async fn post(url: &Url, signature: String, body: String) -> Result<Pong, String> {
    let client = workos::http(workos::Timeouts::default())
        .map_err(|error| error.to_string())?
        .build()
        .map_err(|error| workos::chain(&error))?;
    let request = client
        .post(url.clone())
        .header(signature::HEADER, signature)
        .header(CONTENT_TYPE, "application/json")
        .body(body);
    let response = request.send().await;
    // Whoever asked knows the URL.
    let response = response.map_err(|error| workos::chain(&error.without_url()))?;
    let status = response.status().as_u16();
    // What is no answer of ours has no words.
    let answer = response.bytes().await.unwrap_or_default();
    let answer: Option<Answer> = serde_json::from_slice(&answer).ok();
    let word = answer.and_then(|answer| {
        let status = answer.status.as_ref().and_then(|status| status.as_str());
        answer.code.or_else(|| status.map(str::to_owned))
    });
    Ok(Pong { status, word })
}

//! The whole application around a database: as `serve` builds it, with a clock that stands still.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgExecutor, PgPool};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use workos_sync::clock::{Clock, ManualClock};
use workos_sync::entities::Target;
use workos_sync::entities::organization::Host;
use workos_sync::entities::organization::host::HostTable;
use workos_sync::entities::organization::organization_id::default_namespace;
use workos_sync::event::Event;
use workos_sync::http::health::Health;
use workos_sync::http::{App, router};
use workos_sync::inbox::{Inbox, Recorded, Source};
use workos_sync::metrics::{Metrics, gauges};
use workos_sync::outbox::Outbox;
use workos_sync::service::Engine;
use workos_sync::workos::WorkosClient;
use workos_sync::{postgres, signature};

use super::{EventBuilder, TestDatabase, eventually};

/// When the clock of every test stands at the start.
pub(crate) const NOW: DateTime<Utc> = DateTime::from_timestamp(1_800_000_000, 0).unwrap();

/// The webhook's secret.
pub(crate) const SECRET: &str = "whsec_test";

/// The application.
pub(crate) struct TestApp {
    pub(crate) db: Arc<TestDatabase>,
    /// The service's connections.
    pub(crate) pool: PgPool,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) inbox: Inbox,
    pub(crate) host: Host,
    pub(crate) outbox: Outbox,
    pub(crate) metrics: Metrics,
    pub(crate) http: App,
    pub(crate) router: Router,
    pub(crate) shutdown: CancellationToken,
}

/// What is built differently for a test.
pub(crate) struct Options {
    pub(crate) client: Option<WorkosClient>,
    pub(crate) secrets: Vec<SecretString>,
    pub(crate) tolerance: Duration,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_connections: u32,
    pub(crate) lock_places: usize,
    pub(crate) notifies: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            client: None,
            secrets: vec![SECRET.into()],
            tolerance: Duration::from_secs(180),
            max_body_bytes: 1_048_576,
            max_connections: 10,
            // As Postgres has by default.
            lock_places: 6_400,
            notifies: false,
        }
    }
}

/// The application's table, as a replica finds it that starts now. On a thread and a runtime of its own, because that is
/// nothing to await for the tests, and past a proxy that the service may have.
pub(crate) fn look_at(db: &TestDatabase) -> Host {
    let options: PgConnectOptions = db.url.parse().unwrap();
    let look = async move {
        let mut connection = options.connect().await.unwrap();
        let table = HostTable::read(&mut connection, None).await.unwrap();
        Host::new(table, None)
    };
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    let looking = std::thread::spawn(move || runtime().unwrap().block_on(look));
    looking.join().unwrap()
}

/// Ends a transaction that was held.
pub(crate) async fn release(mut connection: PgConnection) {
    connection.execute("commit").await.unwrap();
    connection.close().await.unwrap();
}

/// Puts events into the inbox as another replica would have, with as few columns as there can be, so that they are found
/// together.
pub(crate) async fn put(app: &TestApp, events: &[EventBuilder]) {
    for event in events {
        insert(&app.db.pool, event).await;
    }
}

/// Puts an event into the inbox by hand.
pub(crate) async fn insert(executor: impl PgExecutor<'_>, event: &EventBuilder) {
    let body = event.body();
    let parsed = Event::parse(body.as_bytes()).unwrap();
    sqlx::query(
        "insert into webhook_events (event_id, event_type, organization_id, payload)
         values ($1, $2, $3, $4::text::json)",
    )
    .bind(parsed.id.as_str())
    .bind(&parsed.event_type)
    .bind(parsed.workos_id.as_ref().map(ToString::to_string))
    .bind(&body)
    .execute(executor)
    .await
    .unwrap();
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// What a router answers.
    pub(crate) async fn of(router: &Router, request: Request<Body>) -> Self {
        let response = router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Self {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// The body, as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Fails the test with the body if the status is another.
    #[track_caller]
    pub(crate) fn assert(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }
}

/// A row of `organization_metadata`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Organization {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) slug: String,
    pub(crate) workos_id: Option<String>,
    pub(crate) workos_updated_at: Option<DateTime<Utc>>,
    pub(crate) workos_last_event_id: Option<String>,
    pub(crate) disabled_at: Option<DateTime<Utc>>,
}

/// A row of `webhook_events`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct InboxRow {
    pub(crate) status: String,
    pub(crate) outcome: Option<String>,
    pub(crate) organization_id: Option<String>,
    pub(crate) attempts: i32,
    pub(crate) last_error: Option<String>,
    pub(crate) processed_at: Option<DateTime<Utc>>,
    pub(crate) next_attempt_at: Option<DateTime<Utc>>,
    pub(crate) source: String,
    pub(crate) payload: String,
}

impl TestApp {
    /// On a database of its own.
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        Self::on(Arc::new(TestDatabase::new().await), options)
    }

    /// One more replica on a database.
    pub(crate) fn on(db: Arc<TestDatabase>, options: Options) -> Self {
        let clock = Arc::new(ManualClock::new(NOW));
        let metrics = Metrics::default();
        let shutdown = CancellationToken::new();
        let host = look_at(&db);
        let pool = postgres::pool(db.options.clone(), options.max_connections);
        let client = options.client;
        let client = client.map(|client| client.counted_by(metrics.clone()));
        let target = Target {
            host: host.clone(),
            namespace: default_namespace(),
            notifies: options.notifies,
        };
        let Engine { outbox, inbox, .. } = Engine::new(
            pool.clone(),
            clock.clone(),
            target,
            client,
            metrics.clone(),
            options.lock_places,
            shutdown.clone(),
        );
        let http = App::new(
            inbox.clone(),
            Health::new(
                shutdown.clone(),
                db.options.clone(),
                host.clone(),
                Some(inbox.clone()),
            ),
            clock.clone(),
            metrics.clone(),
            options.secrets,
            options.tolerance,
            options.max_body_bytes,
        );
        let router = router(http.clone(), "/webhooks/workos");
        Self {
            db,
            pool,
            clock,
            inbox,
            host,
            outbox,
            metrics,
            http,
            router,
            shutdown,
        }
    }

    /// Sends a request through the router.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        Answer::of(&self.router, request).await
    }

    /// A signed delivery.
    pub(crate) fn delivery(&self, body: &str) -> axum::http::request::Builder {
        let header = signature::sign(&SECRET.into(), body.as_bytes(), self.clock.now());
        Request::post("/webhooks/workos").header("workos-signature", header)
    }

    /// A transaction of somebody else's that has run a statement, past a proxy that the service may have.
    pub(crate) async fn hold(&self, sql: &'static str) -> PgConnection {
        let mut connection = self.db.connect().await;
        connection.execute("begin").await.unwrap();
        connection.execute(sql).await.unwrap();
        connection
    }

    /// Delivers a signed body.
    pub(crate) async fn deliver(&self, body: &str) -> Answer {
        let request = self
            .delivery(body)
            .body(Body::from(body.to_owned()))
            .unwrap();
        self.send(request).await
    }

    /// Records an event, past the signature.
    pub(crate) async fn record(&self, event: &EventBuilder) -> Recorded {
        let body = event.body().into_bytes();
        let event = self.inbox.read(body, None, Source::Webhook).unwrap();
        self.inbox.record(event).await.unwrap().recorded
    }

    /// Records an event by its body.
    pub(crate) async fn record_body(&self, body: &str) -> Recorded {
        let body = body.as_bytes().to_vec();
        let event = self.inbox.read(body, None, Source::Webhook).unwrap();
        self.inbox.record(event).await.unwrap().recorded
    }

    /// Records an event, processes what is due, and says what came of it: outcome or status.
    pub(crate) async fn apply(&self, event: &EventBuilder) -> String {
        self.record(event).await;
        self.settle().await;
        let row = self.inbox_row(event.event_id()).await;
        row.outcome.unwrap_or(row.status)
    }

    /// Processes everything that is due.
    pub(crate) async fn settle(&self) {
        let settled = tokio::time::timeout(Duration::from_secs(120), self.inbox.drain());
        settled.await.expect("the inbox is drained").unwrap();
        // What is committed is seen before the answer to the COMMIT is, and logged and counted after it.
        eventually("nothing is in hand", async || self.inbox.load().taken == 0).await;
    }

    /// Asks the database for the gauges.
    pub(crate) async fn measure(&self) -> Result<(), sqlx::Error> {
        gauges::measure(&self.pool, &*self.clock, &self.metrics).await
    }

    /// Every organization, by id.
    pub(crate) async fn organizations(&self) -> Vec<Organization> {
        sqlx::query_as(
            "select id, name, slug, workos_id, workos_updated_at, workos_last_event_id, disabled_at
             from organization_metadata order by id",
        )
        .fetch_all(&self.db.pool)
        .await
        .unwrap()
    }

    /// The one organization there is.
    pub(crate) async fn organization(&self) -> Organization {
        let mut rows = self.organizations().await;
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.remove(0)
    }

    /// A row of the inbox.
    pub(crate) async fn inbox_row(&self, event_id: &str) -> InboxRow {
        sqlx::query_as(
            "select status, outcome, organization_id, attempts, last_error, processed_at, next_attempt_at,
                    source, payload::text
             from webhook_events where event_id = $1",
        )
        .bind(event_id)
        .fetch_one(&self.db.pool)
        .await
        .unwrap()
    }

    /// The cursor of a WorkOS organization.
    pub(crate) async fn cursor(&self, workos_id: &str) -> Option<String> {
        sqlx::query_scalar(
            "select last_event_id from workos_organization_syncs where workos_id = $1",
        )
        .bind(workos_id)
        .fetch_optional(&self.db.pool)
        .await
        .unwrap()
    }

    /// Runs a statement of the test's own.
    pub(crate) async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.db.pool).await.unwrap();
    }
}

//! A service to look at, with a private database and a pretended WorkOS, whose organizations change all the time. Now and
//! then a webhook gets lost, or an organization has a name that the application's table doesn't take.
//!
//! `make demo`, or
//!
//! ```sh
//! cargo build && cargo run --example demo
//! ```

use std::error::Error;
use std::future::IntoFuture;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{self, RawQuery, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use chrono::{DateTime, SecondsFormat, Utc};
use rustix::process::{Pid, Signal, kill_process};
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use ulid::Ulid;
use workos_sync::clock::{Clock, SystemClock};
use workos_sync::signature;

/// How many organizations there are when it begins.
const FIRST: usize = 40;

/// A table as an application may have it: some names are too long for it.
const LONGEST_NAME: usize = 60;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // reqwest takes the provider of the process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let program = Program::beside_this()?;
    let workos = Pretended::as_it_was(&program.data_dir)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let api = format!("http://{}", listener.local_addr()?);
    let mut server = JoinSet::new();
    server.spawn(axum::serve(listener, workos.router()).into_future());

    let (mut service, webhook, page) = program.serve(&api).await?;
    program.ask_for_everything(&api).await?;
    shorten_names(&program.database()?).await?;
    announce(&page);
    let secret = program.secret()?;
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        failed = deliver(&workos, &webhook, &secret) => failed?,
        // The service gets this signal, too.
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {
            if let Some(pid) = service.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                kill_process(pid, Signal::TERM)?;
            }
        }
    }
    service.wait().await?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "it is what the demo is for")]
fn announce(page: &str) {
    println!("\nLook at {page} — Ctrl-C ends the demo.\n");
}

/// The built program.
struct Program {
    path: PathBuf,
    data_dir: PathBuf,
}

impl Program {
    fn beside_this() -> Result<Self, Failure> {
        let this = std::env::current_exe()?;
        let target = this.ancestors().nth(2).unwrap_or(Path::new("."));
        Ok(Self {
            path: target.join("workos-sync"),
            data_dir: target.join("demo"),
        })
    }

    fn command(&self, api: &str) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env("DATA_DIR", &self.data_dir)
            .env("WORKOS_API_URL", api)
            .env("WORKOS_API_KEY", "sk_demo")
            .env_remove("DATABASE_URL");
        command
    }

    /// Starts the service; says where it receives webhooks, and where its page is.
    async fn serve(&self, api: &str) -> Result<(Child, String, String), Failure> {
        let mut service = self
            .command(api)
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("EVENTS_POLL_SECONDS", "15")
            .env("LOG_LEVEL", "error")
            .arg("serve")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = service.stdout.take().ok_or("it has a standard output")?;
        let (mut webhook, mut page) = (None, None);
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await? {
            if let Some((_, url)) = line.split_once(" receives webhooks at ") {
                webhook = Some(url.to_owned());
            }
            if let Some((_, url)) = line.split_once(" becomes of them at ") {
                page = Some(url.to_owned());
            }
            if let (Some(webhook), Some(page)) = (&webhook, &page) {
                return Ok((service, webhook.clone(), page.clone()));
            }
        }
        Err("the service does not start".into())
    }

    /// Reads all organizations, and compares them: the mirror may be trusted then.
    async fn ask_for_everything(&self, api: &str) -> Result<(), Failure> {
        for what in ["backfill", "reconcile"] {
            let done = self
                .command(api)
                .arg(what)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .await?;
            // 3: they differ, by what was poison the last time.
            if !matches!(done.code(), Some(0 | 3)) {
                return Err(format!("{what}: {done}").into());
            }
        }
        Ok(())
    }

    fn database(&self) -> Result<String, Failure> {
        Ok(std::fs::read_to_string(self.data_dir.join("database_url"))?)
    }

    fn secret(&self) -> Result<SecretString, Failure> {
        let secret = std::fs::read_to_string(self.data_dir.join("webhook_secret"))?;
        Ok(secret.trim().into())
    }
}

/// Gives the table a rule of the application's.
async fn shorten_names(database: &str) -> Result<(), Failure> {
    let mut connection = PgConnection::connect(database).await?;
    sqlx::raw_sql("alter table organization_metadata drop constraint if exists name_is_short")
        .execute(&mut connection)
        .await?;
    let rule = format!(
        "alter table organization_metadata add constraint name_is_short check (length(name) <= {LONGEST_NAME})"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(rule))
        .execute(&mut connection)
        .await?;
    Ok(connection.close().await?)
}

/// Has organizations change, and delivers what they bring.
async fn deliver(workos: &Pretended, webhook: &str, secret: &SecretString) -> Result<(), Failure> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    loop {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(200..1_500))).await;
        let event = workos.change();
        if fastrand::u32(..20) == 0 {
            // Lost: the poll finds it.
            continue;
        }
        let body = event.to_string();
        let signature = signature::sign(secret, body.as_bytes(), SystemClock.now());
        let delivery = http
            .post(webhook)
            .header(signature::HEADER, signature)
            .body(body);
        // It may be about to end.
        let _answer = delivery.send().await;
    }
}

/// An environment of WorkOS, as far as the service looks at it.
#[derive(Clone, Default)]
struct Pretended(Arc<Mutex<World>>);

#[derive(Default)]
struct World {
    /// Where the organizations are kept for the next time: the database is.
    file: PathBuf,
    organizations: Vec<Value>,
    events: Vec<Value>,
}

impl Pretended {
    /// The organizations of the last time, or new ones.
    fn as_it_was(data_dir: &Path) -> Result<Self, Failure> {
        let workos = Self::default();
        workos.world().file = data_dir.with_extension("json");
        let kept = std::fs::read(&workos.world().file);
        if let Ok(kept) = kept {
            workos.world().organizations = serde_json::from_slice(&kept)?;
        } else {
            for _ in 0..FIRST {
                workos.create();
            }
        }
        Ok(workos)
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/organizations", get(list_organizations))
            .route(
                "/organizations/{id}",
                get(get_organization).put(put_organization),
            )
            .route("/events", get(list_events))
            .with_state(self.clone())
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self) -> Value {
        let organization = json!({
            "object": "organization",
            "id": format!("org_{}", ulid()),
            "name": name(),
            "external_id": null,
            "created_at": now(),
            "updated_at": now(),
        });
        let mut world = self.world();
        world.organizations.push(organization.clone());
        world.record("organization.created", &organization)
    }

    /// Something happens; says which event tells of it.
    fn change(&self) -> Value {
        match fastrand::u32(..20) {
            0..3 => return self.create(),
            3 => {
                let user = json!({ "object": "user", "id": format!("user_{}", ulid()) });
                return self.world().record("user.updated", &user);
            }
            _ => {}
        }
        let mut world = self.world();
        let at = fastrand::usize(..world.organizations.len());
        if world.organizations.len() > FIRST && fastrand::u32(..10) == 0 {
            let gone = world.organizations.swap_remove(at);
            return world.record("organization.deleted", &gone);
        }
        let organization = &mut world.organizations[at];
        organization["name"] = match fastrand::u32(..40) {
            0 => format!("{}\0", name()),
            1 | 2 => format!(
                "{} and all of its subsidiaries, branches and offices in other places",
                name()
            ),
            _ => name(),
        }
        .into();
        organization["updated_at"] = now().into();
        let organization = organization.clone();
        world.record("organization.updated", &organization)
    }
}

impl World {
    fn record(&mut self, event_type: &str, data: &Value) -> Value {
        let event = json!({
            "id": format!("event_{}", ulid()),
            "event": event_type,
            "created_at": now(),
            "data": data,
        });
        self.events.push(event.clone());
        // If it can't be kept, the next time begins with another environment, and says so.
        let _kept = std::fs::write(&self.file, Value::from(&*self.organizations).to_string());
        event
    }
}

/// A parameter of a query.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let mut named = pairs.filter(|(known, _)| known == name);
    named.next().map(|(_, value)| value.into_owned())
}

/// A page of a list, behind an element.
fn page<'a>(all: impl Iterator<Item = &'a Value>, after: Option<&str>) -> Json<Value> {
    let mut all = all.skip_while(|element| after.is_some_and(|after| element["id"] != *after));
    if after.is_some() {
        all.next();
    }
    let mut data: Vec<_> = all.take(101).cloned().collect();
    let has_more = data.len() > 100;
    data.truncate(100);
    let after = data
        .last()
        .filter(|_| has_more)
        .map(|last| last["id"].clone());
    Json(json!({ "object": "list", "data": data, "list_metadata": { "after": after } }))
}

async fn list_organizations(
    State(workos): State<Pretended>,
    RawQuery(query): RawQuery,
) -> Json<Value> {
    let mut organizations = workos.world().organizations.clone();
    organizations.sort_by_key(|organization| organization["id"].to_string());
    page(
        organizations.iter(),
        parameter(query.as_deref(), "after").as_deref(),
    )
}

async fn list_events(State(workos): State<Pretended>, RawQuery(query): RawQuery) -> Json<Value> {
    let query = query.as_deref();
    let start = parameter(query, "range_start");
    let start = start.and_then(|start| DateTime::parse_from_rfc3339(&start).ok());
    let world = workos.world();
    let is_asked_for = |event: &&Value| {
        let made = event["created_at"]
            .as_str()
            .and_then(|made| DateTime::parse_from_rfc3339(made).ok());
        start.is_none() || made >= start
    };
    page(
        world.events.iter().filter(is_asked_for),
        parameter(query, "after").as_deref(),
    )
}

async fn get_organization(
    State(workos): State<Pretended>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<Value>, StatusCode> {
    let world = workos.world();
    let found = world
        .organizations
        .iter()
        .find(|organization| organization["id"] == *id);
    found.cloned().map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn put_organization(
    State(workos): State<Pretended>,
    extract::Path(id): extract::Path<String>,
    Json(wish): Json<Value>,
) -> Result<Json<Value>, StatusCode> {
    let mut world = workos.world();
    let found = world
        .organizations
        .iter_mut()
        .find(|organization| organization["id"] == *id);
    let organization = found.ok_or(StatusCode::NOT_FOUND)?;
    organization["external_id"] = wish["external_id"].clone();
    Ok(Json(organization.clone()))
}

fn name() -> String {
    const FIRST: [&str; 20] = [
        "Northwind",
        "Blue Harbor",
        "Acme",
        "Globex",
        "Kestrel",
        "Old Mill",
        "Pine Street",
        "Silverline",
        "Granite",
        "Lantern",
        "Meridian",
        "Copper Ridge",
        "Highland",
        "Juniper",
        "Redwood",
        "Summit",
        "Tidewater",
        "Willow",
        "Atlas",
        "Fairview",
    ];
    const SECOND: [&str; 12] = [
        "Traders",
        "Foods",
        "Robotics",
        "Health",
        "Logistics",
        "Energy",
        "Studios",
        "Bank",
        "Textiles",
        "Software",
        "Airways",
        "Research",
    ];
    const THIRD: [&str; 4] = ["", ", Inc.", " GmbH", " & Sons"];
    let any = |words: &[&'static str]| words[fastrand::usize(..words.len())];
    format!("{} {}{}", any(&FIRST), any(&SECOND), any(&THIRD))
}

fn now() -> String {
    SystemClock
        .now()
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn ulid() -> Ulid {
    let now: DateTime<Utc> = SystemClock.now();
    Ulid::from_parts(
        u64::try_from(now.timestamp_millis()).unwrap_or(0),
        fastrand::u128(..),
    )
}

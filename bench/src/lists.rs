//! What an operator looks at, on a big inbox: the page and the API are asked again and again, and it is measured how long
//! each answer takes. And a browser with the page open, for `update-watched`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use private_postgres::free_port;
use sqlx::PgPool;
use tokio::process::Command;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::load::Client;
use crate::measure::{Measurement, Metric, quantile};
use crate::process::Receiver;
use crate::workload::{Bench, MILLION};

/// How often each question is asked, of the page and of the API.
const ROUNDS: usize = 100;
/// Dead letters beside the settled events.
const DEAD: i64 = 100_000;
/// How often the page's script asks for what has changed.
const REFRESH: Duration = Duration::from_secs(5);

/// Something that is asked: its name, and the address on the page, which the API has under its own prefix but where it is
/// said. `{…}` stands for an id: another one each time where that makes a difference.
#[derive(Debug, Clone, Copy)]
struct Question {
    name: &'static str,
    page: &'static str,
    api: &'static str,
}

const fn question(name: &'static str, address: &'static str) -> Question {
    Question {
        name,
        page: address,
        api: address,
    }
}

const QUESTIONS: [Question; 37] = [
    Question {
        name: "the overview; the status",
        page: "/",
        api: "/status",
    },
    question("events", "/events"),
    question("events, the second page", "/events?after={second}"),
    question("events of the last hour", "/events?since=1h"),
    question("events of a month ago", "/events?until=30d"),
    question("a page of 1,000", "/events?limit=1000"),
    question("pending", "/events?status=pending"),
    question("processed", "/events?status=processed"),
    question("ignored: none", "/events?status=ignored"),
    question("failed", "/events?status=failed"),
    question("dead", "/events?status=dead"),
    question("dead, the second page", "/events?status=dead&after={dead}"),
    question("dead, of a month ago", "/events?status=dead&until=30d"),
    question("discarded", "/events?status=discarded"),
    question("a type that most have", "/events?type=organization.updated"),
    question(
        "a type of some",
        "/events?type=organization.created&since=90d",
    ),
    question("a type of none", "/events?type=user.created&since=90d"),
    question(
        "processed, of a type of none",
        "/events?status=processed&type=user.created&since=90d",
    ),
    question(
        "dead, of a type",
        "/events?status=dead&type=organization.created",
    ),
    question("an organization", "/events?organization={organization}"),
    question(
        "an organization, dead",
        "/events?organization={organization}&status=dead",
    ),
    question(
        "an organization, a type of none",
        "/events?organization={organization}&type=user.created",
    ),
    question("a source that most have", "/events?source=webhook&since=7d"),
    question("a source of some", "/events?source=events_api&since=90d"),
    question("a source of none", "/events?source=backfill&since=90d"),
    question("dead, of a source", "/events?status=dead&source=events_api"),
    question("a cause", "/events?cause=check:name_is_short"),
    question(
        "a cause, the second page",
        "/events?cause=check:name_is_short&after={cause}",
    ),
    question("a cause of ten events", "/events?cause=check:rare"),
    question(
        "a cause, discarded",
        "/events?cause=check:name_is_short&status=discarded",
    ),
    question("an error, of the last day", "/events?error=too+short"),
    question("an error of ten events", "/events?error=seldom&since=90d"),
    question(
        "dead, an error of ten events",
        "/events?status=dead&error=seldom",
    ),
    question("causes", "/causes"),
    question("an event", "/events/{event}"),
    question(
        "an organization, all of it",
        "/organizations/{organization}",
    ),
    Question {
        name: "runs; actions",
        page: "/runs",
        api: "/actions",
    },
];

/// What is asked, in order.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    QUESTIONS.iter().map(|question| question.name)
}

/// What is measured of a question.
pub(crate) type Answered = (&'static str, Measurement);

impl Bench {
    /// Asks everything, again and again, on the database of `update-1m`.
    pub(crate) async fn run_lists(&mut self) -> anyhow::Result<Vec<Answered>> {
        self.make_million().await?;
        let organizations = i64::try_from(self.sizes.million_organizations)?;
        let pool = self.postgres.connect(MILLION).await?;
        fill(&pool, organizations).await?;
        let (service, address) = self.serve_page(MILLION).await?;
        let answered = ask_all(address, organizations)
            .await
            .with_context(|| service.log())?;
        service.stop().await?;
        // The repetitions of `update-1m` are to find what they left.
        clear(&pool).await?;
        pool.close().await;
        Ok(answered)
    }

    /// The service with its page, and where that is.
    pub(crate) async fn serve_page(
        &self,
        database: &str,
    ) -> anyhow::Result<(Receiver, SocketAddr)> {
        let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
        let mut command = Command::new(&self.binary);
        command.args(["serve", "--admin-addr", &address.to_string()]);
        let service = Receiver::start(command, &self.postgres.url(database)).await?;
        Ok((service, address))
    }
}

/// Has the page open, as a browser has: it asks for the overview, and again every few seconds.
pub(crate) async fn watch(address: SocketAddr) -> anyhow::Result<Infallible> {
    let mut client = Client::connect(address).await?;
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        refresh.tick().await;
        get(&mut client, address, "/").await?;
    }
}

async fn ask_all(address: SocketAddr, organizations: i64) -> anyhow::Result<Vec<Answered>> {
    let mut client = Client::connect(address).await?;
    let mut seconds = Vec::new();
    for list in ["", "?status=dead", "?cause=check:name_is_short"] {
        let list = get(&mut client, address, &format!("/api/v1/events{list}")).await?;
        let next = list
            .split_once(r#""next":""#)
            .and_then(|(_, next)| next.split_once('"'));
        seconds.push(next.context("a list without a second page")?.0.to_owned());
    }
    let [second, dead, cause] = seconds.try_into().expect("three were asked for");
    let fill_in = |address: &str, round: usize| {
        let number = i64::try_from(round).unwrap_or_default() * 7_919;
        let organization = format!("org_01SEED{:020}", number % organizations + 1);
        // Every other one is a dead letter.
        let event = match round % 2 {
            0 => format!("event_01BBBBBBBB{:016}", number + 1),
            _ => format!("event_01CCCCCCCC{:016}", number % DEAD + 1),
        };
        address
            .replace("{second}", &second)
            .replace("{dead}", &dead)
            .replace("{cause}", &cause)
            .replace("{organization}", &organization)
            .replace("{event}", &event)
    };

    let mut page = vec![Vec::with_capacity(ROUNDS); QUESTIONS.len()];
    let mut api = page.clone();
    for round in 0..ROUNDS {
        // Each once, and then each again: a question finds in memory what the others have left there.
        for (place, question) in QUESTIONS.iter().enumerate() {
            let started = Instant::now();
            get(&mut client, address, &fill_in(question.page, round)).await?;
            page[place].push(started.elapsed());
            let path = format!("/api/v1{}", fill_in(question.api, round));
            let started = Instant::now();
            get(&mut client, address, &path).await?;
            api[place].push(started.elapsed());
        }
    }
    let measured = QUESTIONS.iter().zip(page.iter_mut().zip(&mut api));
    Ok(measured
        .map(|(question, (page, api))| {
            let mut measured = Measurement::default();
            for (latencies, p50, p95) in [
                (page, Metric::PageP50, Metric::PageP95),
                (api, Metric::ApiP50, Metric::ApiP95),
            ] {
                latencies.sort_unstable();
                for (metric, share) in [(p50, 0.5), (p95, 0.95)] {
                    let latency = quantile(latencies, share);
                    measured.set_some(
                        metric,
                        latency.map(|latency| latency.as_secs_f64() * 1000.0),
                    );
                }
            }
            (question.name, measured)
        })
        .collect())
}

/// Asks, and wants an answer.
async fn get(client: &mut Client, address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let answer = client
        .ask(request.as_bytes())
        .await
        .with_context(|| path.to_owned())?;
    ensure!(
        answer.status == 200,
        "{path}: {} {}",
        answer.status,
        answer.body
    );
    Ok(answer.body.to_owned())
}

/// Dead letters of several causes, types, sources and organizations, over the time of the settled events; some failed and
/// discarded ones, and some that a pause holds back; runs and actions.
async fn fill(pool: &PgPool, organizations: i64) -> anyhow::Result<()> {
    sqlx::query(
        "insert into workos_sync.webhook_events
             (event_id, status, event_type, organization_id, attempts, cause, last_error, received_at, source, payload)
         select 'event_01CCCCCCCC' || lpad(n::text, 16, '0'), 'dead',
                (array['organization.updated', 'organization.created', 'organization.deleted'])[n % 3 + 1],
                'org_01SEED' || lpad((n % $2 + 1)::text, 20, '0'), 5,
                case when n % ($1 / 10) = 0 then 'check:rare'
                     else (array['check:name_is_short', 'decode:data.name', 'sqlstate:P0001', 'trigger:audit',
                                 'unique:contracts_key'])[n % 5 + 1] end,
                'new row for relation \"organization_metadata\" violates check constraint: the name of organization '
                    || n || case when n % ($1 / 10) = 0 then ' is seldom' else ' is too short' end || ' (SQLSTATE 23514)',
                now() - interval '60 days' + n * interval '59 days' / $1,
                (array['webhook', 'webhook', 'webhook', 'events_api'])[n % 4 + 1],
                '{\"id\":\"event\"}'
         from generate_series(1, $1) n",
    )
    .bind(DEAD)
    .bind(organizations)
    .execute(pool)
    .await?;
    sqlx::raw_sql(
        "insert into workos_sync.pause (since, until, reason, actor)
         values (now(), now() + interval '24 hours', 'a benchmark', 'bench')
         on conflict (singleton) do update set until = excluded.until;
         insert into workos_sync.webhook_events
             (event_id, status, event_type, organization_id, attempts, cause, last_error, received_at, processed_at,
              next_attempt_at, payload)
         select 'event_01DDDDDDDD' || lpad(n::text, 16, '0'), (array['pending', 'failed', 'discarded'])[n % 3 + 1],
                'organization.updated', 'org_01SEED' || lpad(n::text, 20, '0'), 1, 'lock', 'the row is locked',
                now() - n * interval '1 second', now(), now() + interval '1 day', '{\"id\":\"event\"}'
         from generate_series(1, 3000) n;
         insert into workos_sync.event_attempts (event_id, attempt, at, cause, error)
         select event_id, attempt, received_at, cause, last_error
         from workos_sync.webhook_events, generate_series(1, 5) attempt
         where status = 'dead';
         insert into workos_sync.operator_actions (actor, action, filter, count)
         select 'bench', 'retry', '{\"filter\": {\"cause\": \"check:name_is_short\"}}', n from generate_series(1, 1000) n;
         insert into workos_sync.runs (kind, status, started_at, ended_at)
         select 'reconcile', 'complete', now() - n * interval '1 day', now() - n * interval '1 day'
         from generate_series(1, 1000) n;
         vacuum analyze",
    )
    .execute(pool)
    .await?;
    sqlx::raw_sql("checkpoint").execute(pool).await?;
    Ok(())
}

async fn clear(pool: &PgPool) -> anyhow::Result<()> {
    sqlx::raw_sql(
        "delete from workos_sync.webhook_events where event_id between 'event_01CCCCCCCC' and 'event_01E';
         truncate workos_sync.pause, workos_sync.operator_actions, workos_sync.runs cascade",
    )
    .execute(pool)
    .await?;
    Ok(())
}

//! What Postgres itself does on this machine, asked by `pgbench`: the limits that the service is measured
//! against.
//!
//! The transactions are written by hand to be the least that one event needs when it has a transaction to
//! itself: no inbox, no locks but those of the rows.

use std::path::Path;

use anyhow::{Context, ensure};

use crate::measure::{Measurement, Metric, quantile};
use crate::workload::{Bench, FEW_CONNECTIONS, MILLION};

const CLIENTS: [u32; 3] = [8, 16, 32];
const DATABASE: &str = "bench_pgbench";
const ORGANIZATIONS: u64 = 10_000;

/// A pgbench script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    script: &'static str,
    /// Whether the rows that a run was to write are there: a limit whose statements find nothing is none.
    proof: &'static str,
}

/// One update of an organization a transaction.
pub(crate) const UPDATE: Limit = Limit {
    name: "pgbench update",
    description: "one update a transaction: fetch by `workos_id`, update, advance the cursor",
    script: r"
\set n random(1, :organizations)
\set e random(1, 9000000000000000)
begin;
select id, workos_last_event_id from organization_metadata
where workos_id = 'org_01SEED' || lpad(:n::bigint::text, 20, '0');
update organization_metadata
set name = 'Organization ' || :n::bigint || ' as of ' || :e::bigint, workos_updated_at = now(),
    workos_last_event_id = 'event_' || lpad(:e::bigint::text, 26, '0'), updated_at = now()
where workos_id = 'org_01SEED' || lpad(:n::bigint::text, 20, '0');
insert into workos_sync.workos_organization_syncs (workos_id, last_event_id, last_event_updated_at, updated_at)
values ('org_01SEED' || lpad(:n::bigint::text, 20, '0'), 'event_' || lpad(:e::bigint::text, 26, '0'), now(), now())
on conflict (workos_id) do update
set last_event_id = excluded.last_event_id, last_event_updated_at = excluded.last_event_updated_at,
    updated_at = excluded.updated_at;
commit;
",
    proof: "select count(*) > 1000 from organization_metadata join workos_sync.workos_organization_syncs using (workos_id)
            where name like '% as of %' and last_event_id not like 'event%AAAAAAAA%'",
};

/// One new organization a transaction.
pub(crate) const CREATE: Limit = Limit {
    name: "pgbench create",
    description: "one creation a transaction: fetch, probe the slug, insert, advance the cursor, record the write-back",
    script: r"
\set e random(1, 9000000000000000000)
begin;
select id from organization_metadata where workos_id = 'org_' || lpad(:e::bigint::text, 26, '0');
select 1 from organization_metadata where slug = 'organization-new-' || :e::bigint;
insert into organization_metadata
    (id, name, slug, workos_id, workos_updated_at, workos_last_event_id, updated_at)
values (md5(:e::bigint::text)::uuid::text, 'Organization new ' || :e::bigint, 'organization-new-' || :e::bigint,
        'org_' || lpad(:e::bigint::text, 26, '0'), now(), 'event_' || lpad(:e::bigint::text, 26, '0'), now());
insert into workos_sync.workos_organization_syncs (workos_id, last_event_id, last_event_updated_at, updated_at)
values ('org_' || lpad(:e::bigint::text, 26, '0'), 'event_' || lpad(:e::bigint::text, 26, '0'), now(), now());
insert into workos_sync.external_id_pushes (workos_id, organization_id, next_attempt_at, created_at)
values ('org_' || lpad(:e::bigint::text, 26, '0'), md5(:e::bigint::text)::uuid::text, now(), now());
commit;
",
    proof: "select count(*) > 1000 from workos_sync.external_id_pushes
            join organization_metadata using (workos_id) join workos_sync.workos_organization_syncs using (workos_id)",
};

/// One row of an inbox a transaction. The table has a primary key and no other index.
pub(crate) const INSERT: Limit = Limit {
    name: "pgbench insert",
    description: "one row a transaction, into a table like the inbox with no index but its primary key",
    script: r#"
\set e random(1, 9000000000000000000)
insert into inbox (event_id, event_type, organization_id, received_at, source, payload)
values ('event_' || lpad(:e::bigint::text, 26, '0'), 'organization.updated',
        'org_' || lpad(:e::bigint::text, 26, '0'), now(), 'webhook',
        ('{"padding":"' || repeat('x', 850) || '"}')::json);
"#,
    proof: "select count(*) > 1000 from inbox where length(payload::text) > 850",
};

/// All of them, in the order of the report.
pub(crate) const ALL: [Limit; 3] = [UPDATE, CREATE, INSERT];

const INBOX: &str = "
create table inbox
(
    event_id        text        not null primary key,
    status          text        not null default 'pending',
    event_type      text        not null,
    organization_id text,
    received_at     timestamptz not null,
    source          text        not null,
    payload         json        not null
)";

impl Bench {
    /// Makes the database that the limits are measured on.
    pub(crate) async fn prepare_limits(&self) -> anyhow::Result<()> {
        self.prepare(DATABASE, ORGANIZATIONS).await?;
        let pool = self.postgres.connect(DATABASE).await?;
        for statement in [INBOX, "vacuum analyze", "checkpoint"] {
            sqlx::raw_sql(statement).execute(&pool).await?;
        }
        pool.close().await;
        Ok(())
    }

    /// The best of several numbers of clients, as fast as they can.
    pub(crate) async fn run_limit(
        &self,
        limit: Limit,
        seconds: u32,
    ) -> anyhow::Result<Measurement> {
        self.best(limit, DATABASE, ORGANIZATIONS, seconds).await
    }

    /// The same, in the database of the million.
    pub(crate) async fn run_limit_on_million(
        &self,
        limit: Limit,
        seconds: u32,
    ) -> anyhow::Result<Measurement> {
        let organizations = self.sizes.million_organizations;
        self.best(limit, MILLION, organizations, seconds).await
    }

    async fn best(
        &self,
        limit: Limit,
        database: &str,
        organizations: u64,
        seconds: u32,
    ) -> anyhow::Result<Measurement> {
        let mut best = Measurement::default();
        for clients in CLIENTS {
            let measured = self
                .pgbench(limit, database, organizations, clients, seconds, None)
                .await?;
            if measured.get(Metric::AppliedPerSecond) > best.get(Metric::AppliedPerSecond) {
                best = measured;
            }
        }
        let pool = self.postgres.connect(database).await?;
        let written: bool = sqlx::query_scalar(limit.proof).fetch_one(&pool).await?;
        pool.close().await;
        ensure!(written, "{} wrote nothing", limit.name);
        Ok(best)
    }

    /// At a given rate, for its latency; with as many clients as the generator has connections then.
    pub(crate) async fn run_limit_at(
        &self,
        limit: Limit,
        seconds: u32,
        rate: f64,
    ) -> anyhow::Result<Measurement> {
        let clients = u32::try_from(FEW_CONNECTIONS)?;
        self.pgbench(limit, DATABASE, ORGANIZATIONS, clients, seconds, Some(rate))
            .await
    }

    async fn pgbench(
        &self,
        limit: Limit,
        database: &str,
        organizations: u64,
        clients: u32,
        seconds: u32,
        rate: Option<f64>,
    ) -> anyhow::Result<Measurement> {
        let folder = tempfile::tempdir()?;
        let script = folder.path().join("script.sql");
        std::fs::write(&script, limit.script)?;
        let mut command = self.postgres.client("pgbench");
        command
            .args(["-n", "-M", "prepared", "-j", "2", "-l", "--log-prefix=log"])
            .args(["-c", &clients.to_string(), "-T", &seconds.to_string()])
            .args(["-D", &format!("organizations={organizations}")])
            .arg("-f")
            .arg(&script);
        if let Some(rate) = rate {
            command.args(["-R", &format!("{rate:.0}")]);
        }
        let output = command
            .arg(self.postgres.url(database))
            .current_dir(folder.path())
            .kill_on_drop(true)
            .output()
            .await
            .context("pgbench")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "pgbench: {}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let tps = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
            .context("pgbench told no rate")?;
        let latencies = latencies(folder.path())?;
        let mut measured = Measurement::default();
        measured.set(Metric::AppliedPerSecond, tps);
        measured.set(Metric::Clients, f64::from(clients));
        measured.set_some(Metric::AckP50, quantile(&latencies, 0.5));
        measured.set_some(Metric::AckP99, quantile(&latencies, 0.99));
        measured.set_some(Metric::AckP999, quantile(&latencies, 0.999));
        Ok(measured)
    }
}

/// The third field of each line of the log, in ascending order, in milliseconds
/// (<https://www.postgresql.org/docs/current/pgbench.html>, "Per-Transaction Logging").
fn latencies(folder: &Path) -> anyhow::Result<Vec<f64>> {
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            continue;
        }
        for line in std::fs::read_to_string(path)?.lines() {
            let microseconds = line.split(' ').nth(2).and_then(|field| field.parse().ok());
            latencies.push(microseconds.context("a line of pgbench's log")?);
        }
    }
    latencies.sort_by(f64::total_cmp);
    Ok(latencies.into_iter().map(|us: f64| us / 1000.0).collect())
}

//! Backfill and reconcile, against a WorkOS of the generator's own.

use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::PgPool;
use tokio::process::Command;
use tokio::time::Instant;
use ulid::Ulid;

use crate::events::scatter;
use crate::measure::{Measurement, Metric};
use crate::process::Usage;
use crate::workload::{Bench, Workload, per_second, resources, settle_down};
use crate::workos::{Organization, Workos};

const DATABASE: &str = "bench_heal";

/// How long the list of `reconcile` takes to answer: less than WorkOS does, of which it is far away.
const ANSWERS_AFTER: Duration = Duration::from_millis(10);

/// More requests a second than are made.
const LIFTED: &str = "10000";

/// What `WORKOS_API_RPS` is by default lets so many organizations through in a second.
pub(crate) const DEFAULT_BUDGET: f64 = 1_000.0;

/// As many as the default budget lets through in ten seconds.
const BUDGETED: usize = 10_000;

impl Bench {
    /// Runs a command that reads all organizations.
    pub(crate) async fn heal(&self, workload: Workload) -> anyhow::Result<Measurement> {
        let all = self.sizes.organizations;
        let (command, count, answers_after) = match workload {
            Workload::Reconcile => ("reconcile", all, ANSWERS_AFTER),
            Workload::BackfillBudget => ("backfill", all.min(BUDGETED), Duration::ZERO),
            _ => ("backfill", all, Duration::ZERO),
        };
        let rows = match workload {
            Workload::Reconcile => count,
            _ => 0,
        };
        self.prepare(DATABASE, u64::try_from(rows)?).await?;
        let pool = self.postgres.connect(DATABASE).await?;
        let organizations = match workload {
            Workload::Reconcile => mirrored(&pool).await?,
            _ => new(count),
        };
        let workos = Workos::start(&organizations, answers_after).await?;
        settle_down(&pool).await?;

        let mut measured = Measurement::default();
        if workload == Workload::Reconcile {
            measured.set(Metric::Listing, workos.list().await?.as_secs_f64());
        }
        let postgres_before = self.postgres.usage()?;
        let mut program = Command::new(&self.binary);
        program.arg(command);
        let mut settings = vec![
            ("WORKOS_API_KEY", "sk_bench".to_owned()),
            ("WORKOS_API_URL", workos.url()),
        ];
        if workload != Workload::BackfillBudget {
            settings.push(("WORKOS_API_RPS", LIFTED.to_owned()));
        }
        let started = Instant::now();
        let (used, said) = self.run_to_its_end(program, DATABASE, &settings).await?;
        let elapsed = started.elapsed();

        measured.set(Metric::Deliveries, count as f64);
        measured.set(Metric::Elapsed, elapsed.as_secs_f64());
        measured.set(Metric::AppliedPerSecond, per_second(count, elapsed));
        resources(
            &mut measured,
            (Usage::default(), postgres_before),
            (used, self.postgres.usage()?),
        );
        let done = match workload {
            Workload::Reconcile => format!("{count} organizations, 0 differences: in step"),
            _ => format!("{count} created"),
        };
        ensure!(said.contains(&done), "{command}: {said}");
        check(&pool, &organizations).await?;
        pool.close().await;
        self.postgres.drop_database(DATABASE).await?;
        Ok(measured)
    }
}

/// Organizations that were made in the dashboard: the service has to record that it writes each its id.
fn new(count: usize) -> Vec<Organization> {
    (0..)
        .take(count)
        .map(|n| Organization {
            workos_id: format!(
                "org_{}",
                Ulid::from_parts(1_735_689_600_000 + n, scatter(n))
            ),
            name: format!("Organization {n}, Inc."),
            external_id: None,
        })
        .collect()
}

/// What WorkOS has, where it is in step with the rows.
async fn mirrored(pool: &PgPool) -> anyhow::Result<Vec<Organization>> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("select workos_id, name, id from organization_metadata order by workos_id")
            .fetch_all(pool)
            .await?;
    Ok(rows
        .into_iter()
        .map(|(workos_id, name, id)| Organization {
            workos_id,
            name,
            external_id: Some(id),
        })
        .collect())
}

/// Each organization has its row, and nothing of what was stored waits.
async fn check(pool: &PgPool, organizations: &[Organization]) -> anyhow::Result<()> {
    let ids: Vec<_> = organizations.iter().map(|one| &*one.workos_id).collect();
    let names: Vec<_> = organizations.iter().map(|one| &*one.name).collect();
    let (rows, as_told, unsettled): (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from organization_metadata),
                (select count(*)
                 from unnest($1::text[], $2::text[]) as told (workos_id, name)
                          join organization_metadata using (workos_id, name)),
                (select count(*) from workos_sync.webhook_events where status <> 'processed' or attempts <> 1)",
    )
    .bind(&ids)
    .bind(&names)
    .fetch_one(pool)
    .await
    .context("the check")?;
    let expected = i64::try_from(organizations.len())?;
    ensure!(
        (rows, as_told, unsettled) == (expected, expected, 0),
        "{expected} organizations: {rows} rows, {as_told} of them as told, {unsettled} events not settled at once"
    );
    Ok(())
}

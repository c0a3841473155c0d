//! Compares the database with what was sent. A benchmark that loses events measures nothing, so whatever
//! differs fails the run.

use std::collections::HashMap;

use anyhow::{bail, ensure};
use sqlx::PgPool;

use crate::events::Event;

/// So many differences are told in full.
const SHOWN: usize = 5;

/// What was there before.
#[derive(Debug)]
pub(crate) struct Before {
    events: i64,
    organizations: i64,
}

impl Before {
    pub(crate) async fn read(pool: &PgPool) -> anyhow::Result<Self> {
        Ok(Self {
            events: count_events(pool).await?,
            organizations: count_organizations(pool).await?,
        })
    }
}

async fn count_events(pool: &PgPool) -> anyhow::Result<i64> {
    Ok(
        sqlx::query_scalar("select count(*) from workos_sync.webhook_events")
            .fetch_one(pool)
            .await?,
    )
}

async fn count_organizations(pool: &PgPool) -> anyhow::Result<i64> {
    Ok(
        sqlx::query_scalar("select count(*) from organization_metadata")
            .fetch_one(pool)
            .await?,
    )
}

/// Every event is in the inbox, settled by one attempt, and nothing else was added.
pub(crate) async fn inbox(pool: &PgPool, before: &Before, events: &[Event]) -> anyhow::Result<()> {
    let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
    let wrong: Vec<String> = sqlx::query_scalar(
        "select format('%s: %s, %s attempts, %s', sent.id, coalesce(status, 'lost'), coalesce(attempts, 0),
                       coalesce(last_error, 'no error'))
         from unnest($1::text[]) as sent (id)
                  left join workos_sync.webhook_events on event_id = sent.id
         where event_id is null
            or status not in ('processed', 'ignored')
            or attempts <> 1",
    )
    .bind(&ids)
    .fetch_all(pool)
    .await?;
    differences("events were lost, not settled, or settled twice", &wrong)?;
    let added = count_events(pool).await? - before.events;
    ensure!(
        usize::try_from(added)? == events.len(),
        "{} events were sent, {added} are in the inbox",
        events.len()
    );
    Ok(())
}

/// Every organization is there once, and is what its newest event says.
pub(crate) async fn organizations(
    pool: &PgPool,
    before: &Before,
    events: &[Event],
    made: usize,
) -> anyhow::Result<()> {
    let added = count_organizations(pool).await? - before.organizations;
    ensure!(
        usize::try_from(added)? == made,
        "{made} organizations were to be made, {added} were"
    );
    let mut newest: HashMap<&str, &Event> = HashMap::new();
    for event in events {
        let newest = newest.entry(&event.workos_id).or_insert(event);
        if event.id > newest.id {
            *newest = event;
        }
    }
    let newest: Vec<&Event> = newest.into_values().collect();
    let column = |of: fn(&Event) -> &str| newest.iter().map(|event| of(event)).collect();
    let workos_ids: Vec<&str> = column(|event| &event.workos_id);
    let event_ids: Vec<&str> = column(|event| &event.id);
    let names: Vec<&str> = column(|event| &event.name);
    let wrong: Vec<String> = sqlx::query_scalar(
        "select format('%s: is %L as of %s, the cursor is at %s; was sent as %L in %s', sent.workos_id,
                       organization.name, organization.workos_last_event_id, sync.last_event_id,
                       sent.name, sent.event_id)
         from unnest($1::text[], $2::text[], $3::text[]) as sent (workos_id, event_id, name)
                  left join organization_metadata organization using (workos_id)
                  left join workos_sync.workos_organization_syncs sync using (workos_id)
         where organization.name is distinct from sent.name
            or organization.workos_last_event_id is distinct from sent.event_id
            or sync.last_event_id is distinct from sent.event_id",
    )
    .bind(&workos_ids)
    .bind(&event_ids)
    .bind(&names)
    .fetch_all(pool)
    .await?;
    differences("organizations are not what was sent last", &wrong)
}

fn differences(what: &str, wrong: &[String]) -> anyhow::Result<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    let shown = wrong.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    bail!("{} {what}:\n{}", wrong.len(), shown.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Kind;
    use crate::postgres::Postgres;

    async fn migrated(postgres: &Postgres) -> PgPool {
        postgres.create_database("damaged").await.unwrap();
        let pool = postgres.connect("damaged").await.unwrap();
        let database = pool.connect_options();
        let made =
            workos_sync::entities::organization::schema::bring_up_to_date(&database, None).await;
        made.unwrap();
        pool
    }

    /// The tables as two updates of two organizations leave them, and what they were.
    async fn two_updates(pool: &PgPool) -> (Before, Vec<Event>) {
        run(
            pool,
            "truncate organization_metadata, workos_sync.workos_organization_syncs, workos_sync.webhook_events cascade;
             insert into organization_metadata (id, name, slug, workos_id)
             values ('1', 'One', 'one', 'org_1'), ('2', 'Two', 'two', 'org_2')",
        )
        .await;
        let before = Before::read(pool).await.unwrap();
        let event = |number, workos_id: &str| {
            Event::new(number, Kind::Updated, workos_id.into(), "New".into(), None)
        };
        let events = vec![event(1, "org_1"), event(2, "org_2")];
        for Event { id, workos_id, .. } in &events {
            run(
                pool,
                &format!(
                    "insert into workos_sync.webhook_events
                         (event_id, status, outcome, event_type, attempts, processed_at, payload)
                     values ('{id}', 'processed', 'updated', 'organization.updated', 1, now(), '{{}}');
                     update organization_metadata set name = 'New', workos_last_event_id = '{id}'
                     where workos_id = '{workos_id}';
                     insert into workos_sync.workos_organization_syncs (workos_id, last_event_id, updated_at)
                     values ('{workos_id}', '{id}', now())"
                ),
            )
            .await;
        }
        (before, events)
    }

    async fn run(pool: &PgPool, statements: &str) {
        let statements = sqlx::AssertSqlSafe(statements.to_owned());
        sqlx::raw_sql(statements).execute(pool).await.unwrap();
    }

    async fn all(pool: &PgPool, before: &Before, events: &[Event]) -> anyhow::Result<()> {
        inbox(pool, before, events).await?;
        organizations(pool, before, events, 0).await
    }

    #[tokio::test]
    async fn whatever_isnt_as_sent_is_told() {
        let postgres = Postgres::start(&std::env::temp_dir()).await.unwrap();
        let pool = migrated(&postgres).await;
        for (damage, expected) in [
            (
                "delete from workos_sync.webhook_events where event_id = (select min(event_id) from workos_sync.webhook_events)",
                ": lost, ",
            ),
            (
                "update workos_sync.webhook_events set attempts = 2 where event_id = (select min(event_id) from workos_sync.webhook_events)",
                ": processed, 2 attempts, no error",
            ),
            (
                "update workos_sync.webhook_events set status = 'pending', outcome = null, processed_at = null",
                "2 events were lost, not settled, or settled twice",
            ),
            (
                "update workos_sync.webhook_events set status = 'dead', last_error = 'poison'",
                ": dead, 1 attempts, poison",
            ),
            (
                "insert into workos_sync.webhook_events (event_id, event_type, payload)
                 select event_id || 'again', event_type, payload from workos_sync.webhook_events limit 1",
                "2 events were sent, 3 are in the inbox",
            ),
            (
                "update organization_metadata set name = 'One' where workos_id = 'org_1'",
                "org_1: is 'One' as of ",
            ),
            (
                "update workos_sync.workos_organization_syncs set last_event_id = 'event_0' where workos_id = 'org_2'",
                "the cursor is at event_0",
            ),
            (
                "insert into organization_metadata (id, name, slug) values ('3', 'Three', 'three')",
                "0 organizations were to be made, 1 were",
            ),
        ] {
            let (before, events) = two_updates(&pool).await;
            all(&pool, &before, &events).await.unwrap();
            run(&pool, damage).await;
            let error = all(&pool, &before, &events).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{damage}: {error}");
        }
    }
}

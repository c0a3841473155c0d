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
    Ok(sqlx::query_scalar("select count(*) from webhook_events")
        .fetch_one(pool)
        .await?)
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
        "select format('%s: %s, %s attempts, %s', sent.id, coalesce(status, 'lost'), attempts,
                       coalesce(last_error, 'no error'))
         from unnest($1::text[]) as sent (id)
                  left join webhook_events on event_id = sent.id
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
                  left join workos_organization_syncs sync using (workos_id)
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

//! `workos-sync organization ID`: what is known of an organization (R47).

use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;
use sqlx::PgConnection;

use super::events;
use super::operating::Desk;
use super::table::{Facts, time};
use crate::config::Config;
use crate::entities::organization::Host;
use crate::entities::organization::host::HostTable;
use crate::operate::organization::{self, OrganizationDetail};
use crate::postgres;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(config: Config, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    let found = Desk::with(config, async |desk| {
        let schema = desk.url.schema.clone();
        let read = async |connection: &mut PgConnection| {
            HostTable::read(connection, schema.as_deref()).await
        };
        let table = postgres::transaction(&desk.pool, postgres::PATIENCE, read).await?;
        let host = Host::new(table, desk.url.schema.clone());
        Ok(organization::find(&desk.pool, &host, id).await?)
    })
    .await?;
    let Some(found) = found else {
        bail!(
            "there is no organization {id}: neither a row, nor a cursor, nor an event has this id"
        );
    };
    if json {
        println!("{}", json!(found));
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", facts(&found));
    if !found.events.items.is_empty() {
        print!("\n{}", events::table(&found.events.items));
    }
    if let (Some(next), Some(workos_id)) = (&found.events.next, &found.workos_id) {
        println!(
            "\nthere are more: workos-sync events list --organization {workos_id} --after {next}"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn facts(found: &OrganizationDetail) -> Facts {
    let mut facts = Facts::default();
    match &found.row {
        Some(row) => {
            facts.push("organization", &row.id);
            facts.push_some("name", row.name.as_ref());
            facts.push_some("slug", row.slug.as_ref());
            facts.push_some("updated in WorkOS", row.workos_updated_at.map(time));
            facts.push_some("cursor of the row", row.workos_last_event_id.as_ref());
            facts.push_some("disabled", row.disabled_at.map(time));
        }
        None => facts.push("organization", "no row"),
    }
    match &found.workos_id {
        Some(workos_id) => facts.push("WorkOS organization", workos_id),
        None => facts.push("WorkOS organization", "not linked"),
    }
    if let Some(cursor) = &found.cursor {
        facts.push("newest event applied", &cursor.last_event_id);
        facts.push("applied", time(cursor.updated_at));
        facts.push_some(
            "deleted in WorkOS",
            cursor.deleted_at.map(|at| {
                let how = if cursor.deletion_is_inferred {
                    ", found by reconcile"
                } else {
                    ""
                };
                format!("{}{how}", time(at))
            }),
        );
    }
    if let Some(push) = &found.write_back {
        let since = time(push.settled_at.unwrap_or(push.created_at));
        facts.push("write-back", format!("{} since {since}", push.status));
        facts.push_some("write-back error", push.last_error.as_ref());
    }
    facts
}

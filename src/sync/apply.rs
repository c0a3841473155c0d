//! Applies one event in the caller's transaction: fetch, decide, write.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tracing::{info, warn};
use uuid::Uuid;

use super::decide::{Decision, Link, candidate_id, decide};
use super::{ApplyError, Outcome, slug, store};
use crate::event::{Change, OrganizationEvent, OrganizationId};
use crate::outbox;

/// What applying an event did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The outcome, as the inbox records it.
    pub outcome: Outcome,
    /// An intention was recorded to write the organization id to WorkOS: once this is committed, the outbox
    /// has something to do.
    pub push_recorded: bool,
}

/// Applies an event to the row of its organization, advances the cursor, and records the intention to write
/// the organization id back (R14). The caller holds the organization's lock, and commits.
///
/// # Errors
/// [`ApplyError::Conflict`] when another writer was in the way; database errors as they are. Either way the
/// transaction is to be rolled back.
pub async fn apply(
    connection: &mut PgConnection,
    event: &OrganizationEvent,
    namespace: &Uuid,
    now: DateTime<Utc>,
) -> Result<Applied, ApplyError> {
    let candidate = candidate_id(event, namespace);
    let found = store::fetch(connection, &event.workos_id, &candidate).await?;
    let decision = decide(&found, candidate, event);
    // When it was deleted, in WorkOS's time where that is known: the same whenever the event is applied.
    let disabled_at = event.created_at.unwrap_or(now);

    let (outcome, written) = match decision {
        Decision::Stale => {
            return Ok(Applied {
                outcome: Outcome::Stale,
                push_recorded: false,
            });
        }
        Decision::Tombstone => (Outcome::Tombstoned, None),
        Decision::Disable { id } => {
            still_there(store::disable(connection, &id, disabled_at, event, now).await?)?;
            (Outcome::Disabled, None)
        }
        Decision::Create { id, name, disabled } => {
            let slug = take_slug(connection, &slug::base(name, &event.workos_id), &id).await?;
            let disabled_at = disabled.then_some(disabled_at);
            store::insert(connection, &id, name, &slug, disabled_at, event, now).await?;
            (Outcome::Created, Some(id))
        }
        Decision::Update {
            id,
            name,
            link,
            disable,
            not_followed,
        } => {
            log_link(event, &id, &link, not_followed.as_ref());
            still_there(store::update(connection, &id, name, &link, event, now).await?)?;
            if disable {
                still_there(store::disable(connection, &id, disabled_at, event, now).await?)?;
            }
            let outcome = if link == Link::Kept {
                Outcome::Updated
            } else {
                Outcome::Linked
            };
            (outcome, Some(id))
        }
    };

    let deleted_at = (event.change == Change::Delete).then_some(disabled_at);
    store::advance_cursor(connection, deleted_at, event, now).await?;

    let push_recorded = match (&event.change, written) {
        (
            Change::Upsert {
                external_id: None, ..
            },
            Some(id),
        ) => {
            outbox::record(connection, &event.workos_id, &id, now).await?;
            true
        }
        _ => false,
    };
    Ok(Applied {
        outcome,
        push_recorded,
    })
}

/// Waits for the other creators of this base slug, then finds one that is free (R4, R9, R20). A local writer
/// can still take it before the INSERT; that is a unique violation, and the event starts over (R21).
async fn take_slug(
    connection: &mut PgConnection,
    base: &str,
    id: &OrganizationId,
) -> Result<String, sqlx::Error> {
    store::lock_slug(connection, base).await?;
    let mut candidates = slug::candidates(base, id);
    loop {
        let batch: Vec<_> = candidates.by_ref().take(store::SLUGS_AT_ONCE).collect();
        if let Some(slug) = store::first_free_slug(connection, &batch).await? {
            return Ok(slug);
        }
    }
}

fn still_there(written: bool) -> Result<(), ApplyError> {
    if written {
        Ok(())
    } else {
        Err(ApplyError::Conflict)
    }
}

/// R6
fn log_link(
    event: &OrganizationEvent,
    id: &OrganizationId,
    link: &Link,
    not_followed: Option<&OrganizationId>,
) {
    if let Link::Relinked { from } = link {
        warn!(
            event.id = %event.id,
            organization_id = %id,
            workos.organization_id = %event.workos_id,
            workos.previous_organization_id = %from,
            "organization {id} is relinked from WorkOS organization {from} to {}", event.workos_id,
        );
    }
    if let Some(other) = not_followed {
        info!(
            event.id = %event.id,
            organization_id = %id,
            workos.organization_id = %event.workos_id,
            workos.external_id = %other,
            "WorkOS organization {} keeps organization id {id}, though its external_id is {other}",
            event.workos_id,
        );
    }
}

//! Events that are applied without an inbox.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use std::sync::Arc;
use uuid::Uuid;
use workos_sync::entities::Outcome;
use workos_sync::entities::organization::statements::Statements;
use workos_sync::entities::organization::{ApplyError, Choices, OrganizationEvent, decide};
use workos_sync::postgres::locks::Places;

/// Applies events in a transaction, as the inbox does; says what each came to. Slugs that were refused are not chosen.
pub(crate) async fn apply(
    connection: &mut PgConnection,
    statements: &Arc<Statements>,
    events: &[OrganizationEvent],
    namespace: &Uuid,
    refused: &[String],
    now: DateTime<Utc>,
) -> Result<Vec<Outcome>, ApplyError> {
    let (statements, events) = (Arc::clone(statements), events.iter().collect());
    let decided = decide(connection, statements, events, namespace, now).await?;
    let outcomes = decided.outcomes().to_vec();
    let choices = Choices {
        refused,
        places: &mut Places::set_aside(),
    };
    decided.write(connection, choices, now, false).await?;
    Ok(outcomes)
}

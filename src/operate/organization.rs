//! What is known of one organization (R47).

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool, query_as};

use super::events::list_on;
use super::{Filter, Listed, OperateError, Page};
use crate::entities::organization::Host;
use crate::entities::organization::mirror::MappedRow;
use crate::postgres;

/// What is known of an organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OrganizationDetail {
    /// The WorkOS organization, if there is one.
    pub workos_id: Option<String>,
    /// Its row in the application's table, as far as that is ours.
    pub row: Option<MappedRow>,
    /// What was applied of it.
    pub cursor: Option<CursorDetail>,
    /// How its organization id is written to WorkOS.
    pub write_back: Option<WriteBack>,
    /// Its events, the newest received first.
    pub events: Listed,
}

/// What was applied of a WorkOS organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CursorDetail {
    /// The newest event applied.
    pub last_event_id: String,
    /// What that counts as updated at.
    pub last_event_updated_at: Option<DateTime<Utc>>,
    /// When WorkOS deleted it.
    pub deleted_at: Option<DateTime<Utc>>,
    /// No event told the deletion: `reconcile` found it.
    pub deletion_is_inferred: bool,
    /// When the cursor last moved.
    pub updated_at: DateTime<Utc>,
}

/// An organization id that is to be written to WorkOS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WriteBack {
    /// `pending`, `done`, `conflict` or `rejected`.
    pub status: String,
    /// The organization id.
    pub organization_id: String,
    /// How often it was tried.
    pub attempts: i32,
    /// What failed last, or why it ended.
    pub last_error: Option<String>,
    /// When it is due, if it is pending.
    pub next_attempt_at: DateTime<Utc>,
    /// Since when it waits, or waited.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub settled_at: Option<DateTime<Utc>>,
}

/// Finds an organization by WorkOS's id or by that of its row, with the first page of its events. None if neither row,
/// cursor nor event has it.
///
/// # Errors
/// The database doesn't answer, or the application's table can't be read.
pub async fn find(
    pool: &PgPool,
    host: &Host,
    id: &str,
) -> Result<Option<OrganizationDetail>, OperateError> {
    postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        find_on(connection, host, id).await
    })
    .await
}

async fn find_on(
    connection: &mut PgConnection,
    host: &Host,
    id: &str,
) -> Result<Option<OrganizationDetail>, OperateError> {
    let row = host.statements().mapped_row(&mut *connection, id).await?;
    let workos_id = match &row {
        Some(row) => row.workos_id.clone(),
        None => Some(id.to_owned()),
    };
    let mut found = OrganizationDetail {
        workos_id,
        row,
        cursor: None,
        write_back: None,
        events: Listed::default(),
    };
    let Some(workos_id) = &found.workos_id else {
        return Ok(Some(found));
    };
    found.cursor = query_as!(
        CursorDetail,
        r#"
        select last_event_id, last_event_updated_at, deleted_at, deletion_is_inferred, updated_at
        from workos_sync.workos_organization_syncs
        where workos_id = $1
        "#,
        workos_id,
    )
    .fetch_optional(&mut *connection)
    .await?;
    found.write_back = query_as!(
        WriteBack,
        r#"
        select status, organization_id, attempts, last_error, next_attempt_at, created_at, settled_at
        from workos_sync.external_id_pushes
        where workos_id = $1
        "#,
        workos_id,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let filter = Filter {
        organization: Some(workos_id.clone()),
        ..Filter::default()
    };
    found.events = list_on(connection, &filter, &Page::default()).await?;
    let is_known = found.row.is_some()
        || found.cursor.is_some()
        || found.write_back.is_some()
        || !found.events.items.is_empty();
    Ok(is_known.then_some(found))
}

//! The SQL of `external_id_pushes`.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, query, query_as};

use crate::event::{OrganizationId, WorkosId};

/// Records the intention to write `id` to WorkOS, in the transaction that writes the organization (R14). An
/// intention that was settled before is due again: the organization still has no `external_id` (R16).
pub(crate) async fn record(
    connection: &mut PgConnection,
    workos_id: &WorkosId,
    id: &OrganizationId,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        insert into external_id_pushes as push
            (workos_id, organization_id, next_attempt_at, created_at)
        values ($1, $2, $3, $3)
        on conflict (workos_id) do update
            set status          = 'pending',
                organization_id = excluded.organization_id,
                attempts        = 0,
                last_error      = null,
                next_attempt_at = excluded.next_attempt_at,
                revision        = push.revision + 1,
                settled_at      = null
        "#,
        workos_id.as_str(),
        id.as_str(),
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

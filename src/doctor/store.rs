//! What the database is asked.

use sqlx::{PgConnection, query, query_as, query_scalar};

use super::verdict::Server;

/// The rights that the service needs on our own tables; `docs/security.md` has them as grants.
const RIGHTS: [(&str, &[&str]); 12] = [
    ("workos_organization_syncs", &["select", "insert", "update"]),
    ("external_id_pushes", &["select", "insert", "update"]),
    ("webhook_events", &["select", "insert", "update", "delete"]),
    ("event_attempts", &["select", "insert", "update", "delete"]),
    (
        "run_organizations",
        &["select", "insert", "update", "delete"],
    ),
    ("event_poll", &["select", "insert", "update"]),
    ("runs", &["select", "insert", "update"]),
    ("last_webhook", &["select", "insert", "update"]),
    ("pause", &["select", "insert", "update"]),
    ("operator_actions", &["select", "insert", "update"]),
    ("migrations", &["select"]),
    ("status", &["select"]),
];

pub(super) async fn server(connection: &mut PgConnection) -> Result<Server, sqlx::Error> {
    query_as!(
        Server,
        r#"
        select current_setting('server_version')                  as "version!",
               current_setting('server_version_num')::integer     as "version_num!",
               current_user::text                                 as "role!",
               current_setting('transaction_read_only')::boolean  as "read_only!"
        "#
    )
    .fetch_one(connection)
    .await
}

/// Whether the role may use our schema, if there is one.
pub(super) async fn may_use_schema(
    connection: &mut PgConnection,
) -> Result<Option<bool>, sqlx::Error> {
    let found = query_scalar!(
        r#"select has_schema_privilege(oid, 'usage') as "may!" from pg_namespace where nspname = 'workos_sync'"#
    );
    found.fetch_optional(connection).await
}

/// Which rights the role lacks, by what they are on, as a grant names both.
pub(super) async fn missing_rights(
    connection: &mut PgConnection,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    let needed = RIGHTS
        .into_iter()
        .flat_map(|(relation, rights)| rights.iter().map(move |right| (relation, *right)));
    let (relations, rights): (Vec<_>, Vec<_>) = needed.unzip();
    let missing = query!(
        r#"
        select needed.relation                                  as "relation!",
               string_agg(needed.privilege, ', ' order by place) as "rights!"
        from unnest($1::text[], $2::text[]) with ordinality as needed (relation, privilege, place)
                 join pg_class on pg_class.relname = needed.relation
                 join pg_namespace on pg_namespace.oid = pg_class.relnamespace
        where pg_namespace.nspname = 'workos_sync'
          and not has_table_privilege(pg_class.oid, needed.privilege)
        group by needed.relation
        order by min(place)
        "#,
        &relations as _,
        &rights as _,
    )
    .fetch_all(&mut *connection)
    .await?;
    let missing = missing.into_iter();
    let mut missing: Vec<_> = missing
        .map(|row| (format!("workos_sync.{}", row.relation), row.rights))
        .collect();
    let may_ask_for_a_pause = query_scalar!(
        r#"
        select has_function_privilege(pg_proc.oid, 'execute') as "may!"
        from pg_proc
                 join pg_namespace on pg_namespace.oid = pronamespace
        where nspname = 'workos_sync'
          and proname = 'is_paused'
        "#
    )
    .fetch_optional(connection)
    .await?;
    if may_ask_for_a_pause == Some(false) {
        let function = "function workos_sync.is_paused()".to_owned();
        missing.push((function, "execute".to_owned()));
    }
    Ok(missing)
}

/// The roles that may write the inbox, beside its owner and ourselves.
pub(super) async fn other_writers(
    connection: &mut PgConnection,
) -> Result<Vec<String>, sqlx::Error> {
    query_scalar!(
        r#"
        select distinct case grantee when 0 then 'public' else grantee::regrole::text end as "role!"
        from pg_class
                 join pg_namespace on pg_namespace.oid = relnamespace,
             aclexplode(relacl)
        where nspname = 'workos_sync'
          and relname = 'webhook_events'
          and grantee <> relowner
          and grantee <> current_user::regrole
          and privilege_type in ('INSERT', 'UPDATE')
        order by 1
        "#
    )
    .fetch_all(connection)
    .await
}

/// The server process that a connection has, asked by a prepared statement.
pub(super) async fn backend(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    query_scalar!(r#"select pg_backend_pid() as "pid!""#)
        .fetch_one(connection)
        .await
}

/// A statement isn't there that was prepared, or is there and wasn't: 26000, 42P05.
pub(super) fn lost_a_statement(error: &sqlx::Error) -> bool {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("26000" | "42P05"))
}

pub(super) async fn is_recorded(
    connection: &mut PgConnection,
    event_id: &str,
) -> Result<bool, sqlx::Error> {
    query_scalar!(
        r#"select exists (select from workos_sync.webhook_events where event_id = $1) as "is!""#,
        event_id
    )
    .fetch_one(connection)
    .await
}

//! The pause: an operator wants nothing to be applied or written back for a while; everything is accepted (R49). It is in
//! the database, so it holds for all replicas, and through restarts.
//!
//! What applies or writes back asks `workos_sync.is_paused()` in the statement that begins its transaction, and so holds a
//! lock until that ends. Who pauses waits for that lock, once the pause is committed: nothing is applied then.

use std::fmt;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool, query, query_as};

use crate::postgres;

/// The two integers of the lock, as `workos_sync.is_paused()` has them: `hashtext('workos-sync pause')`, and 0.
const LOCK: (i32, i32) = (-1_907_399_135, 0);

/// How long what is under way is waited for: longer than any transaction of ours takes.
const LOCK_TIMEOUT: &str = "40s";

/// The same, and the time to say so.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(45);

/// A pause that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// When it began.
    pub since: DateTime<Utc>,
    /// When it ends by itself.
    pub until: DateTime<Utc>,
    /// Why, if that was said.
    pub reason: Option<String>,
    /// Who asked for it.
    pub actor: String,
}

/// As the log and the commands say it.
impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            until,
            reason,
            actor,
            ..
        } = self;
        let until = until.to_rfc3339_opts(SecondsFormat::Secs, true);
        write!(f, "paused by {actor} until {until}")?;
        match reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

/// The pause, if there is one.
///
/// # Errors
/// The database doesn't answer.
pub async fn current(connection: &mut PgConnection) -> Result<Option<Pause>, sqlx::Error> {
    query_as!(
        Pause,
        r#"
        select since, until as "until!", reason, actor
        from workos_sync.pause
        where singleton
          and until > clock_timestamp()
        "#,
    )
    .fetch_optional(connection)
    .await
}

/// The same, in a transaction of its own.
///
/// # Errors
/// The database doesn't answer.
pub async fn ask(pool: &PgPool) -> Result<Option<Pause>, sqlx::Error> {
    postgres::transaction(pool, postgres::PATIENCE, current).await
}

/// Writes a pause, instead of the one there may be. It holds for what is begun after the commit; [`wait_for_others`] is for
/// what is under way.
pub(crate) async fn write(
    connection: &mut PgConnection,
    length: TimeDelta,
    reason: Option<&str>,
    actor: &str,
) -> Result<Pause, sqlx::Error> {
    query_as!(
        Pause,
        r#"
        insert into workos_sync.pause as pause (since, until, reason, actor)
        values (clock_timestamp(), clock_timestamp() + make_interval(secs => $1), $2, $3)
        on conflict (singleton) do update
            set since  = case when pause.until > clock_timestamp() then pause.since else excluded.since end,
                until  = excluded.until,
                reason = excluded.reason,
                actor  = excluded.actor
        returning since, until as "until!", reason, actor
        "#,
        length.as_seconds_f64(),
        reason,
        actor,
    )
    .fetch_one(connection)
    .await
}

/// Waits until nobody applies or claims what was begun before a pause was committed.
pub(crate) async fn wait_for_others(pool: &PgPool) -> Result<(), sqlx::Error> {
    postgres::transaction(pool, PATIENCE, async |connection| {
        query!(
            "select set_config(name, $1, true) from unnest('{lock_timeout,statement_timeout}'::text[]) as names (name)",
            LOCK_TIMEOUT,
        )
        .fetch_all(&mut *connection)
        .await?;
        query!("select pg_advisory_xact_lock($1, $2)", LOCK.0, LOCK.1)
            .execute(connection)
            .await
            .map(drop)
    })
    .await
}

/// Ends the pause; says which that was.
pub(crate) async fn end(connection: &mut PgConnection) -> Result<Option<Pause>, sqlx::Error> {
    query_as!(
        Pause,
        r#"
        with ended as (
            select since, until, reason, actor
            from workos_sync.pause
            where singleton
              and until > clock_timestamp()
            for update
        )
        update workos_sync.pause
        set until = null
        from ended
        where singleton
        returning ended.since as "since!", ended.until as "until!", ended.reason, ended.actor as "actor!"
        "#,
    )
    .fetch_optional(connection)
    .await
}

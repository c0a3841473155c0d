//! The pause, as an operator begins and ends it (R49).

use chrono::TimeDelta;
use sqlx::PgPool;
use tracing::{info, warn};

use super::records::{NewAction, record};
use super::{Actor, OperateError, given};
use crate::pause::{self, Pause};
use crate::postgres;
use crate::postgres::error::describe;

/// How long a pause is, if nothing else is asked for.
pub const DEFAULT_LENGTH: TimeDelta = TimeDelta::hours(1);

/// The longest one: what is accepted waits for its end.
pub const LONGEST: TimeDelta = TimeDelta::hours(24);

/// Pauses: nothing is applied or written back until it ends, in any replica. When this returns, nothing is applied any
/// more; a write-back that a replica has in hand is finished. A pause that there is already is replaced.
///
/// # Errors
/// [`OperateError::PauseTooLong`]; [`OperateError::StillApplying`]: it holds, but what was begun before doesn't end; or the
/// database doesn't answer.
pub async fn pause(
    pool: &PgPool,
    length: TimeDelta,
    reason: Option<&str>,
    actor: &Actor,
) -> Result<Pause, OperateError> {
    if length < TimeDelta::seconds(1) || length > LONGEST {
        return Err(OperateError::PauseTooLong);
    }
    let reason = given(reason);
    let pause = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        let action = NewAction {
            actor,
            action: "pause",
            filter: None,
            count: None,
            reason,
        };
        record(connection, action).await?;
        pause::write(connection, length, reason, &actor.to_string()).await
    })
    .await?;
    warn!(%actor, until = %pause.until.to_rfc3339(), reason, "{pause}");
    match pause::wait_for_others(pool).await {
        Ok(()) => Ok(pause),
        Err(error) => Err(OperateError::StillApplying {
            pause,
            reason: describe(&error),
        }),
    }
}

/// Ends the pause; says which that was, if there was one. Every replica goes on within a second.
///
/// # Errors
/// The database doesn't answer.
pub async fn resume(pool: &PgPool, actor: &Actor) -> Result<Option<Pause>, OperateError> {
    let ended = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
        let ended = pause::end(connection).await?;
        if ended.is_some() {
            let action = NewAction {
                actor,
                action: "resume",
                filter: None,
                count: None,
                reason: None,
            };
            record(connection, action).await?;
        }
        Ok::<_, sqlx::Error>(ended)
    })
    .await?;
    if ended.is_some() {
        info!(%actor, "the pause is ended by {actor}");
    }
    Ok(ended)
}

/// The pause, if there is one.
///
/// # Errors
/// The database doesn't answer.
pub async fn paused(pool: &PgPool) -> Result<Option<Pause>, OperateError> {
    Ok(pause::ask(pool).await?)
}

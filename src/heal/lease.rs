//! One run of a kind at a time (R41).

use sqlx::{Connection, PgConnection, query_scalar};

use super::runs::{self, Ending, Kind, Run};
use super::{HealError, Means};
use crate::postgres;

/// The first of the two integers of a run's lock: `hashtext('workos-sync run')`.
const RUN_LOCKS: i32 = -883_768_992;

/// The right to be the only run of a kind. It is a lock of a transaction, on a connection of its own: it ends with the
/// process, and a transaction pooler keeps the server's connection for it. The transaction has no snapshot while it is
/// idle, so it keeps nothing from vacuum.
#[derive(Debug)]
pub(super) struct RunLease {
    connection: PgConnection,
}

impl RunLease {
    /// Takes it, if the key is good for this database: with another's, a comparison alone would ask WorkOS for every row.
    ///
    /// # Errors
    /// [`HealError::Busy`], [`HealError::WrongKey`]; WorkOS or the database doesn't answer.
    pub(super) async fn take(means: &Means, kind: Kind) -> Result<Self, HealError> {
        let mut connection = PgConnection::connect_with(&means.options).await?;
        sqlx::raw_sql(
            "begin; set local idle_in_transaction_session_timeout = 0; set local statement_timeout = '15s'",
        )
        .execute(&mut connection)
        .await?;
        let taken = query_scalar!(
            r#"select pg_try_advisory_xact_lock($1, hashtext($2)) as "taken!""#,
            RUN_LOCKS,
            kind.as_str(),
        )
        .fetch_one(&mut connection)
        .await?;
        if !taken {
            return Err(HealError::Busy {
                kind: kind.as_str(),
            });
        }
        let lease = Self { connection };
        if let Err(error) = means.check_key().await {
            lease.end().await;
            return Err(error);
        }
        Ok(lease)
    }

    /// Asks whether it still holds.
    ///
    /// # Errors
    /// Its connection is lost, and with it the lease.
    pub(super) async fn check(&mut self) -> Result<(), HealError> {
        sqlx::raw_sql("select 1")
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Records how a run that doesn't go on later has ended, and gives the lease back.
    ///
    /// # Errors
    /// That of the run, or that it couldn't be recorded.
    pub(super) async fn end_run<T>(
        self,
        means: &Means,
        run: &Run,
        result: Result<T, HealError>,
        ending: impl FnOnce(&T) -> Ending,
    ) -> Result<T, HealError> {
        let (status, ending) = match &result {
            Ok(done) => ("complete", ending(done)),
            Err(_) => ("failed", Ending::default()),
        };
        let now = means.clock.now();
        let recorded = postgres::transaction(&means.pool, postgres::PATIENCE, async |connection| {
            runs::end(connection, run.id, status, ending, now).await
        })
        .await;
        self.end().await;
        // What ended the run says more than what became of its record.
        let done = result?;
        recorded?;
        Ok(done)
    }

    /// Gives it back.
    pub(super) async fn end(mut self) {
        // Should it fail, the lease ends with the connection.
        let _ = sqlx::raw_sql("commit").execute(&mut self.connection).await;
        let _ = self.connection.close().await;
    }
}

//! One run of a kind at a time (R41).

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, query_scalar};

use super::HealError;
use super::runs::Kind;

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
    /// Takes it.
    ///
    /// # Errors
    /// [`HealError::Busy`], or the database doesn't answer.
    pub(super) async fn take(options: &PgConnectOptions, kind: Kind) -> Result<Self, HealError> {
        let mut connection = PgConnection::connect_with(options).await?;
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
        if taken {
            Ok(Self { connection })
        } else {
            Err(HealError::Busy {
                kind: kind.as_str(),
            })
        }
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

    /// Gives it back.
    pub(super) async fn end(mut self) {
        // Should it fail, the lease ends with the connection.
        let _ = sqlx::raw_sql("commit").execute(&mut self.connection).await;
        let _ = self.connection.close().await;
    }
}

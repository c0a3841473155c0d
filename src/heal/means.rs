//! What the commands that ask WorkOS for everything have in common.

use std::sync::Arc;

use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

use super::key::KeyGuard;
use super::list::ListPage;
use super::{HealError, Patience};
use crate::clock::Clock;
use crate::entities::organization::statements::Statements;
use crate::entities::organization::{self, OrganizationEvent};
use crate::entities::{Outcome, Target};
use crate::inbox::Inbox;
use crate::postgres;
use crate::workos::WorkosClient;

/// What a command that asks WorkOS for everything needs.
#[derive(Debug, Clone)]
pub struct Means {
    /// Of the database.
    pub pool: PgPool,
    /// Where the database is, for the connection that holds the lease.
    pub options: PgConnectOptions,
    /// Where snapshots go.
    pub inbox: Inbox,
    /// The API.
    pub client: WorkosClient,
    /// The database's time.
    pub clock: Arc<dyn Clock>,
    /// Where organizations are written to.
    pub target: Target,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many pages are done.
    pub pages: i64,
    /// How many organizations these had.
    pub seen: i64,
}

impl Progress {
    /// Tells how far a run is after each of these pages; gives the last of it.
    pub(super) fn go_on(mut self, pages: &[ListPage], tell: &mut impl FnMut(Self)) -> Self {
        for page in pages {
            self.pages += 1;
            self.seen += page.len();
            tell(self);
        }
        self
    }
}

impl Means {
    /// Refuses a key of another environment, before anything is written that it tells.
    pub(super) async fn check_key(&self) -> Result<(), HealError> {
        let clock = Arc::clone(&self.clock);
        let host = self.target.host.clone();
        let guard = KeyGuard::new(self.pool.clone(), host, self.client.clone(), clock);
        Patience::ask(|| async {
            match guard.check().await {
                Err(HealError::Workos(trouble)) => Err(trouble),
                checked => Ok(checked),
            }
        })
        .await?
    }

    /// What applying events would come to.
    pub(super) async fn preview(
        &self,
        events: Vec<OrganizationEvent>,
    ) -> Result<Vec<Outcome>, HealError> {
        let (statements, namespace) = (self.statements(), self.target.namespace);
        let now = self.clock.now();
        postgres::transaction(&self.pool, postgres::PATIENCE, async |connection| {
            let outcomes =
                organization::preview(connection, &statements, &events, &namespace, now).await?;
            Ok(outcomes)
        })
        .await
    }

    /// The statements on the application's table.
    pub(super) fn statements(&self) -> Arc<Statements> {
        self.target.host.statements()
    }
}

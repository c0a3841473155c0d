//! Stores a page of events together with what is written beside them: the position of the poll (R36).

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::{Connection, PgConnection, PgPool};

use super::lanes::Lanes;
use super::outcomes::Outcomes;
use super::status::EventName;
use super::store::{self, Met, NewEvent};
use crate::postgres;
use crate::postgres::error::{self, DatabaseCause};

/// What storing a page did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct StoredPage {
    /// The ids of the events that are new.
    pub new: Vec<String>,
    /// How many were there already.
    pub known: usize,
    /// Those that Postgres can't store, now or ever, with the reason.
    pub unstorable: Vec<(EventName, String)>,
}

/// What is written in the transaction that stores a page.
pub trait Beside: Sync {
    /// Why it can't be.
    type Error: From<sqlx::Error> + DatabaseCause + Send;

    /// Writes it.
    fn write(
        &self,
        connection: &mut PgConnection,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Stores pages.
#[derive(Debug, Clone)]
pub(super) struct Pages {
    pub(super) pool: PgPool,
    pub(super) lanes: Arc<Lanes>,
    pub(super) outcomes: Arc<Outcomes>,
}

impl Pages {
    /// Stores a page, and what is written beside it, in one transaction; then has its events processed.
    pub(super) async fn record<B: Beside>(
        &self,
        mut events: Vec<NewEvent>,
        beside: &B,
    ) -> Result<StoredPage, B::Error> {
        // Whoever else inserts does it in this order too.
        events.sort_by(|a, b| a.event_id.as_str().cmp(b.event_id.as_str()));
        events.dedup_by(|a, b| a.event_id == b.event_id);
        let pool = &self.pool;
        let together = postgres::transaction(pool, postgres::PATIENCE, async |connection| {
            let all: Vec<_> = events.iter().collect();
            let met = store::insert(connection, &all).await?;
            beside.write(connection).await?;
            let new = met.into_iter().filter_map(Met::new_id).collect();
            Ok::<_, B::Error>((new, Vec::new()))
        })
        .await;
        let (new, unstorable) = match together {
            Err(error)
                if error
                    .database_cause()
                    .is_some_and(error::is_about_the_content) =>
            {
                postgres::transaction(pool, postgres::PATIENCE, async |connection| {
                    let stored = insert_each(connection, &events).await?;
                    beside.write(connection).await?;
                    Ok::<_, B::Error>(stored)
                })
                .await?
            }
            together => together?,
        };
        let new: Vec<_> = new;
        let known = events.len() - new.len() - unstorable.len();
        let is_new: HashSet<_> = new.iter().map(String::as_str).collect();
        for event in events {
            if !is_new.contains(event.event_id.as_str()) {
                continue;
            }
            if event.ignored {
                self.outcomes.ignored(event.source);
            } else {
                self.lanes.wake(event.lane().to_owned());
            }
        }
        Ok(StoredPage {
            new,
            known,
            unstorable,
        })
    }
}

/// Stores events each for itself; says which are new, and which can't be stored.
async fn insert_each(
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<(Vec<String>, Vec<(EventName, String)>), sqlx::Error> {
    let (mut new, mut unstorable) = (Vec::new(), Vec::new());
    for event in events {
        let mut savepoint = connection.begin().await?;
        match store::insert(&mut savepoint, &[event]).await {
            Ok(stored) => {
                savepoint.commit().await?;
                new.extend(stored.into_iter().filter_map(Met::new_id));
            }
            Err(error) if error::is_about_the_content(&error) => {
                savepoint.rollback().await?;
                unstorable.push((event.name(), error::describe(&error)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((new, unstorable))
}

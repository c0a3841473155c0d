//! The list of all organizations, read ahead of what is done with it.

use std::panic::resume_unwind;

use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::snapshot::Shown;
use super::{HealError, Means, Patience};
use crate::workos::Trail;

/// How many pages are read ahead, and so how many are taken in hand at once: enough that neither WorkOS nor the database
/// is waited for while the other works, and few enough that their bodies don't count.
const AHEAD: usize = 8;

/// A page of the list.
#[derive(Debug)]
pub(super) struct ListPage {
    /// When it was shown.
    pub(super) shown: Shown,
    /// The organizations.
    pub(super) elements: Vec<Box<RawValue>>,
    /// Where the next page begins; `None` at the end.
    pub(super) after: Option<String>,
}

impl ListPage {
    /// How many organizations it has.
    pub(super) fn len(&self) -> i64 {
        i64::try_from(self.elements.len()).unwrap_or(i64::MAX)
    }
}

/// A reading of the list. Dropped, it ends.
#[derive(Debug)]
pub(super) struct List {
    pages: mpsc::Receiver<ListPage>,
    reader: JoinSet<Result<(), HealError>>,
}

impl List {
    /// The list from its beginning, or behind a page that was read before.
    pub(super) fn from(means: &Means, after: Option<String>) -> Self {
        let (sender, pages) = mpsc::channel(AHEAD);
        let mut reader = JoinSet::new();
        reader.spawn(read(means.clone(), after, sender));
        Self { pages, reader }
    }

    /// The pages that were read meanwhile, at least one; `None` at the end of the list.
    ///
    /// # Errors
    /// Once all pages are given that were read before: [`HealError::ListRefused`] if WorkOS doesn't take where the list is
    /// to go on; WorkOS doesn't answer, or never comes to an end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<ListPage>>, HealError> {
        let mut pages = Vec::new();
        if self.pages.recv_many(&mut pages, AHEAD).await > 0 {
            return Ok(Some(pages));
        }
        if let Some(ended) = self.reader.join_next().await {
            // Nobody cancels it.
            ended.unwrap_or_else(|error| resume_unwind(error.into_panic()))?;
        }
        Ok(None)
    }
}

async fn read(
    means: Means,
    mut after: Option<String>,
    pages: mpsc::Sender<ListPage>,
) -> Result<(), HealError> {
    let Means { client, clock, .. } = &means;
    let mut trail = Trail::default();
    loop {
        let behind = after.as_deref();
        let page = Patience::ask(|| client.list_organizations(behind, clock.now()))
            .await
            .map_err(|trouble| {
                if behind.is_some() && trouble.is_rejected() {
                    HealError::ListRefused(trouble)
                } else {
                    trouble.into()
                }
            })?;
        if let Some(after) = &page.after {
            if page.elements.is_empty() {
                return Err(HealError::Endless);
            }
            trail.go_on(after)?;
        }
        after.clone_from(&page.after);
        let page = ListPage {
            shown: Shown::of(page.answered)?,
            elements: page.elements,
            after: page.after,
        };
        // Nobody wants more, or there is no more.
        if pages.send(page).await.is_err() || after.is_none() {
            return Ok(());
        }
    }
}

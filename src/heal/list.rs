//! The list of all organizations, page by page.

use super::{HealError, Means, Patience};
use crate::workos::{Page, Trail};

/// Where a reading of the list is.
#[derive(Debug)]
pub(super) struct List<'a> {
    means: &'a Means,
    after: Option<String>,
    trail: Trail,
}

impl<'a> List<'a> {
    /// The list from its beginning, or behind a page that was read before.
    pub(super) fn from(means: &'a Means, after: Option<String>) -> Self {
        Self {
            means,
            after,
            trail: Trail::default(),
        }
    }

    /// The next page; [`Page::after`] says whether it is the last.
    ///
    /// # Errors
    /// [`HealError::ListRefused`] if WorkOS doesn't take where it is to go on; WorkOS doesn't answer, or never comes to an end.
    pub(super) async fn next(&mut self) -> Result<Page, HealError> {
        let Means { client, clock, .. } = self.means;
        let after = self.after.as_deref();
        let page = Patience::ask(|| client.list_organizations(after, clock.now()))
            .await
            .map_err(|trouble| {
                if after.is_some() && trouble.is_rejected() {
                    HealError::ListRefused(trouble)
                } else {
                    trouble.into()
                }
            })?;
        if let Some(after) = &page.after {
            if page.elements.is_empty() {
                return Err(HealError::Endless);
            }
            self.trail.go_on(after)?;
        }
        self.after.clone_from(&page.after);
        Ok(page)
    }
}

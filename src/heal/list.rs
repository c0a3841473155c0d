//! The list of all organizations, page by page.

use super::{HealError, Means, Patience};
use crate::workos::Page;

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
        let mut patience = Patience::default();
        let page = loop {
            let now = self.means.clock.now();
            let after = self.after.as_deref();
            match self.means.client.list_organizations(after, now).await {
                Ok(page) => break page,
                Err(trouble) if after.is_some() && trouble.is_rejected() => {
                    return Err(HealError::ListRefused(trouble));
                }
                Err(trouble) => patience.wait_after(trouble).await?,
            }
        };
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

/// Notices a list that leads back to where it was, and so never ends. One place is kept, and exchanged for the present
/// one whenever twice as many pages have gone by: a circle is gone round three times at most before it shows (Brent).
#[derive(Debug, Default)]
pub(super) struct Trail {
    kept: Option<String>,
    pages: u64,
    kept_until: u64,
}

impl Trail {
    /// The reading goes on behind a page.
    ///
    /// # Errors
    /// [`HealError::Endless`]
    pub(super) fn go_on(&mut self, after: &str) -> Result<(), HealError> {
        if self.kept.as_deref() == Some(after) {
            return Err(HealError::Endless);
        }
        if self.pages >= self.kept_until {
            self.kept = Some(after.to_owned());
            self.kept_until = 2 * self.pages + 1;
        }
        self.pages += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However long the way into a circle and the circle are, it is noticed; a list that ends never is one.
    #[test]
    fn a_circle_is_noticed() {
        for way in 0..20 {
            for circle in 1..20 {
                let mut trail = Trail::default();
                let page = |n: u32| if n < way { n } else { way + (n - way) % circle };
                let noticed = (0..1_000).find(|n| trail.go_on(&page(*n).to_string()).is_err());
                let noticed = noticed.unwrap();
                assert!(noticed >= way + circle, "{way} {circle}: {noticed}");
                assert!(
                    noticed <= 3 * (way + circle) + 1,
                    "{way} {circle}: {noticed}"
                );
            }
        }
        let mut trail = Trail::default();
        for n in 0..10_000 {
            trail.go_on(&n.to_string()).unwrap();
        }
    }
}

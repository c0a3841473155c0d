//! Whether a list comes to an end.

/// A list leads back to where the reading was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("WorkOS shows pages without an end")]
pub struct Endless;

/// Notices a list that leads back to where it was, and so never ends. One place is kept, and exchanged for the present
/// one whenever twice as many pages have gone by: a circle is gone round three times at most before it shows (Brent).
#[derive(Debug, Default)]
pub struct Trail {
    kept: Option<String>,
    pages: u64,
    kept_until: u64,
}

impl Trail {
    /// The reading goes on behind a page.
    ///
    /// # Errors
    /// It has been there before.
    pub fn go_on(&mut self, after: &str) -> Result<(), Endless> {
        if self.kept.as_deref() == Some(after) {
            return Err(Endless);
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

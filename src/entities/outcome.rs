//! What an event came to. No I/O.

/// What applying an event did to the database: the `outcome` of a processed inbox row (R27).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A row was inserted.
    Created,
    /// A row that had been found by its WorkOS organization id was updated.
    Updated,
    /// A row that had been found by its own id was linked to the WorkOS organization, and updated.
    Linked,
    /// A row was disabled, because its organization is deleted; it may have been linked for that.
    Disabled,
    /// The event was refused: it is older than what was applied, or its organization is deleted.
    Stale,
    /// The deletion of an organization without a row is remembered.
    Tombstoned,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] = [
        Self::Created,
        Self::Updated,
        Self::Linked,
        Self::Disabled,
        Self::Stale,
        Self::Tombstoned,
    ];

    /// The outcome as the database and the API have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Linked => "linked",
            Self::Disabled => "disabled",
            Self::Stale => "stale",
            Self::Tombstoned => "tombstoned",
        }
    }

    /// Reads an outcome.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
    }
}

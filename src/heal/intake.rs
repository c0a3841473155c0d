//! Puts what a command found into the inbox, and waits for what comes of it.

use std::time::Duration;

use super::HealError;
use crate::event::Event;
use crate::inbox::{Inbox, Source};

/// How often to look whether what somebody else has in hand is applied.
const LOOK: Duration = Duration::from_millis(100);

/// How often snapshots ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// A row was inserted.
    pub created: i64,
    /// A row was updated.
    pub updated: i64,
    /// A row was linked.
    pub linked: i64,
    /// A row was disabled.
    pub disabled: i64,
    /// Something newer was applied already.
    pub stale: i64,
    /// It can't be applied.
    pub dead: i64,
    /// It waits for another try.
    pub unsettled: i64,
}

impl Tally {
    /// Adds how some ended, by outcome or status.
    pub(super) fn add(&mut self, result: &str, count: i64) {
        let place = match result {
            "created" => &mut self.created,
            "updated" => &mut self.updated,
            "linked" => &mut self.linked,
            "disabled" | "tombstoned" => &mut self.disabled,
            "stale" => &mut self.stale,
            "dead" => &mut self.dead,
            _ => &mut self.unsettled,
        };
        *place += count;
    }

    /// Adds those of another.
    pub(super) fn add_all(&mut self, other: &Self) {
        let Self {
            created,
            updated,
            linked,
            disabled,
            stale,
            dead,
            unsettled,
        } = other;
        self.created += created;
        self.updated += updated;
        self.linked += linked;
        self.disabled += disabled;
        self.stale += stale;
        self.dead += dead;
        self.unsettled += unsettled;
    }
}

/// Stores events that we made, and waits until each is applied, dead, or put off.
pub(super) async fn take_in(
    inbox: &Inbox,
    bodies: &[String],
    source: Source,
) -> Result<Tally, HealError> {
    let events: Vec<_> = bodies
        .iter()
        .map(|body| Event::parse(body.as_bytes()).expect("we made it an event"))
        .collect();
    let mut tally = Tally::default();
    let mut ids = Vec::with_capacity(events.len());
    for (event, recorded) in events
        .iter()
        .zip(inbox.record_all_from(&events, source).await)
    {
        match recorded {
            Ok(_) => ids.push(event.id.to_string()),
            Err(crate::inbox::RecordError::Unstorable(reason)) => {
                let id = &event.id;
                tracing::error!(event.id = %id, "{id} can't be stored: {reason}");
                tally.dead += 1;
            }
            Err(crate::inbox::RecordError::Unavailable { reason }) => {
                return Err(HealError::NotStored(reason));
            }
        }
    }
    loop {
        let results = inbox.results(&ids).await?;
        if results.iter().all(|(result, _)| result != "pending") {
            for (result, count) in results {
                tally.add(&result, count);
            }
            return Ok(tally);
        }
        inbox.sweep().await?;
        tokio::time::sleep(LOOK).await;
    }
}

//! Puts what a command found into the inbox, and waits for what comes of it.

use tracing::error;

use super::HealError;
use crate::inbox::{EventName, Inbox, RecordError, Replayed, Source};

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
    bodies: impl IntoIterator<Item = String>,
    source: Source,
) -> Result<Tally, HealError> {
    let (names, events): (Vec<_>, Vec<_>) = bodies
        .into_iter()
        .map(|body| {
            let event = inbox
                .read_saved_from(body.into_bytes(), source)
                .expect("we made it an event");
            (event.name(), event)
        })
        .unzip();
    let mut tally = Tally::default();
    let mut waiting = Vec::new();
    for (event, recorded) in names.into_iter().zip(inbox.record_all(events).await) {
        let EventName {
            id,
            event_type,
            organization,
        } = event;
        match recorded {
            Ok(Replayed {
                outcome: Some(outcome),
                ..
            }) => tally.add(outcome.as_str(), 1),
            // It waits, or was there before.
            Ok(_) => waiting.push(id),
            Err(RecordError::Unstorable(reason)) => {
                error!(
                    event.id = id,
                    event.r#type = event_type,
                    workos.organization_id = organization,
                    "{event_type} {id} can't be stored: {reason}",
                );
                tally.dead += 1;
            }
            Err(RecordError::Unavailable { reason }) => return Err(HealError::NotStored(reason)),
        }
    }
    if !waiting.is_empty() {
        for (result, count) in inbox.drain_events(waiting).await? {
            tally.add(&result, i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
    Ok(tally)
}

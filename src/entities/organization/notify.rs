//! What whoever listens is told of the rows that a transaction changed (R53). No I/O.

use serde::Serialize;

use crate::entities::outcome::Outcome;
use crate::event::{EventId, OrganizationId, WorkosId};

/// The longest payload that Postgres takes.
const MOST_BYTES: usize = 7_999;

/// What an event did to a row.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Change<'a> {
    organization_id: Option<&'a str>,
    workos_id: &'a str,
    outcome: &'static str,
    event_id: &'a str,
}

impl<'a> Change<'a> {
    pub(super) fn new(
        organization_id: &'a OrganizationId,
        workos_id: &'a WorkosId,
        outcome: Outcome,
        event_id: &'a EventId,
    ) -> Self {
        Self {
            organization_id: Some(organization_id.as_str()),
            workos_id: workos_id.as_str(),
            outcome: outcome.as_str(),
            event_id: event_id.as_str(),
        }
    }

    /// The payload. An organization id of unlikely length is left out: the others are bounded, and lead to the row.
    pub(super) fn payload(self) -> String {
        let payload = json(&self);
        if payload.len() <= MOST_BYTES {
            return payload;
        }
        json(&Self {
            organization_id: None,
            ..self
        })
    }
}

fn json(change: &Change<'_>) -> String {
    serde_json::to_string(change).expect("strings are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::MAX_ID_BYTES;

    /// R53: what Postgres refuses would fail the event.
    #[test]
    fn no_payload_is_too_long() {
        // In JSON, a control character has six bytes.
        let id = "\u{1}".repeat(MAX_ID_BYTES);
        let workos_id = WorkosId::from_database(id.clone());
        let event_id = EventId::from_database(id.clone());
        for (length, is_told) in [(1, true), (700, true), (8_000, false)] {
            let organization_id = OrganizationId::from_database("\u{1}".repeat(length));
            let change = Change::new(&organization_id, &workos_id, Outcome::Tombstoned, &event_id);
            let payload = change.payload();
            assert!(payload.len() <= MOST_BYTES, "{}", payload.len());
            let read: serde_json::Value = serde_json::from_str(&payload).unwrap();
            assert_eq!(read["organization_id"].is_string(), is_told, "{length}");
            assert_eq!(read["workos_id"], id);
        }
    }
}

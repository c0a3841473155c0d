//! Events, as WorkOS would send them.

use serde_json::json;
use ulid::Ulid;

/// The type of an event.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Created,
    Updated,
    Deleted,
    /// One that is not handled.
    Other,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "organization.created",
            Self::Updated => "organization.updated",
            Self::Deleted => "organization.deleted",
            Self::Other => "user.created",
        }
    }
}

/// The id of event number `n`: ids are ordered as their numbers.
pub(crate) fn event_id(n: u64) -> String {
    format!("event_{}", Ulid::from_parts(1_800_000_000_000 + n, 0))
}

/// The body of event number `n`.
pub(crate) fn event(n: u64, kind: Kind, workos_id: &str, name: &str) -> String {
    let at = "2027-01-15T08:00:00.000Z";
    json!({
        "id": event_id(n),
        "event": kind.as_str(),
        "created_at": at,
        "data": {
            "object": "organization",
            "id": workos_id,
            "name": name,
            "external_id": null,
            "created_at": at,
            "updated_at": at,
        },
    })
    .to_string()
}

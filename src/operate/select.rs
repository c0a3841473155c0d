//! Which events a filter selects, as SQL. What isn't asked for isn't in the statement, so that each goes by the index that
//! serves it; a statement with every condition could only read everything. Values are bound.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, Postgres, QueryBuilder};

use super::Filter;
use crate::inbox::Status;

/// A part of what a filter selects that one index serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arm {
    /// All of it.
    All,
    /// Those of an organization that are pending: by `webhook_events_lane_idx`.
    Pending,
    /// The others of an organization: by `webhook_events_organization_idx`.
    Settled,
}

/// Which of the arms make up what a filter selects.
pub(super) const fn arms(filter: &Filter) -> &'static [Arm] {
    match (&filter.organization, filter.status) {
        (None, _) => &[Arm::All],
        (Some(_), None) => &[Arm::Settled, Arm::Pending],
        (Some(_), Some(Status::Pending)) => &[Arm::Pending],
        (Some(_), Some(_)) => &[Arm::Settled],
    }
}

/// Adds the conditions of a filter: `where …`.
pub(super) fn push_where(query: &mut QueryBuilder<Postgres>, filter: &Filter, arm: Arm) {
    query.push(" where true");
    match arm {
        Arm::All => {}
        Arm::Pending => {
            query.push(" and status = 'pending' and lane = ");
            query.push_bind(filter.organization.as_deref());
        }
        Arm::Settled => {
            query.push(" and status <> 'pending'");
        }
    }
    if let Some(status) = filter.status {
        // A constant, so that partial indexes serve it whatever the plan.
        query.push(format!(" and status = '{}'", status.as_str()));
    }
    for (condition, value) in [
        (" and event_type = ", filter.event_type.as_deref()),
        (" and organization_id = ", filter.organization.as_deref()),
        (" and cause = ", filter.cause.as_deref()),
    ] {
        if let Some(value) = value {
            query.push(condition).push_bind(value);
        }
    }
    if let Some(source) = filter.source {
        query.push(" and source = ").push_bind(source.as_str());
    }
    if let Some(error) = &filter.error {
        query.push(" and strpos(lower(last_error), lower(");
        query.push_bind(error.as_str()).push(")) > 0");
    }
    if let Some(since) = filter.since {
        query.push(" and received_at >= ").push_bind(since);
    }
    if let Some(until) = filter.until {
        query.push(" and received_at < ").push_bind(until);
    }
}

/// Adds that it is one of these statuses.
pub(super) fn push_status(query: &mut QueryBuilder<Postgres>, statuses: &[Status]) {
    let words: Vec<_> = statuses
        .iter()
        .map(|status| format!("'{}'", status.as_str()))
        .collect();
    query.push(format!(" and status in ({})", words.join(", ")));
}

/// A place in the order of `received_at`, and of ids where these are equal.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub(super) struct Place {
    pub(super) received_at: DateTime<Utc>,
    pub(super) event_id: String,
}

/// Adds that it comes before (`<`) or after (`>`) a place. The time alone is said too: no index has the id.
pub(super) fn push_beyond(query: &mut QueryBuilder<Postgres>, operator: &str, place: &Place) {
    query.push(format!(" and received_at {operator}= "));
    query.push_bind(place.received_at);
    query.push(format!(" and (received_at, event_id) {operator} ("));
    query.push_bind(place.received_at).push(", ");
    query.push_bind(place.event_id.as_str()).push(")");
}

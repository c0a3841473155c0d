//! Which events a filter selects, as SQL. What isn't asked for isn't in the statement; values are bound.
//!
//! No index has every condition that a filter may have. So the inbox is taken in parts, each of which one index has in an
//! order, and what else is asked for is looked at row by row.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, Postgres, QueryBuilder};

use super::Filter;
use crate::inbox::{Source, Status};

/// A part of the inbox, by the index that has it. All but the first have it in the order of `received_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What waits, or what waits of the organization: by `webhook_events_lane_idx`, in the order of lanes.
    Pending,
    /// The others of the organization: by `webhook_events_organization_idx`.
    Organization,
    /// What last failed of the cause, whatever became of it: by `webhook_events_cause_idx`.
    Cause,
    /// What failed or was given up: by `webhook_events_status_idx`.
    Status(Status),
    /// All that doesn't wait: by `webhook_events_received_at_idx`.
    Settled,
}

/// The parts that hold what a filter selects of these statuses.
pub(super) fn parts(filter: &Filter, statuses: &[Status]) -> Vec<Part> {
    let (pending, others): (Vec<Status>, Vec<Status>) = statuses
        .iter()
        .partition(|status| **status == Status::Pending);
    let has_index =
        |status: &Status| matches!(status, Status::Failed | Status::Dead | Status::Discarded);
    let mut parts = if filter.organization.is_some() && !others.is_empty() {
        vec![Part::Organization]
    } else if filter.organization.is_none() && filter.cause.is_some() {
        return vec![Part::Cause];
    } else if others.iter().all(has_index) {
        others.into_iter().map(Part::Status).collect()
    } else {
        vec![Part::Settled]
    };
    if !pending.is_empty() {
        parts.push(Part::Pending);
    }
    parts
}

/// Adds the conditions of a part: `where …`.
pub(super) fn push_part(query: &mut QueryBuilder<Postgres>, filter: &Filter, part: Part) {
    // Constants, so that partial indexes serve them whatever the plan.
    match part {
        Part::Pending => {
            query.push(" where status = 'pending'");
            if let Some(organization) = &filter.organization {
                query.push(" and lane = ").push_bind(organization.as_str());
            }
        }
        Part::Organization => {
            query.push(" where status <> 'pending' and organization_id = ");
            query.push_bind(filter.organization.as_deref());
        }
        Part::Cause => {
            query
                .push(" where cause = ")
                .push_bind(filter.cause.as_deref());
        }
        Part::Status(status) => {
            query.push(format!(" where status = '{}'", status.as_str()));
        }
        Part::Settled => {
            query.push(" where status <> 'pending'");
        }
    }
}

/// Adds that it was received within the period of a filter.
pub(super) fn push_period(query: &mut QueryBuilder<Postgres>, filter: &Filter) {
    if let Some(since) = filter.since {
        query.push(" and received_at >= ").push_bind(since);
    }
    if let Some(until) = filter.until {
        query.push(" and received_at < ").push_bind(until);
    }
}

/// Adds every condition of a filter.
pub(super) fn push_conditions(query: &mut QueryBuilder<Postgres>, filter: &Filter) {
    if let Some(status) = filter.status {
        query.push(format!(" and status = '{}'", status.as_str()));
    }
    for (condition, value) in [
        (" and event_type = ", filter.event_type.as_deref()),
        (" and organization_id = ", filter.organization.as_deref()),
        (" and cause = ", filter.cause.as_deref()),
        (" and source = ", filter.source.map(Source::as_str)),
    ] {
        if let Some(value) = value {
            query.push(condition).push_bind(value);
        }
    }
    if let Some(error) = &filter.error {
        query.push(" and strpos(lower(last_error), lower(");
        query.push_bind(error.as_str()).push(")) > 0");
    }
    push_period(query, filter);
}

/// Adds that it is one of these statuses.
pub(super) fn push_status(query: &mut QueryBuilder<Postgres>, statuses: &[Status]) {
    let words: Vec<_> = statuses
        .iter()
        .map(|status| format!("'{}'", status.as_str()))
        .collect();
    query.push(format!(" and status in ({})", words.join(", ")));
}

/// Where an event is in the orders that parts are in.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub(super) struct Place {
    pub(super) event_id: String,
    pub(super) received_at: DateTime<Utc>,
    pub(super) lane: String,
    pub(super) event_order: String,
}

/// Adds that it was received before a place: earlier, or at the same time with a lesser id. The time alone is said too:
/// no index has the id.
pub(super) fn push_before(query: &mut QueryBuilder<Postgres>, place: &Place) {
    query.push(" and received_at <= ");
    query.push_bind(place.received_at);
    query.push(" and (received_at, event_id) < (");
    query.push_bind(place.received_at).push(", ");
    query.push_bind(place.event_id.as_str()).push(")");
}

impl Part {
    /// The order that its index has it in, the oldest first; whole by the id, where an index may have several.
    pub(super) const fn order(self) -> &'static str {
        match self {
            Self::Pending => "lane, event_order, event_id",
            _ => "received_at, event_id",
        }
    }

    /// Adds that it comes after a place in that order.
    pub(super) fn push_after(self, query: &mut QueryBuilder<Postgres>, place: &Place) {
        if self == Self::Pending {
            query.push(" and (lane, event_order, event_id) > (");
            query.push_bind(place.lane.as_str()).push(", ");
            query.push_bind(place.event_order.as_str()).push(", ");
        } else {
            query.push(" and received_at >= ");
            query.push_bind(place.received_at);
            query.push(" and (received_at, event_id) > (");
            query.push_bind(place.received_at).push(", ");
        }
        query.push_bind(place.event_id.as_str()).push(")");
    }
}

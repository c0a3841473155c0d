//! One organization: its row, what was applied of it, what WorkOS is told, and its events.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::events;
use super::layout::live_heading;
use super::parts::{state, time, time_or, whole_id};
use crate::admin::form::Parameters;
use crate::operate::organization::OrganizationDetail;

/// The form that asks which one.
pub(super) fn ask() -> Markup {
    html! {
        h1 { "Organizations" }
        div.box {
            form.bar.filter method="get" action="/organizations" role="search" aria-label="Find an organization" {
                label {
                    "Id: WorkOS's, or that of its row"
                    input.wide name="id" required placeholder="org_…" autocomplete="off";
                }
                button.main { "Show" }
            }
        }
    }
}

/// What is known of one.
pub(super) fn one(found: &OrganizationDetail, now: DateTime<Utc>) -> Markup {
    let name = found.row.as_ref().and_then(|row| row.name.as_deref());
    html! {
        h1 { (name.unwrap_or("Organization without a row")) }
        div #organization data-live {
            div.pair {
                section {
                    h2 { "Row" }
                    div.box { (row(found, now)) }
                }
                section {
                    h2 { "What was applied" }
                    div.box { (applied(found, now)) }
                }
            }
        }
        (live_heading(&html! {
            h2 { "Events" }
            @if let Some(workos_id) = &found.workos_id {
                a href=(Parameters::default().with("organization", workos_id).on("/events")) { "All, with filters" }
            }
        }))
        div #events .box data-live { (events::listed(&found.events, false, now)) }
    }
}

fn row(found: &OrganizationDetail, now: DateTime<Utc>) -> Markup {
    let Some(row) = &found.row else {
        return html! { p { "The table has no row of it." } };
    };
    html! {
        dl.facts {
            dt { "Id" } dd { (whole_id(&row.id)) }
            dt { "Slug" } dd { code { (row.slug.as_deref().unwrap_or("none")) } }
            dt { "WorkOS id" } dd {
                @match &row.workos_id { Some(id) => (whole_id(id)), None => span.dim { "not linked" } }
            }
            dt { "Last event" } dd {
                @match &row.workos_last_event_id {
                    Some(id) => a href=(events::address(id)) { code { (id) } },
                    None => span.dim { "none" },
                }
            }
            dt { "Updated in WorkOS" } dd { (time_or(row.workos_updated_at, now, "not known")) }
            dt { "Disabled" } dd { (time_or(row.disabled_at, now, "no")) }
        }
    }
}

fn applied(found: &OrganizationDetail, now: DateTime<Utc>) -> Markup {
    html! {
        @if found.cursor.is_none() && found.write_back.is_none() { p { "Nothing was applied of it." } }
        dl.facts {
            @if let Some(cursor) = &found.cursor {
                dt { "Newest event applied" } dd {
                    a href=(events::address(&cursor.last_event_id)) { code { (cursor.last_event_id) } }
                }
                dt { "Applied" } dd { (time(cursor.updated_at, now)) }
                @if let Some(at) = cursor.deleted_at {
                    dt { "Deleted in WorkOS" } dd {
                        (time(at, now))
                        @if cursor.deletion_is_inferred { small { "no event told it: reconcile found it" } }
                    }
                }
            }
            @if let Some(push) = &found.write_back {
                dt { "Write-back" } dd {
                    (state(&push.status))
                    @if push.status == "pending" { small { "due " (time(push.next_attempt_at, now)) } }
                    @else if let Some(at) = push.settled_at { small { (time(at, now)) } }
                    @if let Some(error) = &push.last_error { small { (error) } }
                }
            }
        }
    }
}

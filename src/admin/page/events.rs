//! Events: a list, and one of them.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::layout::live_heading;
use super::parts::{
    beginning, clock, count, due, id_link, of, prose, short, state, time, took, whole_id,
};
use crate::admin::form::Parameters;
use crate::entities;
use crate::inbox::{Source, Status};
use crate::operate::events::{EventDetail, EventSummary, PENDING_LOOKED_AT};
use crate::operate::{Filter, Listed};
use crate::workos::segment;

/// The periods that the filter offers.
const PERIODS: [(&str, &str); 5] = [
    ("", "any time"),
    ("1h", "the last hour"),
    ("24h", "the last 24 hours"),
    ("7d", "the last 7 days"),
    ("30d", "the last 30 days"),
];

/// The address of an event's page.
pub(super) fn address(event_id: &str) -> String {
    format!("/events/{}", segment(event_id))
}

pub(super) fn organization_address(workos_id: &str) -> String {
    format!("/organizations/{}", segment(workos_id))
}

/// A list of events with its filter.
#[derive(Debug)]
pub(super) struct List<'a> {
    pub(super) filter: &'a Filter,
    /// The filter as it stands in the address.
    pub(super) parameters: &'a Parameters,
    pub(super) listed: &'a Listed,
    pub(super) may_change: bool,
    pub(super) now: DateTime<Utc>,
}

impl List<'_> {
    pub(super) fn show(&self) -> Markup {
        let first = self.parameters.without(&["after"]);
        let is_first = first == *self.parameters;
        // Where an action leads back to, and what it is about.
        let here = self.parameters.on("/events");
        let all = first.without(&["limit"]);
        let may_retry = matches!(
            self.filter.status,
            None | Some(Status::Failed | Status::Dead)
        );
        html! {
            (live_heading(&html! { h1 { "Events" } }))
            div.box {
                div.bar { (self.form()) }
                @if self.filter.is_last_day {
                    p { "Only of the last 24 hours, because nothing else bounds this filter: choose a period for more." }
                }
                form method="get" action="/retry" {
                    input type="hidden" name="back" value=(here);
                    div #events data-live { (listed(self.listed, self.may_change, self.now)) }
                    div.bar {
                        @if self.may_change {
                            button data-ask formaction="/retry" { "Retry selected…" }
                            button data-ask formaction="/discard" { "Discard selected…" }
                            @if may_retry && !self.filter.is_empty() {
                                a.button href=(all.clone().with("back", &here).on("/retry")) data-ask { "Retry all of this filter…" }
                            }
                        }
                        span.end {
                            @if !is_first { a.button href=(first.on("/events")) rel="first" { "Newest" } }
                            @if let Some(next) = &self.listed.next {
                                a.button href=(first.clone().with("after", next).on("/events")) rel="next" { "Older" }
                            }
                        }
                    }
                }
            }
        }
    }

    fn form(&self) -> Markup {
        let value = |name| self.parameters.get(name).unwrap_or_default();
        let since = value("since");
        let is_offered = PERIODS.iter().any(|(period, _)| *period == since);
        html! {
            form.filter method="get" action="/events" role="search" aria-label="Filter" {
                label {
                    "Status"
                    select name="status" {
                        option value="" { "any" }
                        @for status in Status::ALL {
                            @let word = status.as_str();
                            option value=(word) selected[value("status") == word] { (word) }
                        }
                    }
                }
                label { "Type" input name="type" value=(value("type")) list="types"; }
                datalist #types {
                    @for known in entities::types() {
                        option value=(known) {}
                    }
                }
                label { "Organization (WorkOS)" input.wide name="organization" value=(value("organization")) placeholder="org_…"; }
                label { "Cause" input name="cause" value=(value("cause")); }
                label { "Error contains" input name="error" value=(value("error")); }
                label {
                    "Source"
                    select name="source" {
                        option value="" { "any" }
                        @for source in Source::ALL {
                            @let word = source.as_str();
                            option value=(word) selected[value("source") == word] { (word) }
                        }
                    }
                }
                label {
                    "Received in"
                    select name="since" {
                        @for (period, name) in PERIODS {
                            option value=(period) selected[since == period] { (name) }
                        }
                        @if !is_offered { option value=(since) selected { "since " (since) } }
                    }
                }
                @if !value("until").is_empty() {
                    label { "Received before" input name="until" value=(value("until")); }
                }
                button.main { "Filter" }
                @if !self.parameters.is_empty() { a.button href="/events" { "Clear" } }
            }
        }
    }
}

/// A page of a list, and what it leaves out.
pub(super) fn listed(listed: &Listed, may_select: bool, now: DateTime<Utc>) -> Markup {
    let is_empty = listed.items.is_empty();
    html! {
        @match listed.searched_to {
            None => (table(&listed.items, may_select, now)),
            Some(at) => {
                @if !is_empty { (table(&listed.items, may_select, now)) }
                p {
                    @if is_empty { "None found back to " } @else { "Searched back to " }
                    (clock(at, now)) "; there may be older ones."
                }
            }
        }
        @if listed.pending_left_out {
            p {
                "More than " (count(PENDING_LOOKED_AT)) " events are pending, and some are left out: filter by an organization to see all of its own."
            }
        }
    }
}

/// A table of events, in the order that they are in; with a box to select each, where something may be done with them.
pub(super) fn table(events: &[EventSummary], may_select: bool, now: DateTime<Utc>) -> Markup {
    if events.is_empty() {
        return html! { p { "There are no such events." } };
    }
    html! {
        table.events {
            caption.unseen { "Events, the newest first" }
            thead {
                tr {
                    @if may_select { th scope="col" { span.unseen { "Selected" } } }
                    th scope="col" { "Received" }
                    th scope="col" { "Event" }
                    th scope="col" { "Organization" }
                    th scope="col" { "Status" }
                    th scope="col" { "Outcome or error" }
                    th.number scope="col" { "Tries" }
                    th.number scope="col" { "Took" }
                }
            }
            tbody {
                @for event in events { (row(event, may_select, now)) }
            }
        }
    }
}

fn row(event: &EventSummary, may_select: bool, now: DateTime<Utc>) -> Markup {
    let is_selectable = matches!(&*event.status, "pending" | "failed" | "dead");
    html! {
        tr data-key=(event.event_id) {
            @if may_select {
                td.pick {
                    @if is_selectable {
                        input type="checkbox" name="id" value=(event.event_id) aria-label={ "select " (event.event_id) };
                    }
                }
            }
            td.received { (clock(event.received_at, now)) }
            td.event {
                div {
                    (id_link(&address(&event.event_id), &event.event_id))
                    small {
                        (event.event_type)
                        @if event.source != "webhook" { " · " (event.source) }
                    }
                }
            }
            td.organization {
                @match &event.organization_id {
                    Some(id) => (id_link(&organization_address(id), id)),
                    None => span.dim { "–" },
                }
            }
            td.state { (state(&event.status)) }
            td.said { (said(event, now)) }
            td.number.tries data-label="tries" { (event.attempts) }
            td.number.took data-label="took" {
                @match event.processed_at {
                    Some(at) if event.status == "processed" => (took(at - event.received_at)),
                    _ => span.dim { "–" },
                }
            }
        }
    }
}

/// What came of an event.
fn said(event: &EventSummary, now: DateTime<Utc>) -> Markup {
    let error = event.last_error.as_deref().unwrap_or("no error is known");
    let error = prose(&beginning(error));
    html! {
        @match &*event.status {
            "processed" => (event.outcome.as_deref().unwrap_or("–")),
            "ignored" => span.dim { "of a type that is not handled" },
            "pending" => span.dim { "waits for its turn" },
            "discarded" => { "given up" @if event.last_error.is_some() { span.dim { " · " (error) } } },
            "failed" => {
                (error)
                @if let Some(at) = event.next_attempt_at { span.dim { " · next try " (due(at, now)) } }
            }
            _ => (error),
        }
    }
}

/// One event.
#[derive(Debug)]
pub(super) struct One<'a> {
    pub(super) event: &'a EventDetail,
    /// Its body, if it was asked for.
    pub(super) payload: Option<&'a str>,
    pub(super) may_change: bool,
    pub(super) now: DateTime<Utc>,
}

impl One<'_> {
    pub(super) fn show(&self) -> Markup {
        let summary = &self.event.summary;
        let here = address(&summary.event_id);
        html! {
            div.head {
                h1 { (summary.event_type) " " span.dim { (short(&summary.event_id)) } }
                @if self.may_change { (self.actions(&here)) }
            }
            div.pair {
                section {
                    h2 { "What is known" }
                    div.box { (self.facts()) }
                }
                section {
                    h2 { "What happened" }
                    div.box { (self.timeline()) }
                }
            }
            h2 { "Payload" }
            div.box {
                @match self.payload {
                    Some(payload) => pre tabindex="0" role="region" aria-label="Payload" { (super::json::indented(payload)) },
                    None => p {
                        (of(self.event.payload_bytes.into(), "byte")) " as they were received; they may hold personal data. "
                        a href={ (here) "?payload=yes" } { "Show the payload" }
                    }
                }
            }
        }
    }

    fn actions(&self, here: &str) -> Markup {
        let summary = &self.event.summary;
        let may_retry = matches!(&*summary.status, "failed" | "dead");
        let may_discard = may_retry || summary.status == "pending";
        let this = Parameters::default()
            .with("id", &summary.event_id)
            .with("back", here);
        html! {
            span.end {
                @if may_retry { a.button.main href=(this.on("/retry")) data-ask { "Retry…" } }
                @if may_discard { a.button href=(this.on("/discard")) data-ask { "Discard…" } }
            }
        }
    }

    fn facts(&self) -> Markup {
        let Self { event, now, .. } = self;
        let summary = &event.summary;
        html! {
            dl.facts {
                dt { "Event" } dd { (whole_id(&summary.event_id)) }
                dt { "Status" } dd {
                    (state(&summary.status))
                    @if let Some(outcome) = &summary.outcome { " " (outcome) }
                }
                dt { "Organization" } dd {
                    @match &summary.organization_id {
                        Some(id) => a href=(organization_address(id)) { code { (id) } },
                        None => span.dim { "names none" },
                    }
                }
                dt { "Source" } dd {
                    (summary.source)
                    @if let Some(at) = event.delivered_at { small { "delivered " (time(at, *now)) } }
                }
                dt { "Received" } dd { (time(summary.received_at, *now)) }
                @if let Some(at) = summary.next_attempt_at { dt { "Next try" } dd { (due(at, *now)) } }
                dt { "Tries" } dd {
                    (summary.attempts)
                    @if event.refusals > 0 { small { (of(event.refusals.into(), "refusal")) " by a rule of the application" } }
                }
                @if let Some(cause) = &summary.cause {
                    dt { "Cause" } dd { a href=(Parameters::default().with("cause", cause).on("/events")) { code { (cause) } } }
                }
                @if let Some(error) = &summary.last_error { dt { "Last error" } dd { (prose(error)) } }
                @if let Some(compared) = &event.compared { dt { "Compared with" } dd { code { (compared) } } }
                @if Some(&event.lane) != summary.organization_id.as_ref() && event.lane != summary.event_id {
                    dt { "Lane" } dd { code { (event.lane) } }
                }
                @if event.replayed { dt { "Replayed" } dd { "decided again, by an operator's wish" } }
            }
        }
    }

    fn timeline(&self) -> Markup {
        let Self { event, now, .. } = self;
        let summary = &event.summary;
        let settled = summary
            .processed_at
            .filter(|_| !matches!(&*summary.status, "pending" | "failed" | "dead"));
        html! {
            ol.time {
                li { (clock(summary.received_at, *now)) div { strong { "received" } p { "by " (summary.source.replace('_', " ")) } } }
                @for failure in &event.failures {
                    li.bad {
                        (clock(failure.at, *now))
                        div {
                            strong { "try " (failure.attempt) " failed" }
                            p { code { (failure.cause) } " · " (prose(&failure.error)) }
                        }
                    }
                }
                @if let Some(action) = &event.action {
                    li {
                        (clock(action.at, *now))
                        div {
                            strong { (action.action) " by " (action.actor) }
                            @if let Some(reason) = &action.reason { p { (reason) } }
                        }
                    }
                }
                @if let Some(at) = settled {
                    li {
                        (clock(at, *now))
                        div {
                            strong { (summary.outcome.as_deref().unwrap_or(&summary.status)) }
                            p { (took(at - summary.received_at)) " after it was received" }
                        }
                    }
                } @else {
                    li {
                        span.dim { "now" }
                        div {
                            strong { (summary.status) }
                            @match &*summary.status {
                                "dead" => p { "not tried again by itself" },
                                "failed" => @if let Some(at) = summary.next_attempt_at { p { "next try " (due(at, *now)) } },
                                _ => p { (said(summary, *now)) },
                            }
                        }
                    }
                }
            }
        }
    }
}

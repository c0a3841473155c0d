//! Runs of the commands that ask WorkOS for everything, and what operators did.

use chrono::{DateTime, Utc};
use maud::{Markup, html};
use serde_json::Value;

use super::events;
use super::parts::{count, id_link, of, state, time, time_or, took};
use crate::admin::form::Parameters;
use crate::operate::records::{Action, RunSummary};

/// The runs.
pub(super) fn runs(runs: &[RunSummary], now: DateTime<Utc>) -> Markup {
    if runs.is_empty() {
        return html! {
            p {
                "There was no run yet. " code { "workos-sync backfill" } " reads all organizations from WorkOS, "
                code { "workos-sync reconcile" } " compares them with the table, and " code { "workos-sync catch-up" }
                " reads the events of a period."
            }
        };
    }
    html! {
        table {
            caption.unseen { "Runs, the newest first" }
            thead {
                tr {
                    th scope="col" { "Run" }
                    th scope="col" { "Status" }
                    th scope="col" { "Began" }
                    th scope="col" { "Ended" }
                    th.number scope="col" { "Seen" }
                    th scope="col" { "What it came to" }
                }
            }
            tbody {
                @for run in runs {
                    tr data-key=(run.run_id) {
                        td data-label="Run" { div { (run.kind.replace('_', "-")) " " span.dim { "no. " (run.run_id) } } }
                        td data-label="Status" { (state(&run.status)) }
                        td data-label="Began" { (time(run.started_at, now)) }
                        td data-label="Ended" {
                            div {
                                (time_or(run.ended_at, now, "–"))
                                @if let Some(ended) = run.ended_at { small { (took(ended - run.started_at)) } }
                            }
                        }
                        td.number data-label="Seen" {
                            div { (count(run.seen)) small { (of(run.pages, "page")) } }
                        }
                        td data-label="Came to" { (came_to(run)) }
                    }
                }
            }
        }
    }
}

fn came_to(run: &RunSummary) -> Markup {
    let counts = [
        (run.created, "created"),
        (run.updated, "updated"),
        (run.linked, "linked"),
        (run.stale, "stale"),
        (run.failed, "failed"),
        (run.dead, "dead"),
        (run.drift, "different"),
    ];
    let said: Vec<_> = counts
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, word)| format!("{} {word}", count(number)))
        .collect();
    html! {
        @if said.is_empty() { span.dim { "no change" } } @else { (said.join(" · ")) }
    }
}

/// What operators did.
pub(super) fn actions(actions: &[Action], now: DateTime<Utc>) -> Markup {
    if actions.is_empty() {
        return html! { p { "No operator has done anything yet." } };
    }
    html! {
        table {
            caption.unseen { "Actions, the newest first" }
            thead {
                tr {
                    th scope="col" { "When" }
                    th scope="col" { "Who" }
                    th scope="col" { "Action" }
                    th scope="col" { "Of what" }
                    th.number scope="col" { "Events" }
                    th scope="col" { "Reason" }
                }
            }
            tbody {
                @for action in actions {
                    tr data-key=(action.action_id) {
                        td data-label="When" { (time(action.at, now)) }
                        td data-label="Who" { (action.actor) }
                        td data-label="Action" { (action.action) }
                        td data-label="Of what" { div { (selection(action.filter.as_ref())) } }
                        td.number data-label="Events" {
                            @match action.count { Some(number) => (count(number)), None => span.dim { "–" } }
                        }
                        td data-label="Reason" {
                            @match &action.reason { Some(reason) => (reason), None => span.dim { "–" } }
                        }
                    }
                }
            }
        }
    }
}

/// How many ids are shown of an action's.
const IDS: usize = 3;

fn selection(filter: Option<&Value>) -> Markup {
    if let Some(ids) = filter.and_then(|filter| filter.get("ids")?.as_array()) {
        let ids: Vec<_> = ids.iter().filter_map(Value::as_str).collect();
        let more = ids.len().saturating_sub(IDS);
        return html! {
            @for id in ids.iter().take(IDS) { (id_link(&events::address(id), id)) " " }
            @if more > 0 { span.dim { "and " (more) " more" } }
        };
    }
    let Some(filter) = filter.and_then(|filter| filter.get("filter")) else {
        return html! { span.dim { "–" } };
    };
    let parameters = parts(filter).fold(Parameters::default(), |all, (name, value)| {
        all.with(name, value)
    });
    html! { a href=(parameters.on("/events")) { (in_words(filter)) } }
}

/// The parts of a filter.
fn parts(filter: &Value) -> impl Iterator<Item = (&str, &str)> {
    let parts = filter.as_object().into_iter().flatten();
    parts.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
}

/// A filter, as a person reads it.
pub(super) fn in_words(filter: &Value) -> String {
    let parts: Vec<_> = parts(filter)
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    parts.join(", ")
}

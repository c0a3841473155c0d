//! What fails, by cause; and what may be done with all of one cause.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::parts::{beginning, count, prose, time};
use crate::admin::form::Parameters;
use crate::operate::events::CauseSummary;

/// The causes. Actions name how many events they are about; `back` is where they lead to afterwards.
pub(super) fn table(
    causes: &[CauseSummary],
    may_change: bool,
    back: &str,
    now: DateTime<Utc>,
) -> Markup {
    if causes.is_empty() {
        return html! { div.box { p { "Nothing fails, and nothing is a dead letter." } } };
    }
    html! {
        div.box {
            table {
                caption.unseen { "Failed events and dead letters, by cause" }
                thead {
                    tr {
                        th scope="col" { "Cause" }
                        th scope="col" { "The last error" }
                        th.number scope="col" { "Events" }
                        th scope="col" { "First" }
                        th scope="col" { "Last" }
                        @if may_change { th scope="col" { span.unseen { "Actions" } } }
                    }
                }
                tbody {
                    @for cause in causes { (row(cause, may_change, back, now)) }
                }
            }
        }
    }
}

fn row(cause: &CauseSummary, may_change: bool, back: &str, now: DateTime<Utc>) -> Markup {
    let number = cause.failed + cause.dead;
    let name = cause.cause.as_deref();
    // Events that have none, which somebody made dead by hand, can't be told from the others by a filter.
    let filter = match name {
        Some(name) => Parameters::default().with("cause", name),
        None => Parameters::default().with("status", "dead"),
    };
    let may_act = name.is_some();
    let ask = filter.clone().with("back", back);
    html! {
        tr data-key=(name.unwrap_or("none")) {
            td data-label="Cause" { a.id href=(filter.on("/events")) { (name.unwrap_or("none")) } }
            td data-label="Error" {
                div { (prose(&beginning(cause.example_error.as_deref().unwrap_or("none is known")))) }
            }
            td.number data-label="Events" {
                div {
                    (count(number))
                    @if cause.failed > 0 && cause.dead > 0 { small { (count(cause.dead)) " dead" } }
                    @else if cause.dead > 0 { small { "dead" } }
                    @else { small { "tried again" } }
                }
            }
            td data-label="First" { (time(cause.first_at, now)) }
            td data-label="Last" { (time(cause.last_at, now)) }
            @if may_change {
                td.act {
                    @if may_act {
                        a.button.main href=(ask.on("/retry")) data-ask { "Retry " (count(number)) "…" }
                        " "
                        a.button href=(ask.on("/discard")) data-ask { "Discard" span.unseen { " " (count(number)) } "…" }
                    }
                }
            }
        }
    }
}

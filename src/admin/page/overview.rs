//! The overview: in step or not, why, and where to click.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::causes;
use super::events;
use super::layout::{as_sentence, live_heading};
use super::parts::{age, count, duration, of, time};
use crate::heal::trust::Status;
use crate::operate::Listed;
use crate::operate::events::CauseSummary;

/// What the first line says.
#[derive(Debug, PartialEq, Eq)]
struct Sentence {
    /// How bad it is: `ok`, `wait` or `bad`.
    class: &'static str,
    verdict: &'static str,
    why: Vec<String>,
    /// Where to click: the address, and what it is called.
    next: Option<(&'static str, &'static str)>,
}

/// Says whether the table is in step, and if not, why and what to look at first. What keeps all events from being applied
/// comes before all else.
fn sentence(status: &Status, conditions: &[String]) -> Sentence {
    let waiting = status.pending + status.failed;
    let dead = (status.dead > 0).then(|| {
        let verb = if status.dead == 1 { "waits" } else { "wait" };
        format!("{} {verb} for a decision", of(status.dead, "dead letter"))
    });
    let next = if status.dead > 0 {
        Some(("/causes", "Show the causes"))
    } else if status.failed > 0 {
        Some(("/events?status=failed", "Show what failed"))
    } else {
        None
    };
    if status.trusted && conditions.is_empty() {
        let rest = if waiting == 0 {
            let what = if dead.is_some() {
                "else"
            } else {
                "that was received"
            };
            format!("everything {what} is applied")
        } else {
            let verb = if waiting == 1 { "is" } else { "are" };
            format!("{} {verb} about to be applied", of(waiting, "event"))
        };
        return Sentence {
            class: "ok",
            verdict: "In step",
            why: dead.into_iter().chain([rest]).collect(),
            next,
        };
    }
    Sentence {
        class: if conditions.is_empty() { "wait" } else { "bad" },
        verdict: "Not in step",
        why: conditions
            .iter()
            .cloned()
            .chain(dead)
            .chain(status.reasons.iter().cloned())
            .collect(),
        next: next.or((waiting > 0).then_some(("/events?status=pending", "Show what waits"))),
    }
}

/// What the overview shows.
#[derive(Debug)]
pub(super) struct Overview<'a> {
    pub(super) status: &'a Status,
    /// What keeps events from being applied to the application's table.
    pub(super) conditions: &'a [String],
    pub(super) causes: &'a [CauseSummary],
    pub(super) events: &'a Listed,
    pub(super) may_change: bool,
    pub(super) now: DateTime<Utc>,
}

impl Overview<'_> {
    pub(super) fn show(&self) -> Markup {
        html! {
            div #now data-live {
                (self.sentence())
                (self.tiles())
                h2 { "What fails, by cause" }
                (causes::table(self.causes, self.may_change, "/", self.now))
            }
            (live_heading(&html! {
                h2 { "Latest events" }
                a href="/events" { "All, with filters" }
            }))
            div #events .box data-live { (events::listed(self.events, false, self.now)) }
        }
    }

    fn sentence(&self) -> Markup {
        if let Some(until) = self.status.paused_until {
            return html! {
                section.sentence.wait aria-labelledby="verdict" {
                    h1 #verdict { "Paused" }
                    p.dim {
                        "Events are accepted, and nothing is applied; this ends " (time(until, self.now))
                        @if let Some(reason) = &self.status.pause_reason { " (" (reason) ")" }
                        ". " (of(self.status.pending + self.status.failed, "event")) " wait."
                    }
                    @if self.may_change { a.button.main.next href="/resume" data-ask { "Resume…" } }
                }
            };
        }
        let Sentence {
            class,
            verdict,
            why,
            next,
        } = sentence(self.status, self.conditions);
        html! {
            section.sentence.(class) aria-labelledby="verdict" {
                h1 #verdict { (verdict) }
                @if let [only] = &*why {
                    p.dim { (as_sentence(only)) }
                } @else {
                    ul.dim { @for why in &why { li { (as_sentence(why)) } } }
                }
                span.next {
                    @if let Some((href, name)) = next { a href=(href) { (name) } }
                    @if self.may_change { " " a.button href="/pause" data-ask { "Pause…" } }
                }
            }
        }
    }

    fn tiles(&self) -> Markup {
        let Self { status, now, .. } = self;
        html! {
            ul.tiles {
                li {
                    h2 { "Last webhook" }
                    (ago(status.last_webhook_at, *now))
                    p { (since(status.last_webhook_at, "nothing was delivered yet")) }
                }
                li {
                    h2 { "Oldest unapplied" }
                    @match status.oldest_unapplied_at {
                        Some(at) => {
                            @let (number, unit) = duration(*now - at);
                            strong { (number) " " small { (unit) } }
                        }
                        None => strong { "none" },
                    }
                    p { (count(status.pending)) " pending · " (count(status.failed)) " failed · " (count(status.dead)) " dead" }
                }
                li {
                    h2 { "Poll of the Events API" }
                    (ago(status.last_drained_poll_at, *now))
                    p { (since(status.last_drained_poll_at, "it has not read all events yet, or is off")) }
                }
                li {
                    h2 { "Write-back" }
                    strong { (count(status.pushes)) " " small { "waiting" } }
                    p { "organization ids that WorkOS is to be told" }
                }
            }
        }
    }
}

/// How long ago something was, in large.
fn ago(at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Markup {
    let Some(at) = at else {
        return html! { strong { "never" } };
    };
    let age = age(now - at);
    let (number, unit) = age.split_once(' ').unwrap_or((&age, ""));
    html! { strong { (number) " " small { (unit) } } }
}

fn since(at: Option<DateTime<Utc>>, none: &str) -> Markup {
    let said = at.map(|at| at.format("%-d %b %H:%M:%S UTC").to_string());
    html! { (said.as_deref().unwrap_or(none)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(dead: i64, failed: i64, reasons: &[&str]) -> Status {
        Status {
            trusted: reasons.is_empty(),
            reasons: reasons.iter().map(ToString::to_string).collect(),
            last_webhook_at: None,
            last_poll_at: None,
            last_drained_poll_at: None,
            last_backfill_at: None,
            last_reconcile_at: None,
            pending: 0,
            failed,
            dead,
            pushes: 0,
            oldest_unapplied_at: None,
            paused_since: None,
            paused_until: None,
            pause_reason: None,
        }
    }

    /// R50: in step or not, why, and where to click.
    #[test]
    fn the_first_line_says_what_matters() {
        let said = |status: &Status, conditions: &[&str]| {
            let conditions: Vec<_> = conditions.iter().map(ToString::to_string).collect();
            let sentence = sentence(status, &conditions);
            let next = sentence.next.map(|(href, _)| href);
            (
                sentence.class,
                sentence.verdict,
                sentence.why.join("; "),
                next,
            )
        };
        let (ok, wait, bad) = ("ok", "wait", "bad");
        let causes = Some("/causes");
        for (status, conditions, expected) in [
            (
                status(0, 0, &[]),
                vec![],
                (
                    ok,
                    "In step",
                    "everything that was received is applied",
                    None,
                ),
            ),
            (
                status(1, 0, &[]),
                vec![],
                (
                    ok,
                    "In step",
                    "1 dead letter waits for a decision; everything else is applied",
                    causes,
                ),
            ),
            (
                status(0, 2, &[]),
                vec![],
                (
                    ok,
                    "In step",
                    "2 events are about to be applied",
                    Some("/events?status=failed"),
                ),
            ),
            (
                status(12, 0, &["the poll is off"]),
                vec![],
                (
                    wait,
                    "Not in step",
                    "12 dead letters wait for a decision; the poll is off",
                    causes,
                ),
            ),
            (
                status(0, 0, &["the poll is off"]),
                vec![],
                (wait, "Not in step", "the poll is off", None),
            ),
            (
                status(0, 0, &[]),
                vec!["a right is missing"],
                (bad, "Not in step", "a right is missing", None),
            ),
        ] {
            let (class, verdict, why, next) = expected;
            assert_eq!(
                said(&status, &conditions),
                (class, verdict, why.to_owned(), next)
            );
        }
    }
}

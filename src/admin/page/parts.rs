//! The small parts that pages are made of: times, ids, states, numbers.

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use maud::{Markup, html};

use crate::event::rfc3339;

/// Up to this age a time is told as its age.
const YOUNG: TimeDelta = TimeDelta::hours(1);

/// An id that is longer is shortened in the middle.
const MOST_OF_AN_ID: usize = 24;

/// How much is shown of an error in a table.
const MOST_OF_AN_ERROR: usize = 240;

/// A time: as its age while it is young, which the script keeps true; whole in the title.
pub(super) fn time(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    let young = (now - at).abs() < YOUNG;
    let text = if young {
        age(now - at)
    } else if at.year() == now.year() {
        at.format("%-d %b %H:%M").to_string()
    } else {
        at.format("%-d %b %Y %H:%M").to_string()
    };
    html! {
        time datetime=(rfc3339(at)) title=(at.format("%Y-%m-%d %H:%M:%S%.3f UTC")) data-relative[young] { (text) }
    }
}

/// The same, or that there was none.
pub(super) fn time_or(at: Option<DateTime<Utc>>, now: DateTime<Utc>, none: &str) -> Markup {
    at.map_or_else(|| html! { span.dim { (none) } }, |at| time(at, now))
}

/// When something is due, which may have been a moment ago.
pub(super) fn due(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    if at <= now {
        html! { "now" }
    } else {
        time(at, now)
    }
}

/// The time of day, for a list that is in the order of time; with the day where that is another.
pub(super) fn clock(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    let text = if at.date_naive() == now.date_naive() {
        at.format("%H:%M:%S")
    } else if at.year() == now.year() {
        at.format("%-d %b %H:%M")
    } else {
        at.format("%-d %b %Y %H:%M")
    };
    html! {
        time datetime=(rfc3339(at)) title=(at.format("%Y-%m-%d %H:%M:%S%.3f UTC")) { (text) }
    }
}

/// An age in one unit: `ago` of the script says the same.
pub(super) fn age(age: TimeDelta) -> String {
    let text = length(age);
    if age < TimeDelta::zero() {
        format!("in {text}")
    } else {
        format!("{text} ago")
    }
}

fn length(length: TimeDelta) -> String {
    match length.abs().num_seconds() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ 60..3_600 => format!("{} min", seconds / 60),
        seconds @ 3_600..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// How long something took, to two digits or so: the number and its unit.
pub(super) fn duration(length: TimeDelta) -> (String, &'static str) {
    let ms = length.as_seconds_f64() * 1_000.0;
    match ms.abs() {
        ms if ms < 10.0 => (format!("{ms:.1}"), "ms"),
        ms if ms < 1_000.0 => (format!("{ms:.0}"), "ms"),
        ms if ms < 10_000.0 => (format!("{:.1}", ms / 1_000.0), "s"),
        ms if ms < 120_000.0 => (format!("{:.0}", ms / 1_000.0), "s"),
        ms if ms < 7_200_000.0 => (format!("{:.0}", ms / 60_000.0), "min"),
        ms if ms < 172_800_000.0 => (format!("{:.0}", ms / 3_600_000.0), "h"),
        ms => (format!("{:.0}", ms / 86_400_000.0), "days"),
    }
}

/// The same as one text.
pub(super) fn took(length: TimeDelta) -> String {
    let (number, unit) = duration(length);
    format!("{number} {unit}")
}

/// A count, its digits in groups of three.
pub(super) fn count(count: i64) -> String {
    let digits = count.unsigned_abs().to_string();
    let mut text = String::from(if count < 0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count of things: `1 event`, `2 events`.
pub(super) fn of(number: i64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", count(number))
}

/// An id, shortened in the middle: its beginning has the kind and the time, its end tells it from its neighbours.
pub(super) fn short(id: &str) -> String {
    let length = id.chars().count();
    if length <= MOST_OF_AN_ID {
        return id.to_owned();
    }
    let head = id
        .char_indices()
        .position(|(at, _)| id[..at].ends_with('_'));
    let head = std::cmp::min(head.unwrap_or(0) + 6, MOST_OF_AN_ID / 2);
    let start: String = id.chars().take(head).collect();
    let end: String = id.chars().skip(length - 8).collect();
    format!("{start}…{end}")
}

/// An id that leads somewhere.
pub(super) fn id_link(href: &str, id: &str) -> Markup {
    html! { a.id href=(href) title=(id) { (short(id)) } }
}

/// A whole id, to be copied.
pub(super) fn whole_id(id: &str) -> Markup {
    html! {
        code { (id) }
        button.copy type="button" data-copy=(id) aria-label={ "copy " (id) } { "copy" }
    }
}

/// A state: its word, on its colour.
pub(super) fn state(word: &str) -> Markup {
    html! { span.status.(word) { (word) } }
}

/// The beginning of a text that may be long.
pub(super) fn beginning(text: &str) -> String {
    let mut beginning: String = text.chars().take(MOST_OF_AN_ERROR).collect();
    if beginning.len() < text.len() {
        beginning.push('…');
    }
    beginning
}

/// An error, or another sentence of ours: what stands in backticks is code.
pub(super) fn prose(text: &str) -> Markup {
    let is_paired = text.matches('`').count().is_multiple_of(2);
    html! {
        @if is_paired {
            @for (n, part) in text.split('`').enumerate() {
                @if n % 2 == 1 { code { (part) } } @else { (part) }
            }
        } @else {
            (text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: DateTime<Utc> = DateTime::from_timestamp(1_800_000_000, 0).unwrap();

    #[test]
    fn ages_are_told_in_one_unit() {
        for (seconds, text) in [
            (0, "0 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3_599, "59 min ago"),
            (-12, "in 12 s"),
            (3_600, "1 h ago"),
            (200_000, "2 days ago"),
        ] {
            assert_eq!(age(TimeDelta::seconds(seconds)), text);
        }
    }

    #[test]
    fn times_are_relative_while_they_are_young() {
        let at = |seconds| time(NOW - TimeDelta::seconds(seconds), NOW).into_string();
        assert_eq!(
            at(240),
            r#"<time datetime="2027-01-15T07:56:00.000Z" title="2027-01-15 07:56:00.000 UTC" data-relative>4 min ago</time>"#
        );
        assert!(at(3_600).ends_with(">15 Jan 07:00</time>"), "{}", at(3_600));
        assert!(
            at(40_000_000).ends_with(">9 Oct 2025 08:53</time>"),
            "{}",
            at(40_000_000)
        );
    }

    #[test]
    fn durations_have_two_digits_or_so() {
        for (us, text) in [
            (0, "0.0 ms"),
            (1_240, "1.2 ms"),
            (31_400, "31 ms"),
            (1_550_000, "1.6 s"),
            (31_000_000, "31 s"),
            (600_000_000, "10 min"),
            (7_200_000_000, "2 h"),
            (864_000_000_000, "10 days"),
        ] {
            assert_eq!(took(TimeDelta::microseconds(us)), text);
        }
    }

    #[test]
    fn counts_have_groups_of_three_digits() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (100_000, "100,000"),
            (-1_234_567, "-1,234,567"),
        ] {
            assert_eq!(count(number), text);
        }
        assert_eq!(
            (of(1, "event"), of(0, "event")),
            ("1 event".to_owned(), "0 events".to_owned())
        );
    }

    #[test]
    fn backticks_make_code() {
        for (text, expected) in [
            ("`a<b` is long", "<code>a&lt;b</code> is long"),
            ("run `x` or `y`", "run <code>x</code> or <code>y</code>"),
            ("one ` alone", "one ` alone"),
            ("", ""),
        ] {
            assert_eq!(prose(text).into_string(), expected);
        }
    }

    #[test]
    fn ids_are_shortened_in_the_middle() {
        for (id, text) in [
            ("event_01M87J013R87NB4P3W63XRW2SN", "event_01M87J…63XRW2SN"),
            ("org_01EHWNCE74X7JSDV0X3SZ3KJNY", "org_01EHWN…3SZ3KJNY"),
            ("ecb5ebb2-3157-545d-8c0a-aac9f5633ff3", "ecb5eb…f5633ff3"),
            ("acme", "acme"),
            ("äöüäöüäöüäöüäöüäöüäöüäöüäöü", "äöüäöü…öüäöüäöü"),
        ] {
            assert_eq!(short(id), text);
        }
    }
}

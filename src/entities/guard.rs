//! Which of two events is the newer one (R7). No I/O.

use std::cmp::Ordering;

use chrono::{DateTime, Utc};

use crate::event::EventId;

/// The guard (R7): is the event newer than what was already applied?
///
/// The event id is the order. Timestamps stand in for it where there is no cursor, or where only one of the
/// two ids has a ULID, so that an odd id can't freeze a row; without a timestamp on either side the event is
/// applied.
///
/// Between a snapshot and an event, timestamps come first: the id of a snapshot says when it was read, give or take a
/// minute, and not when the object became so. Of two that tell the same state, the newer one was told later: an event that
/// a snapshot already knew of must not hide that WorkOS had the organization when it was asked (R44).
#[must_use]
pub fn should_process_event(
    row_last_event_id: Option<&EventId>,
    row_updated_at: Option<DateTime<Utc>>,
    event_id: &EventId,
    event_updated_at: Option<DateTime<Utc>>,
) -> bool {
    let times = event_updated_at.zip(row_updated_at);
    if let (Some(last), Some((event, row))) = (row_last_event_id, times)
        && event_id.is_snapshot() != last.is_snapshot()
    {
        let told_at = event_id.told_at().zip(last.told_at());
        let told = told_at.map_or(Ordering::Equal, |(event, row)| event.cmp(&row));
        let order = event.cmp(&row).then(told);
        if order.is_ne() {
            return order.is_gt();
        }
    }
    match row_last_event_id.and_then(|last| event_id.compare(last)) {
        Some(order) => order.is_gt(),
        None => times.is_none_or(|(event, row)| event >= row),
    }
}

/// Whether an event was decided before, and is decided again because an operator wants it (R46).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replay {
    /// It is new.
    #[default]
    No,
    /// It was decided.
    Again,
    /// It was decided, and disabled a row, which it does once: the application may have enabled it since.
    AfterDisabling,
}

/// The guard, also for an event that was decided before (R46): the newest that was applied is fresh again, and a tie of
/// times went to what was applied after it.
#[must_use]
pub fn is_admitted(
    row_last_event_id: Option<&EventId>,
    row_updated_at: Option<DateTime<Utc>>,
    event_id: &EventId,
    event_updated_at: Option<DateTime<Utc>>,
    replay: Replay,
) -> bool {
    if replay != Replay::No
        && let Some(last) = row_last_event_id
    {
        if event_id.is_same(last) {
            return true;
        }
        if event_id.compare(last).is_none() {
            let times = event_updated_at.zip(row_updated_at);
            return times.is_some_and(|(event, row)| event > row);
        }
    }
    should_process_event(
        row_last_event_id,
        row_updated_at,
        event_id,
        event_updated_at,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> EventId {
        EventId::new(format!("event_{}", ulid::Ulid(n))).unwrap()
    }

    fn at(seconds: i64) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(seconds, 0)
    }

    /// R7: a snapshot is as new as its request, where an event tells the same state; and where the times differ, they decide.
    #[test]
    fn between_a_snapshot_and_an_event() {
        let id = |prefix: &str, second: u64| {
            EventId::new(format!(
                "{prefix}{}",
                ulid::Ulid::from_parts(second * 1_000, 7)
            ))
            .unwrap()
        };
        let event = id("event_", 100);
        // Its id says a minute less.
        let asked = |second: u64| id("snapshot_", second - 60);
        for (asked_at, event_updated, snapshot_updated, snapshot_wins) in [
            (101, 90, 90, true),
            (99, 90, 90, false),
            (100, 90, 90, false),
            (99, 90, 91, true),
            (101, 91, 90, false),
        ] {
            let (event_at, snapshot_at) = (at(event_updated), at(snapshot_updated));
            let snapshot = asked(asked_at);
            let snapshot_applies =
                should_process_event(Some(&event), event_at, &snapshot, snapshot_at);
            let event_applies =
                should_process_event(Some(&snapshot), snapshot_at, &event, event_at);
            assert_eq!(snapshot_applies, snapshot_wins, "asked at {asked_at}");
            assert_eq!(event_applies, !snapshot_wins, "asked at {asked_at}");
        }
    }

    /// R7: the whole table of the guard.
    #[test]
    fn the_guard() {
        let odd = |text: &str| EventId::new(text).unwrap();
        let (one, two) = (id(1), id(2));
        let other_prefix = odd(&one.as_str().replace("event_", "evt_"));
        for (row_id, row_at, event_id, event_at, applies, why) in [
            (None, None, &one, None, true, "nothing to compare with"),
            (None, at(5), &one, None, true, "no time of the event"),
            (None, None, &one, at(5), true, "no time of the row"),
            (None, at(5), &one, at(4), false, "older"),
            (None, at(5), &one, at(5), true, "as old"),
            (None, at(5), &one, at(6), true, "newer"),
            (
                Some(&one),
                at(9),
                &two,
                at(1),
                true,
                "a greater id, whatever the time",
            ),
            (
                Some(&two),
                at(1),
                &one,
                at(9),
                false,
                "a smaller id, whatever the time",
            ),
            (Some(&one), None, &one, at(9), false, "the same id"),
            (
                Some(&one),
                None,
                &other_prefix,
                at(9),
                false,
                "the same id behind another prefix",
            ),
            (
                Some(&odd("wh_1")),
                at(9),
                &odd("wh_2"),
                at(1),
                true,
                "whole strings",
            ),
            (
                Some(&odd("wh_2")),
                at(1),
                &odd("wh_10"),
                at(9),
                false,
                "whole strings, bytewise",
            ),
            (
                Some(&odd("wh_1")),
                at(5),
                &one,
                at(4),
                false,
                "one ULID: older",
            ),
            (
                Some(&odd("wh_1")),
                at(5),
                &one,
                at(5),
                true,
                "one ULID: as old",
            ),
            (
                Some(&one),
                at(5),
                &odd("wh_1"),
                at(4),
                false,
                "one ULID: older",
            ),
            (
                Some(&one),
                at(5),
                &odd("wh_1"),
                at(6),
                true,
                "one ULID: newer",
            ),
            (
                Some(&one),
                at(5),
                &odd("wh_1"),
                None,
                true,
                "one ULID, no time",
            ),
        ] {
            assert_eq!(
                should_process_event(row_id, row_at, event_id, event_at),
                applies,
                "{why}"
            );
        }
    }
}

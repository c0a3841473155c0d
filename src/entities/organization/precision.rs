//! How exact a column keeps times. No I/O.

use chrono::{DateTime, Utc};

/// The microsecond that Postgres counts from: the start of the year 2000.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// How many digits of a second a column keeps: 0 to 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision(u8);

impl Precision {
    /// That of our own tables: microseconds, which is all that Postgres has.
    pub const FULL: Self = Self(6);

    /// So many digits; all of them are 6.
    #[must_use]
    pub const fn digits(digits: u8) -> Self {
        if digits < 6 { Self(digits) } else { Self::FULL }
    }

    /// The time as Postgres has it once it is written into the column: half away from the start of the year 2000.
    #[must_use]
    pub fn round(self, at: DateTime<Utc>) -> DateTime<Utc> {
        if self == Self::FULL {
            return at;
        }
        let step = 10_i64.pow(u32::from(6 - self.0));
        let micros = at.timestamp_micros() - EPOCH_MICROS;
        let steps = (micros.abs() + step / 2) / step;
        let rounded = micros.signum() * steps * step;
        // Nothing is later than what chrono can hold.
        DateTime::from_timestamp_micros(rounded + EPOCH_MICROS).unwrap_or(at)
    }
}

/// How exact the times of a row are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPrecision {
    /// `workos_updated_at`
    pub updated_at: Precision,
    /// `disabled_at`
    pub disabled_at: Precision,
}

impl RowPrecision {
    /// Nothing is rounded.
    pub const FULL: Self = Self {
        updated_at: Precision::FULL,
        disabled_at: Precision::FULL,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R7: as Postgres rounds; the tests with a database compare with what that says.
    #[test]
    fn times_are_rounded_half_away_from_2000() {
        for (digits, at, rounded) in [
            (0, "2026-03-02T09:15:05.750Z", "2026-03-02T09:15:06Z"),
            (0, "2026-03-02T09:15:05.499999Z", "2026-03-02T09:15:05Z"),
            (0, "2026-03-02T09:15:05.500Z", "2026-03-02T09:15:06Z"),
            (0, "1999-12-31T23:59:58.500Z", "1999-12-31T23:59:58Z"),
            (3, "2026-03-02T09:15:05.750499Z", "2026-03-02T09:15:05.750Z"),
            (
                6,
                "2026-03-02T09:15:05.750499Z",
                "2026-03-02T09:15:05.750499Z",
            ),
        ] {
            let time = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
            assert_eq!(
                Precision::digits(digits).round(time(at)),
                time(rounded),
                "{at}"
            );
        }
        let latest = DateTime::<Utc>::MAX_UTC;
        assert!(Precision::digits(0).round(latest) <= latest);
    }
}

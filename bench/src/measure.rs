//! What was measured, and how several measurements become one figure: by the median, with the least and the
//! greatest beside it.

use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    AcknowledgedPerSecond,
    AppliedPerSecond,
    /// Milliseconds, as the ones that follow.
    AckP50,
    AckP99,
    AckP999,
    LagP50,
    LagP99,
    /// Seconds from the last acknowledgement to an empty inbox.
    DrainedAfter,
    /// MiB.
    MaxRss,
    /// Seconds.
    CpuService,
    CpuPostgres,
    CpuGenerator,
    LastToFirst,
    /// Bytes an event.
    Wal,
    /// Rows an event that an update or a deletion leaves to vacuum.
    DeadRows,
    /// How many were sent, or replayed, or listed.
    Deliveries,
    /// Seconds from beginning to end.
    Elapsed,
    /// Seconds that a bare client needs for the list.
    Listing,
    /// Concurrent clients, or connections; of the best run where there were several.
    Clients,
}

/// One run of one workload.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measurement(BTreeMap<Metric, f64>);

impl Measurement {
    pub(crate) fn set(&mut self, metric: Metric, value: f64) {
        self.0.insert(metric, value);
    }

    pub(crate) fn set_some(&mut self, metric: Metric, value: Option<f64>) {
        if let Some(value) = value {
            self.set(metric, value);
        }
    }

    pub(crate) fn get(&self, metric: Metric) -> Option<f64> {
        self.0.get(&metric).copied()
    }
}

/// The repetitions of each workload, limit and peer, by name.
#[derive(Debug, Default)]
pub(crate) struct Results(BTreeMap<String, Vec<Measurement>>);

impl Results {
    pub(crate) fn add(&mut self, name: &str, measurement: Measurement) {
        self.0.entry(name.to_owned()).or_default().push(measurement);
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn figure(&self, name: &str, metric: Metric) -> Option<Figure> {
        let values = self.0.get(name)?.iter().map(|one| one.get(metric));
        Figure::of(values.collect::<Option<_>>()?)
    }

    /// One metric over another, each pair from the same repetition: what slows the machine down for a while
    /// slows both.
    pub(crate) fn ratio(
        &self,
        (over, over_metric): (&str, Metric),
        (under, under_metric): (&str, Metric),
    ) -> Option<Figure> {
        let pairs = self.0.get(over)?.iter().zip(self.0.get(under)?);
        let ratios =
            pairs.map(|(over, under)| Some(over.get(over_metric)? / under.get(under_metric)?));
        Figure::of(ratios.collect::<Option<_>>()?)
    }
}

/// The value that so large a share of the others, in ascending order, doesn't exceed.
pub(crate) fn quantile<T: Copy>(ascending: &[T], share: f64) -> Option<T> {
    let place = (ascending.len() as f64 * share) as usize;
    ascending.get(place).copied()
}

/// A median with its spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

impl Figure {
    pub(crate) fn times(self, factor: f64) -> Self {
        Self {
            median: self.median * factor,
            least: self.least * factor,
            greatest: self.greatest * factor,
        }
    }

    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self {
            median,
            least,
            greatest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let figure = |values: &[f64]| Figure::of(values.to_vec());
        assert_eq!(figure(&[]), None);
        assert_eq!(figure(&[3.0, 1.0, 2.0]).unwrap().median, 2.0);
        let even = figure(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.least, even.median, even.greatest), (1.0, 2.5, 4.0));
    }
}

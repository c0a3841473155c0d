//! The connections to the database, at the time of the scrape.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use sqlx::PgPool;

/// The connections of a pool. Cloning is cheap; clones watch the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections(Arc<OnceLock<PgPool>>);

impl Connections {
    /// Watches a pool, unless one is watched already: a process has one.
    pub(super) fn watch(&self, pool: &PgPool) {
        self.0.get_or_init(|| pool.clone());
    }
}

impl Collector for Connections {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(pool) = self.0.get() else {
            return Ok(());
        };
        // The two aren't read at one moment: a connection may change its state in between.
        let idle = pool.num_idle();
        let used = u64::from(pool.size()).saturating_sub(idle as u64);
        let mut family = encoder.encode_descriptor(
            "database_connections",
            "Connections to the database, by state.",
            None,
            MetricType::Gauge,
        )?;
        for (state, count) in [("idle", idle as u64), ("used", used)] {
            let labels = [("state", state)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

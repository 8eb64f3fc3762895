//! Metrics of the replay of a hot standby.

use prometheus::{Gauge, IntGauge, Registry};

/// The state of replay on the hot standby that is followed.
pub(crate) struct ReplayMetrics {
    /// `catalog_replay_lag_seconds`
    pub(crate) lag: Gauge,
    /// `catalog_replay_stalled`
    pub(crate) stalled: IntGauge,
}

impl ReplayMetrics {
    pub(super) fn new() -> prometheus::Result<Self> {
        Ok(Self {
            lag: Gauge::new(
                "catalog_replay_lag_seconds",
                "Age of the last transaction that the hot standby had replayed at the last read; 0 on a primary.",
            )?,
            stalled: IntGauge::new(
                "catalog_replay_stalled",
                "1 while the hot standby's replay is stalled: WAL is waiting, or the primary is not connected.",
            )?,
        })
    }

    pub(super) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.lag.clone()))?;
        registry.register(Box::new(self.stalled.clone()))
    }
}

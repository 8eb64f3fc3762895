//! Metrics of the replay of a hot standby.

use prometheus::{Gauge, IntGauge, Registry};

use super::registered;

/// The state of replay on the hot standby that is followed.
pub(crate) struct ReplayMetrics {
    /// `catalog_replay_lag_seconds`
    pub(crate) lag: Gauge,
    /// `catalog_replay_stalled`
    pub(crate) stalled: IntGauge,
}

impl ReplayMetrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let lag = "Age of the last transaction that the hot standby had replayed at the last read; 0 on a primary.";
        let stalled = "1 while the hot standby's replay is stalled: WAL is waiting, or the primary is not connected.";
        Ok(Self {
            lag: registered(registry, Gauge::new("catalog_replay_lag_seconds", lag))?,
            stalled: registered(registry, IntGauge::new("catalog_replay_stalled", stalled))?,
        })
    }
}

//! Metrics of both ends of `GET /api/snapshot`: the server that is followed, and the one that follows.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The outcomes of requests to upstreams.
const OUTCOMES: [&str; 4] = ["changed", "unchanged", "refused", "error"];

/// Metrics of following an upstream and of being one.
pub(crate) struct UpstreamMetrics {
    /// `catalog_snapshot_waiters`
    pub(crate) waiters: IntGauge,
    /// `catalog_upstream_connected`
    pub(crate) connected: IntGauge,
    /// `catalog_upstream_requests_total{outcome}`
    pub(crate) requests: IntCounterVec,
    /// `catalog_upstream_received_bytes_total`
    pub(crate) received_bytes: IntCounter,
}

impl UpstreamMetrics {
    pub(super) fn new() -> prometheus::Result<Self> {
        let metrics = Self {
            waiters: IntGauge::new("catalog_snapshot_waiters", "Requests for /api/snapshot that wait for a change.")?,
            connected: IntGauge::new(
                "catalog_upstream_connected",
                "1 while the last request to an upstream was successful.",
            )?,
            requests: IntCounterVec::new(
                Opts::new("catalog_upstream_requests_total", "Requests to upstreams, by outcome."),
                &["outcome"],
            )?,
            received_bytes: IntCounter::new(
                "catalog_upstream_received_bytes_total",
                "Bytes of snapshots received from upstreams, as transferred.",
            )?,
        };
        for outcome in OUTCOMES {
            metrics.requests.with_label_values(&[outcome]);
        }
        Ok(metrics)
    }

    pub(super) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.waiters.clone()))?;
        registry.register(Box::new(self.connected.clone()))?;
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(self.received_bytes.clone()))
    }
}

//! Metrics of both ends of `GET /api/snapshot`: the server that is followed, and the one that follows.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::registered;

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
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let waiters = "Requests for /api/snapshot that wait for a change.";
        let connected = "1 while the last request to an upstream was successful.";
        let requests = Opts::new("catalog_upstream_requests_total", "Requests to upstreams, by outcome.");
        let bytes = "Bytes of snapshots received from upstreams, as transferred.";
        let metrics = Self {
            waiters: registered(registry, IntGauge::new("catalog_snapshot_waiters", waiters))?,
            connected: registered(registry, IntGauge::new("catalog_upstream_connected", connected))?,
            requests: registered(registry, IntCounterVec::new(requests, &["outcome"]))?,
            received_bytes: registered(registry, IntCounter::new("catalog_upstream_received_bytes_total", bytes))?,
        };
        for outcome in OUTCOMES {
            metrics.requests.with_label_values(&[outcome]);
        }
        Ok(metrics)
    }
}

//! Metrics of reads, of the database or of an upstream.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use super::{REFRESH_SECONDS, registered};

const KINDS: [&str; 4] = ["delta", "full", "audit", "upstream"];

/// How often something was read, and how long it took.
pub struct ReadMetrics {
    /// `catalog_refreshes_total{kind,outcome}`
    pub total: IntCounterVec,
    /// `catalog_refresh_duration_seconds{kind}`
    pub(crate) seconds: HistogramVec,
    /// `catalog_slow_reads_total{kind}`
    pub(crate) slow: IntCounterVec,
}

impl ReadMetrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let total =
            Opts::new("catalog_refreshes_total", "Reads of the database or of an upstream, by kind and outcome.");
        let seconds = HistogramOpts::new("catalog_refresh_duration_seconds", "Time a refresh took, by kind.");
        let slow = "Deltas of more than 1 s, and full reads and audits of more than 30 s.";
        let metrics = Self {
            total: registered(registry, IntCounterVec::new(total, &["kind", "outcome"]))?,
            seconds: registered(registry, HistogramVec::new(seconds.buckets(REFRESH_SECONDS.into()), &["kind"]))?,
            slow: registered(registry, IntCounterVec::new(Opts::new("catalog_slow_reads_total", slow), &["kind"]))?,
        };
        // The series are 0 before the first event.
        for kind in KINDS {
            metrics.seconds.with_label_values(&[kind]);
            for outcome in ["ok", "error"] {
                metrics.total.with_label_values(&[kind, outcome]);
            }
        }
        for kind in ["delta", "full", "audit"] {
            metrics.slow.with_label_values(&[kind]);
        }
        Ok(metrics)
    }
}

//! Every metric of the program, in one struct that owns its registry.
//!
//! What a request counts is in `traffic.rs`. The rest moves a few times a second at most and uses the library's own types.

mod traffic;

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::{Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use self::traffic::TrafficCollector;
pub use self::traffic::{Route, Traffic, templates};
use crate::missing::Id;

const REFRESH_KINDS: [&str; 3] = ["delta", "full", "audit"];

/// Upper bounds in seconds, from one changed row to a full load of millions.
const REFRESH_SECONDS: [f64; 13] = [5e-4, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0];

/// Every metric that is not counted per request.
pub struct Metrics {
    registry: Registry,
    traffic: TrafficCollector,
    /// `catalog_ready`
    pub ready: IntGauge,
    /// `catalog_http_connections_limit`
    pub connections_limit: IntGauge,
    /// `catalog_models`
    pub models: IntGauge,
    /// `catalog_models_rejected`
    pub models_rejected: IntGauge,
    /// `catalog_snapshot_bytes`
    pub snapshot_bytes: IntGauge,
    /// `catalog_refreshes_total{kind,outcome}`
    pub refreshes: IntCounterVec,
    /// `catalog_refresh_duration_seconds{kind}`
    pub refresh_seconds: HistogramVec,
    /// `catalog_propagation_seconds`
    pub propagation_seconds: Histogram,
    /// `catalog_last_sync_timestamp_seconds`
    pub last_sync: Gauge,
    /// `catalog_listener_connected`
    pub listener_connected: IntGauge,
    /// `catalog_notifications_total`
    pub notifications: IntCounter,
    /// `catalog_audit_mismatches_total`
    pub audit_mismatches: IntCounter,
    /// `catalog_snapshot_file_operations_total{operation,outcome}`
    pub snapshot_file: IntCounterVec,
}

impl Metrics {
    /// All metrics, registered in a registry of their own.
    ///
    /// # Errors
    /// A name that is invalid or taken: a fault of this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let traffic = TrafficCollector::new()?;
        let refresh = HistogramOpts::new("catalog_refresh_duration_seconds", "Time a refresh took, by kind.")
            .buckets(REFRESH_SECONDS.into());
        let propagation =
            HistogramOpts::new("catalog_propagation_seconds", "Time from a row being changed to its being served.")
                .buckets(REFRESH_SECONDS.into());
        let metrics = Self {
            ready: IntGauge::new("catalog_ready", "1 while /readyz answers 200.")?,
            connections_limit: IntGauge::new(
                "catalog_http_connections_limit",
                "Connections open at most; further ones wait.",
            )?,
            models: IntGauge::new("catalog_models", "Models served.")?,
            models_rejected: IntGauge::new(
                "catalog_models_rejected",
                "Rows that are not served as they stand, because they break a rule.",
            )?,
            snapshot_bytes: IntGauge::new("catalog_snapshot_bytes", "Bytes of all rendered answers and ids.")?,
            refreshes: IntCounterVec::new(
                Opts::new("catalog_refreshes_total", "Reads of the database, by kind and outcome."),
                &["kind", "outcome"],
            )?,
            refresh_seconds: HistogramVec::new(refresh, &["kind"])?,
            propagation_seconds: Histogram::with_opts(propagation)?,
            last_sync: Gauge::new(
                "catalog_last_sync_timestamp_seconds",
                "When the catalog was last known to equal the database, in seconds since 1970; 0 = never.",
            )?,
            listener_connected: IntGauge::new(
                "catalog_listener_connected",
                "1 while changes are announced to this process by the database.",
            )?,
            notifications: IntCounter::new("catalog_notifications_total", "Announcements of changes received.")?,
            audit_mismatches: IntCounter::new(
                "catalog_audit_mismatches_total",
                "Models that an audit found to differ from the database; anything but 0 is a fault.",
            )?,
            snapshot_file: IntCounterVec::new(
                Opts::new(
                    "catalog_snapshot_file_operations_total",
                    "Reads and writes of the snapshot file, by operation and outcome.",
                ),
                &["operation", "outcome"],
            )?,
            traffic: traffic.clone(),
            registry,
        };
        let build_info = IntGauge::with_opts(
            Opts::new("catalog_build_info", "1, labelled with the version.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build_info.set(1);
        for kind in REFRESH_KINDS {
            metrics.refresh_seconds.with_label_values(&[kind]);
            for outcome in ["ok", "error"] {
                metrics.refreshes.with_label_values(&[kind, outcome]);
            }
        }
        for outcome in ["ok", "error"] {
            metrics.snapshot_file.with_label_values(&["write", outcome]);
        }

        let registry = &metrics.registry;
        registry.register(Box::new(traffic))?;
        registry.register(Box::new(build_info))?;
        registry.register(Box::new(metrics.ready.clone()))?;
        registry.register(Box::new(metrics.connections_limit.clone()))?;
        registry.register(Box::new(metrics.models.clone()))?;
        registry.register(Box::new(metrics.models_rejected.clone()))?;
        registry.register(Box::new(metrics.snapshot_bytes.clone()))?;
        registry.register(Box::new(metrics.refreshes.clone()))?;
        registry.register(Box::new(metrics.refresh_seconds.clone()))?;
        registry.register(Box::new(metrics.propagation_seconds.clone()))?;
        registry.register(Box::new(metrics.last_sync.clone()))?;
        registry.register(Box::new(metrics.listener_connected.clone()))?;
        registry.register(Box::new(metrics.notifications.clone()))?;
        registry.register(Box::new(metrics.audit_mismatches.clone()))?;
        registry.register(Box::new(metrics.snapshot_file.clone()))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// The counters of one more serving thread.
    #[must_use]
    pub fn thread(&self) -> Arc<Traffic> {
        self.traffic.thread()
    }

    /// How often an id was looked up in vain, and which ids those were as far as they are still known: each with
    /// the requests since then. In no order.
    #[must_use]
    pub fn missing(&self) -> (u64, HashMap<Id, u64>) {
        self.traffic.missing()
    }

    /// The text exposition of all of it.
    ///
    /// # Errors
    /// A metric that can't be written as text: a fault of this file.
    pub fn render(&self) -> prometheus::Result<String> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

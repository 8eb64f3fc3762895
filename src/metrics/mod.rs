//! Every metric of the program, in one struct that owns its registry.
//!
//! Request metrics are in `requests.rs`. All others change a few times a second and use the types of the prometheus
//! crate.

mod reads;
mod replay;
mod requests;
mod top_missing;
mod upstream;

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

pub use self::reads::ReadMetrics;
pub(crate) use self::replay::ReplayMetrics;
use self::requests::RequestCollector;
pub(crate) use self::requests::{RequestMetrics, Route, TimedOut};
pub use self::requests::{statuses, templates};
pub(crate) use self::top_missing::ID_BYTES;
use self::top_missing::Id;
pub(crate) use self::top_missing::truncate;
pub(crate) use self::upstream::UpstreamMetrics;

/// Upper bounds in seconds, from one changed row to a full load of millions.
const REFRESH_SECONDS: [f64; 13] = [5e-4, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0];

/// All metrics that are not per request.
pub struct Metrics {
    registry: Registry,
    requests: RequestCollector,
    /// `catalog_ready`
    pub(crate) ready: IntGauge,
    /// `catalog_http_connections_limit`
    pub(crate) connections_limit: IntGauge,
    /// `catalog_models`
    pub(crate) models: IntGauge,
    /// `catalog_models_rejected`
    pub(crate) models_rejected: IntGauge,
    /// `catalog_snapshot_bytes`
    pub(crate) snapshot_bytes: IntGauge,
    /// Reads of the database or of an upstream.
    pub reads: ReadMetrics,
    /// `catalog_propagation_seconds`
    pub(crate) propagation_seconds: Histogram,
    /// `catalog_last_sync_timestamp_seconds`
    pub(crate) last_sync: Gauge,
    /// `catalog_follow_stalled`
    pub(crate) follow_stalled: IntGauge,
    /// The replay of a hot standby.
    pub(crate) replay: ReplayMetrics,
    /// `catalog_thread_restarts_total{thread}`
    pub(crate) thread_restarts: IntCounterVec,
    /// `catalog_listener_connected`
    pub(crate) listener_connected: IntGauge,
    /// `catalog_notifications_total`
    pub(crate) notifications: IntCounter,
    /// `catalog_audit_mismatches_total`
    pub(crate) audit_mismatches: IntCounter,
    /// `catalog_unknown_ids_total`
    pub(crate) unknown_ids: IntCounter,
    /// `catalog_unwatched_tables`
    pub(crate) unwatched_tables: IntGauge,
    /// `catalog_snapshot_file_operations_total{operation,outcome}`
    pub(crate) snapshot_file: IntCounterVec,
    /// `catalog_log_lines_dropped_total`
    pub(crate) log_lines_dropped: IntCounter,
    /// Metrics of following an upstream and of being one.
    pub(crate) upstream: UpstreamMetrics,
}

impl Metrics {
    /// All metrics, registered in a registry of their own.
    ///
    /// # Errors
    /// An invalid or duplicate metric name (a bug here).
    pub fn new() -> prometheus::Result<Self> {
        let metrics = Self {
            ready: IntGauge::new("catalog_ready", "1 while /readyz returns 200.")?,
            connections_limit: IntGauge::new("catalog_http_connections_limit", "Maximum open connections; more wait.")?,
            models: IntGauge::new("catalog_models", "Models served.")?,
            models_rejected: IntGauge::new(
                "catalog_models_rejected",
                "Rows rejected because they break a rule; the last valid version stays served.",
            )?,
            snapshot_bytes: IntGauge::new("catalog_snapshot_bytes", "Bytes of all rendered models and ids.")?,
            reads: ReadMetrics::new()?,
            propagation_seconds: propagation_seconds()?,
            last_sync: Gauge::new(
                "catalog_last_sync_timestamp_seconds",
                "Unix time at which the catalog was last known to equal its source; 0 = never.",
            )?,
            follow_stalled: IntGauge::new(
                "catalog_follow_stalled",
                "1 while the catalog has not been in sync with its source for longer than the settings explain.",
            )?,
            replay: ReplayMetrics::new()?,
            thread_restarts: IntCounterVec::new(
                Opts::new("catalog_thread_restarts_total", "Restarts of threads that panicked or failed, by thread."),
                &["thread"],
            )?,
            listener_connected: IntGauge::new(
                "catalog_listener_connected",
                "1 while this process receives notifications from the database.",
            )?,
            notifications: IntCounter::new("catalog_notifications_total", "Notifications received.")?,
            audit_mismatches: IntCounter::new(
                "catalog_audit_mismatches_total",
                "Models that an audit found to differ from the database: changes that bypassed the triggers.",
            )?,
            unknown_ids: IntCounter::new(
                "catalog_unknown_ids_total",
                "Recorded ids that neither the view nor the catalog had; each leads to an audit.",
            )?,
            unwatched_tables: IntGauge::new(
                "catalog_unwatched_tables",
                "Tables of the view whose changes no trigger records; only audits find them.",
            )?,
            snapshot_file: snapshot_file_operations()?,
            log_lines_dropped: log_lines_dropped()?,
            upstream: UpstreamMetrics::new()?,
            requests: RequestCollector::new()?,
            registry: Registry::new(),
        };
        for outcome in ["ok", "error"] {
            metrics.snapshot_file.with_label_values(&["write", outcome]);
        }
        metrics.register_all()?;
        Ok(metrics)
    }

    fn register_all(&self) -> prometheus::Result<()> {
        let build_info = IntGauge::with_opts(
            Opts::new("catalog_build_info", "Build information; always 1.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build_info.set(1);

        let registry = &self.registry;
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(build_info))?;
        registry.register(Box::new(self.ready.clone()))?;
        registry.register(Box::new(self.connections_limit.clone()))?;
        registry.register(Box::new(self.models.clone()))?;
        registry.register(Box::new(self.models_rejected.clone()))?;
        registry.register(Box::new(self.snapshot_bytes.clone()))?;
        self.reads.register(registry)?;
        registry.register(Box::new(self.propagation_seconds.clone()))?;
        registry.register(Box::new(self.last_sync.clone()))?;
        registry.register(Box::new(self.follow_stalled.clone()))?;
        self.replay.register(registry)?;
        registry.register(Box::new(self.thread_restarts.clone()))?;
        registry.register(Box::new(self.listener_connected.clone()))?;
        registry.register(Box::new(self.notifications.clone()))?;
        registry.register(Box::new(self.audit_mismatches.clone()))?;
        registry.register(Box::new(self.unknown_ids.clone()))?;
        registry.register(Box::new(self.unwatched_tables.clone()))?;
        registry.register(Box::new(self.snapshot_file.clone()))?;
        registry.register(Box::new(self.log_lines_dropped.clone()))?;
        self.upstream.register(registry)?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(())
    }

    /// The request metrics of one more worker thread.
    pub(crate) fn register_thread(&self) -> Arc<RequestMetrics> {
        self.requests.register_thread()
    }

    /// The number of lookups of unknown ids, and the most requested of these ids with a lower bound of their requests.
    /// In no order.
    pub(crate) fn missing(&self) -> (u64, HashMap<Id, u64>) {
        self.requests.missing()
    }

    /// The text exposition of all of it.
    ///
    /// # Errors
    /// A metric that cannot be written as text (a bug here).
    pub fn render(&self) -> prometheus::Result<String> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Sets a gauge to a number of things.
pub(crate) fn set_count(gauge: &IntGauge, count: usize) {
    gauge.set(count.try_into().unwrap_or(i64::MAX));
}

fn propagation_seconds() -> prometheus::Result<Histogram> {
    let help = "Time from a row being changed to its being served.";
    Histogram::with_opts(HistogramOpts::new("catalog_propagation_seconds", help).buckets(REFRESH_SECONDS.into()))
}

fn log_lines_dropped() -> prometheus::Result<IntCounter> {
    IntCounter::new("catalog_log_lines_dropped_total", "Log lines dropped because standard error could not be written.")
}

fn snapshot_file_operations() -> prometheus::Result<IntCounterVec> {
    let help = "Reads and writes of the snapshot file, by operation and outcome.";
    IntCounterVec::new(Opts::new("catalog_snapshot_file_operations_total", help), &["operation", "outcome"])
}

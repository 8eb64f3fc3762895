//! Every metric of the program, in one struct that owns its registry.
//!
//! Request metrics are in `requests.rs`. All others change a few times a second and use the types of the prometheus
//! crate.

mod openmetrics;
mod reads;
mod replay;
mod requests;
mod top_missing;
mod upstream;

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::core::Collector;
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
use crate::postgres::migrate::SCHEMA_VERSION;

/// The commit that a release was built from, which `make release` passes.
pub const COMMIT: &str = match option_env!("MODEL_CATALOG_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Upper bounds in seconds, from one changed row to a full read of millions.
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
        let registry = Registry::new();
        let counter = |name: &str, help: &str| registered(&registry, IntCounter::new(name, help));
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help));
        let metrics = Self {
            ready: gauge("catalog_ready", "1 while /readyz returns 200.")?,
            connections_limit: gauge("catalog_http_connections_limit", "Maximum open connections; more wait.")?,
            models: gauge("catalog_models", "Models served.")?,
            models_rejected: gauge(
                "catalog_models_rejected",
                "Rows rejected because they break a rule; the last valid version stays served.",
            )?,
            snapshot_bytes: gauge("catalog_snapshot_bytes", "Bytes of all rendered models and ids.")?,
            reads: ReadMetrics::new(&registry)?,
            propagation_seconds: registered(&registry, Histogram::with_opts(propagation_seconds()))?,
            last_sync: registered(&registry, last_sync())?,
            follow_stalled: gauge(
                "catalog_follow_stalled",
                "1 while the catalog has not been in sync with its source for longer than the settings explain.",
            )?,
            replay: ReplayMetrics::new(&registry)?,
            thread_restarts: counters(
                "catalog_thread_restarts_total",
                "Restarts of threads that panicked or failed, by thread.",
                &["thread"],
            )?,
            listener_connected: gauge(
                "catalog_listener_connected",
                "1 while this process receives notifications from the database.",
            )?,
            notifications: counter("catalog_notifications_total", "Notifications received.")?,
            audit_mismatches: counter(
                "catalog_audit_mismatches_total",
                "Models that an audit found to differ from the database: changes that bypassed the triggers.",
            )?,
            unknown_ids: counter(
                "catalog_unknown_ids_total",
                "Recorded ids that neither the view nor the catalog had; each leads to an audit.",
            )?,
            unwatched_tables: gauge(
                "catalog_unwatched_tables",
                "Tables of the view whose changes no trigger records; only audits find them.",
            )?,
            snapshot_file: snapshot_file_operations(&registry)?,
            log_lines_dropped: counter(
                "catalog_log_lines_dropped_total",
                "Log lines dropped because standard error could not be written.",
            )?,
            upstream: UpstreamMetrics::new(&registry)?,
            requests: registered(&registry, RequestCollector::new())?,
            registry: registry.clone(),
        };
        registered(&registry, IntGauge::with_opts(build_info()))?.set(1);
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// The request metrics of one more worker thread.
    pub(crate) fn register_thread(&self) -> Arc<RequestMetrics> {
        self.requests.register_thread()
    }

    /// The number of lookups of unknown ids, and the most requested of these ids with a lower bound of their requests.
    /// In no order.
    pub(crate) fn top_missing(&self) -> (u64, HashMap<Id, u64>) {
        self.requests.top_missing()
    }

    /// All of it as text.
    ///
    /// # Errors
    /// A metric that cannot be written as text (a bug here).
    pub fn render(&self, format: Format) -> prometheus::Result<String> {
        let text = prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())?;
        Ok(match format {
            Format::Text => text,
            Format::OpenMetrics => openmetrics::from_text(&text),
        })
    }
}

/// The format of `/metrics`.
#[derive(Debug, Clone, Copy)]
pub enum Format {
    /// Prometheus' text format.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The media type.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus::TEXT_FORMAT,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Sets a gauge to a number of things.
pub(crate) fn set_count(gauge: &IntGauge, count: usize) {
    gauge.set(count.try_into().unwrap_or(i64::MAX));
}

/// Registers a new metric.
fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn last_sync() -> prometheus::Result<Gauge> {
    let help = "Unix time at which the catalog was last known to equal its source; 0 = never.";
    Gauge::new("catalog_last_sync_timestamp_seconds", help)
}

fn snapshot_file_operations(registry: &Registry) -> prometheus::Result<IntCounterVec> {
    let help = "Reads and writes of the snapshot file, by operation and outcome.";
    let options = Opts::new("catalog_snapshot_file_operations_total", help);
    let operations = registered(registry, IntCounterVec::new(options, &["operation", "outcome"]))?;
    for outcome in ["ok", "error"] {
        operations.with_label_values(&["write", outcome]);
    }
    Ok(operations)
}

fn build_info() -> Opts {
    Opts::new("catalog_build_info", "Build information; always 1.")
        .const_label("version", env!("CARGO_PKG_VERSION"))
        .const_label("commit", COMMIT)
        .const_label("schema", SCHEMA_VERSION.to_string())
}

fn propagation_seconds() -> HistogramOpts {
    HistogramOpts::new("catalog_propagation_seconds", "Time from a row being changed to its being served.")
        .buckets(REFRESH_SECONDS.into())
}

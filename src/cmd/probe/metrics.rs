//! The results as metrics for the textfile collector of Prometheus' node_exporter.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use prometheus::{Encoder, GaugeVec, Opts, Registry, TextEncoder};

use super::address::{Results, Row};
use super::compare::Outcome;
use crate::base::atomic_file::AtomicFile;

/// Why there is no new file.
pub(crate) type MetricsError = Box<dyn std::error::Error + Send + Sync>;

/// Replaces the file at `path`.
///
/// # Errors
/// The file can't be written.
pub(crate) fn write(
    path: &Path,
    rows: &[Row],
    results: &[Results],
    outcomes: &[Outcome],
    elapsed: Duration,
) -> Result<(), MetricsError> {
    let text = render(rows, results, outcomes, elapsed)?;
    // The collector reads every `*.prom`, so the name of the temporary file must end in something else.
    let file = AtomicFile::create(path)?;
    file.file().write_all(&text)?;
    Ok(file.commit()?)
}

fn render(
    rows: &[Row],
    results: &[Results],
    outcomes: &[Outcome],
    elapsed: Duration,
) -> Result<Vec<u8>, prometheus::Error> {
    let registry = Registry::new();
    let gauge = |name: &str, help: &str, labels: &[&str]| -> Result<GaugeVec, prometheus::Error> {
        let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    };
    let models = gauge("catalog_probe_models", "Models by the outcome of the probe.", &["outcome"])?;
    for outcome in [Outcome::Reachable, Outcome::Unreachable, Outcome::Unproven] {
        let count = outcomes.iter().filter(|other| **other == outcome).count();
        models.with_label_values(&[outcome.name()]).set(count as f64);
    }
    let help = "Models whose file no machine can download, with the reason; always 1.";
    let unreachable = gauge("catalog_probe_model_unreachable", help, &["model", "reason"])?;
    for ((row, results), outcome) in rows.iter().zip(results).zip(outcomes) {
        if let (Some(Err(failure)), Outcome::Unreachable) = (results.first(), outcome) {
            unreachable.with_label_values(&[&*row.id, failure.problem.code()]).set(1.0);
        }
    }
    let no_labels: [&str; 0] = [];
    let seconds = gauge("catalog_probe_seconds", "Duration of the probe.", &[])?;
    seconds.with_label_values(&no_labels).set(elapsed.as_secs_f64());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let timestamp = gauge("catalog_probe_timestamp_seconds", "Time at which the probe ended.", &[])?;
    timestamp.with_label_values(&no_labels).set(now.as_secs_f64());
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}

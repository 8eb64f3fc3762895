//! Reports the progress: as bars on a terminal, otherwise as log lines; in the status file; in the metrics file.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use prometheus::{Encoder, GaugeVec, Opts, Registry, TextEncoder};
use serde_json::json;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::screen::Screen;
use super::settings::PullSettings;
use crate::fetch::cache::Cache;
use crate::fetch::progress::{ModelProgress, Outcome, Phase, Progress};
use crate::fetch::record::now;
use crate::fetch::{Context, Pending, state_file};

/// Interval at which the bars and the files are updated.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time in which the final files must be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The status until the end.
const RUNNING: &str = "running";
/// Seconds between two log lines.
const LINE_EVERY: u32 = 10;

/// Where the progress is reported.
pub(super) struct Reporter {
    pub(super) context: Arc<Context>,
    pub(super) screen: Screen,
    status_file: Option<PathBuf>,
    metrics_file: Option<PathBuf>,
    /// Held while the files are written.
    files: Mutex<Reports>,
}

impl Reporter {
    pub(super) fn new(context: Arc<Context>, screen: Screen, settings: &PullSettings) -> Self {
        let (status_file, metrics_file) = (settings.status_file.clone(), settings.metrics_file.clone());
        Self { context, screen, status_file, metrics_file, files: Mutex::default() }
    }
}

/// The state of the status file and the metrics.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// Whether the final ones have been written.
    pub(crate) finished: bool,
    /// Whether they could not be written the last time, which is logged once.
    pub(crate) failed: bool,
}

/// Reports until the task is aborted.
pub(crate) async fn run(reporter: Arc<Reporter>) {
    let progress = &reporter.context.progress;
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut bars = Bars::new(&reporter.screen);
    let mut before: Vec<_> = vec![0; progress.files.len()];
    let (mut last, mut ticks, mut writing) = (Instant::now(), 0u32, None);
    loop {
        tick.tick().await;
        for (file, before) in progress.files.iter().zip(&mut before) {
            file.measure(*before, last.elapsed());
            *before = file.received();
        }
        last = Instant::now();
        if writing.as_ref().is_none_or(JoinHandle::is_finished) {
            writing = Some(write_files(Arc::clone(&reporter), RUNNING));
        }
        match &mut bars {
            Some(bars) => bars.update(progress),
            None if ticks > 0 && ticks.is_multiple_of(LINE_EVERY) => line(progress),
            None => {}
        }
        ticks += 1;
    }
}

/// Sums over all models.
struct Totals {
    done: u64,
    total: u64,
    received: u64,
    rate: f64,
}

impl Totals {
    fn of(progress: &Progress) -> Self {
        let mut totals = Self { done: 0, total: 0, received: 0, rate: 0.0 };
        for file in &progress.files {
            let state = file.state();
            // Files that are only hashed do not count.
            if matches!(state.outcome, Some(Outcome::Fetched)) || state.phase == Phase::Fetching {
                let (done, total) = file.bytes();
                totals.done += done;
                totals.total = totals.total.saturating_add(total.max(done));
                totals.rate += if state.outcome.is_none() { state.rate } else { 0.0 };
            } else if state.phase == Phase::Waiting || state.phase == Phase::Elsewhere {
                totals.total = totals.total.saturating_add(file.bytes().1);
            }
            totals.received += file.received();
        }
        totals
    }

    /// Seconds left at the current rate.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
    fn eta(&self) -> Option<u64> {
        (self.rate >= 1.0).then(|| (self.total.saturating_sub(self.done) as f64 / self.rate) as u64)
    }
}

fn line(progress: &Progress) {
    let totals = Totals::of(progress);
    let active = progress.files.iter().filter(|file| file.state().phase != Phase::Done).count();
    let done = progress.files.len() - active;
    let rate = format!("{}/s", bytes(totals.rate));
    let eta = totals.eta().map_or_else(|| "unknown".into(), |eta| HumanDuration(Duration::from_secs(eta)).to_string());
    let (have, all) = (HumanBytes(totals.done).to_string(), HumanBytes(totals.total).to_string());
    info!(models = progress.files.len(), done, bytes = have, of = all, rate, eta, "progress");
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
fn bytes(count: f64) -> String {
    HumanBytes(count as u64).to_string()
}

/// The bars on a terminal.
struct Bars {
    screen: MultiProgress,
    all: ProgressBar,
    files: HashMap<String, ProgressBar>,
}

impl Bars {
    /// `None` without a terminal.
    fn new(screen: &Screen) -> Option<Self> {
        let screen = screen.bars()?.clone();
        let all = screen.add(bar("all"));
        Some(Self { screen, all, files: HashMap::new() })
    }

    fn update(&mut self, progress: &Progress) {
        for file in &progress.files {
            let state = file.state();
            match state.phase {
                Phase::Waiting => {}
                Phase::Done => {
                    if let Some(bar) = self.files.remove(&file.id) {
                        bar.finish_and_clear();
                    }
                }
                Phase::Checking | Phase::Fetching | Phase::Elsewhere => {
                    let new = || self.screen.insert_before(&self.all, bar(&file.id));
                    let bar = self.files.entry(file.id.clone()).or_insert_with(new);
                    let (done, total) = file.bytes();
                    let what = match state.phase {
                        Phase::Checking => "verifying".to_owned(),
                        Phase::Elsewhere => "downloaded by another process".to_owned(),
                        _ => speed(state.rate, total.saturating_sub(done)),
                    };
                    show(bar, done, total, what);
                }
            }
        }
        let totals = Totals::of(progress);
        let left = totals.total.saturating_sub(totals.done);
        show(&self.all, totals.done, totals.total, speed(totals.rate, left));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.files.values().for_each(ProgressBar::finish_and_clear);
        self.all.finish_and_clear();
    }
}

const TEMPLATE: &str = "{prefix:24!} {bar:30} {bytes:>11}/{total_bytes:<11} {msg}";

fn bar(name: &str) -> ProgressBar {
    // A test checks that the template is valid.
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_prefix(printable(name))
}

/// A text without control characters.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn show(bar: &ProgressBar, done: u64, total: u64, message: String) {
    bar.set_length(total.max(done));
    bar.set_position(done);
    bar.set_message(message);
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
fn speed(rate: f64, left: u64) -> String {
    let eta = if rate >= 1.0 { (left as f64 / rate) as u64 } else { 0 };
    format!("{}/s, {} left", bytes(rate), HumanDuration(Duration::from_secs(eta)))
}

/// Writes the final report.
pub(crate) async fn finish(reporter: &Arc<Reporter>) {
    let progress = &reporter.context.progress;
    let (missing, fetched) = (progress.count("missing"), progress.count("fetched"));
    let written = write_files(Arc::clone(reporter), if progress.is_complete() { "complete" } else { "incomplete" });
    // A disk that hangs must not delay the command.
    if tokio::time::timeout(WRITE_TIMEOUT, written).await.is_err() {
        reporter.screen.log(|| warn!("the progress could not be written to a file in time"));
    }
    let models = progress.files.iter().filter(|file| !file.path.is_empty()).count();
    let bytes = Totals::of(progress).received;
    let seconds = (progress.started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let (present, linked, kept) = (progress.count("present"), progress.count("linked"), progress.count("kept"));
    info!(models, fetched, present, linked, missing, kept, bytes, seconds, "pulled");
}

/// Writes the status file and the metrics, on a thread that may wait for a slow disk.
fn write_files(reporter: Arc<Reporter>, status: &'static str) -> JoinHandle<()> {
    spawn_blocking(move || {
        let progress = &reporter.context.progress;
        let mut reports = reporter.files.lock();
        // One that was delayed must not replace the final ones.
        if reports.finished {
            return;
        }
        reports.finished = status != RUNNING;
        let status = || self::status(progress, status).to_string().into_bytes();
        let written = [
            reporter.status_file.as_ref().map(|path| (path, state_file::replace(path, &status()))),
            reporter.metrics_file.as_ref().map(|path| {
                let text = metrics(progress, &reporter.context.caches).map_err(std::io::Error::other);
                (path, text.and_then(|text| state_file::replace(path, &text)))
            }),
        ];
        let failures: Vec<_> =
            written.into_iter().flatten().filter_map(|(path, done)| Some((path, done.err()?))).collect();
        for (path, error) in failures.iter().filter(|_| !reports.failed) {
            reporter.screen.log(|| warn!(path = %path.display(), %error, "the progress cannot be written to a file"));
        }
        reports.failed = !failures.is_empty();
    })
}

fn status(progress: &Progress, status: &str) -> serde_json::Value {
    let totals = Totals::of(progress);
    let models: Vec<_> = progress.files.iter().map(|file| status_of(file)).collect();
    json!({
        "version": 1,
        "status": status,
        "updated_at": now(),
        "seconds": progress.started.elapsed().as_secs(),
        "bytes_done": totals.done,
        "bytes_total": totals.total,
        "bytes_received": totals.received,
        "bytes_per_second": totals.rate.round(),
        "eta_seconds": totals.eta(),
        "models": models,
    })
}

fn status_of(file: &ModelProgress) -> serde_json::Value {
    let (state, (done, total)) = (file.state(), file.bytes());
    let (code, reason) = match &state.outcome {
        Some(Outcome::Missing { code, reason }) => (Some(*code), Some(&**reason)),
        _ => (None, None),
    };
    json!({
        "id": file.id,
        "path": file.path,
        "phase": state.phase.name(),
        "outcome": state.outcome.as_ref().map(Outcome::name),
        "reason": code,
        "detail": reason,
        "source": state.source,
        "bytes_done": done,
        "bytes_total": total,
        "bytes_received": file.received(),
        "bytes_by_source": state.received_from,
        "bytes_per_second": state.rate.round(),
        "failed_attempts": state.failed_attempts,
        "seconds": state.elapsed.as_secs_f64(),
    })
}

/// The metrics in the Prometheus text format.
fn metrics(progress: &Progress, caches: &[Arc<Cache>]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let registry = Registry::new();
    let gauge = |name: &str, help: &str, labels: &[&str]| -> Result<GaugeVec, prometheus::Error> {
        let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    };
    let received = gauge("catalog_pull_model_received_bytes", "Bytes received for the model.", &["model", "source"])?;
    let seconds =
        gauge("catalog_pull_model_seconds", "Time since the download of the model began, until its end.", &["model"])?;
    let rate = gauge("catalog_pull_model_bytes_per_second", "Mean rate of the download.", &["model"])?;
    let failed = gauge("catalog_pull_model_failed_attempts", "Failed attempts.", &["model"])?;
    let labels = ["model", "outcome", "reason"];
    let outcome = gauge("catalog_pull_model_outcome", "Outcome of the model; always 1.", &labels)?;
    for file in &progress.files {
        let (state, model) = (file.state(), &*printable(&file.id));
        let (elapsed, bytes) = (state.elapsed.as_secs_f64(), file.received() as f64);
        if state.received_from.is_empty() {
            received.with_label_values(&[model, state.source.as_deref().unwrap_or_default()]).set(0.0);
        }
        for (source, bytes) in &state.received_from {
            received.with_label_values(&[model, source]).set(*bytes as f64);
        }
        seconds.with_label_values(&[model]).set(elapsed);
        rate.with_label_values(&[model]).set(if elapsed > 0.0 { bytes / elapsed } else { 0.0 });
        failed.with_label_values(&[model]).set(state.failed_attempts as f64);
        let (name, reason) = match &state.outcome {
            Some(Outcome::Missing { code, .. }) => ("missing", *code),
            Some(other) => (other.name(), ""),
            None => ("running", ""),
        };
        outcome.with_label_values(&[model, name, reason]).set(1.0);
    }
    let failures = gauge("catalog_pull_cache_failures", "Failures of the cache, by reason.", &["cache", "reason"])?;
    for cache in caches {
        failures.with_label_values(&[&*cache.name(), ""]).set(0.0);
        for (reason, count) in cache.failures() {
            failures.with_label_values(&[&*cache.name(), reason]).set(count as f64);
        }
    }
    gauge("catalog_pull_seconds", "Time since the pull began.", &[])?
        .with_label_values::<&str>(&[])
        .set(progress.started.elapsed().as_secs_f64());
    gauge("catalog_pull_timestamp_seconds", "Time at which this file was written.", &[])?
        .with_label_values::<&str>(&[])
        .set(now() as f64);
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}

/// The output of a dry run: one tab-separated line per model, and a sum.
pub(crate) fn dry_run(context: &Context, pending: &[Pending]) -> String {
    let mut text = String::new();
    let mut sum = 0u64;
    for file in &context.progress.files {
        let (id, path) = (printable(&file.id), printable(&file.path));
        let pending = pending.iter().find(|pending| Arc::ptr_eq(&pending.item.1, file));
        let line = match (pending, file.state().outcome) {
            (Some(pending), _) => match &pending.source {
                Some(source) => {
                    let bytes = source.total.or(pending.item.0.bytes);
                    sum = sum.saturating_add(bytes.unwrap_or(0));
                    let bytes = bytes.map_or_else(|| "?".into(), |bytes| bytes.to_string());
                    format!("fetch\t{bytes}\t{}\t{path}\t{id}", source.host())
                }
                None if pending.link => format!("link\t0\t-\t{path}\t{id}"),
                None => format!("fetch\t?\t(no response)\t{path}\t{id}"),
            },
            (None, Some(Outcome::Missing { reason, .. })) => format!("missing\t-\t-\t{path}\t{id}\t{reason}"),
            (None, Some(Outcome::Kept { .. })) => format!("kept\t-\t-\t{path}\t{id}"),
            (None, _) => format!("present\t-\t-\t{path}\t{id}"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "{sum} bytes to fetch");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_template_is_valid() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn control_characters_in_names_are_escaped() {
        assert_eq!(printable("a\u{1b}[2J\r\nb\u{9b}"), "a[2Jb");
    }
}

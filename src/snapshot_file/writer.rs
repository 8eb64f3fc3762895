//! When the snapshot file is written and read. The writer has a thread of its own, so writing a large catalog delays
//! neither a request nor a change.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{PersistedSnapshot, SnapshotFileError};
use crate::base::atomic_file::FileLock;
use crate::catalog::model::Rules;
use crate::catalog::row_error::log_rejections;
use crate::catalog::snapshot::Snapshot;
use crate::metrics::Metrics;

/// The latest state of the loader, once there is one.
pub type LatestState = Option<PersistedSnapshot<Arc<Snapshot>>>;

/// Minimum time between two writes, so that a busy table does not keep the disk busy.
const PAUSE: Duration = Duration::from_secs(2);
/// Minimum ratio of a pause to the write before it: writing a large catalog that changes all the time takes a tenth of
/// a core, not half of one.
const PAUSE_PER_WRITE: u32 = 9;
/// Time until a failed write is retried when nothing changes.
const RETRY: Duration = Duration::from_secs(30);

/// Writes `latest` to `path` after each change, until its sender is dropped; the last state is written before this
/// returns.
pub(crate) async fn run(path: &Path, mut latest: watch::Receiver<LatestState>, metrics: &Metrics) {
    let mut writer = Writer { path, metrics, lock: None, failed: false };
    loop {
        let open = tokio::select! {
            changed = latest.changed() => changed.is_ok(),
            () = sleep(RETRY), if writer.failed => true,
        };
        let started = Instant::now();
        let persisted = latest.borrow_and_update().clone();
        if let Some(persisted) = persisted.filter(|_| open || writer.failed) {
            writer.save(&persisted);
        }
        if !open {
            return;
        }
        // The end of the loader interrupts the pause, so that its last state is written without delay.
        tokio::select! {
            () = sleep(PAUSE.max(started.elapsed() * PAUSE_PER_WRITE)) => {}
            () = closed(latest.clone()) => {}
        }
    }
}

/// Waits until the sender is dropped.
async fn closed(mut latest: watch::Receiver<LatestState>) {
    while latest.changed().await.is_ok() {}
}

struct Writer<'a> {
    path: &'a Path,
    metrics: &'a Metrics,
    /// Kept from the first write on: two processes that write the same file in turns would restart from each other's
    /// state.
    lock: Option<FileLock>,
    /// Whether the last write failed.
    failed: bool,
}

impl Writer<'_> {
    fn save(&mut self, persisted: &PersistedSnapshot<Arc<Snapshot>>) {
        let started = Instant::now();
        let result = self.acquire_lock().and_then(|()| super::write(self.path, persisted));
        let outcome = if result.is_ok() { "ok" } else { "error" };
        self.metrics.snapshot_file.with_label_values(&["write", outcome]).inc();
        let (path, models) = (self.path.display(), persisted.snapshot.len());
        let failed_before = std::mem::replace(&mut self.failed, result.is_err());
        match result {
            Ok(()) if failed_before => info!(%path, "the snapshot file can be written again"),
            Ok(()) => debug!(%path, models, took_seconds = started.elapsed().as_secs_f64(), "snapshot file written"),
            Err(error) if failed_before => debug!(%path, %error, "the snapshot file still can't be written"),
            Err(error) => {
                warn!(
                    %path,
                    %error,
                    "the snapshot file can't be written; serving continues, but a restart would need the source"
                );
            }
        }
    }

    fn acquire_lock(&mut self) -> Result<(), SnapshotFileError> {
        if self.lock.is_none() {
            self.lock = Some(super::lock(self.path)?);
        }
        Ok(())
    }
}

/// Reads the snapshot file at startup. Rows that were accepted under other rules are checked again, and those that
/// break one of `rules` are not served. A file that cannot be used is logged and counted, and quarantined if it is
/// damaged; it never prevents the start.
pub(crate) fn restore(path: &Path, rules: &Rules, metrics: &Metrics) -> Option<PersistedSnapshot<Snapshot>> {
    let started = Instant::now();
    let result = super::read(path).map(|persisted| check_again(persisted, rules));
    let outcome = match &result {
        Ok(_) => "ok",
        Err(SnapshotFileError::Missing) => "missing",
        Err(_) => "error",
    };
    metrics.snapshot_file.with_label_values(&["read", outcome]).inc();
    match result {
        Ok(persisted) => {
            let (models, took_seconds) = (persisted.snapshot.len(), started.elapsed().as_secs_f64());
            info!(
                path = %path.display(), models, took_seconds,
                "serving from the snapshot file until its source is read"
            );
            return Some(persisted);
        }
        Err(SnapshotFileError::Missing) => info!(path = %path.display(), "no snapshot file yet"),
        Err(error @ SnapshotFileError::Damaged(_)) => {
            let renamed_to = super::quarantine(path)
                .map_or_else(|error| format!("not renamed: {error}"), |quarantined| quarantined.display().to_string());
            warn!(
                path = %path.display(), %error, renamed_to,
                "the snapshot file can't be used, waiting for the source"
            );
        }
        Err(error) => {
            warn!(path = %path.display(), %error, "the snapshot file can't be used, waiting for the source");
        }
    }
    None
}

/// Removes the rows that break one of today's rules, unless the file was written under the same rules.
fn check_again(mut persisted: PersistedSnapshot<Snapshot>, rules: &Rules) -> PersistedSnapshot<Snapshot> {
    if persisted.rules != rules.text() {
        let rejected = persisted.snapshot.check_again(rules);
        let (written_under, removed) = (&persisted.rules, rejected.len());
        info!(
            written_under,
            removed, "the rules for rows differ from those of the snapshot file, its rows are checked"
        );
        log_rejections(&rejected);
    }
    persisted
}

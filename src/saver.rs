//! Keeps the catalog on disk, on a thread of its own: a write of a large catalog holds up neither a request nor a
//! change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::catalog::file::{self, FileError, Saved};
use crate::catalog::snapshot::Snapshot;
use crate::metrics::Metrics;

/// The loader's newest state; the saver takes the last of several.
pub type Newest = Option<Saved<Arc<Snapshot>>>;

/// Least time between two writes: a busy table must not keep the disk busy.
const PAUSE: Duration = Duration::from_secs(2);
/// A pause is at least so many times as long as the write before it: a large catalog that always changes takes a tenth
/// of a core, not half of one.
const PAUSE_PER_WRITE: u32 = 9;
/// Time until a write that failed is tried again when nothing changes.
const RETRY: Duration = Duration::from_secs(30);

/// Writes what `newest` holds whenever it moves, until its other end is gone; the last state is written then, too.
pub async fn run(path: PathBuf, mut newest: watch::Receiver<Newest>, metrics: Arc<Metrics>) {
    let mut failed = false;
    loop {
        let moved = tokio::select! {
            moved = newest.changed() => moved.is_ok(),
            () = sleep(RETRY), if failed => true,
        };
        let started = Instant::now();
        let saved = newest.borrow_and_update().clone();
        if let Some(saved) = saved.filter(|_| moved || failed) {
            failed = !save(&path, &saved, &metrics, failed);
        }
        if !moved {
            return;
        }
        // A loader that ends is waited for here: its last state is to be written without a pause.
        tokio::select! {
            () = sleep(PAUSE.max(started.elapsed() * PAUSE_PER_WRITE)) => {}
            () = ended(newest.clone()) => {}
        }
    }
}

/// Waits until the other end is gone.
async fn ended(mut newest: watch::Receiver<Newest>) {
    while newest.changed().await.is_ok() {}
}

fn save(path: &std::path::Path, saved: &Saved<Arc<Snapshot>>, metrics: &Metrics, failed_before: bool) -> bool {
    let started = Instant::now();
    let written = file::write(path, saved);
    let outcome = if written.is_ok() { "ok" } else { "error" };
    metrics.snapshot_file.with_label_values(&["write", outcome]).inc();
    match written {
        Ok(()) if failed_before => info!(path = %path.display(), "the snapshot file could be written again"),
        Ok(()) => debug!(path = %path.display(), models = saved.snapshot.len(), took = ?started.elapsed(), "saved"),
        Err(error) if failed_before => {
            debug!(path = %path.display(), %error, "the snapshot file still can't be written")
        }
        Err(error) => {
            warn!(path = %path.display(), %error, "the snapshot file can't be written; serving goes on, a restart would need the database");
        }
    }
    outcome == "ok"
}

/// What a start finds on disk. A file that can't be used is said, counted and set aside; it never stops the start.
pub fn restore(path: &std::path::Path, metrics: &Metrics) -> Option<Saved<Snapshot>> {
    let started = Instant::now();
    let read = file::read(path);
    let outcome = match &read {
        Ok(_) => "ok",
        Err(FileError::Missing) => "missing",
        Err(_) => "error",
    };
    metrics.snapshot_file.with_label_values(&["read", outcome]).inc();
    match read {
        Ok(saved) => {
            let (models, took) = (saved.snapshot.len(), started.elapsed());
            info!(path = %path.display(), models, ?took, "serving from the snapshot file until the database answers");
            Some(saved)
        }
        Err(FileError::Missing) => {
            info!(path = %path.display(), "no snapshot file yet");
            None
        }
        Err(error @ FileError::NotAFile) => {
            warn!(path = %path.display(), %error, "the snapshot file can't be used, waiting for the database");
            None
        }
        Err(error) => {
            let aside =
                file::set_aside(path).map_or_else(|_| "where it is".into(), |aside| aside.display().to_string());
            warn!(path = %path.display(), %error, aside, "the snapshot file can't be used, waiting for the database");
            None
        }
    }
}

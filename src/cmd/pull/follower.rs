//! Hashes a file while it is being written: a thread reads up to the first gap while the bytes are still in the page
//! cache, so the hash is ready shortly after the last byte.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};

use super::hash::{BUFFER, Hash, Hasher};
use super::segments::Segments;

/// Interval at which the first gap is polled; a notification per chunk would cost more.
const INTERVAL: Duration = Duration::from_millis(20);

/// The segments of a file, shared between its connections and its follower.
#[derive(Debug)]
pub struct SharedSegments {
    segments: Mutex<Segments>,
    changed: Condvar,
    stopped: AtomicBool,
}

impl SharedSegments {
    /// Shares segments.
    #[must_use]
    pub fn new(segments: Segments) -> Self {
        Self { segments: Mutex::new(segments), changed: Condvar::new(), stopped: AtomicBool::new(false) }
    }

    /// Locks the segments. The guard must not be held across an await.
    pub fn segments(&self) -> MutexGuard<'_, Segments> {
        // No operation leaves the segments inconsistent when it panics.
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size of the file in bytes; `u64::MAX` while it is unknown.
    pub fn total(&self) -> u64 {
        self.segments().total()
    }

    /// Wakes the follower.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for bytes to hash after `position`. Returns their end, and whether it is the end of the file; `None` once
    /// the follower was stopped.
    fn wait(&self, position: u64) -> Option<(u64, bool)> {
        let mut segments = self.segments();
        loop {
            if self.stopped.load(Relaxed) {
                return None;
            }
            let (contiguous, complete) = (segments.contiguous(), segments.missing() == 0);
            if complete || contiguous - position >= BUFFER as u64 {
                return Some((contiguous, complete));
            }
            let waited = self.changed.wait_timeout(segments, INTERVAL);
            segments = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The hashing thread. Dropping this stops it.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<SharedSegments>,
    thread: JoinHandle<io::Result<bool>>,
}

impl Follower {
    /// Starts hashing `file`.
    #[must_use]
    pub fn start(shared: Arc<SharedSegments>, file: Arc<File>, hash: Hash) -> Self {
        let copy = Arc::clone(&shared);
        let thread = spawn_blocking(move || {
            let hasher = follow(&copy, &file, hash.hasher())?;
            Ok(hasher.is_some_and(|hasher| hash.matches(hasher)))
        });
        Self { shared, thread }
    }

    /// Whether the file, which must be complete, has the hash.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn matches(mut self) -> io::Result<bool> {
        (&mut self.thread).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Relaxed);
        self.shared.notify();
    }
}

fn follow(shared: &SharedSegments, file: &File, mut hasher: Hasher) -> io::Result<Option<Hasher>> {
    let (mut position, mut buffer) = (0, vec![0; BUFFER]);
    while let Some((end, complete)) = shared.wait(position) {
        while position < end {
            let want = usize::try_from(end - position).unwrap_or(BUFFER).min(BUFFER);
            file.read_exact_at(&mut buffer[..want], position)?;
            hasher.update(&buffer[..want]);
            position += want as u64;
        }
        if complete {
            return Ok(Some(hasher));
        }
    }
    Ok(None)
}

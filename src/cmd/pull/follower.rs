//! Hashes a file while it is written: a thread reads behind the first gap, while the bytes are still in the page
//! cache, so that the hash is known shortly after the last byte.

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

/// Time between two looks at the first gap; being told of every chunk would cost more.
const INTERVAL: Duration = Duration::from_millis(20);

/// The segments of a file, shared by its connections and its follower.
#[derive(Debug)]
pub struct Shared {
    segments: Mutex<Segments>,
    changed: Condvar,
    stopped: AtomicBool,
}

impl Shared {
    /// Shares segments.
    #[must_use]
    pub fn new(segments: Segments) -> Self {
        Self { segments: Mutex::new(segments), changed: Condvar::new(), stopped: AtomicBool::new(false) }
    }

    /// The segments; not to be held across an await.
    pub fn segments(&self) -> MutexGuard<'_, Segments> {
        // What is done under the lock leaves the segments whole even if it panics.
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the file; `u64::MAX` while nobody knows.
    pub fn total(&self) -> u64 {
        self.segments().total()
    }

    /// Wakes the follower.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits until there is something to hash after `position`; gives the end of it and whether it is the file's.
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

/// The thread that hashes; dropping it ends it.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<bool>>,
}

impl Follower {
    /// Starts to hash `file`.
    #[must_use]
    pub fn start(shared: Arc<Shared>, file: Arc<File>, hash: Hash) -> Self {
        let copy = Arc::clone(&shared);
        let thread = spawn_blocking(move || {
            let hasher = follow(&copy, &file, hash.hasher())?;
            Ok(hasher.is_some_and(|hasher| hash.matches(hasher)))
        });
        Self { shared, thread }
    }

    /// Whether the file, of which nothing may be missing any more, has the hash.
    ///
    /// # Errors
    /// It cannot be read.
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

fn follow(shared: &Shared, file: &File, mut hasher: Hasher) -> io::Result<Option<Hasher>> {
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

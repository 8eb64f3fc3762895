//! Hashes a file in order while it is being downloaded, so the hash is ready shortly after the last byte.
//!
//! The connection at the first gap hands over what it has written, in its own buffers. Everything else, such as the
//! segments of the other connections and the bytes of an earlier process, is read from the file once, while most of it
//! is still in the page cache. A thread works only while there is something to hash.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use super::hash::{BUFFER, Hash, Hasher};

/// Bytes that wait to be hashed, per file; the connection that would add more waits.
const MAX_QUEUED: usize = 4 * 1024 * 1024;

/// The hash of a file in progress. Dropping this stops it.
pub(crate) struct Follower {
    shared: Arc<Shared>,
    hash: Hash,
}

struct Shared {
    file: Arc<File>,
    feed: Mutex<Feed>,
    /// Wakes those who wait for room or for the end of the thread.
    advanced: Notify,
}

/// What is hashed, and what can be.
struct Feed {
    /// `None` while a thread uses it, and after a failure.
    hasher: Option<Hasher>,
    /// Position of the next byte that a thread will take.
    position: u64,
    /// Position after the last byte that can be hashed.
    written: u64,
    /// Buffers that follow each other in the file, from `queue_start` to `queue_end`.
    queue: VecDeque<Bytes>,
    queue_start: u64,
    queue_end: u64,
    /// Bytes of the queue, and of the buffer that is being hashed.
    queued: usize,
    /// Whether a connection had to wait for room.
    was_full: bool,
    stopped: bool,
    failure: Option<io::Error>,
}

impl Follower {
    /// Begins to hash `file`, of which the first `written` bytes are there.
    pub(crate) fn new(file: &Arc<File>, hash: Hash, written: u64) -> Self {
        let feed = Feed {
            hasher: Some(hash.hasher()),
            position: 0,
            written,
            queue: VecDeque::new(),
            queue_start: 0,
            queue_end: 0,
            queued: 0,
            was_full: false,
            stopped: false,
            failure: None,
        };
        let shared = Arc::new(Shared { file: Arc::clone(file), feed: Mutex::new(feed), advanced: Notify::new() });
        let follower = Self { shared, hash };
        follower.shared.start(&mut follower.shared.feed.lock());
        follower
    }

    /// Takes buffers that were written at `start`, which was the first gap; the first gap is at `written` now.
    pub(crate) fn add(&self, start: u64, buffers: Vec<Bytes>, written: u64) {
        let mut feed = self.shared.feed.lock();
        feed.written = feed.written.max(written);
        let follows = if feed.queue.is_empty() { start >= feed.position } else { start == feed.queue_end };
        if follows && feed.queued < MAX_QUEUED {
            if feed.queue.is_empty() {
                (feed.queue_start, feed.queue_end) = (start, start);
            }
            for buffer in buffers {
                feed.queued += buffer.len();
                feed.queue_end += buffer.len() as u64;
                feed.queue.push_back(buffer);
            }
        }
        self.shared.start(&mut feed);
    }

    /// Waits until there is room for more buffers.
    pub(crate) async fn has_room(&self) {
        loop {
            // Created before the check, so that no wake-up is lost.
            let advanced = self.shared.advanced.notified();
            {
                let mut feed = self.shared.feed.lock();
                let is_hashing = feed.hasher.is_none() && feed.failure.is_none();
                if feed.queued < MAX_QUEUED || !is_hashing {
                    return;
                }
                feed.was_full = true;
            }
            advanced.await;
        }
    }

    /// Whether a connection had to wait for room since the last call.
    pub(crate) fn was_full(&self) -> bool {
        std::mem::take(&mut self.shared.feed.lock().was_full)
    }

    /// Whether the file, which must be complete and has `total` bytes, has the hash.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) async fn matches(self, total: u64) -> io::Result<bool> {
        loop {
            let advanced = self.shared.advanced.notified();
            let turn = {
                let mut feed = self.shared.feed.lock();
                if let Some(failure) = feed.failure.take() {
                    return Err(failure);
                }
                feed.written = total;
                if feed.position == total
                    && let Some(hasher) = feed.hasher.take()
                {
                    return Ok(self.hash.matches(hasher));
                }
                self.shared.start(&mut feed);
                // The rest is too small for a thread.
                self.shared.turn(&mut feed)
            };
            match turn {
                Some(turn) => turn.work(),
                None => advanced.await,
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.feed.lock().stopped = true;
    }
}

impl Shared {
    /// Starts a thread if there is enough to hash for one.
    fn start(self: &Arc<Self>, feed: &mut Feed) {
        if feed.written - feed.position >= BUFFER as u64
            && let Some(turn) = self.turn(feed)
        {
            // Not awaited: it reports its end in any case.
            drop(spawn_blocking(move || turn.work()));
        }
    }

    /// The right to hash, unless a thread has it.
    fn turn(self: &Arc<Self>, feed: &mut Feed) -> Option<Turn> {
        Some(Turn { hasher: Some(feed.hasher.take()?), shared: Arc::clone(self) })
    }
}

/// Hashes what there is.
struct Turn {
    hasher: Option<Hasher>,
    shared: Arc<Shared>,
}

/// What is hashed next.
enum Next {
    Buffer(Bytes),
    /// A position in the file and a number of bytes.
    Range(u64, usize),
}

impl Turn {
    fn work(mut self) {
        let mut read = Vec::new();
        while let (Some(next), Some(hasher)) = (self.next(), &mut self.hasher) {
            match next {
                Next::Buffer(buffer) => {
                    hasher.update(&buffer);
                    self.shared.feed.lock().queued -= buffer.len();
                    self.shared.advanced.notify_waiters();
                }
                Next::Range(start, length) => {
                    read.resize(BUFFER, 0);
                    if let Err(error) = self.shared.file.read_exact_at(&mut read[..length], start) {
                        self.shared.feed.lock().failure = Some(error);
                        return;
                    }
                    hasher.update(&read[..length]);
                }
            }
        }
    }

    /// Takes what is hashed next. At the end the hasher goes back, under the lock under which buffers are added.
    fn next(&mut self) -> Option<Next> {
        let mut feed = self.shared.feed.lock();
        let (start, end) = (feed.position, if feed.queue.is_empty() { feed.written } else { feed.queue_start });
        let next = if feed.stopped {
            None
        } else if start < end {
            let length = usize::try_from(end - start).unwrap_or(BUFFER).min(BUFFER);
            feed.position += length as u64;
            Some(Next::Range(start, length))
        } else {
            feed.queue.pop_front().map(|buffer| {
                feed.queue_start += buffer.len() as u64;
                feed.position = feed.queue_start;
                Next::Buffer(buffer)
            })
        };
        if next.is_none() {
            feed.hasher = self.hasher.take();
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut feed = self.shared.feed.lock();
        // It was not returned.
        if self.hasher.is_some() {
            feed.failure.get_or_insert_with(|| io::Error::other("hashing panicked"));
        }
        drop(feed);
        self.shared.advanced.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::segments::Segments;

    const SIZE: usize = 12 * 1024 * 1024;

    fn file_and_hash(content: &[u8]) -> (Arc<File>, Hash) {
        let path = std::env::temp_dir().join(format!("model-catalog-follower-{:016x}", fastrand::u64(..)));
        let file = File::options().create_new(true).read(true).write(true).open(&path).expect("a file");
        std::fs::remove_file(path).expect("removed");
        let digest = <sha2::Sha256 as sha2::Digest>::digest(content);
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        (Arc::new(file), Hash::parse(&digits).expect("a hash"))
    }

    #[tokio::test]
    async fn hash_is_right_whatever_the_order_of_the_writes() {
        let mut random = fastrand::Rng::with_seed(7);
        let content: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(SIZE).collect();
        let total = SIZE as u64;
        for trial in 0..20 {
            let (file, hash) = file_and_hash(&content);
            // Of an earlier process: the beginning, and a part in the middle.
            let gaps = if trial % 2 == 0 { vec![(0, total)] } else { vec![(500_000, 3_000_000), (5_000_000, total)] };
            file.write_all_at(&content, 0).expect("written");
            let mut segments = Segments::new(total, &gaps, 1);
            let follower = Follower::new(&file, hash, segments.contiguous());
            while segments.missing() > 0 {
                let gap = segments.gaps()[random.usize(..segments.gaps().len())];
                let claim = segments.missing_in(None, gap.0, gap.1).expect("missing");
                let end = claim.end.min(claim.start + random.u64(1..1_500_000));
                let first_gap = segments.contiguous() == claim.start;
                segments.advance(claim.id, end - claim.start);
                // Some pieces never arrive, as those of a connection that was overtaken.
                if first_gap && random.u8(..4) > 0 {
                    let range = usize::try_from(claim.start).expect("small")..usize::try_from(end).expect("small");
                    let pieces = content[range].chunks(random.usize(1..400_000)).map(Bytes::copy_from_slice).collect();
                    follower.add(claim.start, pieces, segments.contiguous());
                    follower.has_room().await;
                }
            }
            assert!(follower.matches(total).await.expect("readable"), "trial {trial}");
        }
    }

    #[tokio::test]
    async fn wrong_content_and_unreadable_files_are_detected() {
        let content = vec![1; SIZE];
        let (file, hash) = file_and_hash(&content);
        file.write_all_at(&vec![2; SIZE], 0).expect("written");
        let follower = Follower::new(&file, hash.clone(), SIZE as u64);
        assert!(!follower.matches(SIZE as u64).await.expect("readable"));
        file.set_len(1000).expect("shortened");
        let follower = Follower::new(&file, hash, SIZE as u64);
        follower.has_room().await;
        assert!(follower.matches(SIZE as u64).await.is_err());
    }
}

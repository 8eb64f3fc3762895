//! The partial file of a download: its lock, and what is known about its bytes.

use std::io;
use std::sync::Arc;

use cap_std::fs::Dir;

use super::folder::Stamp;
use super::follower::{Follower, SharedSegments};
use super::hash::Hash;
use super::journal::{self, Journal};
use super::segments::Segments;
use super::state_file;

/// Opens and locks the partial file; `None` while another process holds the lock.
pub(super) fn lock_part(folder: &Dir, key: &str) -> io::Result<Option<std::fs::File>> {
    loop {
        let file = journal::open_part(folder, key)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(error)) if state_file::has_no_locks(&error) => {}
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        // The previous holder of the lock may have renamed or removed the file.
        if Stamp::of(&file)?.is_named(folder, &journal::part_name(key)) {
            return Ok(Some(file));
        }
    }
}

/// Removes a partial file that this process has locked.
pub(super) fn remove_part(folder: &Dir, own: &Dir, key: &str) {
    Journal::remove(own, key);
    let _ = folder.remove_file(journal::part_name(key));
}

/// The state of the partial file.
pub(super) struct State {
    pub(super) shared: Arc<SharedSegments>,
    pub(super) validator: Option<String>,
    pub(super) follower: Option<Follower>,
    /// Whether its bytes come from more than one round, so perhaps from different versions of the file, or from a
    /// response that contradicts an earlier one.
    pub(super) doubtful: bool,
}

impl State {
    pub(super) fn new(
        connections: usize,
        part: &Arc<std::fs::File>,
        total: u64,
        gaps: &[(u64, u64)],
        validator: Option<String>,
        hash: Option<Hash>,
    ) -> Self {
        let shared = Arc::new(SharedSegments::new(Segments::new(total, gaps, connections)));
        let follower = hash.map(|hash| Follower::start(Arc::clone(&shared), Arc::clone(part), hash));
        let doubtful = shared.segments().written() > 0;
        Self { shared, validator, follower, doubtful }
    }

    /// Bytes on disk.
    pub(super) fn written(&self) -> u64 {
        self.shared.segments().written()
    }
}

//! The partial file of a download: its lock, and what is known about its bytes.

use std::fs::{File, TryLockError};
use std::io;
use std::sync::Arc;

use cap_std::fs::Dir;

use super::folder::Stamp;
use super::follower::{Follower, SharedSegments};
use super::hash::Hash;
use super::journal::{self, Journal, KEY_LENGTH};
use super::segments::Segments;

/// Attempts to lock a partial file that others rename or remove.
const LOCK_ATTEMPTS: usize = 100;

/// Who has the lock on a partial file.
enum Lock {
    /// This process.
    Ours(File),
    /// Another process.
    Elsewhere,
    /// Nobody: the file system has no locks.
    Unsupported,
}

/// Opens and locks the partial file of `key`; `None` while another process holds the lock. On a file system without
/// locks, and with `take_over`, the file gets a name that only this process knows. Returns the key in use.
pub(super) fn lock_part(folder: &Dir, key: &str, take_over: bool) -> io::Result<Option<(String, File)>> {
    if !take_over {
        match lock_shared(folder, key)? {
            Lock::Ours(file) => return Ok(Some((key.to_owned(), file))),
            Lock::Elsewhere => return Ok(None),
            Lock::Unsupported => {}
        }
    }
    let private = format!("{:032x}", fastrand::u128(..))[..KEY_LENGTH].to_owned();
    let file = journal::open_part(folder, &private)?;
    Ok(Some((private, file)))
}

fn lock_shared(folder: &Dir, key: &str) -> io::Result<Lock> {
    for _ in 0..LOCK_ATTEMPTS {
        let file = journal::open_part(folder, key)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Lock::Elsewhere),
            Err(TryLockError::Error(_)) => {
                // Created just now.
                if file.metadata()?.len() == 0 {
                    let _ = folder.remove_file(journal::part_name(key));
                }
                return Ok(Lock::Unsupported);
            }
        }
        // The previous holder of the lock may have renamed or removed the file.
        if Stamp::of(&file)?.is_named(folder, &journal::part_name(key)) {
            return Ok(Lock::Ours(file));
        }
    }
    // The file system changes inode numbers.
    Ok(Lock::Unsupported)
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
        part: &Arc<File>,
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

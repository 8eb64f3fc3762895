//! The partial file of a download: its lock, and what is known about its bytes.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;

use cap_std::fs::Dir;
use parking_lot::{Mutex, MutexGuard};

use super::folder::Stamp;
use super::follower::Follower;
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
    segments: Mutex<Segments>,
    pub(super) validator: Option<String>,
    pub(super) follower: Option<Follower>,
    /// Number of received bytes when they were last requested to be written to the disk.
    pub(super) writeback: AtomicU64,
    /// Whether its bytes come from more than one round, so perhaps from different versions of the file, or from a
    /// response that contradicts an earlier one.
    pub(super) may_mix_versions: bool,
}

impl State {
    pub(super) fn new(segments: Segments, validator: Option<String>, follower: Option<Follower>) -> Self {
        let may_mix_versions = segments.written() > 0;
        Self { segments: Mutex::new(segments), validator, follower, writeback: AtomicU64::new(0), may_mix_versions }
    }

    /// Locks the segments. The guard must not be held across an await.
    pub(super) fn segments(&self) -> MutexGuard<'_, Segments> {
        // No operation leaves the segments inconsistent when it panics.
        self.segments.lock()
    }

    /// Whether the size of the file is known.
    pub(super) fn is_size_known(&self) -> bool {
        self.segments().is_size_known()
    }

    /// Size of the file in bytes, or [`UNKNOWN_SIZE`](super::segments::UNKNOWN_SIZE).
    pub(super) fn total(&self) -> u64 {
        self.segments().total()
    }

    /// Bytes on disk.
    pub(super) fn written(&self) -> u64 {
        self.segments().written()
    }
}

/// Starts to write to the disk what is in the page cache only. Where the system call is missing, nothing happens.
#[allow(unsafe_code, reason = "no crate has a safe way to call sync_file_range")]
pub(super) fn start_writeback(file: &File) {
    // SAFETY: the descriptor is open, and no memory is passed.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

//! The record of verified files and their metadata, kept in the models folder. It only saves hashing: a file whose
//! size, inode, mtime or ctime has changed is hashed again.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cap_std::fs::Dir;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::event::{Event, Events};
use super::folder::Stamp;
use super::state_file;
use crate::base::atomic_file::FileLock;

const NAME: &str = "record.json";
const LOCK: &str = "record.lock";
/// Permissions of the lock file: machines that share a folder may run the program as different users.
const LOCK_MODE: u32 = 0o666;
/// Longest time to wait for another process to write the record.
const MAX_LOCK_WAIT: Duration = Duration::from_secs(5);
/// Interval at which the record is written.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which the lock is tried: waiting for it could take longer than [`MAX_LOCK_WAIT`].
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// A verified file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verified {
    /// Id of its model.
    pub(crate) model: String,
    /// The computed hash, as `KIND:DIGITS`; `None` if only the size was compared.
    pub(crate) hash: Option<String>,
    /// Its metadata when it was verified.
    pub(crate) stamp: Stamp,
    /// Whether a pull downloaded or linked it, so that `--prune` may remove it.
    pub(crate) fetched: bool,
    /// Time at which a pull last needed it, in seconds since 1970.
    pub(crate) needed_at: u64,
}

/// The verified files by save path.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    files: BTreeMap<String, Verified>,
}

const VERSION: u32 = 1;

impl Record {
    /// Reads the record. A damaged one counts as empty, so everything is hashed again.
    pub(crate) fn load(folder: &Dir, events: &Events) -> Self {
        match state_file::read_json::<Self>(folder, NAME) {
            Ok(Some(record)) if record.version == VERSION => record,
            Ok(Some(_)) | Ok(None) => Self::default(),
            Err(error) => {
                events.send(Event::RecordDamaged(&error));
                Self::default()
            }
        }
    }

    /// Reads, changes and writes the record under a lock, so concurrent processes do not lose each other's changes.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn update(
        folder: &Dir,
        events: &Events,
        change: impl FnOnce(&mut BTreeMap<String, Verified>),
    ) -> io::Result<()> {
        let _lock = wait_for_lock(folder);
        let mut record = Self::load(folder, events);
        change(&mut record.files);
        record.version = VERSION;
        state_file::write_json(folder, NAME, &record, true)
    }

    /// The entry of a save path.
    pub(crate) fn get(&self, path: &str) -> Option<&Verified> {
        self.files.get(path)
    }

    /// All entries with their save paths.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Verified)> {
        self.files.iter()
    }
}

/// Verified files that are not in the record yet. It is written once per second: writing it for each of many small
/// files would cost more than these. What a killed process did not write is hashed again.
#[derive(Debug, Default)]
pub(crate) struct Unrecorded(Mutex<(BTreeMap<String, Verified>, Option<Instant>)>);

impl Unrecorded {
    /// Adds the file at a save path, and writes the record if the last time was a second ago.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn add(&self, folder: &Dir, events: &Events, path: String, file: Verified) -> io::Result<()> {
        let is_due = {
            let mut unrecorded = self.0.lock();
            unrecorded.0.insert(path, file);
            unrecorded.1.is_none_or(|written| written.elapsed() >= WRITE_INTERVAL)
        };
        if is_due { self.write(folder, events) } else { Ok(()) }
    }

    /// Writes the record.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, folder: &Dir, events: &Events) -> io::Result<()> {
        let files = {
            let mut unrecorded = self.0.lock();
            unrecorded.1 = Some(Instant::now());
            std::mem::take(&mut unrecorded.0)
        };
        if files.is_empty() {
            return Ok(());
        }
        Record::update(folder, events, |record| {
            for (path, mut file) in files {
                file.fetched |= record.get(&path).is_some_and(|known| known.fetched && known.stamp == file.stamp);
                record.insert(path, file);
            }
        })
    }
}

/// Locks the record, unless the file system has no locks, or a process that was stopped holds it. An entry that is lost
/// then costs only hashing.
fn wait_for_lock(folder: &Dir) -> FileLock {
    let deadline = Instant::now() + MAX_LOCK_WAIT;
    loop {
        match FileLock::acquire_in(folder, Path::new(LOCK), LOCK_MODE) {
            Ok(lock) => return lock,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(LOCK_INTERVAL);
            }
            Err(_) => return FileLock::unlocked(),
        }
    }
}

/// The current time in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

//! The record of verified files and their metadata, kept in the models folder. It only saves hashing: a file whose
//! size, inode, mtime or ctime has changed is hashed again.

use std::collections::BTreeMap;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::folder::Stamp;
use super::state_file;

const NAME: &str = "record.json";
const LOCK: &str = "record.lock";

/// A verified file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Id of its model.
    pub model: String,
    /// The computed hash, as `KIND:DIGITS`; `None` if only the size was compared.
    pub hash: Option<String>,
    /// Its metadata when it was verified.
    pub stamp: Stamp,
    /// Whether a pull downloaded or linked it, so that `--prune` may remove it.
    pub fetched: bool,
    /// Time at which a pull last needed it, in seconds since 1970.
    pub needed_at: u64,
}

/// The verified files by save path.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    files: BTreeMap<String, Verified>,
}

const VERSION: u32 = 1;

impl Record {
    /// Reads the record. A damaged one counts as empty, so everything is hashed again.
    #[must_use]
    pub fn load(folder: &Dir) -> Self {
        match state_file::read_json::<Self>(folder, NAME) {
            Ok(Some(record)) if record.version == VERSION => record,
            Ok(Some(_)) | Ok(None) => Self::default(),
            Err(error) => {
                warn!(%error, "the record of verified files is damaged: hashing them again");
                Self::default()
            }
        }
    }

    /// Reads, changes and writes the record under a lock, so concurrent processes do not lose each other's changes.
    ///
    /// # Errors
    /// It cannot be locked or written.
    pub fn update(folder: &Dir, change: impl FnOnce(&mut BTreeMap<String, Verified>)) -> io::Result<()> {
        let lock = folder.create(LOCK)?.into_std();
        lock.lock().or_else(|error| if state_file::has_no_locks(&error) { Ok(()) } else { Err(error) })?;
        let mut record = Self::load(folder);
        change(&mut record.files);
        record.version = VERSION;
        state_file::write_json(folder, NAME, &record, true)
    }

    /// The entry of a save path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Verified> {
        self.files.get(path)
    }

    /// All entries with their save paths.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Verified)> {
        self.files.iter()
    }
}

/// The current time in seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

//! The record beside the models: which files were verified, and what they looked like then. It is only ever a reason
//! to hash less: a file that changed in size, inode, mtime or ctime is hashed again.

use std::collections::BTreeMap;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::folder::Stamp;
use super::own;

const NAME: &str = "record.json";
const LOCK: &str = "record.lock";

/// A file of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Id of its model.
    pub model: String,
    /// `KIND:DIGITS` that was computed; without one, the size alone was compared.
    pub hash: Option<String>,
    /// What it looked like.
    pub stamp: Stamp,
    /// Whether a pull put it there, so that `--prune` may remove it.
    pub fetched: bool,
    /// When a pull last needed it, in seconds since 1970.
    pub needed_at: u64,
}

/// All files of the record by their save path.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    files: BTreeMap<String, Verified>,
}

const VERSION: u32 = 1;

impl Record {
    /// Reads the record; one that is damaged counts as empty, and everything is hashed again.
    #[must_use]
    pub fn load(folder: &Dir) -> Self {
        match own::read_json::<Self>(folder, NAME) {
            Ok(Some(record)) if record.version == VERSION => record,
            Ok(Some(_)) | Ok(None) => Self::default(),
            Err(error) => {
                warn!(%error, "the record of verified files is damaged: hashing them again");
                Self::default()
            }
        }
    }

    /// Changes the record on disk. Processes that share the folder take turns, and each sees the others' changes.
    ///
    /// # Errors
    /// It cannot be locked or written.
    pub fn update(folder: &Dir, change: impl FnOnce(&mut BTreeMap<String, Verified>)) -> io::Result<()> {
        let lock = folder.create(LOCK)?.into_std();
        lock.lock().or_else(|error| if own::has_no_locks(&error) { Ok(()) } else { Err(error) })?;
        let mut record = Self::load(folder);
        change(&mut record.files);
        record.version = VERSION;
        own::write_json(folder, NAME, &record, true)
    }

    /// What is recorded of a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Verified> {
        self.files.get(path)
    }

    /// All entries with their paths.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Verified)> {
        self.files.iter()
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

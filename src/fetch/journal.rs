//! The missing ranges of a partial download, kept on disk so that any later process can resume it. Bytes are written
//! before the journal that records them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use cap_std::fs::{Dir, OpenOptions};
use serde::{Deserialize, Serialize};

use super::folder::{RESERVED_PREFIX, SavePath};
use super::state_file;
use crate::base::atomic_file::{open_regular, remove_leftovers};

/// Partial downloads that were not continued for this long are removed.
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The state of a partial download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// Save path of the file.
    pub(crate) path: String,
    /// Size of the whole file in bytes.
    pub(crate) total: u64,
    /// Entity tag or modification date of the version being downloaded.
    pub(crate) validator: Option<String>,
    /// Inode of the partial file.
    pub(crate) inode: u64,
    /// Missing ranges: first byte, byte after the last.
    pub(crate) gaps: Vec<(u64, u64)>,
}

impl Journal {
    /// Reads the journal of the partial file `part`; `None` if there is none or it contradicts the file.
    pub(crate) fn load(folder: &Dir, key: &str, part: &std::fs::File) -> Option<Self> {
        let journal = state_file::read_json::<Self>(folder, &name(key)).ok().flatten()?;
        let metadata = part.metadata().ok()?;
        let mut position = 0;
        for (start, end) in &journal.gaps {
            if *start < position || *end <= *start || *end > journal.total {
                return None;
            }
            position = *end;
        }
        // The end of the last range that was recorded as written.
        let last = match journal.gaps.last() {
            Some((start, end)) if *end == journal.total => *start,
            _ => journal.total,
        };
        (metadata.len() >= last && journal.inode == metadata.ino()).then_some(journal)
    }

    /// Reads the bytes downloaded and the size of the file, also while another process downloads it.
    pub(crate) fn peek(folder: &Dir, key: &str) -> Option<(u64, u64)> {
        let journal = state_file::read_json::<Self>(folder, &name(key)).ok().flatten()?;
        let missing: u64 = journal.gaps.iter().map(|(start, end)| end.saturating_sub(*start)).sum();
        Some((journal.total.saturating_sub(missing), journal.total))
    }

    /// Writes the journal.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn save(&self, folder: &Dir, key: &str) -> io::Result<()> {
        state_file::write_json(folder, &name(key), self, false)
    }

    /// Removes a journal.
    pub(crate) fn remove(folder: &Dir, key: &str) {
        // A journal without its partial file is ignored.
        let _ = folder.remove_file(name(key));
    }
}

fn name(key: &str) -> String {
    format!("{key}.json")
}

/// The name of the partial file. It is in the same folder as the final file, so the rename never crosses file systems.
pub(crate) fn part_name(key: &str) -> String {
    format!("{RESERVED_PREFIX}-{key}.part")
}

/// Opens or creates the partial file of `key`. A symbolic link of that name is an error.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn open_part(folder: &Dir, key: &str) -> io::Result<std::fs::File> {
    open_regular(folder, part_name(key), OpenOptions::new().read(true).write(true).create(true))
}

/// Removes old partial downloads and their journals, and what killed processes left while they wrote one.
pub(crate) fn remove_old(state_dir: &Dir, parent: impl Fn(&SavePath) -> Option<Dir>) {
    remove_leftovers(state_dir, |name| name.ends_with(".tmp"));
    let Ok(entries) = state_dir.entries() else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(key) = name.strip_suffix(".json").filter(|key| key.len() == KEY_LENGTH) else { continue };
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time.into_std()).ok());
        if age.is_none_or(|age| age < MAX_AGE) {
            continue;
        }
        let journal = state_file::read_json::<Journal>(state_dir, &name).ok().flatten();
        if let Some(folder) = journal.and_then(|journal| parent(&SavePath::parse(&journal.path).ok()?)) {
            // This machine's clock may be wrong: a locked file is in use.
            let locked = open_regular(&folder, part_name(key), OpenOptions::new().read(true))
                .is_ok_and(|part| matches!(part.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
            if locked {
                continue;
            }
            let _ = folder.remove_file(part_name(key));
        }
        let _ = state_dir.remove_file(&name);
    }
}

/// Number of hexadecimal digits of a key.
pub(crate) const KEY_LENGTH: usize = 24;

//! What is missing of a partial download, kept on disk so that any later process goes on with it. A journal never
//! claims bytes that were not written: it is written after them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use serde::{Deserialize, Serialize};

use super::folder::{OWN, SavePath};
use super::own;

/// Partial downloads that nobody touched for so long are removed.
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The state of a partial download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// Save path of the file.
    pub path: String,
    /// Bytes of the whole file.
    pub total: u64,
    /// What told the version that was fetched from others.
    pub validator: Option<String>,
    /// Inode of the partial file.
    pub inode: u64,
    /// Missing ranges: first byte, byte after the last.
    pub gaps: Vec<(u64, u64)>,
}

impl Journal {
    /// Reads a journal if it is that of the partial file `part` and can be true of it.
    #[must_use]
    pub fn load(folder: &Dir, key: &str, part: &std::fs::File) -> Option<Self> {
        let journal = own::read_json::<Self>(folder, &name(key)).ok().flatten()?;
        let metadata = part.metadata().ok()?;
        let mut position = 0;
        for (start, end) in &journal.gaps {
            if *start < position || *end <= *start || *end > journal.total {
                return None;
            }
            position = *end;
        }
        // The last byte that is claimed to be there.
        let last = match journal.gaps.last() {
            Some((start, end)) if *end == journal.total => *start,
            _ => journal.total,
        };
        (metadata.len() >= last && journal.inode == metadata.ino()).then_some(journal)
    }

    /// Reads how many of how many bytes are there, whoever is downloading.
    #[must_use]
    pub fn peek(folder: &Dir, key: &str) -> Option<(u64, u64)> {
        let journal = own::read_json::<Self>(folder, &name(key)).ok().flatten()?;
        let missing: u64 = journal.gaps.iter().map(|(start, end)| end.saturating_sub(*start)).sum();
        Some((journal.total.saturating_sub(missing), journal.total))
    }

    /// Writes the journal.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, folder: &Dir, key: &str) -> io::Result<()> {
        own::write_json(folder, &name(key), self, false)
    }

    /// Removes a journal.
    pub fn remove(folder: &Dir, key: &str) {
        // Without its partial file it means nothing.
        let _ = folder.remove_file(name(key));
    }
}

fn name(key: &str) -> String {
    format!("{key}.json")
}

/// The name of the partial file beside the one it becomes, so that giving it its name never crosses file systems.
#[must_use]
pub fn part_name(key: &str) -> String {
    format!("{OWN}-{key}.part")
}

/// Opens the partial file of `key`, or makes it. A link in its place is refused.
///
/// # Errors
/// It cannot be opened.
pub fn open_part(folder: &Dir, key: &str) -> io::Result<std::fs::File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    let file = folder.open_with(part_name(key), &options)?.into_std();
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("the partial file is no regular file"));
    }
    Ok(file)
}

/// Removes partial downloads that are old, with their journals.
pub fn remove_old(own: &Dir, parent: impl Fn(&SavePath) -> Option<Dir>) {
    let Ok(entries) = own.entries() else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(key) = name.strip_suffix(".json").filter(|key| key.len() == KEY_LENGTH) else { continue };
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time.into_std()).ok());
        if age.is_none_or(|age| age < MAX_AGE) {
            continue;
        }
        let journal = own::read_json::<Journal>(own, &name).ok().flatten();
        if let Some(folder) = journal.and_then(|journal| parent(&SavePath::parse(&journal.path).ok()?)) {
            let _ = folder.remove_file(part_name(key));
        }
        let _ = own.remove_file(&name);
    }
}

/// Digits of a key.
pub const KEY_LENGTH: usize = 24;

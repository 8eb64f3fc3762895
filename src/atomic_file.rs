//! Replaces files atomically: a reader of the path finds the old content or the new one, never a part of it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A new version of a file, written to a temporary file beside it. Dropped without [`AtomicFile::commit`], it is
/// removed and the file stays as it was.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    renamed: bool,
}

impl AtomicFile {
    /// Creates and locks the temporary file `PATH.SUFFIX`; one that a killed process left behind is overwritten.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another process is writing the temporary file, or what the system reports.
    pub fn create(path: &Path, suffix: &str) -> io::Result<Self> {
        let temporary = with_suffix(path, suffix);
        // Truncated only under the lock: until then it may be the unfinished file of another process.
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(&temporary)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => return Err(error),
            // Between open and lock, its writer may have renamed it to the path, which must not be truncated.
            Ok(()) if !is_at(&file, &temporary) => return Err(io::ErrorKind::ResourceBusy.into()),
            Ok(()) => {}
        }
        let atomic = Self { path: path.into(), temporary, file, renamed: false };
        atomic.file.set_len(0)?;
        Ok(atomic)
    }

    /// The temporary file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the temporary file to disk, renames it to the path, and syncs the directory.
    ///
    /// # Errors
    /// What the system reports. The file at the path is then unchanged, unless only the directory could not be synced.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        self.renamed = true;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.renamed {
            // On a full disk, the unfinished file would take up the space that is missing.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Whether `path` names this very file.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata().map(identity), std::fs::metadata(path).map(identity)), (Ok(a), Ok(b)) if a == b)
}

/// `PATH.SUFFIX`
#[must_use]
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let folder = std::env::temp_dir().join(format!("atomic-file-{:016x}", fastrand::u64(..)));
            std::fs::create_dir(&folder).expect("a new folder");
            Self(folder)
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).expect("a folder").flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn content_appears_on_commit_and_the_old_content_stays_without_it() {
        let folder = Folder::new();
        let path = folder.0.join("file");
        for (content, commit) in [("first", true), ("second, which is longer", false), ("2", true)] {
            let before = std::fs::read_to_string(&path).unwrap_or_default();
            let new = AtomicFile::create(&path, "tmp").expect("a file");
            new.file().write_all(content.as_bytes()).expect("written");
            assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), before);
            if commit {
                new.commit().expect("renamed")
            } else {
                drop(new)
            }
            let expected = if commit { content } else { &before };
            assert_eq!(
                (std::fs::read_to_string(&path).expect("a file").as_str(), folder.names()),
                (expected, vec!["file".into()])
            );
        }
    }

    #[test]
    fn leftovers_of_a_killed_process_are_overwritten() {
        let folder = Folder::new();
        let path = folder.0.join("file");
        std::fs::write(folder.0.join("file.tmp"), "left over, and longer than the new content").expect("written");
        let new = AtomicFile::create(&path, "tmp").expect("a file");
        new.file().write_all(b"new").expect("written");
        new.commit().expect("renamed");
        assert_eq!(
            (std::fs::read_to_string(&path).expect("a file").as_str(), folder.names()),
            ("new", vec!["file".into()])
        );
    }

    #[test]
    fn a_second_writer_of_the_same_temporary_file_gets_busy_and_removes_nothing() {
        let folder = Folder::new();
        let path = folder.0.join("file");
        let first = AtomicFile::create(&path, "tmp").expect("a file");
        first.file().write_all(b"first").expect("written");
        let second = AtomicFile::create(&path, "tmp").map(drop).map_err(|error| error.kind());
        assert_eq!((second, folder.names()), (Err(io::ErrorKind::ResourceBusy), vec!["file.tmp".into()]));
        first.commit().expect("renamed");
        assert_eq!(std::fs::read_to_string(&path).expect("a file"), "first");
    }
}

//! Replaces files atomically: a reader of the path finds the old content or the new one, never a part of it.
//!
//! The directory may belong to another user. No link is followed, no pipe is opened, and only files are removed that
//! have the name and the lock of an unfinished write.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Attempts to create a temporary file: another process may remove it before it is locked.
const ATTEMPTS: usize = 5;
/// Digits of the random number in the name of a temporary file.
const DIGITS: usize = 16;
const SUFFIX: &str = ".tmp";
/// Permissions of a new lock file: other users must not hold the lock.
const LOCK_MODE: u32 = 0o600;

/// A new version of a file, written to a temporary file beside it. Dropped without [`AtomicFile::commit`], it is
/// removed and the file stays as it was.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    dir: Dir,
    name: PathBuf,
    temporary: PathBuf,
    file: File,
    renamed: bool,
}

impl AtomicFile {
    /// Creates and locks a temporary file `PATH.RANDOM.tmp`, and removes those of killed processes.
    ///
    /// # Errors
    /// There is something other than a file at the path, such as a device, which a rename would replace.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let (dir, name) = open_parent(path)?;
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Err(not_regular());
        }
        if let Some(name) = name.to_str() {
            remove_leftovers(&dir, |other| is_temporary_name(name, other));
        }
        Self::create_in(&dir, name)
    }

    /// Creates and locks a temporary file for the file `name` in `dir`.
    pub(crate) fn create_in(dir: &Dir, name: &Path) -> io::Result<Self> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let temporary = with_suffix(name, &format!("{:0DIGITS$x}{SUFFIX}", fastrand::u64(..)));
            // With create_new the system follows no link at this name.
            let file = dir.open_with(&temporary, OpenOptions::new().write(true).create_new(true))?.into_std();
            let atomic = Self { dir: dir.try_clone()?, name: name.into(), temporary, file, renamed: false };
            match try_lock(&atomic.file) {
                Ok(Locking::Locked) if is_at(&atomic.file, dir, &atomic.temporary) => return Ok(atomic),
                // Another process took it for a leftover.
                Ok(Locking::Locked | Locking::Busy) if attempts < ATTEMPTS => {}
                Ok(Locking::Busy) => return Err(io::ErrorKind::ResourceBusy.into()),
                // Some file systems have no locks, so that no process takes it for a leftover, or change inode numbers.
                Ok(Locking::Locked | Locking::Unsupported) | Err(_) => return Ok(atomic),
            }
        }
    }

    /// The temporary file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the temporary file to disk, renames it to the path, and syncs the directory. A link at the path is
    /// replaced, not followed.
    ///
    /// # Errors
    /// The file at the path is then unchanged, unless only the directory could not be synced.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        synced(self.file.sync_all())?;
        self.rename()?;
        synced(sync_dir(&self.dir))
    }

    /// Renames without syncing: after a power failure, the file may be empty.
    pub(crate) fn commit_without_sync(mut self) -> io::Result<()> {
        self.rename()
    }

    fn rename(&mut self) -> io::Result<()> {
        self.dir.rename(&self.temporary, &self.dir, &self.name)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.renamed {
            // On a full disk, the unfinished file would take up the space that is missing.
            let _ = self.dir.remove_file(&self.temporary);
        }
    }
}

/// A lock on a file beside another one. It lasts until it is dropped, and no longer than the process.
#[derive(Debug)]
pub(crate) struct FileLock {
    /// `None` if the file system has no locks.
    _file: Option<File>,
}

impl FileLock {
    /// Locks `PATH.lock`, an empty file that is created if it is missing.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another process has the lock, or what the system reports. A link or a pipe in
    /// the place of the file is an error.
    pub(crate) fn acquire(path: &Path) -> io::Result<Self> {
        let (dir, name) = open_parent(path)?;
        Self::acquire_in(&dir, &with_suffix(name, "lock"), LOCK_MODE)
    }

    /// Locks the file `name` in `dir`, which is created with the permissions `mode` if it is missing.
    pub(crate) fn acquire_in(dir: &Dir, name: &Path, mode: u32) -> io::Result<Self> {
        let file = open_regular(dir, name, OpenOptions::new().write(true).create(true).mode(mode))?;
        match try_lock(&file)? {
            Locking::Locked => Ok(Self { _file: Some(file) }),
            Locking::Unsupported => Ok(Self { _file: None }),
            Locking::Busy => Err(io::ErrorKind::ResourceBusy.into()),
        }
    }

    /// A stand-in for a lock that could not be acquired.
    pub(crate) fn unlocked() -> Self {
        Self { _file: None }
    }
}

enum Locking {
    Locked,
    Busy,
    /// The file system has no locks, as NFS without its lock service.
    Unsupported,
}

fn try_lock(file: &File) -> io::Result<Locking> {
    match file.try_lock() {
        Ok(()) => Ok(Locking::Locked),
        Err(TryLockError::WouldBlock) => Ok(Locking::Busy),
        Err(TryLockError::Error(error)) => match error.raw_os_error() {
            Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL) => Ok(Locking::Unsupported),
            _ => Err(error),
        },
    }
}

/// Opens a regular file. Links are not followed, and the open never blocks.
pub(crate) fn open_regular(dir: &Dir, name: impl AsRef<Path>, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = dir.open_with(name, options.custom_flags(flags.bits().cast_signed()))?.into_std();
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
}

fn not_regular() -> io::Error {
    io::Error::other("it is not a regular file")
}

/// Removes temporary files whose writers are gone, as far as that is possible: those whose name is `is_temporary`,
/// unless they are locked.
pub(crate) fn remove_leftovers(dir: &Dir, is_temporary: impl Fn(&str) -> bool) {
    for entry in dir.entries().into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(&is_temporary)
            && let Ok(file) = open_regular(dir, &name, OpenOptions::new().write(true))
            && matches!(try_lock(&file), Ok(Locking::Locked))
            && is_at(&file, dir, Path::new(&name))
        {
            let _ = dir.remove_file(&name);
        }
    }
}

/// Whether `other` is the name of a temporary file of `name`. Version 0.1.0 gave it no number, or that of the process.
fn is_temporary_name(name: &str, other: &str) -> bool {
    let number = || other.strip_prefix(name)?.strip_suffix(SUFFIX);
    let is_number = |number: &str| {
        number.is_empty() || number.strip_prefix('.').is_some_and(|n| n.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    number().is_some_and(is_number)
}

/// Whether `name` in `dir` is still this file.
fn is_at(file: &File, dir: &Dir, name: &Path) -> bool {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let own = file.metadata().map(Metadata::from_just_metadata).map(identity);
    matches!((own, dir.symlink_metadata(name).map(identity)), (Ok(a), Ok(b)) if a == b)
}

/// Opens the directory of a file.
fn open_parent(path: &Path) -> io::Result<(Dir, &Path)> {
    let name = path.file_name().ok_or_else(not_regular)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((Dir::open_ambient_dir(parent, ambient_authority())?, Path::new(name)))
}

/// Syncs a directory, and with it the names of its files, to the disk.
pub(crate) fn sync_dir(dir: &Dir) -> io::Result<()> {
    // The descriptor of a `Dir` is opened with O_PATH, which fsync does not accept.
    let dir = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fsync(dir)?)
}

/// The result of a sync, which some network and FUSE file systems do not have: bytes then reach the disk when the file
/// system writes them.
pub(crate) fn synced(result: io::Result<()>) -> io::Result<()> {
    let missing = |error: &io::Error| {
        let codes = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP];
        codes.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    };
    result.or_else(|error| if missing(&error) { Ok(()) } else { Err(error) })
}

/// `PATH.SUFFIX`
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
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
            let new = AtomicFile::create(&path).expect("a file");
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
    fn leftovers_of_killed_processes_are_removed_and_other_files_are_not() {
        let folder = Folder::new();
        let others = ["file.0123.tmp.x", "file.note.tmp", "file2.tmp", "other.0123456789abcdef.tmp"];
        for name in ["file.tmp", "file.4711.tmp", "file.0123456789abcdef.tmp"].iter().chain(&others) {
            std::fs::write(folder.0.join(name), "left over").expect("written");
        }
        let path = folder.0.join("file");
        let first = AtomicFile::create(&path).expect("a file");
        let second = AtomicFile::create(&path).expect("another file");
        assert_eq!(folder.names().len(), others.len() + 2);
        for (file, content) in [(first, "first"), (second, "second")] {
            file.file().write_all(content.as_bytes()).expect("written");
            file.commit().expect("renamed");
            assert_eq!(std::fs::read_to_string(&path).expect("a file"), content);
        }
        assert_eq!(folder.names(), [&["file"], &others[..]].concat());
    }

    #[test]
    fn links_and_pipes_in_the_way_are_neither_followed_nor_opened() {
        let folder = Folder::new();
        let (path, precious) = (folder.0.join("file"), folder.0.join("precious"));
        std::fs::write(&precious, "precious").expect("written");
        let pipe = folder.0.join("file.4711.tmp");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
        for name in ["file", "file.tmp", "file.0123456789abcdef.tmp", "file.lock"] {
            std::os::unix::fs::symlink(&precious, folder.0.join(name)).expect("a link");
        }
        let new = AtomicFile::create(&path).expect("a file");
        new.file().write_all(b"new").expect("written");
        new.commit().expect("renamed");
        assert!(FileLock::acquire(&path).is_err());
        assert!(FileLock::acquire(&folder.0.join("other")).is_ok());
        assert_eq!(std::fs::read_to_string(&precious).expect("a file"), "precious");
        assert!(path.symlink_metadata().expect("a file").is_file());
        assert_eq!(std::fs::read_to_string(&path).expect("a file"), "new");
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let folder = Folder::new();
        let path = folder.0.join("file");
        let lock = FileLock::acquire(&path).expect("a lock");
        let second = FileLock::acquire(&path).map(drop).map_err(|error| error.kind());
        assert_eq!(second, Err(io::ErrorKind::ResourceBusy));
        drop(lock);
        assert!(FileLock::acquire(&path).is_ok());
    }
}

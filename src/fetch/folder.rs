//! The models folder. Every path from the catalog is validated again, and folders are opened without leaving the models
//! folder, not even through symbolic links. Once a folder is open, its descriptor and names without a slash are used,
//! so concurrent changes to the path have no effect.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};

use super::error::Problem;
use crate::base::atomic_file::AtomicFile;
pub(super) use crate::catalog::model::RESERVED_PREFIX;
use crate::catalog::model::check_save_path;

/// A save path whose text stays inside the models folder. Symbolic links are checked when it is opened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SavePath {
    /// The folder, without empty parts; empty for the models folder itself.
    folder: String,
    /// The name of the file.
    name: String,
}

impl SavePath {
    /// Validates a path from the catalog.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let rejected = |reason: &str| Problem::SavePath(format!("{text:?} {reason}"));
        check_save_path(text).map_err(|error| Problem::SavePath(format!("{text:?} is rejected: {error}")))?;
        if text.chars().any(char::is_control) {
            return Err(rejected("has a control character"));
        }
        let (folder, name) = text.rsplit_once('/').unwrap_or(("", text));
        let parts: Vec<_> = folder.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        Ok(Self { folder: parts.join("/"), name: name.to_owned() })
    }

    /// The name of the file in its folder.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The folders that it leads through, relative to the models folder.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &str> {
        let ends = self.folder.match_indices('/').map(|(end, _)| end).chain([self.folder.len()]);
        ends.filter(|end| *end > 0).map(|end| &self.folder[..end])
    }

    /// The whole path, relative to the models folder.
    pub(crate) fn text(&self) -> String {
        if self.folder.is_empty() { self.name.clone() } else { format!("{}/{}", self.folder, self.name) }
    }
}

/// The metadata that shows whether a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// Bytes.
    pub(crate) size: u64,
    inode: u64,
    /// Nanoseconds since 1970.
    mtime: i64,
    ctime: i64,
}

impl Stamp {
    fn new(metadata: &Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            size: metadata.len(),
            inode: metadata.ino(),
            mtime: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The stamp of an open file.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn of(file: &std::fs::File) -> io::Result<Self> {
        Ok(Self::new(&file.metadata()?))
    }

    /// Whether the content is the same: the ctime may differ, because it also changes with the number of links.
    pub(crate) fn is_same_content(&self, other: &Self) -> bool {
        *self == Self { ctime: self.ctime, ..*other }
    }

    /// Whether `name` in `folder` refers to this file.
    pub(crate) fn is_named(&self, folder: &Dir, name: &str) -> bool {
        use cap_std::fs::MetadataExt as _;
        folder.symlink_metadata(name).is_ok_and(|metadata| metadata.ino() == self.inode)
    }
}

/// The models folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    root: Dir,
    links: bool,
}

impl Folder {
    /// Opens the folder. With `create`, it is created first.
    ///
    /// # Errors
    /// It cannot be created or opened.
    pub(crate) fn open(path: &Path, links: bool, create: bool) -> io::Result<Self> {
        if create {
            std::fs::create_dir_all(path)?;
        }
        Ok(Self { path: path.canonicalize()?, root: Dir::open_ambient_dir(path, ambient_authority())?, links })
    }

    /// Opens the folder of a save path; `None` if it does not exist. With `create`, it is created.
    ///
    /// # Errors
    /// It is not inside the models folder, or cannot be created.
    pub(crate) fn parent(&self, path: &SavePath, create: bool) -> Result<Option<Dir>, Problem> {
        let folder = if path.folder.is_empty() { "." } else { &*path.folder };
        let open = || match self.links {
            true => Dir::open_ambient_dir(self.path.join(folder), ambient_authority()),
            false => self.root.open_dir(folder),
        };
        match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                let created = match self.links {
                    true => std::fs::create_dir_all(self.path.join(folder)),
                    false => self.root.create_dir_all(folder),
                };
                created.and_then(|()| open()).map(Some).map_err(Problem::Folder)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).map_err(Problem::Folder),
        }
    }

    /// The models folder itself.
    pub(crate) fn root(&self) -> &Dir {
        &self.root
    }

    /// Opens the folder of the record and the journals. With `create`, it is created first.
    ///
    /// # Errors
    /// It cannot be created or opened.
    pub(crate) fn state_dir(&self, create: bool) -> io::Result<Dir> {
        if create {
            self.root.create_dir_all(RESERVED_PREFIX)?;
        }
        self.root.open_dir(RESERVED_PREFIX)
    }

    /// The regular file at a save path, with its stamp; `None` if there is none. Links are followed, because the file
    /// is only read.
    pub(crate) fn existing(&self, path: &SavePath) -> Option<(PathBuf, Stamp)> {
        let path = self.path.join(path.text());
        let metadata = std::fs::metadata(&path).ok().filter(Metadata::is_file)?;
        Some((path, Stamp::new(&metadata)))
    }

    /// Whether there is a folder at a save path.
    pub(crate) fn is_folder(&self, path: &SavePath) -> bool {
        self.path.join(path.text()).is_dir()
    }
}

/// A file system and its free space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// Id of the file system.
    pub(crate) device: u64,
    /// Bytes available to this user.
    pub(crate) free: u64,
}

/// The file system of a folder. Some do not tell their free space: then a full disk is noticed by a write.
///
/// # Errors
/// Its metadata cannot be read.
pub(crate) fn space(folder: &Dir) -> io::Result<Space> {
    use cap_std::fs::MetadataExt as _;
    let free = rustix::fs::fstatvfs(folder).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    Ok(Space { device: folder.dir_metadata()?.dev(), free })
}

/// Checks that a file in a folder can be renamed, without which no download could appear as a whole: some network and
/// FUSE file systems refuse it.
///
/// # Errors
/// What the system reports.
pub(crate) fn check_rename(folder: &Dir) -> io::Result<()> {
    let name = PathBuf::from(format!("{RESERVED_PREFIX}-{:016x}.check", fastrand::u64(..)));
    AtomicFile::create_in(folder, &name)?.commit_without_sync()?;
    folder.remove_file(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn save_paths_stay_inside_the_models_folder() {
        for (text, expected) in [
            ("a", Some("a")),
            ("a/b.bin", Some("a/b.bin")),
            (".//a/./b", Some("a/b")),
            ("-a/--out=x -o", Some("-a/--out=x -o")),
            ("${HOME}/$(x)`y`;z", Some("${HOME}/$(x)`y`;z")),
            (".hidden/...", Some(".hidden/...")),
            ("%2e%2e/a", Some("%2e%2e/a")),
            ("a/..", None),
            ("../a", None),
            ("a/../../b", None),
            ("/etc/passwd", None),
            ("a\\b", None),
            ("a/", None),
            ("a/.", None),
            ("", None),
            (".", None),
            ("a\nb", None),
            ("a\0b", None),
            (".model-catalog/record", None),
            ("./.MODEL-catalog/x", None),
            ("a/.model-catalog-0123.part", None),
        ] {
            assert_eq!(SavePath::parse(text).ok().map(|path| path.text()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn folders_of_a_path_are_listed() {
        for (text, expected) in [("a", &[][..]), ("a/b", &["a"]), ("./a//bb/c", &["a", "a/bb"])] {
            let path = SavePath::parse(text).expect(text);
            assert_eq!(path.folders().collect::<Vec<_>>(), expected, "{text}");
        }
    }
}

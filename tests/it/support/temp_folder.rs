//! Folders for one test.

use std::ops::Deref;
use std::path::{Path, PathBuf};

/// An empty folder with a random name, which is removed with its content at the end of the test.
pub struct TempFolder(PathBuf);

impl TempFolder {
    /// A folder in the system's folder for temporary files. Its name begins with `name`.
    pub fn new(name: &str) -> Self {
        Self::below(&std::env::temp_dir(), name)
    }

    /// A folder below `parent`.
    pub fn below(parent: &Path, name: &str) -> Self {
        let path = parent.join(format!("{name}-{:x}", fastrand::u64(..)));
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// The path of a file in it, as a string for settings and arguments.
    pub fn path(&self, file: &str) -> String {
        self.0.join(file).display().to_string()
    }
}

impl Deref for TempFolder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for TempFolder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

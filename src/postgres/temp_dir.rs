//! A temporary directory that is removed however this process ends, `kill -9` included.
//!
//! A shell creates it and removes it at the end of a pipe whose write ends only this process and the programs that work
//! in the directory hold. (PR_SET_PDEATHSIG would fire when the spawning thread ends.)

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// `$1` is the directory. The shell creates it itself, so that there is no moment at which it exists unguarded, and it
/// never removes one that existed before. This process may be gone when it is told so, hence the trap.
const GUARD: &str = r#"
trap '' PIPE
mkdir -m 700 "$1" || exit
echo created
exec >/dev/null 2>&1
read -r end
rm -rf "$1"
"#;

/// A new directory with mode 0700; dropping it removes it, after every program with a `hold` has ended.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    guard: Child,
    pipe: Option<ChildStdin>,
}

impl TempDir {
    /// Creates a directory at `path`.
    ///
    /// # Errors
    /// The directory exists already, or what the system reports.
    pub fn create(path: PathBuf) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GUARD, "model-catalog-guard"]).arg(&path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The process group of its own keeps a Ctrl-C in the terminal from reaching the guard.
        let mut guard = command.process_group(0).spawn()?;
        let (mut created, mut errors) = (String::new(), String::new());
        // Both end when the directory is created, or when it can't be.
        guard.stdout.take().map(|mut pipe| pipe.read_to_string(&mut created)).transpose()?;
        guard.stderr.take().map(|mut pipe| pipe.read_to_string(&mut errors)).transpose()?;
        if created.is_empty() {
            guard.wait()?;
            return Err(io::Error::other(errors.trim().to_owned()));
        }
        let pipe = guard.stdin.take();
        Ok(Self { path, guard, pipe })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A descriptor that keeps the directory from being removed while any process has it open.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn hold(&self) -> io::Result<OwnedFd> {
        let pipe = self.pipe.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.as_fd().try_clone_to_owned()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.guard.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_removed_with_its_content_and_an_existing_one_is_left_alone() {
        let path = std::env::temp_dir().join(format!("temp-dir-{:x}", fastrand::u64(..)));
        let directory = TempDir::create(path.clone()).expect("created");
        std::fs::write(directory.path().join("file"), "text").expect("written");
        let error = TempDir::create(path.clone()).expect_err("it exists");
        assert!(error.to_string().contains("exists"), "{error}");
        assert!(path.join("file").exists());
        drop(directory);
        assert!(!path.exists());
    }
}

//! The program's own files: small JSON documents that are replaced atomically.

use std::io::{self, Write};
use std::path::Path;

use cap_std::fs::Dir;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A larger file was not written by this program.
const MAX_DOCUMENT: u64 = 64 * 1024 * 1024;

/// Replaces `name` in `folder` atomically. With `durable`, the content is synced to the disk first. Only one process
/// may write a name at a time; a temporary file left by a killed process is overwritten.
///
/// # Errors
/// It cannot be written.
pub fn write_json(folder: &Dir, name: &str, document: &impl Serialize, durable: bool) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    let mut file = folder.create(&temporary)?;
    file.write_all(&serde_json::to_vec(document)?)?;
    if durable {
        file.sync_all()?;
    }
    folder.rename(&temporary, folder, name)
}

/// Reads a document; `None` if it does not exist.
///
/// # Errors
/// It cannot be read or parsed.
pub fn read_json<T: DeserializeOwned>(folder: &Dir, name: &str) -> io::Result<Option<T>> {
    let file = match folder.open(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if file.metadata()?.len() > MAX_DOCUMENT {
        return Err(io::Error::other("it is too large"));
    }
    let text = io::read_to_string(file)?;
    Ok(Some(serde_json::from_str(&text)?))
}

/// Whether locking failed because the file system does not support locks, as some network file systems do not.
/// Processes that share it may then download a file twice, but a file still gets its final name only when it is
/// complete.
#[must_use]
pub fn has_no_locks(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::NOLCK, Errno::NOSYS, Errno::OPNOTSUPP, Errno::INVAL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Replaces a file at a path given by the user.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    // The textfile collector of node_exporter reads every `*.prom`, so the temporary name needs another extension.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)
}

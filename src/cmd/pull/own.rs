//! Files of this program's own: small JSON documents that are replaced whole.

use std::io::{self, Write};
use std::path::Path;

use cap_std::fs::Dir;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Larger ones are not ours.
const MAX_DOCUMENT: u64 = 64 * 1024 * 1024;

/// Replaces `name` in `folder`: readers find the old document or the new one. `durable` also survives a power cut.
/// Only one process may write a name at a time, so that what a killed one leaves is overwritten by the next.
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

/// Reads a document; `None` if there is none.
///
/// # Errors
/// It cannot be read, or is no such document.
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

/// Whether a lock failed because the file system has none, as some network file systems; then processes that share it
/// may do the same work twice, but each file still gets its name whole.
#[must_use]
pub fn has_no_locks(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::NOLCK, Errno::NOSYS, Errno::OPNOTSUPP, Errno::INVAL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Replaces a file whose path the user chose.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    // The collector of node_exporter reads every `*.prom`, so the temporary name must end in something else.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)
}

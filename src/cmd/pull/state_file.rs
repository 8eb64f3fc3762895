//! The program's own files: small JSON documents that are replaced atomically.

use std::io::{self, Write};
use std::path::Path;

use cap_std::fs::Dir;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A larger file was not written by this program.
const MAX_DOCUMENT: u64 = 64 * 1024 * 1024;

/// Replaces `name` in `folder` atomically. With `durable`, the content is synced to the disk first. With `alone`, no
/// other process writes the name at the same time, and a temporary file left by a killed process is overwritten.
///
/// # Errors
/// It cannot be written.
pub fn write_json(folder: &Dir, name: &str, document: &impl Serialize, durable: bool, alone: bool) -> io::Result<()> {
    let temporary = if alone { format!("{name}.tmp") } else { format!("{name}.{:016x}.tmp", fastrand::u64(..)) };
    let mut file = folder.create(&temporary)?.into_std();
    let written = file.write_all(&serde_json::to_vec(document)?).and_then(|()| match durable {
        true => synced(file.sync_all()),
        false => Ok(()),
    });
    let renamed = written.and_then(|()| folder.rename(&temporary, folder, name));
    if renamed.is_err() {
        let _ = folder.remove_file(&temporary);
    }
    renamed
}

/// The result of a sync, which some network and FUSE file systems do not have: bytes then reach the disk when the file
/// system writes them.
///
/// # Errors
/// The sync failed.
pub fn synced(result: io::Result<()>) -> io::Result<()> {
    use rustix::io::Errno;
    let missing = |error: &io::Error| {
        let codes = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP];
        codes.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    };
    result.or_else(|error| if missing(&error) { Ok(()) } else { Err(error) })
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

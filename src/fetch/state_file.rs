//! The program's own files: small JSON documents that are replaced atomically.

use std::io::{self, Read, Write};
use std::path::Path;

use cap_std::fs::{Dir, OpenOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::atomic_file::{AtomicFile, open_regular};

/// A larger file was not written by this program.
const MAX_DOCUMENT: u64 = 64 * 1024 * 1024;

/// Replaces `name` in `folder` atomically. With `durable`, the content is synced to the disk first.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write_json(folder: &Dir, name: &str, document: &impl Serialize, durable: bool) -> io::Result<()> {
    let file = AtomicFile::create_in(folder, Path::new(name))?;
    file.file().write_all(&serde_json::to_vec(document)?)?;
    if durable { file.commit() } else { file.commit_without_sync() }
}

/// Reads a document; `None` if it does not exist.
///
/// # Errors
/// It cannot be read or parsed.
pub(crate) fn read_json<T: DeserializeOwned>(folder: &Dir, name: &str) -> io::Result<Option<T>> {
    let file = match open_regular(folder, name, OpenOptions::new().read(true)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_DOCUMENT {
        return Err(io::Error::other("it is too large"));
    }
    Ok(Some(serde_json::from_slice(&text)?))
}

/// Replaces a file at a path given by the user.
///
/// # Errors
/// It cannot be written.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = AtomicFile::create(path)?;
    file.file().write_all(content)?;
    file.commit_without_sync()
}

//! Format of the snapshot file, from which a server starts without a database: lines of JSON that any tool can read.
//! `GET /api/snapshot` sends the same lines, and a server without a database reads them from there.
//!
//! The first line is a header, each further line is a model as it is served, the last is a checksum of all lines before
//! it.

pub mod writer;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tracing::warn;
use xxhash_rust::xxh3::Xxh3;

use crate::base::atomic_file::{AtomicFile, FileLock, with_suffix};
use crate::catalog::entry::{Entry, EntryBuilder, read_id};
use crate::catalog::snapshot::{Rejected, Snapshot};
use crate::postgres::position::Position;

/// Version of the format, incremented when an older program would misread the file. The rules for rows are not part of
/// the format: the header names those that the rows passed, see [`Rules::text`](crate::catalog::model::Rules::text).
const VERSION: u32 = 2;
/// The oldest version that can be read. Version 1 differs only in the rules that its rows passed.
const OLDEST_VERSION: u32 = 1;
const FORMAT: &str = "model-catalog snapshot";
const BUFFER: usize = 1 << 20;
/// Largest number of entries for which memory is reserved in advance: the header of a forged file must not make us
/// reserve all of it.
const MAX_CAPACITY: usize = 1 << 24;
/// Longest line. A file of something else may have no line feed at all, and is not read into memory as a whole.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// The `Age` in `GET /api/snapshot` of a catalog from a snapshot file whose server has not reached its source yet: the
/// largest allowed (RFC 9111 §1.2.2).
pub(crate) const NEVER_SYNCED: u64 = 1 << 31;

/// The header of `GET /api/snapshot` with the latest position at which the server had the content of the response. The
/// position in the body may be older: content can come back, and stays in memory as it was rendered and compressed.
pub(crate) const AS_OF: &str = "catalog-as-of";

/// A snapshot with everything needed to resume from it.
#[derive(Debug, Clone)]
pub struct PersistedSnapshot<S> {
    /// The catalog.
    pub snapshot: S,
    /// Where to resume reading changes.
    pub position: Position,
    /// The position that the catalog is of; `position` may be older, see `ResumePoint`.
    pub as_of: Position,
    /// The rules that its rows passed; see `Rules::text`. Under other rules the
    /// rows must be checked again before they are served.
    pub rules: String,
    /// The structure of the view that it was read under, see `Structure`; a server reads everything if it is unknown.
    pub structure: Option<String>,
    /// When the database was started that all of it was read from; `None` if another one may have been restored since.
    pub database_started: Option<String>,
}

impl<S> PersistedSnapshot<S> {
    /// Moves the catalog to a later position at which it has the same content.
    pub(crate) fn move_to(&mut self, as_of: Position) {
        // Both are of one history. A loader that finds another one resumes from where it has read everything.
        if self.position.history != as_of.history {
            self.position = as_of.clone();
        }
        self.as_of = as_of;
    }
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    /// The file does not exist.
    #[error("it does not exist yet")]
    Missing,
    /// The system reported an error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file was written by a version of the program with another format, mostly a newer one.
    #[error(
        "it has version {0} and this program reads versions {OLDEST_VERSION} to {VERSION}: use the version of the \
         program that wrote it, or let this one replace the file once it has read its source"
    )]
    Version(u32),
    /// The content differs from what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The path names a device, a pipe or a directory, which a rename would replace.
    #[error("it is not a regular file: set the path of one, or leave the setting out")]
    NotAFile,
    /// Another process is writing it.
    #[error("another process is writing it: give each process a file of its own")]
    Busy,
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    format: Cow<'a, str>,
    version: u32,
    rules: Cow<'a, str>,
    #[serde(flatten)]
    position: Cow<'a, Position>,
    /// The `pg_snapshot` of `as_of`, whose history is that of `position`. Older files lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    as_of: Option<Cow<'a, str>>,
    /// Older files lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    structure: Option<Cow<'a, str>>,
    /// The witnesses of `as_of`. Older files lack them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    witnesses: Option<Cow<'a, str>>,
    /// Older files lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    database_started: Option<Cow<'a, str>>,
    revision: String,
    models: usize,
    rejected: Cow<'a, Rejected>,
}

#[derive(Serialize, Deserialize)]
struct Trailer {
    checksum: String,
}

/// Replaces the file at `path` atomically.
///
/// # Errors
/// See [`SnapshotFileError`]. The file at `path` is then unchanged.
pub fn write(path: &Path, persisted: &PersistedSnapshot<impl AsRef<Snapshot>>) -> Result<(), SnapshotFileError> {
    require_regular(path)?;
    let file = AtomicFile::create(path)?;
    write_to(BufWriter::with_capacity(BUFFER, file.file()), persisted)?;
    Ok(file.commit()?)
}

/// Locks the file at `path`; only processes that lock it, too, are kept out.
///
/// # Errors
/// [`SnapshotFileError::Busy`] if another process has the lock. If it cannot be locked for another reason, that is
/// logged.
pub(crate) fn lock(path: &Path) -> Result<FileLock, SnapshotFileError> {
    require_regular(path)?;
    FileLock::acquire(path).or_else(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => Err(SnapshotFileError::Busy),
        _ => {
            let path = path.display();
            warn!(%path, %error, "the snapshot file can't be locked: other processes that write it go unnoticed");
            Ok(FileLock::unlocked())
        }
    })
}

/// A rename would replace a device or a pipe.
fn require_regular(path: &Path) -> Result<(), SnapshotFileError> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(SnapshotFileError::NotAFile),
        _ => Ok(()),
    }
}

/// Writes the lines to `out`, which should be buffered, and flushes it.
pub(crate) fn write_to(out: impl Write, persisted: &PersistedSnapshot<impl AsRef<Snapshot>>) -> io::Result<()> {
    let snapshot = persisted.snapshot.as_ref();
    let mut out = ChecksumWriter { inner: out, checksum: Xxh3::new() };
    let header = Header {
        format: FORMAT.into(),
        version: VERSION,
        rules: Cow::Borrowed(&persisted.rules),
        position: Cow::Borrowed(&persisted.position),
        as_of: Some(Cow::Borrowed(&persisted.as_of.snapshot)),
        structure: persisted.structure.as_deref().map(Cow::Borrowed),
        witnesses: persisted.as_of.witnesses.as_deref().map(Cow::Borrowed),
        database_started: persisted.database_started.as_deref().map(Cow::Borrowed),
        revision: format!("{:016x}", snapshot.revision()),
        models: snapshot.len(),
        rejected: Cow::Borrowed(snapshot.rejected()),
    };
    out.write_line(&serde_json::to_vec(&header)?)?;
    for entry in snapshot.iter() {
        out.write_line(entry.json())?;
    }
    let trailer = Trailer { checksum: hex(&out.checksum) };
    out.write_line(&serde_json::to_vec(&trailer)?)?;
    out.inner.flush()
}

/// Writes lines and computes their checksum.
struct ChecksumWriter<W> {
    inner: W,
    checksum: Xxh3,
}

impl<W: Write> ChecksumWriter<W> {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        for part in [line, b"\n"] {
            self.checksum.update(part);
            self.inner.write_all(part)?;
        }
        Ok(())
    }
}

fn hex(checksum: &Xxh3) -> String {
    format!("{:032x}", checksum.digest128())
}

/// Reads a file that [`write()`] wrote, line by line, so it needs little memory in addition to the catalog itself.
///
/// # Errors
/// See [`SnapshotFileError`].
pub fn read(path: &Path) -> Result<PersistedSnapshot<Snapshot>, SnapshotFileError> {
    read_from(open(path)?, &Snapshot::default())
}

/// Reads lines that [`write_to`] wrote. Entries that are the same in `previous` are shared with it.
pub(crate) fn read_from(
    reader: impl BufRead,
    previous: &Snapshot,
) -> Result<PersistedSnapshot<Snapshot>, SnapshotFileError> {
    use SnapshotFileError::Damaged;

    let mut lines = ChecksumReader { reader, checksum: Xxh3::new(), line: Vec::new() };
    let first = lines.next_line()?.ok_or(Damaged("it is empty"))?;
    let header = parse_header(first)?;
    let (rules, position) = (header.rules.into_owned(), header.position.into_owned());
    let as_of = header.as_of.map_or_else(|| position.snapshot.clone(), Cow::into_owned);
    let witnesses = header.witnesses.map(Cow::into_owned);
    let as_of = Position { history: position.history.clone(), snapshot: as_of, witnesses };
    let (rejected, models) = (header.rejected.into_owned(), header.models);

    let mut builder = EntryBuilder::default();
    let entries = (0..models).map(|_| read_entry(&mut lines, &mut builder, previous));
    let snapshot = Snapshot::from_entries(entries, models.min(MAX_CAPACITY), rejected)?;

    let expected = hex(&lines.checksum);
    let last = lines.next_line()?.ok_or(Damaged("it is truncated"))?;
    let trailer: Trailer = serde_json::from_slice(last).map_err(|_| Damaged("the last line is not a checksum"))?;
    if trailer.checksum != expected {
        return Err(Damaged("the checksum does not match"));
    }
    if lines.next_line()?.is_some() {
        return Err(Damaged("there is more after the checksum"));
    }
    if header.revision != format!("{:016x}", snapshot.revision()) || snapshot.len() != models {
        return Err(Damaged("the revision does not match"));
    }
    let structure = header.structure.map(Cow::into_owned);
    let database_started = header.database_started.map(Cow::into_owned);
    Ok(PersistedSnapshot { snapshot, position, as_of, rules, structure, database_started })
}

/// The part of the header that every version has.
#[derive(Deserialize)]
struct AnyHeader {
    format: String,
    version: u32,
}

fn parse_header(line: &[u8]) -> Result<Header<'static>, SnapshotFileError> {
    let not_a_header = |_| SnapshotFileError::Damaged("the first line is not a header");
    let any: AnyHeader = serde_json::from_slice(line).map_err(not_a_header)?;
    if any.format != FORMAT {
        return Err(SnapshotFileError::Damaged("it is not a snapshot file"));
    }
    if !(OLDEST_VERSION..=VERSION).contains(&any.version) {
        return Err(SnapshotFileError::Version(any.version));
    }
    serde_json::from_slice(line).map_err(not_a_header)
}

fn read_entry(
    lines: &mut ChecksumReader<impl BufRead>,
    builder: &mut EntryBuilder,
    previous: &Snapshot,
) -> Result<Entry, SnapshotFileError> {
    let json = lines.next_line()?.ok_or(SnapshotFileError::Damaged("it is truncated"))?;
    let id = read_id(json).ok_or(SnapshotFileError::Damaged("a line is not a model"))?;
    if let Some(entry) = previous.get(&id).filter(|entry| entry.json() == json) {
        return Ok(entry.clone());
    }
    builder.begin(&id).extend_from_slice(json);
    Ok(builder.finish(&id))
}

/// Opens a file to be read.
pub(crate) fn open(path: &Path) -> Result<BufReader<File>, SnapshotFileError> {
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => SnapshotFileError::Missing,
        _ => error.into(),
    };
    // Otherwise the open would wait for a writer if the path named a pipe.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path).map_err(missing)?;
    if !file.metadata()?.is_file() {
        return Err(SnapshotFileError::NotAFile);
    }
    Ok(BufReader::with_capacity(BUFFER, file))
}

/// Reads lines and computes their checksum.
struct ChecksumReader<R> {
    reader: R,
    checksum: Xxh3,
    line: Vec<u8>,
}

impl<R: BufRead> ChecksumReader<R> {
    /// The next line without its line feed. A last line without one was truncated.
    fn next_line(&mut self) -> Result<Option<&[u8]>, SnapshotFileError> {
        self.line.clear();
        self.reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut self.line)?;
        self.checksum.update(&self.line);
        match self.line.split_last() {
            None => Ok(None),
            Some((b'\n', line)) => Ok(Some(line)),
            Some(_) => Err(SnapshotFileError::Damaged("it is truncated")),
        }
    }
}

/// Renames an unusable file so that it can be examined; returns its new path.
pub(crate) fn quarantine(path: &Path) -> io::Result<PathBuf> {
    let quarantined = with_suffix(path, "damaged");
    std::fs::rename(path, &quarantined).map(|()| quarantined)
}

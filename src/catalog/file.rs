//! The catalog on disk, so that a start needs no database: lines of JSON that any tool can read.
//!
//! The first line says what it is, each further line is one model as it is answered, the last is a checksum of all
//! before it. It is written beside its name and then renamed, so a reader finds the old file or the new one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::index::Draft;
use super::snapshot::{Rejected, Snapshot};
use crate::postgres::position::Position;

/// Raised whenever an older file would be read wrongly: another format, other rules for rows, other JSON.
const VERSION: u32 = 2;
const FORMAT: &str = "model-catalog snapshot";
const BUFFER: usize = 1 << 20;

/// What is kept: a catalog, where it stands, and under which rules its rows passed.
#[derive(Debug, Clone)]
pub struct Saved<S> {
    /// The catalog.
    pub snapshot: S,
    /// The moment it was read at.
    pub position: Position,
    /// The allowed schemes, with commas between.
    pub rules: String,
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is none.
    #[error("there is none yet")]
    Missing,
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is of another version of this program.
    #[error("it has version {0}, this program reads version {VERSION}")]
    Version(u32),
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It is a device, a pipe or a directory, in whose place a rename would put a file.
    #[error("it is no regular file: name one, or leave the setting out")]
    NotAFile,
    /// Another process is writing it.
    #[error("another process is writing it: give each its own file")]
    Busy,
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    format: Cow<'a, str>,
    version: u32,
    rules: Cow<'a, str>,
    #[serde(flatten)]
    position: Cow<'a, Position>,
    revision: String,
    models: usize,
    rejected: Cow<'a, BTreeMap<Box<str>, Box<str>>>,
}

#[derive(Serialize, Deserialize)]
struct Trailer {
    checksum: String,
}

/// Writes and counts into the checksum at once.
struct Summed<W> {
    inner: W,
    sum: Xxh3,
}

impl<W: Write> Summed<W> {
    fn line(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in [bytes, b"\n"] {
            self.sum.update(part);
            self.inner.write_all(part)?;
        }
        Ok(())
    }
}

fn checksum(sum: &Xxh3) -> String {
    format!("{:032x}", sum.digest128())
}

/// Writes `saved` to `path`: a temporary file beside it, fsync, rename, fsync of the directory.
///
/// # Errors
/// See [`FileError`]; the file at `path` is then what it was.
pub fn write(path: &Path, saved: &Saved<impl AsRef<Snapshot>>) -> Result<(), FileError> {
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(FileError::NotAFile);
    }
    let temporary = suffixed(path, "tmp");
    // Not truncated before it is locked: it could be another process' half-written one.
    let file = OpenOptions::new().create(true).write(true).truncate(false).open(&temporary)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(FileError::Busy),
        Err(TryLockError::Error(error)) => return Err(error.into()),
        // Between the open and the lock, the other one may have renamed it to the very file that must stay whole.
        Ok(()) if !is_at(&file, &temporary) => return Err(FileError::Busy),
        Ok(()) => {}
    }
    let written = write_to(&file, saved).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // What is left of it would only take up the room that is missing.
        let _ = std::fs::remove_file(&temporary);
        return Err(error.into());
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(directory)?.sync_all()?)
}

/// Whether `path` names this very file.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata().map(identity), std::fs::metadata(path).map(identity)), (Ok(a), Ok(b)) if a == b)
}

fn write_to(file: &File, saved: &Saved<impl AsRef<Snapshot>>) -> io::Result<()> {
    file.set_len(0)?;
    let snapshot = saved.snapshot.as_ref();
    let mut out = Summed { inner: BufWriter::with_capacity(BUFFER, file), sum: Xxh3::new() };
    let header = Header {
        format: FORMAT.into(),
        version: VERSION,
        rules: Cow::Borrowed(&saved.rules),
        position: Cow::Borrowed(&saved.position),
        revision: format!("{:016x}", snapshot.revision()),
        models: snapshot.len(),
        rejected: Cow::Borrowed(snapshot.rejected()),
    };
    out.line(&serde_json::to_vec(&header)?)?;
    for entry in snapshot.iter() {
        out.line(entry.json())?;
    }
    let trailer = Trailer { checksum: checksum(&out.sum) };
    out.line(&serde_json::to_vec(&trailer)?)?;
    out.inner.flush()?;
    file.sync_all()
}

/// Reads what [`write()`] wrote, line by line: it needs little memory beyond the catalog's own.
///
/// # Errors
/// See [`FileError`].
pub fn read(path: &Path) -> Result<Saved<Snapshot>, FileError> {
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => FileError::Missing,
        _ => error.into(),
    };
    // Asked first, because to open a pipe would wait for who writes it.
    if !std::fs::metadata(path).map_err(missing)?.is_file() {
        return Err(FileError::NotAFile);
    }
    let file = File::open(path).map_err(missing)?;
    let mut lines = Lines { reader: BufReader::with_capacity(BUFFER, file), sum: Xxh3::new(), line: Vec::new() };
    let first = lines.next()?.ok_or(FileError::Damaged("it is empty"))?;
    let header: Header<'_> =
        serde_json::from_slice(first).map_err(|_| FileError::Damaged("the first line is not a header"))?;
    if header.format != FORMAT {
        return Err(FileError::Damaged("the first line is not a header"));
    }
    if header.version != VERSION {
        return Err(FileError::Version(header.version));
    }
    let Header { rules, position, revision, models, rejected, .. } = header;
    let (rules, position, rejected) =
        (rules.into_owned(), position.into_owned(), Rejected::from(rejected.into_owned()));
    // A header that lies about the number must not make us reserve all memory.
    let mut snapshot = Snapshot::restored(models.min(1 << 24), rejected);
    let mut draft = Draft::default();
    for _ in 0..models {
        let json = lines.next()?.ok_or(FileError::Damaged("it is cut off"))?;
        let id = id_of(json).ok_or(FileError::Damaged("a line is no model"))?;
        draft.begin(&id).extend_from_slice(json);
        snapshot.restore(draft.finish(&id));
    }
    let expected = checksum(&lines.sum);
    let last = lines.next()?.ok_or(FileError::Damaged("it is cut off"))?;
    let trailer: Trailer =
        serde_json::from_slice(last).map_err(|_| FileError::Damaged("the last line is no checksum"))?;
    if trailer.checksum != expected {
        return Err(FileError::Damaged("the checksum does not fit"));
    }
    if lines.next()?.is_some() {
        return Err(FileError::Damaged("something follows the checksum"));
    }
    if revision != format!("{:016x}", snapshot.revision()) || snapshot.len() != models {
        return Err(FileError::Damaged("the revision does not fit"));
    }
    Ok(Saved { snapshot, position, rules })
}

struct Lines {
    reader: BufReader<File>,
    sum: Xxh3,
    line: Vec<u8>,
}

impl Lines {
    /// The next line without its end; a last line that has none is cut off.
    fn next(&mut self) -> Result<Option<&[u8]>, FileError> {
        self.line.clear();
        self.reader.read_until(b'\n', &mut self.line)?;
        self.sum.update(&self.line);
        match self.line.split_last() {
            None => Ok(None),
            Some((b'\n', line)) => Ok(Some(line)),
            Some(_) => Err(FileError::Damaged("it is cut off")),
        }
    }
}

/// The id of a rendered answer: its first key. Only an id with an escape needs a JSON reader.
fn id_of(json: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: String,
    }
    let id = json.strip_prefix(br#"{"id":""#)?;
    let end = id.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    if id[end] == b'"' {
        return std::str::from_utf8(&id[..end]).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice::<OnlyId>(json).ok().map(|only| Cow::Owned(only.id))
}

/// Moves a file that can't be used out of the way, for people to look at; gives its new name.
///
/// # Errors
/// The system said no.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = suffixed(path, "damaged");
    std::fs::rename(path, &aside).map(|()| aside)
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

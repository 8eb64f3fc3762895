//! `model-catalog export`: what servers would serve, as an array of models that `import` takes, ordered by id. It is
//! streamed: the catalog is never in memory as a whole.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::atomic_file::AtomicFile;
use crate::catalog::entry::ArrayWriter;
use crate::catalog::model::{RowError, Rules};
use crate::postgres::rows;
use crate::postgres::session::{self, ConnectError, Database, ReadError};

/// Rows that are left out and logged one by one; beyond it only their number is said.
const LOGGED: usize = 20;

/// Why there is no whole export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The view could not be read.
    #[error("cannot read model_catalog.entries: {0}")]
    Read(#[from] ReadError),
    /// The file or the standard output could not be written.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes the catalog to `path`, `-` being the standard output. A file is there as a whole or as it was before;
/// a device or a pipe is written to.
/// Gives the number of rows that break a rule, which are left out.
///
/// # Errors
/// See [`ExportError`].
pub async fn run(path: &Path, rules: &Rules, database: &Database) -> Result<usize, ExportError> {
    if path == Path::new("-") {
        let mut export = Export::new(BufWriter::new(io::stdout().lock()), path, rules);
        return export.all(database).await;
    }
    // Only a file is replaced: a rename onto a device or a pipe would put a file in its place, `/dev/null` for one.
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let out = File::options().write(true).open(path);
        let out = out.map_err(|source| ExportError::Write { path: path.into(), source })?;
        return Export::new(BufWriter::new(out), path, rules).all(database).await;
    }
    let failed = |source| ExportError::Write { path: path.into(), source };
    // The process id lets exports to the same path run at the same time; the last one to end wins.
    let file = AtomicFile::create(path, &format!("{}.tmp", std::process::id())).map_err(failed)?;
    let rejected = Export::new(BufWriter::new(file.file()), path, rules).all(database).await?;
    file.commit().map_err(failed)?;
    Ok(rejected)
}

/// An export in the making.
struct Export<'a, W> {
    out: ArrayWriter<W>,
    path: &'a Path,
    rules: &'a Rules,
    /// The best row so far of the id that came last: of several the smallest answer is served.
    last: Option<(String, Vec<u8>)>,
    rejected: usize,
}

impl<'a, W: Write> Export<'a, W> {
    fn new(out: W, path: &'a Path, rules: &'a Rules) -> Self {
        Self { out: ArrayWriter::lines(out), path, rules, last: None, rejected: 0 }
    }

    async fn all(&mut self, database: &Database) -> Result<usize, ExportError> {
        let client = session::connect(database).await?;
        let mut entries = session::entries_by_id(&client, database.timeout).await?;
        while let Some(chunk) = entries.next().await? {
            for message in chunk.iter().filter(|message| !rows::is_copy_end(message)) {
                let (id, row) = rows::copied(message).ok_or_else(|| ReadError::View(rows::NO_ROW.into()))?;
                let mut json = Vec::new();
                match row.and_then(|row| row.render(self.rules, &mut json)) {
                    Ok(()) => self.good(id, json)?,
                    Err(fault) => self.reject(id, &fault),
                }
            }
        }
        let ended = self.flush().and_then(|()| self.out.finish());
        ended.map_err(|source| self.failed(source))?;
        info!(models = self.out.len(), left_out = self.rejected, "exported");
        Ok(self.rejected)
    }

    fn good(&mut self, id: &str, json: Vec<u8>) -> Result<(), ExportError> {
        match &mut self.last {
            Some((last, smallest)) if last == id => {
                if json < *smallest {
                    *smallest = json;
                }
                self.reject(id, &RowError::Duplicate);
            }
            _ => {
                self.flush().map_err(|source| self.failed(source))?;
                self.last = Some((id.into(), json));
            }
        }
        Ok(())
    }

    /// Writes the row that waits, for no other of its id will come.
    fn flush(&mut self) -> io::Result<()> {
        if let Some((_, json)) = self.last.take() {
            self.out.push(&json)?;
        }
        Ok(())
    }

    fn reject(&mut self, id: &str, fault: &RowError) {
        self.rejected += 1;
        if self.rejected <= LOGGED {
            warn!(%id, reason = %fault, "row left out");
        } else if self.rejected == LOGGED + 1 {
            warn!("further rows are left out without a line of their own");
        }
    }

    fn failed(&self, source: io::Error) -> ExportError {
        ExportError::Write { path: self.path.into(), source }
    }
}

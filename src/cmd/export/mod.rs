//! `model-catalog export`: writes the catalog that servers serve, as a JSON array ordered by id that `import` reads.
//!
//! It is streamed: the catalog is never in memory as a whole.

pub(crate) mod snapshot;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::stdout::{self, StdoutError};
use super::{CommandResult, require_all, runtime};
use crate::base::atomic_file::AtomicFile;
use crate::catalog::entry::{ArrayWriter, is_preferred};
use crate::catalog::model::{RowError, Rules};
use crate::cli::DatabaseArgs;
use crate::postgres::config::DatabaseConfig;
use crate::postgres::error::{ConnectError, ReadError};
use crate::postgres::session::Session;
use crate::snapshot_file::SnapshotFileError;

/// Maximum number of omitted rows that are logged; further ones are only counted.
const MAX_LOGGED: usize = 20;

/// Why the export failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The view could not be read.
    #[error("cannot read model_catalog.entries")]
    Read(#[from] ReadError),
    /// Standard output could not be written.
    #[error("cannot export")]
    Stdout(#[from] StdoutError),
    /// The output could not be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The path on the command line.
        path: PathBuf,
        /// Why not.
        source: SnapshotFileError,
    },
}

/// Runs the command. `path` is the output file, `-` for standard output. A regular file is either complete or left
/// unchanged; devices and pipes are written to directly. Rows that break a rule are omitted.
pub(crate) fn run(path: &Path, rules: &Rules, database: &DatabaseArgs) -> CommandResult {
    let database = database.config()?;
    require_all(runtime()?.block_on(export(path, rules, &database))?, "rows")
}

/// Returns the number of rejected rows.
async fn export(path: &Path, rules: &Rules, database: &DatabaseConfig) -> Result<usize, ExportError> {
    if path == Path::new("-") {
        let mut export = Export::new(stdout::buffered(), path, rules);
        return export.run(database).await;
    }
    let failed = |error: io::Error| ExportError::Write { path: path.into(), source: error.into() };
    // Renaming onto a device or a pipe, /dev/null for example, would replace it by a file.
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let out = File::options().write(true).open(path);
        let out = out.map_err(failed)?;
        return Export::new(BufWriter::new(out), path, rules).run(database).await;
    }
    // Of concurrent exports to the same path, the last one to finish wins.
    let file = AtomicFile::create(path).map_err(failed)?;
    let rejected = Export::new(BufWriter::new(file.file()), path, rules).run(database).await?;
    file.commit().map_err(failed)?;
    Ok(rejected)
}

/// The state of an export.
struct Export<'a, W> {
    out: ArrayWriter<W>,
    path: &'a Path,
    rules: &'a Rules,
    /// The id of the last accepted row and its JSON. It is not written yet: the next row may have the same id.
    pending: Option<(String, Vec<u8>)>,
    rejected: usize,
}

impl<'a, W: Write> Export<'a, W> {
    fn new(out: W, path: &'a Path, rules: &'a Rules) -> Self {
        Self { out: ArrayWriter::lines(out), path, rules, pending: None, rejected: 0 }
    }

    async fn run(&mut self, database: &DatabaseConfig) -> Result<usize, ExportError> {
        let session = Session::open(database, || {}).await?;
        session
            .entries_by_id()
            .await?
            .for_each(|id, row| {
                let mut json = Vec::new();
                match row.and_then(|row| row.render(self.rules, &mut json)) {
                    Ok(()) => self.accept(id, json),
                    Err(error) => {
                        self.reject(id, &error);
                        Ok(())
                    }
                }
            })
            .await?;
        let finished = self.write_pending().and_then(|()| self.out.finish());
        finished.map_err(|source| self.failed(source))?;
        info!(models = self.out.len(), rejected = self.rejected, "exported");
        Ok(self.rejected)
    }

    fn accept(&mut self, id: &str, json: Vec<u8>) -> Result<(), ExportError> {
        match &mut self.pending {
            Some((last, served)) if last == id => {
                if is_preferred(&json, served) {
                    *served = json;
                }
                self.reject(id, &RowError::Duplicate);
            }
            _ => {
                self.write_pending().map_err(|source| self.failed(source))?;
                self.pending = Some((id.into(), json));
            }
        }
        Ok(())
    }

    /// Writes the pending row: rows are ordered by id, so no other with its id follows.
    fn write_pending(&mut self) -> io::Result<()> {
        if let Some((_, json)) = self.pending.take() {
            self.out.push(&json)?;
        }
        Ok(())
    }

    fn reject(&mut self, id: &str, error: &RowError) {
        self.rejected += 1;
        if self.rejected <= MAX_LOGGED {
            warn!(%id, reason = %error, "row rejected");
        } else if self.rejected == MAX_LOGGED + 1 {
            warn!("further rejected rows are not logged");
        }
    }

    fn failed(&self, source: io::Error) -> ExportError {
        if self.path == Path::new("-") {
            return StdoutError::from(source).into();
        }
        ExportError::Write { path: self.path.into(), source: source.into() }
    }
}

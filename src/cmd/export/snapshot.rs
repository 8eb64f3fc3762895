//! `export --snapshot`: writes the snapshot that `serve --upstream` follows, for a bucket or any other HTTP server.
//!
//! The catalog is read into memory as servers read it, because its revision precedes its models in the file.

use std::path::Path;
use std::sync::Arc;

use tracing::info;

use super::ExportError;
use crate::catalog::model::Rules;
use crate::catalog::refresh::Refresh;
use crate::catalog::row_error::log_rejections;
use crate::catalog::snapshot::Snapshot;
use crate::cli::DatabaseArgs;
use crate::cmd::stdout::{self, StdoutError};
use crate::cmd::{CommandResult, require_all, runtime};
use crate::postgres::config::DatabaseConfig;
use crate::postgres::error::ReadError;
use crate::postgres::session::Session;
use crate::snapshot_file::{self, PersistedSnapshot};

/// Runs the command. `path` is the output file, `-` for standard output. A regular file is either complete or left
/// unchanged.
pub(crate) fn run(path: &Path, rules: &Rules, database: &DatabaseArgs) -> CommandResult {
    let state = runtime()?.block_on(read(rules, &database.config()?))?;
    if path == Path::new("-") {
        snapshot_file::write_to(stdout::buffered(), &state).map_err(StdoutError::from)?;
    } else {
        snapshot_file::write(path, &state).map_err(|source| ExportError::Write { path: path.into(), source })?;
    }
    let (models, rejected) = (state.snapshot.len(), state.snapshot.rejected().size());
    info!(models, rejected, revision = format!("{:016x}", state.snapshot.revision()), "exported");
    require_all(rejected, "rows")
}

async fn read(rules: &Rules, database: &DatabaseConfig) -> Result<PersistedSnapshot<Arc<Snapshot>>, ExportError> {
    let session = Session::open(database, || {}).await?;
    let database_started = Some(session.server_started().to_owned());
    let position = session.begin().await?;
    let previous = Snapshot::default();
    let mut refresh = Refresh::full(&previous, rules);
    let rows = session.entries().await?;
    rows.for_each(|id, row| {
        refresh.row(id, row);
        Ok::<_, ReadError>(())
    })
    .await?;
    session.commit().await?;
    let refreshed = refresh.finish();
    log_rejections(&refreshed.newly_rejected);
    let (snapshot, as_of) = (Arc::new(refreshed.snapshot), position.clone());
    let (rules, structure) = (rules.text(), None);
    Ok(PersistedSnapshot { snapshot, position, as_of, rules, structure, database_started })
}

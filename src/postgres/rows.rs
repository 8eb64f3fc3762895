//! Result rows: how they are received, and what the columns of `sql/delta.sql` and `sql/delta_standby.sql` mean.

use std::borrow::Cow;
use std::pin::Pin;

use futures_util::StreamExt;
use futures_util::stream::ReadyChunks;
use tokio_postgres::Row;

use super::encoding::{self, RawText};
use super::error::ReadError;
use super::read::Read;
use crate::catalog::model::{COLUMNS, RawModel, RowError};

/// Rows that are taken from the connection under one timer. The timer costs about as much as decoding a row.
pub(super) const ROWS_PER_CHUNK: usize = 256;

/// Index in [`COLUMNS`] of the column that is boolean. The statements read all others as text; the last, `mirrors`, is
/// NULL if the view does not have it.
pub(super) const AUTH_REQUIRED: usize = 5;

/// Columns of `sql/delta.sql` after those of the position.
const MANY: usize = 3;
const ELAPSED: usize = 4;
const CHANGED_ID: usize = 5;
const AGE: usize = 6;
const FIRST_MODEL_COLUMN: usize = 7;
/// Columns of `sql/delta_standby.sql` after those of `sql/delta.sql`.
const XID: usize = FIRST_MODEL_COLUMN + COLUMNS.len();
const REPLAY_LSN: usize = XID + 1;
const REPLAY_LAG: usize = XID + 2;
const CAUGHT_UP: usize = XID + 3;

/// The rows of a statement, in chunks as they arrive.
pub struct RowChunks {
    chunks: ReadyChunks<Pin<Box<tokio_postgres::RowStream>>>,
    read: Read,
}

impl RowChunks {
    pub(super) fn new(stream: tokio_postgres::RowStream, read: Read) -> Self {
        Self { chunks: Box::pin(stream).ready_chunks(ROWS_PER_CHUNK), read }
    }

    /// The next chunk of rows; `None` after the last.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn next(&mut self) -> Result<Option<Vec<Row>>, ReadError> {
        let chunk = async { self.chunks.next().await.map(|rows| rows.into_iter().collect()).transpose() };
        let chunk = self.read.wait(chunk).await?;
        if chunk.is_none() {
            self.read.end();
        }
        Ok(chunk)
    }
}

/// Assembles a model from the columns of the view; `text` reads a column by its index.
pub(super) fn model_from_columns<'a>(
    text: impl Fn(usize) -> Result<Option<&'a str>, RowError>,
    auth_required: Result<Option<bool>, RowError>,
) -> Result<RawModel<'a>, RowError> {
    Ok(RawModel {
        id: text(0)?,
        name: text(1)?,
        download_url: text(2)?,
        file_size_gb: text(3)?,
        hash: text(4)?,
        auth_required: auth_required?,
        auth_provider: text(6)?,
        save_path: text(7)?,
        dependencies: text(8)?,
        description: text(9)?,
        mirrors: text(10)?,
    })
}

/// A change that a row of the delta reports.
pub struct Change<'a> {
    /// The model that changed; with escapes if its id is not UTF-8.
    pub id: Cow<'a, str>,
    /// Whether its id is not UTF-8.
    pub escaped: bool,
    /// Seconds since the change, by the database's clock.
    pub age_seconds: f64,
    /// The row as it is now; `None` if it was deleted.
    pub row: Option<Result<RawModel<'a>, RowError>>,
}

/// The change in a row of the delta; `None` for the one row of an empty delta, which has only a position.
///
/// # Errors
/// A column of another type than the statement returns.
pub fn change(row: &Row) -> Result<Option<Change<'_>>, tokio_postgres::Error> {
    let Some(RawText(id)) = row.try_get(CHANGED_ID)? else { return Ok(None) };
    let (escaped, id) = (encoding::text(0, id).is_err(), encoding::id(id));
    let age_seconds = row.try_get::<_, Option<f64>>(AGE)?.unwrap_or_default();
    let row = match model(row) {
        Ok(RawModel { id: None, .. }) => None,
        model => Some(model),
    };
    Ok(Some(Change { id, escaped, age_seconds, row }))
}

/// What a delta is to return.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// The most changes. If there are more, none is returned.
    pub limit: usize,
    /// Whether to look up the row of each model, or to return only ids.
    pub look_up: bool,
}

/// How a delta was read, in each of its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// There are more changes than the limit, and none is returned.
    pub many: bool,
    /// Seconds from the start of the statement to this row.
    pub elapsed_seconds: f64,
}

/// The effort in a row of the delta.
pub(crate) fn effort(row: &Row) -> Result<Effort, tokio_postgres::Error> {
    Ok(Effort { many: row.try_get(MANY)?, elapsed_seconds: row.try_get(ELAPSED)? })
}

/// Ranges of transaction ids, as two arrays in Postgres' text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnreadXids {
    /// The first id of each range.
    pub first: String,
    /// The id after the end of each range; `NULL` for a range without an end.
    pub end: String,
}

/// The state of replay on a standby.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replay {
    /// The WAL position up to which was replayed, as a number.
    pub lsn: u64,
    /// Age of the last transaction that was replayed, by the clocks of both servers; `None` if there was none yet.
    pub lag_seconds: Option<f64>,
    /// Whether all received WAL was replayed and the connection to the primary is established.
    pub caught_up: bool,
}

/// The state of replay in a row of a standby's delta.
pub(crate) fn replay(row: &Row) -> Result<Replay, tokio_postgres::Error> {
    Ok(Replay {
        lsn: row.try_get::<_, Option<i64>>(REPLAY_LSN)?.unwrap_or_default().cast_unsigned(),
        // The standby's clock may be behind the primary's.
        lag_seconds: row.try_get::<_, Option<f64>>(REPLAY_LAG)?.map(|seconds| seconds.max(0.0)),
        caught_up: row.try_get(CAUGHT_UP)?,
    })
}

/// The transaction of the change in a row of a standby's delta.
pub(crate) fn xid(row: &Row) -> Result<Option<u64>, tokio_postgres::Error> {
    Ok(row.try_get::<_, Option<i64>>(XID)?.map(i64::cast_unsigned))
}

fn model(row: &Row) -> Result<RawModel<'_>, RowError> {
    let text = |column: usize| {
        let raw: Option<RawText<'_>> = row.try_get(FIRST_MODEL_COLUMN + column).map_err(unreadable)?;
        raw.map(|raw| encoding::text(column, raw.0)).transpose()
    };
    model_from_columns(text, row.try_get(FIRST_MODEL_COLUMN + AUTH_REQUIRED).map_err(unreadable))
}

fn unreadable(error: tokio_postgres::Error) -> RowError {
    // The error names only the column; its source says what is wrong with the value.
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    RowError::Unreadable(format!("{error}{}", source.unwrap_or_default()))
}

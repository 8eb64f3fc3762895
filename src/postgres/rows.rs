//! What the columns of `sql/delta.sql`, `sql/entries.sql` and `sql/here.sql` mean.

use tokio_postgres::Row;
use tokio_postgres::types::WrongType;

use crate::catalog::model::{Fault, RawModel};

/// The moment in a database's history at which a snapshot was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// `system identifier/timeline/database/epoch`: what the transaction ids below belong to.
    pub history: String,
    /// A `pg_snapshot` as Postgres prints it.
    pub snapshot: String,
}

/// The ten columns of `model_catalog.entries`, of which the first is column `first` of `row`.
///
/// # Errors
/// A column that is not what the view's types promise, such as text that is no UTF-8.
pub fn model(row: &Row, first: usize) -> Result<RawModel<'_>, Fault> {
    let text = |column: usize| row.try_get::<_, Option<&str>>(first + column).map_err(unreadable);
    Ok(RawModel {
        id: text(0)?,
        name: text(1)?,
        download_url: text(2)?,
        file_size_gb: text(3)?,
        hash: text(4)?,
        auth_required: row.try_get(first + 5).map_err(unreadable)?,
        auth_provider: text(6)?,
        save_path: text(7)?,
        dependencies: text(8)?,
        description: text(9)?,
    })
}

/// The id of a row of the view, empty if there is none that can be read.
///
/// # Errors
/// The view's `id` is no text at all: a fault of the view, not of this row, so nothing of it is to be believed.
pub fn id(row: &Row) -> Result<&str, tokio_postgres::Error> {
    match row.try_get::<_, Option<&str>>(0) {
        Ok(id) => Ok(id.unwrap_or_default()),
        Err(error) if std::error::Error::source(&error).is_some_and(|source| source.is::<WrongType>()) => Err(error),
        Err(_) => Ok(""),
    }
}

fn unreadable(error: tokio_postgres::Error) -> Fault {
    // The error itself says only which column; what is wrong with it is its source.
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    Fault::Unreadable(format!("{error}{}", source.unwrap_or_default()))
}

/// The position that the first two columns of `row` give.
///
/// # Errors
/// A NULL, which `model_catalog.history` never has.
pub fn position(row: &Row) -> Result<Position, tokio_postgres::Error> {
    Ok(Position { snapshot: row.try_get(0)?, history: row.try_get(1)? })
}

/// A row of the delta beyond its position.
pub struct Changed<'a> {
    /// The model that changed.
    pub id: &'a str,
    /// How long ago, in seconds by the database's clock.
    pub age_seconds: f64,
    /// What it is now; `None` = deleted.
    pub row: Option<Result<RawModel<'a>, Fault>>,
}

/// What changed, if this row of the delta names a change.
///
/// # Errors
/// A column of another type than the statement gives.
pub fn changed(row: &Row) -> Result<Option<Changed<'_>>, tokio_postgres::Error> {
    const AGE: usize = 3;
    const ENTRY: usize = 4;
    let Some(id) = row.try_get::<_, Option<&str>>(2)? else { return Ok(None) };
    let age_seconds = row.try_get::<_, Option<f64>>(AGE)?.unwrap_or_default();
    let row = match model(row, ENTRY) {
        Ok(RawModel { id: None, .. }) => None,
        entry => Some(entry),
    };
    Ok(Some(Changed { id, age_seconds, row }))
}

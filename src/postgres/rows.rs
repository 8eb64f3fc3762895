//! What the columns of `sql/delta.sql`, `sql/entries.sql` and `sql/here.sql` mean.

use tokio_postgres::types::Type;
use tokio_postgres::{Row, Statement};

use super::position::Position;
use crate::catalog::model::{RawModel, RowError};

/// The ten columns of `model_catalog.entries` in a row of the delta, of which the first is column `first`.
///
/// # Errors
/// A column that is not what the view's types promise, such as text that is no UTF-8.
pub fn model(row: &Row, first: usize) -> Result<RawModel<'_>, RowError> {
    let text = |column: usize| row.try_get(first + column).map_err(unreadable);
    columns(text, row.try_get(first + AUTH_REQUIRED).map_err(unreadable))
}

/// Columns of the view, in its order; all but one are text.
const MODEL_COLUMNS: i16 = 10;
const AUTH_REQUIRED: usize = 5;

fn columns<'a>(
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
    })
}

/// One row of a binary COPY of `sql/entries.sql`, as the protocol's documentation describes it: the number of
/// columns, then the length (-1 = NULL) and the bytes of each. A full load reads rows this way because the driver's
/// own rows cost about as much as all else that is done with them.
///
/// # Errors
/// A column that is no text. The inner result; `None` = not such a row.
pub fn copied(row: &[u8]) -> Option<(&str, Result<RawModel<'_>, RowError>)> {
    let (number, mut rest) = row.split_first_chunk()?;
    if i16::from_be_bytes(*number) != MODEL_COLUMNS {
        return None;
    }
    let mut values = [None; MODEL_COLUMNS as usize];
    for value in &mut values {
        let (length, after) = rest.split_first_chunk()?;
        rest = after;
        if let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) {
            let (bytes, after) = rest.split_at_checked(length)?;
            (*value, rest) = (Some(bytes), after);
        }
    }
    let text = |column: usize| {
        let unreadable = |error| RowError::Unreadable(format!("column {}: {error}", column + 1));
        values[column].map(std::str::from_utf8).transpose().map_err(unreadable)
    };
    let auth_required = values[AUTH_REQUIRED].map(|bytes| bytes != [0]);
    Some((text(0).ok().flatten().unwrap_or_default(), columns(text, Ok(auth_required))))
}

/// What is said where [`copied`] finds no row.
pub const NO_ROW: &str = "the database sent something that is no row of model_catalog.entries";

/// What a binary COPY begins with: a signature, flags, and the length of an extension that does not exist.
const COPY_HEADER: usize = 11 + 4 + 4;

/// The first message of a binary COPY without its header.
#[must_use]
pub fn without_header(message: &[u8]) -> &[u8] {
    message.get(COPY_HEADER..).unwrap_or_default()
}

/// Whether this is the end of a binary COPY.
#[must_use]
pub fn is_copy_end(row: &[u8]) -> bool {
    row == (-1_i16).to_be_bytes() || row.is_empty()
}

/// Whether a statement's columns can be read by [`copied`]; if not, what is wrong with them. A view whose id is no
/// text would else be a catalog in which every row is bad.
///
/// # Errors
/// The name of the first column of another type, and its type.
pub fn check_types(statement: &Statement) -> Result<(), String> {
    for column in statement.columns() {
        let wanted = if column.name() == "auth_required" { &[Type::BOOL][..] } else { &[Type::TEXT, Type::VARCHAR] };
        if !wanted.contains(column.type_()) {
            let (name, found, wanted) = (column.name(), column.type_().name(), wanted[0].name());
            return Err(format!("column {name} of model_catalog.entries is of type {found}, it must be {wanted}"));
        }
    }
    Ok(())
}

fn unreadable(error: tokio_postgres::Error) -> RowError {
    // The error itself says only which column; what is wrong with it is its source.
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    RowError::Unreadable(format!("{error}{}", source.unwrap_or_default()))
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
    pub row: Option<Result<RawModel<'a>, RowError>>,
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

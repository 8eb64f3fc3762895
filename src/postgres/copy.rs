//! The whole view as a binary COPY stream, and the decoder of its rows.
//!
//! Full reads use COPY because the driver's own rows cost about as much as everything else that is done with them.

use std::borrow::Cow;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::ReadyChunks;
use postgres_protocol::escape::escape_literal;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, CopyOutStream, Statement};

use super::encoding::{self, readable};
use super::error::ReadError;
use super::read::Read;
use super::rows::{AUTH_REQUIRED, ROWS_PER_CHUNK, model_from_columns};
use crate::catalog::model::{COLUMNS, RawModel, RowError};

const ENTRIES: &str = include_str!("../../sql/entries.sql");

/// A binary COPY begins with a signature, flags, and the length of a header extension that does not exist.
const HEADER_BYTES: usize = 11 + 4 + 4;

/// The rows of a [`CopyStream`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// All, in the order in which Postgres finds them.
    All,
    /// All, ordered by the bytes of their ids.
    AllById,
    /// Those with one of these ids, ordered by the bytes of their ids.
    Of(&'a [&'a str]),
}

const BY_ID: &str = "ORDER BY e.id COLLATE \"C\"";

impl Rows<'_> {
    fn clauses(self) -> String {
        match self {
            Self::All => String::new(),
            Self::AllById => BY_ID.into(),
            // Literals and not a join: the planner knows how many there are, and statistics of what has just been
            // written are wrong.
            Self::Of(ids) => format!("WHERE e.id = ANY ({}::text[]) {BY_ID}", escape_literal(&array(ids))),
        }
    }
}

/// An array in Postgres' text format.
fn array(ids: &[&str]) -> String {
    let mut text = String::from("{");
    for id in ids {
        let separator = if text.len() > 1 { "," } else { "" };
        text.push_str(separator);
        text.push('"');
        for c in id.chars() {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text + "}"
}

/// The rows of the view as they arrive, read by one statement and therefore consistent.
pub struct CopyStream {
    chunks: ReadyChunks<Pin<Box<CopyOutStream>>>,
    read: Read,
}

impl CopyStream {
    /// Starts to read `model_catalog.entries`.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub(super) async fn open(client: &Client, rows: Rows<'_>, mut read: Read) -> Result<Self, ReadError> {
        let statement = read.wait(client.prepare(ENTRIES)).await?;
        check_types(&statement).map_err(ReadError::View)?;
        let entries = read.wait(readable(client, ENTRIES)).await?;
        let copy = format!("COPY ({entries} {}) TO STDOUT (FORMAT binary)", rows.clauses());
        let stream = read.wait(client.copy_out(&copy)).await?;
        Ok(Self { chunks: Box::pin(stream).ready_chunks(ROWS_PER_CHUNK), read })
    }

    /// Calls `visit` with the id and the columns of every row. The id of a row that has none is empty, and one that is
    /// not UTF-8 has escapes.
    ///
    /// # Errors
    /// See [`ReadError`]; the first error of `visit` ends the read.
    pub async fn for_each<E: From<ReadError>>(
        mut self,
        mut visit: impl FnMut(&str, Result<RawModel<'_>, RowError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut header = HEADER_BYTES;
        loop {
            let chunk = async { self.chunks.next().await.map(|rows| rows.into_iter().collect()).transpose() };
            let chunk: Option<Vec<Bytes>> = self.read.wait(chunk).await?;
            let Some(chunk) = chunk else {
                self.read.end();
                return Ok(());
            };
            for message in chunk {
                // The first row is in the same message as the header, each further row in one of its own.
                let row = message.get(std::mem::take(&mut header)..).unwrap_or_default();
                if is_end(row) {
                    continue;
                }
                let invalid =
                    || ReadError::View("the database sent something that is not a row of model_catalog.entries".into());
                let (id, model) = decode(row).ok_or_else(invalid)?;
                visit(&id, model)?;
            }
        }
    }
}

/// Whether this is the trailer of a binary COPY, or nothing at all.
fn is_end(row: &[u8]) -> bool {
    row == (-1_i16).to_be_bytes() || row.is_empty()
}

/// Decodes one row in the format that the protocol's documentation describes: the number of columns, then the length
/// (-1 = NULL) and the bytes of each. `None` if it is not such a row; the inner error is a column that is not UTF-8.
pub fn decode(row: &[u8]) -> Option<(Cow<'_, str>, Result<RawModel<'_>, RowError>)> {
    let (number, mut rest) = row.split_first_chunk()?;
    if usize::try_from(i16::from_be_bytes(*number)) != Ok(COLUMNS.len()) {
        return None;
    }
    let mut values = [None; COLUMNS.len()];
    for value in &mut values {
        let (length, after) = rest.split_first_chunk()?;
        rest = after;
        if let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) {
            let (bytes, after) = rest.split_at_checked(length)?;
            (*value, rest) = (Some(bytes), after);
        }
    }
    let text = |column: usize| values[column].map(|bytes| encoding::text(column, bytes)).transpose();
    let auth_required = values[AUTH_REQUIRED].map(|bytes| bytes != [0]);
    Some((values[0].map(encoding::id).unwrap_or_default(), model_from_columns(text, Ok(auth_required))))
}

/// Checks that [`decode`] can read the statement's columns: with an id that is not text, for example, every row of the
/// catalog would be rejected.
fn check_types(statement: &Statement) -> Result<(), String> {
    for column in statement.columns() {
        let accepted = if column.name() == "auth_required" { &[Type::BOOL][..] } else { &[Type::TEXT, Type::VARCHAR] };
        if !accepted.contains(column.type_()) {
            let (name, found, expected) = (column.name(), column.type_().name(), accepted[0].name());
            return Err(format!("column {name} of model_catalog.entries is of type {found}, it must be {expected}"));
        }
    }
    Ok(())
}

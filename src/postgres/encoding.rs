//! Texts that are not UTF-8: each rejects its own row, and no other.
//!
//! A database in another encoding than UTF8 converts or verifies each text that it sends, and a single one for which
//! that fails would fail the statement that reads it.

use std::borrow::Cow;

use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Error};

use crate::catalog::model::{COLUMNS, RowError};

/// What `model_catalog.readable()` puts before the bytes of a text that cannot be converted.
const MARK: &str = "\u{1}not UTF-8: ";
/// Whether the database converts texts and has the function for those that it cannot convert.
const CONVERTS: &str = "SELECT pg_catalog.getdatabaseencoding() <> 'UTF8' \
                        AND pg_catalog.to_regprocedure('model_catalog.readable(text)') IS NOT NULL";

/// The statement `sql` for the encoding of the database.
pub(super) async fn readable<'a>(client: &Client, sql: &'a str) -> Result<Cow<'a, str>, Error> {
    if !client.query_typed_one(CONVERTS, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(sql.into());
    }
    Ok(with_readable_texts(sql).into())
}

/// The columns of the view that are texts in the encoding of the database.
fn texts() -> impl Iterator<Item = String> {
    let texts = COLUMNS.iter().filter(|column| !["file_size_gb", "auth_required"].contains(column));
    texts.map(|column| format!("e.{column}"))
}

/// Calls `model_catalog.readable()` for each text that a statement selects: an expression before a comma or a line end.
fn with_readable_texts(sql: &str) -> String {
    let mut sql = sql.to_owned();
    for text in texts().chain(["changed.model_id".into()]) {
        for (cast, end) in [("", ","), ("", "\n"), ("::text", ",")] {
            sql = sql.replace(&format!("{text}{cast}{end}"), &format!("model_catalog.readable({text}{cast}){end}"));
        }
    }
    sql
}

/// A text as the database sent it.
pub(super) struct RawText<'a>(pub(super) &'a [u8]);

impl<'a> FromSql<'a> for RawText<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(ty: &Type) -> bool {
        <&str as FromSql>::accepts(ty)
    }
}

/// The text in the column with this index.
pub(super) fn text(column: usize, bytes: &[u8]) -> Result<&str, RowError> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.starts_with(MARK));
    text.ok_or(RowError::NotUtf8(COLUMNS.get(column).copied().unwrap_or("a column")))
}

/// An id to show: what is not UTF-8 has the escapes of Postgres' `encode(bytes, 'escape')`.
pub(super) fn id(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix(MARK).unwrap_or(text).into(),
        Err(_) => {
            let escape = |byte: &u8| match byte {
                0 | 0x80.. => format!("\\{byte:03o}"),
                b'\\' => "\\\\".into(),
                byte => char::from(*byte).to_string(),
            };
            bytes.iter().map(escape).collect::<String>().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_that_a_statement_selects_is_made_readable() {
        for (sql, others) in [
            (include_str!("../../sql/entries.sql"), 0),
            (include_str!("../../sql/delta.sql"), 1),
            (include_str!("../../sql/delta_standby.sql"), 1),
        ] {
            let readable = with_readable_texts(sql);
            let missing: Vec<_> =
                texts().filter(|text| !readable.contains(&format!("model_catalog.readable({text}"))).collect();
            assert_eq!(missing, [""; 0], "{readable}");
            assert_eq!(readable.matches("model_catalog.readable(").count(), texts().count() + others, "{readable}");
        }
    }

    #[test]
    fn texts_that_are_not_utf8_reject_their_row_and_are_escaped() {
        assert_eq!(text(1, "größe".as_bytes()), Ok("größe"));
        assert_eq!(text(1, b"ol\xe9"), Err(RowError::NotUtf8("name")));
        assert_eq!(text(9, b"\x01not UTF-8: a\\201"), Err(RowError::NotUtf8("description")));
        for (bytes, shown) in [
            ("größe".as_bytes(), "größe"),
            (b"ol\xe9\\", r"ol\351\\"),
            (b"\x01not UTF-8: a\\201", r"a\201"),
            ("ß\u{0}".as_bytes(), "ß\u{0}"),
        ] {
            assert_eq!(id(bytes), shown);
        }
    }
}

//! How errors are printed. An error type holds its own text and its source, and never repeats the text of the source.

use std::error::Error;

use tokio_postgres::error::DbError;

/// The text of an error and those of its sources: `cannot write x: No space left on device (os error 28)`.
///
/// The detail of an error that Postgres reports is left out: it may quote values of rows, and thereby secrets.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for error in std::iter::successors(Some(error), |error| (*error).source()) {
        let reported = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::as_db_error);
        let part = match reported {
            Some(reported) => postgres_message(reported, None),
            None => error.to_string(),
        };
        // Some errors of other crates repeat their source.
        if !text.contains(&part) {
            text = if text.is_empty() { part } else { format!("{text}: {part}") };
        }
        if reported.is_some() {
            break;
        }
    }
    text
}

/// An error in the words of the server, with the hint and the SQLSTATE.
pub(crate) fn postgres_message(error: &DbError, detail: Option<&str>) -> String {
    let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
    let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{}{detail}{hint} [{}]", error.message(), error.code().code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {0}")]
    struct ReadError(&'static str, #[source] io::Error);

    #[test]
    fn sources_follow_and_are_not_repeated() {
        let refused = || io::Error::other(ReadError("file", io::Error::other("refused")));
        assert_eq!(chain(&refused()), "cannot read file: refused");
        assert_eq!(chain(&ReadError("folder", refused())), "cannot read folder: cannot read file: refused");
        assert_eq!(chain(&ReadError("file: refused", refused())), "cannot read file: refused");
    }
}

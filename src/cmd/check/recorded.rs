//! What triggers record: whether the values are ids of models, and whether the log of changes stays small.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::SimpleQueryRow;

use super::error::CheckError;
use super::report::{Report, literal};
use crate::postgres::error::ReadError;
use crate::postgres::session::Session;

const LOG: &str = include_str!("../../../sql/check/log.sql");

/// Rows in `changes` for each model, and in `reloads`, above which older ones are not being deleted. It is done by
/// transactions that are not serializable, usually at once.
const MAX_CHANGES_PER_MODEL: u64 = 10;
const MAX_RELOADS: u64 = 1000;
/// A smaller log costs nothing.
const SMALL_LOG: u64 = 10_000;

/// Reports a log of changes from which older rows are not deleted.
pub(crate) async fn growth(session: &Session, report: &mut Report) -> Result<(), CheckError> {
    let rows = session.query_system_catalog(LOG).await?;
    let number = |column: &str| rows.first().and_then(|row| row.get(column)?.parse::<u64>().ok()).unwrap_or_default();
    let (changes, models, reloads) = (number("entries"), number("models"), number("reloads"));
    if reloads > MAX_RELOADS || changes > SMALL_LOG.max(MAX_CHANGES_PER_MODEL * models) {
        let text = format!(
            "the log has {changes} changes of {models} models and {reloads} reloads, and slows servers down as it \
             grows: writers in SERIALIZABLE do not delete older rows, and no server did, which needs EXECUTE on \
             model_catalog.trim() and a connection to the primary"
        );
        report.warning("log", text, "SELECT model_catalog.reload();");
    }
    Ok(())
}

/// Number of rows of a table that are looked at.
const ROWS: usize = 1000;

/// Values of the column that a table is watched by.
pub(crate) struct Recorded {
    table: String,
    column: String,
    values: Vec<String>,
}

/// Reads some values of the column that a table is watched by; `row` is one of `sql/sources.sql`. `None` if it is not
/// watched by a column, or if the role may not read it: servers do not need to.
pub(crate) async fn sample(session: &Session, row: &SimpleQueryRow) -> Result<Option<Recorded>, CheckError> {
    let (Some(table), Some(column)) = (row.get("name"), row.get("columns")) else { return Ok(None) };
    if row.get("root") != Some(table) || row.get("lost").is_some() {
        return Ok(None);
    }
    let quoted = escape_identifier(column);
    let sql = format!("SELECT {quoted}::text FROM {table} WHERE {quoted} IS NOT NULL LIMIT {ROWS}");
    match session.query_system_catalog(&sql).await {
        Ok(rows) => {
            let values = rows.iter().filter_map(|row| row.get(0).map(str::to_owned)).collect();
            Ok(Some(Recorded { table: table.into(), column: column.into(), values }))
        }
        Err(ReadError::Postgres(error)) if error.as_db_error().is_some() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reports the tables none of whose values is the id of a row of the view.
pub(crate) fn compare(recorded: &[Recorded], is_id: impl Fn(&str) -> bool, report: &mut Report) {
    for Recorded { table, column, values } in recorded {
        if values.is_empty() || values.iter().any(|value| is_id(value)) {
            continue;
        }
        let text = format!(
            "{table} is watched by {column}, but of {} rows there none has the id of a model in it: its changes are \
             recorded under ids that the view does not have. Watched without a column, each change makes servers read \
             all models",
            values.len()
        );
        report.problem("source", text, format!("SELECT model_catalog.watch({});", literal(table)));
    }
}

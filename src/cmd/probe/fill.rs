//! Writes hashes and sizes into rows that have none, in one transaction.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::{Client, Transaction};

use super::address::{Results, Row};
use crate::catalog::size::gigabytes;

/// Locks the rows in an order that all writers of this program keep, so that they do not deadlock.
const LOCK: &str = "SELECT FROM public.models WHERE id::text = ANY($1::text[]) ORDER BY id FOR UPDATE";

/// A row whose address changed meanwhile, or that has a value by now, stays as it is.
const FILL: [(&str, &str); 2] = [("hash", "f.value"), ("file_size_gb", "f.value::numeric")];

/// Nothing was written.
#[derive(Debug, thiserror::Error)]
#[error("nothing was written: cannot fill public.models")]
pub(crate) struct FillError(#[from] tokio_postgres::Error);

/// The columns that were written, by the number of the row.
pub(crate) type Filled = HashMap<usize, Vec<&'static str>>;

/// Fills NULL hashes and sizes with the values found at `download_url`, waiting up to `lock_timeout` for other writers.
pub(crate) async fn fill(
    client: &mut Client,
    rows: &[Row],
    results: &[Results],
    lock_timeout: Duration,
) -> Result<Filled, FillError> {
    let found = rows.iter().zip(results).enumerate();
    let found: Vec<_> =
        found.filter_map(|(number, (row, results))| Some((number, row, results.first()?.as_ref().ok()?))).collect();
    let hashes = found.iter().filter(|(_, row, _)| row.hash.is_none());
    let hashes = hashes.filter_map(|(number, row, file)| Some((*number, *row, file.sha256.clone()?)));
    let sizes = found.iter().filter(|(_, row, _)| row.size.is_none());
    let sizes = sizes.filter_map(|(number, row, file)| Some((*number, *row, gigabytes(file.bytes?.into()))));
    let values: [Vec<_>; 2] = [hashes.collect(), sizes.collect()];
    let mut filled = Filled::new();
    if values.iter().all(Vec::is_empty) {
        return Ok(filled);
    }
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = {}", lock_timeout.as_millis())).await?;
    let ids: Vec<_> = values.iter().flatten().map(|(_, row, _)| &*row.id).collect();
    transaction.execute(LOCK, &[&ids]).await?;
    for ((column, value), rows) in FILL.into_iter().zip(&values) {
        for number in update(&transaction, column, value, rows).await? {
            filled.entry(number).or_default().push(column);
        }
    }
    transaction.commit().await?;
    Ok(filled)
}

/// Sets a column where it is NULL; returns the numbers of the rows that were written.
async fn update(
    transaction: &Transaction<'_>,
    column: &str,
    value: &str,
    rows: &[(usize, &Row, String)],
) -> Result<Vec<usize>, tokio_postgres::Error> {
    let statement = format!(
        "UPDATE public.models m SET {column} = {value}
         FROM unnest($1::text[], $2::text[], $3::text[]) f (id, url, value)
         WHERE m.id::text = f.id AND m.download_url = f.url AND m.{column} IS NULL
         RETURNING f.id"
    );
    let ids: Vec<_> = rows.iter().map(|(_, row, _)| &*row.id).collect();
    let urls: Vec<_> = rows.iter().map(|(_, row, _)| &*row.url_text).collect();
    let values: Vec<_> = rows.iter().map(|(.., value)| &**value).collect();
    let numbers: HashMap<_, _> = rows.iter().map(|(number, row, _)| (&*row.id, *number)).collect();
    let written = transaction.query(&statement, &[&ids, &urls, &values]).await?;
    let number = |row: &tokio_postgres::Row| Ok(numbers.get(row.try_get::<_, &str>(0)?).copied());
    written.iter().filter_map(|row| number(row).transpose()).collect()
}

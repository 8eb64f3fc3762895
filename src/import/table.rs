//! The transaction that brings rows into `public.models`: staged in a temporary table, compared there, and only what
//! differs is written. So rows that stay the same cost no write, and all of it rings once.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Transaction};

use super::Row;
use super::progress::Progress;
use crate::postgres::session::describe;

const SERVED: &str = include_str!("../../sql/import_served.sql");
const STAGE: &str = include_str!("../../sql/import_stage.sql");
const KEEP: &str = include_str!("../../sql/import_keep.sql");
const DIFFERENCE: &str = include_str!("../../sql/import_difference.sql");
const WRITE: &str = include_str!("../../sql/import_write.sql");
const LISTED: &str = "SELECT id::text, added, fields FROM pg_temp.difference ORDER BY id";
/// Readers go on, other writers wait: the rows that were compared are the rows that are written.
const LOCK: &str = "LOCK TABLE public.models IN SHARE ROW EXCLUSIVE MODE";
const COPY: &str = "COPY pg_temp.incoming (id, name, download_url, file_size_gb, hash, auth_required, auth_provider, \
                    save_path, dependencies, description) FROM STDIN";
/// Bytes sent in one message, about.
const CHUNK: usize = 64 * 1024;

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The database was not prepared.
    #[error("the database has no view model_catalog.entries: prepare it with `model-catalog migrate`")]
    NoView,
    /// What would be written would not be served.
    #[error(
        "the view model_catalog.entries does not read public.models, which is the only table that import writes: \
         nothing of the file would be served; load the table that the view reads, with a tool of your own"
    )]
    NotServed,
    /// A statement failed.
    #[error("cannot {doing}: {}; nothing was written", describe(.source))]
    Statement {
        /// What was being done.
        doing: &'static str,
        /// What Postgres said.
        source: tokio_postgres::Error,
    },
}

/// What differs between the rows and the table, by id.
#[derive(Debug, Default)]
pub struct Difference {
    /// Rows that the table lacks.
    pub added: Vec<String>,
    /// Rows with other values, and the names of these columns.
    pub changed: Vec<(String, Vec<String>)>,
}

/// What is to be done with the rows.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// Compare and write nothing.
    pub dry_run: bool,
    /// Of rows that exist, leave the columns as they are that ComfyUI-Manager's list does not know.
    pub keep: bool,
    /// Longest wait for other writers of the table.
    pub patience: Duration,
}

/// Brings `rows`, each of another id, into the table.
///
/// # Errors
/// See [`TableError`]; the table is then as it was.
pub async fn merge(
    client: &mut Client,
    rows: &[Row],
    order: Order,
    progress: &Progress,
) -> Result<Difference, TableError> {
    let failed = |doing| move |source| TableError::Statement { doing, source };
    check_served(client).await?;
    let transaction = client.transaction().await.map_err(failed("begin"))?;
    progress.begin("waiting for other writers", 0);
    if !order.dry_run {
        let patience = format!("SET LOCAL lock_timeout = {}; {LOCK}", order.patience.as_millis());
        let locked = progress.during(transaction.batch_execute(&patience)).await;
        locked.map_err(failed("lock public.models"))?;
    }
    transaction.batch_execute(STAGE).await.map_err(failed("read the ten columns of public.models"))?;
    progress.begin("sending", rows.len());
    send(&transaction, rows, progress).await.map_err(failed("send the rows"))?;
    progress.begin("comparing", 0);
    let difference = progress.during(compare(&transaction, order.keep)).await.map_err(failed("compare the rows"))?;
    if order.dry_run {
        transaction.rollback().await.map_err(failed("roll back"))?;
        return Ok(difference);
    }
    progress.begin("writing", 0);
    let write = async {
        transaction.batch_execute(WRITE).await?;
        transaction.commit().await
    };
    progress.during(write).await.map_err(failed("write the rows"))?;
    Ok(difference)
}

async fn check_served(client: &Client) -> Result<(), TableError> {
    let failed = |source| TableError::Statement { doing: "look at the view model_catalog.entries", source };
    let row = client.query_one(SERVED, &[]).await.map_err(failed)?;
    if !row.try_get::<_, bool>("has_view").map_err(failed)? {
        return Err(TableError::NoView);
    }
    if !row.try_get::<_, bool>("reads_models").map_err(failed)? {
        return Err(TableError::NotServed);
    }
    Ok(())
}

async fn send(transaction: &Transaction<'_>, rows: &[Row], progress: &Progress) -> Result<(), tokio_postgres::Error> {
    let mut sink = std::pin::pin!(transaction.copy_in::<_, Bytes>(COPY).await?);
    let mut text = String::new();
    for row in rows {
        push_line(&mut text, row);
        if text.len() >= CHUNK {
            sink.send(std::mem::take(&mut text).into()).await?;
        }
        progress.step();
    }
    sink.send(text.into()).await?;
    sink.finish().await?;
    // Nobody else would look at a temporary table, and the plan of the comparison hangs on its size.
    transaction.batch_execute("ANALYZE pg_temp.incoming").await
}

/// A line of COPY's text format. The rules allow no control character, so backslashes alone need an escape.
fn push_line(text: &mut String, row: &Row) {
    let auth_required = Some(if row.auth_required { "t" } else { "f" });
    let fields = [
        row.id.as_deref(),
        row.name.as_deref(),
        row.download_url.as_deref(),
        row.file_size_gb.as_deref(),
        row.hash.as_deref(),
        auth_required,
        row.auth_provider.as_deref(),
        row.save_path.as_deref(),
        Some(row.dependencies.as_deref().unwrap_or("[]")),
        row.description.as_deref(),
    ];
    for (number, field) in fields.into_iter().enumerate() {
        if number > 0 {
            text.push('\t');
        }
        match field {
            Some(field) => text.push_str(&field.replace('\\', "\\\\")),
            None => text.push_str("\\N"),
        }
    }
    text.push('\n');
}

async fn compare(transaction: &Transaction<'_>, keep: bool) -> Result<Difference, tokio_postgres::Error> {
    if keep {
        transaction.batch_execute(KEEP).await?;
    }
    transaction.batch_execute(DIFFERENCE).await?;
    let mut difference = Difference::default();
    for row in transaction.query(LISTED, &[]).await? {
        let id = row.try_get(0)?;
        match row.try_get(1)? {
            true => difference.added.push(id),
            false => difference.changed.push((id, row.try_get(2)?)),
        }
    }
    Ok(difference)
}

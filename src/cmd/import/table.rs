//! The transaction that merges rows into `public.models`: they are staged in a temporary table and compared there, and
//! only the differences are written. So unchanged rows cost no write, and the import sends one notification.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Transaction};

use super::row::ImportRow;
use crate::catalog::model::{COLUMNS, RawModel};
use crate::cmd::models_table::{ModelsTable, ServedError, require_served};
use crate::cmd::progress::Progress;

const STAGE: &str = include_str!("../../../sql/import_stage.sql");
const KEEP: &str = include_str!("../../../sql/import_keep.sql");
const DIFFERENCE: &str = include_str!("../../../sql/import_difference.sql");
const WRITE: &str = include_str!("../../../sql/import_write.sql");
const LIST: &str = "SELECT id::text, added, fields FROM pg_temp.difference ORDER BY id";
/// Blocks other writers but not readers, so that the table does not change between the comparison and the write.
const LOCK: &str = "LOCK TABLE public.models IN SHARE ROW EXCLUSIVE MODE";
/// Approximate size of a COPY message in bytes.
const CHUNK: usize = 64 * 1024;

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    /// Nothing that is written to the table would be served.
    #[error(transparent)]
    NotServed(#[from] ServedError),
    /// The file has mirrors and the table does not.
    #[error(
        "the file has mirrors and public.models has no column for them: run `ALTER TABLE public.models ADD COLUMN \
         mirrors jsonb` and add the column to the view model_catalog.entries; nothing was written"
    )]
    NoMirrors,
    /// A statement failed.
    #[error("nothing was written: cannot {doing}")]
    Statement {
        /// What the statement was for.
        doing: &'static str,
        /// Why it failed.
        source: tokio_postgres::Error,
    },
}

/// The differences between the rows and the table, by id.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// Ids that the table lacks.
    pub(crate) added: Vec<String>,
    /// Ids of rows with other values, and the names of the columns that differ.
    pub(crate) changed: Vec<(String, Vec<String>)>,
}

/// How rows are merged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MergeOptions {
    /// Compare without writing.
    pub(crate) dry_run: bool,
    /// Preserve the values of existing rows that the format lacks, as ComfyUI-Manager's list and workflows do.
    pub(crate) preserve_existing: bool,
    /// Maximum time to wait for other writers of the table.
    pub(crate) lock_timeout: Duration,
}

/// Merges `rows`, whose ids are distinct, into the table.
pub(crate) async fn merge(
    client: &mut Client,
    rows: &[ImportRow],
    options: MergeOptions,
    progress: &Progress,
) -> Result<Difference, TableError> {
    let failed = |doing| move |source| TableError::Statement { doing, source };
    let table = require_served(client).await?;
    if !table.has_mirrors && rows.iter().any(|row| row.mirrors.is_some()) {
        return Err(TableError::NoMirrors);
    }
    let transaction = client.transaction().await.map_err(failed("begin"))?;
    progress.begin("waiting for other writers", 0);
    if !options.dry_run {
        let lock = format!("SET LOCAL lock_timeout = {}; {LOCK}", options.lock_timeout.as_millis());
        let locked = progress.during(transaction.batch_execute(&lock)).await;
        locked.map_err(failed("lock public.models"))?;
    }
    transaction.batch_execute(&table.sql(STAGE)).await.map_err(failed("read the columns of public.models"))?;
    progress.begin("sending", rows.len());
    send(&transaction, &table, rows, progress).await.map_err(failed("send the rows"))?;
    progress.begin("comparing", 0);
    let difference = progress.during(compare(&transaction, &table, options.preserve_existing)).await;
    let difference = difference.map_err(failed("compare the rows"))?;
    if options.dry_run {
        transaction.rollback().await.map_err(failed("roll back"))?;
        return Ok(difference);
    }
    progress.begin("writing", 0);
    let write = async {
        transaction.batch_execute(&table.sql(WRITE)).await?;
        transaction.commit().await
    };
    progress.during(write).await.map_err(failed("write the rows"))?;
    Ok(difference)
}

async fn send(
    transaction: &Transaction<'_>,
    table: &ModelsTable,
    rows: &[ImportRow],
    progress: &Progress,
) -> Result<(), tokio_postgres::Error> {
    // The last column, `mirrors`, is optional.
    let columns = &COLUMNS[..COLUMNS.len() - usize::from(!table.has_mirrors)];
    let copy = format!("COPY pg_temp.incoming ({}) FROM STDIN", columns.join(", "));
    let mut sink = std::pin::pin!(transaction.copy_in::<_, Bytes>(copy.as_str()).await?);
    let mut text = String::new();
    for row in rows {
        push_line(&mut text, columns, row);
        if text.len() >= CHUNK {
            sink.send(std::mem::take(&mut text).into()).await?;
        }
        progress.step();
    }
    sink.send(text.into()).await?;
    sink.finish().await?;
    // Autovacuum does not analyze temporary tables, and the plan of the comparison depends on its size.
    transaction.batch_execute("ANALYZE pg_temp.incoming").await
}

/// Appends a line in COPY's text format. The rules allow no control characters, so only backslashes need escaping.
fn push_line(text: &mut String, columns: &[&str], row: &ImportRow) {
    let row = RawModel { dependencies: row.dependencies.as_deref().or(Some("[]")), ..row.raw() };
    for (number, field) in row.texts()[..columns.len()].iter().enumerate() {
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

async fn compare(
    transaction: &Transaction<'_>,
    table: &ModelsTable,
    preserve_existing: bool,
) -> Result<Difference, tokio_postgres::Error> {
    if preserve_existing {
        transaction.batch_execute(&table.sql(KEEP)).await?;
    }
    transaction.batch_execute(&table.sql(DIFFERENCE)).await?;
    let mut difference = Difference::default();
    for row in transaction.query(LIST, &[]).await? {
        let id = row.try_get(0)?;
        if row.try_get(1)? {
            difference.added.push(id);
        } else {
            difference.changed.push((id, row.try_get(2)?));
        }
    }
    Ok(difference)
}

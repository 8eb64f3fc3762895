//! `public.models`, the only table that commands write to: whether the servers' view reads it.

use tokio_postgres::Client;

const SERVED: &str = include_str!("../../sql/models_served.sql");

/// Why nothing that is written to the table would be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServedError {
    /// The database is not migrated.
    #[error("the database has no view model_catalog.entries: run `model-catalog migrate` first")]
    NoView,
    /// The view reads other tables.
    #[error(
        "the view model_catalog.entries does not read public.models, the only table that this command writes to, so \
         nothing would be served; write the tables that the view reads with a tool of your own"
    )]
    OtherTables,
    /// The system catalogs can't be read.
    #[error("cannot find out what the view model_catalog.entries reads")]
    Unknown(#[source] tokio_postgres::Error),
}

/// `public.models` as it is in this database.
#[derive(Debug)]
pub(crate) struct ModelsTable {
    /// Whether it has the optional column `mirrors`.
    pub(crate) has_mirrors: bool,
}

impl ModelsTable {
    /// A statement for this table: without the lines with the optional column if the table does not have it.
    pub(crate) fn sql(&self, statement: &str) -> String {
        let lines = statement.lines().filter(|line| self.has_mirrors || !line.contains("mirrors"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Checks that the view reads the table, directly or through other views.
pub(crate) async fn require_served(client: &Client) -> Result<ModelsTable, ServedError> {
    let row = client.query_one(SERVED, &[]).await.map_err(ServedError::Unknown)?;
    let is_true = |column: &str| row.try_get::<_, bool>(column).map_err(ServedError::Unknown);
    if !is_true("has_view")? {
        return Err(ServedError::NoView);
    }
    if !is_true("reads_models")? {
        return Err(ServedError::OtherTables);
    }
    Ok(ModelsTable { has_mirrors: is_true("has_mirrors")? })
}

//! A position: the point in a database's history at which a snapshot of the catalog was read.

use serde::{Deserialize, Serialize};
use tokio_postgres::Row;

/// The point in a database's history at which a snapshot was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// `system identifier/timeline/database/epoch`: the history that the transaction ids below belong to.
    pub history: String,
    /// A `pg_snapshot` in Postgres' text format: `xmin:xmax:running,…`.
    pub snapshot: String,
}

impl Position {
    /// Reads the first two columns of `row`.
    ///
    /// # Errors
    /// A NULL, which `model_catalog.history` never contains.
    pub fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self { snapshot: row.try_get(0)?, history: row.try_get(1)? })
    }

    /// The first transaction id that was not yet assigned.
    #[must_use]
    pub fn xmax(&self) -> u64 {
        self.snapshot.split(':').nth(1).and_then(|xmax| xmax.parse().ok()).unwrap_or(0)
    }

    /// Whether it was read from a hot standby, whose snapshots do not list running transactions.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.history.split('/').nth(1) == Some("standby")
    }
}

//! A position in the history of a database: the point in it that a read returned the content of.

use serde::{Deserialize, Serialize};
use tokio_postgres::Row;

/// The point in a database's history at which something was read.
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

    /// The oldest transaction that may have been in progress: all below it had ended.
    #[must_use]
    pub fn xmin(&self) -> u64 {
        self.snapshot.split(':').next().and_then(|xmin| xmin.parse().ok()).unwrap_or(0)
    }

    /// The first transaction id that was not assigned yet.
    #[must_use]
    pub fn xmax(&self) -> u64 {
        self.snapshot.split(':').nth(1).and_then(|xmax| xmax.parse().ok()).unwrap_or(0)
    }

    /// The transactions below [`Position::xmax`] that were in progress, in ascending order.
    #[must_use]
    pub fn running(&self) -> Vec<u64> {
        let running = self.snapshot.rsplit(':').next().unwrap_or_default();
        running.split(',').filter_map(|xid| xid.parse().ok()).collect()
    }

    /// Whether it was read from a hot standby, whose snapshots do not list the transactions in progress.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.history.split('/').nth(1) == Some("standby")
    }

    /// Whether `later` can follow this position: the same history, and no transaction ids taken back. A restored disk
    /// takes ids back while its history keeps its name.
    #[must_use]
    pub fn precedes(&self, later: &Self) -> bool {
        self.history == later.history && self.xmax() <= later.xmax()
    }
}

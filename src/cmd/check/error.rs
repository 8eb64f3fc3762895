//! Why a check could not be completed.

use crate::postgres::error::{ConnectError, ReadError};

/// Why a check could not be completed. What the check finds is not an error but a finding.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The database could not be read.
    #[error("cannot read")]
    Read(#[from] ReadError),
    /// `EXPLAIN` returned something else than the plan of one statement.
    #[error("cannot read the plan of a look-up: EXPLAIN returned JSON of another form than expected")]
    Plan(#[source] serde_json::Error),
}

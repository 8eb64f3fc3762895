//! Why a check could not be completed.

use crate::postgres::error::{ConnectError, ReadError};

/// Why a check could not be completed. What the check finds is not an error but a finding.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// The database could not be reached.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The database could not be read.
    #[error("cannot read: {0}")]
    Read(#[from] ReadError),
}

//! Why a check could not be completed.

use crate::postgres::error::{ConnectError, ReadError};

/// Why a check could not be completed. What the check finds is not an error but a finding.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The server is older than the program supports.
    #[error("{0}")]
    Unsupported(ConnectError),
    /// The database could not be reached.
    #[error("{0}")]
    Connect(ConnectError),
    /// The database could not be read.
    #[error("cannot read: {0}")]
    Read(#[from] ReadError),
}

impl From<ConnectError> for CheckError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Unsupported(_) => Self::Unsupported(error),
            _ => Self::Connect(error),
        }
    }
}

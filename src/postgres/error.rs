//! Errors of connecting to Postgres and of reading from it, and the timeout that every wait for it runs under.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::config::{DatabaseConfig, DatabaseUrlError};
use crate::base::error_chain::{chain, postgres_message};

/// The oldest major version of Postgres with which this program is tested. Older ones lack what the migrations use.
pub(crate) const OLDEST_MAJOR: u32 = 14;
/// The newest major version of Postgres with which this program is tested.
pub(crate) const NEWEST_MAJOR: u32 = 18;

/// The major version in the parameter `server_version`, such as `15.18 (Debian 15.18-1)` or `19beta1`.
pub(crate) fn major_version(server_version: &str) -> Option<u32> {
    let end = server_version.find(|c: char| !c.is_ascii_digit()).unwrap_or(server_version.len());
    server_version[..end].parse().ok()
}

/// Why connecting failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No response in time.
    #[error(
        "the database at {address} (DATABASE_URL) did not respond within {}",
        humantime::format_duration(*limit)
    )]
    Timeout {
        /// The addresses that were tried.
        address: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The server is older than the program supports.
    #[error(
        "the database at {address} (DATABASE_URL) is PostgreSQL {version}, which is not supported: this program needs \
         PostgreSQL {OLDEST_MAJOR} to {NEWEST_MAJOR}; upgrade the server, or connect to another one"
    )]
    Unsupported {
        /// The addresses that were tried.
        address: String,
        /// Its version.
        version: String,
    },
    /// All servers that can be reached have another role.
    #[error(
        "none of the databases at {address} (DATABASE_URL) has the role that target_session_attrs demands; start one, \
         or use target_session_attrs=any"
    )]
    WrongRole {
        /// The addresses that were tried.
        address: String,
    },
    /// A file that the settings name can't be used any more.
    #[error(transparent)]
    Settings(#[from] DatabaseUrlError),
    /// Refused, by the network or by Postgres.
    #[error("cannot connect to the database at {address} (DATABASE_URL)")]
    Postgres {
        /// The addresses that were tried.
        address: String,
        /// Why it failed.
        source: tokio_postgres::Error,
    },
}

impl ConnectError {
    /// `database` did not respond within `limit`.
    pub(crate) fn timeout(database: &DatabaseConfig, limit: Duration) -> Self {
        Self::Timeout { address: database.address(), limit }
    }

    /// `database` or the network refused the connection.
    pub(crate) fn refused(database: &DatabaseConfig, source: tokio_postgres::Error) -> Self {
        Self::Postgres { address: database.address(), source }
    }

    /// Whether the server responds and retrying does not help: its version, the user, the password, the database or the
    /// right to connect is wrong (SQLSTATE class 28, 3D000, 42501), or the driver lacks a password.
    pub(crate) fn is_about_the_configuration(&self) -> bool {
        let source = match self {
            Self::Postgres { source, .. } => source,
            Self::Unsupported { .. } | Self::Settings(_) => return true,
            Self::Timeout { .. } | Self::WrongRole { .. } => return false,
        };
        match source.code() {
            Some(code) => {
                code.code().starts_with("28")
                    || [SqlState::INVALID_CATALOG_NAME, SqlState::INSUFFICIENT_PRIVILEGE].contains(code)
            }
            // The driver does not publish the kinds of its errors.
            None => source.to_string().starts_with("invalid configuration"),
        }
    }
}

/// Why reading from the database failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nothing was received in time.
    #[error("the database sent nothing for {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// All of the read did not arrive in time.
    #[error(
        "the read was cancelled after {}, its limit; run `model-catalog check`, or raise CATALOG_DATABASE_TIMEOUT",
        humantime::format_duration(*.0)
    )]
    TooLong(Duration),
    /// The connection or the statement failed.
    #[error("cannot read")]
    Postgres(#[source] tokio_postgres::Error),
    /// The replay position of a standby is before an earlier one of the same session.
    #[error(
        "the standby's replay position went back from {} to {}: it was rewound, or the connection leads to another \
         standby",
        lsn(*.from), lsn(*.to)
    )]
    ReplayWentBack {
        /// The earlier position.
        from: u64,
        /// The position now.
        to: u64,
    },
    /// The view does not have the expected columns.
    #[error("{0}")]
    View(String),
    /// The view does not exist.
    #[error(
        "there is no view model_catalog.entries; define it, then call model_catalog.watch() for each table that it \
         reads and model_catalog.reload(), or run `model-catalog migrate` to create the default table and view"
    )]
    NoView(#[source] tokio_postgres::Error),
    /// The schema model_catalog does not exist, or is incomplete.
    #[error("this database is not migrated; run `model-catalog migrate`")]
    NotMigrated(#[source] tokio_postgres::Error),
}

impl ReadError {
    /// Whether the database works but its contents do not: an object is missing, forbidden or of another type
    /// (SQLSTATE classes 42 and 3F), or an expression of the view fails for some value (class 22).
    pub(crate) fn is_about_the_schema(&self) -> bool {
        match self {
            Self::View(_) | Self::NoView(_) | Self::NotMigrated(_) => true,
            Self::Postgres(error) => error.code().is_some_and(|code| ["42", "3F", "22"].contains(&&code.code()[..2])),
            Self::Timeout(_) | Self::TooLong(_) | Self::ReplayWentBack { .. } => false,
        }
    }

    /// Whether it took too long, by our limits or by the server's `statement_timeout`, which is the same.
    pub(crate) fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::TooLong(_) => true,
            Self::Postgres(error) => error.code() == Some(&SqlState::QUERY_CANCELED),
            _ => false,
        }
    }

    /// Whether Postgres reported it, so that the connection can still be used.
    pub(crate) fn is_reported_by_the_server(&self) -> bool {
        matches!(self, Self::Postgres(error) if error.as_db_error().is_some())
    }
}

impl From<tokio_postgres::Error> for ReadError {
    fn from(error: tokio_postgres::Error) -> Self {
        let undefined = error.as_db_error().filter(|error| *error.code() == SqlState::UNDEFINED_TABLE);
        // The message is in the server's language, but it quotes the name as the statement spells it.
        let names = |name: &str| undefined.is_some_and(|error| error.message().contains(name));
        match () {
            () if names("model_catalog.entries") => Self::NoView(error),
            () if names("model_catalog.") => Self::NotMigrated(error),
            () => Self::Postgres(error),
        }
    }
}

/// A WAL position as Postgres prints it.
fn lsn(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xffff_ffff)
}

/// Like [`chain`], with the detail. It may quote values of rows, and thereby secrets: only for statements that read
/// and write no models.
pub(crate) fn describe_with_detail(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| chain(error), |reported| postgres_message(reported, reported.detail()))
}

/// Waits for the database, for no longer than `limit`.
pub(super) async fn with_timeout<T>(
    limit: Duration,
    wait: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, ReadError> {
    Ok(tokio::time::timeout(limit, wait).await.map_err(|_| ReadError::Timeout(limit))??)
}

//! Errors of connecting to Postgres and of reading from it, and the timeout that every wait for it runs under.

use std::time::Duration;

use tokio_postgres::error::SqlState;

/// Why connecting failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No response in time.
    #[error("the database did not respond within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// Refused, by the network or by Postgres.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

/// Why reading from the database failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nothing was received in time.
    #[error("the database sent nothing for {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The connection or the statement failed.
    #[error("{}", describe(.0))]
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
    #[error("this database is not migrated: {}; run `model-catalog migrate`", describe(.0))]
    NotMigrated(#[source] tokio_postgres::Error),
}

impl ReadError {
    /// Whether the database works but its contents do not: an object is missing, forbidden or of another type
    /// (SQLSTATE class 42), or an expression of the view fails for some value (class 22).
    #[must_use]
    pub fn is_about_the_schema(&self) -> bool {
        match self {
            Self::View(_) | Self::NoView(_) | Self::NotMigrated(_) => true,
            Self::Postgres(error) => error.code().is_some_and(|code| ["42", "22"].contains(&&code.code()[..2])),
            Self::Timeout(_) | Self::ReplayWentBack { .. } => false,
        }
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

/// The error with its causes: the text of tokio-postgres alone is often no more than "db error".
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let hint = db.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        return format!("{}{hint} [{}]", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Waits for the database, for no longer than `limit`.
pub(super) async fn with_timeout<T>(
    limit: Duration,
    wait: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, ReadError> {
    Ok(tokio::time::timeout(limit, wait).await.map_err(|_| ReadError::Timeout(limit))??)
}

//! Connecting: the choice of the server, with or without TLS, and the settings that are passed.

use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::warn;

use super::statement_timeout;
use crate::base::error_chain::chain;
use crate::postgres::config::DatabaseConfig;
use crate::postgres::error::{ConnectError, NEWEST_MAJOR, OLDEST_MAJOR, major_version};
use crate::postgres::server_role;

/// A setting that is passed when connecting and read back afterwards: a pooler rejects it or loses it.
const DIRECT_OPTION: &str = "-c model_catalog.direct=yes";

/// A connection that is not driven yet.
pub(in crate::postgres) type DialedConnection =
    Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Connects to a server that has the role that the settings demand.
pub(super) async fn dial(
    database: &DatabaseConfig,
    driver: &Config,
) -> Result<(Client, DialedConnection), ConnectError> {
    // The driver's own timeout applies to the connect to each host, but not to TLS and authentication.
    let limit = database.timeout * (database.hosts() + 1);
    let connect = async {
        match database.role {
            None => dial_hosts(database, driver).await.map(Some),
            Some(role) => server_role::connect(database, driver, role).await,
        }
    };
    let connected = tokio::time::timeout(limit, connect).await.map_err(|_| ConnectError::timeout(database, limit))?;
    let connected = connected.map_err(|source| ConnectError::refused(database, source))?;
    let wrong_role = || ConnectError::WrongRole { address: database.address() };
    let (client, connection) = connected.ok_or_else(wrong_role)?;
    let version = connection.parameter("server_version").unwrap_or_default();
    match major_version(version) {
        Some(..OLDEST_MAJOR) => Err(ConnectError::Unsupported { address: database.address(), version: version.into() }),
        major => {
            if major > Some(NEWEST_MAJOR) {
                warn!(version, "PostgreSQL {NEWEST_MAJOR} is the newest version that this program is tested with");
            }
            Ok((client, connection))
        }
    }
}

/// Connects to the first of the hosts that accepts the connection.
pub(in crate::postgres) async fn dial_hosts(
    database: &DatabaseConfig,
    driver: &Config,
) -> Result<(Client, DialedConnection), tokio_postgres::Error> {
    match driver.connect(database.tls.clone()).await {
        // Like libpq: a server that accepts this user only without TLS says so after the TLS handshake.
        Err(error) if driver.get_ssl_mode() == SslMode::Prefer && is_rejected_by_hba(&error) => {
            let mut plain = driver.clone();
            plain.ssl_mode(SslMode::Disable);
            plain.connect(database.tls.clone()).await.map_err(|_| error)
        }
        connected => connected,
    }
}

/// Whether no line of pg_hba.conf allows the connection.
fn is_rejected_by_hba(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

/// Dials with [`DIRECT_OPTION`], or without it if a pooler rejects it.
pub(super) async fn dial_with_option(database: &DatabaseConfig) -> Result<(Client, DialedConnection), ConnectError> {
    let mut driver = database.driver.clone();
    // The role's own statement_timeout could end the statements that prepare the session.
    let timeout = statement_timeout(database.timeout);
    let options = driver.get_options().unwrap_or_default();
    driver.options(format!("{options} {DIRECT_OPTION} -c statement_timeout={timeout}"));
    match dial(database, &driver).await {
        // The message of PgBouncer since its first release; its SQLSTATE is that of any protocol violation.
        Err(ConnectError::Postgres { source, .. }) if chain(&source).contains("unsupported startup parameter") => {
            dial(database, &database.driver).await
        }
        dialed => dialed,
    }
}

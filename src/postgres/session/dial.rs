//! Connecting: the choice of the server, with or without TLS, and the settings that are passed.

use futures_util::future::{Either, select};
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Error, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::warn;

use super::statement_timeout;
use crate::base::error_chain::chain;
use crate::postgres::config::{DatabaseConfig, ServerRole, port};
use crate::postgres::error::{ConnectError, NEWEST_MAJOR, OLDEST_MAJOR, major_version};

/// A setting that is passed when connecting and read back afterwards: a pooler rejects it or loses it.
const DIRECT_OPTION: &str = "-c model_catalog.direct=yes";

/// A connection that is not driven yet.
pub(super) type DialedConnection = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

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
            Some(role) => dial_with_role(database, driver, role).await,
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
async fn dial_hosts(database: &DatabaseConfig, driver: &Config) -> Result<(Client, DialedConnection), Error> {
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
fn is_rejected_by_hba(error: &Error) -> bool {
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

/// Connects to the first host that has the role; `None` if all that can be reached have another one.
async fn dial_with_role(
    database: &DatabaseConfig,
    driver: &Config,
    role: ServerRole,
) -> Result<Option<(Client, DialedConnection)>, Error> {
    let mut order: Vec<usize> = (0..driver.get_hosts().len()).collect();
    if driver.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut order);
    }
    let (mut other, mut failed) = (None, None);
    for index in order {
        let (client, mut connection) = match dial_hosts(database, &with_host(driver, index)).await {
            Ok(dialed) => dialed,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        match (is_standby(&client, &mut connection).await, role) {
            (Ok(false), ServerRole::Primary) | (Ok(true), ServerRole::Standby | ServerRole::PreferStandby) => {
                return Ok(Some((client, connection)));
            }
            (Ok(_), ServerRole::PreferStandby) => other = other.or(Some((client, connection))),
            (Ok(_), _) => {}
            (Err(error), _) => failed = Some(error),
        }
    }
    match (other, failed) {
        (None, Some(error)) => Err(error),
        (other, _) => Ok(other),
    }
}

async fn is_standby(client: &Client, connection: &mut DialedConnection) -> Result<bool, Error> {
    let query = std::pin::pin!(client.query_typed_one("SELECT pg_catalog.pg_is_in_recovery()", &[]));
    match select(query, connection).await {
        Either::Left((row, _)) => row?.try_get(0),
        // The query reports that the connection was closed.
        Either::Right((ended, query)) => {
            ended?;
            query.await?.try_get(0)
        }
    }
}

/// The settings of `driver` with one of its hosts.
fn with_host(driver: &Config, index: usize) -> Config {
    let mut single = Config::new();
    match driver.get_hosts().get(index) {
        Some(Host::Tcp(name)) => _ = single.host(name),
        Some(Host::Unix(directory)) => _ = single.host_path(directory),
        None => {}
    }
    driver.get_hostaddrs().get(index).into_iter().for_each(|address| _ = single.hostaddr(*address));
    single.port(port(driver, index));
    driver.get_user().into_iter().for_each(|user| _ = single.user(user));
    driver.get_password().into_iter().for_each(|password| _ = single.password(password));
    driver.get_dbname().into_iter().for_each(|dbname| _ = single.dbname(dbname));
    driver.get_options().into_iter().for_each(|options| _ = single.options(options));
    driver.get_application_name().into_iter().for_each(|name| _ = single.application_name(name));
    driver.get_connect_timeout().into_iter().for_each(|timeout| _ = single.connect_timeout(*timeout));
    driver.get_tcp_user_timeout().into_iter().for_each(|timeout| _ = single.tcp_user_timeout(*timeout));
    driver.get_keepalives_interval().into_iter().for_each(|interval| _ = single.keepalives_interval(interval));
    driver.get_keepalives_retries().into_iter().for_each(|probes| _ = single.keepalives_retries(probes));
    single.keepalives(driver.get_keepalives()).keepalives_idle(driver.get_keepalives_idle());
    single.ssl_mode(driver.get_ssl_mode()).ssl_negotiation(driver.get_ssl_negotiation());
    single.channel_binding(driver.get_channel_binding()).load_balance_hosts(driver.get_load_balance_hosts());
    single
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

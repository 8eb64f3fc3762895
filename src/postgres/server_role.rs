//! The roles of servers that `target_session_attrs` can demand and the driver does not know.

use futures_util::future::{Either, select};
use tokio_postgres::config::{Host, LoadBalanceHosts};
use tokio_postgres::{Client, Config, Error};

use super::config::{DatabaseConfig, port};
use super::session::{DialedConnection, dial_hosts};

/// The role that a server must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRole {
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// In recovery if a host is, otherwise any.
    PreferStandby,
}

/// Connects to the first host that has the role; `None` if all that can be reached have another one.
pub(super) async fn connect(
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

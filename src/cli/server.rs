//! The settings of a server.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hyper::header::HeaderName;
use ipnet::IpNet;

use super::{RuleArgs, parse};
use crate::http::cors::Cors;

/// Where the server listens.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct ListenArgs {
    /// Address of the API.
    #[arg(long, env = "CATALOG_ADDR", default_value = "127.0.0.1:3000", value_name = "IP:PORT")]
    #[arg(value_parser = parse::socket_addr)]
    pub(crate) addr: SocketAddr,
    /// Address of /livez, /readyz and /metrics, served by a thread of their own; default: the address of the API.
    #[arg(long, env = "CATALOG_ADMIN_ADDR", value_name = "IP:PORT", value_parser = parse::socket_addr)]
    pub(crate) admin_addr: Option<SocketAddr>,
}

/// The server.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct ServerArgs {
    /// Where it listens.
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    /// Worker threads; default: one per core.
    #[arg(long, env = "CATALOG_THREADS", value_name = "NUMBER", value_parser = parse::number)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Time between two reads of the database when no notification arrives.
    #[arg(long, env = "CATALOG_POLL_INTERVAL", default_value = "10s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub(crate) poll_interval: Duration,
    /// Time between two reads of a hot standby, which sends no notifications.
    #[arg(long, env = "CATALOG_STANDBY_POLL_INTERVAL", default_value = "250ms", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub(crate) standby_poll_interval: Duration,
    /// Time between two audits, plus or minus 20 %. An audit is a full read that is compared with what is served.
    #[arg(long, env = "CATALOG_AUDIT_INTERVAL", default_value = "1h", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub(crate) audit_interval: Duration,
    /// File that the catalog is saved to, so that the next start does not need the database; default: none.
    #[arg(long, env = "CATALOG_SNAPSHOT_FILE", value_name = "PATH")]
    pub(crate) snapshot_file: Option<PathBuf>,
    /// Name of this replica in the view model_catalog.fleet, up to 16 ASCII characters; default: the application_name
    /// in DATABASE_URL, otherwise the host name, with the port if that is not 3000.
    #[arg(long, env = "CATALOG_REPLICA_NAME", value_name = "NAME", value_parser = crate::loader::replica::parse_name)]
    pub(crate) replica_name: Option<String>,
    /// Maximum number of ids in a batch.
    #[arg(long, env = "CATALOG_MAX_BATCH_IDS", default_value = "1000", value_name = "NUMBER")]
    #[arg(value_parser = parse::number)]
    pub(crate) max_batch_ids: NonZeroUsize,
    /// Maximum request body size in bytes.
    #[arg(long, env = "CATALOG_MAX_BODY_BYTES", default_value = "1048576", value_name = "BYTES")]
    #[arg(value_parser = parse::number)]
    pub(crate) max_body_bytes: NonZeroUsize,
    /// Maximum number of connections served at a time, by all threads together; further ones wait.
    #[arg(long, env = "CATALOG_MAX_CONNECTIONS", default_value = "16384", value_name = "NUMBER")]
    #[arg(value_parser = parse::number)]
    pub(crate) max_connections: NonZeroUsize,
    /// Maximum number of connections per client address, an IPv6 /64 counting as one; further ones receive 429. Clients
    /// behind a load balancer or NAT share an address. Default: no limit.
    #[arg(long, env = "CATALOG_MAX_CONNECTIONS_PER_ADDR", value_name = "NUMBER", value_parser = parse::number)]
    pub(crate) max_connections_per_addr: Option<NonZeroUsize>,
    /// Maximum number of requests per second and client, an IPv6 /64 counting as one; further ones receive 429.
    /// Default: no limit.
    #[arg(long, env = "CATALOG_RATE_LIMIT", value_name = "NUMBER", value_parser = parse::rate)]
    pub(crate) rate_limit: Option<NonZeroU32>,
    /// Maximum number of requests in a burst of one client; default: the number per second.
    #[arg(long, env = "CATALOG_RATE_BURST", value_name = "NUMBER", value_parser = parse::rate)]
    pub(crate) rate_burst: Option<NonZeroU32>,
    /// Comma-separated networks of load balancers. Their connections are not limited per address, and the header below
    /// names the clients of their requests.
    #[arg(long, env = "CATALOG_TRUSTED_PROXIES", value_name = "LIST", value_delimiter = ',')]
    #[arg(value_parser = parse::network)]
    pub(crate) trusted_proxies: Vec<IpNet>,
    /// Header in which load balancers append the address of the client; ignored on other connections.
    #[arg(long, env = "CATALOG_CLIENT_ADDR_HEADER", default_value = "x-forwarded-for", value_name = "NAME")]
    #[arg(value_parser = parse::header_name)]
    pub(crate) client_addr_header: HeaderName,
    /// Comma-separated origins whose pages may read responses, or `*`. Default: none.
    #[arg(long, env = "CATALOG_CORS_ALLOW_ORIGIN", value_name = "LIST", value_parser = parse::cors)]
    pub(crate) cors_allow_origin: Option<Cors>,
    /// Logs API requests that take at least this long, and those that fail with a status of 500 or more, with their
    /// traceparent and x-request-id. Default: none.
    #[arg(long, env = "CATALOG_LOG_SLOW_REQUESTS", value_name = "DURATION", value_parser = parse::duration_or_zero)]
    pub(crate) log_slow_requests: Option<Duration>,
    /// Maximum memory in bytes for request bodies and unsent responses of all clients together.
    #[arg(long, env = "CATALOG_MAX_BUFFER_BYTES", default_value = "268435456", value_name = "BYTES")]
    #[arg(value_parser = parse::number)]
    pub(crate) max_buffer_bytes: NonZeroUsize,
    /// Maximum time to receive a request and send its response, counted from its first byte.
    #[arg(long, env = "CATALOG_REQUEST_TIMEOUT", default_value = "30s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub(crate) request_timeout: Duration,
    /// Maximum time between two requests on a connection.
    #[arg(long, env = "CATALOG_IDLE_TIMEOUT", default_value = "75s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub(crate) idle_timeout: Duration,
    /// After SIGTERM, time to keep serving while not ready, so that load balancers take this server out of rotation.
    #[arg(long, env = "CATALOG_DRAIN_GRACE", default_value = "5s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration_or_zero)]
    pub(crate) drain_grace: Duration,
    /// After the grace period, maximum time for requests in flight to finish.
    #[arg(long, env = "CATALOG_DRAIN_TIMEOUT", default_value = "10s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration_or_zero)]
    pub(crate) drain_timeout: Duration,
    /// The rules for rows.
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
}

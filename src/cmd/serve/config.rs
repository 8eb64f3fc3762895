//! The settings of a server, grouped by the parts that use them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::shutdown::ShutdownTimes;
use crate::cli::ServerArgs;
use crate::http::Limits;
use crate::http::client_limits::{self, ClientLimits, RateLimit};
use crate::http::connection::Timeouts;
use crate::http::cors::Cors;
use crate::loader::{self, replica, upstream};
use crate::postgres::config::DatabaseConfig;

/// A shorter limit would report every restart of a database.
const MIN_STALLED_AFTER: Duration = Duration::from_secs(30);

/// The settings of the loader that follows the source.
pub(crate) enum SourceSettings {
    /// A database.
    Database(Box<loader::LoaderSettings>),
    /// Other servers, or files.
    Upstream(upstream::UpstreamSettings),
}

/// The settings of a server.
pub(crate) struct ServerConfig {
    pub(super) loader: SourceSettings,
    pub(super) snapshot_file: Option<PathBuf>,
    pub(super) stalled_after: Duration,
    pub(super) limits: Limits,
    pub(super) clients: Arc<ClientLimits>,
    pub(super) cors: Option<Cors>,
    pub(super) log_slow: Option<Duration>,
    pub(super) max_buffer_bytes: usize,
    pub(super) timeouts: Timeouts,
    pub(super) shutdown: ShutdownTimes,
}

impl ServerConfig {
    /// Serves a database. `address` is that of the API; the default name of the replica depends on it.
    pub(crate) fn of_database(args: &ServerArgs, database: DatabaseConfig, address: SocketAddr) -> Self {
        let intervals = args.poll_interval.max(args.standby_poll_interval).saturating_mul(3);
        let stalled_after = intervals.saturating_add(database.timeout);
        let default_name = || replica::default_name(database.driver.get_application_name(), address);
        let settings = loader::LoaderSettings {
            replica: args.replica_name.clone().unwrap_or_else(default_name),
            database,
            poll_interval: args.poll_interval,
            standby_poll_interval: args.standby_poll_interval,
            audit_interval: args.audit_interval,
            rules: args.rules.rules(),
        };
        Self::new(args, SourceSettings::Database(Box::new(settings)), stalled_after)
    }

    /// Follows an upstream. It may hold back a response, twice, and its own catalog may have an age.
    pub(crate) fn of_upstream(args: &ServerArgs, settings: upstream::UpstreamSettings) -> Self {
        let stalled_after = settings.interval.saturating_mul(3).saturating_add(upstream::MAX_AGE);
        Self::new(args, SourceSettings::Upstream(settings), stalled_after)
    }

    /// `stalled_after` is the longest time without a sync that the settings of the source explain.
    fn new(args: &ServerArgs, loader: SourceSettings, stalled_after: Duration) -> Self {
        let clients = client_limits::ClientSettings {
            max_connections: args.max_connections_per_addr,
            rate: args.rate_limit.map(|limit| RateLimit::new(limit, args.rate_burst.unwrap_or(limit))),
            trusted: args.trusted_proxies.clone(),
            header: Some(args.client_addr_header.clone()),
        };
        Self {
            loader,
            snapshot_file: args.snapshot_file.clone(),
            stalled_after: stalled_after.max(MIN_STALLED_AFTER),
            limits: Limits { max_batch_ids: args.max_batch_ids.get(), max_body_bytes: args.max_body_bytes.get() },
            clients: Arc::new(ClientLimits::new(clients)),
            cors: args.cors_allow_origin.clone(),
            log_slow: args.log_slow_requests,
            max_buffer_bytes: args.max_buffer_bytes.get(),
            timeouts: Timeouts { request: args.request_timeout, idle: args.idle_timeout },
            shutdown: ShutdownTimes { grace: args.drain_grace, drain: args.drain_timeout },
        }
    }
}

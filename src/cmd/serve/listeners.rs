//! The sockets that a server listens on.

use std::io;
use std::net::{SocketAddr, TcpListener};

use crate::cli::ServerArgs;
use crate::http::fd_limit::{self, ConnectionLimits};
use crate::http::server;

/// An address that the server cannot listen on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address}; set {variable} or {flag} to another address, or stop the process that uses this one"
)]
struct ListenError {
    address: SocketAddr,
    variable: &'static str,
    flag: &'static str,
    source: io::Error,
}

/// The bound sockets, and how many connections they may accept.
pub(crate) struct Listeners {
    /// One socket per worker.
    pub(super) api: Vec<TcpListener>,
    pub(super) admin: Option<TcpListener>,
    pub(super) limits: ConnectionLimits,
}

impl Listeners {
    /// Binds the addresses of the API and of the admin routes.
    pub(crate) fn bind(args: &ServerArgs) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let threads = args.threads.or_else(|| std::thread::available_parallelism().ok());
        let threads = threads.map_or(1, |threads| threads.get());
        let limits = fd_limit::allocate(args.max_connections.get(), threads)?;
        let bind = |address, count, variable, flag| {
            server::bind(address, count).map_err(|source| ListenError { address, variable, flag, source })
        };
        let api = bind(args.listen.addr, threads, "CATALOG_ADDR", "--addr")?;
        let admin = args.listen.admin_addr.map(|address| bind(address, 1, "CATALOG_ADMIN_ADDR", "--admin-addr"));
        Ok(Self { api, admin: admin.transpose()?.and_then(|mut sockets| sockets.pop()), limits })
    }

    /// The address of the API.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.api[0].local_addr()
    }
}

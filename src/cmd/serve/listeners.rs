//! The sockets that a server listens on.

use std::io;
use std::net::{SocketAddr, TcpListener};

use crate::cli::ServerArgs;
use crate::http::fd_limit::{self, ConnectionLimits};
use crate::http::server::{self, BindError};

/// An address that the server cannot listen on.
#[derive(Debug, thiserror::Error)]
#[error("{source}; set {variable} or {flag} to another address, or stop the process that uses this one")]
pub struct ListenError {
    variable: &'static str,
    flag: &'static str,
    source: BindError,
}

/// The bound sockets, and how many connections they may accept.
pub struct Listeners {
    /// One socket per worker.
    pub(super) api: Vec<TcpListener>,
    pub(super) admin: Option<TcpListener>,
    pub(super) limits: ConnectionLimits,
}

impl Listeners {
    /// Binds the addresses of the API and of the admin routes.
    ///
    /// # Errors
    /// An address or enough file descriptors could not be allocated.
    pub fn bind(args: &ServerArgs) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let threads = args.threads.or_else(|| std::thread::available_parallelism().ok());
        let threads = threads.map_or(1, |threads| threads.get());
        let limits = fd_limit::allocate(args.max_connections.get(), threads)?;
        let in_use = |variable, flag| move |source| ListenError { variable, flag, source };
        let api = server::bind(args.listen.addr, threads).map_err(in_use("CATALOG_ADDR", "--addr"))?;
        let admin = args.listen.admin_addr.map(|address| server::bind(address, 1)).transpose();
        let admin = admin.map_err(in_use("CATALOG_ADMIN_ADDR", "--admin-addr"))?;
        Ok(Self { api, admin: admin.and_then(|mut sockets| sockets.pop()), limits })
    }

    /// The address of the API.
    ///
    /// # Errors
    /// The system does not tell it.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.api[0].local_addr()
    }
}

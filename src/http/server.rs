//! Sockets: listen, accept, speak HTTP/1.1, drain.
//!
//! Each serving thread has a socket (SO_REUSEPORT), a runtime and counters of its own, so threads share nothing but
//! the snapshot.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, watch};

use super::{Api, Handler, Routes};
use crate::metrics::Traffic;

/// Connections the kernel holds until they are accepted, for boot storms; it takes no more than `net.core.somaxconn`.
const BACKLOG: u32 = 65_535;
/// A client has this long for a request's head; hyper counts the idle time before it too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after an accept that failed for want of descriptors or memory: they come back as connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; choose another address or end what uses it")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Opens `count` sockets on one address; with port 0 the system chooses one port for all.
///
/// # Errors
/// The address is in use or not ours.
pub fn bind(address: SocketAddr, count: usize) -> Result<Vec<std::net::TcpListener>, BindError> {
    let failed = |source| BindError { address, source };
    // SO_REUSEPORT would silently share the port with another process of this user; a first socket without it does
    // not. Port 0 never collides.
    if address.port() != 0 && count > 1 {
        open(address, false).map_err(failed)?;
    }
    let first = open(address, count > 1).map_err(failed)?;
    let address = first.local_addr().map_err(failed)?;
    let mut sockets = vec![first];
    while sockets.len() < count {
        sockets.push(open(address, true).map_err(failed)?);
    }
    Ok(sockets)
}

fn open(address: SocketAddr, share: bool) -> io::Result<std::net::TcpListener> {
    // A tokio socket can only start to listen inside a runtime, so one is lent for the moment.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(share)?;
    // Linux hands this down to every accepted socket: one system call less a connection.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// What the serving threads are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Accept and answer.
    Serve,
    /// Accept no more, finish what is in flight.
    Drain,
}

/// Serves one socket until the phase is [`Phase::Drain`] and the last connection has ended.
///
/// # Errors
/// The socket could not be handed to the runtime.
pub async fn serve(
    socket: std::net::TcpListener,
    api: Arc<Api>,
    routes: Routes,
    max_connections: usize,
    phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(socket)?;
    let handler = Arc::new(Handler::new(api, routes));
    let connections = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);

    let mut watched = phase.clone();
    let mut draining = std::pin::pin!(async move { drop(watched.wait_for(|phase| *phase == Phase::Drain).await) });
    loop {
        // At the cap nothing more is accepted: the kernel's queue holds the rest until a connection ends.
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (stream, permit) = tokio::select! {
            biased;
            accepted = accepted => match accepted {
                (Ok((stream, _)), permit) => (stream, permit),
                (Err(error), _) => {
                    accept_failed(&error).await;
                    continue;
                }
            },
            () = &mut draining => break,
        };
        let handler = Arc::clone(&handler);
        let traffic = Connected::new(handler.traffic());
        let service = service_fn(move |request| {
            let handler = Arc::clone(&handler);
            async move { Ok::<_, Infallible>(handler.handle(request).await) }
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // Clients that break off are their own affair; nothing is left to be done for them.
            let _ = connection.await;
            drop((permit, traffic));
        });
    }
    drop(listener);
    graceful.shutdown().await;
    // The other end waits for this.
    drop(phase);
    Ok(())
}

/// Waits where a retry at once would spin; a connection that was gone before it was accepted needs no wait.
async fn accept_failed(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        tracing::warn!(%error, "a connection could not be accepted, trying again");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Counts a connection for as long as it lives.
struct Connected(Arc<Traffic>);

impl Connected {
    fn new(traffic: Arc<Traffic>) -> Self {
        traffic.connection_opened();
        Self(traffic)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}

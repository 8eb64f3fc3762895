//! Sockets: listen, accept, drain.
//!
//! Each worker thread has a listener (SO_REUSEPORT), a runtime and counters of its own, so threads share nothing but
//! the snapshot.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client_limits::{ConnectionPermit, Peer, reject_connection};
use super::connection::{Connection, Timeouts, serve_connection};
use super::connection_limit::{ConnectionLimit, Place};
use super::{Api, Handler, Routes, handlers};

/// Connections that the kernel queues until they are accepted, for boot storms; `net.core.somaxconn` caps it.
const BACKLOG: u32 = 65_535;
/// Connections accepted in a row before open ones get their turn.
const ACCEPT_BATCH: usize = 16;
/// Pause after an accept that failed for lack of descriptors or memory: connections that end free some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// hyper's buffer for each connection. A larger request head is refused with 431.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// While a listener defers, connections are handed over when their first bytes have arrived, or after this many seconds
/// without any. In a storm that saves one of two wake-ups: a third of the cost of a connection.
const DEFER_SECONDS: libc::c_int = 1;
/// A listener without a new connection for this long no longer defers.
const DEFER_TIME: Duration = Duration::from_millis(20);

/// Opens `count` listeners on one address; with port 0 the system chooses one port for all.
pub(crate) fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    // SO_REUSEPORT would silently share the port with another process of this user; a first socket without it does
    // not. It never listens, because connections in its queue would be reset. Port 0 never collides.
    if address.port() != 0 && count > 1 {
        socket(address, false)?;
    }
    let first = open(address, count > 1)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    while listeners.len() < count {
        listeners.push(open(address, true)?);
    }
    Ok(listeners)
}

fn open(address: SocketAddr, reuse_port: bool) -> io::Result<std::net::TcpListener> {
    // A tokio socket can only start to listen inside of a runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    socket(address, reuse_port)?.listen(BACKLOG)?.into_std()
}

/// A bound socket that does not listen yet.
fn socket(address: SocketAddr, reuse_port: bool) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(reuse_port)?;
    // Accepted sockets inherit it on Linux: one system call less per connection.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    Ok(socket)
}

#[allow(unsafe_code, reason = "no crate has a safe way to set this option")]
fn defer_accept(socket: &impl AsRawFd, seconds: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let value = (&raw const seconds).cast();
    // SAFETY: the descriptor is open as long as `socket` lives, and `value` points to the `length` bytes of `seconds`.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, length) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Serves one listener until `shutdown` is cancelled and the last of its connections has ended. The threads of one
/// address share a `limit`. Takes the listener when it stops accepting: after a panic the caller can serve again with
/// the connections that are queued. Without a listener, returns at once.
pub(crate) async fn serve(
    socket: &mut Option<std::net::TcpListener>,
    api: Arc<Api>,
    routes: Routes,
    limit: ConnectionLimit,
    timeouts: Timeouts,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let Some(listener) = socket.as_ref() else { return Ok(()) };
    let mut listener = Listener::new(listener.try_clone()?)?;
    let mut http = http1::Builder::new();
    // Connections have a deadline of their own.
    http.header_read_timeout(None);
    // A client that has sent its last request still waits for the response. Without this hyper also reads ahead while
    // a request is handled, for which it needs a second buffer.
    http.half_close(true);
    http.max_buf_size(MAX_HEAD_BYTES);
    http.max_header_size(MAX_HEAD_BYTES);
    let acceptor = Arc::new(Acceptor {
        handler: Arc::new(Handler::new(api, routes)),
        http,
        limit,
        connections: TaskTracker::new(),
        timeouts,
        // A token of the thread's own: connections check it without contention.
        shutdown: shutdown.child_token(),
    });
    loop {
        tokio::select! {
            accepted = acceptor.accept(&mut listener) => {
                if let Err(error) = accepted {
                    accept_failed(&error).await;
                }
                tokio::task::yield_now().await;
            }
            () = shutdown.cancelled() => break,
        }
    }
    acceptor.accept_remaining(&listener);
    drop((listener, socket.take()));
    acceptor.connections.close();
    acceptor.connections.wait().await;
    Ok(())
}

/// A listener whose connections are not registered with the runtime yet. tokio's own would register them, and its way
/// to wait for any descriptor is `unsafe`, so this one is waited for as if it were a stream; epoll makes no difference.
///
/// It defers connections as long as requests are answered between one accept and the next: a thread that is busy saves
/// wake-ups. A thread that has nothing to do accepts at once: thousands that connect before they send would fill the
/// kernel's queue of deferred connections, and those beyond it try again a second later.
struct Listener {
    socket: TcpStream,
    defers: bool,
    /// Lookups of the thread when it last accepted.
    lookups: u64,
}

impl Listener {
    fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        // It may have served before.
        defer_accept(&listener, 0)?;
        Ok(Self { socket: TcpStream::from_std(OwnedFd::from(listener).into())?, defers: false, lookups: 0 })
    }

    /// Waits until a connection may be queued.
    async fn readable(&mut self) -> io::Result<()> {
        if self.defers {
            if let Ok(readable) = timeout(DEFER_TIME, self.socket.readable()).await {
                return readable;
            }
            self.set_defers(false)?;
        }
        self.socket.readable().await
    }

    fn set_defers(&mut self, defers: bool) -> io::Result<()> {
        if defers != self.defers {
            defer_accept(&self.socket, if defers { DEFER_SECONDS } else { 0 })?;
            self.defers = defers;
        }
        Ok(())
    }

    /// A connection that is queued already, or `WouldBlock`.
    fn try_accept(&self) -> io::Result<std::net::TcpStream> {
        self.socket.try_io(Interest::READABLE, || self.accept_now())
    }

    fn accept_now(&self) -> io::Result<std::net::TcpStream> {
        Ok(rustix::net::accept_with(&self.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?.into())
    }
}

/// Turns accepted sockets into tasks.
struct Acceptor {
    handler: Arc<Handler>,
    http: http1::Builder,
    limit: ConnectionLimit,
    /// The tasks of this thread's connections.
    connections: TaskTracker,
    timeouts: Timeouts,
    shutdown: CancellationToken,
}

impl Acceptor {
    /// Waits for a connection, then for a place for it, and takes some of those queued behind it. In this order, so
    /// that a thread without connections keeps no place from the others.
    async fn accept(self: &Arc<Self>, listener: &mut Listener) -> io::Result<()> {
        listener.readable().await?;
        let lookups = self.handler.metrics().lookups_so_far();
        listener.set_defers(lookups != listener.lookups)?;
        listener.lookups = lookups;
        for number in 0..ACCEPT_BATCH {
            let place = match self.limit.try_place() {
                None if number == 0 => self.limit.place().await,
                place => place,
            };
            let Some(place) = place else { break };
            match listener.try_accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                stream => self.admit(stream?, place),
            }
        }
        Ok(())
    }

    /// Accepts all queued connections: closing the listener would reset them.
    fn accept_remaining(self: &Arc<Self>, listener: &Listener) {
        // Bounded, for new ones may come as fast as they are taken.
        for _ in 0..BACKLOG {
            let Some(place) = self.limit.try_place() else { break };
            let Ok(stream) = listener.accept_now() else { break };
            self.admit(stream, place);
        }
    }

    fn admit(self: &Arc<Self>, stream: std::net::TcpStream, place: Place) {
        let (mut peer, mut client) = (None, None);
        // Admin connections have no per-client limits.
        if self.handler.has_api() {
            let limits = self.handler.client_limits();
            // Without a peer address the client has disconnected.
            let Ok(address) = limits.peer(&stream) else { return };
            peer = address;
            let Ok(permit) = limits.admit(peer) else { return reject_connection(stream) };
            client = permit;
        }
        match place {
            Place::Served(permit) => self.serve(stream, peer, client, permit, false),
            Place::Waiting(permit) => {
                let acceptor = Arc::clone(self);
                // An error is that of a client that has disconnected.
                drop(self.connections.spawn(async move { acceptor.wait(stream, peer, client, permit).await }));
            }
        }
    }

    /// Serves a connection over the limit in its turn, or one request of it before.
    async fn wait(
        &self,
        stream: std::net::TcpStream,
        peer: Peer,
        client: Option<ConnectionPermit>,
        waiting: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        let stream = TcpStream::from_std(stream)?;
        let (permit, only_one) = tokio::select! {
            biased;
            Some(permit) = self.limit.turn() => (permit, false),
            overtakes = self.overtakes(&stream) => overtakes.map(|()| (waiting, true))?,
        };
        // Its readiness may have been cleared, so it is registered anew when it has to wait.
        self.serve(stream.into_std()?, peer, client, permit, only_one);
        Ok(())
    }

    /// Waits until the connection's first request can be answered before its turn, as its last one: a request of an
    /// operator; or any, if the client has closed its sending side. Most of these clients are gone, and must not keep
    /// the place of others.
    async fn overtakes(&self, stream: &TcpStream) -> io::Result<()> {
        let mut start = [0; handlers::ops::LONGEST_START];
        let length = timeout(self.timeouts.request, stream.peek(&mut start)).await??;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if handlers::ops::is_start(&start[..length]) {
            return Ok(());
        }
        while !stream.ready(Interest::READABLE).await?.is_read_closed() {
            // The next event is more bytes, or the end.
            let _ = stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        Ok(())
    }

    fn serve(
        &self,
        stream: std::net::TcpStream,
        peer: Peer,
        client: Option<ConnectionPermit>,
        permit: OwnedSemaphorePermit,
        only_one: bool,
    ) {
        let connection = Connection::new(Arc::clone(&self.handler), peer, client, permit, self.timeouts, only_one);
        drop(self.connections.spawn(serve_connection(&self.http, stream, connection, self.shutdown.clone())));
    }
}

/// Waits before a retry that would spin. After an error of a single connection, the next one is accepted at once.
async fn accept_failed(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        tracing::warn!(%error, "cannot accept a connection, retrying");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> io::Result<(Listener, SocketAddr)> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((Listener::new(listener)?, address))
    }

    #[tokio::test]
    async fn silent_connection_is_accepted_at_once_unless_the_listener_defers() -> io::Result<()> {
        let (mut listener, address) = listener()?;
        let _silent = std::net::TcpStream::connect(address)?;
        listener.accept_now()?;
        listener.set_defers(true)?;
        let _deferred = std::net::TcpStream::connect(address)?;
        let accepted = listener.accept_now().map(drop).map_err(|error| error.kind());
        assert_eq!(accepted, Err(io::ErrorKind::WouldBlock));
        Ok(())
    }

    #[tokio::test]
    async fn listener_without_new_connections_stops_deferring() -> io::Result<()> {
        let (mut listener, address) = listener()?;
        listener.set_defers(true)?;
        assert!(timeout(2 * DEFER_TIME, listener.readable()).await.is_err());
        let _silent = std::net::TcpStream::connect(address)?;
        listener.accept_now()?;
        Ok(())
    }
}

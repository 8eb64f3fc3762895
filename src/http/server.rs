//! Sockets: listen, accept, speak HTTP/1.1, drain.
//!
//! Each serving thread has a socket (SO_REUSEPORT), a runtime and counters of its own, so threads share nothing but
//! the snapshot.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::net::SocketFlags;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use super::clients::{Admission, Clients, Guest, refuse};
use super::connections::{Connections, Place, Timeouts};
use super::plain::{End, Plain};
use super::{Api, Handler, Routes};

/// Connections the kernel holds until they are accepted, for boot storms; it takes no more than `net.core.somaxconn`.
const BACKLOG: u32 = 65_535;
/// Connections taken one after the other before those that are open get their turn.
const ACCEPTS_AT_ONCE: usize = 16;
/// Pause after an accept that failed for want of descriptors or memory: they come back as connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes that the library holds of one connection at most. A head that is larger is answered 431.
const LIBRARY_BUFFER: usize = 32 * 1024;

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
    defer_accept(&socket)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Has connections handed over when their first bytes are there, or after this many seconds without any. In a storm
/// that saves one of two wake-ups and most registrations: a third of what a connection costs.
const DEFER_SECONDS: libc::c_int = 1;

#[allow(unsafe_code, reason = "no library has a safe way to set this option")]
fn defer_accept(socket: &TcpSocket) -> io::Result<()> {
    let (seconds, length) = (DEFER_SECONDS, size_of::<libc::c_int>() as libc::socklen_t);
    let value = (&raw const seconds).cast();
    // SAFETY: the descriptor is open as long as `socket` lives, and `value` points to the `length` bytes of `seconds`.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, length) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
    timeouts: Timeouts,
    phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let listener = Listener::new(socket)?;
    let handler = Arc::new(Handler::new(api, routes));
    let connections = Arc::new(Connections::new(max_connections, timeouts));
    let mut http = http1::Builder::new();
    // The connections have their own time limit.
    http.header_read_timeout(None);
    // A client that has said all it will is still waiting for its answer.
    http.half_close(true);
    http.max_buf_size(LIBRARY_BUFFER);
    http.max_header_size(LIBRARY_BUFFER);
    let clients = Arc::clone(&handler.api.clients);
    let reception = Reception { handler, clients, connections: Arc::clone(&connections), http: Arc::new(http) };

    let mut sweep = tokio::time::interval(timeouts.sweep());
    let mut watched = phase.clone();
    let mut draining = std::pin::pin!(async move { drop(watched.wait_for(|phase| *phase == Phase::Drain).await) });
    loop {
        // At the cap nothing more is accepted: the kernel's queue holds the rest until a connection ends.
        let accepted = async {
            connections.room().await;
            listener.accept().await
        };
        tokio::select! {
            accepted = accepted => {
                if let Err(error) = accepted.and_then(|stream| reception.welcome_all(&listener, stream)) {
                    accept_failed(&error).await;
                }
                tokio::task::yield_now().await;
            }
            _ = sweep.tick() => connections.sweep(),
            () = &mut draining => break,
        }
    }
    reception.welcome_the_last(&listener);
    drop(listener);
    let mut drained = std::pin::pin!(connections.drain());
    loop {
        tokio::select! {
            () = &mut drained => break,
            _ = sweep.tick() => connections.sweep(),
        }
    }
    // The other end waits for this.
    drop(phase);
    Ok(())
}

/// A socket whose connections are not registered with the runtime yet. The runtime's own listener would register them,
/// and its way to wait for any descriptor is `unsafe`; so the socket is waited for as if it were a stream, which makes
/// no difference to epoll.
struct Listener(TcpStream);

impl Listener {
    fn new(socket: std::net::TcpListener) -> io::Result<Self> {
        TcpStream::from_std(OwnedFd::from(socket).into()).map(Self)
    }

    /// Waits for a connection.
    async fn accept(&self) -> io::Result<std::net::TcpStream> {
        self.0.async_io(Interest::READABLE, || self.accept_now()).await
    }

    /// A connection that waits already, or `WouldBlock`.
    fn try_accept(&self) -> io::Result<std::net::TcpStream> {
        self.0.try_io(Interest::READABLE, || self.accept_now())
    }

    fn accept_now(&self) -> io::Result<std::net::TcpStream> {
        Ok(rustix::net::accept_with(&self.0, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?.into())
    }
}

/// What new connections are received with.
struct Reception {
    handler: Arc<Handler>,
    clients: Arc<Clients>,
    connections: Arc<Connections>,
    http: Arc<http1::Builder>,
}

impl Reception {
    /// Begins with `first` and some of those that wait behind it.
    fn welcome_all(&self, listener: &Listener, first: std::net::TcpStream) -> io::Result<()> {
        self.welcome(first)?;
        for _ in 1..ACCEPTS_AT_ONCE {
            if self.connections.is_full() {
                break;
            }
            match listener.try_accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                accepted => self.welcome(accepted?)?,
            }
        }
        Ok(())
    }

    /// Begins with all that wait: what the kernel has taken would be reset with its queue.
    fn welcome_the_last(&self, listener: &Listener) {
        // Not without end, where new ones come as fast as they are taken.
        for _ in 0..BACKLOG {
            if self.connections.is_full() || listener.accept_now().and_then(|stream| self.welcome(stream)).is_err() {
                break;
            }
        }
    }

    /// Answers what is there already; what is left of the connection becomes a task.
    fn welcome(&self, stream: std::net::TcpStream) -> io::Result<()> {
        // Operators are never turned away.
        let (peer, guest) = if self.handler.has_api() {
            // Without a peer the client has gone already.
            let Ok(peer) = self.clients.peer(&stream) else { return Ok(()) };
            match self.clients.admit(peer) {
                Admission::Free => (peer, None),
                Admission::Counted(guest) => (peer, Some(guest)),
                Admission::Refused => {
                    refuse(stream);
                    return Ok(());
                }
            }
        } else {
            (None, None)
        };
        // Counted before it can have an answer: who has one and looks finds the connection counted.
        let opened = Opened::new(&self.handler);
        // A panic is the end of this connection alone, as it is in a task.
        let greeted = catch_unwind(AssertUnwindSafe(|| Plain::greet(stream, peer, &self.handler)));
        if let Some(plain) = greeted.unwrap_or(Ok(None))? {
            let conversation = Conversation::new(opened, &self.connections, guest);
            drop(tokio::spawn(converse(Arc::clone(&self.http), plain, conversation)));
        }
        Ok(())
    }
}

/// Who answers a connection, which counts as open as long as this lives.
struct Opened(Arc<Handler>);

impl Opened {
    fn new(handler: &Arc<Handler>) -> Self {
        handler.traffic().connection_opened();
        Self(Arc::clone(handler))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.traffic().connection_closed();
    }
}

/// A connection and who answers it: one pointer for each request to take along.
struct Conversation {
    opened: Opened,
    place: Place,
    /// Where the client's connections are counted.
    _guest: Option<Guest>,
    /// With the library: whether the next byte begins a request.
    resting: AtomicBool,
}

impl Conversation {
    fn new(opened: Opened, connections: &Arc<Connections>, guest: Option<Guest>) -> Arc<Self> {
        Arc::new(Self { opened, place: connections.enter(), _guest: guest, resting: AtomicBool::new(false) })
    }
}

/// Answers a connection: plainly as long as that will do, then with the library.
async fn converse(http: Arc<http1::Builder>, mut plain: Plain, conversation: Arc<Conversation>) {
    let Conversation { opened: Opened(handler), place, .. } = &*conversation;
    plain.settle(place);
    if handler.has_api() {
        let end = place.drive(poll_fn(|context| plain.poll(context, handler, place)), |_| {}).await;
        if !matches!(end, Some(End::Library)) {
            return;
        }
    }
    // Boxed, so that a connection that stays plain needs no room for it.
    Box::pin(converse_by_library(&http, plain, &conversation)).await;
}

async fn converse_by_library(http: &http1::Builder, plain: Plain, conversation: &Arc<Conversation>) {
    let peer = plain.peer();
    let (stream, unread) = plain.into_parts();
    let (reader, writer) = stream.into_split();
    let reader = Reader { unread: unread.into(), reader, conversation: Arc::clone(conversation) };
    let stream = tokio::io::join(reader, writer);
    let answering = Arc::clone(conversation);
    let service = service_fn(move |request| {
        let conversation = Arc::clone(&answering);
        async move {
            let answer = conversation.opened.0.handle(request, peer).await;
            conversation.place.rests();
            conversation.resting.store(true, Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http.serve_connection(TokioIo::new(stream), service);
    // Clients that break off are their own affair; nothing is left to be done for them.
    let _ = conversation.place.drive(connection, |connection| connection.graceful_shutdown()).await;
}

/// What the library reads from: it notes when a request begins to come in. The library would tell only when a head is
/// complete, too late for a client that never completes one.
struct Reader {
    /// What was read before; once the library has it, it holds no memory.
    unread: Bytes,
    reader: OwnedReadHalf,
    conversation: Arc<Conversation>,
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let count = self.unread.len().min(into.remaining());
            into.put_slice(&self.unread.split_to(count));
            if self.unread.is_empty() {
                self.unread = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, into))?;
        let Conversation { place, resting, .. } = &*self.conversation;
        if into.filled().len() > before && resting.swap(false, Relaxed) {
            place.begins();
        }
        Poll::Ready(Ok(()))
    }
}

/// Waits where a retry at once would spin; a connection that was gone before it was accepted needs no wait.
async fn accept_failed(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        tracing::warn!(%error, "a connection could not be accepted, trying again");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

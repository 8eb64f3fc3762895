//! Sockets: listen, accept, speak HTTP/1.1, drain.
//!
//! Each serving thread has a socket (SO_REUSEPORT), a runtime and counters of its own, so threads share nothing but
//! the snapshot.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::connections::{Connections, Place, SWEEP};
use super::plain::{End, Plain};
use super::{Api, Handler, Routes};

/// Connections the kernel holds until they are accepted, for boot storms; it takes no more than `net.core.somaxconn`.
const BACKLOG: u32 = 65_535;
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
    let connections = Arc::new(Connections::new(max_connections));
    let mut http = http1::Builder::new();
    // The connections have their own time limit.
    http.header_read_timeout(None);
    // A client that has said all it will is still waiting for its answer.
    http.half_close(true);
    let http = Arc::new(http);

    let mut sweep = tokio::time::interval(SWEEP);
    let mut watched = phase.clone();
    let mut draining = std::pin::pin!(async move { drop(watched.wait_for(|phase| *phase == Phase::Drain).await) });
    loop {
        // At the cap nothing more is accepted: the kernel's queue holds the rest until a connection ends.
        let accepted = async {
            connections.room().await;
            listener.accept().await
        };
        tokio::select! {
            accepted = accepted => match accepted {
                Ok((stream, _)) => {
                    drop(tokio::spawn(converse(Arc::clone(&http), stream, Conversation::new(&handler, &connections))));
                }
                Err(error) => accept_failed(&error).await,
            },
            _ = sweep.tick() => connections.sweep(),
            () = &mut draining => break,
        }
    }
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

/// A connection and who answers it: one pointer for each request to take along.
struct Conversation {
    handler: Arc<Handler>,
    place: Place,
}

impl Conversation {
    fn new(handler: &Arc<Handler>, connections: &Arc<Connections>) -> Arc<Self> {
        handler.traffic().connection_opened();
        Arc::new(Self { handler: Arc::clone(handler), place: connections.enter() })
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.handler.traffic().connection_closed();
    }
}

/// Answers a connection: plainly as long as that will do, then with the library.
async fn converse(http: Arc<http1::Builder>, stream: TcpStream, conversation: Arc<Conversation>) {
    let Conversation { handler, place } = &*conversation;
    let mut plain = Plain::new(stream);
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
    let (stream, unread) = plain.into_parts();
    let (reader, writer) = stream.into_split();
    let stream = tokio::io::join(Cursor::new(unread).chain(reader), writer);
    let answering = Arc::clone(conversation);
    let service = service_fn(move |request| {
        let conversation = Arc::clone(&answering);
        async move {
            conversation.place.begins();
            let answer = conversation.handler.handle(request).await;
            conversation.place.rests();
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http.serve_connection(TokioIo::new(stream), service);
    // Clients that break off are their own affair; nothing is left to be done for them.
    let _ = conversation.place.drive(connection, |connection| connection.graceful_shutdown()).await;
}

/// Waits where a retry at once would spin; a connection that was gone before it was accepted needs no wait.
async fn accept_failed(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        tracing::warn!(%error, "a connection could not be accepted, trying again");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

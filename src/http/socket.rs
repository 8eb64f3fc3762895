//! The socket of a connection, as hyper reads from it and writes to it.

use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::connection::Connection;

/// Bytes that a lingering close reads and discards at most, and at a time.
const LINGER_BYTES: usize = 8 * 1024 * 1024;
const LINGER_BUFFER: usize = 16 * 1024;

/// Bytes read at a time before the socket is registered. Such a read needs a cleared buffer: clearing hyper's own would
/// make each connection occupy all 8 KiB of it, of which most never use more than the first page.
const UNREGISTERED_READ: usize = 4096;

/// The I/O of a connection.
///
/// The socket is registered with the runtime only when it first has to wait. In a boot storm the request is there when
/// its connection is accepted, and the connection ends with the response: most are never registered, which saves two
/// system calls of seven.
pub(super) struct Io {
    unregistered: Option<std::net::TcpStream>,
    registered: Option<TcpStream>,
    connection: Arc<Connection>,
    /// Bytes discarded so far by a lingering close.
    discarded: Option<usize>,
}

impl Io {
    pub(super) fn new(stream: std::net::TcpStream, connection: Arc<Connection>) -> Self {
        Self { unregistered: Some(stream), registered: None, connection, discarded: None }
    }

    /// Tries `operation` as long as the socket is unregistered; `None` if it has to wait.
    fn attempt<T>(&self, operation: impl FnOnce(&std::net::TcpStream) -> io::Result<T>) -> Option<io::Result<T>> {
        match operation(self.unregistered.as_ref()?) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
            done => Some(done),
        }
    }

    fn registered(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if let Some(stream) = self.unregistered.take() {
            self.registered = Some(TcpStream::from_std(stream)?);
        }
        self.registered.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Wakes the task when the client of a waiting request closes the connection or its side of it. hyper does not read
    /// while a request is handled, because the client may have closed its side before it reads the response.
    fn watch(&mut self, context: &mut Context<'_>) {
        let peeked = match self.registered() {
            Ok(stream) => stream.poll_peek(context, &mut ReadBuf::new(&mut [0])),
            Err(error) => Poll::Ready(Err(error)),
        };
        // Bytes are the beginning of another request. What follows them is not seen until the first one is answered.
        if !matches!(peeked, Poll::Pending | Poll::Ready(Ok(1..))) {
            self.connection.on_client_closed();
            context.waker().wake_by_ref();
        }
    }

    /// Tells the client that nothing more will be sent, then reads and discards what it still sends.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.discarded.is_none() {
            task::ready!(self.registered()?.poll_shutdown(context))?;
            self.discarded = Some(0);
            self.connection.lingering();
        }
        let mut buffer = vec![0; LINGER_BUFFER];
        loop {
            let mut read = ReadBuf::new(&mut buffer);
            task::ready!(self.registered()?.poll_read(context, &mut read))?;
            let discarded = self.discarded.unwrap_or(0) + read.filled().len();
            if read.filled().is_empty() || discarded > LINGER_BYTES {
                return Poll::Ready(Ok(()));
            }
            self.discarded = Some(discarded);
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let attempted = self.attempt(|mut stream| {
            let mut buffer = [0; UNREGISTERED_READ];
            let length = into.remaining().min(UNREGISTERED_READ);
            let read = stream.read(&mut buffer[..length])?;
            into.put_slice(&buffer[..read]);
            Ok(())
        });
        match attempted {
            Some(read) => read?,
            None => task::ready!(self.registered()?.poll_read(context, into))?,
        }
        if into.filled().len() > before {
            self.connection.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.connection.sending();
        match self.attempt(|mut stream| stream.write(bytes)) {
            Some(written) => Poll::Ready(written),
            None => self.registered()?.poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.connection.sending();
        match self.attempt(|mut stream| stream.write_vectored(slices)) {
            Some(written) => Poll::Ready(written),
            None => self.registered()?.poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper calls this when its buffer has been written, or is empty while a request is handled; the socket itself has
    /// nothing to flush.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.flushed() {
            self.watch(context);
        }
        Poll::Ready(Ok(()))
    }

    /// hyper calls this at the end of a connection. Without a reason to linger, the close that follows is enough: a
    /// shutdown would be one more system call.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.discarded.is_some() || self.connection.must_linger() {
            self.poll_linger(context)
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

//! The limit of the machine: one thread, epoll, one read and one write per request. It only searches for the end of a
//! request and sends a constant response, one per port of 127.0.0.1.
//!
//! It is started with `PORT=FILE` arguments; a file has one response with head and body. If its name ends in `.close`,
//! the connection is closed after the response.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use memchr::memmem;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

/// The maximum; the kernel limits it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;
/// Larger than any request of the benchmark.
const BUFFER: usize = 64 * 1024;

/// A port and its response.
struct Port {
    listener: TcpListener,
    response: Vec<u8>,
    close: bool,
}

struct Connection {
    stream: TcpStream,
    port: usize,
    /// The start of an incomplete request; usually empty.
    partial: Vec<u8>,
    /// The part of a response that could not be written yet; usually empty.
    rest: Vec<u8>,
}

/// Serves until the process is killed.
pub fn run(arguments: &[String]) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut ports = Vec::new();
    for argument in arguments {
        let mut port = Port::open(argument)?;
        poll.registry().register(&mut port.listener, Token(ports.len()), Interest::READABLE)?;
        ports.push(port);
    }

    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free = Vec::new();
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; BUFFER];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            let Token(token) = event.token();
            let Some(slot) = token.checked_sub(ports.len()) else {
                accept(&poll, &ports, token, &mut connections, &mut free)?;
                continue;
            };
            let Some(connection) = connections.get_mut(slot).and_then(Option::as_mut) else { continue };
            let port = &ports[connection.port];
            if !matches!(connection.advance(port, &mut buffer), Ok(true)) {
                connections[slot] = None;
                free.push(slot);
            }
        }
    }
}

impl Port {
    fn open(argument: &str) -> io::Result<Self> {
        let parts = argument.split_once('=').and_then(|(port, file)| Some((port.parse::<u16>().ok()?, file)));
        let (port, file) = parts.ok_or_else(|| io::Error::other(format!("{argument} is not PORT=FILE")))?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into());
        Ok(Self { listener, response: std::fs::read(file)?, close: file.ends_with(".close") })
    }
}

/// Accepts all pending connections of this port.
fn accept(
    poll: &Poll,
    ports: &[Port],
    port: usize,
    connections: &mut Vec<Option<Connection>>,
    free: &mut Vec<usize>,
) -> io::Result<()> {
    loop {
        let mut stream = match ports[port].listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let slot = free.pop().unwrap_or_else(|| {
            connections.push(None);
            connections.len() - 1
        });
        let token = Token(ports.len() + slot);
        poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        connections[slot] = Some(Connection { stream, port, partial: Vec::new(), rest: Vec::new() });
    }
}

impl Connection {
    /// Reads requests and writes responses until the socket would block; false if the connection has ended.
    fn advance(&mut self, port: &Port, buffer: &mut [u8]) -> io::Result<bool> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.write(&rest)?;
        }
        loop {
            let count = match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            // A complete request in one read needs no copy.
            let responses = if self.partial.is_empty() {
                let (responses, used) = complete(&buffer[..count]);
                self.partial.extend_from_slice(&buffer[used..count]);
                responses
            } else {
                self.partial.extend_from_slice(&buffer[..count]);
                let (responses, used) = complete(&self.partial);
                self.partial.drain(..used);
                responses
            };
            for _ in 0..responses {
                self.write(&port.response)?;
            }
            if port.close && responses > 0 && self.rest.is_empty() {
                return Ok(false);
            }
            // A short read has emptied the socket: more data will cause another event.
            if count < buffer.len() {
                return Ok(true);
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.rest.is_empty() {
            self.rest.extend_from_slice(bytes);
            return Ok(());
        }
        match self.stream.write(bytes) {
            Ok(count) => self.rest.extend_from_slice(&bytes[count..]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.rest.extend_from_slice(bytes),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The number of complete requests, and their size in bytes.
fn complete(bytes: &[u8]) -> (usize, usize) {
    let (mut requests, mut used) = (0, 0);
    while let Some(head) = memmem::find(&bytes[used..], b"\r\n\r\n") {
        let body = if bytes[used] == b'P' { content_length(&bytes[used..used + head]) } else { 0 };
        let end = used + head + 4 + body;
        if end > bytes.len() {
            break;
        }
        (requests, used) = (requests + 1, end);
    }
    (requests, used)
}

fn content_length(head: &[u8]) -> usize {
    let name = b"\r\nContent-Length: ";
    let Some(place) = memmem::find(head, name) else { return 0 };
    let digits = head[place + name.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'))
}

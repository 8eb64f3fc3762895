//! Plain requests, answered without the HTTP library: the two shapes in which machines ask, when the answer is 200.
//!
//! A connection begins here. Each request that is complete, of one of the two shapes and free of anything that could
//! change its meaning is answered from buffers that the thread's connections share, so an idle connection holds none.
//! A new connection is read, answered and, if its client wants that, closed before it is registered with the runtime: in
//! a boot storm that is all there is to most of them.
//!
//! At the first request that is anything else, the connection goes to the library with what was read, for good: every
//! error, condition, encoding and oddity of HTTP is the library's alone. A test asks everything both ways.

mod request;

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::header::ORIGIN;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use self::request::{MAX_REQUEST, Parsed, Request, Wanted, parse, values};
use super::clients::Peer;
use super::connections::Place;
use super::cors::Cors;
use super::etag::{entity_tag, hex_digits};
use super::memory::Share;
use super::{Handler, batch, found};
use crate::metrics::Route;

/// Answers to requests that came together are sent together up to about this size.
const ENOUGH_TO_SEND: usize = 256 * 1024;

/// The buffers that one thread's connections share; nothing stays in them beyond a poll.
pub struct Scratch {
    input: Box<[u8]>,
    output: Vec<u8>,
    date: Date,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { input: vec![0; MAX_REQUEST].into(), output: Vec::new(), date: Date::default() }
    }
}

/// The `Date` header, and until when it is right.
#[derive(Default)]
struct Date {
    until: Option<Instant>,
    text: String,
}

impl Date {
    /// The date at `now`, the present moment. The wall clock is asked once a second.
    fn at(&mut self, now: Instant) -> &[u8] {
        if self.until.is_none_or(|until| now >= until) {
            let date = SystemTime::now();
            let since_second = date.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
            self.until = Some(now + Duration::from_secs(1) - Duration::from_nanos(since_second.into()));
            self.text = httpdate::fmt_http_date(date);
        }
        self.text.as_bytes()
    }
}

/// What became of a request.
enum Answered {
    /// The answer is in the output.
    Yes {
        length: usize,
        close: bool,
    },
    Incomplete,
    Other,
}

impl Handler {
    /// Appends the answer to the request that `input` begins with, if it is plain.
    fn answer_plain(&self, input: &[u8], output: &mut Vec<u8>, date: &mut Date, peer: Peer) -> Answered {
        let started = Instant::now();
        let Request { wanted, close, head, length } = match parse(input) {
            Parsed::Plain(request) => request,
            Parsed::Incomplete => return Answered::Incomplete,
            Parsed::Other => return Answered::Other,
        };
        let current = self.api.store.load();
        let Some(snapshot) = current.as_deref().filter(|_| !self.is_draining()) else { return Answered::Other };
        let head = &input[..head];
        if self.api.cors.is_some() && !values(head, &ORIGIN).is_empty() {
            return Answered::Other;
        }
        // Last of all, so that what the library answers is not counted twice.
        let may_ask = || self.api.clients.may_ask(peer, |name| values(head, name)).is_ok();
        let route = match wanted {
            Wanted::Single(id) => {
                let Some(entry) = snapshot.get(id).filter(|_| may_ask()) else { return Answered::Other };
                output.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\netag: ");
                output.extend_from_slice(&entity_tag(entry.digest()));
                output.extend_from_slice(b"\r\ncache-control: no-cache");
                finish_head(output, snapshot.revision(), self.vary(), entry.json().len(), close, date.at(started));
                output.extend_from_slice(entry.json());
                self.traffic.lookups(1, 0);
                Route::Single
            }
            Wanted::Batch(body) => {
                let limits = &self.api.limits;
                let Ok(asked) = batch::parse(body, limits.batch_ids) else { return Answered::Other };
                if body.len() > limits.body_bytes || asked.resolve_dependencies || !may_ask() {
                    return Answered::Other;
                }
                let found = found::look_up(snapshot, &asked.ids);
                output.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: application/json");
                finish_head(output, snapshot.revision(), self.vary(), found.size(), close, date.at(started));
                found.write(output);
                self.count_batch(asked.ids.len(), &found.missing);
                Route::Batch
            }
        };
        self.traffic.request(route, 200, started.elapsed());
        Answered::Yes { length, close }
    }

    /// The header of answers that differ by origin.
    fn vary(&self) -> &'static [u8] {
        if matches!(self.api.cors, Some(Cors::Only(_))) { b"\r\nvary: Origin" } else { b"" }
    }
}

fn finish_head(output: &mut Vec<u8>, revision: u64, vary: &[u8], length: usize, close: bool, date: &[u8]) {
    output.extend_from_slice(b"\r\ncatalog-revision: ");
    output.extend_from_slice(&hex_digits(revision));
    output.extend_from_slice(vary);
    output.extend_from_slice(b"\r\ncontent-length: ");
    output.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    output.extend_from_slice(if close { b"\r\nconnection: close\r\ndate: " } else { b"\r\ndate: " });
    output.extend_from_slice(date);
    output.extend_from_slice(b"\r\n\r\n");
}

/// How the plain part of a connection ended.
#[derive(Debug)]
pub enum End {
    /// The connection is over.
    Closed,
    /// It goes on with the library.
    Library,
}

/// A connection for as long as its requests are plain.
pub struct Plain {
    stream: TcpStream,
    exchange: Exchange,
    /// Something was read before the connection had a place.
    greeted: bool,
}

/// What has been read and answered on a connection.
#[derive(Default)]
struct Exchange {
    /// Whose connection it is, where anything depends on it.
    peer: Peer,
    /// Read and not yet answered.
    unread: Vec<u8>,
    /// Answered and not yet sent.
    unsent: Vec<u8>,
    sent: usize,
    /// What the unsent takes.
    share: Option<Share>,
    /// Answers were held back because there was enough to send.
    held_back: bool,
    /// What comes once all is sent.
    then: Option<End>,
}

impl Plain {
    /// Answers what a new connection has sent already. `None` = that was all of it, or the client has gone.
    ///
    /// # Errors
    /// The runtime can't take the connection.
    pub fn greet(stream: std::net::TcpStream, peer: Peer, handler: &Handler) -> io::Result<Option<Self>> {
        let (mut exchange, mut greeted) = (Exchange { peer, ..Exchange::default() }, false);
        if handler.has_api() {
            match exchange.begin(&stream, handler) {
                Ok(()) if exchange.unsent.is_empty() && matches!(exchange.then, Some(End::Closed)) => return Ok(None),
                Ok(()) => greeted = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(Self { stream: TcpStream::from_std(stream)?, exchange, greeted }))
    }

    /// Tells its new place how far the connection is.
    pub fn settle(&self, place: &Place) {
        if self.greeted {
            self.exchange.rest(place);
        }
    }

    /// Whose connection it is, where anything depends on it.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.exchange.peer
    }

    /// The connection, and what was read from it without being answered.
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.exchange.unread)
    }

    /// Reads, answers and sends until the connection ends or a request comes that is not plain.
    pub fn poll(&mut self, context: &mut Context<'_>, handler: &Handler, place: &Place) -> Poll<End> {
        match ready!(self.poll_io(context, handler, place)) {
            Ok(end) => Poll::Ready(end),
            // Clients that break off are their own affair.
            Err(_) => Poll::Ready(End::Closed),
        }
    }

    fn poll_io(&mut self, context: &mut Context<'_>, handler: &Handler, place: &Place) -> Poll<io::Result<End>> {
        loop {
            ready!(self.poll_send(context, place))?;
            let exchange = &mut self.exchange;
            if let Some(end) = exchange.then.take() {
                // No shutdown before the close: it would be one system call more and change nothing.
                return Poll::Ready(Ok(end));
            }
            if place.is_finishing() && exchange.unread.is_empty() {
                return Poll::Ready(Ok(End::Closed));
            }
            let mut scratch = handler.scratch();
            let Scratch { input, output, date } = &mut *scratch;
            let mut read = ReadBuf::new(input);
            if !std::mem::take(&mut exchange.held_back) {
                ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
                if read.filled().is_empty() {
                    // What half a request gets is the library's to say.
                    return Poll::Ready(Ok(if exchange.unread.is_empty() { End::Closed } else { End::Library }));
                }
            }
            if exchange.unread.is_empty() {
                place.begins();
            }
            exchange.answer(read.filled(), output, date, handler);
            if !output.is_empty() {
                let sent = match Pin::new(&mut self.stream).poll_write(context, output) {
                    Poll::Ready(sent) => sent?,
                    Poll::Pending => 0,
                };
                exchange.keep(&output[sent..], handler)?;
                exchange.rest(place);
            }
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>, place: &Place) -> Poll<io::Result<()>> {
        let exchange = &mut self.exchange;
        while exchange.sent < exchange.unsent.len() {
            let rest = &exchange.unsent[exchange.sent..];
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            exchange.sent += sent;
        }
        if exchange.sent > 0 {
            (exchange.unsent, exchange.sent, exchange.share) = (Vec::new(), 0, None);
            exchange.rest(place);
        }
        Poll::Ready(Ok(()))
    }
}

impl Exchange {
    /// Reads once, answers, and sends once.
    fn begin(&mut self, mut stream: &std::net::TcpStream, handler: &Handler) -> io::Result<()> {
        let mut scratch = handler.scratch();
        let Scratch { input, output, date } = &mut *scratch;
        let read = stream.read(input)?;
        if read == 0 {
            self.then = Some(End::Closed);
            return Ok(());
        }
        self.answer(&input[..read], output, date, handler);
        if !output.is_empty() {
            let sent = match stream.write(output) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                sent => sent?,
            };
            self.keep(&output[sent..], handler)?;
        }
        Ok(())
    }

    /// Answers into `output` what is complete of `fresh`, with what was left over before it.
    fn answer(&mut self, fresh: &[u8], output: &mut Vec<u8>, date: &mut Date, handler: &Handler) {
        output.clear();
        let left_over = std::mem::take(&mut self.unread);
        let joined = if left_over.is_empty() { None } else { Some([&left_over, fresh].concat()) };
        let mut input = joined.as_deref().unwrap_or(fresh);
        while !input.is_empty() && self.then.is_none() {
            if output.len() >= ENOUGH_TO_SEND {
                self.held_back = true;
                break;
            }
            match handler.answer_plain(input, output, date, self.peer) {
                Answered::Yes { length, close } => {
                    input = &input[length..];
                    self.then = close.then_some(End::Closed);
                }
                Answered::Incomplete => break,
                Answered::Other => self.then = Some(End::Library),
            }
        }
        self.unread.extend_from_slice(input);
    }

    /// Keeps what the socket did not take. An error if there is no memory left for that: an answer can't be taken back.
    fn keep(&mut self, unsent: &[u8], handler: &Handler) -> io::Result<()> {
        if !unsent.is_empty() {
            self.unsent.extend_from_slice(unsent);
            let share = self.share.get_or_insert_with(|| handler.api.memory.share());
            if !share.hold(self.unsent.capacity()) {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
        }
        Ok(())
    }

    /// Gives the client leave to rest, if it is its turn.
    fn rest(&self, place: &Place) {
        if self.unread.is_empty() && self.unsent.is_empty() {
            place.rests();
        }
    }
}

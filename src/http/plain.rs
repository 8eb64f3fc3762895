//! Plain requests, answered without the HTTP library: the two shapes in which machines ask, when the answer is 200.
//!
//! A connection begins here. Each request that is complete, of one of the two shapes and free of anything that could
//! change its meaning is answered from buffers that the thread's connections share, so an idle connection holds none.
//! A new connection is read, answered and, if its client wants that, closed before it is registered with the runtime: in
//! a boot storm that is all there is to most of them.
//!
//! At the first request that is anything else, the connection goes to the library with what was read, for good: every
//! error, condition, encoding and oddity of HTTP is the library's alone. A test asks everything both ways.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use httparse::Status;
use hyper::header::{HeaderName, ORIGIN};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::clients::Peer;
use super::connections::Place;
use super::cors::Cors;
use super::memory::Share;
use super::{Handler, batch, entity_tag, hex_digits};
use crate::metrics::Route;

const GET: &[u8] = b"GET /api/models/";
const POST: &[u8] = b"POST /api/models/batch ";
/// A request that is larger goes to the library, which has the limits.
const MAX_REQUEST: usize = 16 * 1024;
const MAX_HEADERS: usize = 24;
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

/// A request of one of the two shapes.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    wanted: Wanted<'a>,
    /// Whether the client asked for the connection to be closed.
    close: bool,
    /// Bytes of its head.
    head: usize,
    /// Bytes of it.
    length: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted<'a> {
    Single(&'a str),
    Batch(&'a [u8]),
}

/// What the bytes at hand are.
#[derive(Debug, PartialEq, Eq)]
enum Parsed<'a> {
    Plain(Request<'a>),
    /// The beginning of what may become a plain request.
    Incomplete,
    /// The library's.
    Other,
}

fn parse(input: &[u8]) -> Parsed<'_> {
    let begins = |prefix: &[u8]| input.iter().zip(prefix).all(|(a, b)| a == b);
    if !begins(GET) && !begins(POST) {
        return Parsed::Other;
    }
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let head = match request.parse_with_uninit_headers(input, &mut headers) {
        Ok(Status::Complete(head)) => head,
        Ok(Status::Partial) if input.len() < MAX_REQUEST => return Parsed::Incomplete,
        _ => return Parsed::Other,
    };
    let (Some(1), Some(path)) = (request.version, request.path) else { return Parsed::Other };
    let (mut close, mut body, mut host) = (false, None, false);
    for header in request.headers.iter() {
        let named = |name: &str| header.name.eq_ignore_ascii_case(name);
        if named("connection") {
            match header.value {
                value if value.eq_ignore_ascii_case(b"keep-alive") => {}
                value if value.eq_ignore_ascii_case(b"close") => close = true,
                _ => return Parsed::Other,
            }
        } else if named("content-length") {
            match digits(header.value) {
                Some(length) if body.is_none() => body = Some(length),
                _ => return Parsed::Other,
            }
        } else if named("host") {
            if std::mem::replace(&mut host, true) {
                return Parsed::Other;
            }
        } else if CHANGES_MEANING.iter().any(|name| named(name)) {
            return Parsed::Other;
        }
    }
    let segment = path.strip_prefix("/api/models/").unwrap_or_default();
    let wanted = match (request.method, body) {
        (Some("GET"), None) if is_plain_segment(segment) => Wanted::Single(segment),
        (Some("POST"), Some(length)) if segment == "batch" && head + length <= MAX_REQUEST => {
            let Some(body) = input.get(head..head + length) else { return Parsed::Incomplete };
            Wanted::Batch(body)
        }
        _ => return Parsed::Other,
    };
    Parsed::Plain(Request { wanted, close, head, length: head + body.unwrap_or(0) })
}

/// The values of one header of a head that was parsed. Only who limits something asks, so it is read again.
fn values<'a>(head: &'a [u8], name: &HeaderName) -> Vec<&'a [u8]> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    // It has been complete before.
    let _ = request.parse(head);
    let named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name.as_str()));
    named.map(|header| header.value).collect()
}

/// Headers with which a request is more than its line and its body.
const CHANGES_MEANING: [&str; 7] =
    ["transfer-encoding", "expect", "upgrade", "if-none-match", "te", "trailer", "proxy-connection"];

/// An id without an escape, a query or a further segment, and not the path of the batch.
fn is_plain_segment(segment: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    !segment.is_empty() && segment != "batch" && segment.bytes().all(plain)
}

/// A length of a few digits and nothing else.
fn digits(text: &[u8]) -> Option<usize> {
    let number = |sum: usize, digit: &u8| digit.is_ascii_digit().then(|| sum * 10 + usize::from(digit - b'0'));
    (1..=6).contains(&text.len()).then(|| text.iter().try_fold(0, number)).flatten()
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
                let found = batch::look_up(snapshot, &asked.ids);
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

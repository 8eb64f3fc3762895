//! The two shapes of a plain request, as bytes. When in doubt it is the library's.

use std::mem::MaybeUninit;

use httparse::Status;
use hyper::header::HeaderName;

const GET: &[u8] = b"GET /api/models/";
const POST: &[u8] = b"POST /api/models/batch ";
/// A request that is larger goes to the library, which has the limits.
pub const MAX_REQUEST: usize = 16 * 1024;
const MAX_HEADERS: usize = 24;

/// A request of one of the two shapes.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub wanted: Wanted<'a>,
    /// Whether the client asked for the connection to be closed.
    pub close: bool,
    /// Bytes of its head.
    pub head: usize,
    /// Bytes of it.
    pub length: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Wanted<'a> {
    Single(&'a str),
    Batch(&'a [u8]),
}

/// What the bytes at hand are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    Plain(Request<'a>),
    /// The beginning of what may become a plain request.
    Incomplete,
    /// The library's.
    Other,
}

/// What `input` begins with.
pub fn parse(input: &[u8]) -> Parsed<'_> {
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
pub fn values<'a>(head: &'a [u8], name: &HeaderName) -> Vec<&'a [u8]> {
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

//! Raw connections, for requests that an HTTP client would not send: incomplete, chunked, pipelined, malformed.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use crate::support::{Response, WAIT_LIMIT};

/// One TCP connection to a server.
pub struct Raw(BufReader<TcpStream>);

impl Raw {
    /// Opens a connection.
    pub fn open(address: &str) -> Self {
        Self(BufReader::new(connect(address)))
    }

    /// Opens a connection; `None` if it is refused.
    pub fn try_open(address: &str) -> Option<Self> {
        try_connect(address).ok().map(|stream| Self(BufReader::new(stream)))
    }

    /// Sends these bytes unchanged.
    pub fn send(&mut self, bytes: &str) {
        self.0.get_mut().write_all(bytes.as_bytes()).unwrap();
    }

    /// Sends a GET request and reads its response.
    pub fn get(&mut self, path: &str) -> Response {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
        self.response()
    }

    /// Sends a request with further header lines and reads its response.
    pub fn request(&mut self, method: &str, path: &str, headers: &str) -> Response {
        self.send(&format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n"));
        self.response()
    }

    /// Sends a batch request for `a` with further header lines and reads its response.
    pub fn batch(&mut self, headers: &str) -> Response {
        let body = r#"{"model_ids":["a"]}"#;
        let headers = format!("{headers}content-length: {}\r\n\r\n{body}", body.len());
        self.request("POST", "/api/models/batch", &headers)
    }

    /// Reads the next response head, and nothing after it.
    pub fn head(&mut self) -> Response {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            match line.strip_suffix("\r\n") {
                Some("") => break,
                Some(line) => lines.push(line.to_owned()),
                None => panic!("the connection was closed within a head: {lines:?}{line:?}"),
            }
        }
        let status = lines[0].strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("no status line: {lines:?}"));
        let status = status.split(' ').next().unwrap().parse().unwrap();
        let header = |line: &String| {
            let (name, value) = line.split_once(": ").unwrap();
            (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap())
        };
        Response { status, headers: HeaderMap::from_iter(lines[1..].iter().map(header)), body: Default::default() }
    }

    /// Reads the next response; its body must have a `content-length`.
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        let mut body = vec![0; response.header("content-length").parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        response.body = body.into();
        response
    }

    /// Waits for the server to close the connection, which it must do without sending another byte.
    pub fn expect_close(&mut self) {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

/// Opens a connection for reading and writing bytes.
pub fn connect(address: &str) -> TcpStream {
    try_connect(address).unwrap()
}

fn try_connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(WAIT_LIMIT))?;
    Ok(stream)
}

/// Reads until the server closes the connection, and fails if it does not.
pub fn read_to_close(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("the connection was not closed"),
        // A reset closes it, too.
        _ => String::from_utf8_lossy(&all).into_owned(),
    }
}

/// The status codes of consecutive responses.
pub fn statuses(responses: &str) -> Vec<u16> {
    let lines = responses.lines().filter_map(|line| line.split("HTTP/1.1 ").nth(1));
    lines.filter_map(|line| line.get(..3)?.parse().ok()).collect()
}

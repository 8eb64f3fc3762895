//! A connection on which a test writes its own bytes: heads without bodies, chunks, several requests at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use crate::support::{PATIENCE, Reply};

/// One TCP connection to a server.
pub struct Raw(BufReader<TcpStream>);

impl Raw {
    /// Connects.
    pub fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends these bytes as they are.
    pub fn send(&mut self, bytes: &str) {
        self.0.get_mut().write_all(bytes.as_bytes()).unwrap();
    }

    /// Sends a GET and reads its answer.
    pub fn get(&mut self, path: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
        self.answer()
    }

    /// The next head, and nothing after it.
    pub fn head(&mut self) -> Reply {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            match line.strip_suffix("\r\n") {
                Some("") => break,
                Some(line) => lines.push(line.to_owned()),
                None => panic!("the connection ended within a head: {lines:?}{line:?}"),
            }
        }
        let status = lines[0].strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("no status line: {lines:?}"));
        let status = status.split(' ').next().unwrap().parse().unwrap();
        let header = |line: &String| {
            let (name, value) = line.split_once(": ").unwrap();
            (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap())
        };
        Reply { status, headers: HeaderMap::from_iter(lines[1..].iter().map(header)), body: Default::default() }
    }

    /// The next answer with the body that its head announces.
    pub fn answer(&mut self) -> Reply {
        let mut reply = self.head();
        let mut body = vec![0; reply.header("content-length").parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        reply.body = body.into();
        reply
    }

    /// Waits for the other side to end the connection, which it must do without a further byte.
    pub fn ends(&mut self) {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

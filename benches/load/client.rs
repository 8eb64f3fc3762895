//! A minimal HTTP client for everything that is not measured: readiness, comparing responses, reading metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::Result;

const LIMIT: Duration = Duration::from_secs(10);

/// A complete response.
pub struct Response {
    pub status: u16,
    pub head: Vec<u8>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn is(&self, body: &[u8]) -> bool {
        self.status == 200 && self.body == body
    }
}

pub fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends one request and reads its response.
pub fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<Response> {
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 64 * 1024];
    loop {
        if let Some(size) = response_size(&bytes).filter(|size| bytes.len() >= size.head + size.body) {
            let body = bytes.split_off(size.head);
            return Ok(Response { status: size.status, head: bytes, body });
        }
        match stream.read(&mut buffer)? {
            0 => return Err(format!("the connection was closed after {} bytes of the response", bytes.len()).into()),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Gets a path on a separate connection.
pub fn get(port: u16, path: &str) -> Result<Response> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    exchange(&mut connect(port)?, request.as_bytes())
}

/// Status and sizes from the head of a response.
pub struct Size {
    pub status: u16,
    pub head: usize,
    pub body: usize,
}

/// `None` until the head is complete. All peers send a Content-Length.
pub fn response_size(bytes: &[u8]) -> Option<Size> {
    let head = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let status = text.get(9..12)?.parse().ok()?;
    let field = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    Some(Size { status, head, body: field?.parse().ok()? })
}

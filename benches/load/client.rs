//! A plain HTTP client for what is not measured: is a server ready, are its bytes right, what do its metrics say.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::Result;

const LIMIT: Duration = Duration::from_secs(10);

/// An answer as it came.
pub struct Answer {
    pub status: u16,
    pub head: Vec<u8>,
    pub body: Vec<u8>,
}

impl Answer {
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

/// Sends one request and reads its answer.
pub fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<Answer> {
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 64 * 1024];
    loop {
        if let Some(size) = answer_size(&bytes).filter(|size| bytes.len() >= size.head + size.body) {
            let body = bytes.split_off(size.head);
            return Ok(Answer { status: size.status, head: bytes, body });
        }
        match stream.read(&mut buffer)? {
            0 => return Err(format!("the connection ended after {} bytes of the answer", bytes.len()).into()),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Asks for a path on a connection of its own.
pub fn get(port: u16, path: &str) -> Result<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    exchange(&mut connect(port)?, request.as_bytes())
}

/// What the head of an answer says.
pub struct Size {
    pub status: u16,
    pub head: usize,
    pub body: usize,
}

/// `None` as long as the head is not complete. All peers say a Content-Length.
pub fn answer_size(bytes: &[u8]) -> Option<Size> {
    let head = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let status = text.get(9..12)?.parse().ok()?;
    let field = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    Some(Size { status, head, body: field?.parse().ok()? })
}

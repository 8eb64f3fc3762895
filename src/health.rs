//! Asks the server on this machine for its health: for a container without a shell, and for people beside it. One GET
//! with a deadline; it must need nothing but the address.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use thiserror::Error;

/// Longest time for the whole of it. A server answers this from memory.
const LIMIT: Duration = Duration::from_secs(2);
/// Longest answer in bytes: what says more is no server of ours.
const LONGEST: usize = 64 * 1024;

/// Why a server is not well.
#[derive(Debug, Error)]
pub enum HealthError {
    /// It was started on a port of the system's choice.
    #[error("port 0 is any port: name the one the server has, by CATALOG_ADMIN_ADDR, or by CATALOG_ADDR without one")]
    AnyPort,
    /// Nobody there, nothing said in time, or no HTTP.
    #[error("no answer from http://{address}{path}: {source}")]
    NoAnswer {
        /// Who was asked.
        address: SocketAddr,
        /// For what.
        path: &'static str,
        /// What came instead.
        source: io::Error,
    },
    /// Another status than 200.
    #[error("http://{address}{path} answers {status}: {body}")]
    Unwell {
        /// Who was asked.
        address: SocketAddr,
        /// For what.
        path: &'static str,
        /// The status of the answer.
        status: u16,
        /// Its body.
        body: String,
    },
}

/// The body of a 200 for `path` from the server that listens on `address`. A server on all addresses is asked on the
/// loopback one.
///
/// # Errors
/// No answer within two seconds, or one with another status.
pub fn ask(address: SocketAddr, path: &'static str) -> Result<String, HealthError> {
    if address.port() == 0 {
        return Err(HealthError::AnyPort);
    }
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, address.port());
    let answer = exchange(address, path).and_then(|answer| read(&answer));
    match answer.map_err(|source| HealthError::NoAnswer { address, path, source })? {
        (200, body) => Ok(body),
        (status, body) => Err(HealthError::Unwell { address, path, status, body }),
    }
}

/// All that the server says to one request.
fn exchange(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + LIMIT;
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    while answer.len() < LONGEST {
        let left = deadline.saturating_duration_since(Instant::now());
        // A time-out of zero would be none.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(count) if !left.is_zero() => answer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => return Err(io::Error::new(ErrorKind::TimedOut, format!("nothing whole within {LIMIT:?}"))),
        }
    }
    Err(io::Error::new(ErrorKind::InvalidData, format!("more than {LONGEST} bytes")))
}

/// Status and body of an answer that came whole.
fn read(answer: &[u8]) -> io::Result<(u16, String)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    match (head.parse(answer), head.code) {
        (Ok(httparse::Status::Complete(length)), Some(status)) => {
            Ok((status, String::from_utf8_lossy(&answer[length..]).into_owned()))
        }
        _ => Err(io::Error::new(ErrorKind::InvalidData, "what came is no HTTP")),
    }
}

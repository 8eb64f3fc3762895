//! `model-catalog health`: checks the server on this machine, for containers without a shell and for people.
//!
//! It sends one GET under a deadline, and needs nothing but the address.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::CommandResult;
use crate::cli::ListenArgs;

/// Maximum time for the whole check. A server responds from memory.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of a response in bytes; a larger one is not from this program.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Why a server is not healthy.
#[derive(Debug, Error)]
pub enum HealthError {
    /// The configured port is 0.
    #[error("port 0 is any free port: set CATALOG_ADMIN_ADDR, or CATALOG_ADDR without it, to the port in use")]
    AnyPort,
    /// No connection, no response in time, or one that is not HTTP.
    #[error("no response from http://{address}{path}: {source}")]
    NoResponse {
        /// The address of the server.
        address: SocketAddr,
        /// The path of the request.
        path: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// A status other than 200.
    #[error("http://{address}{path} responded {status}: {body}")]
    Unhealthy {
        /// The address of the server.
        address: SocketAddr,
        /// The path of the request.
        path: &'static str,
        /// The status of the response.
        status: u16,
        /// The body of the response.
        body: String,
    },
}

/// Runs the command; prints the body of the response.
///
/// # Errors
/// See [`HealthError`].
pub fn run(listen: &ListenArgs, live: bool) -> CommandResult {
    let path = if live { "/livez" } else { "/readyz" };
    println!("{}", check(listen.admin_addr.unwrap_or(listen.addr), path)?);
    Ok(())
}

/// The body of a 200 for `path` from the server that listens on `address`. For a server that listens on every
/// interface, the request goes to the loopback interface.
fn check(address: SocketAddr, path: &'static str) -> Result<String, HealthError> {
    if address.port() == 0 {
        return Err(HealthError::AnyPort);
    }
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, address.port());
    let response = send_request(address, path).and_then(|response| parse(&response));
    match response.map_err(|source| HealthError::NoResponse { address, path, source })? {
        (200, body) => Ok(body),
        (status, body) => Err(HealthError::Unhealthy { address, path, status, body }),
    }
}

/// Sends one request; returns everything the server sends until it closes the connection.
fn send_request(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let (mut response, mut chunk) = (Vec::new(), [0; 4096]);
    while response.len() < MAX_RESPONSE_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        // A timeout of zero is rejected by the standard library.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(response),
            Ok(count) if !left.is_zero() => response.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => return Err(io::Error::new(ErrorKind::TimedOut, format!("not complete within {TIMEOUT:?}"))),
        }
    }
    Err(io::Error::new(ErrorKind::InvalidData, format!("more than {MAX_RESPONSE_BYTES} bytes")))
}

/// Status and body of a complete response.
fn parse(response: &[u8]) -> io::Result<(u16, String)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    match (head.parse(response), head.code) {
        (Ok(httparse::Status::Complete(length)), Some(status)) => {
            Ok((status, String::from_utf8_lossy(&response[length..]).into_owned()))
        }
        _ => Err(io::Error::new(ErrorKind::InvalidData, "not an HTTP response")),
    }
}

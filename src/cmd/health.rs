//! `model-catalog health`: checks the server on this machine, for containers without a shell and for people.
//!
//! It sends one GET under a deadline, and needs nothing but the address.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tracing::warn;

use super::stdout::{self, StdoutError};
use super::{CommandResult, runtime};
use crate::base::error_chain::chain;
use crate::cli::ListenArgs;

/// Maximum time for the whole check. A server responds from memory.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of a response in bytes; a larger one is not from this program.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Why a server is not healthy.
#[derive(Debug, Error)]
pub(crate) enum HealthError {
    /// The configured port is 0.
    #[error("port 0 is any free port: set CATALOG_ADMIN_ADDR, or CATALOG_ADDR without it, to the port in use")]
    AnyPort,
    /// No connection, no response in time, or one that is not HTTP.
    #[error("no response from http://{address}{path}")]
    NoResponse {
        /// The address of the server.
        address: SocketAddr,
        /// The path of the request.
        path: &'static str,
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
pub(crate) fn run(listen: &ListenArgs, live: bool) -> CommandResult {
    let path = if live { "/livez" } else { "/readyz" };
    let body = check(listen.admin_addr.unwrap_or(listen.addr), path)?;
    // The exit status is the result: a full disk must not make the server unhealthy.
    if let Err(error @ StdoutError::Write(_)) = stdout::print(&(body + "\n")) {
        warn!("{}", chain(&error));
    }
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
    let no_response = |source| HealthError::NoResponse { address, path, source };
    let response = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let late = |_| io::Error::new(ErrorKind::TimedOut, format!("not complete within {TIMEOUT:?}"));
            tokio::time::timeout(TIMEOUT, get(address, path)).await.map_err(late)?
        })
    });
    match response.map_err(no_response)? {
        (StatusCode::OK, body) => Ok(body),
        (status, body) => Err(HealthError::Unhealthy { address, path, status: status.as_u16(), body }),
    }
}

/// Status and body of the response to one request.
async fn get(address: SocketAddr, path: &str) -> io::Result<(StatusCode, String)> {
    let stream = TcpStream::connect(address).await?;
    let mut http = http1::Builder::new();
    http.max_buf_size(MAX_RESPONSE_BYTES);
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(invalid)?;
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(invalid)?;
        let (status, body) = (response.status(), Limited::new(response.into_body(), MAX_RESPONSE_BYTES));
        let body = body.collect().await.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => invalid(*error),
            Err(_) => io::Error::new(ErrorKind::InvalidData, format!("more than {MAX_RESPONSE_BYTES} bytes")),
        })?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    // The connection must be polled for the exchange to proceed.
    tokio::select! {
        response = exchange => response,
        Err(error) = connection => Err(invalid(error)),
    }
}

/// The I/O error behind an error of hyper. All others mean that the other end does not speak HTTP.
fn invalid(error: hyper::Error) -> io::Error {
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(source) => io::Error::new(source.kind(), source.to_string()),
        None => io::Error::new(ErrorKind::InvalidData, "not an HTTP response"),
    }
}

//! Requests to upstreams. Of a snapshot that was seen before, only the headers are transferred.

use std::error::Error;
use std::io::{self, BufReader, Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::bufread::MultiGzDecoder;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, ETAG, HeaderValue, IF_NONE_MATCH};
use rustls::{ClientConfig, RootCertStore};

use super::super::snapshot_file::{self, PersistedSnapshot, SnapshotFileError};
use super::config::Location;
use crate::catalog::snapshot::Snapshot;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time without data from an upstream, in addition to the time that it may wait.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest snapshot that is read, as transferred: a wrong address must not fill the memory.
const MAX_BYTES: usize = 2 << 30;
const READ_BUFFER: usize = 256 * 1024;
/// The first bytes of a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No response, or it broke off.
    #[error("{}", describe(.0))]
    Http(#[source] reqwest::Error),
    /// Nothing was received in time.
    #[error("it sent nothing for {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// Neither 200 nor 304.
    #[error("the response is {0}{hint}", hint = hint(*.0))]
    Status(StatusCode),
    /// The file can't be read.
    #[error(transparent)]
    File(#[from] SnapshotFileError),
    /// More than any snapshot.
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
}

impl From<reqwest::Error> for FetchError {
    /// The address may hold a password, and the caller names the upstream.
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error.without_url())
    }
}

impl From<io::Error> for FetchError {
    fn from(error: io::Error) -> Self {
        Self::File(error.into())
    }
}

/// The error with its causes: reqwest's own text is often no more than "error sending request".
fn describe(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ": set CATALOG_UPSTREAM_TOKEN to a token that it accepts",
        StatusCode::NOT_FOUND => ": check the path in CATALOG_UPSTREAM",
        _ => "",
    }
}

/// What identifies a version of an upstream's snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tag {
    /// An entity tag.
    Entity(HeaderValue),
    /// Device, inode, size and time of change of a file.
    File([i128; 4]),
}

impl Tag {
    /// The entity tag that servers give to a revision.
    pub fn of_revision(revision: u64) -> Self {
        // Hexadecimal digits in quotes are valid in a header.
        Self::Entity(HeaderValue::from_str(&format!("\"{revision:016x}\"")).unwrap_or(HeaderValue::from_static("")))
    }
}

/// The outcome of a request.
pub enum Fetched {
    /// The upstream still has the version that the request named.
    Unchanged,
    /// Another version.
    Snapshot {
        /// As transferred.
        body: Vec<u8>,
        /// Without one, every request transfers the snapshot.
        tag: Option<Tag>,
        /// When the headers of the response were there; the snapshot is not older.
        received_at: Instant,
    },
}

/// The HTTP client.
pub struct Client {
    http: reqwest::Client,
    token: Option<HeaderValue>,
}

impl Client {
    /// A client that trusts the certificates of this system.
    ///
    /// # Errors
    /// The TLS library cannot be set up.
    pub fn new(token: Option<HeaderValue>) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(versions.with_root_certificates(roots).with_no_client_auth())
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("model-catalog/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http, token })
    }

    /// Reads the snapshot at `location` unless it is the version `known`. A server may delay its response by up to
    /// `wait`, until it has another version.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(&self, location: &Location, known: Option<Tag>, wait: Duration) -> Result<Fetched, FetchError> {
        let url = match location {
            Location::File(path) => return read_file(path, known.as_ref()),
            Location::Http(url) => url.clone(),
            Location::Server(url) => {
                let mut url = url.clone();
                if !wait.is_zero() {
                    url.set_query(Some(&format!("wait={}s", wait.as_secs())));
                }
                url
            }
        };
        let mut request = self.http.get(url).header(ACCEPT_ENCODING, "gzip");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some(Tag::Entity(tag)) = known {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let silent = |_| FetchError::Silent(READ_TIMEOUT);
        let mut response =
            tokio::time::timeout(wait + CONNECT_TIMEOUT + READ_TIMEOUT, request.send()).await.map_err(silent)??;
        let received_at = Instant::now();
        match response.status() {
            StatusCode::NOT_MODIFIED => return Ok(Fetched::Unchanged),
            StatusCode::OK => {}
            status => return Err(FetchError::Status(status)),
        }
        let tag = response.headers().get(ETAG).cloned().map(Tag::Entity);
        let mut body = Vec::new();
        while let Some(chunk) = tokio::time::timeout(READ_TIMEOUT, response.chunk()).await.map_err(silent)?? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(FetchError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Fetched::Snapshot { body, tag, received_at })
    }
}

fn read_file(path: &Path, known: Option<&Tag>) -> Result<Fetched, FetchError> {
    let received_at = Instant::now();
    let mut file = snapshot_file::open(path)?;
    let metadata = file.get_ref().metadata()?;
    let changed_at = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    let tag = Tag::File([metadata.dev().into(), metadata.ino().into(), metadata.len().into(), changed_at]);
    if known == Some(&tag) {
        return Ok(Fetched::Unchanged);
    }
    if metadata.len() > MAX_BYTES as u64 {
        return Err(FetchError::TooLarge);
    }
    let mut body = Vec::new();
    file.read_to_end(&mut body)?;
    Ok(Fetched::Snapshot { body, tag: Some(tag), received_at })
}

/// Reads a snapshot, compressed or not. What the content is called differs from server to server, so its first bytes
/// decide.
///
/// # Errors
/// See [`SnapshotFileError`].
pub fn read(body: &[u8], previous: &Snapshot) -> Result<PersistedSnapshot<Snapshot>, SnapshotFileError> {
    if body.starts_with(&GZIP) {
        let decoder = MultiGzDecoder::new(body);
        snapshot_file::read_from(BufReader::with_capacity(READ_BUFFER, decoder), previous)
    } else {
        snapshot_file::read_from(Cursor::new(body), previous)
    }
}

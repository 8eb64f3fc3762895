//! Requests to upstreams. If a snapshot has not changed, only headers are transferred.

use std::error::Error;
use std::io::{self, BufReader, Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::bufread::MultiGzDecoder;
use reqwest::header::{ACCEPT_ENCODING, AGE, AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use reqwest::{Response, StatusCode};
use tracing::warn;

use super::config::Location;
use crate::base::error_chain::chain;
use crate::base::http_client::{self, CONNECT_TIMEOUT};
use crate::catalog::snapshot::Snapshot;
use crate::postgres::position::Position;
use crate::snapshot_file::{self, AS_OF, NEVER_SYNCED, PersistedSnapshot, SnapshotFileError};

/// Maximum time until a response begins, in addition to the time that the upstream may wait.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Minimum rate of a body after [`READ_TIMEOUT`]: with less, another upstream is tried.
const MIN_BYTES_PER_SECOND: usize = 16 * 1024;
/// Largest snapshot that is read, as transferred and decompressed: a wrong address must not fill the memory.
const MAX_BYTES: usize = 2 << 30;
const READ_BUFFER: usize = 256 * 1024;
/// The first bytes of a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// No response, or it ended early.
    #[error(transparent)]
    Http(reqwest::Error),
    /// Nothing was received in time.
    #[error("it sent nothing for {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// The body arrives too slowly to ever end.
    #[error("it sends less than {MIN_BYTES_PER_SECOND} bytes per second")]
    Slow,
    /// Neither 200 nor 304, or 304 without a condition.
    #[error("the response is {0}{hint}", hint = hint(*.0))]
    Status(StatusCode),
    /// The file can't be read.
    #[error(transparent)]
    File(#[from] SnapshotFileError),
    /// Larger than any snapshot.
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

fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ": set CATALOG_UPSTREAM_TOKEN to a token that it accepts",
        StatusCode::NOT_FOUND => ": check the path in CATALOG_UPSTREAM",
        _ => "",
    }
}

/// Identifies a version of an upstream's snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tag {
    /// An entity tag.
    Entity(HeaderValue),
    /// Device, inode, size and time of change of a file.
    File([i128; 4]),
}

impl Tag {
    /// The entity tag that servers give to a revision.
    pub(crate) fn of_revision(revision: u64) -> Self {
        // Hexadecimal digits in quotes are valid in a header.
        Self::Entity(HeaderValue::from_str(&format!("\"{revision:016x}\"")).unwrap_or(HeaderValue::from_static("")))
    }
}

/// The outcome of a request.
pub(crate) enum Fetched {
    /// The upstream still has the version that the request named.
    Unchanged {
        /// See [`Fetched::Snapshot`].
        as_of: Option<Position>,
        /// See [`Fetched::Snapshot`].
        synced_at: Option<Instant>,
    },
    /// Another version.
    Snapshot {
        /// As transferred.
        body: Vec<u8>,
        /// Without one, every request transfers the snapshot.
        tag: Option<Tag>,
        /// The latest position at which the upstream had this content, if it says so outside of the body.
        as_of: Option<Position>,
        /// When the headers of the response were there.
        received_at: Instant,
        /// When the snapshot was last in sync with the database, as far as the upstream knows; `None` if the upstream
        /// has not reached its own source since its start.
        synced_at: Option<Instant>,
    },
}

/// The HTTP client.
pub(crate) struct Client {
    http: reqwest::Client,
    token: Option<HeaderValue>,
}

impl Client {
    /// A client that trusts the certificates of this system.
    pub(crate) fn new(token: Option<HeaderValue>) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (builder, no_certificates) = http_client::builder()?;
        if let Some(problem) = no_certificates {
            warn!("{}", chain(&problem));
        }
        Ok(Self { http: builder.build()?, token })
    }

    /// Reads the snapshot at `location` unless it is the version `known`. A server may delay its response by up to
    /// `wait`, until it has another version.
    pub(crate) async fn fetch(
        &self,
        location: &Location,
        known: Option<Tag>,
        wait: Duration,
    ) -> Result<Fetched, FetchError> {
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
            // Replaces what a user and a password in the URL became.
            request = request.headers(HeaderMap::from_iter([(AUTHORIZATION, token.clone())]));
        }
        let condition = known.and_then(|known| if let Tag::Entity(tag) = known { Some(tag) } else { None });
        let conditional = condition.is_some();
        if let Some(tag) = condition {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let limit = wait + CONNECT_TIMEOUT + READ_TIMEOUT;
        let sent = tokio::time::timeout(limit, request.send()).await;
        let response = sent.map_err(|_| FetchError::Silent(limit))??;
        let received_at = Instant::now();
        let age = age(response.headers());
        let synced_at = received_at.checked_sub(Duration::from_secs(age)).filter(|_| age < NEVER_SYNCED);
        let as_of = response.headers().get(AS_OF).and_then(|as_of| Position::parse(as_of.to_str().ok()?));
        match response.status() {
            StatusCode::NOT_MODIFIED if conditional => return Ok(Fetched::Unchanged { as_of, synced_at }),
            StatusCode::OK => {}
            status => return Err(FetchError::Status(status)),
        }
        let tag = response.headers().get(ETAG).cloned().map(Tag::Entity);
        let body = read_body(response, received_at).await?;
        Ok(Fetched::Snapshot { body, tag, as_of, received_at, synced_at })
    }
}

/// Reads the body of a response whose headers were there at `received_at`.
async fn read_body(mut response: Response, received_at: Instant) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    loop {
        let limit = received_at + READ_TIMEOUT + Duration::from_secs((body.len() / MIN_BYTES_PER_SECOND) as u64);
        let chunk = tokio::time::timeout_at(limit.into(), response.chunk()).await;
        let Some(chunk) = chunk.map_err(|_| FetchError::Slow)?? else { return Ok(body) };
        if body.len() + chunk.len() > MAX_BYTES {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
        if !may_be_snapshot(&body) {
            return Err(SnapshotFileError::Damaged("it is not a snapshot file").into());
        }
    }
}

/// The age in seconds that a response states; without one it is fresh.
fn age(headers: &HeaderMap) -> u64 {
    headers.get(AGE).and_then(|age| age.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// Whether a body can still become a snapshot: most content at a wrong address is refused by its first bytes.
fn may_be_snapshot(body: &[u8]) -> bool {
    let starts = |start: &[u8]| body.iter().zip(start).all(|(byte, expected)| byte == expected);
    starts(&GZIP) || starts(b"{\"format\":\"model-catalog snapshot\"")
}

fn read_file(path: &Path, known: Option<&Tag>) -> Result<Fetched, FetchError> {
    let received_at = Instant::now();
    let mut file = snapshot_file::open(path)?;
    let metadata = file.get_ref().metadata()?;
    let changed_at = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    let tag = Tag::File([metadata.dev().into(), metadata.ino().into(), metadata.len().into(), changed_at]);
    if known == Some(&tag) {
        return Ok(Fetched::Unchanged { as_of: None, synced_at: Some(received_at) });
    }
    if metadata.len() > MAX_BYTES as u64 {
        return Err(FetchError::TooLarge);
    }
    let mut body = Vec::new();
    file.read_to_end(&mut body)?;
    Ok(Fetched::Snapshot { body, tag: Some(tag), as_of: None, received_at, synced_at: Some(received_at) })
}

/// Reads a snapshot, compressed or not. Servers differ in how they declare that, so the first bytes decide.
pub(crate) fn read(body: &[u8], previous: &Snapshot) -> Result<PersistedSnapshot<Snapshot>, SnapshotFileError> {
    if body.starts_with(&GZIP) {
        let decoder = MultiGzDecoder::new(body).take(MAX_BYTES as u64);
        snapshot_file::read_from(BufReader::with_capacity(READ_BUFFER, decoder), previous)
    } else {
        snapshot_file::read_from(Cursor::new(body), previous)
    }
}

//! `GET /api/snapshot`: the whole catalog in the format of the snapshot file, for servers without a database.
//!
//! With `?wait=30s` a request whose `If-None-Match` names the current revision is held back until the revision changes.
//! It holds no snapshot meanwhile, and the headers of the request are freed. If the client closes the connection or its
//! side of it, the wait ends. All compressed responses of one state share their bytes, which are rendered once, on a
//! thread beside the workers. The position of a state moves on while its content stays; it is in a header of its own.

use std::future::poll_fn;
use std::io::{self, BufWriter};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::FutureExt;
use hyper::header::{AGE, CONTENT_ENCODING, HeaderValue, VARY};
use hyper::{Request, StatusCode, Uri};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit, watch};

use crate::catalog::snapshot::Snapshot;
use crate::http::accept::accepts_gzip;
use crate::http::connection::Connection;
use crate::http::etag::{entity_tag, matches_etag};
use crate::http::response::{self, Response};
use crate::http::{Api, SNAPSHOT, with_revision};
use crate::postgres::position::Position;
use crate::snapshot_file::writer::LatestState;
use crate::snapshot_file::{self, AS_OF, NEVER_SYNCED, PersistedSnapshot};

/// Longest time that a request may wait; a longer one is shortened.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// For 100,000 generated rows, level 1 takes two thirds of the time (115 ms) and makes 49 % more bytes; level 5 takes
/// 1.6 times as long for 4 % fewer. The bytes are sent once per edge, the time is spent once per change.
const LEVEL: Compression = Compression::new(2);
/// Without it the encoder would be given a line at a time.
const BUFFER: usize = 64 * 1024;

/// A position that lists more than about 200 transactions in progress is left out: proxies allow all headers of a
/// response 4 or 8 KiB.
const MAX_AS_OF_BYTES: usize = 2048;

type State = PersistedSnapshot<Arc<Snapshot>>;

/// The states that the route serves, and its limit on waiting requests.
#[derive(Debug)]
pub(crate) struct SnapshotFeed {
    latest: watch::Receiver<LatestState>,
    max_waiters: usize,
    /// A permit is held by each waiting request.
    waiters: Semaphore,
    /// The lock is held while a snapshot is compressed.
    compressed: Arc<Mutex<Compressed>>,
}

/// The compressed snapshot of a state, for as long as only its position changes.
#[derive(Debug)]
struct Compressed {
    /// Has seen the state that `body` is of.
    latest: watch::Receiver<LatestState>,
    body: Option<Bytes>,
}

impl SnapshotFeed {
    /// Serves the states that `latest` receives. At most `max_waiters` requests wait at a time; further ones get their
    /// response at once. All waiting requests do when the sender is dropped, or sends while the server drains.
    pub(crate) fn new(latest: watch::Receiver<LatestState>, max_waiters: usize) -> Self {
        let max_waiters = max_waiters.min(Semaphore::MAX_PERMITS);
        let compressed = Arc::new(Mutex::new(Compressed { latest: latest.clone(), body: None }));
        Self { latest, max_waiters, waiters: Semaphore::new(max_waiters), compressed }
    }

    /// The number of requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.max_waiters - self.waiters.available_permits()
    }

    fn latest(&self) -> Option<State> {
        self.latest.borrow().clone()
    }
}

/// How long a request may wait: an addition to the deadline of its connection. Zero for other routes.
pub(crate) fn allowed_wait(uri: &Uri) -> Duration {
    if uri.path() == SNAPSHOT { parse_wait(uri).unwrap_or_default() } else { Duration::ZERO }
}

fn parse_wait(uri: &Uri) -> Result<Duration, String> {
    let parameters = uri.query().unwrap_or_default().split('&');
    let Some(wait) = parameters.filter_map(|pair| pair.strip_prefix("wait=")).next() else { return Ok(Duration::ZERO) };
    let wait = humantime::parse_duration(wait);
    wait.map(|wait| wait.min(MAX_WAIT)).map_err(|_| "`wait` must be a duration with a unit, such as 30s".into())
}

/// A request without the parts that are not needed any more.
pub(crate) struct SnapshotRequest {
    known: Option<Known>,
    compress: bool,
}

/// Set if the client has the current snapshot.
struct Known {
    revision: u64,
    /// How long the request may wait for another revision.
    wait: Duration,
    /// The connection of a request that may wait.
    connection: Option<Arc<Connection>>,
}

/// Reads the head of a request.
///
/// # Errors
/// The response, if there is no catalog yet or the request is invalid.
pub(crate) fn parse<B>(api: &Api, request: &Request<B>) -> Result<SnapshotRequest, Response> {
    let feed = api.snapshots.latest.borrow();
    let Some(latest) = feed.as_ref() else { return Err(response::not_loaded()) };
    let wait = parse_wait(request.uri())
        .map_err(|message| with_revision(response::error(StatusCode::BAD_REQUEST, &message), &latest.snapshot))?;
    let revision = latest.snapshot.revision();
    let connection = || request.extensions().get().cloned();
    let known = matches_etag(request.headers(), &entity_tag(revision));
    let known = known.then(|| Known { revision, wait, connection: connection() });
    Ok(SnapshotRequest { known, compress: accepts_gzip(request.headers()) })
}

/// The snapshot, or 304 if its revision is the known one. If the request asks for it, waits first until it is another.
#[expect(clippy::manual_async_fn, reason = "an async fn would keep its arguments twice, for as long as it waits")]
pub(crate) fn respond(api: Arc<Api>, request: SnapshotRequest) -> impl Future<Output = Response> {
    async move {
        if let Some(known) = &request.known {
            let permit = permit_to_wait(&api, known);
            if permit.is_some() {
                let mut latest = api.snapshots.latest.clone();
                let changed = latest.wait_for(|state| {
                    let changed = |state: &State| state.snapshot.revision() != known.revision;
                    state.as_ref().is_some_and(changed) || api.draining.load(Relaxed)
                });
                let mut waited = pin!(tokio::time::timeout(known.wait, changed));
                let client_closed =
                    || known.connection.as_ref().is_some_and(|connection| connection.is_client_closed());
                poll_fn(|context| match waited.as_mut().poll(context) {
                    Poll::Pending if !client_closed() => Poll::Pending,
                    _ => Poll::Ready(()),
                })
                .await;
            }
            if let Some(response) = not_modified(&api, known) {
                return response;
            }
        }
        if request.compress { compressed(&api).await } else { plain(&api).await }
    }
}

fn permit_to_wait<'a>(api: &'a Api, known: &Known) -> Option<SemaphorePermit<'a>> {
    let waits = !known.wait.is_zero() && !api.draining.load(Relaxed);
    waits.then(|| api.snapshots.waiters.try_acquire().ok())?
}

/// The response to a client that has the latest revision.
fn not_modified(api: &Api, known: &Known) -> Option<Response> {
    let latest = api.snapshots.latest().filter(|latest| latest.snapshot.revision() == known.revision)?;
    Some(finish(api, response::not_modified(), &latest.snapshot, &latest.as_of))
}

/// The compressed snapshot of the latest state, rendered unless another request did.
async fn compressed(api: &Api) -> Response {
    let mut compressed = Arc::clone(&api.snapshots.compressed).lock_owned().await;
    // Read after acquiring the lock; the state may have changed.
    let (latest, changed) = {
        let latest = compressed.latest.borrow_and_update();
        (latest.clone(), latest.has_changed())
    };
    let Some(latest) = latest else { return response::not_loaded() };
    let (snapshot, as_of) = (Arc::clone(&latest.snapshot), latest.as_of.clone());
    if changed {
        compressed.body = None;
    }
    let body = match compressed.body.clone() {
        Some(body) => Ok(body),
        None => {
            let memory = api.memory.clone();
            // The guard moves into the task, which continues if the client disconnects.
            let keep = move |body| {
                compressed.body = Some(memory.try_bytes(body)?);
                compressed.body.clone()
            };
            render(api, latest, write_compressed, keep).await
        }
    };
    match body {
        Ok(body) => {
            let mut response = with_body(body);
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            finish(api, response, &snapshot, &as_of)
        }
        Err(response) => with_revision(response, &snapshot),
    }
}

async fn plain(api: &Api) -> Response {
    let Some(latest) = api.snapshots.latest() else { return response::not_loaded() };
    let (snapshot, as_of) = (Arc::clone(&latest.snapshot), latest.as_of.clone());
    // Reserved before it is rendered: any number of clients may ask for it at a time.
    let mut reservation = api.memory.reserve();
    if !reservation.try_resize(plain_size(&snapshot)) {
        return with_revision(response::out_of_memory(), &snapshot);
    }
    let keep = move |body: Vec<u8>| reservation.try_resize(body.capacity()).then(|| reservation.into_bytes(body));
    match render(api, latest, write_plain, keep).await {
        Ok(body) => finish(api, with_body(body), &snapshot, &as_of),
        Err(response) => with_revision(response, &snapshot),
    }
}

/// Renders a state on a thread beside the workers. `keep` counts the memory that the result takes, if there is room.
fn render(
    api: &Api,
    state: State,
    write: fn(&State) -> io::Result<Vec<u8>>,
    keep: impl FnOnce(Vec<u8>) -> Option<Bytes> + Send + 'static,
) -> impl Future<Output = Result<Bytes, Response>> {
    api.scans.run(move || write(&state).map(keep)).map(|rendered| match rendered {
        Ok(Ok(Some(body))) => Ok(body),
        Ok(Ok(None)) => Err(response::out_of_memory()),
        Ok(Err(error)) => Err(response::serialization_failed(SNAPSHOT, &error)),
        Err(error) => Err(response::not_offloaded(&error)),
    })
}

/// Bytes of a snapshot without its header and checksum, one line per model.
fn plain_size(snapshot: &Snapshot) -> usize {
    snapshot.bytes() + snapshot.len()
}

fn write_plain(state: &State) -> io::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(plain_size(&state.snapshot));
    snapshot_file::write_to(&mut body, state)?;
    Ok(body)
}

fn write_compressed(state: &State) -> io::Result<Vec<u8>> {
    let mut encoder = BufWriter::with_capacity(BUFFER, GzEncoder::new(Vec::new(), LEVEL));
    snapshot_file::write_to(&mut encoder, state)?;
    encoder.into_inner()?.finish()
}

fn with_body(body: Bytes) -> Response {
    response::with_type(StatusCode::OK, HeaderValue::from_static("application/x-ndjson"), body)
}

/// Adds the headers of a response that clients may compare and caches may store. Its age (RFC 9111 §5.1) is the time
/// since the catalog was in sync with the database, however many servers are between.
fn finish(api: &Api, response: Response, snapshot: &Snapshot, as_of: &Position) -> Response {
    let mut response = response::with_etag(response, &entity_tag(snapshot.revision()));
    let age = api.sync.last_sync().map_or(NEVER_SYNCED, |sync| sync.at.elapsed().as_secs().min(NEVER_SYNCED));
    response.headers_mut().insert(AGE, age.into());
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    let as_of = as_of.to_string();
    if let Some(as_of) = HeaderValue::from_str(&as_of).ok().filter(|_| as_of.len() <= MAX_AS_OF_BYTES) {
        response.headers_mut().insert(AS_OF, as_of);
    }
    with_revision(response, snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_parsed_strictly_and_limited() {
        let wait = |uri: &'static str| allowed_wait(&Uri::from_static(uri)).as_millis();
        for (uri, expected) in [
            ("/api/snapshot", 0),
            ("/api/snapshot?wait=30s", 30_000),
            ("/api/snapshot?x=1&wait=250ms&wait=1s", 250),
            ("/api/snapshot?wait=1h", 60_000),
            ("/api/snapshot?wait=30", 0),
            ("/api/models?wait=30s", 0),
        ] {
            assert_eq!(wait(uri), expected, "{uri}");
        }
        for uri in ["/api/snapshot?wait=30", "/api/snapshot?wait=", "/api/snapshot?wait=soon"] {
            assert!(parse_wait(&Uri::from_static(uri)).is_err_and(|error| error.contains("such as 30s")), "{uri}");
        }
    }
}

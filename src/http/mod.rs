//! The HTTP API. hyper runs the protocol; every response is built from one snapshot in memory.

mod accept;
pub(crate) mod aria2;
pub mod batch_request;
pub mod batch_response;
mod body;
pub(crate) mod client_limits;
pub(crate) mod connection;
pub(crate) mod connection_limit;
pub(crate) mod cors;
mod date;
pub mod etag;
pub(crate) mod fd_limit;
pub(crate) mod handlers;
pub mod memory_budget;
pub(crate) mod offload;
mod percent;
mod request_log;
pub(crate) mod response;
pub(crate) mod server;
mod socket;

use std::future::{Ready, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Either;
use hyper::body::Body;
use hyper::header::{CONNECTION, DATE, HOST, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER, TRANSFER_ENCODING};
use hyper::{Method, Request, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::base::supervisor::Supervisor;
use crate::catalog::search;
use crate::catalog::store::Store;
use crate::metrics::{Metrics, RequestMetrics, Route};
use crate::sync::SyncStatus;
use batch_request::BatchParser;
use client_limits::{ClientLimits, Peer};
use cors::Cors;
use date::DateCache;
use handlers::batch;
use handlers::models;
use handlers::snapshot::{self, SnapshotFeed, SnapshotRequest};
use memory_budget::MemoryBudget;
use offload::Offload;
use request_log::LoggedRequest;
use response::{Response, set_revision, with_revision};

const MODELS: &str = "/api/models/";
const ALL_MODELS: &str = "/api/models";
const CATALOG: &str = "/api/catalog";
const SNAPSHOT: &str = "/api/snapshot";

/// Jobs that may queue for [`Api::scans`].
const MAX_QUEUED_SCANS: usize = 64;
/// How much the thread of [`Api::scans`] yields to the workers: it gets about a tenth of a core that they would use up.
pub const SCANS_NICE: i32 = 10;

/// Limits of one request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Ids in a batch.
    pub max_batch_ids: usize,
    /// Bytes in a request body.
    pub max_body_bytes: usize,
}

/// The state that all worker threads share.
pub struct Api {
    /// Where the catalog is read from.
    pub(crate) store: Arc<Store>,
    /// Whether it is in sync with its source.
    pub sync: Arc<SyncStatus>,
    /// Exposed at `/metrics`.
    pub(crate) metrics: Arc<Metrics>,
    /// Limits of one request.
    pub(crate) limits: Limits,
    /// Limits the requests whose catalog scan runs or is queued.
    pub(crate) list_requests: Semaphore,
    /// Runs catalog scans and renders snapshots, at low priority. A thread must call `Offload::run_jobs`.
    pub scans: Offload,
    /// The states that `/api/snapshot` serves.
    pub(crate) snapshots: SnapshotFeed,
    /// Limits of one client.
    pub(crate) clients: Arc<ClientLimits>,
    /// Origins whose pages may read responses.
    pub(crate) cors: Option<Cors>,
    /// API requests that take at least this long are logged, and those that fail; `None` logs none.
    pub(crate) log_slow: Option<Duration>,
    /// Memory of large request bodies and responses.
    pub(crate) memory: MemoryBudget,
    /// Starts and watches the threads of the server.
    pub(crate) threads: Supervisor,
    /// Time without a sync after which following the source counts as stalled.
    pub stalled_after: Duration,
    /// When this server was started.
    pub(crate) started: Instant,
    /// Set at the beginning of a shutdown: `/readyz` answers 503, and responses close their connections.
    pub(crate) draining: AtomicBool,
}

impl Api {
    /// Serves `store` within these limits, without limits per client, CORS and `/api/snapshot`.
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>, limits: Limits, memory: MemoryBudget) -> Self {
        let (clients, draining) = Default::default();
        let (list_requests, scans) = (Semaphore::new(models::MAX_REQUESTS), Offload::new(MAX_QUEUED_SCANS));
        let snapshots = SnapshotFeed::new(watch::channel(None).1, 0);
        let threads = Supervisor::new(metrics.thread_restarts.clone());
        Self {
            store,
            sync: Arc::default(),
            metrics,
            limits,
            list_requests,
            scans,
            snapshots,
            clients,
            cors: None,
            log_slow: None,
            memory,
            threads,
            stalled_after: Duration::MAX,
            started: Instant::now(),
            draining,
        }
    }
}

/// The routes of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routes {
    /// The API without the operational routes.
    Api,
    /// `/livez`, `/readyz` and `/metrics` only.
    Ops,
    /// Both.
    All,
}

/// A response, and what the connection must know about its request.
#[derive(Debug)]
pub struct Handled {
    /// The response.
    pub response: Response,
    /// The request's body was not read to its end.
    pub body_unread: bool,
    /// Time from the request's arrival until the response was ready to be sent.
    pub took: Duration,
}

/// Handles the requests of one worker thread.
pub struct Handler {
    api: Arc<Api>,
    metrics: Arc<RequestMetrics>,
    routes: Routes,
    /// Only one thread ever locks it, and each use begins by clearing what a panic may have left.
    parser: Mutex<BatchParser>,
    date: DateCache,
}

/// The parts of a request that finishing its response needs.
struct Exchange {
    received: Instant,
    route: Route,
    /// No request may follow on this connection.
    closes: bool,
    has_body: bool,
    /// Set if the route is subject to CORS.
    origin: Option<HeaderValue>,
    /// Set if the request may have to be logged.
    logged: Option<Box<LoggedRequest>>,
}

/// A request whose response is not ready at once: the parts of its head that are still needed. The rest is freed.
enum Deferred {
    Batch(batch::Head),
    Models(search::Query),
    Snapshot(SnapshotRequest),
}

impl Handler {
    /// A handler with request metrics of its own.
    pub fn new(api: Arc<Api>, routes: Routes) -> Self {
        let metrics = api.metrics.register_thread();
        Self { api, metrics, routes, parser: Mutex::default(), date: DateCache::default() }
    }

    fn has_api(&self) -> bool {
        self.routes != Routes::Ops
    }

    fn client_limits(&self) -> &Arc<ClientLimits> {
        &self.api.clients
    }

    fn metrics(&self) -> &RequestMetrics {
        &self.metrics
    }

    fn is_draining(&self) -> bool {
        self.api.draining.load(Relaxed)
    }

    /// Handles one request, whose head was complete at `received`. A panic ends neither the connection nor the process:
    /// the response is 500.
    ///
    /// Most responses are ready at once, without an async block: that is cheaper.
    pub fn handle<B>(
        self: &Arc<Self>,
        mut request: Request<B>,
        peer: Peer,
        received: Instant,
    ) -> Either<Ready<Handled>, impl Future<Output = Handled> + use<B>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let exchange = self.begin(&request, received);
        // A response changes nothing that is shared, so going on after a panic is sound. The panic hook has logged it.
        let begun = catch_unwind(AssertUnwindSafe(|| self.respond_now(exchange.route, &mut request, peer)));
        match begun.unwrap_or_else(|_| Either::Left(self.with_revision(response::internal_error()))) {
            Either::Left(response) => Either::Left(ready(self.finish(exchange, response, false))),
            Either::Right(deferred) => {
                let handler = Arc::clone(self);
                let responding = Arc::clone(self).respond(deferred, request.into_body());
                Either::Right(AssertUnwindSafe(responding).catch_unwind().map(move |responded| {
                    let (response, body_read) =
                        responded.unwrap_or_else(|_| (handler.with_revision(response::internal_error()), false));
                    handler.finish(exchange, response, body_read)
                }))
            }
        }
    }

    fn begin<B: Body>(&self, request: &Request<B>, received: Instant) -> Exchange {
        let route = self.route(request.method(), request.uri().path());
        // RFC 9112 §6.1: a request with both a length and chunks is read by its chunks, and no other may follow it.
        // hyper does not show the length then.
        let has_body = !request.body().is_end_stream();
        let chunked = has_body && request.headers().contains_key(TRANSFER_ENCODING);
        let closes = self.is_draining() || chunked;
        let cors = self.api.cors.as_ref().filter(|_| is_limited(route));
        let origin = cors.and_then(|_| request.headers().get(ORIGIN).cloned());
        let slow = self.api.log_slow.filter(|_| is_limited(route));
        let logged = slow.map(|slow| Box::new(LoggedRequest::new(request, slow)));
        Exchange { received, route, closes, has_body, origin, logged }
    }

    fn finish(&self, exchange: Exchange, mut response: Response, body_read: bool) -> Handled {
        let body_unread = exchange.has_body && !body_read;
        if let Some(cors) = self.api.cors.as_ref().filter(|_| is_limited(exchange.route)) {
            cors.allow(exchange.origin.as_ref(), &mut response);
        }
        // The next request begins where the unread body ends, if the client sends the body at all. hyper would go on
        // parsing there, and its refusal could come in the middle of a response that is still unsent.
        if exchange.closes || body_unread || self.is_draining() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(date) = self.date.header() {
            response.headers_mut().insert(DATE, date);
        }
        let took = exchange.received.elapsed();
        self.metrics.request(exchange.route, response.status().as_u16(), took);
        if let Some(logged) = exchange.logged {
            logged.finish(response.status(), took);
        }
        Handled { response, body_unread, took }
    }

    fn route(&self, method: &Method, path: &str) -> Route {
        let api = self.has_api();
        match path.strip_prefix(MODELS) {
            // With any other method it is the model with this id.
            Some("batch") if api && method == Method::POST => Route::Batch,
            Some(segment) if api && !segment.is_empty() && !segment.contains('/') => Route::Single,
            None if api && path == ALL_MODELS => Route::Models,
            None if api && path == CATALOG => Route::Catalog,
            None if api && path == SNAPSHOT => Route::Snapshot,
            None if api && path == "/openapi.json" => Route::OpenApi,
            None if api && path == "/" => Route::Page,
            _ if self.routes == Routes::Api => Route::Other,
            _ => handlers::ops::route(path).unwrap_or(Route::Other),
        }
    }

    /// The response, if it needs neither the body nor all of the catalog.
    fn respond_now<B>(&self, route: Route, request: &mut Request<B>, peer: Peer) -> Either<Response, Deferred> {
        let allowed = route == Route::Batch || matches!(*request.method(), Method::GET | Method::HEAD);
        let headers = request.headers();
        // Only with a repeated name is a closer look needed: that is cheaper.
        if headers.len() > headers.keys_len() && headers.get_all(HOST).iter().nth(1).is_some() {
            // RFC 9112 §3.2. A proxy might have taken the other one.
            let response = response::error(StatusCode::BAD_REQUEST, "more than one Host header");
            return Either::Left(self.with_revision(response));
        }
        if is_limited(route)
            && let Some(response) = self.preflight_or_limited(request, peer)
        {
            return Either::Left(response);
        }
        Either::Left(match route {
            Route::Other => self.with_revision(handlers::ops::not_found(self.routes, request.uri().path())),
            _ if !allowed => self.with_revision(response::method_not_allowed(self.allow(request.uri().path()))),
            Route::Batch => return Either::Right(Deferred::Batch(batch::Head::take(request))),
            Route::Models => match models::parse(&self.api, request) {
                Ok(query) => return Either::Right(Deferred::Models(query)),
                Err(response) => response,
            },
            Route::Snapshot => match snapshot::parse(&self.api, request) {
                Ok(request) => return Either::Right(Deferred::Snapshot(request)),
                Err(response) => response,
            },
            Route::Single => {
                let headers = std::mem::take(request.headers_mut());
                self.single(request.uri().path(), headers)
            }
            Route::Catalog => handlers::catalog::respond(&self.api),
            Route::Page => handlers::page::respond(request.headers()),
            Route::OpenApi => self.with_revision(response::json(StatusCode::OK, handlers::OPENAPI)),
            Route::Livez => handlers::ops::livez(&self.api),
            Route::Readyz => handlers::ops::readyz(&self.api),
            Route::Metrics => handlers::ops::metrics(&self.api, request.headers()),
        })
    }

    /// The response, and whether the body was read to its end. Each route has a future of its own, no larger than
    /// that route needs: thousands of requests for snapshots may wait at a time.
    fn respond<B>(self: Arc<Self>, deferred: Deferred, mut body: B) -> impl Future<Output = (Response, bool)>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match deferred {
            Deferred::Batch(head) => Either::Left(async move {
                let mut reservation = self.api.memory.reserve();
                let response = match body::read(&mut body, self.api.limits.max_body_bytes, &mut reservation).await {
                    Ok(body) => match self.batch(head, &body, reservation) {
                        Either::Left(response) => response,
                        // In a box, so that the futures of other batches are no larger.
                        Either::Right(file) => Box::pin(self.aria2(file)).await,
                    },
                    Err(response) => self.with_revision(response),
                };
                (response, body.is_end_stream())
            }),
            Deferred::Models(query) => Either::Right(Either::Left(async move {
                let response = models::respond(&self.api, query).await;
                (response, false)
            })),
            Deferred::Snapshot(request) => {
                let responding = snapshot::respond(Arc::clone(&self.api), request);
                Either::Right(Either::Right(responding.map(|response| (response, false))))
            }
        }
    }

    fn allow(&self, path: &str) -> &'static str {
        if path == "/api/models/batch" { "GET, HEAD, POST" } else { "GET, HEAD" }
    }

    /// A CORS preflight, or a client over its rate limit.
    fn preflight_or_limited<B>(&self, request: &Request<B>, peer: Peer) -> Option<Response> {
        let preflight = || Cors::preflight(request.method(), request.headers());
        if let Some(response) = self.api.cors.as_ref().and_then(|_| preflight()) {
            return Some(self.with_revision(response));
        }
        let values = |name: &HeaderName| request.headers().get_all(name).iter().map(HeaderValue::as_bytes);
        let wait = self.api.clients.check_rate(peer, values).err()?;
        let mut response = response::error(StatusCode::TOO_MANY_REQUESTS, "too many requests from your address");
        response.headers_mut().insert(RETRY_AFTER, wait.into());
        Some(self.with_revision(response))
    }

    /// Adds the revision of the current snapshot, if there is one.
    fn with_revision(&self, response: Response) -> Response {
        if self.has_api() { with_current_revision(&self.api, response) } else { response }
    }
}

/// Adds the revision of the current snapshot, if there is one.
fn with_current_revision(api: &Api, response: Response) -> Response {
    match api.store.load().as_deref() {
        Some(snapshot) => with_revision(response, snapshot),
        None => response,
    }
}

/// Whether a route is subject to the limits per client and to CORS.
fn is_limited(route: Route) -> bool {
    matches!(route, Route::Single | Route::Batch | Route::Models | Route::Catalog | Route::Snapshot)
}

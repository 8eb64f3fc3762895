//! The HTTP API: which request gets which answer. All of it is read from one snapshot in memory.

pub mod answer;
pub mod aria2;
pub mod batch;
pub mod body;
pub mod catalog;
pub mod clients;
pub mod connections;
pub mod cors;
pub mod etag;
pub mod found;
pub mod memory;
pub mod models;
pub mod page;
pub mod plain;
pub mod rate;
pub mod server;

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::Body;
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER, TRANSFER_ENCODING};
use hyper::{HeaderMap, Method, Request, StatusCode};

use crate::catalog::dependencies::Selection;
use crate::catalog::snapshot::Snapshot;
use crate::catalog::store::Store;
use crate::metrics::{Metrics, Route, Traffic};
use crate::ops;
use answer::Answer;
use aria2::Format;
use clients::{Clients, Peer};
use cors::Cors;
use etag::{entity_tag, header, hex_digits, matches_etag, with_etag};
use memory::Memory;
use models::Turns;
use plain::Scratch;

const CATALOG_REVISION: HeaderName = HeaderName::from_static("catalog-revision");
const MODELS: &str = "/api/models/";
const ALL_MODELS: &str = "/api/models";
const CATALOG: &str = "/api/catalog";
/// The description of all routes; tests hold it against them.
const OPENAPI: &str = include_str!("openapi.json");

/// What a client may ask for at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Ids in one batch.
    pub batch_ids: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
}

/// What all serving threads share.
pub struct Api {
    /// Where the catalog is read from.
    pub store: Arc<Store>,
    /// Behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// What a client may ask for.
    pub limits: Limits,
    /// Whose turn it is to look through all models.
    pub turns: Turns,
    /// What one client may have of it.
    pub clients: Arc<Clients>,
    /// Which pages may read it.
    pub cors: Option<Cors>,
    /// What bodies and answers of all clients take.
    pub memory: Arc<Memory>,
    /// Set once the process is to end: not ready any more, and connections are asked to go elsewhere.
    pub draining: AtomicBool,
}

impl Api {
    /// Answers from `store` within these limits: everybody alike, and to no page of another origin.
    #[must_use]
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>, limits: Limits, memory: Arc<Memory>) -> Self {
        let (turns, clients, draining) = Default::default();
        Self { store, metrics, limits, turns, clients, cors: None, memory, draining }
    }
}

/// Which routes a port answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routes {
    /// The API alone.
    Api,
    /// `/livez`, `/readyz` and `/metrics` alone.
    Ops,
    /// Both.
    All,
}

/// Answers the requests of one serving thread.
pub struct Handler {
    api: Arc<Api>,
    traffic: Arc<Traffic>,
    routes: Routes,
    scratch: Mutex<Scratch>,
}

impl Handler {
    /// A handler that counts under a [`Traffic`] of its own.
    #[must_use]
    pub fn new(api: Arc<Api>, routes: Routes) -> Self {
        let traffic = api.metrics.thread();
        Self { api, traffic, routes, scratch: Mutex::default() }
    }

    /// Whether this port has the routes that plain requests ask.
    #[must_use]
    pub fn has_api(&self) -> bool {
        self.routes != Routes::Ops
    }

    fn is_draining(&self) -> bool {
        self.api.draining.load(Relaxed)
    }

    /// Only this thread ever takes it, and what a panic leaves in it is overwritten.
    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_batch(&self, ids: usize, missing: &[&str]) {
        self.traffic.batch(ids);
        self.traffic.lookups(ids - missing.len(), missing.len());
        self.traffic.missing(missing);
    }

    /// Where this thread counts.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Answers one request. A fault of ours ends neither the connection nor the process: it is 500.
    pub async fn handle<B>(&self, mut request: Request<B>, peer: Peer) -> Answer
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let started = Instant::now();
        let route = self.route(request.uri().path());
        // RFC 9112 §6.1: a request with two lengths is read by this one, and no other may follow it. The library
        // does not show the other.
        let closes = self.is_draining() || request.headers().contains_key(TRANSFER_ENCODING);
        let cors = self.api.cors.as_ref().filter(|_| is_limited(route));
        let origin = cors.and_then(|_| request.headers().get(ORIGIN).cloned());
        // Nothing that is shared is changed half-way by an answer, so going on after a panic is sound. The panic
        // hook has logged it.
        let answer = AssertUnwindSafe(self.answer(route, &mut request, peer)).catch_unwind().await;
        let mut answer = answer.unwrap_or_else(|_| self.with_revision(answer::internal_error()));
        if let Some(cors) = cors {
            cors.allow(origin.as_ref(), &mut answer);
        }
        // Where a body that nobody read ends, the next request begins, if the client sent the body at all. The library
        // guesses, and where the answer is still unsent, its refusal of what follows would come in the answer's middle.
        if closes || self.is_draining() || !request.body().is_end_stream() {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.traffic.request(route, answer.status().as_u16(), started.elapsed());
        answer
    }

    fn route(&self, path: &str) -> Route {
        match path.strip_prefix(MODELS) {
            Some("batch") if self.routes != Routes::Ops => Route::Batch,
            Some(segment) if self.routes != Routes::Ops && !segment.is_empty() && !segment.contains('/') => {
                Route::Single
            }
            None if self.routes != Routes::Ops && path == ALL_MODELS => Route::Models,
            None if self.routes != Routes::Ops && path == CATALOG => Route::Catalog,
            _ if self.routes != Routes::Ops && path == "/openapi.json" => Route::OpenApi,
            None if self.routes != Routes::Ops && path == "/" => Route::Page,
            _ if self.routes == Routes::Api => Route::Other,
            _ => match path {
                "/livez" => Route::Livez,
                "/readyz" => Route::Readyz,
                "/metrics" => Route::Metrics,
                _ => Route::Other,
            },
        }
    }

    /// What comes before the route's own answer: a preflight, a client that asks too often.
    fn in_advance<B>(&self, request: &Request<B>, peer: Peer) -> Option<Answer> {
        let preflight = || Cors::preflight(request.method(), request.headers());
        if let Some(answer) = self.api.cors.as_ref().and_then(|_| preflight()) {
            return Some(self.with_revision(answer));
        }
        let values = |name: &HeaderName| request.headers().get_all(name).iter().map(HeaderValue::as_bytes);
        let wait = self.api.clients.may_ask(peer, values).err()?;
        let mut answer = answer::error(StatusCode::TOO_MANY_REQUESTS, "too many requests from your address");
        answer.headers_mut().insert(RETRY_AFTER, wait.into());
        Some(self.with_revision(answer))
    }

    async fn answer<B>(&self, route: Route, request: &mut Request<B>, peer: Peer) -> Answer
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let allow = match route {
            Route::Batch => "POST",
            _ => "GET, HEAD",
        };
        let allowed = match *request.method() {
            Method::GET | Method::HEAD => route != Route::Batch,
            Method::POST => route == Route::Batch,
            _ => false,
        };
        if request.headers().get_all(HOST).iter().nth(1).is_some() {
            // RFC 9112 §3.2. Who is in between might have gone by the other.
            return self.with_revision(answer::error(StatusCode::BAD_REQUEST, "more than one Host header"));
        }
        if is_limited(route)
            && let Some(answer) = self.in_advance(request, peer)
        {
            return answer;
        }
        match route {
            Route::Other => self.with_revision(answer::error(StatusCode::NOT_FOUND, "Not found")),
            _ if !allowed => self.with_revision(answer::method_not_allowed(allow)),
            Route::Single => self.single(request.uri().path(), request.headers()),
            Route::Batch => self.batch(request).await,
            Route::Models => {
                models::answer(&self.api, request.uri().query().unwrap_or_default(), request.headers()).await
            }
            Route::Catalog => self.catalog(),
            Route::Page => page::answer(request.headers()),
            Route::OpenApi => self.with_revision(answer::json(StatusCode::OK, OPENAPI)),
            Route::Livez => ops::livez(),
            Route::Readyz => ops::readyz(&self.api),
            Route::Metrics => ops::metrics(&self.api),
        }
    }

    fn catalog(&self) -> Answer {
        let current = self.api.store.load();
        let Some(snapshot) = current.as_deref() else { return not_loaded() };
        stamp(catalog::answer(&self.api, snapshot), snapshot)
    }

    fn single(&self, path: &str, headers: &HeaderMap) -> Answer {
        let current = self.api.store.load();
        let Some(snapshot) = current.as_deref() else { return not_loaded() };
        let answer = match decode(path.strip_prefix(MODELS).unwrap_or_default()) {
            Err(fault) => answer::error(StatusCode::BAD_REQUEST, &format!("the model id {fault}")),
            Ok(id) => match snapshot.get(&id) {
                Some(entry) => {
                    self.traffic.lookups(1, 0);
                    let etag = entity_tag(entry.digest());
                    if matches_etag(headers, &etag) {
                        with_etag(answer::not_modified(), &etag)
                    } else {
                        let kept = self.api.memory.keep(entry.json().to_vec());
                        kept.map_or_else(body::no_memory, |json| with_etag(answer::json(StatusCode::OK, json), &etag))
                    }
                }
                None => {
                    self.traffic.lookups(0, 1);
                    self.traffic.missing(&[&id]);
                    answer::model_not_found(&id)
                }
            },
        };
        stamp(answer, snapshot)
    }

    async fn batch<B>(&self, request: &mut Request<B>) -> Answer
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let limits = &self.api.limits;
        let mut share = self.api.memory.share();
        let bad = |message: &str| self.with_revision(answer::error(StatusCode::BAD_REQUEST, message));
        let format = Format::of_query(request.uri().query());
        let body = match body::read(request.body_mut(), limits.body_bytes, &mut share).await {
            Ok(body) => body,
            Err(answer) => return self.with_revision(answer),
        };
        let (format, asked) = match (format, batch::parse(&body, limits.batch_ids)) {
            (Ok(format), Ok(asked)) => (format, asked),
            (Err(message), _) => return bad(message),
            (_, Err(error)) => return bad(&error.to_string()),
        };
        let current = self.api.store.load();
        let Some(snapshot) = current.as_deref() else { return not_loaded() };
        if format == Format::Json && !asked.resolve_dependencies {
            let found = found::look_up(snapshot, &asked.ids);
            let mut json = Vec::with_capacity(found.size());
            if !share.hold(body.capacity() + json.capacity()) {
                return self.with_revision(body::no_memory());
            }
            found.write(&mut json);
            self.count_batch(asked.ids.len(), &found.missing);
            let _ = share.hold(json.capacity());
            return stamp(answer::json(StatusCode::OK, share.keep(json)), snapshot);
        }
        let selection = if asked.resolve_dependencies {
            Selection::with_dependencies(snapshot, &asked.ids, limits.batch_ids)
        } else {
            Ok(Selection::requested(snapshot, &asked.ids))
        };
        let selection = match selection {
            Ok(selection) => selection,
            Err(error) => return stamp(answer::error(StatusCode::BAD_REQUEST, &error.to_string()), snapshot),
        };
        self.count_batch(asked.ids.len(), &selection.not_found);
        let (content_type, text) = match format {
            Format::Json => ("application/json", found::resolved(&selection)),
            Format::Aria2 => ("text/plain; charset=utf-8", aria2::render(&selection).into()),
        };
        if !share.hold(body.capacity() + text.capacity()) {
            return self.with_revision(body::no_memory());
        }
        let _ = share.hold(text.capacity());
        stamp(answer::with_type(StatusCode::OK, HeaderValue::from_static(content_type), share.keep(text)), snapshot)
    }

    fn with_revision(&self, answer: Answer) -> Answer {
        match self.api.store.load().as_deref() {
            Some(snapshot) if self.routes != Routes::Ops => stamp(answer, snapshot),
            _ => answer,
        }
    }
}

/// Whether a route is one of those that are limited for each client, and that pages of other origins may read.
fn is_limited(route: Route) -> bool {
    matches!(route, Route::Single | Route::Batch | Route::Models | Route::Catalog)
}

fn not_loaded() -> Answer {
    let mut answer = answer::error(StatusCode::SERVICE_UNAVAILABLE, "Catalog not loaded yet");
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn stamp(mut answer: Answer, snapshot: &Snapshot) -> Answer {
    answer.headers_mut().insert(CATALOG_REVISION, header(&hex_digits(snapshot.revision())));
    answer
}

/// Percent-encoded UTF-8. Strict, because a lenient decoder would answer 404 to a client's mistake.
fn decode(encoded: &str) -> Result<Cow<'_, str>, &'static str> {
    if !encoded.contains('%') {
        return Ok(Cow::Borrowed(encoded));
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
            match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => (high * 16 + low) as u8,
                _ => return Err("is not valid percent-encoding: `%` needs two hexadecimal digits"),
            }
        } else {
            byte
        });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| "is not valid UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_decoded_strictly() {
        assert_eq!(decode("plain-1.0").as_deref(), Ok("plain-1.0"));
        assert_eq!(decode("a%2Fb%20%c3%a4+").as_deref(), Ok("a/b ä+"));
        for broken in ["%", "%2", "%zz", "a%", "%c3", "%ff", "%+1", "%%41"] {
            assert!(decode(broken).is_err(), "{broken}");
        }
    }
}

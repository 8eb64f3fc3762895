//! One connection: its deadline, and how it ends.
//!
//! hyper runs the protocol. This file decides how long a client may take, and knows in which phase a connection is:
//!
//! ```text
//!         first bytes            the response is ready           all is sent
//!  Idle ──────────────▶ Request ─────────────────────▶ Response ─────────────▶ Idle
//!   │                    ▲ │ it may wait for a change      ▲
//!   └────────────────────┘ ▼                               │
//!    hyper answers      Waiting ───────────────────────────┤
//!    malformed input       │ the client closes its side    │
//!    (`sending`)           ▼                               │
//!                       ClientClosed ──────────────────────┘
//! ```
//!
//! | phase | deadline |
//! |---|---|
//! | `Idle` | `CATALOG_IDLE_TIMEOUT` after the last response; `CATALOG_REQUEST_TIMEOUT` on a new connection |
//! | `Request`, `Response` | `CATALOG_REQUEST_TIMEOUT` after the first byte of the request |
//! | `Waiting`, `ClientClosed` | the same, plus the time that the request may wait |
//!
//! A lingering close can begin in every phase (`lingering`). It counts as `Idle` and ends after `LINGER_TIME`.
//!
//! A timer per request, or hyper's own `header_read_timeout`, costs 1,400 instructions a request; instead the
//! connection notes its deadline, and its one alarm looks at that only when it fires.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::Either;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::client_limits::{ConnectionPermit, Peer};
use super::handlers::snapshot::allowed_wait;
use super::response::Response;
use super::socket::Io;
use super::{Handled, Handler};
use crate::metrics::TimedOut;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// Maximum time to receive a request and send its response, counted from its first byte.
    pub(crate) request: Duration,
    /// Maximum time between two requests. It must exceed the load balancer's idle timeout, which is 60 s as a rule, so
    /// that the load balancer closes first: a request that is on its way would be lost otherwise.
    pub(crate) idle: Duration,
}

/// Maximum time for which a lingering close reads and discards.
const LINGER_TIME: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
#[repr(u8)]
enum Phase {
    /// Nothing received since the last response was sent.
    Idle,
    /// A request is being received or handled.
    Request,
    /// A response is being sent.
    Response,
    /// A request may be held back until something changes; the socket is watched.
    Waiting,
    /// The client of such a request has closed its side of the connection, or all of it.
    ClientClosed,
}

/// The state that a connection's I/O, service and task share. One thread runs all three; the atomics are for `Send`.
pub(super) struct Connection {
    handler: Arc<Handler>,
    peer: Peer,
    accepted: Instant,
    /// The timeouts in nanoseconds. The times below are nanoseconds after `accepted`.
    request_timeout: u64,
    idle_timeout: u64,
    deadline: AtomicU64,
    last_bytes_at: AtomicU64,
    /// The deadline once the response has been sent.
    idle_deadline: AtomicU64,
    /// A [`Phase`].
    phase: AtomicU8,
    /// The response says `connection: close` because the request's body was not read.
    body_unread: AtomicBool,
    /// The first response is the last.
    only_one: bool,
    _client: Option<ConnectionPermit>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Counts a connection as open until this is dropped. With `only_one` it ends after the first response.
    pub(super) fn new(
        handler: Arc<Handler>,
        peer: Peer,
        client: Option<ConnectionPermit>,
        permit: OwnedSemaphorePermit,
        timeouts: Timeouts,
        only_one: bool,
    ) -> Arc<Self> {
        handler.metrics().connection_opened();
        let connection = Self {
            handler,
            peer,
            accepted: Instant::now(),
            request_timeout: nanos(timeouts.request),
            idle_timeout: nanos(timeouts.idle),
            deadline: AtomicU64::new(nanos(timeouts.request)),
            last_bytes_at: AtomicU64::new(0),
            idle_deadline: AtomicU64::new(0),
            phase: AtomicU8::new(Phase::Idle as u8),
            body_unread: AtomicBool::new(false),
            only_one,
            _client: client,
            _permit: permit,
        };
        Arc::new(connection)
    }

    fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    fn deadline(&self) -> Instant {
        self.accepted + Duration::from_nanos(self.deadline.load(Relaxed))
    }

    /// Records that bytes arrived.
    pub(super) fn received(&self) {
        let now = nanos(self.accepted.elapsed());
        self.last_bytes_at.store(now, Relaxed);
        if self.is_in(Phase::Idle) {
            self.enter(Phase::Request);
            self.deadline.store(now.saturating_add(self.request_timeout), Relaxed);
        }
    }

    /// Whether the request that begins came in with the one before it. Requests of other connections are handled first:
    /// hyper would go on with those in its buffer, which holds hundreds.
    fn is_pipelined(&self) -> bool {
        !self.is_in(Phase::Request)
    }

    /// Records that the head of a request is complete; returns when that was.
    fn request_begins(&self) -> Instant {
        if self.is_in(Phase::Idle) {
            // Its bytes arrived with those of the previous request. Its time begins now that this one has been handled.
            self.received();
        }
        self.accepted + Duration::from_nanos(self.last_bytes_at.load(Relaxed))
    }

    /// Allows the request to wait for `wait` before its response begins.
    fn may_wait(&self, wait: Duration) {
        self.deadline.fetch_add(nanos(wait), Relaxed);
        self.enter(Phase::Waiting);
    }

    /// Whether the client of a request that waits has closed its side of the connection. A client that is gone must not
    /// keep the place of others, and one that has only finished sending gets its response at once.
    pub(super) fn is_client_closed(&self) -> bool {
        self.is_in(Phase::ClientClosed)
    }

    /// Records that the client of a request that may wait has closed its side of the connection, or all of it.
    pub(super) fn on_client_closed(&self) {
        self.enter(Phase::ClientClosed);
    }

    /// Records that the response is ready. The time of that is the sum of two that were measured already, which saves a
    /// look at the clock. The idle timeout counts from it, once all is sent.
    fn handled(&self, mut handled: Handled) -> Response {
        if self.only_one {
            handled.response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let finished = self.last_bytes_at.load(Relaxed).saturating_add(nanos(handled.took));
        self.idle_deadline.store(finished.saturating_add(self.idle_timeout), Relaxed);
        self.body_unread.store(handled.body_unread, Relaxed);
        self.enter(Phase::Response);
        handled.response
    }

    /// Records that bytes are written. Without a request, they are hyper's error response to malformed input.
    pub(super) fn sending(&self) {
        if self.is_in(Phase::Idle) {
            self.enter(Phase::Request);
        }
    }

    /// Records that everything written was sent; returns whether the request that is handled may wait.
    pub(super) fn flushed(&self) -> bool {
        if self.is_in(Phase::Response) {
            self.enter(Phase::Idle);
            self.deadline.store(self.idle_deadline.load(Relaxed), Relaxed);
            return false;
        }
        self.is_in(Phase::Waiting)
    }

    /// Records that a lingering close begins: the bytes that follow are not a request.
    pub(super) fn lingering(&self) {
        self.enter(Phase::Idle);
        let deadline = nanos(self.accepted.elapsed()).saturating_add(nanos(LINGER_TIME));
        self.deadline.store(deadline, Relaxed);
    }

    /// Counts a connection that is closed by its deadline.
    fn timed_out(&self) {
        if self.is_in(Phase::Response) {
            self.handler.metrics().timed_out(TimedOut::Response);
        } else if !self.is_in(Phase::Idle) {
            self.handler.metrics().timed_out(TimedOut::Request);
        }
    }

    /// Whether the client may still be sending. Closing would reset the connection, and a client that sends all of its
    /// request before it reads would not see the response. In the middle of a request the response is hyper's own, to
    /// one that it could not parse.
    pub(super) fn must_linger(&self) -> bool {
        self.body_unread.load(Relaxed) || self.is_in(Phase::Request)
    }
}

/// A u64 of nanoseconds holds 584 years; timeouts are at most one.
fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.handler.metrics().connection_closed();
    }
}

/// Runs a connection until it ends, its deadline passes, or it is idle when `shutdown` is cancelled.
pub(super) fn serve_connection(
    http: &http1::Builder,
    stream: std::net::TcpStream,
    connection: Arc<Connection>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let io = Io::new(stream, Arc::clone(&connection));
    let state = Arc::clone(&connection);
    let service = service_fn(move |request: Request<Incoming>| {
        if !state.is_pipelined() {
            return Either::Left(handle(&state, request));
        }
        // In a box, so that the futures of other requests are no larger.
        let state = Arc::clone(&state);
        Either::Right(Box::pin(async move {
            tokio::task::yield_now().await;
            handle(&state, request).await
        }))
    });
    let hyper = http.serve_connection(TokioIo::new(io), service);
    Task { hyper, cancelled: None, alarm: None, connection, shutdown, shutting_down: false }
}

/// Passes a request on to the handler; most responses are ready at once.
fn handle(
    state: &Arc<Connection>,
    mut request: Request<Incoming>,
) -> Either<Ready<Result<Response, Infallible>>, impl Future<Output = Result<Response, Infallible>> + use<>> {
    let received = state.request_begins();
    let wait = allowed_wait(request.uri());
    if !wait.is_zero() {
        state.may_wait(wait);
        request.extensions_mut().insert(Arc::clone(state));
    }
    match state.handler.handle(request, state.peer, received) {
        Either::Left(handled) => Either::Left(ready(Ok(state.handled(handled.into_inner())))),
        Either::Right(handling) => {
            let state = Arc::clone(state);
            Either::Right(handling.map(move |handled| Ok(state.handled(handled))))
        }
    }
}

pin_project! {
    /// The task of a connection. An async fn would keep its arguments and references to its variables beside these
    /// fields, which takes 256 bytes more.
    struct Task<S>
    where
        S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
    {
        #[pin]
        hyper: http1::Connection<TokioIo<Io>, S>,
        // Both are set when the connection first waits.
        #[pin]
        cancelled: Option<WaitForCancellationFutureOwned>,
        #[pin]
        alarm: Option<Sleep>,
        connection: Arc<Connection>,
        shutdown: CancellationToken,
        shutting_down: bool,
    }
}

impl<S> Task<S>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    /// Passes a shutdown on to hyper, which must be polled again if this returns true.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> bool {
        let mut this = self.project();
        if *this.shutting_down {
            return false;
        }
        // Registered once: the task's waker stays the same.
        if this.cancelled.is_none() {
            this.cancelled.set(Some(this.shutdown.clone().cancelled_owned()));
            _ = this.cancelled.as_pin_mut().map(|cancelled| cancelled.poll(context));
        }
        *this.shutting_down = this.shutdown.is_cancelled();
        if *this.shutting_down {
            this.hyper.graceful_shutdown();
        }
        *this.shutting_down
    }

    /// Ready when the deadline has passed. Otherwise an alarm is armed that fires at the deadline or before: deadlines
    /// move at each request, and the alarm only when it fires.
    fn poll_deadline(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            let deadline = this.connection.deadline();
            let armed = this.alarm.as_ref().as_pin_ref();
            if armed.is_some_and(|alarm| !alarm.is_elapsed() && alarm.deadline().into_std() <= deadline) {
                return Poll::Pending;
            }
            if deadline <= Instant::now() {
                this.connection.timed_out();
                return Poll::Ready(());
            }
            this.alarm.set(Some(tokio::time::sleep_until(deadline.into())));
            if this.alarm.as_mut().as_pin_mut().is_none_or(|alarm| alarm.poll(context).is_pending()) {
                return Poll::Pending;
            }
        }
    }
}

impl<S> Future for Task<S>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    type Output = ();

    /// Pending only after all three were polled: whatever of them comes first wakes the task.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            // First of all, so that what has arrived already has become a request before a shutdown is passed on.
            // I/O errors are ignored: the client disconnected.
            if self.as_mut().project().hyper.poll(context).is_ready() {
                return Poll::Ready(());
            }
            if !self.as_mut().poll_shutdown(context) {
                return self.poll_deadline(context);
            }
        }
    }
}

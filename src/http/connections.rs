//! The open connections of one serving thread: how many there may be, which of them are stuck, and how they end.
//!
//! A timer for each request would cost as much as reading it. Instead a request leaves the number of the present
//! tick behind, and a sweep every few seconds ends the connections whose number has grown old. That covers every way
//! to be slow: a head or a body that does not come, silence, an answer that is not read.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use slab::Slab;
use tokio::sync::Notify;

/// How long a client may take. A limit is overrun by a tick at most.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From its first byte until a request is there and its answer taken.
    pub request: Duration,
    /// Between two requests: longer than load balancers keep a connection (60 s as a rule), so that it is they who close
    /// it, and never under a request that is on its way.
    pub idle: Duration,
}

/// Longest time between two sweeps.
const SWEEP: Duration = Duration::from_secs(5);
/// Sweeps within a limit at least.
const SWEEPS: u32 = 6;
/// Longer limits than this many ticks are this long: ages are compared within 32 bits.
const MAX_TICKS: u32 = 1 << 29;

impl Timeouts {
    /// Time between two sweeps: one tick.
    #[must_use]
    pub fn sweep(&self) -> Duration {
        (self.request.min(self.idle) / SWEEPS).clamp(Duration::from_millis(1), SWEEP)
    }

    fn ticks(&self, limit: Duration) -> u32 {
        let ticks = limit.as_nanos().div_ceil(self.sweep().as_nanos());
        u32::try_from(ticks).unwrap_or(MAX_TICKS).min(MAX_TICKS)
    }
}

/// The open connections of one thread.
#[derive(Debug)]
pub struct Connections {
    open: Mutex<Slab<Arc<Progress>>>,
    max: usize,
    /// Ticks that a request may take, the rest of a tick on top.
    patience: u32,
    /// Ticks that a client may rest beyond those.
    rest: u32,
    /// Rung when a connection ends that somebody may be waiting for.
    ended: Notify,
    tick: AtomicU32,
    draining: AtomicBool,
}

/// How one connection gets on, and what it is told to do.
#[derive(Debug, Default)]
struct Progress {
    tick: AtomicU32,
    order: AtomicU8,
    waker: AtomicWaker,
}

/// The orders, each of which overrides those before it; 0 = go on.
const FINISH: u8 = 1;
const CUT: u8 = 2;

impl Progress {
    fn give(&self, order: u8) {
        self.order.fetch_max(order, Ordering::Relaxed);
        self.waker.wake();
    }
}

impl Connections {
    /// Room for `max` connections.
    #[must_use]
    pub fn new(max: usize, timeouts: Timeouts) -> Self {
        let (open, ended, tick, draining) = Default::default();
        let patience = timeouts.ticks(timeouts.request);
        // It wraps where a client may rest for less time than it may ask, and back again when it is added to a tick.
        let rest = timeouts.ticks(timeouts.idle).wrapping_sub(patience);
        Self { open, max, patience, rest, ended, tick, draining }
    }

    fn open(&self) -> MutexGuard<'_, Slab<Arc<Progress>>> {
        // Only this thread ever takes it, and a panic can't leave it half-changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether as many connections are open as there may be.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.open().len() >= self.max
    }

    /// Waits until fewer connections are open than there may be.
    pub async fn room(&self) {
        while self.is_full() {
            self.ended.notified().await;
        }
    }

    /// A place for one more connection, until it is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Place {
        let progress = Arc::new(Progress { tick: self.tick.load(Ordering::Relaxed).into(), ..Progress::default() });
        let key = self.open().insert(Arc::clone(&progress));
        Place { connections: Arc::clone(self), progress, key }
    }

    /// Ends what has not got on for too long; to be called every [`Timeouts::sweep`].
    pub fn sweep(&self) {
        let now = self.tick.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        for (_, progress) in self.open().iter() {
            // Signed, because a resting client's tick lies ahead.
            let age = now.wrapping_sub(progress.tick.load(Ordering::Relaxed)).cast_signed();
            if age > self.patience.cast_signed() {
                progress.give(CUT);
            }
        }
    }

    /// Tells every connection to end after the answer it is at, and waits until all have.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.open().iter().for_each(|(_, progress)| progress.give(FINISH));
        while !self.open().is_empty() {
            self.ended.notified().await;
        }
    }
}

/// One connection's place among the open ones.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    progress: Arc<Progress>,
    key: usize,
}

impl Place {
    /// A request begins to come in.
    pub fn begins(&self) {
        self.progress.tick.store(self.connections.tick.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// A request is answered: the client may rest.
    pub fn rests(&self) {
        let later = self.connections.tick.load(Ordering::Relaxed).wrapping_add(self.connections.rest);
        self.progress.tick.store(later, Ordering::Relaxed);
    }

    /// Whether the connection is to end as soon as no request is at hand.
    #[must_use]
    pub fn is_finishing(&self) -> bool {
        self.progress.order.load(Ordering::Relaxed) >= FINISH
    }

    /// Drives a connection until it ends, by itself or by order; `finish` tells it to end after the present answer.
    /// `None` = it was cut.
    pub async fn drive<C: Future>(&self, connection: C, finish: impl Fn(Pin<&mut C>)) -> Option<C::Output> {
        let mut connection = pin!(connection);
        let (mut registered, mut finishing) = (false, false);
        poll_fn(|context| {
            if !registered {
                // Once is enough: it is always the same task. An order that came before is seen below.
                self.progress.waker.register(context.waker());
                registered = true;
            }
            loop {
                // Before an order to finish is passed on, what was read already must have become a request.
                if let Poll::Ready(output) = connection.as_mut().poll(context) {
                    return Poll::Ready(Some(output));
                }
                match self.progress.order.load(Ordering::Relaxed) {
                    CUT => return Poll::Ready(None),
                    FINISH if !finishing => {
                        finish(connection.as_mut());
                        finishing = true;
                    }
                    _ => return Poll::Pending,
                }
            }
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        let was_full = open.len() >= self.connections.max;
        open.remove(self.key);
        drop(open);
        if was_full || self.connections.draining.load(Ordering::Relaxed) {
            self.connections.ended.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::task::Context;

    /// A connection that ends when it is told to finish, if it listens at all.
    struct Fake {
        listens: bool,
        told: bool,
    }

    impl Future for Fake {
        type Output = ();
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            if self.told && self.listens { Poll::Ready(()) } else { Poll::Pending }
        }
    }

    fn fake(place: &Place, listens: bool) -> impl Future<Output = Option<()>> {
        place.drive(Fake { listens, told: false }, |mut fake| fake.told = true)
    }

    const PATIENCE: u32 = 6;
    const IDLE_PATIENCE: u32 = 15;
    const TIMEOUTS: Timeouts = Timeouts { request: Duration::from_secs(30), idle: Duration::from_secs(75) };

    #[test]
    fn sweeps_follow_the_shorter_limit() {
        let timeouts = |request: u64, idle: u64| Timeouts {
            request: Duration::from_millis(request),
            idle: Duration::from_millis(idle),
        };
        let ticks = |timeouts: Timeouts| (timeouts.ticks(timeouts.request), timeouts.ticks(timeouts.idle));
        assert_eq!((TIMEOUTS.sweep(), ticks(TIMEOUTS)), (SWEEP, (PATIENCE, IDLE_PATIENCE)));
        assert_eq!((timeouts(600, 60).sweep(), ticks(timeouts(600, 60))), (Duration::from_millis(10), (60, 6)));
        assert_eq!(ticks(timeouts(1, 1)), (1, 1));
        assert_eq!(ticks(Timeouts { idle: Duration::MAX, ..TIMEOUTS }), (PATIENCE, MAX_TICKS));
    }

    #[test]
    fn a_rest_may_be_shorter_than_a_request() {
        let connections = Arc::new(Connections::new(10, Timeouts { request: TIMEOUTS.idle, idle: TIMEOUTS.request }));
        let (asking, resting) = (connections.enter(), connections.enter());
        resting.rests();
        let cut = |place: &Place| place.progress.order.load(Ordering::Relaxed) == CUT;
        for tick in 1..=IDLE_PATIENCE + 1 {
            connections.sweep();
            assert_eq!((cut(&asking), cut(&resting)), (tick > IDLE_PATIENCE, tick > PATIENCE), "{tick}");
        }
    }

    #[test]
    fn what_stands_still_is_cut_and_what_gets_on_is_not() {
        let connections = Arc::new(Connections::new(10, TIMEOUTS));
        let (still, busy) = (connections.enter(), connections.enter());
        let (mut still_runs, mut busy_runs) = (Box::pin(fake(&still, true)), Box::pin(fake(&busy, true)));
        let resting = connections.enter();
        let mut resting_runs = Box::pin(fake(&resting, true));
        resting.rests();
        for tick in 0..=IDLE_PATIENCE {
            assert_eq!(still_runs.as_mut().now_or_never().is_some(), tick == PATIENCE + 1);
            if tick == PATIENCE + 1 {
                break;
            }
            assert!(busy_runs.as_mut().now_or_never().is_none());
            connections.sweep();
            busy.begins();
        }
        assert!(busy_runs.as_mut().now_or_never().is_none());
        for _ in PATIENCE..IDLE_PATIENCE {
            assert!(resting_runs.as_mut().now_or_never().is_none());
            connections.sweep();
        }
        assert!(resting_runs.as_mut().now_or_never().is_some());
    }

    #[test]
    fn room_is_counted_and_a_drain_waits_for_all() {
        let connections = Arc::new(Connections::new(2, TIMEOUTS));
        let (first, second) = (connections.enter(), connections.enter());
        assert!(connections.room().now_or_never().is_none());
        drop(first);
        assert!(connections.room().now_or_never().is_some());

        let mut drain = Box::pin(connections.drain());
        assert!(drain.as_mut().now_or_never().is_none());
        assert!(fake(&second, false).now_or_never().is_none());
        assert!(fake(&second, true).now_or_never().is_some());
        drop(second);
        assert!(drain.as_mut().now_or_never().is_some());
    }
}

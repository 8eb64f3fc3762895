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

/// Time between two sweeps: one tick.
pub const SWEEP: Duration = Duration::from_secs(5);
/// From its first byte, a request has this many ticks to be there and answered, the rest of a tick on top.
const PATIENCE: u32 = 6;
/// Between two requests a client has this many: longer than load balancers keep a connection (60 s as a rule), so that
/// it is they who close it, and never under a request that is on its way.
const IDLE_PATIENCE: u32 = 15;

/// The open connections of one thread.
#[derive(Debug)]
pub struct Connections {
    open: Mutex<Slab<Arc<Progress>>>,
    max: usize,
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
    pub fn new(max: usize) -> Self {
        let (open, ended, tick, draining) = Default::default();
        Self { open, max, ended, tick, draining }
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

    /// Ends what has not got on for too long; to be called every [`SWEEP`].
    pub fn sweep(&self) {
        let now = self.tick.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        for (_, progress) in self.open().iter() {
            // Signed, because a resting client's tick lies ahead.
            let age = now.wrapping_sub(progress.tick.load(Ordering::Relaxed)).cast_signed();
            if age > PATIENCE.cast_signed() {
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
        let later = self.connections.tick.load(Ordering::Relaxed).wrapping_add(IDLE_PATIENCE - PATIENCE);
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

    #[test]
    fn what_stands_still_is_cut_and_what_gets_on_is_not() {
        let connections = Arc::new(Connections::new(10));
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
        let connections = Arc::new(Connections::new(2));
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

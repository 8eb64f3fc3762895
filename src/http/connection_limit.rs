//! The limit on open connections, shared by all threads that listen on one address.
//!
//! Connections over the limit wait for their turn. A bounded number of them is accepted meanwhile, because only then
//! can probes and scrapes be told from other requests; they hold a socket and no buffers. The rest stays in the
//! kernel's queue.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A limit on served connections, and one on those that wait.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionLimit {
    served: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// Why a connection is accepted.
pub(super) enum Place {
    /// To be served.
    Served(OwnedSemaphorePermit),
    /// To wait for its turn to be served.
    Waiting(OwnedSemaphorePermit),
}

impl ConnectionLimit {
    /// At most `served` connections are served at a time; `waiting` more are accepted and wait.
    pub(crate) fn new(served: usize, waiting: usize) -> Self {
        let permits = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self { served: permits(served), waiting: permits(waiting) }
    }

    /// A place, if there is one.
    pub(super) fn try_place(&self) -> Option<Place> {
        let served = Arc::clone(&self.served).try_acquire_owned().map(Place::Served);
        served.or_else(|_| Arc::clone(&self.waiting).try_acquire_owned().map(Place::Waiting)).ok()
    }

    /// Waits for a place. No thread keeps one while it has no connection for it.
    pub(super) async fn place(&self) -> Option<Place> {
        // The semaphores are never closed, so both patterns always match.
        tokio::select! {
            biased;
            Ok(permit) = Arc::clone(&self.served).acquire_owned() => Some(Place::Served(permit)),
            Ok(permit) = Arc::clone(&self.waiting).acquire_owned() => Some(Place::Waiting(permit)),
            else => None,
        }
    }

    /// Waits for its turn to be served: in the order of the calls, over all threads.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.served).acquire_owned().await.ok()
    }
}

//! Where the current snapshot stands: the loader publishes, requests load. No lock, no wait.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};

use super::snapshot::Snapshot;

/// Where the current snapshot came from, and when it was last known to be the truth.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sync {
    /// The moment the last read of the database that succeeded began; `None` before the first.
    pub at: Option<Instant>,
}

/// The current snapshot, if there is one yet.
#[derive(Debug, Default)]
pub struct Store {
    current: ArcSwapOption<Snapshot>,
    sync: ArcSwap<Sync>,
}

impl Store {
    /// The snapshot of this moment. Ask once a request and drop it before any `.await`: all of one answer must
    /// come from one snapshot, and a snapshot that is held can't be freed.
    #[must_use]
    pub fn load(&self) -> Guard<Option<Arc<Snapshot>>> {
        self.current.load()
    }

    /// How far the current snapshot is in step with the database.
    #[must_use]
    pub fn sync(&self) -> Sync {
        **self.sync.load()
    }
}

/// The writing end of a [`Store`]; there is one.
///
/// It keeps what it replaced until the last request has let go of it, so that the memory of an old snapshot is
/// freed by the publisher's thread and never by a request's.
#[derive(Debug)]
pub struct Publisher {
    store: Arc<Store>,
    retired: Vec<Arc<Snapshot>>,
}

impl Publisher {
    /// The publisher of `store`.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, retired: Vec::new() }
    }

    /// Every request that begins after this returns is answered from `snapshot`.
    pub fn publish(&mut self, snapshot: Snapshot) -> Arc<Snapshot> {
        let snapshot = Arc::new(snapshot);
        self.retired.extend(self.store.current.swap(Some(Arc::clone(&snapshot))));
        self.sweep();
        snapshot
    }

    /// The current snapshot is what the database held at `at` or later.
    pub fn synced(&mut self, at: Instant) {
        self.store.sync.store(Arc::new(Sync { at: Some(at) }));
        self.sweep();
    }

    /// Frees the replaced snapshots that nobody reads any more.
    fn sweep(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }
}

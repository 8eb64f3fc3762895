//! Where the current snapshot stands: the loader publishes, requests load. No lock, no wait.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwapOption, Guard};

use super::snapshot::Snapshot;

/// How the database is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// Every change is announced.
    Live,
    /// Through a pooler that loses announcements: looked at in intervals.
    Polling,
    /// A hot standby, which can't announce: all of it is read in intervals.
    Standby,
}

/// When the current snapshot was last known to be the truth. Before the first read of the database there is no such
/// moment, and a snapshot that is served came from the file.
#[derive(Debug, Clone, Copy)]
pub struct Sync {
    /// The moment the last read that succeeded began.
    pub at: Instant,
    /// What that read was part of.
    pub follow: SyncMode,
}

/// The current snapshot, if there is one yet.
#[derive(Debug, Default)]
pub struct Store {
    current: ArcSwapOption<Snapshot>,
    sync: ArcSwapOption<Sync>,
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
    pub fn sync(&self) -> Option<Sync> {
        self.sync.load().as_deref().copied()
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
    pub fn synced(&mut self, at: Instant, follow: SyncMode) {
        self.store.sync.store(Some(Arc::new(Sync { at, follow })));
        self.sweep();
    }

    /// Frees the replaced snapshots that nobody reads any more.
    fn sweep(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }
}

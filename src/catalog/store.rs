//! The current snapshot: the loader publishes it, requests load it. Neither locks nor waits.

use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};

use super::snapshot::Snapshot;

/// The current snapshot, once the first was published.
#[derive(Debug, Default)]
pub struct Store {
    current: ArcSwapOption<Snapshot>,
}

impl Store {
    /// The current snapshot. Load it once per request, because a response must come from one snapshot, and drop it
    /// before any `.await`, because a snapshot that is held cannot be freed.
    pub fn load(&self) -> Guard<Option<Arc<Snapshot>>> {
        self.current.load()
    }
}

/// The writing end of a [`Store`], which has one publisher.
///
/// It keeps replaced snapshots until no request uses them any more, so that their memory is freed on the publisher's
/// thread and never on a serving thread.
#[derive(Debug)]
pub struct Publisher {
    store: Arc<Store>,
    retired: Vec<Arc<Snapshot>>,
}

impl Publisher {
    /// The publisher of `store`.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, retired: Vec::new() }
    }

    /// The current snapshot.
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.store.current.load_full()
    }

    /// Replaces the current snapshot; requests that begin after this returns are served from the new one.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.retired.extend(self.store.current.swap(Some(snapshot)));
        self.sweep();
    }

    /// Frees replaced snapshots that no request uses any more.
    pub(crate) fn sweep(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }
}

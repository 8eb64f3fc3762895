//! The current snapshot: the loader publishes it, requests load it. Neither locks nor waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::{ArcSwapOption, Guard};
use serde::Serialize;

use super::snapshot::Snapshot;

/// How changes reach the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// The source notifies of every change.
    Live,
    /// Notifications are lost on the way: changes are read at intervals.
    Polling,
    /// The source is a read-only copy that sends no notifications: changes are read at intervals.
    Standby,
}

/// The last successful read of the source. Before the first one, a snapshot that is served came from the snapshot file.
#[derive(Debug, Clone, Copy)]
pub struct LastSync {
    /// When the read began.
    pub at: Instant,
    /// The mode of the connection it was made on; `None` if the source is not a database but an upstream.
    pub mode: Option<SyncMode>,
    /// If the source is a copy, the age in seconds of the last change that it had received.
    pub replay_lag_seconds: Option<f64>,
}

/// The servers that follow the same database.
#[derive(Debug, Default)]
pub struct Fleet {
    /// The first of them, those that are behind before the others.
    pub members: Vec<FleetMember>,
    /// The number of all.
    pub total: i64,
}

/// One server of a [`Fleet`].
#[derive(Debug, Serialize)]
pub struct FleetMember {
    /// Its configured name.
    pub name: String,
    /// The revision that it serves; `None` before its first read.
    pub revision: Option<String>,
    /// Whether it serves every committed change.
    pub in_sync: bool,
}

/// The current snapshot, once the first was published.
#[derive(Debug, Default)]
pub struct Store {
    current: ArcSwapOption<Snapshot>,
    last_sync: ArcSwapOption<LastSync>,
    fleet: ArcSwapOption<Fleet>,
    fleet_requested: AtomicBool,
    unwatched: ArcSwapOption<Box<[String]>>,
}

impl Store {
    /// The current snapshot. Load it once per request, because a response must come from one snapshot, and drop it
    /// before any `.await`, because a snapshot that is held cannot be freed.
    #[must_use]
    pub fn load(&self) -> Guard<Option<Arc<Snapshot>>> {
        self.current.load()
    }

    /// When and how the current snapshot was last in sync with the source; `None` before the first read.
    #[must_use]
    pub fn last_sync(&self) -> Option<LastSync> {
        self.last_sync.load().as_deref().copied()
    }

    /// The servers that follow the same database, as of the publisher's last read of them, and a request for the next
    /// read; `None` before it, and if the source does not show them.
    pub(crate) fn fleet(&self) -> Option<Arc<Fleet>> {
        self.fleet_requested.store(true, Relaxed);
        self.fleet.load_full()
    }

    /// The tables of the source whose changes go unnoticed until an audit; `None` if unknown.
    pub(crate) fn unwatched(&self) -> Option<Arc<Box<[String]>>> {
        self.unwatched.load_full()
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
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, retired: Vec::new() }
    }

    /// Whether there is a snapshot to serve.
    pub(crate) fn has_published(&self) -> bool {
        self.store.load().is_some()
    }

    /// Replaces the current snapshot; requests that begin after this returns are served from the new one.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.retired.extend(self.store.current.swap(Some(snapshot)));
        self.sweep();
    }

    /// Records that the current snapshot equals the content of the source at `sync.at` or later.
    pub fn record_sync(&mut self, sync: LastSync) {
        self.store.last_sync.store(Some(Arc::new(sync)));
        self.sweep();
    }

    /// Whether [`Store::fleet`] was called since the last call.
    pub(crate) fn take_fleet_request(&self) -> bool {
        self.store.fleet_requested.swap(false, Relaxed)
    }

    /// Replaces the list of servers; `None` if it is unknown.
    pub(crate) fn publish_fleet(&self, fleet: Option<Fleet>) {
        self.store.fleet.store(fleet.map(Arc::new));
    }

    /// Replaces the list of tables whose changes go unnoticed.
    pub(crate) fn publish_unwatched(&self, tables: Box<[String]>) {
        self.store.unwatched.store(Some(Arc::new(tables)));
    }

    /// Frees replaced snapshots that no request uses any more.
    fn sweep(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }
}

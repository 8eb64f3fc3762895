//! The state of being in sync with the source: the loader records it, `/readyz`, `/api/catalog` and edges read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use serde::Serialize;

use crate::postgres::session::SyncMode;

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
pub(crate) struct Fleet {
    /// The first members; those that are behind come first.
    pub(crate) members: Vec<FleetMember>,
    /// How many there are.
    pub(crate) total: i64,
}

/// One server of a [`Fleet`].
#[derive(Debug, Serialize)]
pub(crate) struct FleetMember {
    /// Its configured name.
    pub(crate) name: String,
    /// The revision that it serves; `None` before its first read.
    pub(crate) revision: Option<String>,
    /// Whether it serves every committed change.
    pub(crate) in_sync: bool,
}

/// The latest values. Readers neither lock nor wait.
#[derive(Debug, Default)]
pub struct SyncStatus {
    last_sync: ArcSwapOption<LastSync>,
    fleet: ArcSwapOption<Fleet>,
    fleet_requested: AtomicBool,
    unwatched: ArcSwapOption<Box<[String]>>,
    failure: ArcSwapOption<String>,
}

impl SyncStatus {
    /// When and how the current snapshot was last in sync with the source; `None` before the first read.
    pub fn last_sync(&self) -> Option<LastSync> {
        self.last_sync.load().as_deref().copied()
    }

    /// Records that the current snapshot equals the content of the source at `sync.at` or later.
    pub fn record(&self, sync: LastSync) {
        self.last_sync.store(Some(Arc::new(sync)));
        self.failure.store(None);
    }

    /// Why the source could not be read since the last sync; `None` if the last attempt succeeded or has not ended.
    pub(crate) fn failure(&self) -> Option<Arc<String>> {
        self.failure.load_full()
    }

    /// Records why the source could not be read.
    pub(crate) fn set_failure(&self, failure: String) {
        self.failure.store(Some(Arc::new(failure)));
    }

    /// The servers that follow the same database, as of the last read of them, and a request for the next read; `None`
    /// before it, and if the source does not show them.
    pub(crate) fn fleet(&self) -> Option<Arc<Fleet>> {
        self.fleet_requested.store(true, Relaxed);
        self.fleet.load_full()
    }

    /// Whether [`SyncStatus::fleet`] was called since the last call.
    pub(crate) fn take_fleet_request(&self) -> bool {
        self.fleet_requested.swap(false, Relaxed)
    }

    /// Replaces the list of servers; `None` if it is unknown.
    pub(crate) fn set_fleet(&self, fleet: Option<Fleet>) {
        self.fleet.store(fleet.map(Arc::new));
    }

    /// The tables of the source whose changes go unnoticed until an audit; `None` if unknown.
    pub(crate) fn unwatched(&self) -> Option<Arc<Box<[String]>>> {
        self.unwatched.load_full()
    }

    /// Replaces the list of tables whose changes go unnoticed.
    pub(crate) fn set_unwatched(&self, tables: Box<[String]>) {
        self.unwatched.store(Some(Arc::new(tables)));
    }
}

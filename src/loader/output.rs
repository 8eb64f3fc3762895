//! Where the states of the catalog go, whatever they were read from: the store, the gauges, and the channel that the
//! snapshot file and `GET /api/snapshot` are written from.

use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use tokio::sync::watch;

use super::report;
use crate::catalog::snapshot::Snapshot;
use crate::catalog::store::{Publisher, Store};
use crate::metrics::{Metrics, set_count};
use crate::snapshot_file::PersistedSnapshot;
use crate::snapshot_file::writer::LatestState;
use crate::sync::{Fleet, LastSync, SyncStatus};

/// The only writer of a [`Store`] and of a [`SyncStatus`].
pub struct Output {
    publisher: Publisher,
    sync: Arc<SyncStatus>,
    metrics: Arc<Metrics>,
    latest: watch::Sender<LatestState>,
}

impl Output {
    /// Publishes to `store` and sends states that can be resumed from to `latest`.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        sync: Arc<SyncStatus>,
        metrics: Arc<Metrics>,
        latest: watch::Sender<LatestState>,
    ) -> Self {
        Self { publisher: Publisher::new(store), sync, metrics, latest }
    }

    /// The metrics of what is published.
    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The snapshot that requests are served from.
    pub(super) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.publisher.snapshot()
    }

    /// The state that was handed on last.
    pub(super) fn latest(&self) -> LatestState {
        self.latest.borrow().clone()
    }

    /// When the published snapshot was last in sync.
    pub(super) fn last_sync(&self) -> Option<Instant> {
        self.sync.last_sync().map(|sync| sync.at)
    }

    /// Replaces the snapshot that requests are served from.
    pub(crate) fn publish(&mut self, snapshot: Arc<Snapshot>) {
        report::update_gauges(&self.metrics, &snapshot);
        self.publisher.publish(snapshot);
    }

    /// Hands a snapshot, with what is needed to resume from it, to the snapshot file and `/api/snapshot`. To be called
    /// before [`Output::publish`], so that a client that sees a revision can also get its snapshot.
    pub(crate) fn persist(&self, state: PersistedSnapshot<Arc<Snapshot>>) {
        self.latest.send_replace(Some(state));
    }

    /// Replaces the state that was handed on last with one that differs only in its position: the snapshot file is not
    /// written again, and waiting requests are not woken.
    pub(crate) fn move_position(&self, state: PersistedSnapshot<Arc<Snapshot>>) {
        self.latest.send_if_modified(|latest| {
            *latest = Some(state);
            false
        });
    }

    /// Publishes a snapshot that was read from the snapshot file, which is not written again.
    pub(crate) fn restore(&mut self, persisted: PersistedSnapshot<Snapshot>) -> PersistedSnapshot<Arc<Snapshot>> {
        let PersistedSnapshot { snapshot, position, as_of, rules, structure, database_started } = persisted;
        let snapshot = Arc::new(snapshot);
        let state = PersistedSnapshot { snapshot, position, as_of, rules, structure, database_started };
        self.move_position(state.clone());
        self.publish(Arc::clone(&state.snapshot));
        state
    }

    /// Records that the published snapshot equals the content of the source at `sync.at` or later.
    pub(crate) fn record_sync(&mut self, sync: LastSync) {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default();
        self.metrics.last_sync.set(now.saturating_sub(sync.at.elapsed()).as_secs_f64());
        self.sync.record(sync);
        self.publisher.sweep();
    }

    /// Records why the source could not be read; the next sync removes it.
    pub(super) fn record_failure(&self, failure: String) {
        self.sync.set_failure(failure);
    }

    /// Whether the fleet was asked for since the last call.
    pub(crate) fn take_fleet_request(&self) -> bool {
        self.sync.take_fleet_request()
    }

    /// Replaces the list of servers that follow the same database; `None` if it is unknown.
    pub(super) fn publish_fleet(&self, fleet: Option<Fleet>) {
        self.sync.set_fleet(fleet);
    }

    /// Replaces the list of tables whose changes go unnoticed.
    pub(crate) fn publish_unwatched(&self, tables: Box<[String]>) {
        set_count(&self.metrics.unwatched_tables, tables.len());
        self.sync.set_unwatched(tables);
    }
}

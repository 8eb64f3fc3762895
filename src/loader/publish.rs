//! What follows a read: its result is handed on, and the next audit may come earlier.

use std::sync::Arc;
use std::time::Instant;

use super::Loader;
use super::report::{CompletedRead, RefreshKind};
use crate::catalog::refresh::Refreshed;
use crate::catalog::row_error::log_rejections;
use crate::catalog::snapshot::Snapshot;
use crate::postgres::position::Position;
use crate::snapshot_file::PersistedSnapshot;
use crate::sync::LastSync;

impl Loader {
    /// Publishes what a read found, which brought the catalog to `position`.
    pub(super) fn publish(&mut self, refreshed: Refreshed, position: Option<Position>, read: CompletedRead) {
        let Refreshed { snapshot, changed, rejections_changed, newly_rejected, unknown } = refreshed;
        self.schedule_audit(&read, changed, unknown);
        self.trim.on_read(read.kind, read.rows);
        self.hand_on(snapshot, position, changed > 0 || rejections_changed);
        self.record_sync(&read);
        read.log(changed, &self.current);
        log_rejections(&newly_rejected);
    }

    /// Brings the next audit forward after unknown ids.
    fn schedule_audit(&mut self, read: &CompletedRead, changed: usize, unknown: Option<(usize, Box<str>)>) {
        match read.kind {
            RefreshKind::Audit => {
                self.unknown_ids.on_audit(changed, read.started.elapsed(), self.settings.audit_interval)
            }
            RefreshKind::Full => self.unknown_ids.on_full_read(),
            RefreshKind::Delta | RefreshKind::Upstream => {}
        }
        if let Some((number, example)) = unknown {
            let pause = self.unknown_ids.record(number, &example, &self.metrics);
            self.next_audit = self.next_audit.min(Instant::now() + pause);
        }
    }

    /// Hands a state on: first the position, which belongs to the state; then the state to the snapshot file and to
    /// `/api/snapshot`, so that a client that sees a revision can also get its snapshot; then the snapshot to requests.
    fn hand_on(&mut self, snapshot: Snapshot, position: Option<Position>, content_changed: bool) {
        let history_changed = self.position.as_ref().map(|at| &at.history) != position.as_ref().map(|at| &at.history);
        self.position = position;
        self.resume.advance(self.position.as_ref());
        if content_changed || history_changed {
            self.current = Arc::new(snapshot);
            self.state().into_iter().for_each(|state| self.output.persist(state));
            self.output.publish(Arc::clone(&self.current));
        } else if let Some(state) = self.state() {
            // The content may have been another one in between, which other servers have seen.
            self.output.move_position(state);
        }
    }

    fn record_sync(&mut self, read: &CompletedRead) {
        let replay_lag_seconds = self.standby.replay_lag_seconds();
        self.metrics.replay.lag.set(replay_lag_seconds.unwrap_or_default());
        self.metrics.replay.stalled.set(i64::from(self.standby.is_stalled()));
        self.output.record_sync(LastSync { at: read.started, mode: read.mode, replay_lag_seconds });
    }

    /// What is handed on. Without a position it could not be resumed from.
    fn state(&self) -> Option<PersistedSnapshot<Arc<Snapshot>>> {
        let (position, as_of) = (self.resume.position().cloned()?, self.position.clone()?);
        let (snapshot, rules) = (Arc::clone(&self.current), self.settings.rules.text());
        let structure = self.structure.loaded().cloned();
        let database_started = self.server_started.clone().filter(|_| !self.unaudited);
        Some(PersistedSnapshot { snapshot, position, as_of, rules, structure, database_started })
    }
}

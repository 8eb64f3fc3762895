//! Metrics and log lines of the loader.

use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use crate::catalog::snapshot::Snapshot;
use crate::metrics::{Metrics, set_count};
use crate::postgres::session::SyncMode;

/// A kind of read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefreshKind {
    /// The changes since a position.
    Delta,
    /// Everything.
    Full,
    /// Everything, to be compared with the published snapshot.
    Audit,
    /// The catalog of another server.
    Upstream,
}

impl RefreshKind {
    /// Its name in metrics and logs.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Delta => "delta",
            Self::Full => "full",
            Self::Audit => "audit",
            Self::Upstream => "upstream",
        }
    }
}

/// Counts and times a read that ended, successful or not.
pub(crate) fn record_refresh(metrics: &Metrics, kind: RefreshKind, started: Instant, ok: bool) {
    let outcome = if ok { "ok" } else { "error" };
    // The counter comes last: a scrape that sees the refresh counted sees its duration, too.
    metrics.reads.seconds.with_label_values(&[kind.label()]).observe(started.elapsed().as_secs_f64());
    metrics.reads.total.with_label_values(&[kind.label(), outcome]).inc();
}

/// Counts and logs the models of a complete snapshot that an audit found to differ from the database.
pub(crate) fn record_mismatches(metrics: &Metrics, models: usize) {
    metrics.audit_mismatches.inc_by(models as u64);
    error!(models, "the audit found models that differ from the database; they are replaced");
}

/// A read that succeeded.
pub(crate) struct CompletedRead {
    pub(crate) kind: RefreshKind,
    /// How changes arrive; `None` from an upstream.
    pub(crate) mode: Option<SyncMode>,
    pub(crate) started: Instant,
    /// Number of rows that were received.
    pub(crate) rows: usize,
}

impl CompletedRead {
    /// Logs the read: at level debug if it found nothing, otherwise info. On a standby, where reads repeat what was
    /// read before, "nothing" means that nothing changed.
    pub(crate) fn log(&self, changed: usize, now: &Snapshot) {
        let (kind, rows) = (self.kind.label(), self.rows);
        let (revision, took_seconds) = (format!("{:016x}", now.revision()), self.started.elapsed().as_secs_f64());
        let heartbeat = match self.kind {
            RefreshKind::Audit => false,
            _ if self.mode == Some(SyncMode::Standby) => changed == 0,
            RefreshKind::Full => false,
            RefreshKind::Delta | RefreshKind::Upstream => rows == 0,
        };
        if heartbeat {
            debug!(kind, rows, took_seconds, revision, "heartbeat");
        } else {
            info!(kind, rows, changed, models = now.len(), took_seconds, revision, "refreshed");
        }
    }
}

/// Sets the gauges that describe the published snapshot.
pub(crate) fn update_gauges(metrics: &Metrics, snapshot: &Snapshot) {
    set_count(&metrics.models, snapshot.len());
    set_count(&metrics.models_rejected, snapshot.rejected().size());
    set_count(&metrics.snapshot_bytes, snapshot.bytes());
}

/// Logs a mode in which changes arrive late. `every` is the interval at which they are read, and `refused` the reason
/// if the server refused to listen.
pub(crate) fn log_sync_mode(mode: SyncMode, direct: bool, every: Duration, refused: Option<&str>) {
    let every_seconds = every.as_secs_f64();
    match mode {
        SyncMode::Live => {}
        SyncMode::Polling if direct => {
            let reason = refused.unwrap_or_default();
            warn!(
                every_seconds,
                reason, "the server refuses LISTEN: changes are read at intervals, and LISTEN is tried again"
            );
        }
        SyncMode::Polling => {
            warn!(
                every_seconds,
                "connected through a transaction pooler, which loses notifications: changes are read at intervals; \
                 connect to Postgres directly"
            );
        }
        SyncMode::Standby if direct => {
            info!(every_seconds, "this is a hot standby, which sends no notifications: changes are read at intervals");
        }
        SyncMode::Standby => {
            warn!(
                every_seconds,
                "this is a hot standby behind a transaction pooler, which may change servers between two reads: \
                 everything is read at intervals; connect to Postgres directly"
            );
        }
    }
}

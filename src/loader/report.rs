//! Metrics and log lines of the loader.

use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use crate::catalog::snapshot::Snapshot;
use crate::metrics::{Metrics, set_count};
use crate::postgres::session::SyncMode;

/// A kind of read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshKind {
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
pub fn record_refresh(metrics: &Metrics, kind: RefreshKind, started: Instant, ok: bool) {
    let outcome = if ok { "ok" } else { "error" };
    // The counter comes last: a scrape that sees the refresh counted sees its duration, too.
    metrics.reads.seconds.with_label_values(&[kind.label()]).observe(started.elapsed().as_secs_f64());
    metrics.reads.total.with_label_values(&[kind.label(), outcome]).inc();
}

/// Counts and logs the models of a complete snapshot that an audit found to differ from the database.
pub fn record_mismatches(metrics: &Metrics, models: usize) {
    metrics.audit_mismatches.inc_by(models as u64);
    error!(models, "the audit found models that differ from the database; they are replaced");
}

/// Logs a successful read: at level debug if it found nothing, otherwise info. On a standby, where reads repeat what
/// was read before, "nothing" means that nothing changed.
pub fn log_sync(
    (kind, mode): (RefreshKind, Option<SyncMode>),
    started: Instant,
    rows: usize,
    changed: usize,
    now: &Snapshot,
) {
    let (label, revision, took) = (kind.label(), format!("{:016x}", now.revision()), started.elapsed());
    let heartbeat = match kind {
        RefreshKind::Audit => false,
        _ if mode == Some(SyncMode::Standby) => changed == 0,
        RefreshKind::Full => false,
        RefreshKind::Delta | RefreshKind::Upstream => rows == 0,
    };
    if !heartbeat {
        info!(kind = label, rows, changed, models = now.len(), ?took, revision, "refreshed");
    } else {
        debug!(kind = label, rows, ?took, revision, "heartbeat");
    }
}

/// Sets the gauges that describe the published snapshot.
pub fn update_gauges(metrics: &Metrics, snapshot: &Snapshot) {
    set_count(&metrics.models, snapshot.len());
    set_count(&metrics.models_rejected, snapshot.rejected().size());
    set_count(&metrics.snapshot_bytes, snapshot.bytes());
}

/// Logs a mode in which changes arrive late. `every` is the interval at which they are read, and `refused` the reason
/// if the server refused to listen.
pub fn log_sync_mode((mode, direct): (SyncMode, bool), every: Duration, refused: Option<&str>) {
    match mode {
        SyncMode::Live => {}
        SyncMode::Polling if direct => {
            let reason = refused.unwrap_or_default();
            warn!(
                ?every,
                reason, "the server refuses LISTEN: changes are read at intervals, and LISTEN is tried again"
            );
        }
        SyncMode::Polling => {
            warn!(
                ?every,
                "connected through a transaction pooler, which loses notifications: changes are read at intervals; \
                 connect to Postgres directly"
            );
        }
        SyncMode::Standby if direct => {
            info!(?every, "this is a hot standby, which sends no notifications: changes are read at intervals");
        }
        SyncMode::Standby => {
            warn!(
                ?every,
                "this is a hot standby behind a transaction pooler, which may change servers between two reads: \
                 everything is read at intervals; connect to Postgres directly"
            );
        }
    }
}

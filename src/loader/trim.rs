//! When to have the log of changes trimmed. Triggers keep it small, except in serializable transactions.

use super::report::RefreshKind;

/// What `model_catalog.trim()` leaves: so many rows, or ten for each model, and a tenth of it in reloads.
const SMALL_LOG: usize = 10_000;
const CHANGES_PER_MODEL: usize = 10;
const CHANGES_PER_RELOAD: usize = 10;

/// What was added to the log since the last call.
pub(super) struct Trim {
    changes: usize,
}

/// Due at once: what was added before is unknown.
impl Default for Trim {
    fn default() -> Self {
        Self { changes: usize::MAX }
    }
}

impl Trim {
    /// Records a read of this number of rows.
    pub(super) fn on_read(&mut self, kind: RefreshKind, rows: usize) {
        let changes = match kind {
            RefreshKind::Delta => rows,
            // Because of a reload, or of a change of that many models.
            RefreshKind::Full => rows.max(CHANGES_PER_RELOAD),
            RefreshKind::Audit | RefreshKind::Upstream => 0,
        };
        self.changes = self.changes.saturating_add(changes);
    }

    /// Whether a catalog of this size may have a log that is not small; begins to count anew if so.
    pub(super) fn take_due(&mut self, models: usize) -> bool {
        let due = self.changes > SMALL_LOG.max(CHANGES_PER_MODEL * models);
        if due {
            self.changes = 0;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trim_is_due_at_the_start_and_after_as_many_changes_as_a_small_log_has() {
        let mut trim = Trim::default();
        assert!(trim.take_due(5) && !trim.take_due(5));
        for (kind, rows, reads, models) in [
            (RefreshKind::Delta, 1, 10_000, 5),
            (RefreshKind::Delta, 100, 200, 2_000),
            (RefreshKind::Full, 5, 1_000, 5),
            (RefreshKind::Full, 2_000, 10, 2_000),
        ] {
            for _ in 0..reads {
                trim.on_read(kind, rows);
                assert!(!trim.take_due(models), "{kind:?}");
            }
            trim.on_read(RefreshKind::Audit, 1_000_000);
            assert!(!trim.take_due(models), "{kind:?}");
            trim.on_read(kind, rows);
            assert!(trim.take_due(models), "{kind:?}");
        }
    }
}

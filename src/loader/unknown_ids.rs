//! Recorded ids that neither the view nor the catalog has. Most are of rows that the view leaves out. But if a table is
//! watched by a column that does not hold the model's id, these are all that is recorded of its changes. An audit soon
//! after them tells the two apart, and serves what was missed.

use std::time::{Duration, Instant};

use tracing::warn;

use crate::metrics::Metrics;

/// Time from unknown ids to the audit, so that a burst of changes is followed by one audit.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// Minimum ratio of that time to the duration of the last audit.
const PAUSE_PER_AUDIT: u32 = 9;
/// Minimum time between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(600);

/// When an audit has to follow unknown ids.
#[derive(Default)]
pub(crate) struct UnknownIds {
    /// There were unknown ids since the last full read.
    waiting: bool,
    /// Time from unknown ids to the next audit. It doubles after each audit that found nothing.
    pause: Duration,
    logged_at: Option<Instant>,
}

impl UnknownIds {
    /// Counts the unknown ids of a delta, of which `example` is one. Returns the time until an audit must follow.
    pub(crate) fn record(&mut self, number: usize, example: &str, metrics: &Metrics) -> Duration {
        metrics.unknown_ids.inc_by(number as u64);
        self.waiting = true;
        if self.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged_at = Some(Instant::now());
            warn!(
                number,
                example,
                "ids were recorded that neither the view nor the catalog has: an audit follows. Harmless if the view \
                 leaves out these rows; otherwise a table is watched by a column that does not hold the id of the \
                 model, which `model-catalog check` reports"
            );
        }
        self.pause.max(MIN_PAUSE)
    }

    /// Records an audit that found this number of differences. `longest` limits the time to the next one.
    pub(crate) fn on_audit(&mut self, differences: usize, took: Duration, longest: Duration) {
        if std::mem::take(&mut self.waiting) {
            let pause = if differences > 0 { MIN_PAUSE } else { self.pause.max(MIN_PAUSE) * 2 };
            self.pause = pause.max(took * PAUSE_PER_AUDIT).min(longest);
        }
    }

    /// Records that everything was read for another reason, such as a call of `watch()`.
    pub(crate) fn on_full_read(&mut self) {
        self.waiting = false;
        self.pause = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audits_that_find_nothing_become_rarer() {
        let (mut unknown, metrics) = (UnknownIds::default(), Metrics::new().expect("valid metrics"));
        let (short, longest) = (Duration::from_millis(1), Duration::from_secs(60));
        unknown.on_audit(0, short, longest);
        assert_eq!(unknown.pause, Duration::ZERO, "no unknown ids led to this audit");
        for (before, after) in [(1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 60), (60, 60)] {
            assert_eq!(unknown.record(2, "a", &metrics), Duration::from_secs(before));
            assert_eq!(unknown.record(1, "b", &metrics), Duration::from_secs(before));
            unknown.on_audit(0, short, longest);
            assert_eq!(unknown.pause, Duration::from_secs(after));
        }
        for (took, pause) in [(short, MIN_PAUSE), (Duration::from_secs(1), Duration::from_secs(9))] {
            unknown.record(1, "a", &metrics);
            unknown.on_audit(3, took, longest);
            assert_eq!(unknown.pause, pause);
        }
        unknown.on_full_read();
        assert_eq!(unknown.record(1, "a", &metrics), MIN_PAUSE);
        assert_eq!(metrics.unknown_ids.get(), 7 * 3 + 2 + 1);
    }
}

//! What reads have cost, and what follows from it: how many changed models are looked up one by one, when everything is
//! read instead, how long a delta may take, and when a slow read is logged.

use std::time::{Duration, Instant};

use tracing::warn;

use super::report::RefreshKind;
use crate::metrics::Metrics;
use crate::postgres::read::Limits;

/// The most models that a delta looks up one by one: beyond, further statements that read them as one set cost less.
const MAX_LOOK_UPS: usize = 1_000;
/// The most while the cost of a look-up is unknown.
const FIRST_LOOK_UPS: usize = 10;
/// The most if look-ups are slow: a set costs about as much as two.
const MAX_SLOW_LOOK_UPS: usize = 2;
/// Seconds of the server from which a look-up is slow: with indexes it takes a tenth of that.
const SLOW_LOOK_UP: f64 = 0.000_5;
/// Deltas with slow look-ups in a row that show the plan is bad. One alone says that the server was busy.
const SLOW_DELTAS_OF_A_BAD_PLAN: u32 = 3;
/// A set of up to this many models is read as such, and a larger one only if it is a small part of the catalog:
/// otherwise reading everything costs less, because Postgres need not search for the ids.
const SMALL_SET: usize = 10_000;
const SMALL_PART: usize = 8;
/// A read of a change that takes longer is slow.
const SLOW_DELTA: Duration = Duration::from_secs(1);
/// A read of everything that takes longer is slow: ten times that of a million rows.
const SLOW_FULL_READ: Duration = Duration::from_secs(30);

/// Interval at which slow reads are logged again.
const LOG_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The cost of the last reads.
#[derive(Default)]
pub(crate) struct ReadCosts {
    /// Seconds that the server needed for each look-up of the last delta that had some; `None` after many models have
    /// changed, and their cost perhaps with them.
    look_up: Option<f64>,
    /// How many deltas in a row that were planned once had slow look-ups since then.
    slow_planned_once: u32,
    /// Duration of the last full read.
    full: Duration,
    /// Duration of the last delta, if it was slow.
    slow_delta: Duration,
    /// When a slow read was logged last.
    logged_at: Option<Instant>,
}

impl ReadCosts {
    /// The most models that the next delta may look up one by one.
    pub(crate) fn max_look_ups(&self) -> usize {
        match self.look_up {
            None => FIRST_LOOK_UPS,
            Some(SLOW_LOOK_UP..) => MAX_SLOW_LOOK_UPS,
            Some(_) => MAX_LOOK_UPS,
        }
    }

    /// The most models that the next delta may look up by a plan that was made once, when tables may have been small.
    /// Such plans are cheap and not to be trusted: with a bad one, each look-up could read a table.
    pub(crate) fn max_planned_once(&self) -> usize {
        if self.slow_planned_once < SLOW_DELTAS_OF_A_BAD_PLAN { self.max_look_ups().min(FIRST_LOOK_UPS) } else { 0 }
    }

    /// Records that a delta looked up models one by one.
    pub(crate) fn on_look_ups(&mut self, number: usize, elapsed_seconds: f64, planned_once: bool) {
        if number > 0 {
            // At most 2^53 rows.
            #[expect(clippy::cast_precision_loss)]
            let cost = elapsed_seconds / number as f64;
            self.look_up = Some(cost);
            if planned_once {
                self.slow_planned_once = if cost >= SLOW_LOOK_UP { self.slow_planned_once + 1 } else { 0 };
            }
        }
    }

    /// Records that changed models were read as a set.
    pub(crate) fn on_set(&mut self) {
        self.forget_look_ups();
    }

    fn forget_look_ups(&mut self) {
        (self.look_up, self.slow_planned_once) = (None, 0);
    }

    /// The most changes that are read as a set, of a catalog of this size. With more, everything is read.
    pub(crate) fn largest_set(models: usize) -> usize {
        SMALL_SET.max(models / SMALL_PART)
    }

    /// The limit of a delta: two timeouts, or twice the last full read if that is longer.
    pub(crate) fn delta_limit(&self, timeout: Duration) -> Duration {
        timeout.saturating_mul(2).max(self.full * 2).min(Limits::of_full_read(timeout).total)
    }

    /// How long to wait after the last read: a slow delta is not followed by another at once.
    pub(crate) fn pause(&self) -> Duration {
        self.slow_delta
    }

    /// Counts a slow read, and logs the first of several.
    pub(crate) fn on_read(&mut self, kind: RefreshKind, took: Duration, ok: bool, metrics: &Metrics) {
        let delta = kind == RefreshKind::Delta;
        if ok && !delta {
            self.full = took;
            self.forget_look_ups();
        }
        let slow = took >= if delta { SLOW_DELTA } else { SLOW_FULL_READ };
        self.slow_delta = if slow && delta { took } else { Duration::ZERO };
        if slow {
            metrics.reads.slow.with_label_values(&[kind.label()]).inc();
            if self.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                self.logged_at = Some(Instant::now());
                warn!(
                    kind = kind.label(),
                    took_seconds = took.as_secs_f64(),
                    "reading from the database is slow: run `model-catalog check`, which finds missing indexes"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_ups_are_as_many_as_their_cost_allows() {
        let mut costs = ReadCosts::default();
        assert_eq!(costs.max_look_ups(), FIRST_LOOK_UPS);
        for (number, seconds, expected) in [
            (1, 0.000_05, MAX_LOOK_UPS),
            (1, 0.010, MAX_SLOW_LOOK_UPS),
            (10, 0.001, MAX_LOOK_UPS),
            (2, 9.0, MAX_SLOW_LOOK_UPS),
            (0, 0.001, MAX_SLOW_LOOK_UPS),
            (1, 0.0, MAX_LOOK_UPS),
        ] {
            costs.on_look_ups(number, seconds, false);
            assert_eq!(costs.max_look_ups(), expected, "{number} in {seconds} s");
        }
        costs.on_set();
        assert_eq!(costs.max_look_ups(), FIRST_LOOK_UPS);
    }

    #[test]
    fn plan_that_was_slow_three_times_in_a_row_is_not_used_until_much_was_read() {
        let mut costs = ReadCosts::default();
        for (seconds, planned_once, expected) in [
            (0.000_1, true, FIRST_LOOK_UPS),
            (0.010, false, MAX_SLOW_LOOK_UPS),
            (0.000_1, false, FIRST_LOOK_UPS),
            (0.010, true, MAX_SLOW_LOOK_UPS),
            (0.010, true, MAX_SLOW_LOOK_UPS),
            (0.000_1, true, FIRST_LOOK_UPS),
            (0.010, true, MAX_SLOW_LOOK_UPS),
            (0.010, true, MAX_SLOW_LOOK_UPS),
            (0.010, true, 0),
            (0.000_1, false, 0),
        ] {
            costs.on_look_ups(1, seconds, planned_once);
            assert_eq!(costs.max_planned_once(), expected, "{seconds} {planned_once}");
        }
        costs.on_set();
        assert_eq!(costs.max_planned_once(), FIRST_LOOK_UPS);
    }

    #[test]
    fn limit_of_a_delta_follows_the_last_full_read() {
        let seconds = Duration::from_secs;
        let metrics = Metrics::new().expect("valid metrics");
        let mut costs = ReadCosts::default();
        for (took, limit) in [(0, 20), (4, 20), (20, 40), (299, 300)] {
            costs.on_read(RefreshKind::Full, seconds(took), true, &metrics);
            assert_eq!(costs.delta_limit(seconds(10)), seconds(limit), "{took}");
        }
    }

    #[test]
    fn slow_reads_are_counted_and_followed_by_a_pause() {
        let metrics = Metrics::new().expect("valid metrics");
        let mut costs = ReadCosts::default();
        for (kind, milliseconds, pause) in [
            (RefreshKind::Delta, 999, 0),
            (RefreshKind::Delta, 2_000, 2_000),
            (RefreshKind::Full, 29_000, 0),
            (RefreshKind::Audit, 30_000, 0),
        ] {
            costs.on_read(kind, Duration::from_millis(milliseconds), true, &metrics);
            assert_eq!(costs.pause(), Duration::from_millis(pause), "{kind:?} {milliseconds}");
        }
        let counted = |kind| metrics.reads.slow.with_label_values(&[kind]).get();
        assert_eq!([counted("delta"), counted("full"), counted("audit")], [1, 0, 1]);
    }
}

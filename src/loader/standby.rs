//! Following a hot standby: which transactions a delta may leave out, and whether replay advances.
//!
//! A snapshot taken in recovery does not list the transactions that were running, so the delta of a primary would lose
//! changes. Its xmin is right: every transaction below it had ended. The next delta therefore reads everything from
//! xmin on, except for transactions that a delta of this session has returned already: they were visible, so they had
//! ended, and no further change of theirs can appear.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::postgres::error::ReadError;
use crate::postgres::position::Position;
use crate::postgres::rows::{Replay, UnreadXids};

/// Number of runs of consecutive transaction ids that are remembered. They matter only while an old transaction stays
/// open on the primary. A read with this many takes about 15 ms; beyond, those with the fewest changes are read again.
const MAX_RUNS: usize = 10_000;
/// Time without replay, while there is something to replay or no connection to the primary, until it is logged. Longer
/// than conflicts with short queries delay replay.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// A delta that takes longer is followed by a pause of [`PAUSE_PER_READ`] times its duration, so that many replicas do
/// not overload a standby with what a forgotten transaction makes them read again.
const SLOW_READ: Duration = Duration::from_millis(100);
const PAUSE_PER_READ: u32 = 9;

/// What is known about the standby of the current session.
#[derive(Default)]
pub(crate) struct Standby {
    /// The transactions whose changes were read, as runs of consecutive ids, by their first id.
    applied: BTreeMap<u64, Run>,
    /// The last state of replay, and since when it has been at this position with WAL to replay.
    replay: Option<(Replay, Instant)>,
    /// Duration of the last delta.
    took: Duration,
    /// Nothing was replayed for [`STALL_LIMIT`], which is logged.
    stalled: bool,
}

struct Run {
    /// The id after the last one.
    end: u64,
    /// Number of changes that these transactions made.
    changes: usize,
}

impl Standby {
    /// The transactions whose changes may be missing from what was read at `position`.
    pub(crate) fn unread(&self, position: &Position) -> UnreadXids {
        let mut next = position.xmin();
        let (mut first, mut end) = (String::from("{"), String::from("{"));
        for (start, run) in &self.applied {
            if *start > next {
                // Writing to a String cannot fail.
                let _ = write!(first, "{next},");
                let _ = write!(end, "{start},");
            }
            next = next.max(run.end);
        }
        UnreadXids { first: format!("{first}{next}}}"), end: format!("{end}NULL}}") }
    }

    /// Records that a change made by transaction `xid` was read.
    fn record(&mut self, xid: u64) {
        let before = self.applied.range_mut(..=xid).next_back().filter(|(_, run)| xid <= run.end);
        let start = match before {
            Some((start, run)) => {
                run.end = run.end.max(xid + 1);
                run.changes += 1;
                *start
            }
            None => {
                self.applied.insert(xid, Run { end: xid + 1, changes: 1 });
                xid
            }
        };
        if let Some(after) = self.applied.remove(&(xid + 1))
            && let Some(run) = self.applied.get_mut(&start)
        {
            run.end = after.end;
            run.changes += after.changes;
        }
    }

    /// Records that a delta with changes by transactions `xids` was read, which brought the catalog to `position`.
    /// Drops runs below `xmin`, which the next delta skips anyway, and what exceeds [`MAX_RUNS`].
    pub(crate) fn on_delta(&mut self, xids: Vec<u64>, position: &Position, took: Duration) {
        xids.into_iter().for_each(|xid| self.record(xid));
        self.took = took;
        let xmin = position.xmin();
        self.applied.retain(|_, run| run.end > xmin);
        let excess = self.applied.len().saturating_sub(MAX_RUNS);
        if excess > 0 {
            let mut by_size: Vec<_> = self.applied.iter().map(|(start, run)| (run.changes, *start)).collect();
            by_size.sort_unstable();
            for (_, start) in by_size.iter().take(excess) {
                self.applied.remove(start);
            }
        }
    }

    /// Records the state of replay, and logs when it stops and when it advances again.
    ///
    /// # Errors
    /// The position went back: the connection leads to another server, or to an older state of the same one.
    pub(crate) fn on_replay(&mut self, now: Replay) -> Result<(), ReadError> {
        let since = match &self.replay {
            Some((last, _)) if now.lsn < last.lsn => {
                return Err(ReadError::ReplayWentBack { from: last.lsn, to: now.lsn });
            }
            Some((last, since)) if now.lsn == last.lsn && !now.caught_up && !last.caught_up => *since,
            _ => Instant::now(),
        };
        let stalled = since.elapsed() >= STALL_LIMIT;
        if stalled && !self.stalled {
            warn!(
                replay_lag_seconds = now.lag_seconds,
                "the standby replays nothing although it has WAL to replay or no connection to its primary; its last \
                 state is served"
            );
        } else if self.stalled && !stalled {
            info!("the standby replays again");
        }
        self.stalled = stalled;
        self.replay = Some((now, since));
        Ok(())
    }

    /// The pause before the next delta: `interval`, or longer after a slow one, up to `limit`. Full reads do not count,
    /// because they are not repeated.
    pub(crate) fn pause(&self, interval: Duration, limit: Duration) -> Duration {
        if self.took > SLOW_READ { interval.max(limit.min(self.took * PAUSE_PER_READ)) } else { interval }
    }

    /// Whether nothing was replayed for 10 s, although there is WAL to replay or no connection to the primary.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Age of the transaction that was replayed last, in seconds, at the last read; `None` if nothing was replayed yet.
    pub(crate) fn replay_lag_seconds(&self) -> Option<f64> {
        self.replay.as_ref().and_then(|(replay, _)| replay.lag_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(xmin: u64) -> Position {
        Position::new("", &format!("{xmin}:{}:", xmin + 1_000_000))
    }

    fn unread(standby: &Standby, xmin: u64) -> (String, String) {
        let UnreadXids { first, end } = standby.unread(&position(xmin));
        (first, end)
    }

    fn ranges(first: &str, end: &str) -> (String, String) {
        (first.into(), end.into())
    }

    #[test]
    fn ranges_cover_everything_from_xmin_except_what_was_read() {
        let mut standby = Standby::default();
        assert_eq!(unread(&standby, 7), ranges("{7}", "{NULL}"));
        for xid in [12, 10, 10, 14, 11, 20, 7] {
            standby.record(xid);
        }
        assert_eq!(standby.applied.values().map(|run| run.changes).collect::<Vec<_>>(), [1, 4, 1, 1]);
        assert_eq!(unread(&standby, 5), ranges("{5,8,13,15,21}", "{7,10,14,20,NULL}"));
        assert_eq!(unread(&standby, 7), ranges("{8,13,15,21}", "{10,14,20,NULL}"));
        assert_eq!(unread(&standby, 11), ranges("{13,15,21}", "{14,20,NULL}"));
        assert_eq!(unread(&standby, 30), ranges("{30}", "{NULL}"));
        standby.on_delta(Vec::new(), &position(12), Duration::ZERO);
        assert_eq!(unread(&standby, 12), ranges("{13,15,21}", "{14,20,NULL}"));
        assert_eq!(standby.applied.len(), 3);
        standby.on_delta(Vec::new(), &position(30), Duration::ZERO);
        assert!(standby.applied.is_empty());
    }

    #[test]
    fn ranges_equal_a_plain_set_of_ids() {
        for _ in 0..200 {
            let (mut standby, mut plain) = (Standby::default(), std::collections::BTreeSet::new());
            for _ in 0..fastrand::usize(..60) {
                let xid = fastrand::u64(1..80);
                standby.record(xid);
                plain.insert(xid);
            }
            let xmin = fastrand::u64(1..80);
            standby.on_delta(Vec::new(), &position(xmin), Duration::ZERO);
            let (first, end) = unread(&standby, xmin);
            let numbers = |text: &str| -> Vec<u64> {
                text.trim_matches(['{', '}']).split(',').map(|number| number.parse().unwrap_or(u64::MAX)).collect()
            };
            let ranges: Vec<_> = numbers(&first).into_iter().zip(numbers(&end)).collect();
            for xid in 1..100 {
                let covered = ranges.iter().any(|(first, end)| (*first..*end).contains(&xid));
                assert_eq!(covered, xid >= xmin && !plain.contains(&xid), "{xid} of {plain:?} in {ranges:?}");
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_keeps_the_largest_transactions() {
        let mut standby = Standby::default();
        for number in 1..=MAX_RUNS as u64 + 10 {
            standby.record(number * 2);
            if number > 10 {
                standby.record(number * 2);
            }
        }
        standby.on_delta(Vec::new(), &position(1), Duration::ZERO);
        assert_eq!(standby.applied.len(), MAX_RUNS);
        assert_eq!(standby.applied.keys().next(), Some(&22));
    }

    #[test]
    fn slow_deltas_are_followed_by_longer_pauses() {
        let milliseconds = Duration::from_millis;
        let limit = milliseconds(10_000);
        for (took, interval, pause) in
            [(2, 250, 250), (100, 250, 250), (101, 250, 909), (2_000, 250, 10_000), (200, 20_000, 20_000)]
        {
            let standby = Standby { took: milliseconds(took), ..Standby::default() };
            assert_eq!(standby.pause(milliseconds(interval), limit), milliseconds(pause));
        }
    }

    #[test]
    fn a_replay_position_that_goes_back_is_an_error() {
        let replay = |lsn| Replay { lsn, lag_seconds: Some(1.5), caught_up: true };
        let mut standby = Standby::default();
        for lsn in [5, 5, 9] {
            standby.on_replay(replay(lsn)).expect("not before the last position");
        }
        let error = standby.on_replay(replay(8)).expect_err("before the last position");
        assert!(error.to_string().contains("0/9") && error.to_string().contains("0/8"), "{error}");
        assert_eq!(standby.replay_lag_seconds(), Some(1.5));
    }

    #[test]
    fn replay_counts_as_stalled_only_while_it_could_advance() {
        let long_ago = Instant::now().checked_sub(STALL_LIMIT).expect("a clock past 10 s");
        for (lsn, caught_up, stalled) in [(5, false, true), (5, true, false), (6, false, false)] {
            let last = Replay { lsn: 5, lag_seconds: None, caught_up: false };
            let mut standby = Standby { replay: Some((last, long_ago)), ..Standby::default() };
            standby.on_replay(Replay { lsn, lag_seconds: None, caught_up }).expect("not before the last position");
            assert_eq!(standby.is_stalled(), stalled, "{lsn} {caught_up}");
        }
        // Nothing was to be replayed until just now.
        let last = Replay { lsn: 5, lag_seconds: None, caught_up: true };
        let mut standby = Standby { replay: Some((last, long_ago)), ..Standby::default() };
        standby
            .on_replay(Replay { lsn: 5, lag_seconds: None, caught_up: false })
            .expect("not before the last position");
        assert!(!standby.is_stalled());
    }
}

//! Where to resume reading after a connection was lost: a position that a crash of the database cannot take back.
//!
//! Postgres makes the end of a transaction durable at once when it commits a change, and lazily when it rolls back. A
//! crash loses the latest rollbacks, and the recovered server assigns the same transaction ids again, in the same
//! history. A delta since a position that counts these transactions as ended would miss their changes.

use std::time::{Duration, Instant};

use crate::postgres::position::Position;

/// Age at which everything is durable: the WAL writer of Postgres takes at most three times `wal_writer_delay`, which
/// is at most 10 s.
const DURABLE_AFTER: Duration = Duration::from_secs(30);

/// A position that is 30 to 60 s old, or the oldest of the current history. Reading from it returns changes that are
/// served already, which is harmless.
#[derive(Default)]
pub struct ResumePoint {
    durable: Option<Position>,
    candidate: Option<(Position, Instant)>,
}

impl ResumePoint {
    /// Records that the catalog reached `position`.
    pub fn advance(&mut self, position: Option<&Position>) {
        let Some(position) = position else { return };
        if !self.candidate.as_ref().is_some_and(|(candidate, _)| candidate.precedes(position)) {
            *self = Self { durable: Some(position.clone()), candidate: None };
        }
        match &self.candidate {
            Some((_, since)) if since.elapsed() < DURABLE_AFTER => {}
            _ => {
                let durable = self.candidate.replace((position.clone(), Instant::now()));
                self.durable = durable.map(|(durable, _)| durable).or(self.durable.take());
            }
        }
    }

    /// The position to read from after a reconnect or a restart.
    #[must_use]
    pub fn position(&self) -> Option<&Position> {
        self.durable.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(history: &str, xmax: u64) -> Position {
        Position::new(history, &format!("1:{xmax}:"))
    }

    #[test]
    fn resume_point_stays_behind_until_the_candidate_is_durable() {
        let mut resume = ResumePoint::default();
        for xmax in [5, 7, 9] {
            resume.advance(Some(&position("a", xmax)));
            assert_eq!(resume.position(), Some(&position("a", 5)));
        }
        let durable_since = Instant::now().checked_sub(DURABLE_AFTER).expect("a clock past 30 s");
        resume.candidate = Some((position("a", 9), durable_since));
        resume.advance(Some(&position("a", 11)));
        assert_eq!(resume.position(), Some(&position("a", 9)));
    }

    #[test]
    fn resume_point_restarts_when_the_history_changes_or_moves_back() {
        let mut resume = ResumePoint::default();
        resume.advance(Some(&position("a", 11)));
        resume.advance(Some(&position("a", 10)));
        assert_eq!(resume.position(), Some(&position("a", 10)));
        resume.advance(Some(&position("b", 20)));
        assert_eq!(resume.position(), Some(&position("b", 20)));
        resume.advance(None);
        assert_eq!(resume.position(), Some(&position("b", 20)));
    }
}

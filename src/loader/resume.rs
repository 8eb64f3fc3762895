//! Where to resume reading after a connection was lost: a position that a crash of the database cannot take back.
//!
//! Postgres makes the end of a transaction durable at once when it commits a change, and lazily when it rolls back. A
//! crash loses the latest rollbacks, and the recovered server assigns the same transaction ids again, in the same
//! history. A delta since a position that counts these transactions as ended would miss their changes.

use std::time::{Duration, Instant};

use tracing::info;

use super::{Loader, SessionError};
use crate::postgres::error::ReadError;
use crate::postgres::position::Position;
use crate::postgres::session::{Session, SyncMode};

/// Age at which everything is durable: the WAL writer of Postgres takes at most three times `wal_writer_delay`, which
/// is at most 10 s.
const DURABLE_AFTER: Duration = Duration::from_secs(30);

/// An audit follows a restart of the database within this time, varied at random: what was restored may be another
/// state of the same history, and nothing else may show it.
const AUDIT_AFTER_RESTART: Duration = Duration::from_secs(60);

/// A position that is 30 to 60 s old, or the oldest of the current history. Reading from it returns changes that are
/// served already, which is harmless.
#[derive(Default)]
pub(crate) struct ResumePoint {
    durable: Option<Position>,
    candidate: Option<(Position, Instant)>,
}

impl ResumePoint {
    /// Records that the catalog reached `position`.
    pub(crate) fn advance(&mut self, position: Option<&Position>) {
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
    pub(crate) fn position(&self) -> Option<&Position> {
        self.durable.as_ref()
    }
}

impl Loader {
    /// Chooses the position that the first delta of a session reads from, if it may be a delta.
    pub(super) async fn resume_from(&mut self, session: &Session) -> Result<(), SessionError> {
        let before = self.server_started.replace(session.server_started().into());
        let restarted = before.as_deref() != Some(session.server_started());
        self.unaudited |= restarted && before.is_some();
        let Some(latest) = self.position.take() else { return Ok(()) };
        if restarted {
            self.next_audit = self.next_audit.min(Instant::now() + AUDIT_AFTER_RESTART.mul_f64(fastrand::f64()));
        }
        // A standby may have been rewound, or be another one of the same name: both would go unnoticed.
        if session.sync_mode() == SyncMode::Standby {
            return Ok(());
        }
        // What was served last must still be there, not only what is old enough to be durable.
        self.position = Some(latest);
        self.forget_lost_position(session).await?;
        self.position = self.position.take().and_then(|_| self.resume.position().cloned());
        Ok(())
    }

    /// Gives up the position if the database no longer has what was read there.
    pub(super) async fn forget_lost_position(&mut self, session: &Session) -> Result<(), ReadError> {
        if let Some(position) = &self.position
            && !session.confirms(position).await?
        {
            info!(
                "the database no longer has what was read from it, as after a failover or a restore: reading everything"
            );
            self.position = None;
        }
        Ok(())
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

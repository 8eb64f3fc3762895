//! Where to read from again after a connection was lost: a moment that a crash of the database can't take back.
//!
//! Postgres makes the end of a transaction durable when it commits a change, and lazily when it rolls back. A crash
//! forgets the latest of these, and the server that comes back gives the same transaction ids out again, in the same
//! history. A delta from a position that counts them as over would miss what they change the second time.

use std::time::{Duration, Instant};

use crate::postgres::position::Position;

/// Everything that happened this long ago is durable: Postgres' WAL writer takes three times `wal_writer_delay`,
/// which is 10 s at most.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

/// A position that is between half a minute and a minute old, or the oldest of this history. Reading from it
/// again gives changes that are served already, which does no harm.
#[derive(Default)]
pub struct Anchor {
    settled: Option<Position>,
    next: Option<(Position, Instant)>,
}

impl Anchor {
    /// The catalog has come to `position`.
    pub fn moved(&mut self, position: Option<&Position>) {
        let Some(position) = position else { return };
        // A lower xmax is a history taken back under the same name, such as a restored disk.
        let goes_on = |before: &Position| before.history == position.history && before.xmax() <= position.xmax();
        if !self.next.as_ref().is_some_and(|(next, _)| goes_on(next)) {
            *self = Self { settled: Some(position.clone()), next: None };
        }
        match &self.next {
            Some((_, since)) if since.elapsed() < SETTLED_AFTER => {}
            _ => {
                let settled = self.next.replace((position.clone(), Instant::now()));
                self.settled = settled.map(|(settled, _)| settled).or(self.settled.take());
            }
        }
    }

    /// Where to read from after a new connect or a restart.
    #[must_use]
    pub fn position(&self) -> Option<&Position> {
        self.settled.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_behind_and_never_outlives_its_history() {
        let position = |history: &str, xmax: u64| Position { history: history.into(), snapshot: format!("1:{xmax}:") };
        let mut anchor = Anchor::default();
        for xmax in [5, 7, 9] {
            anchor.moved(Some(&position("a", xmax)));
            assert_eq!(anchor.position(), Some(&position("a", 5)));
        }
        // What was next settles once it is old enough.
        anchor.next = Some((position("a", 9), Instant::now().checked_sub(SETTLED_AFTER).expect("a clock past 30 s")));
        anchor.moved(Some(&position("a", 11)));
        assert_eq!(anchor.position(), Some(&position("a", 9)));
        anchor.moved(Some(&position("a", 10)));
        assert_eq!(anchor.position(), Some(&position("a", 10)));
        anchor.moved(Some(&position("b", 20)));
        assert_eq!(anchor.position(), Some(&position("b", 20)));
        anchor.moved(None);
        assert_eq!(anchor.position(), Some(&position("b", 20)));
    }
}

//! Reading what changed: a few models by one look-up each, in one round trip; many as one set; and everything, if much
//! of the catalog has changed.
//!
//! A look-up for each of many models can cost far more than reading them all: without an index on a column that the
//! view joins by, each of them reads a whole table.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Loader;
use super::costs::ReadCosts;
use super::report::{CompletedRead, RefreshKind};
use crate::catalog::refresh::Refresh;
use crate::postgres::error::ReadError;
use crate::postgres::position::Position;
use crate::postgres::rows::{self, RowChunks, Scope};
use crate::postgres::session::Session;
use crate::postgres::session::SyncMode;

/// What a delta came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delta {
    /// The changes are published.
    Applied,
    /// The database has another history than the one that was read before.
    OtherHistory,
    /// Reading everything costs less.
    TooLarge,
}

/// The result of the statement that looks changed models up.
enum LookedUp {
    Delta(Delta),
    /// More have changed than were to be looked up.
    Many,
}

/// How the look-ups of changed models are planned, and the most of them.
#[derive(Debug, Clone, Copy)]
enum LookUps {
    /// By the plan of an earlier delta.
    PlannedOnce(usize),
    /// For this delta; only in a transaction.
    PlannedAnew(usize),
}

/// Changed models without their rows.
#[derive(Default)]
struct ChangedIds {
    /// Of the statement that listed them, which returns at least one row; a closed connection looks like none.
    position: Option<Position>,
    /// Their ids, with the ages of the changes in seconds.
    ages: HashMap<String, f64>,
    /// On a standby, the transactions that changed them.
    xids: Vec<u64>,
    /// There are more than can be read as a set.
    too_many: bool,
}

impl Loader {
    /// Publishes the changes since `since`.
    pub(super) async fn delta(&mut self, session: &Session, since: &Position) -> Result<Delta, ReadError> {
        let mut tried = 0;
        if session.is_direct() {
            tried = self.costs.max_planned_once();
            if tried > 0
                && let LookedUp::Delta(delta) = self.look_up(session, since, LookUps::PlannedOnce(tried)).await?
            {
                return Ok(delta);
            }
        }
        // A transaction reads ids and rows from one snapshot. Outside of one, a pooler may run each statement on
        // another connection.
        session.begin_transaction().await?;
        let unconfirmed = !session.is_direct() && session.sync_mode() != SyncMode::Standby;
        let delta = if unconfirmed && !session.confirms(since).await? {
            Delta::OtherHistory
        } else {
            self.delta_in_transaction(session, since, tried).await?
        };
        session.commit().await?;
        Ok(delta)
    }

    /// The same within a transaction that has begun. `tried` is the number of changes that are known to be exceeded.
    pub(super) async fn delta_in_transaction(
        &mut self,
        session: &Session,
        since: &Position,
        tried: usize,
    ) -> Result<Delta, ReadError> {
        let most = self.costs.max_look_ups();
        if most > tried
            && let LookedUp::Delta(delta) = self.look_up(session, since, LookUps::PlannedAnew(most)).await?
        {
            return Ok(delta);
        }
        self.read_set(session, since).await
    }

    fn delta_limit(&self) -> Duration {
        self.costs.delta_limit(self.settings.database.timeout)
    }

    /// Starts the statement of a delta.
    async fn changes(&self, session: &Session, since: &Position, scope: Scope) -> Result<RowChunks, ReadError> {
        let limit = self.delta_limit();
        if session.sync_mode() == SyncMode::Standby {
            let unread = self.standby.unread(since);
            return session.standby_delta(&unread, &since.history, scope, limit).await;
        }
        session.delta(since, scope, limit).await
    }

    /// Reads changed models by one look-up each and publishes them, unless there are too many.
    async fn look_up(&mut self, session: &Session, since: &Position, look_ups: LookUps) -> Result<LookedUp, ReadError> {
        let started = Instant::now();
        let (LookUps::PlannedOnce(limit) | LookUps::PlannedAnew(limit)) = look_ups;
        let previous = Arc::clone(&self.current);
        let mut refresh = Refresh::delta(&previous, &self.settings.rules);
        let (mut position, mut elapsed) = (None, 0.0);
        let (mut ages, mut xids, mut rows_read) = (Vec::new(), Vec::new(), 0);
        let standby = session.sync_mode() == SyncMode::Standby;
        let mut rows = self.changes(session, since, Scope { limit, look_up: true }).await?;
        let (mut other_history, mut many) = (false, false);
        // All rows are received, also if they are not used, because the session is used further.
        while let Some(chunk) = rows.next().await? {
            for row in &chunk {
                if position.is_none() {
                    let now = Position::from_row(row)?;
                    other_history = !since.precedes(&now);
                    if standby && !other_history {
                        self.standby.on_replay(rows::replay(row)?)?;
                    }
                    position = Some(now);
                }
                let effort = rows::effort(row)?;
                (many, elapsed) = (effort.many, effort.elapsed_seconds);
                if many || other_history {
                    continue;
                }
                if standby {
                    xids.extend(rows::xid(row)?);
                }
                let Some(change) = rows::change(row)? else { continue };
                rows_read += 1;
                let before = refresh.changed();
                match change.row {
                    Some(row) => refresh.row(&change.id, row),
                    None => refresh.deleted(&change.id),
                }
                // The first delta after a reconnect repeats changes that are served already.
                if refresh.changed() > before {
                    ages.push(change.age_seconds);
                }
            }
        }
        if other_history {
            return Ok(LookedUp::Delta(Delta::OtherHistory));
        } else if many {
            return Ok(LookedUp::Many);
        }
        self.costs.on_look_ups(rows_read, elapsed, matches!(look_ups, LookUps::PlannedOnce(_)));
        if let Some(now) = position.as_ref().filter(|_| standby) {
            self.standby.on_delta(xids, now, started.elapsed());
        }
        let mode = Some(session.sync_mode());
        let read = CompletedRead { kind: RefreshKind::Delta, mode, started, rows: rows_read };
        self.publish(refresh.finish(), position, read);
        self.observe_propagation(&ages, started);
        Ok(LookedUp::Delta(Delta::Applied))
    }

    /// Reads changed models as one set and publishes them. To be called in a transaction that has begun, so that ids
    /// and rows are of the same snapshot.
    async fn read_set(&mut self, session: &Session, since: &Position) -> Result<Delta, ReadError> {
        let started = Instant::now();
        let ChangedIds { position, mut ages, xids, too_many } = self.changed_ids(session, since).await?;
        let Some(position) = position.filter(|position| since.precedes(position)) else {
            return Ok(Delta::OtherHistory);
        };
        if too_many {
            return Ok(Delta::TooLarge);
        }
        let previous = Arc::clone(&self.current);
        let mut refresh = Refresh::delta(&previous, &self.settings.rules);
        let (mut observed, mut rows_read) = (Vec::new(), 0);
        let ids: Vec<String> = ages.keys().cloned().collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let entries = session.entries_of(&ids, self.delta_limit()).await?;
        entries
            .for_each(|id, row| {
                rows_read += 1;
                let before = refresh.changed();
                refresh.row(id, row);
                let age = ages.remove(id);
                observed.extend(age.filter(|_| refresh.changed() > before));
                Ok::<_, ReadError>(())
            })
            .await?;
        // What is left has no row any more.
        for (id, age) in &ages {
            let before = refresh.changed();
            refresh.deleted(id);
            observed.extend(Some(*age).filter(|_| refresh.changed() > before));
        }
        if session.sync_mode() == SyncMode::Standby {
            self.standby.on_delta(xids, &position, started.elapsed());
        }
        let (mode, rows) = (Some(session.sync_mode()), rows_read + ages.len());
        let read = CompletedRead { kind: RefreshKind::Delta, mode, started, rows };
        self.publish(refresh.finish(), Some(position), read);
        self.observe_propagation(&observed, started);
        self.costs.on_set();
        Ok(Delta::Applied)
    }

    /// The ids of the models that changed since `since`, unless reading everything costs less.
    async fn changed_ids(&self, session: &Session, since: &Position) -> Result<ChangedIds, ReadError> {
        let scope = Scope { limit: ReadCosts::largest_set(self.current.len()), look_up: false };
        let mut rows = self.changes(session, since, scope).await?;
        let mut changed = ChangedIds::default();
        while let Some(chunk) = rows.next().await? {
            for row in &chunk {
                if changed.position.is_none() {
                    changed.position = Some(Position::from_row(row)?);
                }
                changed.too_many |= rows::effort(row)?.many;
                if session.sync_mode() == SyncMode::Standby {
                    changed.xids.extend(rows::xid(row)?);
                }
                if let Some(change) = rows::change(row)? {
                    // The view cannot be searched for an id that is shown with escapes.
                    changed.too_many |= change.escaped;
                    changed.ages.insert(change.id.into_owned(), change.age_seconds);
                }
            }
        }
        Ok(changed)
    }

    /// Observes how long changes took to be served: the age of each by the database's clock when the statement ran,
    /// which was sent at `started`, plus the time since then by our monotonic clock. The two clocks are never compared.
    fn observe_propagation(&self, ages: &[f64], started: Instant) {
        for age in ages {
            self.metrics.propagation_seconds.observe(age.max(0.0) + started.elapsed().as_secs_f64());
        }
    }
}

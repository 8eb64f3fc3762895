//! The one task that turns Postgres into snapshots: listen, load everything once, then one delta for every ring of
//! the doorbell and every heartbeat.
//!
//! Every error means: drop the connection, wait, connect again, and keep serving what there is. Nothing ends the loop.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::catalog::model::{Fault, Rules};
use crate::catalog::snapshot::{Refresh, Refreshed, Snapshot};
use crate::catalog::store::{Publisher, Store};
use crate::metrics::Metrics;
use crate::postgres::rows::{self, Position};
use crate::postgres::session::{ConnectError, Database, ReadError, Session};

/// First wait after a failure; it doubles from there, up to the poll interval.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// While the database is away, a line that says so is logged this often.
const REMIND_AFTER: Duration = Duration::from_secs(30);
/// Deltas in a row that may time out before everything is read instead: reading all of a slow view at once can
/// succeed where a look-up for each of very many changes does not.
const DELTA_ATTEMPTS: u32 = 2;
/// Rejected rows that one refresh names in the log; the rest it counts.
const REJECTIONS_LOGGED: usize = 20;

/// What a loader needs to know.
pub struct Settings {
    /// The database to follow.
    pub database: Database,
    /// Time between two deltas when nothing rings.
    pub poll_interval: Duration,
    /// The rules a row must pass.
    pub rules: Rules,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot connect: {0}")]
    Connect(#[from] ConnectError),
    #[error("cannot read: {0}")]
    Read(#[from] ReadError),
    #[error("connection lost: {0}")]
    Closed(String),
}

/// The loader's state.
pub struct Loader {
    settings: Settings,
    metrics: Arc<Metrics>,
    publisher: Publisher,
    /// What is being served; empty before the first load.
    current: Arc<Snapshot>,
    /// The moment at which `current` equals the database; `None` = load everything.
    position: Option<Position>,
    doorbell: Arc<Notify>,
    delta_timeouts: u32,
    outage: Option<Outage>,
}

/// A time without a working session.
struct Outage {
    since: Instant,
    attempts: u32,
    logged: Instant,
}

impl Loader {
    /// A loader that publishes to `store`.
    #[must_use]
    pub fn new(settings: Settings, store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        let current = store.load().clone().unwrap_or_default();
        Self {
            settings,
            metrics,
            publisher: Publisher::new(store),
            current,
            position: None,
            doorbell: Arc::new(Notify::new()),
            delta_timeouts: 0,
            outage: None,
        }
    }

    /// Follows the database for ever.
    pub async fn run(mut self) -> Infallible {
        loop {
            let Err(error) = self.session().await;
            self.metrics.listener_connected.set(0);
            tokio::time::sleep(self.lost(&error)).await;
        }
    }

    /// One connection, from its beginning to its end.
    async fn session(&mut self) -> Result<Infallible, SessionError> {
        let (doorbell, metrics) = (Arc::clone(&self.doorbell), Arc::clone(&self.metrics));
        let ring = move || {
            metrics.notifications.inc();
            doorbell.notify_one();
        };
        // Listening comes before the first read: what commits in between rings.
        let mut session = Session::open(&self.settings.database, ring).await?;
        self.refresh(&session).await?;
        self.metrics.listener_connected.set(1);
        self.regained();
        let doorbell = Arc::clone(&self.doorbell);
        loop {
            tokio::select! {
                () = doorbell.notified() => {}
                () = tokio::time::sleep(self.settings.poll_interval) => {}
                why = session.closed() => return Err(SessionError::Closed(why)),
            }
            self.refresh(&session).await?;
        }
    }

    /// Brings what is served in step with the database.
    async fn refresh(&mut self, session: &Session) -> Result<(), ReadError> {
        if let Some(since) = self.position.clone().filter(|_| self.delta_timeouts < DELTA_ATTEMPTS) {
            let started = Instant::now();
            let delta = self.delta(session, &since).await;
            self.measured("delta", started, &delta);
            match delta {
                Ok(true) => {
                    self.delta_timeouts = 0;
                    return Ok(());
                }
                Ok(false) => info!("the database's history is another one, loading everything"),
                Err(error) => {
                    self.delta_timeouts += u32::from(matches!(error, ReadError::Timeout(_)));
                    return Err(error);
                }
            }
        }
        let started = Instant::now();
        let full = self.full(session).await;
        self.measured("full", started, &full);
        self.delta_timeouts = 0;
        full
    }

    /// Publishes what changed since `since`; false if that is a moment of another history.
    async fn delta(&mut self, session: &Session, since: &Position) -> Result<bool, ReadError> {
        let started = Instant::now();
        let previous = Arc::clone(&self.current);
        let mut refresh = Refresh::delta(&previous, &self.settings.rules);
        let mut position = None;
        let mut ages = Vec::new();
        let mut rows = session.delta(since).await?;
        while let Some(chunk) = rows.next().await? {
            for row in &chunk {
                if position.is_none() {
                    let now = rows::position(row)?;
                    if now.history != since.history {
                        return Ok(false);
                    }
                    position = Some(now);
                }
                let Some(change) = rows::changed(row)? else { continue };
                ages.push(change.age_seconds);
                match change.row {
                    Some(row) => refresh.row(change.id, row),
                    None => refresh.deleted(change.id),
                }
            }
        }
        let refreshed = refresh.finish();
        self.publish(refreshed, position, started, "delta", ages.len());
        for age in ages {
            // The age by the database's clock, when it ran the statement that we sent at `started`, and what has
            // passed since by ours: no two clocks are ever compared.
            self.metrics.propagation_seconds.observe(age.max(0.0) + started.elapsed().as_secs_f64());
        }
        Ok(true)
    }

    /// Publishes all of the view, read in one transaction.
    async fn full(&mut self, session: &Session) -> Result<(), ReadError> {
        let started = Instant::now();
        let previous = Arc::clone(&self.current);
        let mut refresh = Refresh::full(&previous, &self.settings.rules);
        let position = session.begin().await?;
        let mut count = 0;
        let mut rows = session.entries().await?;
        while let Some(chunk) = rows.next().await? {
            count += chunk.len();
            for row in &chunk {
                refresh.row(rows::id(row)?, rows::model(row, 0));
            }
        }
        session.commit().await?;
        let refreshed = refresh.finish();
        self.publish(refreshed, Some(position), started, "full", count);
        Ok(())
    }

    fn publish(
        &mut self,
        refreshed: Refreshed,
        position: Option<Position>,
        started: Instant,
        kind: &'static str,
        rows: usize,
    ) {
        let Refreshed { snapshot, changed, newly_rejected } = refreshed;
        let rejections_changed = snapshot.rejected() != self.current.rejected();
        if changed > 0 || rejections_changed || self.position.is_none() {
            self.current = self.publisher.publish(snapshot);
        }
        self.position = position.or(self.position.take());
        self.publisher.synced(started);

        let current = &self.current;
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.models.set(count(current.len()));
        self.metrics.models_rejected.set(count(current.rejected().len()));
        self.metrics.snapshot_bytes.set(count(current.bytes()));
        self.metrics.last_sync.set(std::time::UNIX_EPOCH.elapsed().map_or(0.0, |now| now.as_secs_f64()));

        log_rejections(&newly_rejected);
        let (revision, took) = (format!("{:016x}", current.revision()), started.elapsed());
        if kind == "full" || rows > 0 {
            info!(kind, rows, changed, models = current.len(), ?took, revision, "refreshed");
        } else {
            debug!(kind, rows, ?took, revision, "heartbeat");
        }
    }

    fn measured<T>(&self, kind: &str, started: Instant, result: &Result<T, ReadError>) {
        let outcome = if result.is_ok() { "ok" } else { "error" };
        self.metrics.refreshes.with_label_values(&[kind, outcome]).inc();
        self.metrics.refresh_seconds.with_label_values(&[kind]).observe(started.elapsed().as_secs_f64());
    }

    /// Logs that there is no session, not too often, and says how long to wait: full jitter, so that a thousand
    /// replicas do not come back in step.
    fn lost(&mut self, error: &SessionError) -> Duration {
        let now = Instant::now();
        let outage = self.outage.get_or_insert(Outage { since: now, attempts: 0, logged: now });
        if outage.attempts == 0 || outage.logged.elapsed() >= REMIND_AFTER {
            outage.logged = now;
            let (attempts, away) = (outage.attempts, outage.since.elapsed());
            warn!(%error, attempts, ?away, "the database is away; serving what there is and trying again");
        }
        let limit = FIRST_BACKOFF.saturating_mul(1 << outage.attempts.min(16)).min(self.settings.poll_interval);
        outage.attempts = outage.attempts.saturating_add(1);
        limit.mul_f64(fastrand::f64())
    }

    fn regained(&mut self) {
        match self.outage.take() {
            Some(outage) => {
                info!(attempts = outage.attempts, away = ?outage.since.elapsed(), "the database is back, in step again");
            }
            None => info!("connected to the database, in step"),
        }
    }
}

fn log_rejections(rejected: &[(Box<str>, Fault)]) {
    for (id, fault) in rejected.iter().take(REJECTIONS_LOGGED) {
        warn!(%id, reason = %fault, "row rejected; the last good version of it stays served, if there was one");
    }
    if let Some(more) = rejected.len().checked_sub(REJECTIONS_LOGGED).filter(|more| *more > 0) {
        warn!(more, "further rows rejected");
    }
}

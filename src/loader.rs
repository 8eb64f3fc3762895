//! The one task that turns Postgres into snapshots: listen, load everything once, then one delta for every ring of
//! the doorbell and every heartbeat.
//!
//! Every error means: drop the connection, wait, connect again, and keep serving what there is. Nothing ends the loop.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use tokio::sync::{Notify, watch};
use tracing::{debug, error, info, warn};

use crate::anchor::Anchor;
use crate::catalog::file::Saved;
use crate::catalog::model::Rules;
use crate::catalog::snapshot::{Refresh, Refreshed, Snapshot};
use crate::catalog::store::{Publisher, Store, SyncMode};
use crate::metrics::Metrics;
use crate::outage::Outage;
use crate::postgres::config::DatabaseConfig;
use crate::postgres::error::{ConnectError, ReadError};
use crate::postgres::position::Position;
use crate::postgres::rows;
use crate::postgres::session::Session;
use crate::replica::application_name;
use crate::saver::Newest;

/// Deltas in a row that may time out before everything is read instead: reading all of a slow view at once can
/// succeed where a look-up for each of very many changes does not.
const DELTA_ATTEMPTS: u32 = 2;
/// Rejected rows that one refresh names in the log; the rest it counts.
const REJECTIONS_LOGGED: usize = 20;

/// What a loader needs to know.
#[derive(Clone)]
pub struct Settings {
    /// The database to follow.
    pub database: DatabaseConfig,
    /// Time between two deltas when nothing rings.
    pub poll_interval: Duration,
    /// Time between two audits, give or take a fifth.
    pub audit_interval: Duration,
    /// The rules a row must pass.
    pub rules: Rules,
    /// The name that this replica bears in `model_catalog.fleet`.
    pub replica: String,
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
    #[error("the standby was promoted, connecting anew to listen")]
    Promoted,
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
    anchor: Anchor,
    /// Where the newest state goes to be kept.
    newest: watch::Sender<Newest>,
    next_audit: Instant,
    said: Option<SyncMode>,
    /// What this session is named.
    named: String,
    doorbell: Arc<Notify>,
    delta_timeouts: u32,
    outage: Option<Outage>,
}

impl Loader {
    /// A loader that publishes to `store` and hands what is to be kept to `newest`.
    #[must_use]
    pub fn new(settings: Settings, store: Arc<Store>, metrics: Arc<Metrics>, newest: watch::Sender<Newest>) -> Self {
        let current = store.load().clone().unwrap_or_default();
        let next_audit = Instant::now() + jittered(settings.audit_interval);
        Self {
            settings,
            metrics,
            publisher: Publisher::new(store),
            current,
            position: None,
            anchor: Anchor::default(),
            newest,
            next_audit,
            said: None,
            named: String::new(),
            doorbell: Arc::new(Notify::new()),
            delta_timeouts: 0,
            outage: None,
        }
    }

    /// Serves what a file held. Rows that passed other rules are served, too, until everything is read again.
    pub fn restore(&mut self, saved: Saved<Snapshot>) {
        self.current = self.publisher.publish(saved.snapshot);
        self.position = Some(saved.position).filter(|_| saved.rules == self.settings.rules.text());
        self.anchor.moved(self.position.as_ref());
        self.show();
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
        let mut session = Session::open(&self.database(), ring).await?;
        self.say_how(session.sync_mode());
        self.named.clear();
        self.name(&session, application_name(&self.settings.replica, None));
        self.position = self.position.take().and_then(|_| self.anchor.position().cloned());
        self.step(&session).await?;
        self.metrics.listener_connected.set(i64::from(session.sync_mode() == SyncMode::Live));
        self.regained();
        loop {
            tokio::select! {
                () = self.doorbell.notified() => {}
                () = tokio::time::sleep(self.settings.poll_interval) => {}
                why = session.closed() => return Err(SessionError::Closed(why)),
            }
            self.step(&session).await?;
        }
    }

    /// Brings what is served in step with the database, and says there how far it has come.
    async fn step(&mut self, session: &Session) -> Result<(), SessionError> {
        self.refresh(session).await?;
        let served = self.position.as_ref().map(|position| (self.current.revision(), position));
        self.name(session, application_name(&self.settings.replica, served));
        Ok(())
    }

    /// Names the session. On a standby a snapshot does not tell what is served; a pooler's connection is not ours.
    fn name(&mut self, session: &Session, name: String) {
        if session.sync_mode() == SyncMode::Live && self.named != name {
            session.set_application_name(&name);
            self.named = name;
        }
    }

    /// The address as it stands; after a failure its hosts come in any order.
    fn database(&self) -> DatabaseConfig {
        let database = &self.settings.database;
        if self.outage.is_some() { database.shuffled() } else { database.clone() }
    }

    /// One read of the database, of the kind that is due.
    async fn refresh(&mut self, session: &Session) -> Result<(), SessionError> {
        if session.sync_mode() == SyncMode::Standby {
            // No delta there: its snapshots leave out the transactions in progress.
            self.whole(session, "full").await?;
            // It has become a primary, which can announce.
            let promoted = self.position.as_ref().is_some_and(|position| !position.is_standby());
            return if promoted { Err(SessionError::Promoted) } else { Ok(()) };
        }
        if self.position.is_some() && Instant::now() >= self.next_audit {
            return Ok(self.whole(session, "audit").await?);
        }
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
                    return Err(error.into());
                }
            }
        }
        Ok(self.whole(session, "full").await?)
    }

    /// Reads all of the view in one transaction: to load it, or to compare it with what is served.
    async fn whole(&mut self, session: &Session, kind: &'static str) -> Result<(), ReadError> {
        let started = Instant::now();
        let whole = async {
            let position = session.begin().await?;
            if kind == "audit" {
                self.audit(session, &position).await?;
            }
            self.full(session, position, kind).await
        };
        let whole = whole.await;
        self.measured(kind, started, &whole);
        self.delta_timeouts = 0;
        self.next_audit = Instant::now() + jittered(self.settings.audit_interval);
        whole
    }

    /// Counts what the full read that follows in this transaction would find to be different from memory, which
    /// has to be brought to the same moment first.
    async fn audit(&mut self, session: &Session, now: &Position) -> Result<(), ReadError> {
        if let Some(since) = self.position.clone()
            && !self.read_delta(session, &since).await?
        {
            self.position = None;
        }
        debug!(snapshot = now.snapshot, "auditing");
        Ok(())
    }

    /// Publishes what changed since `since`; false if that is a moment of another history.
    async fn delta(&mut self, session: &Session, since: &Position) -> Result<bool, ReadError> {
        if session.sync_mode() == SyncMode::Live {
            return self.read_delta(session, since).await;
        }
        // A pooler may give each statement another connection, but for those of one transaction.
        session.begin().await?;
        let same_history = self.read_delta(session, since).await?;
        session.commit().await?;
        Ok(same_history)
    }

    async fn read_delta(&mut self, session: &Session, since: &Position) -> Result<bool, ReadError> {
        let started = Instant::now();
        let previous = Arc::clone(&self.current);
        let mut refresh = Refresh::delta(&previous, &self.settings.rules);
        let mut position = None;
        let (mut ages, mut rows_read) = (Vec::new(), 0);
        let mut rows = session.delta(since).await?;
        while let Some(chunk) = rows.next().await? {
            for row in &chunk {
                if position.is_none() {
                    let now = Position::from_row(row)?;
                    // A lower xmax is a history taken back, such as a restored disk: its identity stays the same.
                    if now.history != since.history || now.xmax() < since.xmax() {
                        return Ok(false);
                    }
                    position = Some(now);
                }
                let Some(change) = rows::change(row)? else { continue };
                rows_read += 1;
                let before = refresh.changed();
                match change.row {
                    Some(row) => refresh.row(change.id, row),
                    None => refresh.deleted(change.id),
                }
                // After a new connect, what is served already comes once more.
                if refresh.changed() > before {
                    ages.push(change.age_seconds);
                }
            }
        }
        let refreshed = refresh.finish();
        self.publish(refreshed, position, started, session.sync_mode(), ("delta", rows_read));
        for age in ages {
            // The age by the database's clock, when it ran the statement that we sent at `started`, and what has
            // passed since by ours: no two clocks are ever compared.
            self.metrics.propagation_seconds.observe(age.max(0.0) + started.elapsed().as_secs_f64());
        }
        Ok(true)
    }

    /// Publishes all of the view, read in the transaction that stands at `position`.
    async fn full(&mut self, session: &Session, position: Position, kind: &'static str) -> Result<(), ReadError> {
        let started = Instant::now();
        let previous = Arc::clone(&self.current);
        let mut refresh = Refresh::full(&previous, &self.settings.rules);
        let mut count = 0;
        let rows = session.entries().await?;
        rows.for_each(|id, row| {
            refresh.row(id, row);
            count += 1;
            Ok::<_, ReadError>(())
        })
        .await?;
        session.commit().await?;
        let refreshed = refresh.finish();
        if kind == "audit" && self.position.is_some() && refreshed.changed > 0 {
            self.metrics.audit_mismatches.inc_by(refreshed.changed as u64);
            error!(models = refreshed.changed, "the audit found models that differ from the database; they are mended");
        }
        self.publish(refreshed, Some(position), started, session.sync_mode(), (kind, count));
        Ok(())
    }

    fn publish(
        &mut self,
        refreshed: Refreshed,
        position: Option<Position>,
        started: Instant,
        follow: SyncMode,
        (kind, rows): (&'static str, usize),
    ) {
        let Refreshed { snapshot, changed, newly_rejected } = refreshed;
        let moved = self.position.as_ref().map(|at| &at.history) != position.as_ref().map(|at| &at.history);
        self.position = position;
        self.anchor.moved(self.position.as_ref());
        if changed > 0 || moved || snapshot.rejected() != self.current.rejected() {
            self.current = self.publisher.publish(snapshot);
            self.show();
            self.keep();
        }
        self.publisher.synced(started, follow);
        self.metrics.last_sync.set(UNIX_EPOCH.elapsed().map_or(0.0, |now| now.as_secs_f64()));
        log_rejections(&newly_rejected);
        let (revision, took) = (format!("{:016x}", self.current.revision()), started.elapsed());
        if kind != "delta" || rows > 0 {
            info!(kind, rows, changed, models = self.current.len(), ?took, revision, "refreshed");
        } else {
            debug!(kind, rows, ?took, revision, "heartbeat");
        }
    }

    /// Sets the gauges to what is served.
    fn show(&self) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.models.set(count(self.current.len()));
        self.metrics.models_rejected.set(count(self.current.rejected().len()));
        self.metrics.snapshot_bytes.set(count(self.current.bytes()));
    }

    /// Hands the state to the saver. A state without a position is no state to start from.
    fn keep(&self) {
        if let Some(position) = self.anchor.position().filter(|_| self.position.is_some()) {
            let (snapshot, position) = (Arc::clone(&self.current), position.clone());
            self.newest.send_replace(Some(Saved { snapshot, position, rules: self.settings.rules.text() }));
        }
    }

    /// Says once how the database can be followed, where that is not as usual.
    fn say_how(&mut self, follow: SyncMode) {
        let every = self.settings.poll_interval;
        match follow {
            _ if self.said == Some(follow) => {}
            SyncMode::Live => {}
            SyncMode::Polling => {
                warn!(
                    ?every,
                    "a connection pooler is in between: no announcements, changes are looked for in intervals; connect to Postgres itself"
                );
            }
            SyncMode::Standby => {
                warn!(?every, "this is a hot standby: no announcements, everything is read in intervals")
            }
        }
        self.said = Some(follow);
    }

    fn measured<T>(&self, kind: &str, started: Instant, result: &Result<T, ReadError>) {
        let outcome = if result.is_ok() { "ok" } else { "error" };
        // Counted last: who finds a read counted finds it measured.
        self.metrics.refresh_seconds.with_label_values(&[kind]).observe(started.elapsed().as_secs_f64());
        self.metrics.refreshes.with_label_values(&[kind, outcome]).inc();
    }

    /// Logs that there is no session, not too often, and says how long to wait.
    fn lost(&mut self, error: &SessionError) -> Duration {
        let unreadable = matches!(error, SessionError::Read(error) if error.is_about_the_schema());
        self.outage.get_or_insert_default().failed(error, unreadable, self.settings.poll_interval)
    }

    fn regained(&mut self) {
        match self.outage.take() {
            Some(outage) => outage.over(),
            None => info!("connected to the database, in step"),
        }
    }
}

/// The interval, give or take a fifth, so that replicas started together do not stay together.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.8 + 0.4 * fastrand::f64())
}

fn log_rejections(rejected: &[(Box<str>, Box<str>)]) {
    for (id, reason) in rejected.iter().take(REJECTIONS_LOGGED) {
        warn!(%id, %reason, "row rejected; the last good version of it stays served, if there was one");
    }
    if rejected.len() > REJECTIONS_LOGGED {
        warn!(more = rejected.len() - REJECTIONS_LOGGED, "further rows rejected");
    }
}

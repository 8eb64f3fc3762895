//! Keeps the catalog in sync with Postgres: one task that listens, reads everything once, and then reads a delta after
//! every notification and every poll interval.
//!
//! After any error the connection is dropped and opened again with backoff, while the last snapshot stays served. No
//! error ends the task.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::{debug, info};

use crate::base::error_chain::chain;
use crate::catalog::refresh::{Refresh, Refreshed};
use crate::catalog::row_error::log_rejections;
use crate::catalog::snapshot::Snapshot;
use crate::metrics::Metrics;
use crate::postgres::config::DatabaseConfig;
use crate::postgres::error::{ConnectError, ReadError};
use crate::postgres::position::Position;
use crate::postgres::session::{Session, SyncMode};
use crate::snapshot_file::PersistedSnapshot;
use crate::sync::LastSync;

mod backoff;
mod costs;
mod delta;
mod fleet;
pub mod output;
pub mod replica;
pub mod report;
mod resume;
mod settings;
mod standby;
mod structure;
mod trim;
mod unknown_ids;
pub mod upstream;

use backoff::{OutageKind, ReconnectBackoff, jittered};
use costs::ReadCosts;
use delta::Delta;
use fleet::FleetReader;
use output::Output;
use replica::application_name;
use report::{CompletedRead, RefreshKind};
use resume::ResumePoint;
pub use settings::LoaderSettings;
use standby::Standby;
use structure::Structure;
use trim::Trim;
use unknown_ids::UnknownIds;

/// Time until the next read after a full read that took too long, at most its limit.
const PAUSE_AFTER_TOO_LONG: Duration = Duration::from_secs(60);
/// Number of poll intervals after which a server that refused to listen is asked again. It logs each refusal.
const LISTEN_RETRY_POLLS: u32 = 6;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("cannot read")]
    Read(#[from] ReadError),
    #[error("connection lost: {0}")]
    Closed(String),
    #[error("the standby was promoted, reconnecting to listen")]
    Promoted,
}

/// Reads the database and publishes snapshots.
pub struct Loader {
    settings: LoaderSettings,
    metrics: Arc<Metrics>,
    output: Output,
    /// The published snapshot; empty before the first load.
    current: Arc<Snapshot>,
    /// The position at which `current` equals the database; `None` requires a full read.
    position: Option<Position>,
    resume: ResumePoint,
    standby: Standby,
    structure: Structure,
    unknown_ids: UnknownIds,
    trim: Trim,
    fleet: FleetReader,
    next_audit: Instant,
    logged_mode: Option<(SyncMode, bool)>,
    /// The application name of the current session, empty before it is set.
    application_name: String,
    /// Holds a permit while notifications are unhandled.
    notified: Arc<Notify>,
    /// The last delta took too long: the next read is a full one.
    delta_timed_out: bool,
    costs: ReadCosts,
    /// When the database was started that was last connected to, by this process or the writer of the snapshot file.
    server_started: Option<String>,
    /// It was started again since, and not everything was read yet.
    unaudited: bool,
    backoff: ReconnectBackoff,
}

impl Loader {
    /// A loader that publishes to `output`.
    #[must_use]
    pub fn new(settings: LoaderSettings, output: Output) -> Self {
        let current = output.snapshot().unwrap_or_default();
        let next_audit = Instant::now() + jittered(settings.audit_interval);
        Self {
            settings,
            metrics: Arc::clone(output.metrics()),
            output,
            current,
            position: None,
            resume: ResumePoint::default(),
            standby: Standby::default(),
            structure: Structure::default(),
            unknown_ids: UnknownIds::default(),
            trim: Trim::default(),
            fleet: FleetReader::default(),
            next_audit,
            logged_mode: None,
            application_name: String::new(),
            notified: Arc::new(Notify::new()),
            delta_timed_out: false,
            costs: ReadCosts::default(),
            server_started: None,
            unaudited: false,
            backoff: ReconnectBackoff::new("database"),
        }
    }

    /// Publishes a persisted snapshot, whose rows must pass the rules of the settings. A file that was written under
    /// other rules requires a full read, which may accept rows that were rejected then.
    pub(crate) fn restore(&mut self, persisted: PersistedSnapshot<Snapshot>) {
        let restored = self.output.restore(persisted);
        self.current = restored.snapshot;
        if restored.rules == self.settings.rules.text() {
            self.resume.advance(Some(&restored.position));
            self.position = Some(restored.as_of);
        }
        // An unknown time differs from every other one.
        self.server_started = Some(restored.database_started.unwrap_or_default());
        self.structure.restore(restored.structure);
    }

    /// Keeps the catalog in sync, forever.
    pub async fn run(mut self) -> Infallible {
        loop {
            let Err(error) = self.session().await;
            self.metrics.listener_connected.set(0);
            self.output.publish_fleet(None);
            tokio::time::sleep(self.on_disconnect(&error)).await;
        }
    }

    /// Runs one connection until it fails.
    async fn session(&mut self) -> Result<Infallible, SessionError> {
        let (notified, metrics) = (Arc::clone(&self.notified), Arc::clone(&self.metrics));
        let on_notification = move || {
            metrics.notifications.inc();
            notified.notify_one();
        };
        // LISTEN comes before the first read, so that a change committed in between sends a notification.
        let mut session = Session::open(&self.database(), on_notification).await?;
        let by_standby_delta = session.sync_mode() == SyncMode::Standby && session.is_direct();
        let every = if by_standby_delta { self.settings.standby_poll_interval } else { self.settings.poll_interval };
        let (mode, direct) = (session.sync_mode(), session.is_direct());
        if self.logged_mode.replace((mode, direct)) != Some((mode, direct)) {
            report::log_sync_mode(mode, direct, every, session.listen_refused());
        }
        self.application_name.clear();
        self.set_application_name(&session, application_name(&self.settings.replica, None));
        self.resume_from(&session).await?;
        self.standby = Standby::default();
        self.structure.on_connect();
        self.sync_once(&session).await?;
        self.metrics.listener_connected.set(i64::from(session.sync_mode() == SyncMode::Live));
        self.backoff.reset();
        let mut listen_again = Instant::now() + LISTEN_RETRY_POLLS * self.settings.poll_interval;
        loop {
            tokio::select! {
                () = self.notified.notified() => {}
                () = tokio::time::sleep(self.standby.pause(every, self.settings.poll_interval)) => {}
                () = tokio::time::sleep_until(self.next_audit.into()) => {}
                reason = session.closed() => return Err(SessionError::Closed(reason)),
            }
            if session.listen_refused().is_some() && Instant::now() >= listen_again {
                listen_again = Instant::now() + LISTEN_RETRY_POLLS * self.settings.poll_interval;
                session.listen_again().await?;
                self.on_listening(&session);
            }
            self.sync_once(&session).await?;
            tokio::time::sleep(self.costs.pause().min(self.settings.poll_interval)).await;
        }
    }

    /// Reports that a server that refused to listen does so no longer.
    fn on_listening(&mut self, session: &Session) {
        if session.sync_mode() == SyncMode::Live {
            info!("the server no longer refuses LISTEN: it notifies of changes");
            self.metrics.listener_connected.set(1);
            self.logged_mode = Some((SyncMode::Live, session.is_direct()));
        }
    }

    /// Reads what changed, publishes it, and reports the new position in the application name.
    async fn sync_once(&mut self, session: &Session) -> Result<(), SessionError> {
        if self.structure.has_changed(session, self.settings.poll_interval, &self.output).await? {
            self.position = None;
        }
        self.refresh(session).await?;
        // Without a position it does not count as in step.
        let position = self.position.as_ref().filter(|_| !self.unaudited);
        let served = position.map(|position| (self.current.revision(), position));
        self.set_application_name(session, application_name(&self.settings.replica, served));
        if session.sync_mode() != SyncMode::Standby && self.trim.take_due(self.current.len()) {
            session.trim().await?;
        }
        Ok(self.fleet.refresh(session, &self.output).await?)
    }

    /// Sets the application name if it changed. Not through a pooler, whose connections are shared with other clients.
    fn set_application_name(&mut self, session: &Session, name: String) {
        if session.is_direct() && self.application_name != name {
            session.set_application_name(&name);
            self.application_name = name;
        }
    }

    /// The database as configured; after a failure, with its hosts in random order.
    fn database(&self) -> DatabaseConfig {
        let database = &self.settings.database;
        if self.backoff.is_active() { database.shuffled() } else { database.clone() }
    }

    /// One read of the kind that is due.
    async fn refresh(&mut self, session: &Session) -> Result<(), SessionError> {
        if session.sync_mode() != SyncMode::Standby {
            return self.refresh_by_delta(session).await;
        }
        if session.is_direct() {
            self.refresh_by_delta(session).await?;
        } else {
            // Two transactions through a pooler can run on two standbys, the second of which is behind the first.
            self.full_refresh(session, RefreshKind::Full).await?;
        }
        // After a promotion to primary it accepts LISTEN.
        let promoted = self.position.as_ref().is_some_and(|position| !position.is_standby());
        if promoted { Err(SessionError::Promoted) } else { Ok(()) }
    }

    /// A delta if there is a position to read from, otherwise a full read; an audit when it is due.
    async fn refresh_by_delta(&mut self, session: &Session) -> Result<(), SessionError> {
        if self.position.is_some() && Instant::now() >= self.next_audit {
            return Ok(self.full_refresh(session, RefreshKind::Audit).await?);
        }
        if let Some(since) = self.position.clone().filter(|_| !self.delta_timed_out) {
            let started = Instant::now();
            let delta = self.delta(session, &since).await;
            self.record_read(RefreshKind::Delta, started, delta.is_ok());
            match delta {
                Ok(Delta::Applied) => return Ok(()),
                Ok(Delta::OtherHistory) => info!("the database has another history, reading everything"),
                // The full read is due to the size of the change, and not an error.
                Ok(Delta::TooLarge) => debug!("most of the catalog has changed, reading everything"),
                Err(error) => {
                    // Reading all of a slow view can succeed where a look-up for each change does not.
                    self.delta_timed_out = error.is_timeout();
                    return Err(error.into());
                }
            }
        }
        Ok(self.full_refresh(session, RefreshKind::Full).await?)
    }

    /// A full read or an audit, in one transaction.
    async fn full_refresh(&mut self, session: &Session, kind: RefreshKind) -> Result<(), ReadError> {
        let started = Instant::now();
        let refreshed = async {
            self.structure.read(session, &self.output).await?;
            let position = session.begin().await?;
            if kind == RefreshKind::Audit {
                debug!(snapshot = position.snapshot, "auditing");
                // Brings what is published to the position of this transaction, so that only real differences count.
                if let Some(since) = self.position.clone()
                    && self.delta_in_transaction(session, &since, 0).await? != Delta::Applied
                {
                    self.position = None;
                }
            }
            self.read_all(session, position, kind).await
        };
        let refreshed = refreshed.await;
        self.record_read(kind, started, refreshed.is_ok());
        self.delta_timed_out = false;
        self.unaudited &= refreshed.is_err();
        self.next_audit = Instant::now() + jittered(self.settings.audit_interval);
        refreshed
    }

    fn record_read(&mut self, kind: RefreshKind, started: Instant, ok: bool) {
        self.costs.on_read(kind, started.elapsed(), ok, &self.metrics);
        report::record_refresh(&self.metrics, kind, started, ok);
    }

    /// Reads and publishes everything, in the transaction that began at `position`.
    async fn read_all(&mut self, session: &Session, position: Position, kind: RefreshKind) -> Result<(), ReadError> {
        let started = Instant::now();
        let previous = Arc::clone(&self.current);
        let mut refresh = Refresh::full(&previous, &self.settings.rules);
        let mut rows_read = 0;
        let rows = session.entries().await?;
        rows.for_each(|id, row| {
            refresh.row(id, row);
            rows_read += 1;
            Ok::<_, ReadError>(())
        })
        .await?;
        session.commit().await?;
        let refreshed = refresh.finish();
        let same_structure = self.structure.on_full_read();
        if kind == RefreshKind::Audit && self.position.is_some() && refreshed.changed > 0 && same_structure {
            // COPY uses the current view definition; if it changed after `position`, differences are expected.
            if session.position().await?.history == position.history {
                report::record_mismatches(&self.metrics, refreshed.changed);
            }
        }
        let read = CompletedRead { kind, mode: Some(session.sync_mode()), started, rows: rows_read };
        self.publish(refreshed, Some(position), read);
        Ok(())
    }

    fn publish(&mut self, refreshed: Refreshed, position: Option<Position>, read: CompletedRead) {
        let Refreshed { snapshot, changed, rejections_changed, newly_rejected, unknown } = refreshed;
        self.trim.on_read(read.kind, read.rows);
        match read.kind {
            RefreshKind::Audit => {
                self.unknown_ids.on_audit(changed, read.started.elapsed(), self.settings.audit_interval)
            }
            RefreshKind::Full => self.unknown_ids.on_full_read(),
            RefreshKind::Delta | RefreshKind::Upstream => {}
        }
        if let Some((number, example)) = unknown {
            let pause = self.unknown_ids.record(number, &example, &self.metrics);
            self.next_audit = self.next_audit.min(Instant::now() + pause);
        }
        let history_changed = self.position.as_ref().map(|at| &at.history) != position.as_ref().map(|at| &at.history);
        self.position = position;
        self.resume.advance(self.position.as_ref());
        if changed > 0 || history_changed || rejections_changed {
            self.current = Arc::new(snapshot);
            self.state().into_iter().for_each(|state| self.output.persist(state));
            self.output.publish(Arc::clone(&self.current));
        } else if let Some(state) = self.state() {
            // The content may have been another one in between, which other servers have seen.
            self.output.move_position(state);
        }
        let replay_lag_seconds = self.standby.replay_lag_seconds();
        self.metrics.replay.lag.set(replay_lag_seconds.unwrap_or_default());
        self.metrics.replay.stalled.set(i64::from(self.standby.is_stalled()));
        self.output.record_sync(LastSync { at: read.started, mode: read.mode, replay_lag_seconds });
        read.log(changed, &self.current);
        log_rejections(&newly_rejected);
    }

    /// What is handed on. Without a position it could not be resumed from.
    fn state(&self) -> Option<PersistedSnapshot<Arc<Snapshot>>> {
        let (position, as_of) = (self.resume.position().cloned()?, self.position.clone()?);
        let (snapshot, rules) = (Arc::clone(&self.current), self.settings.rules.text());
        let structure = self.structure.loaded().cloned();
        let database_started = self.server_started.clone().filter(|_| !self.unaudited);
        Some(PersistedSnapshot { snapshot, position, as_of, rules, structure, database_started })
    }

    /// Returns how long to wait before the next connect.
    fn on_disconnect(&mut self, error: &SessionError) -> Duration {
        let kind = match error {
            SessionError::Connect(error) if error.is_about_the_configuration() => OutageKind::Rejected,
            SessionError::Read(error) if error.is_about_the_schema() => OutageKind::Unreadable,
            _ => OutageKind::Unavailable,
        };
        let delay =
            self.backoff.next_delay(&chain(error), kind, self.output.snapshot().is_some(), self.settings.poll_interval);
        match error {
            // A delta that took too long is followed by a full read, and that by a pause, in which others get locks.
            SessionError::Read(ReadError::TooLong(limit)) if !self.delta_timed_out => {
                jittered((*limit).min(PAUSE_AFTER_TOO_LONG))
            }
            _ => delay,
        }
    }
}

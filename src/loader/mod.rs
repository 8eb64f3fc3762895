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
use crate::catalog::refresh::Refresh;
use crate::catalog::snapshot::Snapshot;
use crate::metrics::Metrics;
use crate::postgres::config::DatabaseConfig;
use crate::postgres::error::{ConnectError, ReadError};
use crate::postgres::position::Position;
use crate::postgres::session::{Session, SyncMode};
use crate::snapshot_file::PersistedSnapshot;

mod backoff;
mod costs;
mod delta;
mod fleet;
pub mod output;
mod publish;
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

/// The read that is due.
enum NextRead {
    /// What changed since this position.
    Delta(Position),
    /// Everything, for this reason.
    Full(&'static str),
    /// Everything, to be compared with what is served.
    Audit,
}

/// Reads the database and publishes snapshots.
pub struct Loader {
    settings: LoaderSettings,
    metrics: Arc<Metrics>,
    output: Output,

    // What is served.
    /// The published snapshot; empty before the first read.
    current: Arc<Snapshot>,
    /// The position at which `current` equals the database; `None` requires a full read.
    position: Option<Position>,
    resume: ResumePoint,

    // Which read comes next: see `next_read`.
    /// Holds a permit while notifications are unhandled.
    notified: Arc<Notify>,
    next_audit: Instant,
    /// The last delta took too long: the next read is a full one.
    delta_timed_out: bool,
    costs: ReadCosts,
    structure: Structure,
    unknown_ids: UnknownIds,

    // The database, and this session with it.
    backoff: ReconnectBackoff,
    /// When the database was started that was last connected to, by this process or the writer of the snapshot file.
    server_started: Option<String>,
    /// It was started again since, and not everything was read yet.
    unaudited: bool,
    logged_mode: Option<(SyncMode, bool)>,
    /// The application name of the current session, empty before it is set.
    application_name: String,
    standby: Standby,
    trim: Trim,
    fleet: FleetReader,
}

impl Loader {
    /// A loader that publishes to `output`.
    #[must_use]
    pub fn new(settings: LoaderSettings, output: Output) -> Self {
        Self {
            metrics: Arc::clone(output.metrics()),
            current: output.snapshot().unwrap_or_default(),
            position: None,
            resume: ResumePoint::default(),
            notified: Arc::new(Notify::new()),
            next_audit: Instant::now() + jittered(settings.audit_interval),
            delta_timed_out: false,
            costs: ReadCosts::default(),
            structure: Structure::default(),
            unknown_ids: UnknownIds::default(),
            backoff: ReconnectBackoff::new("database"),
            server_started: None,
            unaudited: false,
            logged_mode: None,
            application_name: String::new(),
            standby: Standby::default(),
            trim: Trim::default(),
            fleet: FleetReader::default(),
            settings,
            output,
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
        // The text of an unknown time equals no time that a server reports, so it counts as a restart.
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
        let mut session = Session::open(&self.database()?, on_notification).await?;
        let by_standby_delta = session.sync_mode() == SyncMode::Standby && session.is_direct();
        let interval = if by_standby_delta { self.settings.standby_poll_interval } else { self.settings.poll_interval };
        let (mode, direct) = (session.sync_mode(), session.is_direct());
        if self.logged_mode.replace((mode, direct)) != Some((mode, direct)) {
            report::log_sync_mode(mode, direct, interval, session.listen_refused());
        }
        self.application_name.clear();
        self.set_application_name(&session, application_name(&self.settings.replica, None));
        self.resume_from(&session).await?;
        self.standby = Standby::default();
        self.structure.on_connect();
        self.sync_once(&session).await?;
        self.metrics.listener_connected.set(i64::from(session.sync_mode() == SyncMode::Live));
        self.backoff.reset();
        let mut listened = Instant::now();
        loop {
            tokio::select! {
                () = self.notified.notified() => {}
                () = tokio::time::sleep(self.standby.pause(interval, self.settings.poll_interval)) => {}
                () = tokio::time::sleep_until(self.next_audit.into()) => {}
                reason = session.closed() => return Err(SessionError::Closed(reason)),
            }
            let is_due = listened.elapsed() >= LISTEN_RETRY_POLLS * self.settings.poll_interval;
            if is_due && session.listen_refused().is_some() {
                listened = Instant::now();
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

    /// The database as configured now; after a failure, with its hosts in random order.
    fn database(&self) -> Result<DatabaseConfig, ConnectError> {
        let database = self.settings.database.reread()?;
        Ok(if self.backoff.is_active() { database.shuffled() } else { database })
    }

    /// One read of the kind that is due.
    async fn refresh(&mut self, session: &Session) -> Result<(), SessionError> {
        let of_everything = match self.next_read(session) {
            NextRead::Delta(since) => match self.refresh_by_delta(session, &since).await? {
                Delta::Applied => None,
                Delta::OtherHistory => {
                    info!("the database has another history, reading everything");
                    Some((RefreshKind::Full, "another history"))
                }
                // Not an error, but the size of the change.
                Delta::TooLarge => Some((RefreshKind::Full, "most of the catalog has changed")),
            },
            NextRead::Full(reason) => Some((RefreshKind::Full, reason)),
            NextRead::Audit => Some((RefreshKind::Audit, "an audit is due")),
        };
        if let Some((kind, reason)) = of_everything {
            debug!(kind = kind.label(), reason, "reading everything");
            self.full_refresh(session, kind).await?;
        }
        // After a promotion to primary it accepts LISTEN.
        let is_primary = self.position.as_ref().is_some_and(|position| !position.is_standby());
        if session.sync_mode() == SyncMode::Standby && is_primary { Err(SessionError::Promoted) } else { Ok(()) }
    }

    fn next_read(&self, session: &Session) -> NextRead {
        let Some(position) = &self.position else { return NextRead::Full("there is no position to read from") };
        if session.sync_mode() == SyncMode::Standby && !session.is_direct() {
            NextRead::Full("a pooler may change standbys between two reads, and the second one may be behind the first")
        } else if Instant::now() >= self.next_audit {
            NextRead::Audit
        } else if self.delta_timed_out {
            // That can succeed where a look-up in a slow view for each change does not.
            NextRead::Full("the last delta took too long")
        } else {
            NextRead::Delta(position.clone())
        }
    }

    async fn refresh_by_delta(&mut self, session: &Session, since: &Position) -> Result<Delta, ReadError> {
        let started = Instant::now();
        let delta = self.delta(session, since).await;
        self.record_read(RefreshKind::Delta, started, delta.is_ok());
        self.delta_timed_out = delta.as_ref().is_err_and(ReadError::is_timeout);
        delta
    }

    /// A full read or an audit, in one transaction.
    async fn full_refresh(&mut self, session: &Session, kind: RefreshKind) -> Result<(), ReadError> {
        let started = Instant::now();
        let refreshed = async {
            self.structure.read(session, &self.output).await?;
            let position = session.begin().await?;
            if kind == RefreshKind::Audit {
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

    /// Returns how long to wait before the next connect.
    fn on_disconnect(&mut self, error: &SessionError) -> Duration {
        let kind = match error {
            SessionError::Connect(error) if error.is_about_the_configuration() => OutageKind::Rejected,
            SessionError::Read(error) if error.is_about_the_schema() => OutageKind::Unreadable,
            _ => OutageKind::Unavailable,
        };
        let reason = chain(error);
        let serving = self.output.snapshot().is_some();
        let delay = self.backoff.next_delay(&reason, kind, serving, self.settings.poll_interval);
        self.output.record_failure(reason);
        match error {
            // A delta that took too long is followed by a full read, and that by a pause, in which others get locks.
            SessionError::Read(ReadError::TooLong(limit)) if !self.delta_timed_out => {
                jittered((*limit).min(PAUSE_AFTER_TOO_LONG))
            }
            _ => delay,
        }
    }
}

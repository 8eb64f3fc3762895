//! Keeps the catalog in sync with another server, or with a file that one wrote: one task that polls the upstreams in
//! turn. It takes the place of the loader, and publishes by the same [`Output`].
//!
//! A snapshot that is damaged, of another version, older than what is served, or with a row that breaks one of this
//! server's rules is refused as a whole: without the row, its revision would not be that of the upstream. No error ends
//! the task.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

mod client;
pub mod config;

use client::{Client, FetchError, Fetched};
use config::Location;

use super::backoff::{OutageKind, ReconnectBackoff, jittered};
use super::output::Output;
use super::report::{self, CompletedRead, RefreshKind};
use crate::base::error_chain::chain;
use crate::catalog::model::Rules;
use crate::catalog::row_error::Rejection;
use crate::catalog::snapshot::Snapshot;
use crate::metrics::Metrics;
use crate::postgres::position::Position;
use crate::snapshot_file::{PersistedSnapshot, SnapshotFileError};
use crate::sync::LastSync;

/// How long a request to a server waits there for a change. Its response is what shows that the server is alive.
const WAIT: Duration = Duration::from_secs(30);
/// How old the catalog of a healthy edge may be: its upstream may hold back a response twice for `WAIT`, and was in
/// sync at most 30 s before.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(90);
/// Minimum ratio of the pause after a change to the time that its transfer took: a large catalog that changes all the
/// time takes a tenth of the time of the network and of a core, not all of it.
const PAUSE_PER_TRANSFER: u32 = 9;
/// How long a snapshot older than the served one is rejected if no upstream has the served one. Replicas that are
/// connected to their database differ by less. After this time, the database has lost transactions in a crash, or no
/// reachable replica is connected to it, and the state that is waited for may never come.
const MAX_BEHIND: Duration = Duration::from_secs(60);

/// The settings of an [`Upstream`].
#[derive(Clone)]
pub(crate) struct UpstreamSettings {
    /// The upstreams, used in turn; at least one.
    pub(crate) locations: Vec<Location>,
    /// Time between two requests to an upstream at which nothing can be waited for, varied at random by up to 20 %.
    pub(crate) interval: Duration,
    /// The bearer token of requests.
    pub(crate) token: Option<reqwest::header::HeaderValue>,
    /// The rules that every row of an upstream must pass, whatever rules it says that they passed.
    pub(crate) rules: Rules,
}

/// Why a request brought no snapshot that can be served.
#[derive(Debug, thiserror::Error)]
enum UpstreamError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{0}")]
    Refused(Arc<str>),
}

/// Why a snapshot is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Unreadable(#[from] SnapshotFileError),
    #[error(
        "{count} of its models break a rule of this server, such as `{id}`: {reason}; correct the row, or give both \
         servers the same version and CATALOG_URL_SCHEMES"
    )]
    Rules { count: usize, id: Box<str>, reason: Box<str> },
    #[error("it is older than the catalog served")]
    Behind,
}

/// An upstream and the version last received from it.
struct FollowedUpstream {
    location: Location,
    /// The entity tag of the last snapshot received, refused or not.
    tag: Option<client::Tag>,
    /// Why that snapshot was refused.
    refused: Option<Refused>,
}

/// A snapshot that was refused.
#[derive(Clone)]
struct Refused {
    reason: Arc<str>,
    /// Its position was earlier than that of the state served.
    behind: bool,
}

impl FollowedUpstream {
    fn new(location: Location) -> Self {
        Self { location, tag: None, refused: None }
    }
}

/// Reads upstreams and publishes their snapshots.
pub(crate) struct Upstream {
    settings: UpstreamSettings,
    client: Client,
    metrics: Arc<Metrics>,
    output: Output,
    /// The published state; its position is that of the upstream.
    current: Option<PersistedSnapshot<Arc<Snapshot>>>,
    upstreams: Vec<FollowedUpstream>,
    active: usize,
    /// When the catalog served was last known to equal the database.
    synced_at: Option<Instant>,
    /// Whether the last request to the active upstream was successful.
    connected: bool,
    /// When an upstream was first found to be behind the state served; unset as soon as one has that state.
    behind_since: Option<Instant>,
    backoff: ReconnectBackoff,
}

impl Upstream {
    /// Publishes to `output`. Begins with any of the upstreams, so that servers started together spread over them.
    pub(crate) fn new(
        settings: UpstreamSettings,
        output: Output,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let upstreams: Vec<_> = settings.locations.iter().cloned().map(FollowedUpstream::new).collect();
        // After a restart, the state that is served continues to be the one that others are compared with.
        let (synced_at, current) = (output.last_sync(), output.latest());
        Ok(Self {
            client: Client::new(settings.token.clone())?,
            metrics: Arc::clone(output.metrics()),
            output,
            active: fastrand::usize(..upstreams.len()),
            synced_at,
            connected: false,
            behind_since: None,
            settings,
            current,
            upstreams,
            backoff: ReconnectBackoff::new("upstream"),
        })
    }

    /// Publishes a persisted snapshot, whose rows must pass the rules of the settings.
    pub(crate) fn restore(&mut self, persisted: PersistedSnapshot<Snapshot>) {
        self.current = Some(self.output.restore(persisted));
    }

    /// Keeps the catalog in sync, forever.
    pub(crate) async fn run(mut self) -> Infallible {
        loop {
            match self.poll().await {
                Ok(pause) => {
                    if !std::mem::replace(&mut self.connected, true) {
                        info!(upstream = %self.upstreams[self.active].location, "following an upstream");
                        self.backoff.reset();
                    }
                    self.metrics.upstream.connected.set(1);
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    self.connected = false;
                    self.metrics.upstream.connected.set(0);
                    let (kind, outcome) = match error {
                        UpstreamError::Refused(_) => (OutageKind::Refused, "refused"),
                        UpstreamError::Fetch(_) => (OutageKind::Unavailable, "error"),
                    };
                    self.metrics.upstream.requests.with_label_values(&[outcome]).inc();
                    let error = format!("{}: {}", self.upstreams[self.active].location, chain(&error));
                    self.active = (self.active + 1) % self.upstreams.len();
                    let serving = self.output.snapshot().is_some();
                    let delay = self.backoff.next_delay(&error, kind, serving, Duration::MAX);
                    self.output.record_failure(error);
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// Sends a request to the active upstream; returns how long to wait before the next one.
    async fn poll(&mut self) -> Result<Duration, UpstreamError> {
        let started = Instant::now();
        let (condition, wait) = self.condition();
        let upstream = &self.upstreams[self.active];
        let can_wait = upstream.location.can_wait();
        let fetched = self.client.fetch(&upstream.location, condition.clone(), wait).await?;
        match (fetched, upstream.refused.clone().filter(|_| upstream.tag == condition)) {
            (Fetched::Unchanged { as_of, .. }, Some(refused)) => {
                if !(refused.behind && as_of.is_some_and(|as_of| !self.is_behind(&as_of))) {
                    return Err(UpstreamError::Refused(refused.reason));
                }
                // The content has come back: it is transferred again.
                let upstream = &mut self.upstreams[self.active];
                (upstream.tag, upstream.refused) = (None, None);
                return Ok(Duration::ZERO);
            }
            (Fetched::Unchanged { as_of, synced_at }, None) => {
                self.remember(condition, None);
                as_of.into_iter().for_each(|as_of| self.move_to(as_of));
                self.metrics.upstream.requests.with_label_values(&["unchanged"]).inc();
                self.record_sync(synced_at);
                if let Some(current) = &self.current {
                    CompletedRead { kind: RefreshKind::Upstream, mode: None, started, rows: 0 }
                        .log(0, &current.snapshot);
                }
                if wait.is_zero() && can_wait {
                    return Ok(Duration::ZERO);
                }
            }
            (Fetched::Snapshot { body, tag, as_of, received_at, synced_at }, _) => {
                self.metrics.upstream.received_bytes.inc_by(body.len() as u64);
                let accepted = self.accept(&body, as_of, received_at);
                report::record_refresh(&self.metrics, RefreshKind::Upstream, received_at, accepted.is_ok());
                self.remember(tag, accepted.as_ref().err());
                let changed = accepted.map_err(|refusal| UpstreamError::Refused(chain(&refusal).into()))?;
                self.record_sync(synced_at);
                self.metrics.upstream.requests.with_label_values(&["changed"]).inc();
                if changed && can_wait {
                    return Ok(received_at.elapsed() * PAUSE_PER_TRANSFER);
                }
            }
        }
        Ok(jittered(self.settings.interval).saturating_sub(started.elapsed()))
    }

    /// The entity tag that makes the next request conditional, and how long the upstream may wait for a change. The
    /// first request after a failure does not wait: its response shows that the upstream is back.
    fn condition(&self) -> (Option<client::Tag>, Duration) {
        let upstream = &self.upstreams[self.active];
        let current = self.current.as_ref().map(|current| client::Tag::of_revision(current.snapshot.revision()));
        let condition = upstream.tag.clone().filter(|_| !self.accepts_earlier()).or(current);
        let waits = condition.is_some() && self.connected && upstream.location.can_wait();
        (condition, if waits { WAIT } else { Duration::ZERO })
    }

    /// Publishes a snapshot unless it is refused; returns whether it differs from the one before. Its position is
    /// `as_of`, or else the one in its header.
    fn accept(&mut self, body: &[u8], as_of: Option<Position>, received_at: Instant) -> Result<bool, Refusal> {
        let previous = self.current.as_ref().map(|current| Arc::clone(&current.snapshot)).unwrap_or_default();
        let mut received = client::read(body, &previous)?;
        as_of.into_iter().for_each(|as_of| received.move_to(as_of));
        // The rules in its header are not trusted: anything could have written it.
        let violations = received.snapshot.violations(&self.settings.rules, &previous);
        let count = violations.len();
        if let Some(Rejection { id, reason }) = violations.into_iter().next() {
            return Err(Refusal::Rules { count, id, reason });
        }
        let revision = received.snapshot.revision();
        if let Some(current) = &self.current {
            let before = received.as_of.is_before(&current.as_of);
            let same_models = current.snapshot.revision() == revision;
            if same_models && (before || current.snapshot.rejected() == received.snapshot.rejected()) {
                self.move_to(received.as_of);
                return Ok(false);
            }
            if before && !self.accepts_earlier() {
                return Err(Refusal::Behind);
            }
        }
        let (rows, changed) = (received.snapshot.len(), received.snapshot.changes_since(&previous));
        let PersistedSnapshot { snapshot, position, as_of, structure, database_started, .. } = received;
        let (snapshot, rules) = (Arc::new(snapshot), self.settings.rules.text());
        let state = PersistedSnapshot { snapshot, position, as_of, rules, structure, database_started };
        self.output.persist(state.clone());
        self.output.publish(Arc::clone(&state.snapshot));
        CompletedRead { kind: RefreshKind::Upstream, mode: None, started: received_at, rows }
            .log(changed, &state.snapshot);
        self.current = Some(state);
        Ok(changed > 0)
    }

    /// Moves the state served, whose content an upstream has at `as_of`. The later position stays, by which other
    /// states are compared.
    fn move_to(&mut self, as_of: Position) {
        if !self.is_behind(&as_of)
            && let Some(current) = self.current.as_mut().filter(|current| current.as_of != as_of)
        {
            current.move_to(as_of);
            self.output.move_position(current.clone());
        }
    }

    /// Whether a state at `as_of` is known to be earlier than the one served.
    fn is_behind(&self, as_of: &Position) -> bool {
        self.current.as_ref().is_some_and(|current| as_of.is_before(&current.as_of))
    }

    /// Records when the active upstream was in sync. One that has not been for [`MAX_BEHIND`] is followed by the next:
    /// another may be, and two servers that follow each other would never find out.
    fn record_sync(&mut self, synced_at: Option<Instant>) {
        if let Some(at) = synced_at.filter(|at| self.synced_at.is_none_or(|last| last < *at)) {
            self.synced_at = Some(at);
            self.output.record_sync(LastSync { at, mode: None, replay_lag_seconds: None });
        }
        if synced_at.is_none_or(|at| at.elapsed() > MAX_BEHIND) {
            self.active = (self.active + 1) % self.upstreams.len();
        }
    }

    /// Whether no upstream has had the state served for [`MAX_BEHIND`].
    fn accepts_earlier(&self) -> bool {
        self.behind_since.is_some_and(|since| since.elapsed() >= MAX_BEHIND)
    }

    /// Records which version the active upstream has. One that was refused is not transferred again while it stays the
    /// same and no upstream has one that can be served.
    fn remember(&mut self, tag: Option<client::Tag>, refusal: Option<&Refusal>) {
        match refusal {
            None => {
                self.behind_since = None;
                self.upstreams.iter_mut().for_each(|upstream| (upstream.tag, upstream.refused) = (None, None));
            }
            Some(Refusal::Behind) => _ = self.behind_since.get_or_insert_with(Instant::now),
            Some(_) => {}
        }
        let upstream = &mut self.upstreams[self.active];
        upstream.tag = tag;
        upstream.refused = refusal
            .map(|refusal| Refused { reason: chain(refusal).into(), behind: matches!(refusal, Refusal::Behind) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::watch;

    fn upstream(urls: &[&str]) -> Upstream {
        let settings = UpstreamSettings {
            locations: urls.iter().map(|url| Location::parse(url, 1).expect("a valid URL")).collect(),
            interval: Duration::from_secs(1),
            token: None,
            rules: Rules::default(),
        };
        let metrics = Arc::new(Metrics::new().expect("valid metrics"));
        let output = Output::new(Arc::default(), Arc::default(), metrics, watch::channel(None).0);
        Upstream::new(settings, output).expect("TLS can be set up")
    }

    #[test]
    fn earlier_states_are_accepted_only_if_no_upstream_had_the_one_served_for_a_minute() {
        let mut upstream = upstream(&["http://a.example", "http://b.example"]);
        upstream.active = 0;
        upstream.remember(Some(client::Tag::of_revision(1)), Some(&Refusal::Behind));
        let since = upstream.behind_since.expect("a state was refused as earlier");
        assert!(!upstream.accepts_earlier());
        upstream.active = 1;
        upstream.remember(Some(client::Tag::of_revision(2)), Some(&Refusal::Behind));
        assert_eq!(upstream.behind_since, Some(since));
        upstream.behind_since = since.checked_sub(MAX_BEHIND);
        assert!(upstream.accepts_earlier());

        upstream.remember(Some(client::Tag::of_revision(3)), None);
        assert!(!upstream.accepts_earlier());
        // Earlier refusals do not count any more.
        assert!(
            upstream.upstreams.iter().all(|upstream| upstream.refused.is_none()) && upstream.upstreams[0].tag.is_none()
        );
        upstream.active = 0;
        upstream.remember(Some(client::Tag::of_revision(1)), Some(&Refusal::Behind));
        assert!(!upstream.accepts_earlier());
    }
}

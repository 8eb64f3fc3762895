//! The progress of every model during a pull: written by the downloads, read by the reports.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::Problem;
use super::event::{Event, Events};

/// The current activity for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is queued.
    Waiting,
    /// Its file is being hashed.
    Checking,
    /// It is being downloaded.
    Fetching,
    /// Another process is downloading it.
    Elsewhere,
    /// It has an outcome.
    Done,
}

impl Phase {
    /// The name in the status file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Checking => "checking",
            Self::Fetching => "fetching",
            Self::Elsewhere => "fetching_elsewhere",
            Self::Done => "done",
        }
    }
}

/// The result for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was downloaded.
    Fetched,
    /// It was on disk already.
    Present,
    /// It was linked to a file with the same content.
    Linked,
    /// The catalog does not have it, but its verified file is on disk.
    Kept {
        /// What the catalog says, for people.
        reason: String,
    },
    /// It is missing.
    Missing {
        /// A short name of the reason, for programs.
        code: &'static str,
        /// The reason, for people.
        reason: String,
    },
}

impl Outcome {
    /// The name in the metrics and in the status file.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Fetched => "fetched",
            Self::Present => "present",
            Self::Linked => "linked",
            Self::Kept { .. } => "kept",
            Self::Missing { .. } => "missing",
        }
    }
}

/// The part of the progress of a model that changes rarely; byte counts are atomics.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// Current activity.
    pub(crate) phase: Phase,
    /// Result; `None` until there is one.
    pub(crate) outcome: Option<Outcome>,
    /// What it is downloaded from: a host, or [`cache::SOURCE`](super::cache::SOURCE).
    pub(crate) source: Option<String>,
    /// Bytes received by this process, by what they came from.
    pub(crate) received_from: BTreeMap<String, u64>,
    /// Number of failed attempts.
    pub(crate) failed_attempts: u64,
    /// Bytes per second, averaged over about five seconds.
    pub(crate) rate: f64,
    /// Time since the download began, until its end.
    pub(crate) elapsed: Duration,
    begun: Option<Instant>,
}

/// The progress of one model.
#[derive(Debug)]
pub(crate) struct ModelProgress {
    /// Its id.
    pub(crate) id: String,
    /// Its save path; empty if it has none.
    pub(crate) path: String,
    events: Events,
    state: Mutex<State>,
    done: AtomicU64,
    total: AtomicU64,
    received: AtomicU64,
}

impl ModelProgress {
    fn new(id: &str, path: String, total: u64, events: Events) -> Self {
        let state = State {
            phase: Phase::Waiting,
            outcome: None,
            source: None,
            received_from: BTreeMap::new(),
            failed_attempts: 0,
            rate: 0.0,
            elapsed: Duration::ZERO,
            begun: None,
        };
        Self {
            id: id.to_owned(),
            path,
            events,
            state: Mutex::new(state),
            done: AtomicU64::new(0),
            total: AtomicU64::new(total),
            received: AtomicU64::new(0),
        }
    }

    /// A copy of the state.
    pub(crate) fn state(&self) -> State {
        let mut state = self.state.lock().clone();
        if let (Some(begun), None) = (state.begun, &state.outcome) {
            state.elapsed = begun.elapsed();
        }
        state
    }

    /// Bytes on disk, and the size; 0 if it is unknown.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed))
    }

    /// Bytes received by this process.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// What it is downloaded from; empty if that is not known yet.
    pub(crate) fn source(&self) -> String {
        self.state.lock().source.clone().unwrap_or_default()
    }

    /// Sets the current activity.
    pub(crate) fn set_phase(&self, phase: Phase) {
        let mut state = self.state.lock();
        if phase == Phase::Fetching {
            state.begun.get_or_insert_with(Instant::now);
        }
        state.phase = phase;
    }

    /// Sets what it is downloaded from.
    pub(crate) fn set_source(&self, source: &str) {
        self.state.lock().source = Some(source.to_owned());
    }

    /// Sets the bytes on disk and the size.
    pub(crate) fn set_bytes(&self, done: u64, total: u64) {
        self.done.store(done, Relaxed);
        self.total.store(total, Relaxed);
    }

    /// Sets the number of bytes of an existing file that are hashed.
    pub(crate) fn set_checked(&self, bytes: u64) {
        self.done.store(bytes, Relaxed);
    }

    /// Adds bytes that were received and written.
    pub(crate) fn add_received(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
        self.received.fetch_add(bytes, Relaxed);
        let mut state = self.state.lock();
        let source = state.source.clone().unwrap_or_default();
        *state.received_from.entry(source).or_default() += bytes;
    }

    /// Updates the rate. `before` is the number of bytes received at the last call, `interval` ago.
    pub(crate) fn measure(&self, before: u64, interval: Duration) {
        let now = (self.received() - before) as f64 / interval.as_secs_f64().max(0.001);
        let mut state = self.state.lock();
        // An exponential average over about five calls.
        state.rate = if state.rate == 0.0 { now } else { 0.8 * state.rate + 0.2 * now };
    }

    /// Counts and reports a failed attempt that is followed by another.
    pub(crate) fn failed_attempt(&self, host: &str, problem: &Problem) {
        self.state.lock().failed_attempts += 1;
        self.events.send(Event::AttemptFailed { model: &self.id, host, problem });
    }

    /// Sets the outcome and reports it.
    pub(crate) fn finish(&self, outcome: Outcome) {
        {
            let mut state = self.state.lock();
            state.elapsed = state.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
            state.phase = Phase::Done;
            state.outcome = Some(outcome);
        }
        self.events.send(Event::Finished(self));
    }

    /// Sets the outcome of a missing model.
    pub(crate) fn missing(&self, problem: &Problem) {
        self.finish(Outcome::Missing { code: problem.code(), reason: problem.text() });
    }
}

/// The progress of a pull.
#[derive(Debug)]
pub(crate) struct Progress {
    /// All models, including those without a valid entry in the catalog.
    pub(crate) files: Vec<Arc<ModelProgress>>,
    events: Events,
    /// Start of the pull.
    pub(crate) started: Instant,
}

impl Progress {
    /// Creates the progress of a pull without models.
    pub(crate) fn new(events: Events) -> Self {
        Self { files: Vec::new(), events, started: Instant::now() }
    }

    /// Adds a model.
    pub(crate) fn add(&mut self, id: &str, path: String, total: u64) -> Arc<ModelProgress> {
        let file = Arc::new(ModelProgress::new(id, path, total, self.events.clone()));
        self.files.push(Arc::clone(&file));
        file
    }

    /// Whether every model is on disk. A model without an outcome, because its task panicked, is not.
    pub(crate) fn is_complete(&self) -> bool {
        let on_disk = |file: &Arc<ModelProgress>| !matches!(file.state().outcome, None | Some(Outcome::Missing { .. }));
        self.files.iter().all(on_disk)
    }

    /// The number of models with the outcome of this name.
    pub(crate) fn count(&self, outcome: &str) -> usize {
        let is = |file: &&Arc<ModelProgress>| file.state().outcome.is_some_and(|other| other.name() == outcome);
        self.files.iter().filter(is).count()
    }
}

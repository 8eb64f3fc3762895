//! What is known of every model while a pull runs: written by the downloads, read by whatever shows it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::MultiProgress;
use tracing::{info, warn};

use super::error::Problem;

/// What is being done for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its turn has not come.
    Waiting,
    /// Its file is hashed.
    Checking,
    /// It is downloaded.
    Fetching,
    /// Another process downloads it.
    Elsewhere,
    /// It is done with.
    Done,
}

impl Phase {
    /// Its name in the status file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Checking => "checking",
            Self::Fetching => "fetching",
            Self::Elsewhere => "fetching_elsewhere",
            Self::Done => "done",
        }
    }
}

/// What became of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was downloaded.
    Fetched,
    /// It was there.
    Present,
    /// A file with the same content was linked.
    Linked,
    /// It is not there.
    Missing {
        /// A short name of the reason.
        code: &'static str,
        /// The reason in words.
        reason: String,
    },
}

impl Outcome {
    /// Its name in metrics and in the status file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fetched => "fetched",
            Self::Present => "present",
            Self::Linked => "linked",
            Self::Missing { .. } => "missing",
        }
    }
}

/// The state of one model that changes seldom.
#[derive(Debug, Clone)]
pub struct State {
    /// What is being done.
    pub phase: Phase,
    /// What became of it.
    pub outcome: Option<Outcome>,
    /// Host that its bytes come from.
    pub source: Option<String>,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Bytes per second over the last seconds.
    pub rate: f64,
    /// Time from the first byte to the end, or to now.
    pub elapsed: Duration,
    begun: Option<Instant>,
}

/// One model.
#[derive(Debug)]
pub struct File {
    /// Its id.
    pub id: String,
    /// Its save path; empty if it has none.
    pub path: String,
    screen: Screen,
    state: Mutex<State>,
    done: AtomicU64,
    total: AtomicU64,
    received: AtomicU64,
}

impl File {
    fn new(id: &str, path: String, total: u64, screen: Screen) -> Self {
        let state = State {
            phase: Phase::Waiting,
            outcome: None,
            source: None,
            failed_attempts: 0,
            rate: 0.0,
            elapsed: Duration::ZERO,
            begun: None,
        };
        Self {
            id: id.to_owned(),
            path,
            screen,
            state: Mutex::new(state),
            done: AtomicU64::new(0),
            total: AtomicU64::new(total),
            received: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> State {
        let mut state = self.lock().clone();
        if let (Some(begun), None) = (state.begun, &state.outcome) {
            state.elapsed = begun.elapsed();
        }
        state
    }

    /// Bytes that are there, of how many; 0 if nobody knows.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed))
    }

    /// Bytes that this process received for it.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// The host that its bytes come from, or nothing.
    #[must_use]
    pub fn source(&self) -> String {
        self.lock().source.clone().unwrap_or_default()
    }

    /// Says what is being done.
    pub fn set_phase(&self, phase: Phase) {
        let mut state = self.lock();
        if phase == Phase::Fetching {
            state.begun.get_or_insert_with(Instant::now);
        }
        state.phase = phase;
    }

    /// Says where its bytes come from.
    pub fn set_source(&self, host: &str) {
        self.lock().source = Some(host.to_owned());
    }

    /// Says how much is there.
    pub fn set_bytes(&self, done: u64, total: u64) {
        self.done.store(done, Relaxed);
        self.total.store(total, Relaxed);
    }

    /// Bytes hashed so far of a file that is there.
    pub fn set_checked(&self, bytes: u64) {
        self.done.store(bytes, Relaxed);
    }

    /// Counts bytes that were received and written.
    pub fn add_received(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
        self.received.fetch_add(bytes, Relaxed);
    }

    /// Updates the rate from what was received since the last call, `interval` ago.
    pub fn measure(&self, before: u64, interval: Duration) {
        let now = (self.received() - before) as f64 / interval.as_secs_f64().max(0.001);
        let mut state = self.lock();
        // A mean over about five seconds.
        state.rate = if state.rate == 0.0 { now } else { 0.8 * state.rate + 0.2 * now };
    }

    /// Logs an attempt that failed and will be followed by another.
    pub fn failed_attempt(&self, host: &str, problem: &Problem) {
        self.lock().failed_attempts += 1;
        let reason = problem.text();
        self.screen.log(|| info!(model = &*self.id, host, reason = &*reason, "an attempt failed, going on"));
    }

    /// Says what became of it, and logs it.
    pub fn finish(&self, outcome: Outcome) {
        let state = {
            let mut state = self.lock();
            state.elapsed = state.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
            state.phase = Phase::Done;
            state.outcome = Some(outcome.clone());
            state.clone()
        };
        let (id, path) = (&*self.id, &*self.path);
        self.screen.log(|| match &outcome {
            Outcome::Missing { reason, .. } => warn!(model = id, reason = &**reason, "missing"),
            Outcome::Fetched => {
                let (seconds, source) = (state.elapsed.as_secs_f64(), state.source.as_deref().unwrap_or_default());
                let bytes = self.received();
                info!(model = id, path, bytes, seconds = (seconds * 10.0).round() / 10.0, source, "fetched");
            }
            Outcome::Linked => info!(model = id, path, "linked to a file with the same content"),
            Outcome::Present => {}
        });
    }

    /// The same for a model that is missing.
    pub fn missing(&self, problem: &Problem) {
        self.finish(Outcome::Missing { code: problem.code(), reason: problem.text() });
    }
}

/// The terminal that bars are drawn on, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Screen(Option<MultiProgress>);

impl Screen {
    /// A screen for standard error, if that is a terminal and `wanted`.
    #[must_use]
    pub fn of_stderr(wanted: bool) -> Self {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        Self((wanted && terminal).then(MultiProgress::new))
    }

    /// What bars are added to.
    #[must_use]
    pub fn bars(&self) -> Option<&MultiProgress> {
        self.0.as_ref()
    }

    /// Logs without mixing the line with bars.
    pub fn log(&self, write: impl FnOnce()) {
        match &self.0 {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}

/// All models of a pull.
#[derive(Debug)]
pub struct Progress {
    /// The models, then what has no usable entry in the catalog.
    pub files: Vec<Arc<File>>,
    /// Where it is shown.
    pub screen: Screen,
    /// When the pull began.
    pub started: Instant,
}

impl Progress {
    /// No models yet.
    #[must_use]
    pub fn new(screen: Screen) -> Self {
        Self { files: Vec::new(), screen, started: Instant::now() }
    }

    /// Adds a model.
    pub fn add(&mut self, id: &str, path: String, total: u64) -> Arc<File> {
        let file = Arc::new(File::new(id, path, total, self.screen.clone()));
        self.files.push(Arc::clone(&file));
        file
    }

    /// Whether every model is there. One that nobody reported on, because its task panicked, is not.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let there = |file: &Arc<File>| !matches!(file.state().outcome, None | Some(Outcome::Missing { .. }));
        self.files.iter().all(there)
    }

    /// How many models came to the outcome of this name.
    #[must_use]
    pub fn count(&self, outcome: &str) -> usize {
        let is = |file: &&Arc<File>| file.state().outcome.is_some_and(|other| other.name() == outcome);
        self.files.iter().filter(is).count()
    }
}

//! Downloads one file: several ranges concurrently, into a partial file in the same folder, which is resumed from its
//! journal, verified, and only then renamed to its final name.

use std::io;
use std::sync::Arc;

use cap_std::fs::Dir;
use reqwest::Url;

use super::cache::{self, CachedFile};
use super::error::{AttemptError, Problem, host};
use super::follower::Follower;
use super::hash::Hash;
use super::http::{Opened, Source};
use super::journal::Journal;
use super::model::Model;
use super::partial::{State, lock_part, remove_part};
use super::plan::appeared_since_planned;
use super::progress::{ModelProgress, Phase};
use super::response::BodyRange;
use super::retry::Budget;
use super::round::{Opening, check_part};
use super::segments::{Claim, Segments, UNKNOWN_SIZE};
use super::step::{Attempt, Mode, Step, next_step};
use super::{Context, Pending};

/// An attempt that received at least this many bytes does not count as a failure.
pub(crate) const MIN_PROGRESS: u64 = 1024 * 1024;

/// First range that is requested while the size of a file is unknown. It covers files that are small according to the
/// catalog, whose server was not asked for their size: one response has all of them, and no other can contradict it.
const FIRST_RANGE: u64 = 32 * 1024 * 1024;

/// The result of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempted {
    /// It was downloaded.
    Fetched,
    /// Another process has downloaded it in the meantime.
    Present,
    /// Another process is downloading it.
    Busy,
}

/// Downloads a model, unless another process is downloading it.
///
/// # Errors
/// The reason why it is missing. Its partial file stays for the next run if that can continue it.
pub(crate) async fn run(context: &Arc<Context>, pending: &Pending) -> Result<Attempted, Problem> {
    let (model, progress) = &pending.item;
    let not_made = || Problem::Folder(io::ErrorKind::NotFound.into());
    let folder = context.folder.parent(&model.path, true)?.ok_or_else(not_made)?;
    let key = model.key();
    let settings = &context.settings;
    // A process that was stopped holds its locks.
    let take_over = pending
        .elsewhere
        .is_some_and(|(since, _)| since.elapsed() > settings.wait.saturating_add(settings.stall.saturating_mul(2)));
    let locked = lock_part(&folder, &key, take_over).map_err(Problem::disk("opening the partial file"))?;
    let Some((key, part)) = locked else {
        progress.set_phase(Phase::Elsewhere);
        if let Some((done, total)) = Journal::peek(&context.state_dir, &key) {
            progress.set_bytes(done, total);
        }
        return Ok(Attempted::Busy);
    };
    if appeared_since_planned(context, pending).await? {
        remove_part(&folder, &context.state_dir, &key);
        return Ok(Attempted::Present);
    }
    progress.set_phase(Phase::Fetching);
    let part = Arc::new(part);
    let state = State::new(Segments::default(), None, None);
    let budget = Budget::new(context.settings.tries, context.settings.wait, context.progress.started);
    let mut download = Download {
        context,
        model,
        progress,
        folder,
        part,
        key,
        state,
        caches: cache::files(context, model),
        cached: None,
        mode: Mode::Ranges,
        has_sent_file: false,
        ranges_work: false,
        budget,
    };
    if let Some(at) = pending.not_before {
        tokio::time::sleep_until(at.into()).await;
    }
    let fetched = download.run(pending.source.clone()).await;
    download.state.follower = None;
    let finished = match fetched {
        Ok(()) => download.finish().await,
        Err(problem) => Err(problem),
    };
    if finished.is_err() && !download.can_be_resumed() {
        remove_part(&download.folder, &context.state_dir, &download.key);
    }
    finished.map(|()| Attempted::Fetched)
}

/// What a response contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The whole file.
    Whole,
    /// A part of it, as requested.
    Part,
    /// As many bytes as are there already.
    NothingMissing,
}

/// A file being downloaded by this process, which holds the lock on its partial file.
pub(super) struct Download<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) model: &'a Arc<Model>,
    pub(super) progress: &'a ModelProgress,
    pub(super) folder: Dir,
    pub(super) part: Arc<std::fs::File>,
    pub(super) key: String,
    pub(super) state: State,
    pub(super) budget: Budget,
    /// The caches that have not failed for this file.
    pub(super) caches: Vec<CachedFile>,
    /// The cache that is requested now, if it is one.
    pub(super) cached: Option<CachedFile>,
    pub(super) mode: Mode,
    /// Whether the URL gave a response with a file, so that an error may be temporary.
    pub(super) has_sent_file: bool,
    /// Whether a range came as requested, so that a later pull can continue the partial file.
    ranges_work: bool,
}

impl Download<'_> {
    /// Tries caches and URLs in turn, and URLs again while nothing comes from any and the time budget lasts.
    async fn run(&mut self, source: Option<Source>) -> Result<(), Problem> {
        self.resume(source.as_ref())?;
        let mut source = source.filter(|source| !source.cached);
        let model = Arc::clone(self.model);
        let mut urls: Vec<&Url> = std::iter::once(&model.url).chain(&model.mirrors).collect();
        loop {
            let before = self.progress.received();
            let mut last = None;
            let mut recoverable = Vec::new();
            for url in urls {
                if let Some(problem) = &last {
                    self.progress.failed_attempt(&host(url), problem);
                }
                match self.try_url(url, source.take()).await {
                    Err(problem) if !problem.is_of_this_machine() => {
                        if problem.is_transient() && self.budget.allows_attempt(&problem, self.state.total()) {
                            recoverable.push(url);
                        }
                        last = Some(problem);
                    }
                    done => return done,
                }
            }
            let Some(problem) = last else { return Ok(()) };
            let outage = self.progress.received() == before;
            if recoverable.is_empty() || !outage || !self.budget.allows_round(self.state.total()) {
                return Err(problem);
            }
            self.progress.failed_attempt(&self.progress.source(), &problem);
            self.budget.pause(&problem).await;
            urls = recoverable;
        }
    }

    /// Runs rounds until the file is complete and verified, or too many made no progress.
    async fn try_url(&mut self, url: &Url, mut source: Option<Source>) -> Result<(), Problem> {
        (self.mode, self.has_sent_file, self.ranges_work) = (Mode::Ranges, source.is_some(), false);
        self.budget.begin_url();
        loop {
            let (before, planned) = (self.progress.received(), source.is_some());
            let Err(error) = self.attempt(url, source.take()).await else { return Ok(()) };
            let received = self.progress.received() - before;
            // Bytes that were dropped because of their hash are no progress.
            let progressed = self.mode == Mode::Ranges && received >= MIN_PROGRESS && self.state.written() > 0;
            let problem = error.problem();
            let attempt = Attempt {
                mode: self.mode,
                planned,
                has_sent_file: self.has_sent_file,
                progressed,
                failed_often: self.budget.failed(progressed),
                may_start_over: self.is_cheap() || self.is_past_the_end(problem),
                allows_another: self.budget.allows_attempt(problem, self.state.total()),
            };
            let step = next_step(&error, attempt);
            if step == Step::GiveUp {
                return Err(error.into_problem());
            }
            self.progress.failed_attempt(&host(url), problem);
            if step == Step::Retry {
                self.budget.pause(problem).await;
            } else {
                self.mode = Mode::Whole;
                self.budget.begin_url();
            }
        }
    }

    /// Whether starting over costs little: no more than what counts as progress, or an eighth of the file.
    fn is_cheap(&self) -> bool {
        let segments = self.state.segments();
        !segments.is_size_known() || segments.written() <= (segments.total() / 8).max(MIN_PROGRESS)
    }

    /// Whether a server has nothing after the bytes that are there, so the size that it claimed may be wrong.
    fn is_past_the_end(&self, problem: &Problem) -> bool {
        matches!(problem, Problem::Status { status: 416, .. }) && self.state.segments().lacks_only_the_end()
    }

    async fn attempt(&mut self, url: &Url, mut source: Option<Source>) -> Result<(), AttemptError> {
        if self.mode == Mode::Ranges && self.through_caches(url, &mut source).await? {
            return Ok(());
        }
        if !self.state.is_size_known()
            && let Some(Source { total: Some(total), validator, .. }) = &source
        {
            self.start_over(*total, validator.clone())?;
        }
        let url = source.map_or_else(|| url.clone(), |source| source.url);
        self.request(&url).await
    }

    /// Runs a round for what is missing, and verifies the file.
    pub(super) async fn request(&mut self, url: &Url) -> Result<(), AttemptError> {
        if self.state.segments().missing() > 0 {
            let context = self.context;
            let connection = context.connections.connect(&host(url)).await;
            let opening = self.open(url).await.inspect_err(|error| {
                if error.problem().is_overload() {
                    connection.refused();
                }
            })?;
            if let Some(opening) = opening {
                let round = self.round(opening, connection).await;
                self.state.may_mix_versions |= round.is_err();
                round?;
            }
        }
        self.verify().await
    }

    /// Opens a round with its first request. `None` if its response shows that nothing is missing.
    async fn open(&mut self, url: &Url) -> Result<Option<Opening>, AttemptError> {
        let is_first = !self.state.is_size_known();
        let (range, opened) = self.send_first_request(url).await?;
        self.has_sent_file = true;
        self.progress.set_source(&self.source_name(&opened.url));
        self.model.check_size(opened.part.total)?;
        self.check_cached_total(opened.part.total)?;
        let answer = self.classify(&opened, range)?;
        if answer == Answer::NothingMissing {
            self.state.segments().end_here();
            self.progress.set_bytes(self.state.total(), self.state.total());
            return Ok(None);
        }
        self.admit(&opened, answer)?;
        if answer == Answer::Whole {
            self.mode = Mode::Whole;
            return Ok(Some(Opening::Whole(opened)));
        }
        self.ranges_work = true;
        if is_first && opened.part.is_whole() {
            self.state.segments().unite();
        }
        let claim = self.state.segments().claim();
        let claim = claim.ok_or_else(|| Problem::Range(host(&opened.url)))?;
        Ok(Some(Opening::Part(claim, opened)))
    }

    /// Sends a request alone, because its response shows how the server answers; also returns the range requested.
    async fn send_first_request(&self, url: &Url) -> Result<(Option<(u64, u64)>, Opened), Problem> {
        let claim = match self.mode {
            Mode::Ranges => self.state.segments().claim(),
            Mode::Whole => None,
        };
        let end = |claim: &Claim| if self.state.is_size_known() { claim.end } else { claim.start + FIRST_RANGE };
        let range = claim.map(|claim| (claim.start, end(&claim)));
        let limit = self.budget.head_timeout(self.context.http.has_responded(url));
        let opened = self.send(url, range, limit).await;
        if let Some(claim) = claim {
            self.state.segments().release(claim.id);
        }
        Ok((range, opened?))
    }

    /// What a response to the request for `range`, or for the whole file, contains.
    fn classify(&self, opened: &Opened, range: Option<(u64, u64)>) -> Result<Answer, Problem> {
        let part = &opened.part;
        let is_more = |(_, end)| part.end > Some(end);
        let is_whole = !part.partial || (part.is_whole() && range.is_none_or(is_more));
        if let Some(range) = range.filter(|_| !is_whole) {
            check_part(part, range, &opened.url)?;
            // The end of the file is not known.
            part.total.ok_or_else(|| Problem::Range(host(&opened.url)))?;
        }
        if self.mode == Mode::Whole && self.is_complete(part) {
            return Ok(Answer::NothingMissing);
        }
        Ok(if is_whole { Answer::Whole } else { Answer::Part })
    }

    /// Whether the bytes that are there are as many as a plain GET would give, and can be of the same version.
    fn is_complete(&self, part: &BodyRange) -> bool {
        let segments = self.state.segments();
        let same_version =
            self.model.hash.is_some() || (part.validator.is_some() && part.validator == self.state.validator);
        segments.lacks_only_the_end() && part.total == Some(segments.contiguous()) && same_version
    }

    /// Compares a response with the partial file. A part must be of the same version as the bytes that are there.
    /// Otherwise the response decides; it fills the gaps only if a hash shows whether all bytes are of one version.
    fn admit(&mut self, opened: &Opened, answer: Answer) -> Result<(), Problem> {
        let part = &opened.part;
        let is_empty = self.state.written() == 0;
        if answer == Answer::Part {
            if !is_empty || self.state.validator.is_some() {
                self.check_version(part, &opened.url)?;
            }
            if !is_empty {
                return Ok(());
            }
        }
        let (total, known) = (part.total.unwrap_or(UNKNOWN_SIZE), self.state.total());
        let contradicts = self.state.is_size_known() && known != total;
        match (self.mode, is_empty) {
            (Mode::Ranges, _) if contradicts => Err(Problem::Changed(host(&opened.url))),
            (_, true) if known == total => {
                (self.state.validator, self.state.may_mix_versions) = (part.validator.clone(), false);
                Ok(())
            }
            (Mode::Ranges, false) if known == total && self.model.hash.is_some() => Ok(()),
            _ => {
                self.start_over(total, part.validator.clone())?;
                self.state.may_mix_versions = contradicts;
                Ok(())
            }
        }
    }

    /// Continues the partial file of an earlier process, if its bytes can be of the same version.
    fn resume(&mut self, source: Option<&Source>) -> Result<(), Problem> {
        let journal = Journal::load(&self.context.state_dir, &self.key, &self.part);
        let is_current = |journal: &Journal| match (&self.model.hash, source) {
            (Some(_), _) => true,
            (None, Some(source)) => journal.validator.is_some() && journal.validator == source.validator,
            (None, None) => journal.validator.is_some(),
        };
        match journal.filter(is_current) {
            Some(journal) => self.begin(journal.total, &journal.gaps, journal.validator),
            None => self.start_over(UNKNOWN_SIZE, None)?,
        }
        Ok(())
    }

    pub(super) fn start_over(&mut self, total: u64, validator: Option<String>) -> Result<(), Problem> {
        self.state.follower = None;
        Journal::remove(&self.context.state_dir, &self.key);
        // Not every file system can shorten files, and most are empty.
        if self.part.metadata().map_or(true, |metadata| metadata.len() > 0) {
            self.part.set_len(0).map_err(Problem::disk("emptying the partial file"))?;
        }
        self.begin(total, &[(0, total)], validator);
        Ok(())
    }

    fn begin(&mut self, total: u64, gaps: &[(u64, u64)], validator: Option<String>) {
        let segments = Segments::new(total, gaps, self.context.connections.most_per_file());
        let follower = |hash: &Hash| Follower::new(&self.part, hash.clone(), segments.contiguous());
        let follower = self.model.hash.as_ref().map(follower);
        self.state = State::new(segments, validator, follower);
        let written = self.state.written();
        self.progress.set_bytes(written, if self.state.is_size_known() { total } else { 0 });
    }

    /// Whether a later pull can continue the partial file.
    fn can_be_resumed(&self) -> bool {
        let segments = self.state.segments();
        // Without locks, no other process knows its name.
        let known = segments.is_size_known() && segments.written() > 0 && self.key == self.model.key();
        // After an outage, nothing is known of the server.
        let ranges = self.ranges_work || self.mode == Mode::Ranges;
        known && ranges && (self.model.hash.is_some() || self.state.validator.is_some())
    }
}

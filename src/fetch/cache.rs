//! The caches of a site: HTTP servers that have files under their SHA-256, as further sources in front of those of the
//! catalog.
//!
//! A cache is asked first for what it has, and then, with the address of the file in `X-Origin-Url`, to fetch what it
//! lacks. That address is the one after the redirects, which are followed here: a cache gets no token. Its bytes are
//! trusted only if the hash matches. Whatever it does costs one attempt, and the next source follows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::Url;
use tokio::sync::Mutex as AsyncMutex;

use super::Context;
use super::error::{AttemptError, Problem, host};
use super::event::{Event, Events};
use super::folder::space;
use super::hash::Hash;
use super::http::{Http, Opened, Source, Target, host_and_port};
use super::model::Model;
use super::plan::resolve_within;
use super::step::Mode;
use super::transfer::{Download, MIN_PROGRESS};

/// The name of every cache as a source, in metrics and in the status file.
pub(crate) const SOURCE: &str = "cache";

/// Time that a cache has to answer the first request.
const CONTACT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that it has for later ones: it may wait until another machine's request has fetched the same part of a file.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Failures without a file in between after which a cache is not used any more.
const MAX_FAILURES: u32 = 3;

/// A cache and its failures in this pull.
#[derive(Debug)]
pub(crate) struct Cache {
    url: Url,
    /// Held during each request until one was answered, so that a silent cache costs one timeout.
    contact: AsyncMutex<()>,
    state: Mutex<State>,
    events: Events,
}

#[derive(Debug, Default)]
struct State {
    answered: bool,
    /// Since the last file that it sent.
    failures: u32,
    /// All failures, by the code of their problem.
    counts: BTreeMap<&'static str, u64>,
}

impl Cache {
    pub(crate) fn new(url: Url, events: Events) -> Self {
        Self { url, contact: AsyncMutex::default(), state: Mutex::default(), events }
    }

    /// Host and port, for metrics.
    pub(crate) fn name(&self) -> String {
        host_and_port(&self.url)
    }

    /// Number of failures by the code of their problem.
    pub(crate) fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().counts.clone()
    }

    fn is_usable(&self) -> bool {
        self.state.lock().failures < MAX_FAILURES
    }

    fn succeeded(&self) {
        self.state.lock().failures = 0;
    }

    /// Counts a failure. If another would cost a timeout again, or after several, the cache is not used any more.
    fn failed(&self, problem: &Problem) {
        let given_up = {
            let mut state = self.state.lock();
            *state.counts.entry(problem.code()).or_default() += 1;
            let costly = !state.answered || matches!(problem, Problem::Silent(_) | Problem::Stalled(_));
            let before = state.failures;
            state.failures = if costly { MAX_FAILURES } else { before + 1 };
            before < MAX_FAILURES && state.failures >= MAX_FAILURES
        };
        if given_up {
            self.events.send(Event::CacheGivenUp { cache: &self.name(), problem });
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// As for [`Http::open`], and if the cache is not used any more.
    async fn open(&self, http: &Http, target: Target<'_>, range: Option<(u64, u64)>) -> Result<Opened, Problem> {
        let first = if self.state.lock().answered { None } else { Some(self.contact.lock().await) };
        // Another request may have been answered meanwhile.
        let first = first.filter(|_| !self.state.lock().answered);
        if !self.is_usable() {
            return Err(Problem::Silent(host(&self.url)));
        }
        let limit = if first.is_some() { CONTACT_TIMEOUT } else { RESPONSE_TIMEOUT };
        let opened = http.open(target, range, limit).await;
        match &opened {
            Err(problem @ (Problem::Silent(_) | Problem::Connection { .. })) if first.is_some() => self.failed(problem),
            _ => self.state.lock().answered = true,
        }
        opened
    }
}

/// A file in a cache.
#[derive(Debug, Clone)]
pub(super) struct CachedFile {
    cache: Arc<Cache>,
    url: Url,
    /// The address from which the cache may fetch it.
    origin: Option<Url>,
}

impl CachedFile {
    /// `None` if the hash is not a SHA-256.
    pub(super) fn new(cache: &Arc<Cache>, hash: &Hash) -> Option<Self> {
        let (text, mut url) = (hash.text(), cache.url.clone());
        let digits = text.strip_prefix("sha256:")?;
        url.set_path(&format!("{}/sha256/{digits}", cache.url.path().trim_end_matches('/')));
        Some(Self { cache: Arc::clone(cache), url, origin: None })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The same file, which the cache may fetch from `origin`.
    pub(super) fn with_origin(self, mut origin: Url) -> Self {
        origin.set_fragment(None);
        Self { origin: Some(origin), ..self }
    }

    /// Requests it at `url`, which is the one of the file or where the cache redirects to.
    pub(super) async fn open(&self, http: &Http, url: &Url, range: Option<(u64, u64)>) -> Result<Opened, Problem> {
        // The address may contain a signature, which is for the cache only.
        let origin = self.origin.as_ref().filter(|_| url.origin() == self.url.origin());
        self.cache.open(http, Target { url, auth: false, hashed: true, origin }, range).await
    }

    /// Whether the cache only lacks the file, or a part of it, or is told that it may not have it.
    pub(super) fn is_miss(&self, problem: &Problem) -> bool {
        match problem {
            Problem::Status { status: 400..=499, .. } => true,
            Problem::Status { .. } | Problem::Connection { .. } | Problem::Incomplete(_) => {
                self.origin.is_none() && self.cache.is_usable()
            }
            _ => false,
        }
    }

    /// Counts a failure, unless the cache was given up meanwhile.
    fn failed(&self, model: &Model, problem: &Problem) {
        if !self.cache.is_usable() {
            return;
        }
        if matches!(problem, Problem::Checksum | Problem::Html(_) | Problem::Foreign(..)) {
            let cache = &self.cache.name();
            self.cache.events.send(Event::CacheWrong { model: &model.id, cache, problem });
        }
        self.cache.failed(problem);
    }
}

/// The file of a model in each cache. Without a SHA-256, it has no name there.
pub(super) fn files(context: &Context, model: &Model) -> Vec<CachedFile> {
    let hash = model.hash.as_ref();
    context.caches.iter().filter_map(|cache| CachedFile::new(cache, hash?)).collect()
}

/// Finds a file in the first cache that has it.
pub(super) async fn find(context: &Context, model: &Model) -> Option<Source> {
    for file in files(context, model).iter().filter(|file| file.cache.is_usable()) {
        match file.open(&context.http, &file.url, Some((0, 1))).await {
            Ok(opened) => {
                let source = opened.into_source(1).await;
                if check_total(context, model, source.total).is_ok() {
                    return Some(Source { cached: true, ..source });
                }
            }
            Err(problem) if file.is_miss(&problem) => {}
            Err(problem) => file.failed(model, &problem),
        }
    }
    None
}

/// Checks the size that a cache claims before anything relies on it: a wrong one must neither fill the disk nor keep
/// the file from being downloaded elsewhere.
fn check_total(context: &Context, model: &Model, total: Option<u64>) -> Result<(), Problem> {
    let Some(total) = total else { return Ok(()) };
    match (model.largest(), model.bytes) {
        (Some(largest), Some(catalog)) if total > largest => Err(Problem::Size { server: total, catalog }),
        (Some(_), _) => Ok(()),
        (None, _) => {
            let space = space(context.folder.root()).map_err(Problem::disk("reading the free space"))?;
            let free = space.free.saturating_sub(context.settings.keep_free);
            if total > free { Err(Problem::NoSpace { needed: total, free }) } else { Ok(()) }
        }
    }
}

impl Download<'_> {
    /// Downloads what the caches have; returns whether that was the whole file.
    pub(super) async fn fetch_cached(&mut self) -> Result<bool, Problem> {
        for file in self.caches.clone() {
            match self.try_cache(file).await {
                Ok(()) => return Ok(true),
                Err(AttemptError::Fatal(problem)) if problem.is_of_this_machine() => return Err(problem),
                Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Downloads the file at `url` through the caches, of which each that fails is left out from then on; returns
    /// whether one succeeded. The address of the file after redirects is left in `source`. Without one, what the caches
    /// have comes first: another machine may have had it fetched while this one waited for the hub. With one, no cache
    /// had the file when it was planned.
    pub(super) async fn through_caches(
        &mut self,
        url: &Url,
        source: &mut Option<Source>,
    ) -> Result<bool, AttemptError> {
        if source.is_none() && self.fetch_cached().await? {
            return Ok(true);
        }
        let mut planned = source.is_some();
        while let Some(file) = self.caches.iter().find(|file| file.cache.is_usable()).cloned() {
            let origin = match source.as_ref() {
                Some(source) => source.url.clone(),
                None => source.insert(self.resolve(url).await?).url.clone(),
            };
            if !self.context.http.is_public(&origin, self.model.auth) {
                return Ok(false);
            }
            let (before, cache) = (self.progress.received(), Arc::clone(&file.cache));
            let expired = |problem: &Problem| matches!(problem, Problem::Status { status: 400 | 401 | 403, .. });
            match self.try_cache(file.with_origin(origin)).await {
                Ok(()) => return Ok(true),
                Err(AttemptError::Fatal(problem)) if problem.is_of_this_machine() => {
                    return Err(AttemptError::Fatal(problem));
                }
                // The signature in the address may have expired. The journal keeps what came until then.
                Err(error) if self.progress.received() - before >= MIN_PROGRESS && self.state.written() > 0 => {
                    *source = None;
                    return Err(AttemptError::Retryable(error.into_problem()));
                }
                // The same for an address that the plan found: it may have waited for hours.
                Err(error) if planned && expired(error.problem()) => (*source, planned) = (None, false),
                Err(error) => {
                    if !matches!(error.problem(), Problem::Status { status: 404 | 410, .. }) {
                        self.progress.failed_attempt(&host(&cache.url), error.problem());
                    }
                    self.caches.retain(|file| !Arc::ptr_eq(&file.cache, &cache));
                }
            }
        }
        Ok(false)
    }

    /// Makes one attempt at a cache. Its bytes do not count against the limits of the file.
    async fn try_cache(&mut self, file: CachedFile) -> Result<(), AttemptError> {
        if !file.cache.is_usable() {
            return Err(AttemptError::Retryable(Problem::Silent(host(&file.url))));
        }
        let (has_sent_file, received) = (self.has_sent_file, self.budget.received());
        let url = file.url.clone();
        self.cached = Some(file);
        let done = self.request(&url).await;
        (self.mode, self.has_sent_file) = (Mode::Ranges, has_sent_file);
        self.budget.set_received(received);
        if let Some(file) = self.cached.take() {
            match &done {
                Ok(()) => file.cache.succeeded(),
                Err(AttemptError::Fatal(problem)) if problem.is_of_this_machine() => {}
                Err(error) if file.is_miss(error.problem()) => {}
                Err(error) => {
                    file.failed(self.model, error.problem());
                    if file.origin.is_none() {
                        self.caches.retain(|other| !Arc::ptr_eq(&other.cache, &file.cache));
                    }
                }
            }
        }
        done
    }

    /// Checks the size that a cache claims.
    pub(super) fn check_cached_total(&self, total: Option<u64>) -> Result<(), AttemptError> {
        match &self.cached {
            Some(_) => check_total(self.context, self.model, total).map_err(AttemptError::Retryable),
            None => Ok(()),
        }
    }

    /// Sends a request to a URL of the model, or of the cache that is used.
    pub(super) async fn send(&self, url: &Url, range: Option<(u64, u64)>, limit: Duration) -> Result<Opened, Problem> {
        let http = &self.context.http;
        let target = Target { url, auth: self.model.auth, hashed: self.model.hash.is_some(), origin: None };
        match &self.cached {
            Some(cached) => cached.open(http, url, range).await,
            None => http.open(target, range, limit).await,
        }
    }

    /// Whether a connection that made progress goes on after this problem. At a cache, each stall would cost as much
    /// time again.
    pub(super) fn continues_after(&self, problem: &Problem) -> bool {
        problem.is_transient() && !(self.cached.is_some() && matches!(problem, Problem::Stalled(_)))
    }

    /// The source of a response from `url`.
    pub(super) fn source_name(&self, url: &Url) -> String {
        if self.cached.is_some() { SOURCE.to_owned() } else { host(url) }
    }

    /// Finds the location of the file at one of its URLs.
    pub(super) async fn resolve(&mut self, url: &Url) -> Result<Source, Problem> {
        let limit = self.budget.head_timeout(self.context.http.has_responded(url));
        let source = resolve_within(self.context, self.model, url, limit).await?;
        self.has_sent_file = true;
        Ok(source)
    }
}

//! Plans each model before anything is downloaded: whether its file exists, where it can be downloaded, whether it
//! fits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::error::{Problem, host};
use super::folder::{Space, Stamp, check_rename, space};
use super::http::{Source, Target};
use super::journal::Journal;
use super::model::Model;
use super::progress::{ModelProgress, Phase};
use super::record::Record;
use super::{Context, Pending, cache, link};

/// Time that a server has to respond while other files wait; the download tries for longer.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Size up to which a file is requested once, by its download: another request would cost as much.
const MAX_SMALL: u64 = 20_000_000;

/// How to get the file of a model.
#[derive(Debug)]
pub(crate) enum Plan {
    /// The file exists.
    Present,
    /// Link it to another file with the same content.
    Link,
    /// Download it from here.
    Fetch(Source),
    /// Download it. Its server was not asked because it is small, or did not respond, which may be temporary; it may
    /// have asked to wait.
    FetchLater(Option<Duration>),
}

/// The state of the file at a model's save path.
enum Existing {
    Absent,
    /// It has the hash of the model.
    Verified,
    /// It has another hash.
    Different,
    /// The model has no hash; the size of the file.
    Unhashed(u64),
}

fn is_small_size(bytes: Option<u64>) -> bool {
    bytes.is_some_and(|bytes| bytes > 0 && bytes <= MAX_SMALL)
}

/// Whether a file is so small that its latency matters more than its bytes.
pub(crate) fn is_small(pending: &Pending) -> bool {
    is_small_size(pending.source.as_ref().and_then(|source| source.total).or(pending.item.0.bytes))
}

/// Plans one model; `first`: no earlier model has the same content.
///
/// # Errors
/// The reason why it cannot be downloaded.
pub(crate) async fn plan(
    context: &Arc<Context>,
    model: &Arc<Model>,
    progress: &ModelProgress,
    first: bool,
    hashing: &Semaphore,
) -> Result<Plan, Problem> {
    context.folder.parent(&model.path, !context.settings.dry_run)?;
    let permit = hashing.acquire().await;
    let existing = check_existing(context, model, progress, &context.record).await?;
    drop(permit);
    if matches!(existing, Existing::Verified) {
        return Ok(Plan::Present);
    }
    // A model that will be linked needs no working URL.
    if !first || link::has_copy(context, model) {
        return Ok(Plan::Link);
    }
    // Without a hash, the size on the server shows whether the file is the same.
    let is_comparable = matches!(existing, Existing::Unhashed(_));
    if is_small_size(model.bytes) && !is_comparable && !context.settings.dry_run {
        return Ok(Plan::FetchLater(None));
    }
    let found = cache::find(context, model).await;
    let resolved = match found {
        Some(source) => Ok(source),
        None => resolve(context, model).await,
    };
    if let Existing::Unhashed(size) = existing {
        // Only complete files have their final name, so while the server does not respond the size in the catalog
        // suffices.
        let same = match &resolved {
            Ok(Source { total: Some(total), .. }) => size == *total,
            _ => model.is_plausible(size),
        };
        if same {
            return Ok(Plan::Present);
        }
    }
    match resolved {
        Ok(source) => {
            progress.set_source(&if source.cached { cache::SOURCE.to_owned() } else { source.host() });
            // A mirror may have the right file.
            if model.mirrors.is_empty() {
                model.check_size(source.total)?;
            }
            progress.set_bytes(0, source.total.or(model.bytes).unwrap_or(0));
            Ok(Plan::Fetch(source))
        }
        Err(problem) if problem.is_transient() || !model.mirrors.is_empty() => {
            Ok(Plan::FetchLater(problem.retry_after()))
        }
        Err(problem) => Err(problem),
    }
}

/// Finds the location and the size of a file. One wait for a dead host is enough, however many files it has.
async fn resolve(context: &Context, model: &Model) -> Result<Source, Problem> {
    if context.http.has_responded(&model.url) == Some(false) {
        return Err(Problem::Silent(host(&model.url)));
    }
    resolve_within(context, model, &model.url, RESOLVE_TIMEOUT).await
}

/// The same for any of its URLs, in this time.
///
/// # Errors
/// The response is not a downloadable file, or there is none.
pub(crate) async fn resolve_within(
    context: &Context,
    model: &Model,
    url: &Url,
    limit: Duration,
) -> Result<Source, Problem> {
    let http = &context.http;
    let target = Target { url, auth: model.auth, hashed: model.hash.is_some(), origin: None };
    let resolved = tokio::time::timeout(limit, http.resolve(target, 1, |_, _| {})).await;
    resolved.unwrap_or_else(|_| {
        if http.has_responded(url).is_none() {
            http.record_response(url, false);
        }
        Err(Problem::Silent(host(url)))
    })
}

/// Whether another process has created the file since it was planned.
///
/// # Errors
/// The file cannot be read.
pub(crate) async fn appeared_since_planned(context: &Arc<Context>, pending: &Pending) -> Result<bool, Problem> {
    let (model, progress) = &pending.item;
    let now = context.folder.existing(&model.path).map(|(_, stamp)| stamp);
    if now.is_none() || now == pending.before {
        return Ok(false);
    }
    // The other process may not have recorded it yet; then it is hashed.
    let total = pending.source.as_ref().and_then(|source| source.total);
    Ok(match check_existing(context, model, progress, &Record::load(&context.state_dir, &context.events)).await? {
        Existing::Verified => true,
        Existing::Unhashed(size) => total.map_or_else(|| model.is_plausible(size), |total| total == size),
        Existing::Absent | Existing::Different => false,
    })
}

async fn check_existing(
    context: &Arc<Context>,
    model: &Arc<Model>,
    progress: &ModelProgress,
    record: &Record,
) -> Result<Existing, Problem> {
    if context.folder.is_folder(&model.path) {
        return Err(Problem::SavePath("is a folder".into()));
    }
    let Some((path, stamp)) = context.folder.existing(&model.path) else { return Ok(Existing::Absent) };
    let known = record.get(&model.path.text());
    let Some(hash) = model.hash.clone() else {
        // aria2 keeps the state of an unfinished file beside it, and gives the file its full size at once.
        let recorded = known.is_some_and(|known| known.stamp == stamp);
        let unfinished = !recorded && path.with_added_extension("aria2").exists();
        return Ok(if unfinished { Existing::Different } else { Existing::Unhashed(stamp.size) });
    };
    let verified = known.is_some_and(|known| known.stamp == stamp && known.hash.as_ref() == Some(&hash.text()));
    if verified && !context.settings.verify_always {
        return Ok(Existing::Verified);
    }
    progress.set_phase(Phase::Checking);
    progress.set_bytes(0, stamp.size);
    let reader = context.progress_of(&model.id);
    let hashed = spawn_blocking(move || {
        let file = std::fs::File::open(path)?;
        let report = |bytes| reader.iter().for_each(|progress| progress.set_checked(bytes));
        let same = hash.matches_file(&file, report)?;
        // A file that was modified in the meantime is not the one that was hashed.
        Ok(same && Stamp::of(&file)? == stamp)
    });
    let same = hashed.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
    progress.set_phase(Phase::Waiting);
    match same.map_err(Problem::disk("reading the existing file"))? {
        true => {
            link::record_verified(context, model, stamp, false);
            Ok(Existing::Verified)
        }
        false => Ok(Existing::Different),
    }
}

/// Unreserved bytes of the file systems that models are written to.
#[derive(Debug, Default)]
pub(crate) struct FreeSpace(HashMap<u64, u64>);

impl FreeSpace {
    /// Bytes still to be written for a model.
    pub(crate) fn needed(context: &Context, model: &Model, source: Option<&Source>) -> u64 {
        // The larger size: the catalog may round, and the server may have more.
        let size = source.and_then(|source| source.total).unwrap_or(0).max(model.bytes.unwrap_or(0));
        let done = Journal::peek(&context.state_dir, &model.key()).map_or(0, |(done, _)| done);
        size.saturating_sub(done)
    }

    /// The file system that a model is written to.
    ///
    /// # Errors
    /// Its state cannot be read.
    pub(crate) fn space(context: &Context, model: &Model) -> Result<Space, Problem> {
        let space = match context.folder.parent(&model.path, false)? {
            Some(folder) => space(&folder),
            None => space(context.folder.root()),
        };
        space.map_err(Problem::disk("reading the free space"))
    }

    /// Reserves space for a model.
    ///
    /// # Errors
    /// There is too little.
    pub(crate) fn reserve(&mut self, context: &Context, model: &Model, needed: u64) -> Result<(), Problem> {
        let space = Self::space(context, model)?;
        if !self.0.contains_key(&space.device)
            && let Some(folder) = context.folder.parent(&model.path, false)?
        {
            // Now, rather than after the last byte.
            check_rename(&folder).map_err(Problem::disk("renaming a file in its folder"))?;
        }
        let free = self.0.entry(space.device).or_insert(space.free.saturating_sub(context.settings.keep_free));
        match free.checked_sub(needed) {
            Some(rest) => {
                *free = rest;
                Ok(())
            }
            None => Err(Problem::NoSpace { needed, free: *free }),
        }
    }
}

//! Downloads one file: several ranges concurrently, into a partial file in the same folder, which is resumed from its
//! journal, verified, and only then renamed to its final name.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cap_std::fs::Dir;
use reqwest::Url;
use tokio::task::spawn_blocking;

use super::catalog::Model;
use super::error::Problem;
use super::folder::{Stamp, sync};
use super::follower::{Follower, SharedSegments};
use super::http::{Source, host};
use super::journal::{self, Journal};
use super::link::record_verified;
use super::plan::appeared_since_planned;
use super::progress::{ModelProgress, Phase};
use super::retry::pause;
use super::segments::Segments;
use super::state_file;
use super::{Context, Pending};

/// An attempt that received at least this many bytes does not count as a failure.
pub const MIN_PROGRESS: u64 = 1024 * 1024;

/// The result of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
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
/// The reason why it is missing. Its partial file stays for the next run unless it is empty.
pub async fn run(context: &Arc<Context>, pending: &Pending) -> Result<Outcome, Problem> {
    let (model, progress) = &pending.item;
    let not_made = || Problem::Folder(io::ErrorKind::NotFound.into());
    let folder = context.folder.parent(&model.path, true)?.ok_or_else(not_made)?;
    let key = model.key();
    let Some(part) = lock_part(&folder, &key).map_err(Problem::disk("opening the partial file"))? else {
        progress.set_phase(Phase::Elsewhere);
        if let Some((done, total)) = Journal::peek(&context.state_dir, &key) {
            progress.set_bytes(done, total);
        }
        return Ok(Outcome::Busy);
    };
    if appeared_since_planned(context, pending).await? {
        remove_part(&folder, &context.state_dir, &key);
        return Ok(Outcome::Present);
    }
    progress.set_phase(Phase::Fetching);
    let mut download = Download {
        context,
        model,
        progress,
        folder,
        part: Arc::new(part),
        key,
        state: None,
        ranges_refused: false,
        conflicting_total: None,
    };
    let fetched = download.try_urls(pending.source.clone()).await;
    download.stop_hashing();
    match fetched {
        Ok(()) => download.finish().await.map(|()| Outcome::Fetched),
        Err(problem) => {
            if download.is_empty() {
                remove_part(&download.folder, &context.state_dir, &download.key);
            }
            Err(problem)
        }
    }
}

/// Opens and locks the partial file; `None` while another process holds the lock.
fn lock_part(folder: &Dir, key: &str) -> io::Result<Option<std::fs::File>> {
    loop {
        let file = journal::open_part(folder, key)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(error)) if state_file::has_no_locks(&error) => {}
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        // The previous holder of the lock may have renamed or removed the file.
        if Stamp::of(&file)?.is_named(folder, &journal::part_name(key)) {
            return Ok(Some(file));
        }
    }
}

/// Removes a partial file that this process has locked.
fn remove_part(folder: &Dir, own: &Dir, key: &str) {
    Journal::remove(own, key);
    let _ = folder.remove_file(journal::part_name(key));
}

/// A file being downloaded by this process, which holds the lock on its partial file.
pub(super) struct Download<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) model: &'a Arc<Model>,
    pub(super) progress: &'a ModelProgress,
    pub(super) folder: Dir,
    pub(super) part: Arc<std::fs::File>,
    pub(super) key: String,
    pub(super) state: Option<State>,
    /// Whether the server rejected range requests in the last round.
    ranges_refused: bool,
    /// The size in the last response, if it differs from that of the partial file.
    conflicting_total: Option<u64>,
}

/// The state of the partial file.
pub(super) struct State {
    pub(super) shared: Arc<SharedSegments>,
    pub(super) validator: Option<String>,
    follower: Option<Follower>,
    /// Whether all bytes came in one round. If so, a wrong hash is the fault of the server.
    one_round: bool,
}

impl Download<'_> {
    /// Tries the URLs in turn.
    async fn try_urls(&mut self, mut source: Option<Source>) -> Result<(), Problem> {
        let model = Arc::clone(self.model);
        let mut url = &model.url;
        for mirror in &model.mirrors {
            match self.try_url(url, source.take()).await {
                Err(problem) if !matches!(problem, Problem::Disk(..) | Problem::NoSpace { .. } | Problem::Stopped) => {
                    self.progress.failed_attempt(&host(url), &problem);
                }
                done => return done,
            }
            url = mirror;
        }
        self.try_url(url, source).await
    }

    /// Runs rounds until the file is complete and verified, or too many consecutive ones made no progress.
    async fn try_url(&mut self, url: &Url, mut source: Option<Source>) -> Result<(), Problem> {
        let mut failures = 0;
        loop {
            let before = self.progress.received();
            let problem = match self.attempt(url, source.take()).await {
                Ok(()) => return Ok(()),
                Err(AttemptError::Fatal(problem)) => return Err(problem),
                Err(AttemptError::Retryable(problem)) => problem,
            };
            let progressed = self.progress.received() - before >= MIN_PROGRESS;
            failures = if progressed { 0 } else { failures + 1 };
            if failures >= self.context.settings.tries {
                return Err(problem);
            }
            self.progress.failed_attempt(&host(url), &problem);
            tokio::time::sleep(pause(failures, problem.retry_after())).await;
        }
    }

    async fn attempt(&mut self, url: &Url, source: Option<Source>) -> Result<(), AttemptError> {
        let mut source = match source {
            Some(source) => source,
            None => self.context.http.resolve(url, self.model.auth).await?,
        };
        self.progress.set_source(&source.host());
        self.model.check_size(source.total)?;
        self.prepare(&mut source)?;
        let round = self.round(&source).await;
        self.ranges_refused = matches!(round, Err(AttemptError::Retryable(Problem::NoRanges(_))));
        round?;
        self.verify().await
    }

    /// Resumes the partial file if it can belong to the same version, otherwise starts over. A single response with
    /// another size does not discard it, because servers behind one URL do not always agree.
    fn prepare(&mut self, source: &mut Source) -> Result<(), Problem> {
        if self.state.is_none()
            && let Some(journal) = Journal::load(&self.context.state_dir, &self.key, &self.part)
        {
            self.begin(journal.total, &journal.gaps, journal.validator, false)?;
        }
        let known = self.state.as_ref().map(|state| (state.shared.total(), state.shared.segments().missing()));
        // A file of unknown size cannot be resumed, and an empty one has nothing to lose.
        let Some((total, _)) = known.filter(|(total, missing)| *total != u64::MAX && missing < total) else {
            return self.begin_new(source);
        };
        if let Some(other) = source.total.filter(|other| *other != total) {
            if self.conflicting_total.replace(other) != Some(other) {
                return Err(Problem::Changed(source.host()));
            }
            return self.begin_new(source);
        }
        self.conflicting_total = None;
        if !source.ranges && self.ranges_refused {
            return self.begin_new(source);
        }
        let same =
            self.model.hash.is_some() || self.state.as_ref().is_some_and(|state| state.validator == source.validator);
        if !same {
            return self.begin_new(source);
        }
        source.ranges = true;
        source.total = Some(total);
        if let Some(state) = &mut self.state {
            state.one_round = false;
        }
        Ok(())
    }

    fn begin_new(&mut self, source: &Source) -> Result<(), Problem> {
        self.conflicting_total = None;
        let total = source.total.unwrap_or(u64::MAX);
        self.begin(total, &[(0, total)], source.validator.clone(), true)
    }

    fn begin(
        &mut self,
        total: u64,
        gaps: &[(u64, u64)],
        validator: Option<String>,
        fresh: bool,
    ) -> Result<(), Problem> {
        self.stop_hashing();
        if fresh {
            Journal::remove(&self.context.state_dir, &self.key);
            self.part.set_len(0).map_err(Problem::disk("emptying the partial file"))?;
        }
        let shared = Arc::new(SharedSegments::new(Segments::new(total, gaps, self.context.settings.connections)));
        let file = Arc::clone(&self.part);
        let hash = self.model.hash.clone();
        let follower = hash.map(|hash| Follower::start(Arc::clone(&shared), file, hash));
        let missing = shared.segments().missing();
        self.progress.set_bytes(total.saturating_sub(missing), if total == u64::MAX { 0 } else { total });
        self.state = Some(State { shared, validator, follower, one_round: fresh });
        Ok(())
    }

    /// Verifies the complete file against the catalog.
    async fn verify(&mut self) -> Result<(), AttemptError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let (total, one_round) = (state.shared.total(), state.one_round);
        state.shared.notify();
        self.progress.set_phase(Phase::Checking);
        let matches = match state.follower.take() {
            Some(follower) => follower.matches().await.map_err(Problem::disk("reading the partial file"))?,
            None => true,
        };
        self.progress.set_phase(Phase::Fetching);
        let mut beginning = [0; 512];
        let count = self.part.read_at(&mut beginning, 0).map_err(Problem::disk("reading the partial file"))?;
        let problem = if (!matches || self.model.hash.is_none()) && is_html(&beginning[..count]) {
            Problem::Html(self.progress.source())
        } else if !matches {
            Problem::Checksum
        } else if let Err(problem) = self.model.check_size(Some(total)) {
            problem
        } else {
            return Ok(());
        };
        // Nothing is kept. Several rounds may have downloaded different versions, so that is worth another attempt.
        self.begin(0, &[], None, true)?;
        Err(if one_round { AttemptError::Fatal(problem) } else { AttemptError::Retryable(problem) })
    }

    /// Renames the file to its final name.
    async fn finish(&self) -> Result<(), Problem> {
        let part = Arc::clone(&self.part);
        let folder = self.folder.try_clone().map_err(Problem::disk("opening its folder"))?;
        let (from, to) = (journal::part_name(&self.key), self.model.path.name().to_owned());
        let renamed = spawn_blocking(move || {
            // Synced before the rename, so that after a power failure the file is complete or absent.
            part.sync_all()?;
            if !Stamp::of(&part)?.is_named(&folder, &from) {
                return Err(io::Error::other("another program replaced the partial file"));
            }
            folder.rename(&from, &folder, &to)?;
            // Not every file system supports this, and the rename has succeeded in any case.
            let _ = sync(&folder);
            Stamp::of(&part)
        });
        let renamed = renamed.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let stamp = renamed.map_err(Problem::disk("renaming the complete file"))?;
        Journal::remove(&self.context.state_dir, &self.key);
        // Before the lock is released, so that a waiting process finds the file in the record.
        record_verified(self.context, self.model, stamp, true)
    }

    fn is_empty(&self) -> bool {
        self.part.metadata().is_ok_and(|metadata| metadata.len() == 0)
    }

    fn stop_hashing(&mut self) {
        if let Some(state) = &mut self.state {
            state.follower = None;
        }
    }
}

/// An attempt failed.
pub(super) enum AttemptError {
    /// Another attempt may succeed.
    Retryable(Problem),
    /// Another attempt would fail in the same way.
    Fatal(Problem),
}

impl From<Problem> for AttemptError {
    fn from(problem: Problem) -> Self {
        if problem.is_transient() { Self::Retryable(problem) } else { Self::Fatal(problem) }
    }
}

fn is_html(beginning: &[u8]) -> bool {
    let text = String::from_utf8_lossy(beginning).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    text.starts_with("<!doctype html") || text.starts_with("<html")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_is_detected_by_its_first_bytes() {
        for (beginning, expected) in [
            (&b"<!DOCTYPE html><html>"[..], true),
            (b"\xef\xbb\xbf\n <HTML lang=en>", true),
            (b"<?xml version", false),
            (b"GGUF<html>", false),
            (b"", false),
        ] {
            assert_eq!(is_html(beginning), expected, "{beginning:?}");
        }
    }
}

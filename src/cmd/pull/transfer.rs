//! Downloads one file: several ranges at a time into a partial file beside its final place, resumed from its journal,
//! verified, and only then given its name.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cap_std::fs::Dir;
use reqwest::Url;
use tokio::task::spawn_blocking;

use super::catalog::Model;
use super::error::Problem;
use super::folder::{Stamp, sync};
use super::follower::{Follower, Shared};
use super::http::{Source, host};
use super::journal::{self, Journal};
use super::link::remember;
use super::own;
use super::plan::present_meanwhile;
use super::progress::{File as Shown, Phase};
use super::retry::pause;
use super::segments::Segments;
use super::{Context, Wanted};

/// An attempt that received at least this many bytes does not count as a failure.
pub const PROGRESS: u64 = 1024 * 1024;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was downloaded.
    Fetched,
    /// Another process put it there meanwhile.
    Present,
    /// Another process is downloading it.
    Busy,
}

/// Downloads a model unless another process does.
///
/// # Errors
/// Why it is not there; a part of it may stay for the next run.
pub async fn run(context: &Arc<Context>, wanted: &Wanted) -> Result<Outcome, Problem> {
    let (model, shown) = &wanted.item;
    let not_made = || Problem::Folder(io::ErrorKind::NotFound.into());
    let folder = context.folder.parent(&model.path, true)?.ok_or_else(not_made)?;
    let key = model.key();
    let Some(part) = lock_part(&folder, &key).map_err(Problem::disk("opening the partial file"))? else {
        shown.set_phase(Phase::Elsewhere);
        if let Some((done, total)) = Journal::peek(&context.own, &key) {
            shown.set_bytes(done, total);
        }
        return Ok(Outcome::Busy);
    };
    if present_meanwhile(context, wanted).await? {
        remove_part(&folder, &context.own, &key);
        return Ok(Outcome::Present);
    }
    shown.set_phase(Phase::Fetching);
    let mut download = Download {
        context,
        model,
        shown,
        folder,
        part: Arc::new(part),
        key,
        state: None,
        ranges_refused: false,
        disputed: None,
    };
    let fetched = download.try_addresses(wanted.source.clone()).await;
    download.stop_hashing();
    match fetched {
        Ok(()) => download.finish().await.map(|()| Outcome::Fetched),
        Err(problem) => {
            if download.is_empty() {
                remove_part(&download.folder, &context.own, &download.key);
            }
            Err(problem)
        }
    }
}

/// Opens and locks the partial file; `None` while another process has it.
fn lock_part(folder: &Dir, key: &str) -> io::Result<Option<std::fs::File>> {
    loop {
        let file = journal::open_part(folder, key)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(error)) if own::has_no_locks(&error) => {}
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        // Whoever had the lock before may have given the file its final name, or removed it.
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
    pub(super) shown: &'a Shown,
    pub(super) folder: Dir,
    pub(super) part: Arc<std::fs::File>,
    pub(super) key: String,
    pub(super) state: Option<State>,
    /// Whether the last round was refused parts of the file.
    ranges_refused: bool,
    /// Another size than that of the partial file, if the last response said so.
    disputed: Option<u64>,
}

/// What is known of the bytes in the partial file.
pub(super) struct State {
    pub(super) shared: Arc<Shared>,
    pub(super) validator: Option<String>,
    follower: Option<Follower>,
    /// Whether all bytes came in one round, so that a wrong hash is the server's.
    one_round: bool,
}

impl Download<'_> {
    /// Tries the addresses in turn.
    async fn try_addresses(&mut self, mut source: Option<Source>) -> Result<(), Problem> {
        let model = Arc::clone(self.model);
        let mut url = &model.url;
        for mirror in &model.mirrors {
            match self.try_address(url, source.take()).await {
                Err(problem) if !matches!(problem, Problem::Disk(..) | Problem::NoRoom { .. }) => {
                    self.shown.failed_attempt(&host(url), &problem);
                }
                done => return done,
            }
            url = mirror;
        }
        self.try_address(url, source).await
    }

    /// Rounds until the file is complete and verified, or too many in a row brought nothing.
    async fn try_address(&mut self, url: &Url, mut source: Option<Source>) -> Result<(), Problem> {
        let mut failures = 0;
        loop {
            let before = self.shown.received();
            let problem = match self.attempt(url, source.take()).await {
                Ok(()) => return Ok(()),
                Err(Attempt::Fatal(problem)) => return Err(problem),
                Err(Attempt::Failed(problem)) => problem,
            };
            let progressed = self.shown.received() - before >= PROGRESS;
            failures = if progressed { 0 } else { failures + 1 };
            if failures >= self.context.settings.tries {
                return Err(problem);
            }
            self.shown.failed_attempt(&host(url), &problem);
            tokio::time::sleep(pause(failures, problem.retry_after())).await;
        }
    }

    async fn attempt(&mut self, url: &Url, source: Option<Source>) -> Result<(), Attempt> {
        let mut source = match source {
            Some(source) => source,
            None => self.context.http.resolve(url, self.model.auth).await?,
        };
        self.shown.set_source(&source.host());
        self.model.check_size(source.total)?;
        self.prepare(&mut source)?;
        let round = self.round(&source).await;
        self.ranges_refused = matches!(round, Err(Attempt::Failed(Problem::NoRanges(_))));
        round?;
        self.verify().await
    }

    /// Goes on with what there is, if it can be of the same file; else begins anew. One odd response is not believed
    /// where that would cost what is there: servers behind one address do not always agree.
    fn prepare(&mut self, source: &mut Source) -> Result<(), Problem> {
        if self.state.is_none()
            && let Some(journal) = Journal::load(&self.context.own, &self.key, &self.part)
        {
            self.begin(journal.total, &journal.gaps, journal.validator, false)?;
        }
        let known = self.state.as_ref().map(|state| (state.shared.total(), state.shared.segments().missing()));
        // An unknown end cannot be gone on from, and at the beginning nothing is lost.
        let Some((total, _)) = known.filter(|(total, missing)| *total != u64::MAX && missing < total) else {
            return self.begin_new(source);
        };
        if let Some(other) = source.total.filter(|other| *other != total) {
            if self.disputed.replace(other) != Some(other) {
                return Err(Problem::Changed(source.host()));
            }
            return self.begin_new(source);
        }
        self.disputed = None;
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
        self.disputed = None;
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
            Journal::remove(&self.context.own, &self.key);
            self.part.set_len(0).map_err(Problem::disk("emptying the partial file"))?;
        }
        let shared = Arc::new(Shared::new(Segments::new(total, gaps, self.context.settings.connections)));
        let file = Arc::clone(&self.part);
        let hash = self.model.hash.clone();
        let follower = hash.map(|hash| Follower::start(Arc::clone(&shared), file, hash));
        let missing = shared.segments().missing();
        self.shown.set_bytes(total.saturating_sub(missing), if total == u64::MAX { 0 } else { total });
        self.state = Some(State { shared, validator, follower, one_round: fresh });
        Ok(())
    }

    /// Compares the complete file with the catalog.
    async fn verify(&mut self) -> Result<(), Attempt> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let (total, one_round) = (state.shared.total(), state.one_round);
        state.shared.notify();
        self.shown.set_phase(Phase::Checking);
        let matches = match state.follower.take() {
            Some(follower) => follower.matches().await.map_err(Problem::disk("reading the partial file"))?,
            None => true,
        };
        self.shown.set_phase(Phase::Fetching);
        let mut beginning = [0; 512];
        let count = self.part.read_at(&mut beginning, 0).map_err(Problem::disk("reading the partial file"))?;
        let problem = if (!matches || self.model.hash.is_none()) && is_html(&beginning[..count]) {
            Problem::Html(self.shown.source())
        } else if !matches {
            Problem::Checksum
        } else if let Err(problem) = self.model.check_size(Some(total)) {
            problem
        } else {
            return Ok(());
        };
        // Nothing of it is kept. What came in several rounds may have been of several files.
        self.begin(0, &[], None, true)?;
        Err(if one_round { Attempt::Fatal(problem) } else { Attempt::Failed(problem) })
    }

    /// Gives the file its name.
    async fn finish(&self) -> Result<(), Problem> {
        let part = Arc::clone(&self.part);
        let folder = self.folder.try_clone().map_err(Problem::disk("opening its folder"))?;
        let (from, to) = (journal::part_name(&self.key), self.model.path.name().to_owned());
        let renamed = spawn_blocking(move || {
            // A name is only given to what is on the disk: after a power cut it is whole or not there.
            part.sync_all()?;
            if !Stamp::of(&part)?.is_named(&folder, &from) {
                return Err(io::Error::other("another program replaced the partial file"));
            }
            folder.rename(&from, &folder, &to)?;
            // Not every file system can do this, and the name is there in any case.
            let _ = sync(&folder);
            Stamp::of(&part)
        });
        let renamed = renamed.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let stamp = renamed.map_err(Problem::disk("giving the complete file its name"))?;
        Journal::remove(&self.context.own, &self.key);
        // Before the lock goes with the file: a process that waits for it finds the file in the record.
        remember(self.context, self.model, stamp, true)
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

/// Why an attempt failed.
pub(super) enum Attempt {
    /// Another one may succeed.
    Failed(Problem),
    /// Another one would fail the same way.
    Fatal(Problem),
}

impl From<Problem> for Attempt {
    fn from(problem: Problem) -> Self {
        if problem.is_transient() { Self::Failed(problem) } else { Self::Fatal(problem) }
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

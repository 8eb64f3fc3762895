//! The connections of one round: everything that is downloaded from one resolved URL.
//!
//! A connection without progress ends for the rest of its round, so a server that allows only a few connections gets
//! only a few. When all have ended, the URL is resolved again, because signed URLs expire.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use reqwest::Response;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior};

use super::error::Problem;
use super::folder::space;
use super::http::{BodyRange, Source};
use super::journal::Journal;
use super::segments::Claim;
use super::transfer::{AttemptError, Download, MIN_PROGRESS, State};

/// Interval at which the journal is written; bytes received since then are downloaded again after a kill.
const JOURNAL_INTERVAL: Duration = Duration::from_millis(100);
/// The interval if the bytes are synced to the disk before each journal.
const DURABLE_INTERVAL: Duration = Duration::from_secs(1);

impl Download<'_> {
    /// Runs all connections until the file is complete or none makes progress.
    pub(super) async fn round(&self, source: &Source) -> Result<(), AttemptError> {
        let Some(state) = &self.state else { return Ok(()) };
        let connections = if source.ranges { self.context.settings.connections } else { 1 };
        let mut workers: FuturesUnordered<_> = (0..connections).map(|_| self.connection(state, source)).collect();
        let mut tick = tokio::time::interval(match self.model.hash {
            Some(_) => JOURNAL_INTERVAL,
            None => DURABLE_INTERVAL,
        });
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut saving: Option<JoinHandle<()>> = None;
        let mut problem = None;
        let mut stop = self.context.stop.clone();
        loop {
            tokio::select! {
                _ = stop.wait_for(|stopped| *stopped) => {
                    problem = Some(Problem::Stopped);
                    break;
                }
                result = workers.next() => match result {
                    None => break,
                    Some(Ok(())) => {}
                    Some(Err(fatal @ (Problem::Disk(..) | Problem::NoSpace { .. }))) => {
                        return Err(AttemptError::Fatal(fatal));
                    }
                    Some(Err(other)) => problem = Some(other),
                },
                _ = tick.tick(), if source.ranges => {
                    if saving.as_ref().is_none_or(JoinHandle::is_finished) {
                        saving = Some(self.save(state));
                    }
                }
            }
        }
        if source.ranges {
            if let Some(saving) = saving {
                let _ = saving.await;
            }
            let _ = self.save(state).await;
        }
        match state.shared.segments().missing() {
            0 => Ok(()),
            _ if matches!(problem, Some(Problem::Stopped)) => Err(AttemptError::Fatal(Problem::Stopped)),
            // The URL may have expired, so even a permanent error is retried after resolving it again.
            _ => Err(AttemptError::Retryable(problem.unwrap_or_else(|| Problem::Incomplete(source.host())))),
        }
    }

    /// Writes the journal. Without a hash, bytes lost in a power failure would go unnoticed, so they are synced to the
    /// disk before the journal records them.
    fn save(&self, state: &State) -> JoinHandle<()> {
        let shared = Arc::clone(&state.shared);
        let (validator, path, key) = (state.validator.clone(), self.model.path.text(), self.key.clone());
        let (part, context, durable) = (Arc::clone(&self.part), Arc::clone(self.context), self.model.hash.is_none());
        spawn_blocking(move || {
            let (total, gaps) = {
                let segments = shared.segments();
                (segments.total(), segments.gaps())
            };
            let Ok(metadata) = part.metadata() else { return };
            if durable && part.sync_data().is_err() {
                return;
            }
            // A missing or outdated journal costs bytes, not correctness.
            let _ = Journal { path, total, validator, inode: metadata.ino(), gaps }.save(&context.state_dir, &key);
        })
    }

    /// Runs one connection: downloads segments until none is left or one makes no progress.
    async fn connection(&self, state: &State, source: &Source) -> Result<(), Problem> {
        loop {
            let Some(claim) = state.shared.segments().claim() else { return Ok(()) };
            let mut received = 0;
            let result = self.segment(state, source, claim, &mut received).await;
            state.shared.segments().release(claim.id);
            match result {
                Ok(()) => {}
                Err(problem) if problem.is_transient() && received >= MIN_PROGRESS => {
                    self.progress.failed_attempt(&source.host(), &problem);
                }
                Err(problem) => return Err(problem),
            }
        }
    }

    async fn segment(&self, state: &State, source: &Source, claim: Claim, received: &mut u64) -> Result<(), Problem> {
        let range = source.ranges.then_some((claim.start, claim.end));
        let (response, part) = self.context.http.fetch(source, self.model.auth, range).await?;
        let limit = self.check_part(state, source, claim, &part)?;
        self.read_body(state, source, claim, response, limit, received).await?;
        if part.total.is_none() && state.shared.total() == u64::MAX {
            state.shared.segments().end_here(claim.id);
            state.shared.notify();
        }
        match state.shared.segments().left(claim.id) {
            0 => Ok(()),
            _ => Err(Problem::Incomplete(source.host())),
        }
    }

    /// Checks that the response contains the claimed range. Returns the maximum number of bytes to write.
    fn check_part(&self, state: &State, source: &Source, claim: Claim, part: &BodyRange) -> Result<u64, Problem> {
        if part.start != claim.start {
            // A response with the whole file starts at 0.
            let problem = if part.partial { Problem::Range } else { Problem::NoRanges };
            return Err(problem(source.host()));
        }
        // With a hash, the content decides: servers behind one URL may send different entity tags and dates.
        let differs = part.validator.is_some() && part.validator != state.validator;
        if differs && self.model.hash.is_none() {
            return Err(Problem::Changed(source.host()));
        }
        if part.partial && part.total.is_some_and(|total| total != state.shared.total()) {
            return Err(Problem::Changed(source.host()));
        }
        if state.shared.total() != u64::MAX {
            return Ok(u64::MAX);
        }
        // The size is unknown: the limit is the size in the catalog, otherwise the free space.
        let space = space(&self.folder).map_err(Problem::disk("reading the free space"))?;
        let free = space.free.saturating_sub(self.context.settings.keep_free);
        Ok(self.model.largest().map_or(free, |largest| largest.min(free)))
    }

    async fn read_body(
        &self,
        state: &State,
        source: &Source,
        claim: Claim,
        mut response: Response,
        limit: u64,
        received: &mut u64,
    ) -> Result<(), Problem> {
        let settings = &self.context.settings;
        let mut position = claim.start;
        let (mut waited, mut in_window) = (Duration::ZERO, 0);
        loop {
            let left = state.shared.segments().left(claim.id);
            if left == 0 {
                return Ok(());
            }
            // Only time spent waiting for the network counts: a slow disk is not a slow server.
            let started = Instant::now();
            let chunk = tokio::time::timeout(settings.stall, response.chunk()).await;
            waited += started.elapsed();
            let chunk = match chunk {
                Err(_) => return Err(Problem::Stalled(source.host())),
                Ok(Err(error)) => {
                    return Err(Problem::Connection { host: source.host(), source: error.into() });
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(chunk))) => chunk,
            };
            // Another connection may have taken the second half of the segment in the meantime.
            let left = state.shared.segments().left(claim.id).min(chunk.len() as u64);
            let bytes = &chunk[..usize::try_from(left).unwrap_or(chunk.len())];
            if position + left - claim.start > limit {
                return Err(Problem::NoSpace { needed: position + left - claim.start, free: limit });
            }
            self.part.write_all_at(bytes, position).map_err(Problem::disk("writing the partial file"))?;
            position += left;
            *received += left;
            in_window += left;
            state.shared.segments().advance(claim.id, left);
            self.progress.add_received(left);
            if waited >= settings.stall {
                let least = settings.min_speed.saturating_mul(waited.as_millis().try_into().unwrap_or(u64::MAX)) / 1000;
                if in_window < least {
                    return Err(Problem::Stalled(source.host()));
                }
                (waited, in_window) = (Duration::ZERO, 0);
            }
        }
    }
}

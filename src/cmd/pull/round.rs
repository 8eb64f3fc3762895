//! The connections of one round: all that one resolved address brings.
//!
//! A connection that made no progress retires for the rest of its round, so a server that accepts few is used with few.
//! When all have retired the address is resolved again, because signed ones expire.

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
use super::http::{Part, Source};
use super::journal::Journal;
use super::segments::Claim;
use super::transfer::{Attempt, Download, PROGRESS, State};

/// Time between two journals: what came since the last one is fetched again after a kill.
const JOURNAL_INTERVAL: Duration = Duration::from_millis(100);
/// The same where each journal waits for the disk.
const DURABLE_INTERVAL: Duration = Duration::from_secs(1);

impl Download<'_> {
    /// One round of all connections.
    pub(super) async fn round(&self, source: &Source) -> Result<(), Attempt> {
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
                    Some(Err(fatal @ (Problem::Disk(..) | Problem::NoRoom { .. }))) => {
                        return Err(Attempt::Fatal(fatal));
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
            _ if matches!(problem, Some(Problem::Stopped)) => Err(Attempt::Fatal(Problem::Stopped)),
            // What is refused here may be an address that has expired; resolving it again tells.
            _ => Err(Attempt::Failed(problem.unwrap_or_else(|| Problem::Incomplete(source.host())))),
        }
    }

    /// Writes the journal. Without a hash nothing would notice bytes that a power cut took back, so then they are on
    /// the disk before it says that they are there.
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
            // A journal that is missing or old costs bytes, not correctness.
            let _ = Journal { path, total, validator, inode: metadata.ino(), gaps }.save(&context.own, &key);
        })
    }

    /// One connection: segment after segment, until there is none or it makes no progress.
    async fn connection(&self, state: &State, source: &Source) -> Result<(), Problem> {
        loop {
            let Some(claim) = state.shared.segments().claim() else { return Ok(()) };
            let mut received = 0;
            let result = self.segment(state, source, claim, &mut received).await;
            state.shared.segments().release(claim.id);
            match result {
                Ok(()) => {}
                Err(problem) if problem.is_transient() && received >= PROGRESS => {
                    self.shown.failed_attempt(&source.host(), &problem);
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

    /// Whether the body that follows is that of the claim; gives the most bytes that may be written of it.
    fn check_part(&self, state: &State, source: &Source, claim: Claim, part: &Part) -> Result<u64, Problem> {
        if part.start != claim.start {
            // A whole file where a part was wanted begins at 0.
            let problem = if part.partial { Problem::Range } else { Problem::NoRanges };
            return Err(problem(source.host()));
        }
        // With a hash the bytes decide: servers behind one address may disagree on tags and dates.
        let other = part.validator.is_some() && part.validator != state.validator;
        if other && self.model.hash.is_none() {
            return Err(Problem::Changed(source.host()));
        }
        if part.partial && part.total.is_some_and(|total| total != state.shared.total()) {
            return Err(Problem::Changed(source.host()));
        }
        if state.shared.total() != u64::MAX {
            return Ok(u64::MAX);
        }
        // Nobody said where it ends: at what the catalog says, else at what the disk has.
        let space = space(&self.folder).map_err(Problem::disk("asking for free space"))?;
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
            // Only the network's time counts: a slow disk is not a slow server.
            let asked = Instant::now();
            let chunk = tokio::time::timeout(settings.stall, response.chunk()).await;
            waited += asked.elapsed();
            let chunk = match chunk {
                Err(_) => return Err(Problem::Stalled(source.host())),
                Ok(Err(error)) => {
                    return Err(Problem::Connection { host: source.host(), source: error.into() });
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(chunk))) => chunk,
            };
            // The end of the segment may have come nearer while this was waiting.
            let left = state.shared.segments().left(claim.id).min(chunk.len() as u64);
            let bytes = &chunk[..usize::try_from(left).unwrap_or(chunk.len())];
            if position + left - claim.start > limit {
                return Err(Problem::NoRoom { needed: position + left - claim.start, free: limit });
            }
            self.part.write_all_at(bytes, position).map_err(Problem::disk("writing the partial file"))?;
            position += left;
            *received += left;
            in_window += left;
            state.shared.segments().advance(claim.id, left);
            self.shown.add_received(left);
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

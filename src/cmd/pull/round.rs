//! The connections of one round: everything that is downloaded after one response has shown how the server answers.
//!
//! A connection without progress ends for the rest of its round, so a server that allows only a few connections gets
//! only a few. When all have ended, the URL is resolved again, because signed URLs expire.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use reqwest::Url;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior};

use super::error::{AttemptError, Problem};
use super::folder::space;
use super::http::{Opened, host};
use super::journal::Journal;
use super::response::BodyRange;
use super::segments::Claim;
use super::transfer::{Download, MIN_PROGRESS};
use crate::atomic_file::synced;

/// Interval at which the journal is written; bytes received since then are downloaded again after a kill.
const JOURNAL_INTERVAL: Duration = Duration::from_millis(100);
/// The interval if the bytes are synced to the disk before each journal.
const DURABLE_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes before the requested range that are read and dropped: some servers align ranges to blocks.
const MAX_OVERLAP: u64 = MIN_PROGRESS;

/// The first response of a round.
pub(super) enum Opening {
    /// A part of the file, which begins at or before the claimed segment.
    Part(Claim, Opened),
    /// The whole file.
    Whole(Opened),
}

/// The task of one connection.
enum Work {
    /// Read the first response, then download further segments.
    First(Box<Opening>),
    /// Download segments.
    Segments,
}

/// Where the bytes of a body go.
#[derive(Debug, Clone, Copy)]
enum Into {
    /// To this segment.
    Segment(Claim),
    /// Wherever bytes are missing.
    Gaps,
}

impl Download<'_> {
    /// Runs all connections until the file is complete or none makes progress.
    pub(super) async fn round(&self, opening: Opening) -> Result<(), AttemptError> {
        let (url, connections) = match &opening {
            Opening::Part(_, opened) => (opened.url.clone(), self.context.settings.connections),
            Opening::Whole(opened) => (opened.url.clone(), 1),
        };
        let first = std::iter::once(Work::First(Box::new(opening)));
        let work = first.chain(std::iter::repeat_with(|| Work::Segments)).take(connections);
        let mut workers: FuturesUnordered<_> = work.map(|work| self.connection(work, &url)).collect();
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
                _ = tick.tick() => {
                    if saving.as_ref().is_none_or(JoinHandle::is_finished) {
                        saving = Some(self.save());
                    }
                }
            }
        }
        if let Some(saving) = saving {
            let _ = saving.await;
        }
        let missing = self.state.shared.segments().missing();
        if missing > 0 {
            let _ = self.save().await;
        }
        match problem {
            _ if missing == 0 => Ok(()),
            Some(Problem::Stopped) => Err(AttemptError::Fatal(Problem::Stopped)),
            Some(problem) if problem.contradicts_ranges() => Err(AttemptError::Distrust(problem)),
            // The URL may have expired, so even a permanent error is retried after resolving it again.
            problem => Err(AttemptError::Retryable(problem.unwrap_or_else(|| Problem::Incomplete(host(&url))))),
        }
    }

    /// Writes the journal, unless the size is unknown. Without a hash, bytes lost in a power failure would go
    /// unnoticed, so they are synced to the disk before the journal records them.
    fn save(&self) -> JoinHandle<()> {
        let shared = Arc::clone(&self.state.shared);
        let (validator, path, key) = (self.state.validator.clone(), self.model.path.text(), self.key.clone());
        let (part, context, durable) = (Arc::clone(&self.part), Arc::clone(self.context), self.model.hash.is_none());
        spawn_blocking(move || {
            let (total, gaps) = {
                let segments = shared.segments();
                (segments.total(), segments.gaps())
            };
            let Ok(metadata) = part.metadata() else { return };
            if total == u64::MAX || (durable && synced(part.sync_data()).is_err()) {
                return;
            }
            // A missing or outdated journal costs bytes, not correctness.
            let _ = Journal { path, total, validator, inode: metadata.ino(), gaps }.save(&context.state_dir, &key);
        })
    }

    /// Runs one connection: downloads segments until none is left or one makes no progress.
    async fn connection(&self, work: Work, url: &Url) -> Result<(), Problem> {
        let first = match work {
            Work::First(first) => Some(*first),
            Work::Segments => None,
        };
        let mut next = match first {
            Some(Opening::Whole(opened)) => return self.whole(opened).await,
            Some(Opening::Part(claim, opened)) => Some((claim, Some(opened))),
            None => None,
        };
        loop {
            let claimed = || self.state.shared.segments().claim().map(|claim| (claim, None));
            let Some((claim, opened)) = next.take().or_else(claimed) else { return Ok(()) };
            let mut received = 0;
            let result = self.segment(url, claim, opened, &mut received).await;
            self.state.shared.segments().release(claim.id);
            match result {
                Ok(()) => {}
                Err(problem) if problem.is_transient() && received >= MIN_PROGRESS => {
                    self.progress.failed_attempt(&host(url), &problem);
                }
                Err(problem) => return Err(problem),
            }
        }
    }

    async fn segment(
        &self,
        url: &Url,
        claim: Claim,
        opened: Option<Opened>,
        received: &mut u64,
    ) -> Result<(), Problem> {
        let opened = match opened {
            Some(opened) => opened,
            None => self.context.http.open(self.target(url), Some((claim.start, claim.end))).await?,
        };
        let part = opened.part.clone();
        check_part(&part, (claim.start, claim.end), &opened.url)?;
        self.check_version(&part, &opened.url)?;
        self.read_body(opened, Into::Segment(claim), received).await?;
        // A response may end before the segment does, but must be worth its request.
        let (segments, end) = (self.state.shared.segments(), part.end.unwrap_or(claim.end));
        let delivered = *received >= MIN_PROGRESS && segments.missing_in(Some(claim.id), claim.start, end).is_none();
        if delivered || segments.left(claim.id) == 0 { Ok(()) } else { Err(Problem::Incomplete(host(url))) }
    }

    /// Reads the whole file from one response.
    async fn whole(&self, opened: Opened) -> Result<(), Problem> {
        let (url, total) = (opened.url.clone(), opened.part.total);
        self.read_body(opened, Into::Gaps, &mut 0).await?;
        let mut segments = self.state.shared.segments();
        if total.is_none() && segments.total() == u64::MAX {
            segments.end_here();
        }
        drop(segments);
        self.state.shared.notify();
        match self.state.shared.segments().missing() {
            0 => Ok(()),
            _ => Err(Problem::Incomplete(host(&url))),
        }
    }

    /// Checks that a response belongs to the version of the file that is being downloaded.
    pub(super) fn check_version(&self, part: &BodyRange, url: &Url) -> Result<(), Problem> {
        // With a hash, the content decides: servers behind one URL may send different entity tags and dates.
        let other_version = self.model.hash.is_none() && part.validator != self.state.validator;
        let other_size = part.total.is_some_and(|total| total != self.state.shared.total());
        if other_version || other_size { Err(Problem::Changed(host(url))) } else { Ok(()) }
    }

    /// The maximum number of bytes to write, if the size is unknown: that in the catalog, otherwise the free space.
    fn limit(&self) -> Result<u64, Problem> {
        if self.state.shared.total() != u64::MAX {
            return Ok(u64::MAX);
        }
        let space = space(&self.folder).map_err(Problem::disk("reading the free space"))?;
        let free = space.free.saturating_sub(self.context.settings.keep_free);
        Ok(self.model.largest().map_or(free, |largest| largest.min(free)))
    }

    /// Reads a body and writes what is missing of it.
    async fn read_body(&self, opened: Opened, into: Into, received: &mut u64) -> Result<(), Problem> {
        let (settings, limit) = (&self.context.settings, self.limit()?);
        let Opened { mut response, url, part } = opened;
        let mut position = part.start;
        let (mut waited, mut in_window) = (Duration::ZERO, 0);
        while self.is_wanted(into) {
            // Only time spent waiting for the network counts: a slow disk is not a slow server.
            let started = Instant::now();
            let chunk = tokio::time::timeout(settings.stall, response.chunk()).await;
            waited += started.elapsed();
            let chunk = match chunk {
                Err(_) => return Err(Problem::Stalled(host(&url))),
                Ok(Err(error)) => return Err(Problem::Connection { host: host(&url), source: error.into() }),
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(chunk))) => chunk,
            };
            let length = chunk.len() as u64;
            self.budget.add_received(length);
            if position.saturating_add(length) > limit {
                return Err(Problem::NoSpace { needed: position.saturating_add(length), free: limit });
            }
            *received += self.write(&chunk, position, into)?;
            position += length;
            in_window += length;
            if waited >= settings.stall {
                let least = settings.min_speed.saturating_mul(waited.as_millis().try_into().unwrap_or(u64::MAX)) / 1000;
                if in_window < least {
                    return Err(Problem::Stalled(host(&url)));
                }
                (waited, in_window) = (Duration::ZERO, 0);
            }
        }
        Ok(())
    }

    /// Whether bytes are missing.
    fn is_wanted(&self, into: Into) -> bool {
        let segments = self.state.shared.segments();
        match into {
            // Another connection may have taken the second half of the segment in the meantime.
            Into::Segment(claim) => segments.left(claim.id) > 0,
            Into::Gaps => segments.missing() > 0,
        }
    }

    /// Writes the bytes at `position` that are missing; returns their number.
    fn write(&self, chunk: &[u8], position: u64, into: Into) -> Result<u64, Problem> {
        let (mut at, end, mut written) = (position, position.saturating_add(chunk.len() as u64), 0);
        let segment = match into {
            Into::Segment(claim) => Some(claim.id),
            Into::Gaps => None,
        };
        loop {
            let missing = self.state.shared.segments().missing_in(segment, at, end);
            let Some(claim) = missing else { return Ok(written) };
            // Both lie inside the chunk.
            let offset = |position: u64| usize::try_from(position - (end - chunk.len() as u64)).unwrap_or(chunk.len());
            let bytes = &chunk[offset(claim.start)..offset(claim.end)];
            self.part.write_all_at(bytes, claim.start).map_err(Problem::disk("writing the partial file"))?;
            self.state.shared.segments().advance(claim.id, bytes.len() as u64);
            self.progress.add_received(bytes.len() as u64);
            written += bytes.len() as u64;
            at = claim.end;
        }
    }
}

/// Checks that a part contains the beginning of the requested range, if need be after bytes that are dropped.
pub(super) fn check_part(part: &BodyRange, range: (u64, u64), url: &Url) -> Result<(), Problem> {
    if !part.partial {
        return Err(Problem::NoRanges(host(url)));
    }
    let (start, _) = range;
    let begins = part.start <= start && start - part.start <= MAX_OVERLAP && part.end.is_some_and(|end| end > start);
    if begins { Ok(()) } else { Err(Problem::Range(host(url))) }
}

//! The connections of one round: everything that is downloaded after one response has shown how the server answers.
//!
//! A round begins with one connection, and gets more while that makes the download faster. A connection without
//! progress ends for the rest of its round, so a server that allows only a few connections gets only a few. When all
//! have ended, the URL is resolved again, because signed URLs expire.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use reqwest::Url;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::body::Destination;
use super::connections::{Connection, Share};
use super::error::{AttemptError, Problem, host};
use super::follower::Follower;
use super::http::{HEAD_TIMEOUT, Opened};
use super::journal::Journal;
use super::partial::start_writeback;
use super::response::BodyRange;
use super::segments::{Claim, UNKNOWN_SIZE};
use super::transfer::{Download, MIN_PROGRESS};
use crate::base::atomic_file::synced;

/// Interval at which the journal is written; bytes received since then are downloaded again after a kill.
const JOURNAL_INTERVAL: Duration = Duration::from_millis(100);
/// The interval if the bytes are synced to the disk before each journal.
const DURABLE_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which the number of connections may double.
const GROWTH_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes received between two requests to write them to the disk, so that the final sync is short.
const WRITEBACK: u64 = 32 * 1024 * 1024;
/// Bytes before the requested range that are read and dropped: some servers align ranges to blocks.
const MAX_OVERLAP: u64 = MIN_PROGRESS;

/// The first response of a round.
pub(super) enum Opening {
    /// A part of the file, which begins at or before the claimed segment.
    Part(Claim, Opened),
    /// The whole file.
    Whole(Opened),
}

/// The work of one connection.
enum Work {
    /// Read the first response, then download further segments.
    First(Box<Opening>),
    /// Download this segment, then further ones.
    Further(Claim),
}

/// What the connections of a round share.
struct Round<'a> {
    url: &'a Url,
    /// `None` if there is nothing to divide between several connections.
    share: Option<Share<'a>>,
    connections: AtomicUsize,
}

impl Download<'_> {
    /// Runs all connections until the file is complete or none makes progress.
    pub(super) async fn round(&self, opening: Opening, connection: Connection<'_>) -> Result<(), AttemptError> {
        let (Opening::Part(_, opened) | Opening::Whole(opened)) = &opening;
        let url = opened.url.clone();
        let divisible = matches!(opening, Opening::Part(..)) && self.state.segments().is_divisible();
        let share = divisible.then(|| self.context.connections.share());
        let round = Round { url: &url, share, connections: AtomicUsize::new(0) };
        let mut workers = FuturesUnordered::new();
        workers.push(self.connection(&round, Work::First(Box::new(opening)), connection.receives()));
        let mut most = usize::MAX;
        let mut growth = ticks(GROWTH_INTERVAL);
        let mut journal = ticks(if self.model.hash.is_some() { JOURNAL_INTERVAL } else { DURABLE_INTERVAL });
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
                    Some(Err(other)) => (problem, most) = (Some(other), workers.len()),
                },
                _ = growth.tick(), if divisible => {
                    for _ in 0..workers.len().min(most.saturating_sub(workers.len())) {
                        let Some((work, connection)) = self.another(&round) else { break };
                        workers.push(self.connection(&round, work, connection));
                    }
                }
                _ = journal.tick() => {
                    if saving.as_ref().is_none_or(JoinHandle::is_finished) {
                        saving = Some(self.save());
                    }
                }
            }
        }
        if let Some(saving) = saving {
            let _ = saving.await;
        }
        let missing = self.state.segments().missing();
        if missing > 0 {
            let _ = self.save().await;
        }
        match problem {
            _ if missing == 0 => Ok(()),
            Some(Problem::Stopped) => Err(AttemptError::Fatal(Problem::Stopped)),
            Some(problem) if problem.contradicts_ranges() => Err(AttemptError::TryWhole(problem)),
            // The URL may have expired, so even a permanent error is retried after resolving it again.
            problem => Err(AttemptError::Retryable(problem.unwrap_or_else(|| Problem::Incomplete(host(&url))))),
        }
    }

    /// One more connection, if it would make the download faster.
    fn another<'r>(&self, round: &'r Round<'_>) -> Option<(Work, Connection<'r>)> {
        // Bytes that come faster than they are hashed only have to be read again.
        if self.state.follower.as_ref().is_some_and(Follower::was_full) {
            return None;
        }
        let connection = round.share.as_ref()?.add(round.connections.load(Relaxed), &host(round.url))?;
        Some((Work::Further(self.state.segments().claim()?), connection))
    }

    /// Writes the journal, unless the size is unknown. Without a hash, bytes lost in a power failure would go
    /// unnoticed, so they are synced to the disk before the journal records them.
    fn save(&self) -> JoinHandle<()> {
        let (total, gaps) = {
            let segments = self.state.segments();
            (segments.total(), segments.gaps())
        };
        let received = self.progress.received();
        let writeback = received - self.state.writeback.load(Relaxed) >= WRITEBACK;
        if writeback {
            self.state.writeback.store(received, Relaxed);
        }
        let (validator, path, key) = (self.state.validator.clone(), self.model.path.text(), self.key.clone());
        let (part, context, durable) = (Arc::clone(&self.part), Arc::clone(self.context), self.model.hash.is_none());
        spawn_blocking(move || {
            if writeback {
                start_writeback(&part);
            }
            let Ok(metadata) = part.metadata() else { return };
            if total == UNKNOWN_SIZE || (durable && synced(part.sync_data()).is_err()) {
                return;
            }
            // A missing or outdated journal costs bytes, not correctness.
            let _ = Journal { path, total, validator, inode: metadata.ino(), gaps }.save(&context.state_dir, &key);
        })
    }

    /// Runs one connection: downloads segments until none is left or one makes no progress.
    async fn connection(&self, round: &Round<'_>, work: Work, connection: Connection<'_>) -> Result<(), Problem> {
        round.connections.fetch_add(1, Relaxed);
        let result = match work {
            Work::First(opening) => match *opening {
                Opening::Whole(opened) => self.whole(opened).await,
                Opening::Part(claim, opened) => self.download_segments(round, claim, Some(opened)).await,
            },
            Work::Further(claim) => self.download_segments(round, claim, None).await,
        };
        round.connections.fetch_sub(1, Relaxed);
        if result.as_ref().is_err_and(Problem::is_overload) {
            connection.refused();
        }
        result
    }

    /// Downloads this segment and then others, until none is left, this file has a connection too many, or one makes no
    /// progress.
    async fn download_segments(
        &self,
        round: &Round<'_>,
        mut claim: Claim,
        mut opened: Option<Opened>,
    ) -> Result<(), Problem> {
        loop {
            let mut received = 0;
            let result = self.download_segment(round.url, claim, opened.take(), &mut received).await;
            self.state.segments().release(claim.id);
            match result {
                Ok(()) => {}
                Err(problem) if self.continues_after(&problem) && received >= MIN_PROGRESS => {
                    self.progress.failed_attempt(&host(round.url), &problem);
                }
                Err(problem) => return Err(problem),
            }
            let connections = round.connections.load(Relaxed);
            if connections > 1 && round.share.as_ref().is_some_and(|share| connections > share.size()) {
                return Ok(());
            }
            let Some(next) = self.state.segments().claim() else { return Ok(()) };
            claim = next;
        }
    }

    /// Downloads one segment, of which `opened` may be the response. `received` counts its bytes, also if it fails.
    async fn download_segment(
        &self,
        url: &Url,
        claim: Claim,
        opened: Option<Opened>,
        received: &mut u64,
    ) -> Result<(), Problem> {
        let opened = match opened {
            Some(opened) => opened,
            None => self.send(url, Some((claim.start, claim.end)), HEAD_TIMEOUT).await?,
        };
        let part = opened.part.clone();
        check_part(&part, (claim.start, claim.end), &opened.url)?;
        self.check_version(&part, &opened.url)?;
        self.read_body(opened, Destination::Segment(claim), received).await?;
        // A response may end before the segment does, but must be worth its request.
        let (segments, end) = (self.state.segments(), part.end.unwrap_or(claim.end));
        let delivered = *received >= MIN_PROGRESS && segments.missing_in(Some(claim.id), claim.start, end).is_none();
        if delivered || segments.left(claim.id) == 0 { Ok(()) } else { Err(Problem::Incomplete(host(url))) }
    }

    /// Reads the whole file from one response.
    async fn whole(&self, opened: Opened) -> Result<(), Problem> {
        let (url, total) = (opened.url.clone(), opened.part.total);
        self.read_body(opened, Destination::Gaps, &mut 0).await?;
        let mut segments = self.state.segments();
        if total.is_none() && !segments.is_size_known() {
            segments.end_here();
        }
        match segments.missing() {
            0 => Ok(()),
            _ => Err(Problem::Incomplete(host(&url))),
        }
    }

    /// Checks that a response belongs to the version of the file that is being downloaded.
    pub(super) fn check_version(&self, part: &BodyRange, url: &Url) -> Result<(), Problem> {
        // With a hash, the content decides: servers behind one URL may send different entity tags and dates.
        let other_version = self.model.hash.is_none() && part.validator != self.state.validator;
        let other_size = part.total.is_some_and(|total| total != self.state.total());
        if other_version || other_size { Err(Problem::Changed(host(url))) } else { Ok(()) }
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

/// Ticks, of which the first comes after `period`.
fn ticks(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

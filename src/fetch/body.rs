//! Reads the bodies of responses and writes what is missing of the file, many TLS records at a time.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::error::{Problem, host};
use super::folder::space;
use super::http::Opened;
use super::segments::Claim;
use super::transfer::Download;

/// Bytes that are written at once; a TLS record has 16 KiB.
const WRITE: usize = 256 * 1024;
/// Fewer are written after this time, half of the journal's interval.
const MAX_DELAY: Duration = Duration::from_millis(50);
/// Buffers that are written at once, below the system's limit of 1024.
const MAX_BUFFERS: usize = 256;

/// Where the bytes of a body go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Destination {
    /// To this segment.
    Segment(Claim),
    /// Wherever bytes are missing.
    Gaps,
}

impl Destination {
    fn segment(self) -> Option<u64> {
        match self {
            Self::Segment(claim) => Some(claim.id),
            Self::Gaps => None,
        }
    }
}

/// Received bytes that are to be written.
struct Batch {
    start: u64,
    end: u64,
    buffers: Vec<Bytes>,
    since: Instant,
}

impl Batch {
    fn new(start: u64) -> Self {
        Self { start, end: start, buffers: Vec::new(), since: Instant::now() }
    }

    fn push(&mut self, bytes: Bytes) {
        if self.buffers.is_empty() {
            self.since = Instant::now();
        }
        self.end += bytes.len() as u64;
        self.buffers.push(bytes);
    }

    fn is_full(&self) -> bool {
        self.end - self.start >= WRITE as u64 || self.buffers.len() >= MAX_BUFFERS
    }

    /// The buffers with the bytes from `start` to `end`.
    fn slice(&self, start: u64, end: u64) -> Vec<Bytes> {
        let mut position = self.start;
        let slices = self.buffers.iter().map(|buffer| {
            let offset = |at: u64| usize::try_from(at.saturating_sub(position)).unwrap_or(usize::MAX).min(buffer.len());
            let slice = buffer.slice(offset(start)..offset(end));
            position += buffer.len() as u64;
            slice
        });
        slices.filter(|slice| !slice.is_empty()).collect()
    }
}

impl Download<'_> {
    /// Reads a body and writes what is missing of it.
    pub(super) async fn read_body(
        &self,
        opened: Opened,
        destination: Destination,
        received: &mut u64,
    ) -> Result<(), Problem> {
        let mut batch = Batch::new(opened.part.start);
        let read = self.read_chunks(opened, &mut batch, destination, received).await;
        // What came before an error is kept.
        self.write(&mut batch, destination, received)?;
        read
    }

    async fn read_chunks(
        &self,
        opened: Opened,
        batch: &mut Batch,
        destination: Destination,
        received: &mut u64,
    ) -> Result<(), Problem> {
        let (settings, limit) = (&self.context.settings, self.limit()?);
        let Opened { mut response, url, .. } = opened;
        // Only time spent waiting for the network counts: a slow disk is not a slow server.
        let (mut silent, mut waited, mut in_window) = (Duration::ZERO, Duration::ZERO, 0);
        while self.is_wanted(destination, batch.end) {
            let patience = settings.stall.saturating_sub(silent);
            let patience = if batch.buffers.is_empty() { patience } else { patience.min(MAX_DELAY) };
            let started = Instant::now();
            let chunk = timeout(patience, response.chunk()).await;
            let elapsed = started.elapsed();
            (silent, waited) = (silent + elapsed, waited + elapsed);
            let chunk = match chunk {
                Err(_) if batch.buffers.is_empty() => return Err(Problem::Stalled(host(&url))),
                Err(_) => {
                    self.write(batch, destination, received)?;
                    continue;
                }
                Ok(Err(error)) => return Err(Problem::Connection { host: host(&url), source: error.into() }),
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(chunk))) => chunk,
            };
            let length = chunk.len() as u64;
            self.budget.add_received(length);
            if batch.end.saturating_add(length) > limit {
                return Err(Problem::NoSpace { needed: batch.end.saturating_add(length), free: limit });
            }
            batch.push(chunk);
            (silent, in_window) = (Duration::ZERO, in_window + length);
            if batch.is_full() || batch.since.elapsed() >= MAX_DELAY {
                let hashed_next = self.write(batch, destination, received)?;
                if let Some(follower) = self.state.follower.as_ref().filter(|_| hashed_next) {
                    follower.has_room().await;
                }
            }
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

    /// The maximum number of bytes to write, if the size is unknown: that in the catalog, otherwise the free space.
    fn limit(&self) -> Result<u64, Problem> {
        if self.state.is_size_known() {
            return Ok(u64::MAX);
        }
        let space = space(&self.folder).map_err(Problem::disk("reading the free space"))?;
        let free = space.free.saturating_sub(self.context.settings.keep_free);
        Ok(self.model.largest().map_or(free, |largest| largest.min(free)))
    }

    /// Whether bytes after `position` are missing. Another connection may have taken the second half of the segment.
    fn is_wanted(&self, destination: Destination, position: u64) -> bool {
        self.state.segments().is_missing_after(destination.segment(), position)
    }

    /// Writes the bytes that are missing, counts them as received and empties the batch. Returns whether they were at
    /// the first gap, so that they can be hashed.
    fn write(&self, batch: &mut Batch, destination: Destination, received: &mut u64) -> Result<bool, Problem> {
        let next = Batch::new(batch.end);
        let batch = std::mem::replace(batch, next);
        let (mut at, mut hashed_next) = (batch.start, false);
        loop {
            let missing = self.state.segments().missing_in(destination.segment(), at, batch.end);
            let Some(claim) = missing else { return Ok(hashed_next) };
            let buffers = batch.slice(claim.start, claim.end);
            write_all_at(&self.part, &buffers, claim.start).map_err(Problem::disk("writing the partial file"))?;
            let (is_first_gap, contiguous) = {
                let mut segments = self.state.segments();
                let first_gap = segments.contiguous();
                segments.advance(claim.id, claim.end - claim.start);
                (first_gap == claim.start, segments.contiguous())
            };
            self.progress.add_received(claim.end - claim.start);
            *received += claim.end - claim.start;
            if let Some(follower) = self.state.follower.as_ref().filter(|_| is_first_gap) {
                follower.add(claim.start, buffers, contiguous);
                hashed_next = true;
            }
            at = claim.end;
        }
    }
}

/// Writes buffers one after the other, in as few system calls as possible.
fn write_all_at(file: &File, buffers: &[Bytes], mut position: u64) -> io::Result<()> {
    if let [buffer] = buffers {
        return file.write_all_at(buffer, position);
    }
    let mut slices: Vec<_> = buffers.iter().map(|buffer| IoSlice::new(buffer)).collect();
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        match rustix::io::pwritev(file, slices, position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                position += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_gives_any_part_of_its_buffers() {
        let mut batch = Batch::new(100);
        for text in ["abc", "", "defg", "h"] {
            batch.push(Bytes::from_static(text.as_bytes()));
        }
        assert_eq!((batch.start, batch.end), (100, 108));
        for start in 0..=8 {
            for end in start..=8 {
                let slice = batch.slice(100 + start as u64, 100 + end as u64);
                assert_eq!(slice.concat(), b"abcdefgh"[start..end], "{start}..{end}");
            }
        }
    }
}

//! The missing bytes of a file, and which connection downloads them. Plain data, without I/O.

/// A segment is not split into smaller halves than this, because each request costs a round trip.
const MIN_SPLIT: u64 = 16 * 1024 * 1024;
/// With larger segments, hashing, which stops at the first gap, would fall far behind.
const MAX_SEGMENT: u64 = 128 * 1024 * 1024;
/// Segments per connection: several, so that all connections finish at about the same time.
const PER_CONNECTION: u64 = 8;

/// The size of a file while it is unknown: its one segment has no end.
pub(crate) const UNKNOWN_SIZE: u64 = u64::MAX;

/// The missing ranges of a file, ordered by position.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    gaps: Vec<Gap>,
    total: u64,
    last_id: u64,
}

#[derive(Debug)]
struct Gap {
    id: u64,
    next: u64,
    end: u64,
    claimed: bool,
}

/// A range claimed by a connection. [`Segments::claim`] may split it later; see [`Segments::left`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Id of the segment.
    pub(crate) id: u64,
    /// Its first missing byte.
    pub(crate) start: u64,
    /// Position after its last byte.
    pub(crate) end: u64,
}

impl Segments {
    /// Creates the segments of a file of `total` bytes, of which the ranges `gaps` are missing.
    pub(crate) fn new(total: u64, gaps: &[(u64, u64)], connections: usize) -> Self {
        let connections = connections.max(1) as u64;
        let size = match connections {
            // Segments only help several connections, and need a known end.
            1 => u64::MAX,
            _ if total == UNKNOWN_SIZE => u64::MAX,
            _ => (total / (connections * PER_CONNECTION)).clamp(MIN_SPLIT, MAX_SEGMENT),
        };
        let mut segments = Self { gaps: Vec::new(), total, last_id: 0 };
        for (start, end) in gaps {
            let mut next = *start;
            while next < *end {
                let stop = end.min(&next.saturating_add(size)).to_owned();
                segments.insert(segments.gaps.len(), next, stop, false);
                next = stop;
            }
        }
        segments
    }

    fn insert(&mut self, index: usize, next: u64, end: u64, claimed: bool) -> Claim {
        self.last_id += 1;
        self.gaps.insert(index, Gap { id: self.last_id, next, end, claimed });
        Claim { id: self.last_id, start: next, end }
    }

    /// Claims the first unclaimed segment; if there is none, the second half of the largest one.
    pub(crate) fn claim(&mut self) -> Option<Claim> {
        if let Some(gap) = self.gaps.iter_mut().find(|gap| !gap.claimed) {
            gap.claimed = true;
            return Some(Claim { id: gap.id, start: gap.next, end: gap.end });
        }
        let largest = self.gaps.iter().enumerate().max_by_key(|(_, gap)| gap.end - gap.next);
        let (index, gap) = largest.filter(|(_, gap)| gap.end - gap.next >= 2 * MIN_SPLIT && gap.end != UNKNOWN_SIZE)?;
        let (middle, end) = (gap.next + (gap.end - gap.next) / 2, gap.end);
        self.gaps[index].end = middle;
        Some(self.insert(index + 1, middle, end, true))
    }

    /// Makes one segment of each missing range.
    pub(crate) fn unite(&mut self) {
        *self = Self::new(self.total, &self.gaps(), 1);
    }

    /// Whether several connections can download at once.
    pub(crate) fn is_divisible(&self) -> bool {
        let size = |gap: &Gap| gap.end - gap.next;
        self.is_size_known() && (self.gaps.len() > 1 || self.gaps.iter().any(|gap| size(gap) >= 2 * MIN_SPLIT))
    }

    /// Bytes of this segment still to be written.
    pub(crate) fn left(&self, id: u64) -> u64 {
        self.gaps.iter().find(|gap| gap.id == id).map_or(0, |gap| gap.end - gap.next)
    }

    /// Marks `count` bytes of a segment as written. Complete segments are removed.
    pub(crate) fn advance(&mut self, id: u64, count: u64) {
        if let Some(gap) = self.gaps.iter_mut().find(|gap| gap.id == id) {
            gap.next += count;
        }
        self.gaps.retain(|gap| gap.next < gap.end);
    }

    /// The first missing range within `start..end`, of one segment or of any.
    pub(crate) fn missing_in(&self, segment: Option<u64>, start: u64, end: u64) -> Option<Claim> {
        let mut gaps = self.gaps.iter().filter(|gap| segment.is_none_or(|id| id == gap.id));
        let gap = gaps.find(|gap| gap.next < end && gap.end > start)?;
        (gap.next >= start).then_some(Claim { id: gap.id, start: gap.next, end: gap.end.min(end) })
    }

    /// Whether bytes at or after `position` are missing, of one segment or of any.
    pub(crate) fn is_missing_after(&self, segment: Option<u64>, position: u64) -> bool {
        let mut gaps = self.gaps.iter().filter(|gap| segment.is_none_or(|id| id == gap.id));
        gaps.any(|gap| gap.end > position)
    }

    /// Releases a segment; its missing bytes can be claimed again.
    pub(crate) fn release(&mut self, id: u64) {
        if let Some(gap) = self.gaps.iter_mut().find(|gap| gap.id == id) {
            gap.claimed = false;
        }
    }

    /// Whether bytes are there and only those after them are missing.
    pub(crate) fn lacks_only_the_end(&self) -> bool {
        matches!(self.gaps()[..], [(start, end)] if start > 0 && end == self.total)
    }

    /// Ends a file whose size is unknown or wrong at the last byte written.
    pub(crate) fn end_here(&mut self) {
        self.total = self.contiguous();
        self.gaps.clear();
    }

    /// Whether the size of the file is known.
    pub(crate) fn is_size_known(&self) -> bool {
        self.total != UNKNOWN_SIZE
    }

    /// Size of the file in bytes, or [`UNKNOWN_SIZE`].
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Number of bytes before the first gap.
    pub(crate) fn contiguous(&self) -> u64 {
        self.gaps.first().map_or(self.total, |gap| gap.next)
    }

    /// Number of bytes that are there.
    pub(crate) fn written(&self) -> u64 {
        self.total - self.missing()
    }

    /// Number of missing bytes.
    pub(crate) fn missing(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.end - gap.next).sum()
    }

    /// The missing ranges; adjacent ones are merged.
    pub(crate) fn gaps(&self) -> Vec<(u64, u64)> {
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for gap in &self.gaps {
            match merged.last_mut() {
                Some((_, end)) if *end == gap.next => *end = gap.end,
                _ => merged.push((gap.next, gap.end)),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_downloaded_once_despite_failures() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let total = random.u64(0..2_000_000_000);
            let connections = random.usize(1..6);
            let mut segments = Segments::new(total, &[(0, total)], connections);
            let (mut written, mut claims) = (0, Vec::new());
            for _ in 0..20_000 {
                if claims.len() < connections
                    && let Some(claim) = segments.claim()
                {
                    claims.push(claim.id);
                }
                let Some(index) = (!claims.is_empty()).then(|| random.usize(..claims.len())) else { break };
                let id = claims[index];
                let count = segments.left(id).min(random.u64(1..40_000_000));
                segments.advance(id, count);
                written += count;
                assert!(segments.contiguous() <= written && segments.missing() == total - written);
                if random.u8(..10) == 0 || segments.left(id) == 0 {
                    segments.release(id);
                    claims.swap_remove(index);
                }
                if random.u8(..50) == 0 {
                    // As after a restart, from the journal.
                    segments = Segments::new(total, &segments.gaps(), connections);
                    claims.clear();
                }
            }
            assert_eq!((written, segments.missing(), segments.contiguous()), (total, 0, total));
        }
    }

    #[test]
    fn largest_segment_is_split_when_none_is_left() {
        let total = 64 * 1024 * 1024;
        let mut segments = Segments::new(total, &[(0, total)], 1);
        let first = segments.claim().expect("one segment");
        assert_eq!((first.start, first.end), (0, total));
        let second = segments.claim().expect("its half");
        assert_eq!((second.start, second.end, segments.left(first.id)), (total / 2, total, total / 2));
        let quarters: Vec<_> = std::iter::from_fn(|| segments.claim()).collect();
        assert_eq!(quarters.len(), 2, "segments were split into halves smaller than 16 MiB: {quarters:?}");
        assert_eq!(segments.gaps(), [(0, total)]);
    }

    #[test]
    fn missing_range_within_a_part_is_found() {
        let segments = Segments::new(100, &[(10, 20), (30, 100)], 1);
        for (start, end, expected) in
            [(0, 10, None), (0, 15, Some((10, 15))), (0, 100, Some((10, 20))), (20, 30, None), (20, 40, Some((30, 40)))]
        {
            let found = segments.missing_in(None, start, end).map(|claim| (claim.start, claim.end));
            assert_eq!(found, expected, "{start}..{end}");
        }
        assert_eq!((segments.written(), segments.missing()), (20, 80));
    }

    #[test]
    fn body_without_length_ends_at_eof() {
        let mut segments = Segments::new(u64::MAX, &[(0, u64::MAX)], 4);
        let claim = segments.claim().expect("one segment");
        assert_eq!((claim.end, segments.claim()), (u64::MAX, None));
        segments.advance(claim.id, 1000);
        segments.end_here();
        assert_eq!((segments.total(), segments.contiguous(), segments.missing()), (1000, 1000, 0));
    }
}

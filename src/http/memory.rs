//! How much memory bodies that come in and answers that wait to be read may take, all clients together.
//!
//! Heads and plain requests are not counted: they are bounded for each connection, and connections are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes of an answer that are no more than its connection may take in any case.
const UNCOUNTED: usize = 8 * 1024;

/// Bytes that are held, and how many may be.
#[derive(Debug)]
pub struct Memory {
    limit: usize,
    held: AtomicUsize,
}

impl Memory {
    /// Room for `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicUsize::new(0) })
    }

    /// Bytes that are held until the last of them is sent; `None` = there is no room for them. A few are not counted, so
    /// that they can be answered whatever others take.
    #[must_use]
    pub fn keep(self: &Arc<Self>, bytes: Vec<u8>) -> Option<bytes::Bytes> {
        if bytes.len() <= UNCOUNTED {
            return Some(bytes.into());
        }
        let mut share = self.share();
        share.hold(bytes.capacity()).then(|| share.keep(bytes))
    }

    /// A share without a byte yet.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> Share {
        Share { memory: Arc::clone(self), bytes: 0 }
    }
}

/// What one request or connection holds, until it is dropped.
#[derive(Debug)]
pub struct Share {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Share {
    /// Holds `bytes` in all from now on, if there is room for them; else as many as before.
    #[must_use]
    pub fn hold(&mut self, bytes: usize) -> bool {
        let Memory { limit, held } = &*self.memory;
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            if held.fetch_add(more, Relaxed).saturating_add(more) > *limit {
                held.fetch_sub(more, Relaxed);
                return false;
            }
        } else {
            held.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
        true
    }

    /// Bytes that stay held as long as somebody has them.
    #[must_use]
    pub fn keep(self, bytes: Vec<u8>) -> bytes::Bytes {
        bytes::Bytes::from_owner(Held { bytes, _share: self })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Relaxed);
    }
}

struct Held {
    bytes: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back() {
        let memory = Memory::new(100);
        let (mut first, mut second) = (memory.share(), memory.share());
        assert!(first.hold(60) && !second.hold(41) && second.hold(40));
        assert!(first.hold(10) && second.hold(90) && !first.hold(11));
        drop(second);
        assert!(first.hold(100));
        let kept = first.keep(vec![1, 2, 3]);
        assert!(kept.len() == 3 && !memory.share().hold(1));
        drop(kept);
        assert!(memory.share().hold(100));
        assert!(memory.keep(vec![0; UNCOUNTED]).is_some() && memory.keep(vec![0; UNCOUNTED + 1]).is_none());
        let memory = Memory::new(3 * UNCOUNTED);
        let keep = || memory.keep(vec![0; 2 * UNCOUNTED]);
        let kept = keep();
        assert!(kept.is_some() && keep().is_none() && memory.keep(Vec::new()).is_some());
        drop(kept);
        assert!(keep().is_some());
    }
}

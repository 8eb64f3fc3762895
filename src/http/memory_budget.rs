//! A limit on the memory that request bodies being received and responses waiting to be sent may use, over all clients.
//!
//! The buffers of connections are not counted: they are bounded per connection, and connections are limited.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Responses up to this many bytes are not counted, so that they can be sent whatever other clients hold.
const UNCOUNTED: usize = 8 * 1024;

/// A budget in bytes; a permit of the semaphore is one byte.
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<Semaphore>);

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))))
    }

    /// A reservation of no bytes yet.
    pub(crate) fn reserve(&self) -> Reservation {
        Reservation { budget: Arc::clone(&self.0), permit: None }
    }

    /// Bytes that stay counted until they are dropped; `None` if the budget has no room for them.
    pub(crate) fn try_bytes(&self, bytes: Vec<u8>) -> Option<Bytes> {
        if bytes.len() <= UNCOUNTED {
            return Some(bytes.into());
        }
        let mut reservation = self.reserve();
        reservation.try_resize(bytes.capacity()).then(|| reservation.into_bytes(bytes))
    }
}

/// The bytes that one request or response holds until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Reservation {
    /// Changes the reservation to `bytes` in all. If the budget has no room for more, it stays as it was.
    pub(crate) fn try_resize(&mut self, bytes: usize) -> bool {
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if bytes <= held {
            drop(self.permit.as_mut().and_then(|permit| permit.split(held - bytes)));
            return true;
        }
        let Ok(more) = u32::try_from(bytes - held) else { return false };
        let Ok(more) = Arc::clone(&self.budget).try_acquire_many_owned(more) else { return false };
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        true
    }

    /// Bytes that keep this reservation until they are dropped.
    pub(crate) fn into_bytes(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(ReservedBytes { bytes, _reservation: self })
    }
}

struct ReservedBytes {
    bytes: Vec<u8>,
    _reservation: Reservation,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_share_the_budget_and_return_it() {
        let budget = MemoryBudget::new(100);
        let (mut first, mut second) = (budget.reserve(), budget.reserve());
        assert!(first.try_resize(60) && !second.try_resize(41) && second.try_resize(40));
        assert!(first.try_resize(10) && second.try_resize(90) && !first.try_resize(11));
        drop(second);
        assert!(first.try_resize(100) && !budget.reserve().try_resize(1));
        drop(first.into_bytes(vec![1, 2, 3]));
        assert!(budget.reserve().try_resize(100));
    }

    #[test]
    fn small_responses_are_not_counted() {
        let budget = MemoryBudget::new(100);
        assert!(budget.try_bytes(vec![0; UNCOUNTED]).is_some() && budget.try_bytes(vec![0; UNCOUNTED + 1]).is_none());
        let budget = MemoryBudget::new(3 * UNCOUNTED);
        let large = || budget.try_bytes(vec![0; 2 * UNCOUNTED]);
        let held = large();
        assert!(held.is_some() && large().is_none() && budget.try_bytes(Vec::new()).is_some());
        drop(held);
        assert!(large().is_some());
    }
}

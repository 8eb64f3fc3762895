//! How often each client may ask. Off, unless it is set.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::clock::{Clock, MonotonicClock};
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

/// Half a MiB, however many clients there are. Two clients in one cell share what one may; which do, nobody outside can
/// find out.
const CELLS: usize = 1 << 16;

/// A limit of requests for each client.
pub struct Rate(RateLimiter<IpAddr, Cells, MonotonicClock>);

impl Rate {
    /// So many in a second, `burst` at once.
    #[must_use]
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let cells = (0..CELLS).map(|_| InMemoryState::default()).collect();
        let cells = Cells { cells, hasher: RandomState::new() };
        Self(RateLimiter::new(Quota::per_second(per_second).allow_burst(burst), cells, MonotonicClock))
    }

    /// Counts a request.
    ///
    /// # Errors
    /// There were too many; gives the seconds until there may be one again.
    pub fn count(&self, client: IpAddr) -> Result<(), u64> {
        self.0.check_key(&client).map_err(|until| {
            let wait = until.wait_time_from(MonotonicClock.now());
            u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX).max(1)
        })
    }
}

impl std::fmt::Debug for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rate")
    }
}

/// The crate's own stores for many keys grow with them.
struct Cells {
    cells: Box<[InMemoryState]>,
    hasher: RandomState,
}

impl StateStore for Cells {
    type Key = IpAddr;

    fn measure_and_replace<T, F, E>(&self, client: &IpAddr, decide: F) -> Result<T, E>
    where
        F: Fn(Option<governor::nanos::Nanos>) -> Result<(T, governor::nanos::Nanos), E>,
    {
        let cell = self.hasher.hash_one(client) as usize % CELLS;
        self.cells[cell].measure_and_replace(&NotKeyed::NonKey, decide)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_burst() {
        let rate = Rate::new(NonZeroU32::MIN, NonZeroU32::MIN.saturating_add(2));
        let client = |last: u8| IpAddr::from([192, 0, 2, last]);
        for _ in 0..3 {
            assert_eq!(rate.count(client(1)), Ok(()));
        }
        assert_eq!(rate.count(client(1)), Err(1));
        // Two of three clients may share a cell, by chance of one in ten thousand; not all of ten.
        assert!((2..12).any(|last| rate.count(client(last)).is_ok()));
    }
}

//! How long to wait before an attempt is repeated.

use std::time::Duration;

/// `first`, doubled for each further failure, at most `max`. Callers add jitter, so that what failed together is not
/// retried together.
pub(crate) fn exponential(first: Duration, failures: u32, max: Duration) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let second = Duration::from_secs(1);
        let delays = [0, 1, 2, 3, 4, u32::MAX].map(|failures| exponential(second, failures, 10 * second).as_secs());
        assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
        assert_eq!(exponential(Duration::MAX, 1, Duration::MAX), Duration::MAX);
    }
}

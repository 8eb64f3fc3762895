//! The pauses between attempts.

use std::time::Duration;

/// Longest pause between two rounds, before jitter, unless `Retry-After` is longer.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The pause before the next attempt. Jitter keeps machines that failed together from retrying together.
#[must_use]
pub fn pause(failures: u32, retry_after: Option<Duration>) -> Duration {
    let base = match failures {
        0 => Duration::from_millis(250),
        failures => Duration::from_secs(1 << failures.min(10)).min(MAX_PAUSE),
    };
    base.mul_f64(0.5 + fastrand::f64()).max(retry_after.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_limited_and_respects_retry_after() {
        for failures in 0..100 {
            let longest = MAX_PAUSE.mul_f64(1.5);
            assert!(pause(failures, None) <= longest && pause(failures, None) >= Duration::from_millis(125));
            assert!(pause(failures, Some(Duration::from_secs(100))) >= Duration::from_secs(100));
        }
    }
}

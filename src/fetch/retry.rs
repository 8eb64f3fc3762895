//! The pauses between attempts, and the limits of what one file may cost.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::error::Problem;
use crate::base::backoff::exponential;

/// Longest pause between two rounds, before jitter, unless `Retry-After` is longer.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Time after the last progress in which a pause that a server asks for must end: twice the window over which the
/// Hugging Face hub counts requests.
const MAX_ASKED: Duration = Duration::from_secs(600);
/// Time that a host has to respond once the time for hosts that do not respond is over.
const MIN_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The same if it did not respond to the previous request, so that a dead host with many files delays a boot little.
const MIN_HEAD_TIMEOUT_OF_SILENT: Duration = Duration::from_secs(3);
/// Time that a server has to respond in any case; hubs may query their storage first.
const MAX_HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Multiple of a file's size that may be received for it: once in ranges, once as a whole, and what faults cut off.
const MAX_COPIES: u64 = 3;
/// Bytes that may be received for a file in any case.
const MIN_BYTES: u64 = 64 * 1024 * 1024;

/// The pause before the next attempt. Jitter keeps machines that failed together from retrying together.
pub(crate) fn pause(failures: u32, retry_after: Option<Duration>) -> Duration {
    let base = match failures {
        0 => Duration::from_millis(250),
        failures => exponential(Duration::from_secs(1), failures, MAX_PAUSE),
    };
    let asked = retry_after.map(|asked| asked + Duration::from_secs(1).max(asked / 10).mul_f64(fastrand::f64()));
    base.mul_f64(0.5 + fastrand::f64()).max(asked.unwrap_or_default())
}

/// The limits of one file: attempts, time and bytes.
///
/// A host that accepts connections and says nothing, or does not answer at all, seldom recovers, and each attempt takes
/// as long as one waits. It gets half of the time that refused connections, unknown names and statuses such as 503 get.
#[derive(Debug)]
pub(crate) struct Budget {
    tries: u32,
    wait: Duration,
    failures: u32,
    /// Time of the last progress, at first that of the start of the pull: outages share one time budget.
    progressed_at: Instant,
    received: AtomicU64,
}

impl Budget {
    /// Creates the limits: `tries` consecutive attempts without progress, and `wait` for servers to recover.
    pub(crate) fn new(tries: u32, wait: Duration, started: Instant) -> Self {
        Self { tries, wait, failures: 0, progressed_at: started, received: AtomicU64::new(0) }
    }

    /// Begins with another URL, or another way to use it.
    pub(crate) fn begin_url(&mut self) {
        self.failures = 0;
    }

    /// Counts an attempt. Returns true once `tries` consecutive ones made no progress.
    pub(crate) fn failed(&mut self, progressed: bool) -> bool {
        if progressed {
            (self.failures, self.progressed_at) = (0, Instant::now());
        } else {
            self.failures += 1;
        }
        self.failures >= self.tries
    }

    /// Counts bytes of responses, whether they are written or not.
    pub(crate) fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    /// Bytes counted so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Sets that number, for bytes that do not count.
    pub(crate) fn set_received(&self, bytes: u64) {
        self.received.store(bytes, Relaxed);
    }

    /// Whether all URLs of a file of `total` bytes may be tried once more: servers have time to recover.
    pub(crate) fn allows_round(&self, total: u64) -> bool {
        self.progressed_at.elapsed() < self.wait && self.allows_bytes(total)
    }

    /// Whether the URL that failed with this problem may be tried once more. How often is limited by `failed`.
    pub(crate) fn allows_attempt(&self, problem: &Problem, total: u64) -> bool {
        let elapsed = self.progressed_at.elapsed();
        let is_silent_for_long = matches!(problem, Problem::Silent(_)) && elapsed >= self.wait / 2;
        let asks_for_long = problem.retry_after().is_some_and(|asked| elapsed + asked > MAX_ASKED.max(self.wait));
        !is_silent_for_long && !asks_for_long && self.allows_bytes(total)
    }

    fn allows_bytes(&self, total: u64) -> bool {
        self.received.load(Relaxed) <= total.saturating_mul(MAX_COPIES).max(MIN_BYTES)
    }

    /// Waits before the next attempt.
    pub(crate) async fn pause(&self, problem: &Problem) {
        tokio::time::sleep(pause(self.failures, problem.retry_after())).await;
    }

    /// Time that a host has to respond; `has_responded`: whether it did so the last time. A host that works may be
    /// slow: hubs query their storage first.
    pub(crate) fn head_timeout(&self, has_responded: Option<bool>) -> Duration {
        let least = match has_responded {
            Some(true) => MAX_HEAD_TIMEOUT,
            Some(false) => MIN_HEAD_TIMEOUT_OF_SILENT,
            None => MIN_HEAD_TIMEOUT,
        };
        (self.wait / 2).saturating_sub(self.progressed_at.elapsed()).clamp(least, MAX_HEAD_TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_limited_and_respects_retry_after() {
        for failures in 0..100 {
            let longest = MAX_PAUSE.mul_f64(1.5);
            assert!(pause(failures, None) <= longest && pause(failures, None) >= Duration::from_millis(125));
            let asked = pause(failures, Some(Duration::from_secs(100)));
            assert!(asked >= Duration::from_secs(100) && asked <= Duration::from_secs(110), "{asked:?}");
        }
    }

    #[test]
    fn attempts_and_bytes_are_limited() {
        let mut budget = Budget::new(2, Duration::from_secs(3600), Instant::now());
        assert_eq!(
            [false, true, false, false].map(|progressed| budget.failed(progressed)),
            [false, false, false, true]
        );
        let problem = Problem::Incomplete("host".into());
        budget.add_received(MIN_BYTES);
        assert!(budget.allows_attempt(&problem, 1) && budget.allows_round(1));
        budget.add_received(1);
        assert!(!budget.allows_attempt(&problem, 1) && !budget.allows_round(1));
        assert!(budget.allows_attempt(&problem, u64::MAX));
        assert!(budget.allows_attempt(&Problem::Silent("host".into()), u64::MAX));
        let asked = |seconds| Problem::Status {
            status: 429,
            host: "host".into(),
            hint: String::new(),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let budget = Budget::new(2, Duration::ZERO, Instant::now());
        assert!(budget.allows_attempt(&asked(300), 1) && !budget.allows_attempt(&asked(601), 1));
        assert!(!budget.allows_attempt(&Problem::Silent("host".into()), 1) && !budget.allows_round(1));
    }
}

//! A time without a working session: what the log says of it, and how long to wait between two attempts.

use std::fmt::Display;
use std::time::{Duration, Instant};

use tracing::{info, warn};

/// First wait after a failure; it doubles from there, up to the poll interval or the longest wait.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest wait, whatever the poll interval: a thousand replicas then come back at about two hundred a second.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A line that says that it lasts is logged this often.
const REMIND_AFTER: Duration = Duration::from_secs(30);

/// A time without a working session.
pub struct Outage {
    since: Instant,
    attempts: u32,
    logged: Instant,
    /// The database is there, and what it should hold is not.
    unreadable: bool,
}

impl Default for Outage {
    fn default() -> Self {
        let now = Instant::now();
        Self { since: now, attempts: 0, logged: now, unreadable: false }
    }
}

impl Outage {
    /// One more attempt was in vain. Logs that, not too often, and says how long to wait: full jitter, so that a
    /// thousand replicas do not come back in step.
    pub fn failed(&mut self, error: &dyn Display, unreadable: bool, poll_interval: Duration) -> Duration {
        let another = std::mem::replace(&mut self.unreadable, unreadable) != unreadable;
        if self.attempts == 0 || another || self.logged.elapsed() >= REMIND_AFTER {
            self.logged = Instant::now();
            let what = if unreadable { "the catalog can't be read" } else { "the database is away" };
            let (attempts, away) = (self.attempts, self.since.elapsed());
            warn!(%error, attempts, ?away, "{what}; serving what there is and trying again");
        }
        let limit = FIRST_BACKOFF.saturating_mul(1 << self.attempts.min(16)).min(poll_interval).min(LONGEST_BACKOFF);
        self.attempts = self.attempts.saturating_add(1);
        limit.mul_f64(fastrand::f64())
    }

    /// There is a session again.
    pub fn over(self) {
        info!(attempts = self.attempts, away = ?self.since.elapsed(), "the database is back, in step again");
    }
}

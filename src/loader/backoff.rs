//! Delays between attempts to reconnect, and what is logged about an outage.

use std::fmt::Display;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::base::backoff::exponential;

/// Upper bound of the first delay; it doubles from there, up to the poll interval or [`MAX_DELAY`].
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Upper bound of every delay, whatever the poll interval: a thousand replicas then reconnect at about 200 per second.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// Interval at which a lasting outage is logged again.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

const EXPLAIN: &str = "; run `model-catalog check` with the same settings, which says what to change";

/// What is wrong with the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutageKind {
    /// It can't be reached, or the connection was lost.
    Unavailable,
    /// It can be reached, but rejects the user, the password, the database name or the lack of a right.
    Rejected,
    /// It accepts the connection, but the catalog can't be read: an object is missing, forbidden or of another type.
    Unreadable,
    /// An upstream has a snapshot that can't be served.
    Refused,
}

/// Exponential backoff with full jitter, so that a thousand replicas do not reconnect at the same time.
pub(crate) struct ReconnectBackoff {
    /// The name of the source in log lines.
    source: &'static str,
    outage: Option<Outage>,
}

/// A time without a usable source.
struct Outage {
    since: Instant,
    attempts: u32,
    logged_at: Instant,
    kind: OutageKind,
}

impl ReconnectBackoff {
    /// No outage yet. Log lines call the source `source`, such as "database".
    pub(crate) fn new(source: &'static str) -> Self {
        Self { source, outage: None }
    }

    /// Records a failed attempt, logs it if it is the first, of another kind or the last log line is old, and returns
    /// how long to wait before the next one. `serving` tells whether there is a snapshot to serve.
    pub(crate) fn next_delay(
        &mut self,
        error: &dyn Display,
        kind: OutageKind,
        serving: bool,
        poll_interval: Duration,
    ) -> Duration {
        let now = Instant::now();
        let outage = self.outage.get_or_insert(Outage { since: now, attempts: 0, logged_at: now, kind });
        let kind_changed = std::mem::replace(&mut outage.kind, kind) != kind;
        if outage.attempts == 0 || kind_changed || outage.logged_at.elapsed() >= LOG_INTERVAL {
            outage.logged_at = now;
            let text = describe(self.source, kind, serving);
            match outage.attempts {
                0 => warn!(%error, "{text}"),
                attempts => {
                    let lasted_seconds = outage.since.elapsed().as_secs_f64();
                    warn!(%error, attempts, lasted_seconds, "{text}");
                }
            }
        }
        let limit = exponential(FIRST_DELAY, outage.attempts, poll_interval.min(MAX_DELAY));
        outage.attempts = outage.attempts.saturating_add(1);
        limit.mul_f64(fastrand::f64())
    }

    /// Records and logs that there is a usable source.
    pub(crate) fn reset(&mut self) {
        let source = self.source;
        match self.outage.take() {
            Some(Outage { attempts, since, .. }) => {
                let lasted_seconds = since.elapsed().as_secs_f64();
                info!(attempts, lasted_seconds, "the {source} is available, in sync again");
            }
            None => info!("connected to the {source}, in sync"),
        }
    }

    /// Whether the last attempt failed.
    pub(crate) fn is_active(&self) -> bool {
        self.outage.is_some()
    }
}

/// What is wrong, what is served meanwhile, and what to do.
fn describe(source: &str, kind: OutageKind, serving: bool) -> String {
    let (what, advice) = match kind {
        OutageKind::Unavailable => (format!("the {source} is unavailable"), ""),
        OutageKind::Rejected => (format!("the {source} rejects the connection"), EXPLAIN),
        OutageKind::Unreadable => ("the catalog can't be read".into(), EXPLAIN),
        OutageKind::Refused => (format!("the snapshot of the {source} is refused"), ""),
    };
    let meanwhile = if serving { "serving the last snapshot" } else { "there is no catalog to serve yet" };
    format!("{what}; {meanwhile}, retrying{advice}")
}

/// The interval varied by up to 20 %, so that replicas started together do not stay synchronized.
pub(crate) fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_smaller_limit_and_start_over_after_a_reset() {
        let mut backoff = ReconnectBackoff::new("database");
        for (poll_interval, limit) in [(Duration::from_secs(1), Duration::from_secs(1)), (Duration::MAX, MAX_DELAY)] {
            for attempt in 0..40 {
                let kind = if attempt % 2 == 0 { OutageKind::Unreadable } else { OutageKind::Unavailable };
                let delay = backoff.next_delay(&"refused", kind, true, poll_interval);
                let expected = FIRST_DELAY.saturating_mul(1 << attempt.min(20)).min(limit);
                assert!(delay <= expected && backoff.is_active(), "attempt {attempt}: {delay:?}");
            }
            backoff.reset();
            assert!(!backoff.is_active());
        }
    }
}

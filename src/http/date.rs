//! The `Date` header of responses.
//!
//! hyper's own cache is renewed only when the clock has passed the second that it holds, so after the clock was set
//! back it is ahead until then. This one is renewed whenever the second is another one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::HeaderValue;
use parking_lot::Mutex;

/// HTTP dates have four digits for the year.
const END_OF_YEAR_9999: u64 = 253_402_300_799;

/// The header of the current second, for one worker thread.
#[derive(Debug, Default)]
pub(super) struct DateCache(Mutex<Option<(u64, HeaderValue)>>);

impl DateCache {
    /// The date and time of the system clock; `None` if it is before 1970 or after the year 9999.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        self.header_at(SystemTime::now())
    }

    fn header_at(&self, now: SystemTime) -> Option<HeaderValue> {
        let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
        if now > END_OF_YEAR_9999 {
            return None;
        }
        // Only one thread ever locks it.
        let mut cached = self.0.lock();
        if let Some((_, header)) = cached.as_ref().filter(|(second, _)| *second == now) {
            return Some(header.clone());
        }
        let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
        let header = HeaderValue::try_from(text).ok()?;
        *cached = Some((now, header.clone()));
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_follows_the_clock_in_both_directions() {
        let cache = DateCache::default();
        let at = |seconds| cache.header_at(UNIX_EPOCH + Duration::from_secs(seconds));
        for (seconds, expected) in [
            (784_111_777, Some("Sun, 06 Nov 1994 08:49:37 GMT")),
            (784_111_778, Some("Sun, 06 Nov 1994 08:49:38 GMT")),
            (784_108_177, Some("Sun, 06 Nov 1994 07:49:37 GMT")),
            (END_OF_YEAR_9999, Some("Fri, 31 Dec 9999 23:59:59 GMT")),
            (END_OF_YEAR_9999 + 1, None),
        ] {
            assert_eq!(at(seconds), expected.map(HeaderValue::from_static), "{seconds}");
        }
        assert_eq!(cache.header_at(UNIX_EPOCH - Duration::from_secs(1)), None);
    }
}

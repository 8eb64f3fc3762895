//! What the headers of a response say about its body. They may be wrong: the size and the hash of a file decide whether
//! it is the right one.

use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use super::error::{Problem, host};

/// Upper limit for the pause that a server asks for: the window over which the Hugging Face hub counts requests.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// The limit of requests and its state: `"api";r=0;t=55`, in which `t` is the number of seconds until it is reset. The
/// Hugging Face hub sends it instead of `Retry-After`: <https://huggingface.co/docs/hub/rate-limits>.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The range of the file that a response body contains, from its headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BodyRange {
    /// Position of the first byte.
    pub(crate) start: u64,
    /// Position after the last byte, if known.
    pub(crate) end: Option<u64>,
    /// Size of the whole file, if known.
    pub(crate) total: Option<u64>,
    /// Whether the status was 206 (Partial Content).
    pub(crate) partial: bool,
    /// Entity tag or modification date, which identifies this version of the file.
    pub(crate) validator: Option<String>,
}

impl BodyRange {
    /// Whether the body has all bytes of the file, and their number is known.
    pub(crate) fn is_whole(&self) -> bool {
        self.start == 0 && self.end.is_some() && self.end == self.total
    }
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// A strong entity tag, otherwise the modification date. Equal validators mean equal bytes.
fn validator(headers: &HeaderMap) -> Option<String> {
    header(headers, ETAG).filter(|tag| tag.starts_with('"')).or_else(|| header(headers, LAST_MODIFIED))
}

/// Reads the range of a response body from its headers.
///
/// # Errors
/// It is a part, and the headers do not say which.
pub(crate) fn body_range(response: &Response, url: &Url) -> Result<BodyRange, Problem> {
    let headers = response.headers();
    let length = header(headers, CONTENT_LENGTH).and_then(|text| text.trim().parse().ok());
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let part = header(headers, CONTENT_RANGE).and_then(|text| content_range(&text));
        let part = part.filter(|part| length.is_none_or(|length| part.end == part.start.checked_add(length)));
        let part = part.map(|part| BodyRange { validator: validator(headers), ..part });
        return part.ok_or_else(|| Problem::Range(host(url)));
    }
    Ok(BodyRange { start: 0, end: length, total: length, partial: false, validator: validator(headers) })
}

/// The pause that the headers ask for.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let after = header(headers, RETRY_AFTER).and_then(|text| seconds_or_date(&text));
    after.or_else(|| header(headers, RATE_LIMIT).and_then(|text| rate_limit(&text)))
}

/// Parses `bytes FIRST-LAST/TOTAL`, in which `*` stands for an unknown total.
fn content_range(text: &str) -> Option<BodyRange> {
    let (unit, range) = text.trim().split_once(' ')?;
    let (range, total) = range.trim().split_once('/').filter(|_| unit.eq_ignore_ascii_case("bytes"))?;
    let (start, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (start.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    let end = last.checked_add(1)?;
    (start < end && total.is_none_or(|total| end <= total)).then_some(BodyRange {
        start,
        end: Some(end),
        total,
        partial: true,
        validator: None,
    })
}

/// Parses the seconds until the first exhausted limit is reset.
fn rate_limit(text: &str) -> Option<Duration> {
    let parameters = text.split(',').map(|limit| limit.split(';').map(str::trim));
    let value = |limit: &[&str], name| limit.iter().find_map(|one| one.strip_prefix(name)?.trim().parse::<u64>().ok());
    let limits: Vec<Vec<&str>> = parameters.map(Iterator::collect).collect();
    let exhausted = limits.iter().find(|limit| value(limit, "r=") == Some(0)).or_else(|| limits.first())?;
    value(exhausted, "t=").map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// Parses seconds or a date.
fn seconds_or_date(text: &str) -> Option<Duration> {
    let date = || httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok();
    let wait = text.trim().parse().ok().map(Duration::from_secs).or_else(date)?;
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_content_ranges_are_rejected() {
        let part = |start, end, total| Some(BodyRange { start, end: Some(end), total, partial: true, validator: None });
        for (text, expected) in [
            ("bytes 0-0/1", part(0, 1, Some(1))),
            ("bytes 5-9/10", part(5, 10, Some(10))),
            ("bytes 5-9/*", part(5, 10, None)),
            (" bytes 5 - 9 / 10 ", part(5, 10, Some(10))),
            ("Bytes  0-0/1", part(0, 1, Some(1))),
            ("bytes 5-4/10", None),
            ("bytes 5-10/10", None),
            ("bytes */10", None),
            ("bytes -5/10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes 0-99999999999999999999/*", None),
            ("items 0-1/2", None),
            ("bytes 0-1", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), expected, "{text:?}");
        }
    }

    #[test]
    fn reset_of_a_rate_limit_is_read() {
        for (text, expected) in [
            ("\"api\";r=0;t=55", Some(55)),
            ("\"resolvers\"; r=0; t=7", Some(7)),
            ("\"pages\";r=3;t=9, \"api\";r=0;t=55", Some(55)),
            ("\"api\";t=100000", Some(300)),
            ("\"api\";r=0", None),
            ("\"api\";r=0;t=-1", None),
            ("", None),
        ] {
            assert_eq!(rate_limit(text), expected.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn retry_after_is_limited() {
        assert_eq!(seconds_or_date("7"), Some(Duration::from_secs(7)));
        assert_eq!(seconds_or_date("99999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(seconds_or_date("Fri, 31 Dec 9999 23:59:59 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(seconds_or_date("Thu, 01 Jan 1970 00:00:00 GMT"), None);
        assert_eq!((seconds_or_date("-1"), seconds_or_date("soon"), seconds_or_date("")), (None, None, None));
    }
}

//! Value parsers of the command line. Every error says what would be accepted.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use ipnet::IpNet;

use url::Url;

use crate::http::cors::Cors;

/// Longer durations have no use, and a deadline this far ahead can still be represented.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// Postgres' timeouts are at most 2^31 - 1 ms, which is 24.8 days.
const MAX_DATABASE_TIMEOUT: Duration = Duration::from_secs(24 * 24 * 60 * 60);
/// Postgres truncates names to NAMEDATALEN - 1 bytes, and notifications on a truncated channel would never arrive.
const MAX_CHANNEL_BYTES: usize = 63;

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = duration_or_zero(text)?;
    if duration.is_zero() { Err("it must be longer than zero, such as 500ms, 10s or 1h".into()) } else { Ok(duration) }
}

pub(crate) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number with a unit, such as 500ms, 10s or 1h"))?;
    if duration > MAX_DURATION {
        return Err("it must be at most 1year, such as 500ms, 10s or 1h".into());
    }
    Ok(duration)
}

/// A timeout of the database, to which it is sent as an `i32` in milliseconds.
pub(crate) fn database_timeout(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration > MAX_DATABASE_TIMEOUT {
        return Err("it must be at most 24days, such as 10s or 5m".into());
    }
    Ok(duration)
}

pub(crate) fn http_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text.trim()).ok().filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    url.ok_or_else(|| "write an http or https URL such as http://cache:8800".into())
}

pub(crate) fn number(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "write a whole number above 0, such as 1000".into())
}

pub(crate) fn rate(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| "write a whole number above 0, such as 100".into())
}

pub(crate) fn url_scheme(text: &str) -> Result<String, String> {
    // RFC 3986 §3.1. Otherwise `https://` would be accepted here, and every row rejected because of it.
    let is_scheme_char = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(is_scheme_char) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("write comma-separated schemes, such as https or http,https,s3".into())
    }
}

pub(crate) fn socket_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:3000, 0.0.0.0:3000 or [::]:3000".into())
}

pub(crate) fn header_name(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| "write the name of a header, such as x-forwarded-for".into())
}

pub(crate) fn cors(text: &str) -> Result<Cors, String> {
    if text == "*" {
        return Ok(Cors::Any);
    }
    // Browsers send origins without a path and a default port, in lower case. Any other spelling would never match.
    let origin = |text: &str| {
        let origin = Url::parse(text).ok()?.origin();
        (origin.is_tuple() && origin.ascii_serialization() == text).then(|| HeaderValue::from_str(text).ok()).flatten()
    };
    let origins = text.split(',').map(|text| origin(text.trim())).collect::<Option<_>>();
    let invalid = || "write comma-separated origins, such as https://example.org,http://localhost:8080, or *".into();
    origins.map(Cors::Only).ok_or_else(invalid)
}

pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let single_host = || text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse().or_else(|_| single_host());
    network.map_err(|_| "write comma-separated networks, such as 10.0.0.0/8,::1".into())
}

pub(crate) fn channel(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_CHANNEL_BYTES {
        return Err(format!("the name of a channel has 1 to {MAX_CHANNEL_BYTES} bytes"));
    }
    Ok(text.into())
}

pub(crate) fn log_filter(text: &str) -> Result<String, String> {
    let filter = text.parse::<tracing_subscriber::EnvFilter>();
    filter.map(|_| text.into()).map_err(|error| format!("{error}; write a level such as info, or target=level pairs"))
}

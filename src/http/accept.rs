//! What a client can read: `Accept` and `Accept-Encoding` (RFC 9110 §12.5).

use hyper::HeaderMap;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, HeaderName};

/// Whether `Accept-Encoding` gives gzip, or else `*`, a weight above 0.
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let weight = |encoding| weight(headers, &ACCEPT_ENCODING, encoding);
    weight("gzip").or_else(|| weight("*")).unwrap_or(0.0) > 0.0
}

/// Whether `Accept` names OpenMetrics, and `text/plain` with no higher weight.
pub(super) fn prefers_openmetrics(headers: &HeaderMap) -> bool {
    let weight = |media_type| weight(headers, &ACCEPT, media_type).unwrap_or(0.0);
    let openmetrics = weight("application/openmetrics-text");
    openmetrics > 0.0 && openmetrics >= weight("text/plain")
}

/// The highest weight that a header gives to a value; other parameters than `q` are ignored.
fn weight(headers: &HeaderMap, header: &HeaderName, wanted: &str) -> Option<f32> {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    let weights = values.flat_map(|value| value.split(',')).filter_map(|value| {
        let mut parts = value.split(';').map(str::trim);
        let is_wanted = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(wanted));
        let weight = parts.find_map(|parameter| parameter.strip_prefix("q=")?.parse().ok());
        is_wanted.then(|| weight.unwrap_or(1.0))
    });
    weights.reduce(f32::max)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn gzip_is_sent_to_clients_that_accept_it() {
        for (value, accepted) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("*", true),
            ("", false),
            ("identity", false),
            ("gzip;q=0, br", false),
            ("*, gzip;q=0", false),
            ("*;q=0, gzip", true),
            ("x-gzip", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]);
            assert_eq!(accepts_gzip(&headers), accepted, "{value}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn openmetrics_is_sent_to_clients_that_prefer_it() {
        for (value, preferred) in [
            // Prometheus 2.42.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                true,
            ),
            // Prometheus 3 with `scrape_protocols: [PrometheusText0.0.4, OpenMetricsText1.0.0]`.
            (
                "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 */*;q=0.1",
                false,
            ),
            ("Application/OpenMetrics-Text; version=1.0.0", true),
            ("text/plain, application/openmetrics-text", true),
            ("application/openmetrics-text;q=0", false),
            ("text/plain", false),
            ("*/*", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]);
            assert_eq!(prefers_openmetrics(&headers), preferred, "{value}");
        }
        assert!(!prefers_openmetrics(&HeaderMap::new()));
    }
}

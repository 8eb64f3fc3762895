//! The log of slow and failed requests, with what proxies and tracing systems call them. Off unless configured.

use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use tracing::warn;

use super::handlers::snapshot::allowed_wait;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum characters of a path or a header in a log line.
const MAX_CHARS: usize = 200;

/// The parts of a request's head that its log line has. Cloning them copies no bytes.
pub(super) struct LoggedRequest {
    /// The time from which on it counts as slow.
    slow: Duration,
    method: Method,
    uri: Uri,
    traceparent: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
}

impl LoggedRequest {
    pub(super) fn new<B>(request: &Request<B>, slow: Duration) -> Self {
        let header = |name: HeaderName| HeaderMap::get(request.headers(), name).cloned();
        Self {
            // A request that waits for a change is not slow while it does.
            slow: slow.saturating_add(allowed_wait(request.uri())),
            method: request.method().clone(),
            uri: request.uri().clone(),
            traceparent: header(TRACEPARENT),
            request_id: header(REQUEST_ID),
        }
    }

    /// Logs the request if it was slow or failed through no fault of the client.
    pub(super) fn finish(&self, status: StatusCode, took: Duration) {
        if took < self.slow && !status.is_server_error() {
            return;
        }
        let text = |value: &Option<HeaderValue>| {
            value.as_ref().map(|value| shortened(&String::from_utf8_lossy(value.as_bytes())))
        };
        warn!(
            method = %self.method,
            path = shortened(self.uri.path()),
            status = status.as_u16(),
            took_seconds = took.as_secs_f64(),
            traceparent = text(&self.traceparent),
            request_id = text(&self.request_id),
            "slow or failed request"
        );
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_was_asked_for_is_not_slow() {
        let slow = |uri| {
            let mut request = Request::new(());
            *request.uri_mut() = Uri::from_static(uri);
            LoggedRequest::new(&request, Duration::from_secs(1)).slow.as_secs()
        };
        assert_eq!((slow("/api/snapshot?wait=30s"), slow("/api/models?wait=30s")), (31, 1));
    }
}

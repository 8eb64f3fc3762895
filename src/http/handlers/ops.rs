//! `/livez`, `/readyz` and `/metrics`, for operators. None of them waits for Postgres.

use std::io::{self, Write};
use std::sync::atomic::Ordering::Relaxed;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::header::{CONTENT_ENCODING, HeaderValue, VARY};
use hyper::{HeaderMap, StatusCode};
use serde::Serialize;

use crate::catalog::snapshot::Snapshot;
use crate::http::accept::{accepts_gzip, prefers_openmetrics};
use crate::http::etag::hex;
use crate::http::response::{self, Response};
use crate::http::{Api, Routes};
use crate::metrics::{Format, Route, set_count};
use crate::postgres::session::SyncMode;
use crate::sync::LastSync;

const READY: &str = "ready";
const ON_ADMIN_PORT: &str = "served on the admin port (CATALOG_ADMIN_ADDR): let checks and scrapes use that port";

/// Bytes of the longest start that [`is_start`] recognizes: `HEAD /metrics` and what follows it.
pub(in crate::http) const LONGEST_START: usize = 14;

/// The route of a path, if it is one of these.
pub(in crate::http) fn route(path: &str) -> Option<Route> {
    match path {
        "/livez" => Some(Route::Livez),
        "/readyz" => Some(Route::Readyz),
        "/metrics" => Some(Route::Metrics),
        _ => None,
    }
}

/// 404. For a health check at the port of the API it names the right port.
pub(in crate::http) fn not_found(routes: Routes, path: &str) -> Response {
    let on_admin_port = routes == Routes::Api && route(path).is_some();
    response::error(StatusCode::NOT_FOUND, if on_admin_port { ON_ADMIN_PORT } else { "Not found" })
}

/// Whether bytes are the start of a request for one of these routes, as probes and scrapers send it.
pub(in crate::http) fn is_start(bytes: &[u8]) -> bool {
    let target = bytes.strip_prefix(b"GET ").or_else(|| bytes.strip_prefix(b"HEAD ")).unwrap_or_default();
    let end = target.iter().position(|byte| matches!(byte, b' ' | b'?'));
    end.and_then(|end| std::str::from_utf8(&target[..end]).ok()).and_then(route).is_some()
}

/// The process responds, and every thread runs or can be restarted.
pub(crate) fn livez(api: &Api) -> Response {
    match api.threads.lost_thread() {
        None => response::json(StatusCode::OK, r#"{"status":"alive"}"#),
        Some(thread) => {
            let message = format!("the thread {thread} cannot be restarted: restart this process");
            response::error(StatusCode::SERVICE_UNAVAILABLE, &message)
        }
    }
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    #[serde(flatten)]
    catalog: CatalogStatus,
}

/// The catalog that is served, and how current it is.
#[derive(Serialize)]
pub(crate) struct CatalogStatus {
    revision: Option<String>,
    models: usize,
    rejected: usize,
    source: Option<&'static str>,
    synced_seconds_ago: Option<f64>,
    follow: Option<&'static str>,
    /// Only on a standby.
    #[serde(skip_serializing_if = "Option::is_none")]
    replay_lag_seconds: Option<f64>,
}

impl CatalogStatus {
    /// The status of a snapshot, if there is one yet.
    pub(crate) fn new(snapshot: Option<&Snapshot>, api: &Api) -> Self {
        let sync = api.sync.last_sync();
        let mode = sync.map(|sync| match sync.mode {
            None => "upstream",
            Some(SyncMode::Live) => "live",
            Some(SyncMode::Polling) => "polling",
            Some(SyncMode::Standby) => "standby",
        });
        Self {
            revision: snapshot.map(|snapshot| hex(snapshot.revision())),
            models: snapshot.map_or(0, |snapshot| snapshot.len()),
            rejected: snapshot.map_or(0, |snapshot| snapshot.rejected().size()),
            source: snapshot.map(|_| match sync {
                None => "file",
                Some(LastSync { mode: None, .. }) => "upstream",
                Some(_) => "postgres",
            }),
            synced_seconds_ago: sync.map(|sync| milliseconds(sync.at.elapsed().as_secs_f64())),
            follow: if is_stalled(api) { Some("stalled") } else { mode },
            // The lag grows while nothing is read.
            replay_lag_seconds: sync
                .and_then(|sync| Some(milliseconds(sync.replay_lag_seconds? + sync.at.elapsed().as_secs_f64()))),
        }
    }
}

/// Whether the catalog has not been in sync with its source for too long, counted from the start if it never was.
fn is_stalled(api: &Api) -> bool {
    let since = api.sync.last_sync().map_or(api.started, |sync| sync.at);
    since.elapsed() > api.stalled_after
}

/// Rounds seconds to milliseconds.
fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

fn status(api: &Api, loaded: bool) -> &'static str {
    if api.draining.load(Relaxed) {
        "draining"
    } else if loaded {
        READY
    } else {
        "loading"
    }
}

/// Ready from the first snapshot until the shutdown begins, whatever happens to Postgres in between.
pub(crate) fn readyz(api: &Api) -> Response {
    let current = api.store.load();
    let snapshot = current.as_deref();
    let status = status(api, snapshot.is_some());
    let readiness = Readiness { status, catalog: CatalogStatus::new(snapshot, api) };
    let code = if status == READY { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_vec(&readiness) {
        Ok(body) => response::json(code, body),
        Err(error) => response::serialization_failed("/readyz", &error),
    }
}

/// All metrics, in OpenMetrics or the Prometheus text format.
pub(crate) fn metrics(api: &Api, headers: &HeaderMap) -> Response {
    api.metrics.ready.set(i64::from(status(api, api.store.load().is_some()) == READY));
    api.metrics.follow_stalled.set(i64::from(is_stalled(api)));
    set_count(&api.metrics.upstream.waiters, api.snapshots.waiting());
    let format = if prefers_openmetrics(headers) { Format::OpenMetrics } else { Format::Text };
    let rendered = api.metrics.render(format).map_err(io::Error::other).map(String::into_bytes);
    let compress = accepts_gzip(headers);
    let mut response = match rendered.and_then(|text| if compress { gzip(&text) } else { Ok(text) }) {
        Ok(body) => response::with_type(StatusCode::OK, HeaderValue::from_static(format.content_type()), body),
        Err(error) => return response::serialization_failed("/metrics", &error),
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    if compress {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn gzip(text: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_of_requests_are_recognized() {
        for (start, expected) in [
            ("GET /livez HTTP/1.1\r\n", true),
            ("GET /readyz?verbose HTTP/1.1\r\n", true),
            ("HEAD /metrics HTTP/1.1\r\n", true),
            ("GET /metrics", false),
            ("GET /metricsx HTTP/1.1\r\n", false),
            ("POST /metrics HTTP/1.1\r\n", false),
            ("GET /api/models/a HTTP/1.1\r\n", false),
            ("", false),
        ] {
            let start = &start.as_bytes()[..start.len().min(LONGEST_START)];
            assert_eq!(is_start(start), expected, "{}", String::from_utf8_lossy(start));
        }
    }
}

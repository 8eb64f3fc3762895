//! `/livez`, `/readyz` and `/metrics`: what operators ask. None of it waits for Postgres.

use std::sync::atomic::Ordering::Relaxed;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::Serialize;

use crate::catalog::snapshot::Snapshot;
use crate::catalog::store::{LastSync, SyncMode};
use crate::http::Api;
use crate::http::answer::{self, Answer};
use crate::http::etag::hex;

const READY: &str = "ready";

/// The process answers.
pub fn livez() -> Answer {
    answer::json(StatusCode::OK, r#"{"status":"alive"}"#)
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    #[serde(flatten)]
    standing: Standing,
}

/// What is served, and how well it is in step with the database.
#[derive(Serialize)]
pub struct Standing {
    revision: Option<String>,
    models: usize,
    rejected: usize,
    source: Option<&'static str>,
    synced_seconds_ago: Option<f64>,
    follow: Option<&'static str>,
}

impl Standing {
    /// That of a snapshot, if there is one yet.
    #[must_use]
    pub fn of(snapshot: Option<&Snapshot>, sync: Option<LastSync>) -> Self {
        Self {
            revision: snapshot.map(|snapshot| hex(snapshot.revision())),
            models: snapshot.map_or(0, |snapshot| snapshot.len()),
            rejected: snapshot.map_or(0, |snapshot| snapshot.rejected().len()),
            source: snapshot.map(|_| if sync.is_some() { "postgres" } else { "file" }),
            // Milliseconds are as fine as anybody reads.
            synced_seconds_ago: sync.map(|sync| (sync.at.elapsed().as_secs_f64() * 1e3).round() / 1e3),
            follow: sync.map(|sync| match sync.mode {
                SyncMode::Live => "live",
                SyncMode::Polling => "polling",
                SyncMode::Standby => "standby",
            }),
        }
    }
}

fn status(api: &Api, loaded: bool) -> &'static str {
    match loaded {
        _ if api.draining.load(Relaxed) => "draining",
        true => READY,
        false => "loading",
    }
}

/// Ready from the first catalog until the drain begins, whatever becomes of Postgres in between.
pub fn readyz(api: &Api) -> Answer {
    let current = api.store.load();
    let snapshot = current.as_deref();
    let status = status(api, snapshot.is_some());
    let readiness = Readiness { status, standing: Standing::of(snapshot, api.store.last_sync()) };
    let code = if status == READY { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_vec(&readiness) {
        Ok(body) => answer::json(code, body),
        Err(error) => fault("/readyz", &error),
    }
}

/// The text exposition format.
pub fn metrics(api: &Api) -> Answer {
    api.metrics.ready.set(i64::from(status(api, api.store.load().is_some()) == READY));
    match api.metrics.render() {
        Ok(text) => {
            let text_format = HeaderValue::from_static(prometheus::TEXT_FORMAT);
            answer::with_type(StatusCode::OK, text_format, text)
        }
        Err(error) => fault("/metrics", &error),
    }
}

/// 500, and the reason in the log.
pub fn fault(route: &str, error: &(dyn std::error::Error + 'static)) -> Answer {
    tracing::error!(route, error, "could not be rendered");
    answer::internal_error()
}

//! The log lines of downloads, for `pull` and `probe`.

use tracing::{info, warn};

use crate::base::error_chain::chain;
use crate::fetch::event::Event;
use crate::fetch::progress::{ModelProgress, Outcome};

/// Logs an event.
pub(super) fn log(event: &Event<'_>) {
    match event {
        Event::AttemptFailed { model, host, problem } => {
            info!(model, host, reason = problem.text(), "an attempt failed, retrying");
        }
        Event::CacheGivenUp { cache, problem } => {
            warn!(cache, reason = problem.text(), "the cache is not used any more by this pull");
        }
        Event::CacheWrong { model, cache, problem } => {
            let reason = problem.text();
            warn!(model, cache, reason, "what the cache sent is not the file: another source is used");
        }
        Event::Finished(model) => finished(model),
        Event::NotLinked { model, error } => info!(model, %error, "cannot be linked, downloading it"),
        Event::RecordNotCreated(error) => {
            warn!(%error, "the record of verified files cannot be created: files are hashed at every start");
        }
        Event::RecordDamaged(error) => {
            warn!(%error, "the record of verified files is damaged: hashing them again");
        }
        Event::RecordNotWritten(error) => warn!(%error, "the record of verified files cannot be written"),
        Event::Removed { path, model, bytes } => info!(path, model, bytes, "removed: no longer needed"),
        Event::NotRemoved { path, error } => warn!(path, %error, "a file that is no longer needed cannot be removed"),
        Event::Downgrade { from, to } => {
            warn!(from, to, "a redirect from https to http: only the hash protects this file");
        }
        Event::NoCertificates(problem) => warn!("{}", chain(*problem)),
        Event::ProxyIgnored(name) => {
            warn!("{name} is ignored: it is not the URL of a proxy such as http://proxy:3128 or socks5h://proxy:1080");
        }
        Event::EndpointIgnored => warn!("HF_ENDPOINT is ignored: it is not a plain http or https URL"),
        Event::TokenIgnored(name) => {
            warn!("{name} is ignored: it contains characters that are not allowed in a token");
        }
    }
}

fn finished(model: &ModelProgress) {
    let (state, id, path) = (model.state(), &*model.id, &*model.path);
    match &state.outcome {
        Some(Outcome::Missing { reason, .. }) => warn!(model = id, reason = &**reason, "missing"),
        Some(Outcome::Fetched) => {
            let seconds = state.elapsed.as_secs_f64();
            let source = state.received_from.keys().map(String::as_str).collect::<Vec<_>>().join(",");
            let (bytes, seconds) = (model.received(), (seconds * 10.0).round() / 10.0);
            info!(model = id, path, bytes, seconds, source, "fetched");
        }
        Some(Outcome::Kept { reason }) => warn!(model = id, path, reason = &**reason, "its file is kept"),
        Some(Outcome::Linked) => info!(model = id, path, "linked to a file with the same content"),
        Some(Outcome::Present) | None => {}
    }
}

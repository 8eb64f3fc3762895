//! Requests for the models of this machine.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::info;

use super::catalog::parse;
use crate::base::error_chain::chain;
use crate::fetch::error::{Problem, Transport, host};
use crate::fetch::http::{Http, read};
use crate::fetch::model::Listing;
use crate::fetch::retry::pause;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Larger than any batch response: a thousand models of 60 KB.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;
/// Characters of an error's body that are logged.
const MAX_EXCERPT: usize = 300;
/// Ids per request: the default of `CATALOG_MAX_BATCH_IDS`.
const MAX_BATCH_IDS: usize = 1_000;
/// Models per page: the limit of the catalog.
const PAGE: &str = "200";
/// Rounds until the pause grows no more, which is then 4 to 12 s: all machines wait for the same catalogs, and a boot
/// waits for each of them.
const ROUNDS_OF_BACKOFF: u32 = 3;

/// Why no catalog returned a list of models.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogError {
    /// No response; another request may succeed.
    #[error("no response from {0}")]
    Unreachable(String, #[source] Transport),
    /// A status that may be temporary.
    #[error("{0} returned status {1}")]
    Status(String, u16),
    /// The catalog rejected the request.
    #[error("{0} returned status {1}: {2}")]
    Rejected(String, u16, String),
    /// It is not a catalog.
    #[error("the response from {0} is not a list of models")]
    InvalidResponse(String),
}

impl CatalogError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(..) | Self::Status(..))
    }
}

/// Tries the catalogs in turn, until one responds or the time to wait is over.
///
/// # Errors
/// The last error, or the last transient one if there was any in the last round.
pub(crate) async fn request_models(
    http: &Http,
    catalogs: &[Url],
    ids: &[String],
    wait: Duration,
) -> Result<Listing, CatalogError> {
    let deadline = Instant::now() + wait;
    let mut rounds = 0;
    loop {
        let mut last = None;
        for catalog in catalogs {
            match request_all(http, catalog, ids).await {
                Ok(listing) => return Ok(at_endpoint(http, listing)),
                Err(error) => {
                    log_failure(&error);
                    // A transient error is worth another round, whatever the errors of the other catalogs.
                    if last.as_ref().is_none_or(|last: &CatalogError| !last.is_transient()) {
                        last = Some(error);
                    }
                }
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match last {
            Some(error) if !error.is_transient() || left.is_zero() => return Err(error),
            _ => {}
        }
        rounds += 1;
        tokio::time::sleep(pause(rounds.min(ROUNDS_OF_BACKOFF), None).min(left)).await;
    }
}

fn log_failure(error: &CatalogError) {
    info!(error = chain(error), "the request to the catalog failed");
}

/// The models with the URLs that are requested instead of those of Hugging Face.
fn at_endpoint(http: &Http, mut listing: Listing) -> Listing {
    for model in &mut listing.models {
        for url in std::iter::once(&mut model.url).chain(&mut model.mirrors) {
            *url = http.tokens().at_endpoint(url);
        }
    }
    listing
}

/// A page of the list of models.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    models: &'a RawValue,
    next: Option<String>,
}

/// All models of the first catalog that lists them.
///
/// # Errors
/// The error of the last one.
pub(crate) async fn request_every_model(http: &Http, catalogs: &[Url]) -> Result<Listing, CatalogError> {
    let mut last = CatalogError::InvalidResponse("CATALOG_URL".into());
    for catalog in catalogs {
        match request_pages(http, catalog).await {
            Ok(listing) => return Ok(at_endpoint(http, listing)),
            Err(error) => {
                log_failure(&error);
                last = error;
            }
        }
    }
    Err(last)
}

async fn request_pages(http: &Http, catalog: &Url) -> Result<Listing, CatalogError> {
    let (name, mut all, mut after) = (host(catalog), Listing::default(), None);
    loop {
        let mut url = catalog.clone();
        url.set_path(&format!("{}/api/models", catalog.path().trim_end_matches('/')));
        url.query_pairs_mut().append_pair("limit", PAGE).extend_pairs(after.iter().map(|id: &String| ("after", id)));
        let unreachable = |error: reqwest::Error| CatalogError::Unreachable(name.clone(), error.into());
        let mut response = http.client().get(url).timeout(REQUEST_TIMEOUT).send().await.map_err(unreachable)?;
        let body = read(&mut response, MAX_RESPONSE).await.map_err(unreachable)?;
        if response.status() != StatusCode::OK {
            return Err(CatalogError::Status(name, response.status().as_u16()));
        }
        let invalid = || CatalogError::InvalidResponse(name.clone());
        let page: Page<'_> = serde_json::from_slice(&body).map_err(|_| invalid())?;
        let batch = format!(r#"{{"models":{},"not_found":[],"missing_dependencies":[]}}"#, page.models);
        let listing = parse(batch.as_bytes(), true).ok_or_else(invalid)?;
        all.models.extend(listing.models);
        all.missing.extend(listing.missing);
        match page.next {
            None => return Ok(all),
            // Pages are in the order of ids, or they would have no end.
            Some(next) if after.as_ref() >= Some(&next) => return Err(invalid()),
            next => after = next,
        }
    }
}

/// A request.
struct Batch {
    ids: Vec<String>,
    /// Whether the catalog adds the dependencies.
    resolve: bool,
}

/// Requests the models and their dependencies in as few batches as the catalog accepts.
async fn request_all(http: &Http, catalog: &Url, ids: &[String]) -> Result<Listing, CatalogError> {
    let batch = |ids: &[String], resolve| Batch { ids: ids.to_vec(), resolve };
    let mut batches: Vec<Batch> = ids.chunks(MAX_BATCH_IDS).rev().map(|ids| batch(ids, true)).collect();
    let (mut all, mut known, mut needed_by) = (Listing::default(), HashSet::new(), HashMap::new());
    while let Some(Batch { mut ids, resolve }) = batches.pop() {
        match request_one(http, catalog, &ids, resolve).await {
            // With their dependencies, they may be too many, or its limits are lower.
            Err(CatalogError::Rejected(_, 400 | 413, _)) if ids.len() > 1 => {
                let second = ids.split_off(ids.len() / 2);
                batches.extend([second, ids].map(|ids| Batch { ids, resolve }));
            }
            // A single model with more dependencies than the limit: they are requested level by level.
            Err(CatalogError::Rejected(_, 400, _)) if resolve => batches.push(Batch { ids, resolve: false }),
            listing => {
                let Listing { mut models, mut missing, dependencies } = listing?;
                // A dependency may be in several batches.
                models.retain(|model| !known.contains(&model.id));
                missing.retain(|(id, _)| !known.contains(id));
                for (id, problem) in &mut missing {
                    if let (Problem::NotInCatalog, Some(model)) = (&*problem, needed_by.remove(id)) {
                        *problem = Problem::MissingDependency(model);
                    }
                }
                known.extend(models.iter().map(|model| &model.id).chain(missing.iter().map(|(id, _)| id)).cloned());
                all.models.extend(models);
                all.missing.extend(missing);
                if !resolve {
                    let mut next = Vec::new();
                    for (id, model) in dependencies {
                        if !known.contains(&id) && needed_by.insert(id.clone(), model).is_none() {
                            next.push(id);
                        }
                    }
                    batches.extend(next.chunks(MAX_BATCH_IDS).map(|ids| batch(ids, false)));
                }
            }
        }
    }
    Ok(all)
}

async fn request_one(http: &Http, catalog: &Url, ids: &[String], resolve: bool) -> Result<Listing, CatalogError> {
    let name = host(catalog);
    let mut url = catalog.clone();
    url.set_path(&format!("{}/api/models/batch", catalog.path().trim_end_matches('/')));
    let body = serde_json::json!({"model_ids": ids, "resolve_dependencies": resolve}).to_string();
    let request = http.client().post(url).header(CONTENT_TYPE, "application/json").timeout(REQUEST_TIMEOUT).body(body);
    let unreachable = |error: reqwest::Error| CatalogError::Unreachable(name.clone(), error.into());
    let mut response = request.send().await.map_err(unreachable)?;
    let body = read(&mut response, MAX_RESPONSE).await.map_err(unreachable)?;
    match response.status() {
        StatusCode::OK => parse(&body, resolve).ok_or(CatalogError::InvalidResponse(name)),
        status @ (StatusCode::BAD_REQUEST
        | StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::PAYLOAD_TOO_LARGE) => {
            let excerpt =
                String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(MAX_EXCERPT).collect();
            Err(CatalogError::Rejected(name, status.as_u16(), excerpt))
        }
        status if status.is_redirection() => {
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let to = catalog.join(location).map_or_else(|_| "elsewhere".into(), |to| to.origin().ascii_serialization());
            let text = format!("it redirects to {to}, which CATALOG_URL should name");
            Err(CatalogError::Rejected(name, status.as_u16(), text))
        }
        status => Err(CatalogError::Status(name, status.as_u16())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;
    use crate::cli::ServerArgs;

    #[test]
    fn request_has_as_many_ids_as_servers_accept_by_default() {
        let server = ServerArgs::augment_args(clap::Command::new("serve"));
        let limit = server.get_arguments().find(|argument| argument.get_id() == "max_batch_ids").expect("the setting");
        assert_eq!(limit.get_default_values(), [MAX_BATCH_IDS.to_string().as_str()]);
    }
}

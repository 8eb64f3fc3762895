//! Asks the catalog for models and reads its response. A catalog is trusted with which files a machine has, not with
//! where else they could go: every field is checked again.

use std::time::{Duration, Instant};

use reqwest::header::CONTENT_TYPE;
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tracing::info;

use super::error::{Problem, Transport};
use super::folder::SavePath;
use super::hash::Hash;
use super::http::{Http, host};
use super::journal::KEY_LENGTH;
use super::settings::Settings;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// More than a batch can have: a thousand models of 60 KB.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;
/// Of an error's body, for the log.
const MAX_SHOWN: usize = 300;
/// Longest pause between two requests, before jitter.
const MAX_PAUSE: Duration = Duration::from_secs(8);

/// A model to have on disk.
#[derive(Debug)]
pub struct Model {
    /// Its id.
    pub id: String,
    /// Where to download it.
    pub url: Url,
    /// Other addresses of the same file.
    pub mirrors: Vec<Url>,
    /// Bytes in the catalog, rounded as they are there.
    pub bytes: Option<u64>,
    /// Its hash, if it is of a kind that can be computed.
    pub hash: Option<Hash>,
    /// Whether its provider's token is sent.
    pub auth: bool,
    /// Where it is written.
    pub path: SavePath,
}

impl Model {
    /// Names the partial download: equal for whatever gives the same file at the same path.
    #[must_use]
    pub fn key(&self) -> String {
        let content = self.hash.as_ref().map_or_else(|| self.url.to_string(), Hash::text);
        let digest = Sha256::digest(format!("{}\0{content}", self.path.text()));
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..KEY_LENGTH].to_owned()
    }

    /// Whether the catalog's size, which is rounded and may count in 2^30, can mean `bytes`.
    #[must_use]
    pub fn is_plausible(&self, bytes: u64) -> bool {
        self.bytes.is_none_or(|size| bytes.abs_diff(size) <= tolerance(size))
    }

    /// The largest file that the catalog's size can mean.
    #[must_use]
    pub fn largest(&self) -> Option<u64> {
        self.bytes.map(|size| size.saturating_add(tolerance(size)))
    }

    /// Refuses a size that is not the catalog's. With a hash that decides alone, because catalogs have wrong sizes.
    ///
    /// # Errors
    /// The sizes.
    pub fn check_size(&self, server: Option<u64>) -> Result<(), Problem> {
        match (server, self.bytes) {
            (Some(server), Some(catalog)) if self.hash.is_none() && !self.is_plausible(server) => {
                Err(Problem::Size { server, catalog })
            }
            _ => Ok(()),
        }
    }
}

fn tolerance(size: u64) -> u64 {
    (size / 10).saturating_add(10_000_000)
}

/// What the catalog says of the ids.
#[derive(Debug, Default)]
pub struct Listing {
    /// Models with a usable entry; dependencies come first.
    pub models: Vec<Model>,
    /// Ids without one, and why.
    pub missing: Vec<(String, Problem)>,
}

/// Why no catalog gave a list.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Another request may succeed.
    #[error("no response from {0}: {1}")]
    Unreachable(String, #[source] Transport),
    /// The same.
    #[error("status {1} from {0}")]
    Status(String, u16),
    /// The request is refused.
    #[error("status {1} from {0}: {2}")]
    Refused(String, u16, String),
    /// It is no catalog.
    #[error("the response of {0} is no list of models")]
    NoList(String),
}

impl CatalogError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(..) | Self::Status(..))
    }
}

/// Asks the catalogs in turn until one responds or the time is over.
///
/// # Errors
/// The last failure.
pub async fn ask(http: &Http, settings: &Settings) -> Result<Listing, CatalogError> {
    let deadline = Instant::now() + settings.wait;
    let mut pause = Duration::from_secs(1);
    loop {
        let mut last = None;
        for catalog in &settings.catalogs {
            match ask_one(http, catalog, &settings.ids).await {
                Ok(listing) => return Ok(listing),
                Err(error) => {
                    info!(%error, "the catalog cannot be asked");
                    // What may pass is worth waiting for, whatever the others say.
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
        // Machines that boot together should not come back together.
        tokio::time::sleep(pause.mul_f64(1.0 + fastrand::f64()).min(left)).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

async fn ask_one(http: &Http, catalog: &Url, ids: &[String]) -> Result<Listing, CatalogError> {
    let name = host(catalog);
    let mut url = catalog.clone();
    url.set_path(&format!("{}/api/models/batch", catalog.path().trim_end_matches('/')));
    let body = serde_json::json!({"model_ids": ids, "resolve_dependencies": true}).to_string();
    let request = http.client().post(url).header(CONTENT_TYPE, "application/json").timeout(REQUEST_TIMEOUT).body(body);
    let unreachable = |error: reqwest::Error| CatalogError::Unreachable(name.clone(), error.into());
    let mut response = request.send().await.map_err(unreachable)?;
    let body = read(&mut response).await.map_err(unreachable)?;
    match response.status() {
        StatusCode::OK => parse(&body).ok_or(CatalogError::NoList(name)),
        status @ (StatusCode::BAD_REQUEST
        | StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::PAYLOAD_TOO_LARGE) => {
            let shown = String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect();
            Err(CatalogError::Refused(name, status.as_u16(), shown))
        }
        status => Err(CatalogError::Status(name, status.as_u16())),
    }
}

/// The body, or its beginning if it is too large to be a list.
async fn read(response: &mut Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while body.len() <= MAX_RESPONSE {
        match response.chunk().await? {
            Some(chunk) => body.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok(body)
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    models: Vec<&'a RawValue>,
    not_found: Vec<String>,
    missing_dependencies: Vec<MissingDependency>,
}

#[derive(Deserialize)]
struct MissingDependency {
    id: String,
    required_by: String,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    download_url: String,
    file_size_gb: Option<f64>,
    hash: Option<String>,
    auth_required: bool,
    save_path: String,
    #[serde(default)]
    mirrors: Vec<String>,
}

fn parse(body: &[u8]) -> Option<Listing> {
    let answer: Answer<'_> = serde_json::from_slice(body).ok()?;
    let mut listing = Listing::default();
    for id in answer.not_found {
        listing.missing.push((id, Problem::NotInCatalog));
    }
    for missing in answer.missing_dependencies {
        listing.missing.push((missing.id, Problem::MissingDependency(missing.required_by)));
    }
    for text in answer.models {
        // An entry that cannot be read is missing alone.
        match serde_json::from_str::<Entry>(text.get()) {
            Ok(entry) => {
                let id = entry.id.clone();
                match model(entry) {
                    Ok(model) => listing.models.push(model),
                    Err(problem) => listing.missing.push((id, problem)),
                }
            }
            Err(error) => {
                let id = serde_json::from_str::<serde_json::Value>(text.get());
                let id = id.ok().and_then(|value| value.get("id")?.as_str().map(str::to_owned));
                listing.missing.push((id.unwrap_or_else(|| "?".into()), Problem::Entry(error.to_string())));
            }
        }
    }
    Some(listing)
}

fn model(entry: Entry) -> Result<Model, Problem> {
    let size = entry.file_size_gb.filter(|size| size.is_finite() && *size >= 0.0);
    // A catalog may list URLs with further schemes for other clients.
    let mut urls = std::iter::once(&entry.download_url).chain(&entry.mirrors).filter_map(|text| http_url(text));
    let no_url = || Problem::Entry("it has no http or https URL".into());
    Ok(Model {
        url: urls.next().ok_or_else(no_url)?,
        mirrors: urls.collect(),
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
        bytes: size.map(|size| (size * 1e9).round() as u64),
        hash: entry.hash.as_deref().and_then(Hash::parse),
        auth: entry.auth_required,
        path: SavePath::parse(&entry.save_path)?,
        id: entry.id,
    })
}

fn http_url(text: &str) -> Option<Url> {
    // The parser removes tabs and line feeds, so it would accept a different URL from the one that people read.
    let url = Url::parse(text).ok().filter(|_| !text.chars().any(char::is_control))?;
    (["http", "https"].contains(&url.scheme()) && url.has_host()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_entry_does_not_affect_others() {
        let body = br#"{"models":[{"id":"a","download_url":"https://h/a","file_size_gb":1.5,"hash":null,
            "auth_required":false,"save_path":"a","name":"x","dependencies":[]},{"id":"b"},7,
            {"id":"c","download_url":"file:///etc/passwd","auth_required":false,"save_path":"c"},
            {"id":"d","download_url":"https://h/d","auth_required":false,"save_path":"../d"},
            {"id":"e","download_url":"https://h/\te","auth_required":false,"save_path":"e"},
            {"id":"h","download_url":"s3://h/h","mirrors":["ftp://h/h","https://h/1","http://h/2"],"auth_required":false,
             "save_path":"h"}],
            "not_found":["f"],"missing_dependencies":[{"id":"g","required_by":"a"}]}"#;
        let listing = parse(body).expect("a list");
        assert_eq!(listing.models.len(), 2);
        let urls = |model: &Model| [&model.url].into_iter().chain(&model.mirrors).map(Url::to_string).collect::<Vec<_>>();
        assert_eq!(urls(&listing.models[1]), ["https://h/1", "http://h/2"]);
        assert_eq!((&*listing.models[0].id, listing.models[0].bytes), ("a", Some(1_500_000_000)));
        let missing: Vec<_> = listing.missing.iter().map(|(id, _)| &**id).collect();
        assert_eq!(missing, ["f", "g", "b", "?", "c", "d", "e"]);
    }

    #[test]
    fn input_that_is_not_a_list_of_models_is_rejected() {
        for body in ["", "{}", "[]", "<html>", r#"{"error":"x"}"#, r#"{"models":[],"not_found":[]}"#] {
            assert!(parse(body.as_bytes()).is_none(), "{body}");
        }
    }
}

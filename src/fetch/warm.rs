//! Fills a cache before machines need it: files are requested through it, verified, and not kept.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use reqwest::Url;

use super::cache::{Cache, CachedFile};
use super::error::{Problem, host};
use super::hash::Hash;
use super::http::{Http, Opened, Target};
use super::model::Model;
use super::round::check_part;

/// Bytes per request while a file is fetched.
const RANGE: u64 = 64 * 1024 * 1024;
/// Requests for one file at a time.
const CONNECTIONS: usize = 4;
/// Time without bytes after which a response is given up.
const STALL: Duration = Duration::from_secs(30);
/// Time in which a hub has to respond.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a cache has of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// All of it.
    Cached,
    /// All of it, now.
    Fetched,
    /// Nothing, or not all of it.
    Absent,
    /// Other bytes.
    Wrong,
    /// It cannot have it: files are requested by their SHA-256, and the model has none.
    Unhashed,
}

/// What a cache has of the file of a model. Only its first and last byte are requested.
///
/// # Errors
/// The cache did not respond as one.
pub(crate) async fn look(http: &Http, cache: &Arc<Cache>, model: &Model) -> Result<Content, Problem> {
    let Some((file, _)) = file_of(cache, model) else { return Ok(Content::Unhashed) };
    let mut at = 0;
    for _ in 0..2 {
        let opened = match file.open(http, file.url(), Some((at, at + 1))).await {
            Err(problem) if file.is_miss(&problem) => return Ok(Content::Absent),
            opened => opened?,
        };
        let Some(total @ 1..) = opened.part.total else { return Err(Problem::Range(host(file.url()))) };
        at = total - 1;
    }
    Ok(Content::Cached)
}

/// Lets a cache fetch what it lacks of the file of a model, and verifies all of it.
///
/// # Errors
/// The file is not at any of the URLs of the model, or the cache cannot fetch it from there.
pub(crate) async fn warm(http: &Http, cache: &Arc<Cache>, model: &Model) -> Result<Content, Problem> {
    let Some((file, hash)) = file_of(cache, model) else { return Ok(Content::Unhashed) };
    match verify(http, &file, hash).await {
        Err(problem) if file.is_miss(&problem) => {}
        found => return found,
    }
    let mut last = Problem::NotInCatalog;
    for url in std::iter::once(&model.url).chain(&model.mirrors) {
        match fill_from(http, &file, model, url).await {
            Ok(()) => {
                let found = verify(http, &file, hash).await?;
                return Ok(if found == Content::Cached { Content::Fetched } else { found });
            }
            Err(problem) => last = problem,
        }
    }
    Err(last)
}

/// Lets the cache fetch a file from one of the URLs of its model.
async fn fill_from(http: &Http, file: &CachedFile, model: &Model, url: &Url) -> Result<(), Problem> {
    let target = Target { url, auth: model.auth, hashed: true, origin: None };
    let resolved = tokio::time::timeout(RESOLVE_TIMEOUT, http.resolve(target, 1, |_, _| {})).await;
    let source = resolved.map_err(|_| Problem::Silent(host(url)))??;
    if !http.is_public(&source.url, model.auth) {
        return Err(Problem::NotPublic(source.host()));
    }
    let total = source.total.ok_or_else(|| Problem::Range(source.host()))?;
    fill(http, &file.clone().with_origin(source.url), total).await
}

fn file_of<'a>(cache: &Arc<Cache>, model: &'a Model) -> Option<(CachedFile, &'a Hash)> {
    let hash = model.hash.as_ref()?;
    Some((CachedFile::new(cache, hash)?, hash))
}

/// Requests all of a file, several parts at a time.
async fn fill(http: &Http, file: &CachedFile, total: u64) -> Result<(), Problem> {
    let starts = (0..total).step_by(usize::try_from(RANGE).unwrap_or(usize::MAX));
    let parts = starts.map(|start| async move {
        let range = (start, total.min(start + RANGE));
        let opened = file.open(http, file.url(), Some(range)).await?;
        check_part(&opened.part, range, &opened.url)?;
        read(opened, |_| {}).await
    });
    futures_util::stream::iter(parts).buffer_unordered(CONNECTIONS).try_collect::<Vec<()>>().await.map(drop)
}

/// Reads what a cache has of a file, and compares it with the hash. A response without a length could have no end.
async fn verify(http: &Http, file: &CachedFile, hash: &Hash) -> Result<Content, Problem> {
    let opened = file.open(http, file.url(), None).await?;
    if opened.part.total.is_none() {
        return Err(Problem::Range(host(&opened.url)));
    }
    let mut hasher = hash.hasher();
    read(opened, |bytes| hasher.update(bytes)).await?;
    Ok(if hash.matches(hasher) { Content::Cached } else { Content::Wrong })
}

async fn read(opened: Opened, mut each: impl FnMut(&[u8])) -> Result<(), Problem> {
    let Opened { mut response, url, .. } = opened;
    loop {
        let chunk = tokio::time::timeout(STALL, response.chunk()).await;
        match chunk.map_err(|_| Problem::Stalled(host(&url)))? {
            Ok(Some(bytes)) => each(&bytes),
            Ok(None) => return Ok(()),
            Err(error) => return Err(Problem::Connection { host: host(&url), source: error.into() }),
        }
    }
}

//! `GET /api/models`: the models in the order of their ids, page by page, and a search in them.
//!
//! For people. A page is a look at every model, so it is never taken on a serving thread: one thread beside them does
//! it, with what processor time they leave, for one request after the other. A few may wait; more are told to come back.
//! As long as the catalog stays what it is, a client that names its entity tag is answered without a look.

use std::borrow::Cow;
use std::sync::Arc;

use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, StatusCode};
use tokio::sync::{Semaphore, SemaphorePermit};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::answer::{self, Answer};
use super::etag::{DIGITS, entity_tag, matches_etag, with_etag};
use super::{ALL_MODELS, Api, body, decode, not_loaded, stamp};
use crate::catalog::entry::write_array;
use crate::catalog::search::{self, Query};
use crate::catalog::snapshot::Snapshot;
use crate::ops::fault;

/// Models on a page, where the client names no number, and at most.
const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 200;
/// Bytes of a text to be searched for, decoded.
const TEXT_BYTES: usize = 256;
/// Requests that are looked for or wait. At a million models the last of them waits about a second.
const AT_ONCE: usize = 8;
/// How much the looking thread yields to those that serve: about a tenth of a core that they would use up.
const NICE: i32 = 10;

/// Lets one request after the other look through the models.
#[derive(Debug)]
pub struct Turns {
    places: Semaphore,
    /// Kept by the look itself, which goes on when its client has gone.
    looking: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { places: Semaphore::new(AT_ONCE), looking: Arc::new(Semaphore::new(1)) }
    }
}

/// The answer to a query such as `q=flux&limit=10`.
pub async fn answer(api: &Api, query: &str, headers: &HeaderMap) -> Answer {
    let current = || api.store.load().clone();
    let Some(snapshot) = current() else { return not_loaded() };
    let query = match parse(query) {
        Ok(query) => query,
        Err(message) => return stamp(answer::error(StatusCode::BAD_REQUEST, &message), &snapshot),
    };
    let etag = etag(&snapshot);
    if matches_etag(headers, &etag) {
        return stamp(with_etag(answer::not_modified(), &etag), &snapshot);
    }
    let Some(place) = api.turns.place() else { return stamp(busy(), &snapshot) };
    drop(snapshot);
    let Ok(turn) = Arc::clone(&api.turns.looking).acquire_owned().await else { return answer::internal_error() };
    // The newest there is now, not the one from before the wait.
    let Some(snapshot) = current() else { return not_loaded() };
    let looking = Arc::clone(&snapshot);
    let looked = tokio::task::spawn_blocking(move || {
        // Lowering it again costs one system call; where it is forbidden, the look is only less polite.
        let _ = rustix::process::setpriority_process(None, NICE);
        let page = render(&looking, &query);
        drop(turn);
        page
    });
    let looked = looked.await;
    drop(place);
    let answer = match looked {
        Ok(Ok(body)) => match api.memory.keep(body) {
            Some(body) => with_etag(answer::json(StatusCode::OK, body), &self::etag(&snapshot)),
            None => body::no_memory(),
        },
        Ok(Err(error)) => fault(ALL_MODELS, &error),
        // A panic, which its hook has logged.
        Err(_) => answer::internal_error(),
    };
    stamp(answer, &snapshot)
}

impl Turns {
    fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.places.try_acquire().ok()
    }
}

/// What is answered to a query follows from the catalog's content, and from this program.
fn etag(snapshot: &Snapshot) -> [u8; DIGITS + 2] {
    entity_tag(xxh3_64_with_seed(env!("CARGO_PKG_VERSION").as_bytes(), snapshot.revision()))
}

fn busy() -> Answer {
    let message = "others are looking through the models: try again in a second";
    let mut answer = answer::error(StatusCode::TOO_MANY_REQUESTS, message);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn render(snapshot: &Snapshot, query: &Query) -> serde_json::Result<Vec<u8>> {
    let page = search::page(snapshot, query);
    let mut json = br#"{"models":"#.to_vec();
    write_array(&mut json, &page.entries);
    json.extend_from_slice(br#","next":"#);
    let last = page.entries.last().filter(|_| page.more).map(|entry| String::from_utf8_lossy(entry.id()));
    serde_json::to_writer(&mut json, &last)?;
    json.push(b'}');
    Ok(json)
}

/// Parameters as forms write them. One without a value is as good as none, one of another name is none of ours.
fn parse(query: &str) -> Result<Query, String> {
    let (mut q, mut after, mut limit) = (None, None, None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = match &*form(name).unwrap_or_default() {
            "q" => &mut q,
            "after" => &mut after,
            "limit" => &mut limit,
            _ => continue,
        };
        let value = form(value).map_err(|fault| format!("`{name}` {fault}"))?;
        if place.replace(value).is_some() {
            return Err(format!("`{name}` is given twice: give it once"));
        }
    }
    let text = q.unwrap_or_default().into_owned();
    if text.len() > TEXT_BYTES {
        return Err(format!("`q` has {} bytes: the limit is {TEXT_BYTES}", text.len()));
    }
    let limit = match limit.filter(|limit| !limit.is_empty()) {
        None => DEFAULT_LIMIT,
        Some(limit) => Some(&*limit)
            .filter(|limit| limit.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|limit| limit.parse().ok())
            .filter(|limit| (1..=MAX_LIMIT).contains(limit))
            .ok_or_else(|| format!("`limit` must be a whole number from 1 to {MAX_LIMIT}"))?,
    };
    Ok(Query { text, after: after.unwrap_or_default().into_owned(), limit })
}

/// Decodes as forms encode: `+` is a space.
fn form(encoded: &str) -> Result<Cow<'_, str>, &'static str> {
    match encoded.contains('+') {
        true => decode(&encoded.replace('+', " ")).map(|decoded| Cow::Owned(decoded.into_owned())),
        false => decode(encoded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_strictly_and_the_rest_is_ignored() {
        let query = |text: &str, after: &str, limit| Ok(Query { text: text.into(), after: after.into(), limit });
        for (given, expected) in [
            ("", query("", "", 50)),
            ("q=&after=&limit=", query("", "", 50)),
            ("q&after&limit", query("", "", 50)),
            ("q=a+b%2Bc&after=x%2Fy=z&limit=200", query("a b+c", "x/y=z", 200)),
            ("%71=%C3%A4&limit=%31", query("ä", "", 1)),
            ("Q=a&x=%zz&%zz=1&=&&q=b&x=2", query("b", "", 50)),
            ("q=%zz", Err("`q` is not valid percent-encoding: `%` needs two hexadecimal digits".into())),
            ("after=%ff", Err("`after` is not valid UTF-8".into())),
            ("q=a&q=b", Err("`q` is given twice: give it once".into())),
            ("after=&after=", Err("`after` is given twice: give it once".into())),
        ] {
            assert_eq!(parse(given), expected, "{given}");
        }
        for limit in ["0", "201", "-1", "+5", "1.5", "ten", "99999999999999999999999", "%20"] {
            let refused = Err("`limit` must be a whole number from 1 to 200".into());
            assert_eq!(parse(&format!("limit={limit}")), refused, "{limit}");
        }
        assert_eq!(parse(&format!("q={}", "ä".repeat(128))).map(|query| query.text.len()), Ok(256));
        let refused = parse(&format!("q={}", "ä".repeat(129)));
        assert_eq!(refused, Err("`q` has 258 bytes: the limit is 256".into()));
    }
}

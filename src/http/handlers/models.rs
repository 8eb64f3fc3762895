//! `GET /api/models`: the models in the order of their ids, page by page, optionally filtered by a search.
//!
//! For people. A page is a scan of the whole catalog, which [`Api::scans`] runs on a thread beside the workers. A few
//! requests may queue; more get 429. While the catalog does not change, a client that sends the entity tag gets 304
//! without a scan.

use std::borrow::Cow;
use std::sync::Arc;

use hyper::{Request, StatusCode};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::catalog::entry::write_array;
use crate::catalog::search::{self, Query};
use crate::catalog::snapshot::Snapshot;
use crate::http::etag::{DIGITS, entity_tag, matches_etag};
use crate::http::percent::decode;
use crate::http::response::{self, Response};
use crate::http::{ALL_MODELS, Api, with_current_revision, with_revision};

/// Models on a page by default, and the maximum.
const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 200;
/// Maximum bytes of the search text, decoded.
const TEXT_BYTES: usize = 256;
/// Requests whose scan runs or is queued. With a million models the last of them waits about a second.
pub(crate) const MAX_REQUESTS: usize = 8;

/// The query of a request, such as `q=flux&limit=10`.
///
/// # Errors
/// A response that needs no scan.
pub(crate) fn parse<B>(api: &Api, request: &Request<B>) -> Result<Query, Response> {
    let current = api.store.load();
    let Some(snapshot) = current.as_deref() else { return Err(response::not_loaded()) };
    let query = parse_query(request.uri().query().unwrap_or_default())
        .map_err(|message| with_revision(response::error(StatusCode::BAD_REQUEST, &message), snapshot))?;
    let etag = etag(snapshot);
    if matches_etag(request.headers(), &etag) {
        return Err(with_revision(response::with_etag(response::not_modified(), &etag), snapshot));
    }
    Ok(query)
}

/// The page that a query asks for.
pub(crate) async fn respond(api: &Api, query: Query) -> Response {
    // Held until the scan has ended or this request is dropped.
    let Ok(_permit) = api.list_requests.try_acquire() else {
        let message = "too many list requests: retry in a second";
        return with_current_revision(api, response::retry_later(StatusCode::TOO_MANY_REQUESTS, message));
    };
    let store = Arc::clone(&api.store);
    // The scan uses the snapshot that is current when its turn comes.
    let page = api.scans.run(move || {
        let snapshot = store.load().clone()?;
        let page = render(&snapshot, &query);
        Some((snapshot, page))
    });
    let (snapshot, page) = match page.await {
        Ok(Some((snapshot, page))) => (snapshot, page),
        Ok(None) => return response::not_loaded(),
        Err(error) => return with_current_revision(api, response::not_offloaded(&error)),
    };
    let response = match page {
        Ok(body) => match api.memory.try_bytes(body) {
            Some(body) => response::with_etag(response::json(StatusCode::OK, body), &etag(&snapshot)),
            None => response::out_of_memory(),
        },
        Err(error) => response::serialization_failed(ALL_MODELS, &error),
    };
    with_revision(response, &snapshot)
}

/// The response to a query depends on the catalog's content and on this version of the program.
fn etag(snapshot: &Snapshot) -> [u8; DIGITS + 2] {
    entity_tag(xxh3_64_with_seed(env!("CARGO_PKG_VERSION").as_bytes(), snapshot.revision()))
}

fn render(snapshot: &Snapshot, query: &Query) -> serde_json::Result<Vec<u8>> {
    let page = search::page(snapshot, query);
    let mut json = br#"{"models":"#.to_vec();
    write_array(&mut json, &page.entries);
    json.extend_from_slice(format!(r#","total":{},"next":"#, page.total).as_bytes());
    let last = page.entries.last().filter(|_| page.more).map(|entry| String::from_utf8_lossy(entry.id()));
    serde_json::to_writer(&mut json, &last)?;
    json.push(b'}');
    Ok(json)
}

/// Parameters in form encoding. One without a value counts as absent; unknown ones are ignored.
fn parse_query(query: &str) -> Result<Query, String> {
    let (mut q, mut after, mut limit) = (None, None, None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let parameter = match &*form(name).unwrap_or_default() {
            "q" => &mut q,
            "after" => &mut after,
            "limit" => &mut limit,
            _ => continue,
        };
        let value = form(value).map_err(|reason| format!("`{name}` {reason}"))?;
        if parameter.replace(value).is_some() {
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

/// Decodes form encoding, where `+` is a space.
fn form(encoded: &str) -> Result<Cow<'_, str>, &'static str> {
    if encoded.contains('+') {
        return decode(&encoded.replace('+', " ")).map(|decoded| Cow::Owned(decoded.into_owned()));
    }
    decode(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_parsed_strictly_and_unknown_ones_ignored() {
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
            assert_eq!(parse_query(given), expected, "{given}");
        }
        for limit in ["0", "201", "-1", "+5", "1.5", "ten", "99999999999999999999999", "%20"] {
            let refused = Err("`limit` must be a whole number from 1 to 200".into());
            assert_eq!(parse_query(&format!("limit={limit}")), refused, "{limit}");
        }
        assert_eq!(parse_query(&format!("q={}", "ä".repeat(128))).map(|query| query.text.len()), Ok(256));
        let refused = parse_query(&format!("q={}", "ä".repeat(129)));
        assert_eq!(refused, Err("`q` has 258 bytes: the limit is 256".into()));
    }
}

//! `GET /`: a self-contained HTML page. It shows data of the API and cannot change anything.
//!
//! Text from rows is untrusted. The Content-Security-Policy allows only the script and the style of the page itself and
//! requests to this server only, so that even a bug in the page could not turn a row into more than text.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use hyper::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

use super::answer::{self, Answer};
use super::etag::{DIGITS, entity_tag, matches_etag, with_etag};

const HTML: &str = include_str!("page.html");

/// Derived from the page on its first request: hashing it is not part of the start.
static MADE: LazyLock<Made> = LazyLock::new(|| Made { etag: entity_tag(xxh3_64(HTML.as_bytes())), policy: policy() });

struct Made {
    etag: [u8; DIGITS + 2],
    policy: String,
}

/// Returns the page, or 304 if the client's copy is current.
pub fn answer(headers: &HeaderMap) -> Answer {
    let mut answer = if matches_etag(headers, &MADE.etag) {
        answer::not_modified()
    } else {
        answer::with_type(StatusCode::OK, HeaderValue::from_static("text/html; charset=utf-8"), HTML)
    };
    let policy = HeaderValue::from_str(&MADE.policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    answer.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    with_etag(answer, &MADE.etag)
}

/// Hashes instead of nonces: the page is the same for every client and can be cached. With trusted types the browser
/// refuses to parse any string as HTML.
fn policy() -> String {
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        source("script"),
        source("style")
    )
}

/// The source expression with the hash of the content of the page's only element of this name.
fn source(element: &str) -> String {
    let inside =
        HTML.split_once(&format!("<{element}>")).and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    let hash = Sha256::digest(inside.map_or("", |(inside, _)| inside));
    format!("'sha256-{}'", BASE64_STANDARD.encode(hash))
}

//! `GET /`: a single self-contained page for people. It shows what the API returns and cannot change anything.
//!
//! Rows are untrusted text to it. Its Content-Security-Policy allows only its own script and style, and requests to
//! this server only, so that even a bug in the page could not turn a row into more than text.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use hyper::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

use crate::http::etag::{DIGITS, entity_tag, matches_etag};
use crate::http::response::{self, Response};

const HTML: &str = concat!(
    include_str!("page/page.html"),
    "<script>\n",
    include_str!("page/elements.js"),
    include_str!("page/address.js"),
    include_str!("page/live.js"),
    include_str!("page/charts.js"),
    include_str!("page/status.js"),
    include_str!("page/list.js"),
    include_str!("page/details.js"),
    include_str!("page/start.js"),
    "</script>\n</body>\n</html>\n"
);

/// Derived from the page's text at the first request for it.
static PAGE: LazyLock<Page> = LazyLock::new(|| Page { etag: entity_tag(xxh3_64(HTML.as_bytes())), policy: policy() });

struct Page {
    etag: [u8; DIGITS + 2],
    policy: String,
}

/// The page, or 304 if the client has the current one.
pub(crate) fn respond(headers: &HeaderMap) -> Response {
    let mut response = if matches_etag(headers, &PAGE.etag) {
        response::not_modified()
    } else {
        response::with_type(StatusCode::OK, HeaderValue::from_static("text/html; charset=utf-8"), HTML)
    };
    let policy = HeaderValue::from_str(&PAGE.policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response::with_etag(response, &PAGE.etag)
}

/// Hashes instead of nonces: the page is the same for everybody and can be cached. Trusted types make the browser
/// refuse to parse any text as HTML.
fn policy() -> String {
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        source("script"),
        source("style")
    )
}

/// The hash of the content of the page's only element of this name.
fn source(element: &str) -> String {
    let inside =
        HTML.split_once(&format!("<{element}>")).and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    let hash = Sha256::digest(inside.map_or("", |(inside, _)| inside));
    format!("'sha256-{}'", BASE64_STANDARD.encode(hash))
}

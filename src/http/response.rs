//! Responses: JSON bodies, error bodies, the headers they share.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, StatusCode};
use serde::Serialize;

use super::etag::{header, hex_digits, set_etag};
use super::offload::OffloadError;
use crate::catalog::snapshot::Snapshot;

/// Every response has its whole body in memory.
pub type Response = hyper::Response<Full<Bytes>>;

const CATALOG_REVISION: HeaderName = HeaderName::from_static("catalog-revision");

/// Seconds after which a client may retry when something is only temporarily unavailable.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");

const NOT_LOADED: &str = "Catalog not loaded yet";

/// The body of an error.
#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<&'a str>,
}

/// A response with a JSON body.
pub(crate) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    with_type(status, HeaderValue::from_static("application/json"), body)
}

/// A response with a body of any type.
pub(crate) fn with_type(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// A 200 response that reuses the request's `HeaderMap`, so that most requests allocate no other one.
pub(crate) fn reusing(mut headers: HeaderMap, content_type: HeaderValue, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    headers.clear();
    headers.insert(CONTENT_TYPE, content_type);
    *response.headers_mut() = headers;
    response
}

/// Adds the entity tag; caches must revalidate the response before each use.
pub(crate) fn with_etag(mut response: Response, etag: &[u8]) -> Response {
    set_etag(response.headers_mut(), etag);
    response
}

/// 304: what the client has is current.
pub(crate) fn not_modified() -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// `{"error": …}`
pub(crate) fn error(status: StatusCode, message: &str) -> Response {
    error_body(status, &ErrorBody { error: message, model_id: None })
}

/// An error with `Retry-After: 1`.
pub(crate) fn retry_later(status: StatusCode, message: &str) -> Response {
    let mut response = error(status, message);
    response.headers_mut().insert(RETRY_AFTER, RETRY_SECONDS);
    response
}

/// 503: the memory budget has no room for a large request or response.
pub(crate) fn out_of_memory() -> Response {
    retry_later(StatusCode::SERVICE_UNAVAILABLE, "too many large requests: retry in a second")
}

/// 503 or 500: there is no result of an offloaded job.
pub(crate) fn not_offloaded(error: &OffloadError) -> Response {
    match error {
        OffloadError::Busy => {
            let message = "too many requests that read the whole catalog: retry in a second";
            retry_later(StatusCode::SERVICE_UNAVAILABLE, message)
        }
        OffloadError::Panicked => internal_error(),
    }
}

/// 503: there is no snapshot yet.
pub(crate) fn not_loaded() -> Response {
    retry_later(StatusCode::SERVICE_UNAVAILABLE, NOT_LOADED)
}

/// 503: there is no snapshot yet, because of `reason`.
pub(crate) fn not_loaded_because(reason: &str) -> Response {
    retry_later(StatusCode::SERVICE_UNAVAILABLE, &format!("{NOT_LOADED}: {reason}"))
}

/// 404 for an id that the catalog does not have.
pub(crate) fn model_not_found(id: &str) -> Response {
    error_body(StatusCode::NOT_FOUND, &ErrorBody { error: "Model not found", model_id: Some(id) })
}

/// 405 with the methods that are allowed.
pub(crate) fn method_not_allowed(allow: &'static str) -> Response {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// 500; the cause goes to the log.
pub(crate) fn internal_error() -> Response {
    error(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error")
}

/// 500 for a response that could not be serialized; logs the cause.
pub(crate) fn serialization_failed(route: &str, error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(route, error, "cannot serialize the response");
    internal_error()
}

fn error_body(status: StatusCode, body: &ErrorBody<'_>) -> Response {
    // Serializing two strings cannot fail; an empty body would be the worst that could happen.
    json(status, serde_json::to_vec(body).unwrap_or_default())
}

/// Adds the revision of the snapshot that a response was built from.
pub(crate) fn with_revision(mut response: Response, snapshot: &Snapshot) -> Response {
    set_revision(&mut response, snapshot.revision());
    response
}

/// Adds the revision of a snapshot.
pub(crate) fn set_revision(response: &mut Response, revision: u64) {
    response.headers_mut().insert(CATALOG_REVISION, header(&hex_digits(revision)));
}

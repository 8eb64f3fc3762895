//! How an answer looks: JSON bodies, error bodies, the headers every answer has.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

/// Every answer has its whole body in memory.
pub type Answer = Response<Full<Bytes>>;

/// The body of an error.
#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<&'a str>,
}

/// An answer with a JSON body.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    with_type(status, HeaderValue::from_static("application/json"), body)
}

/// An answer with a body of any type.
pub fn with_type(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

/// 304: what the client has is still right.
pub fn not_modified() -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = StatusCode::NOT_MODIFIED;
    answer
}

/// `{"error": …}`
pub fn error(status: StatusCode, message: &str) -> Answer {
    error_body(status, &ErrorBody { error: message, model_id: None })
}

/// 404 for an id that the catalog does not have.
pub fn model_not_found(id: &str) -> Answer {
    error_body(StatusCode::NOT_FOUND, &ErrorBody { error: "Model not found", model_id: Some(id) })
}

/// 405 with the methods that would do.
pub fn method_not_allowed(allow: &'static str) -> Answer {
    let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

/// 500; what went wrong is for the log.
pub fn internal_error() -> Answer {
    error(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error")
}

fn error_body(status: StatusCode, body: &ErrorBody<'_>) -> Answer {
    // Two strings always serialize; an empty body would be the worst that could happen.
    json(status, serde_json::to_vec(body).unwrap_or_default())
}

//! Browsers' questions whether a page of another origin may read answers. Off, unless origins are set.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use hyper::{HeaderMap, Method, StatusCode};

use super::answer::Answer;

/// Which origins may read answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cors {
    /// All.
    Any,
    /// These.
    Only(Vec<HeaderValue>),
}

impl Cors {
    /// Adds to an answer what a browser wants to know.
    pub fn allow(&self, origin: Option<&HeaderValue>, answer: &mut Answer) {
        let headers = answer.headers_mut();
        let allowed = match self {
            Self::Any => origin.map(|_| HeaderValue::from_static("*")),
            Self::Only(origins) => {
                // A cache must not give one origin's answer to another.
                headers.insert(VARY, HeaderValue::from_static("Origin"));
                origin.filter(|origin| origins.contains(origin)).cloned()
            }
        };
        if let Some(allowed) = allowed {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("etag, catalog-revision"));
        }
    }

    /// The answer to a preflight request, if it is one; [`Cors::allow`] completes it.
    pub fn preflight(method: &Method, headers: &HeaderMap) -> Option<Answer> {
        let asks = headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        (method == Method::OPTIONS && asks).then(|| {
            let mut answer = Answer::default();
            *answer.status_mut() = StatusCode::NO_CONTENT;
            for (name, value) in [
                (ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST"),
                (ACCESS_CONTROL_ALLOW_HEADERS, "content-type, if-none-match"),
                (ACCESS_CONTROL_MAX_AGE, "7200"),
            ] {
                answer.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            answer
        })
    }
}

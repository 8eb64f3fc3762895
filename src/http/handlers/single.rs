//! `GET /api/models/{id}`: one model.

use hyper::header::HeaderValue;
use hyper::{HeaderMap, StatusCode};

use crate::http::etag::{entity_tag, matches_etag, set_etag};
use crate::http::percent::decode;
use crate::http::response::{self, Response};
use crate::http::{Handler, MODELS, set_revision, with_revision};

impl Handler {
    pub(in crate::http) fn single(&self, path: &str, headers: HeaderMap) -> Response {
        let current = self.api.store.load();
        let Some(snapshot) = current.as_deref() else { return response::not_loaded() };
        let id = match decode(path.strip_prefix(MODELS).unwrap_or_default()) {
            Ok(id) => id,
            Err(reason) => {
                let response = response::error(StatusCode::BAD_REQUEST, &format!("the model id {reason}"));
                return with_revision(response, snapshot);
            }
        };
        let Some(entry) = snapshot.get(&id) else {
            self.metrics.lookups(0, 1);
            self.metrics.count_missing(&[&id]);
            return with_revision(response::model_not_found(&id), snapshot);
        };
        self.metrics.lookups(1, 0);
        let etag = entity_tag(entry.digest());
        let mut response = if matches_etag(&headers, &etag) {
            response::not_modified()
        } else {
            let Some(json) = self.api.memory.try_bytes(entry.json().to_vec()) else {
                return with_revision(response::out_of_memory(), snapshot);
            };
            response::reusing(headers, HeaderValue::from_static("application/json"), json)
        };
        set_etag(response.headers_mut(), &etag);
        set_revision(&mut response, snapshot.revision());
        response
    }
}

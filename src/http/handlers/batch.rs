//! `POST /api/models/batch`: many models in one response, all of them from one snapshot.

use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, StatusCode};

use crate::catalog::dependencies::Selection;
use crate::catalog::snapshot::Snapshot;
use crate::http::aria2::{self, Format};
use crate::http::batch_request::BatchRequest;
use crate::http::memory_budget::Reservation;
use crate::http::response::{self, Response};
use crate::http::{Handler, batch_response, set_revision};

/// What a batch needs of its request's head.
pub(in crate::http) struct Head {
    format: Result<Format, &'static str>,
    /// Reused for the response.
    headers: HeaderMap,
}

impl Head {
    /// Takes the headers out of the request.
    pub(in crate::http) fn take<B>(request: &mut Request<B>) -> Self {
        let format = Format::of_query(request.uri().query());
        Self { format, headers: std::mem::take(request.headers_mut()) }
    }
}

impl Handler {
    /// The response to a batch with this body, whose memory is reserved until the response has been built.
    pub(in crate::http) fn batch(&self, head: Head, body: &[u8], reservation: Reservation) -> Response {
        let bad_request = |message: &str| self.with_revision(response::error(StatusCode::BAD_REQUEST, message));
        let format = match head.format {
            Ok(format) => format,
            Err(message) => return bad_request(message),
        };
        let mut parser = self.parser();
        let batch = match parser.parse(body, self.api.limits.batch_ids) {
            Ok(batch) => batch,
            Err(error) => return bad_request(&error.to_string()),
        };
        let current = self.api.store.load();
        let Some(snapshot) = current.as_deref() else { return response::not_loaded() };
        let mut response = if format == Format::Json && !batch.resolve_dependencies {
            self.models(snapshot, &batch, head.headers, reservation)
        } else {
            self.selection(snapshot, &batch, format, head.headers, reservation)
        };
        set_revision(&mut response, snapshot);
        response
    }

    fn models(
        &self,
        snapshot: &Snapshot,
        batch: &BatchRequest<'_>,
        headers: HeaderMap,
        reservation: Reservation,
    ) -> Response {
        let found = batch_response::look_up(snapshot, &batch.ids);
        let mut json = Vec::with_capacity(found.size());
        found.write(&mut json);
        self.count_batch(batch.ids.len(), &found.missing);
        self.respond_with(headers, HeaderValue::from_static("application/json"), json, reservation)
    }

    fn selection(
        &self,
        snapshot: &Snapshot,
        batch: &BatchRequest<'_>,
        format: Format,
        headers: HeaderMap,
        reservation: Reservation,
    ) -> Response {
        let selection = if batch.resolve_dependencies {
            Selection::with_dependencies(snapshot, &batch.ids, self.api.limits.batch_ids)
        } else {
            Ok(Selection::requested(snapshot, &batch.ids))
        };
        let selection = match selection {
            Ok(selection) => selection,
            Err(error) => return response::error(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        self.count_batch(batch.ids.len(), &selection.not_found);
        let (content_type, body) = match format {
            Format::Json => ("application/json", batch_response::with_dependencies(&selection)),
            Format::Aria2 => ("text/plain; charset=utf-8", aria2::render(&selection).into()),
        };
        self.respond_with(headers, HeaderValue::from_static(content_type), body, reservation)
    }

    /// The request's body is done with; its reservation ends, and the response has one of its own.
    fn respond_with(
        &self,
        headers: HeaderMap,
        content_type: HeaderValue,
        body: Vec<u8>,
        reservation: Reservation,
    ) -> Response {
        drop(reservation);
        match self.api.memory.try_bytes(body) {
            Some(body) => response::reusing(headers, content_type, body),
            None => response::out_of_memory(),
        }
    }

    fn count_batch(&self, ids: usize, missing: &[&str]) {
        self.metrics.batch(ids);
        self.metrics.lookups(ids - missing.len(), missing.len());
        self.metrics.missing(missing);
    }
}

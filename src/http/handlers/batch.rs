//! `POST /api/models/batch`: many models in one response, all of them from one snapshot.

use futures_util::future::Either;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, StatusCode};

use crate::catalog::dependencies::Selection;
use crate::catalog::entry::Entry;
use crate::catalog::snapshot::Snapshot;
use crate::http::aria2::{self, Format};
use crate::http::batch_request::BatchRequest;
use crate::http::memory_budget::Reservation;
use crate::http::response::{self, Response};
use crate::http::{Handler, batch_response, set_revision, with_revision};

/// The parts of a request's head that the response to a batch needs.
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

/// An input file for aria2 whose models are not rendered yet.
pub(in crate::http) struct Aria2File {
    head: String,
    models: Vec<Entry>,
    revision: u64,
    headers: HeaderMap,
    reservation: Reservation,
}

/// Models of an input file for aria2 that are rendered before other connections of the thread get their turn. A model
/// takes up to 5 µs.
const ARIA2_STEP: usize = 50;

impl Handler {
    /// The response to a batch with this body, whose memory is reserved until the response has been built.
    pub(in crate::http) fn batch(
        &self,
        head: Head,
        body: &[u8],
        reservation: Reservation,
    ) -> Either<Response, Aria2File> {
        let bad_request = |message: &str| self.with_revision(response::error(StatusCode::BAD_REQUEST, message));
        let format = match head.format {
            Ok(format) => format,
            Err(message) => return Either::Left(bad_request(message)),
        };
        let mut parser = self.parser.lock();
        let batch = match parser.parse(body, self.api.limits.max_batch_ids) {
            Ok(batch) => batch,
            Err(error) => return Either::Left(bad_request(&error.to_string())),
        };
        let current = self.api.store.load();
        let Some(snapshot) = current.as_deref() else { return Either::Left(response::not_loaded()) };
        let responded = if format == Format::Json && !batch.resolve_dependencies {
            Either::Left(self.models(snapshot, &batch, head.headers, reservation))
        } else {
            self.selection(snapshot, &batch, format, head.headers, reservation)
        };
        match responded {
            Either::Left(response) => Either::Left(with_revision(response, snapshot)),
            file => file,
        }
    }

    /// The response with an input file for aria2.
    pub(in crate::http) async fn aria2(&self, file: Aria2File) -> Response {
        let Aria2File { head: mut text, models, revision, headers, reservation } = file;
        for (step, models) in models.chunks(ARIA2_STEP).enumerate() {
            if step > 0 {
                tokio::task::yield_now().await;
            }
            models.iter().for_each(|entry| aria2::push_item(&mut text, entry));
        }
        let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
        let mut response = self.respond_with(headers, content_type, text.into(), reservation);
        set_revision(&mut response, revision);
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
    ) -> Either<Response, Aria2File> {
        let selection = if batch.resolve_dependencies {
            Selection::with_dependencies(snapshot, &batch.ids, self.api.limits.max_batch_ids)
        } else {
            Ok(Selection::requested(snapshot, &batch.ids))
        };
        let selection = match selection {
            Ok(selection) => selection,
            Err(error) => return Either::Left(response::error(StatusCode::BAD_REQUEST, &error.to_string())),
        };
        self.count_batch(batch.ids.len(), &selection.not_found);
        match format {
            Format::Json => {
                let json = batch_response::with_dependencies(&selection);
                let content_type = HeaderValue::from_static("application/json");
                Either::Left(self.respond_with(headers, content_type, json, reservation))
            }
            Format::Aria2 => {
                let head = aria2::head(&selection);
                let models = selection.models.into_iter().cloned().collect();
                Either::Right(Aria2File { head, models, revision: snapshot.revision(), headers, reservation })
            }
        }
    }

    /// Ends the reservation of the request's body, and reserves memory for the response.
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
        self.metrics.count_missing(missing);
    }
}

//! `GET /api/catalog`: the state of the catalog, the rejected rows with the reasons, the most requested unknown ids,
//! and the servers that follow the same database. Every list is bounded, whatever the table holds and whatever clients
//! send.

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use serde::Serialize;

use super::ops::CatalogStatus;
use crate::catalog::snapshot::Snapshot;
use crate::http::response::{self, Response};
use crate::http::{Api, CATALOG, with_revision};
use crate::metrics::{ID_BYTES, truncate};
use crate::sync::{Fleet, FleetMember};

/// Maximum entries of each list; the counts beside them include all.
const LISTED: usize = 100;
/// Maximum bytes of a reason, which may quote a row or a message of Postgres.
const REASON_BYTES: usize = 400;

#[derive(Serialize)]
struct Catalog<'a> {
    #[serde(flatten)]
    status: CatalogStatus,
    /// Why the source could not be read since the last sync. Missing if the last attempt succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    sync_error: Option<String>,
    /// The first in the order of ids.
    rejected_rows: Vec<RejectedRow>,
    /// Lookups of unknown ids since the start.
    not_found: u64,
    /// The most requested ones first, without those that the catalog has by now.
    not_found_ids: Vec<NotFound>,
    /// The first tables of the view whose changes only an audit finds. Missing without a database.
    #[serde(skip_serializing_if = "Option::is_none")]
    unwatched_tables: Option<&'a [String]>,
    /// Number of servers that follow the same database. Missing if the database does not show them.
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<i64>,
    /// The first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    fleet: Option<&'a [FleetMember]>,
}

#[derive(Serialize)]
struct RejectedRow {
    id: String,
    reason: String,
    /// Whether the last valid version of the model is served.
    served: bool,
}

#[derive(Serialize)]
struct NotFound {
    id: String,
    /// Requests; a lower bound.
    asked: u64,
}

/// The response to `GET /api/catalog`.
pub(crate) fn respond(api: &Api) -> Response {
    let current = api.store.load();
    let Some(snapshot) = current.as_deref() else {
        return sync_error(api).map_or_else(response::not_loaded, |error| response::not_loaded_because(&error));
    };
    let (fleet, unwatched) = (api.sync.fleet(), api.sync.unwatched());
    let unwatched = unwatched.as_deref().map(|tables| &tables[..tables.len().min(LISTED)]);
    let response = match serde_json::to_vec(&catalog(api, snapshot, fleet.as_deref(), unwatched)) {
        Ok(body) => match api.memory.try_bytes(body) {
            Some(body) => {
                let mut response = response::json(StatusCode::OK, body);
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                response
            }
            None => response::out_of_memory(),
        },
        Err(error) => response::serialization_failed(CATALOG, &error),
    };
    with_revision(response, snapshot)
}

fn catalog<'a>(
    api: &Api,
    snapshot: &Snapshot,
    fleet: Option<&'a Fleet>,
    unwatched_tables: Option<&'a [String]>,
) -> Catalog<'a> {
    let rejected = snapshot.rejected().iter().take(LISTED);
    let (not_found, ids) = api.metrics.top_missing();
    let mut ids: Vec<_> = ids.into_iter().filter(|(id, _)| id.truncated || snapshot.get(&id.text).is_none()).collect();
    ids.sort_by(|(a, count_a), (b, count_b)| count_b.cmp(count_a).then_with(|| a.cmp(b)));
    Catalog {
        status: CatalogStatus::new(Some(snapshot), api),
        sync_error: sync_error(api),
        rejected_rows: rejected
            .map(|(id, reason)| RejectedRow {
                id: shortened(id, ID_BYTES),
                reason: shortened(reason, REASON_BYTES),
                served: snapshot.get(id).is_some(),
            })
            .collect(),
        not_found,
        not_found_ids: (ids.into_iter().take(LISTED))
            .map(|(id, asked)| NotFound { id: with_ellipsis(&id.text, id.truncated), asked })
            .collect(),
        unwatched_tables,
        replicas: fleet.map(|fleet| fleet.total),
        fleet: fleet.map(|fleet| &*fleet.members),
    }
}

fn sync_error(api: &Api) -> Option<String> {
    api.sync.failure().map(|failure| shortened(&failure, REASON_BYTES))
}

fn shortened(text: &str, bytes: usize) -> String {
    let (text, truncated) = truncate(text, bytes);
    with_ellipsis(text, truncated)
}

fn with_ellipsis(text: &str, truncated: bool) -> String {
    if truncated { format!("{text}…") } else { text.into() }
}

//! `GET /api/catalog`: what is served as a whole, which rows are not and why, which ids are asked for in vain. Every
//! list is bounded, whatever is in the table and whatever clients send.

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use serde::Serialize;

use super::answer::{self, Answer};
use super::{Api, CATALOG, body};
use crate::catalog::snapshot::Snapshot;
use crate::missing::{ID_BYTES, cut};
use crate::ops::{Standing, fault};

/// Entries of each list at most; the numbers beside them count all.
const LISTED: usize = 100;
/// A reason may repeat what is in the row.
const REASON_BYTES: usize = 400;

#[derive(Serialize)]
struct Catalog {
    #[serde(flatten)]
    standing: Standing,
    /// The first by id.
    rejected_rows: Vec<RejectedRow>,
    /// Look-ups since the start.
    not_found: u64,
    /// Those asked for most often first, as far as the catalog lacks them now.
    not_found_ids: Vec<NotFound>,
}

#[derive(Serialize)]
struct RejectedRow {
    id: String,
    reason: String,
}

#[derive(Serialize)]
struct NotFound {
    id: String,
    /// Times, at least.
    asked: u64,
}

/// The answer for this snapshot.
pub fn answer(api: &Api, snapshot: &Snapshot) -> Answer {
    let rejected = snapshot.rejected().iter().take(LISTED);
    let (not_found, ids) = api.metrics.missing();
    let mut ids: Vec<_> = ids.into_iter().filter(|(id, _)| id.cut || snapshot.get(&id.text).is_none()).collect();
    ids.sort_by(|(a, asked_a), (b, asked_b)| asked_b.cmp(asked_a).then_with(|| a.cmp(b)));
    let catalog = Catalog {
        standing: Standing::of(Some(snapshot), api.store.last_sync()),
        rejected_rows: rejected
            .map(|(id, reason)| RejectedRow { id: shortened(id, ID_BYTES), reason: shortened(reason, REASON_BYTES) })
            .collect(),
        not_found,
        not_found_ids: (ids.into_iter().take(LISTED))
            .map(|(id, asked)| NotFound { id: with_ellipsis(&id.text, id.cut), asked })
            .collect(),
    };
    match serde_json::to_vec(&catalog) {
        Ok(body) => {
            let Some(body) = api.memory.keep(body) else { return body::no_memory() };
            let mut answer = answer::json(StatusCode::OK, body);
            answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            answer
        }
        Err(error) => fault(CATALOG, &error),
    }
}

fn shortened(text: &str, bytes: usize) -> String {
    let (text, cut) = cut(text, bytes);
    with_ellipsis(text, cut)
}

fn with_ellipsis(text: &str, cut: bool) -> String {
    if cut { format!("{text}…") } else { text.into() }
}

//! A small catalog and a handler that serves it.

use std::sync::Arc;

use model_catalog::catalog::model::{RawModel, Rules};
use model_catalog::catalog::refresh::Refresh;
use model_catalog::catalog::snapshot::Snapshot;
use model_catalog::catalog::store::{Publisher, Store};
use model_catalog::http::memory_budget::MemoryBudget;
use model_catalog::http::{Api, Handler, Limits, Routes};
use model_catalog::metrics::Metrics;

pub fn snapshot() -> Snapshot {
    let (before, rules) = (Snapshot::default(), Rules::default());
    let mut refresh = Refresh::full(&before, &rules);
    for id in ["a", "b", "flux-dev", "ä/ö", "a b", "\"", "%"] {
        let raw = RawModel {
            id: Some(id),
            name: Some("x"),
            download_url: Some("https://example.org/x"),
            auth_required: Some(false),
            save_path: Some("a/b"),
            ..RawModel::default()
        };
        refresh.row(id, Ok(raw));
    }
    refresh.finish().snapshot
}

#[allow(dead_code, reason = "not every target sends requests")]
pub fn handler() -> Arc<Handler> {
    let store = Arc::new(Store::default());
    Publisher::new(Arc::clone(&store)).publish(Arc::new(snapshot()));
    let limits = Limits { max_batch_ids: 20, max_body_bytes: 4096 };
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let api = Arc::new(Api::new(store, metrics, limits, MemoryBudget::new(1 << 24)));
    let scans = Arc::clone(&api);
    std::thread::spawn(move || scans.scans.run_jobs(0));
    Arc::new(Handler::new(api, Routes::All))
}

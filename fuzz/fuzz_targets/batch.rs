//! The body of a batch: parsed with the same result as from a serde_json tree, and the response accounts for every id.
#![no_main]

mod catalog;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use model_catalog::catalog::snapshot::Snapshot;
use model_catalog::http::batch_request::{BatchError, BatchParser};
use model_catalog::http::batch_response;
use serde_json::Value;

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(catalog::snapshot);

fuzz_target!(|body: &[u8]| {
    let mut parser = BatchParser::default();
    let read = parser.parse(body, 20).map(|batch| batch.ids);
    // serde_json limits nesting, so it rejects more.
    if let Ok(tree) = serde_json::from_slice::<Value>(body) {
        let ids = tree.get("model_ids").and_then(Value::as_array);
        let wanted = ids.ok_or(BatchError::NotAnArray).and_then(|ids| {
            let place = ids.iter().position(|id| !id.is_string());
            let count = ids.len();
            match place {
                Some(place) => Err(BatchError::NotAString(place)),
                None if !tree.get("resolve_dependencies").is_none_or(Value::is_boolean) => Err(BatchError::NotABoolean),
                None if count > 20 => Err(BatchError::TooMany { count, limit: 20 }),
                None => Ok(ids.iter().filter_map(Value::as_str).collect::<Vec<_>>()),
            }
        });
        assert_eq!(read, wanted);
    }
    let Ok(ids) = read else { return };
    let found = batch_response::look_up(&SNAPSHOT, &ids);
    let mut json = Vec::new();
    found.write(&mut json);
    assert_eq!(json.len(), found.size());
    let response: Value = serde_json::from_slice(&json).expect("the response is JSON");
    let place = |id: &str| ids.iter().position(|asked| *asked == id).expect("the id was requested");
    let models = response["models"].as_array().expect("models");
    let places: Vec<_> = models.iter().map(|model| place(model["id"].as_str().expect("an id"))).collect();
    assert!(places.is_sorted_by(|a, b| a < b), "in the order of the request, each once");
    let missing: Vec<_> = ids.iter().filter(|id| SNAPSHOT.get(id).is_none()).map(|id| Value::from(&**id)).collect();
    assert_eq!(response["not_found"], Value::from(missing));
});

//! Property tests, each against a reference model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use model_catalog::catalog::model::{RawModel, Rules};
use model_catalog::catalog::refresh::{Refresh, Refreshed};
use model_catalog::catalog::snapshot::Snapshot;
use model_catalog::catalog::store::{Publisher, Store};
use model_catalog::http::batch_request::BatchParser;
use model_catalog::http::memory_budget::MemoryBudget;
use model_catalog::http::{Api, Handler, Limits, Routes};
use model_catalog::metrics::Metrics;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

/// A failure becomes a named test, so proptest keeps no regression files.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// Ids that collide with paths, with JSON and with each other.
const IDS: [&str; 14] = [
    "a",
    "A",
    "a ",
    "flux-dev",
    "black-forest-labs/FLUX.1-dev",
    "batch",
    "..",
    "%2F",
    "a?b#c",
    "größe",
    "e\u{301}",
    "😀",
    "\"\\",
    "'; DROP TABLE models; --",
];

/// A row of the table, valid if it has a name.
#[derive(Debug, Clone)]
struct Row {
    name: Option<String>,
    size: Option<u32>,
    dependencies: Vec<String>,
    auth_required: bool,
    description: Option<String>,
}

/// Text without control characters, which are rejected.
fn text() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{0,12}"
}

fn row() -> impl Strategy<Value = Row> {
    let name = prop::option::weighted(0.8, text().prop_filter("a name", |name| !name.is_empty()));
    let dependencies = prop::collection::vec(text(), 0..3);
    let all = (name, prop::option::of(0..10_000_u32), dependencies, any::<bool>(), prop::option::of(text()));
    all.prop_map(|(name, size, dependencies, auth_required, description)| Row {
        name,
        size,
        dependencies,
        auth_required,
        description,
    })
}

/// Changes read by one delta; `None` = deleted.
type Delta = BTreeMap<&'static str, Option<Row>>;

fn delta() -> impl Strategy<Value = Delta> {
    prop::collection::btree_map(select(&IDS[..]), prop::option::weighted(0.75, row()), 0..5)
}

impl Row {
    /// Passes the row to a refresh as the database would.
    fn put(&self, refresh: &mut Refresh<'_>, id: &str) {
        let size = self.size.map(|hundredths| format!("{}.{:02}", hundredths / 100, hundredths % 100));
        let dependencies = json!(self.dependencies).to_string();
        let raw = RawModel {
            id: Some(id),
            name: self.name.as_deref(),
            download_url: Some("https://example.org/x"),
            file_size_gb: size.as_deref(),
            auth_required: Some(self.auth_required),
            save_path: Some("a/b"),
            dependencies: Some(&dependencies),
            description: self.description.as_deref(),
            ..RawModel::default()
        };
        refresh.row(id, Ok(raw));
    }

    /// The JSON required by the contract, written by hand.
    fn expected_json(&self, id: &str) -> String {
        let size = self.size.map_or("null".into(), |hundredths| (f64::from(hundredths) / 100.0).to_string());
        format!(
            r#"{{"id":{},"name":{},"download_url":"https://example.org/x","file_size_gb":{size},"hash":null,"auth_required":{},"auth_provider":null,"save_path":"a/b","dependencies":{},"description":{}}}"#,
            json!(id),
            json!(self.name),
            self.auth_required,
            json!(self.dependencies),
            json!(self.description),
        )
    }
}

fn full(previous: &Snapshot, rows: &BTreeMap<&str, Row>) -> Refreshed {
    let rules = Rules::default();
    let mut refresh = Refresh::full(previous, &rules);
    rows.iter().for_each(|(id, row)| row.put(&mut refresh, id));
    refresh.finish()
}

fn content(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    snapshot.iter().map(|entry| (text(entry.id()), text(entry.json()))).collect()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_sequence_of_deltas_equals_a_full_read(deltas in prop::collection::vec(delta(), 1..30)) {
        let rules = Rules::default();
        let mut snapshot = Snapshot::default();
        // The table, the last valid version of each row, and the ids whose row is invalid now.
        let (mut table, mut valid, mut invalid) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        for delta in deltas {
            let mut refresh = Refresh::delta(&snapshot, &rules);
            for (id, row) in delta {
                invalid.remove(id);
                let Some(row) = row else {
                    refresh.deleted(id);
                    table.remove(id);
                    valid.remove(id);
                    continue;
                };
                row.put(&mut refresh, id);
                if row.name.is_some() {
                    valid.insert(id, row.clone());
                } else {
                    invalid.insert(id);
                }
                table.insert(id, row);
            }
            let refreshed = refresh.finish();
            prop_assert_eq!(refreshed.changed == 0, refreshed.snapshot.revision() == snapshot.revision());
            snapshot = refreshed.snapshot;

            let scratch = full(&Snapshot::default(), &valid).snapshot;
            let expected = valid.iter().map(|(id, row)| ((*id).to_owned(), row.expected_json(id))).collect();
            prop_assert_eq!(&content(&snapshot), &expected);
            prop_assert_eq!(content(&scratch), expected);
            prop_assert_eq!(snapshot.revision(), scratch.revision());
            prop_assert_eq!((snapshot.len(), snapshot.bytes()), (scratch.len(), scratch.bytes()));
            prop_assert!(snapshot.rejected().keys().map(|id| &**id).eq(invalid.iter().copied()));
            // As in an audit: reading the whole table again changes nothing.
            let audit = full(&snapshot, &table);
            prop_assert_eq!((audit.changed, audit.newly_rejected.len()), (0, 0));
            prop_assert_eq!(audit.snapshot.rejected(), snapshot.rejected());
        }
    }

    #[test]
    fn any_batch_matches_the_reference_model(
        served in subsequence(&IDS[..], 0..=IDS.len()),
        some in prop::collection::vec(prop_oneof![9 => select(&IDS[..]).prop_map(String::from), 1 => any::<String>()], 0..150),
        space in select(&["", " ", "\n\t "][..]),
    ) {
        let catalog = Catalog::of(&served);
        let (mut models, mut not_found) = (Vec::new(), Vec::new());
        for id in &some {
            let response = catalog.rows.get(id.as_str()).map(|row| row.expected_json(id));
            match response {
                None => not_found.push(json!(id).to_string()),
                Some(model) if !models.contains(&model) => models.push(model),
                Some(_) => {}
            }
        }
        let expected = format!(r#"{{"models":[{}],"not_found":[{}]}}"#, models.join(","), not_found.join(","));
        let quoted: Vec<String> = some.iter().map(|id| json!(id).to_string()).collect();
        let comma = format!("{space},{space}");
        let body = format!(r#"{{{space}"model_ids"{space}:[{space}{}{space}]}}"#, quoted.join(&comma));
        let response = catalog.request("POST", "/api/models/batch", &body);
        prop_assert_eq!(response, (200, expected));
    }

    #[test]
    fn any_id_in_a_path_matches_the_reference_model(
        served in subsequence(&IDS[..], 0..=IDS.len()),
        id in prop_oneof![select(&IDS[..]).prop_map(String::from), "\\PC{1,9}", any::<String>()],
    ) {
        let catalog = Catalog::of(&served);
        let segment: String = id.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let expected = match catalog.rows.get(id.as_str()) {
            _ if id.is_empty() => (404, json!({"error": "Not found"}).to_string()),
            Some(row) => (200, row.expected_json(&id)),
            None => (404, format!(r#"{{"error":"Model not found","model_id":{}}}"#, json!(id))),
        };
        prop_assert_eq!(catalog.request("GET", &format!("/api/models/{segment}"), ""), expected);
    }

    #[test]
    fn batch_parser_agrees_with_serde_json(body in body(), limit in 0..6_usize) {
        let mut parser = BatchParser::default();
        let read = parser.parse(body.as_bytes(), limit).map_err(|error| error.to_string());
        let read = read.map(|batch| {
            (batch.ids.iter().map(ToString::to_string).collect::<Vec<_>>(), batch.resolve_dependencies)
        });
        prop_assert_eq!(read, naive_batch(&body, limit), "{}", body);
    }
}

/// The rules of the contract for a batch body, applied to a parsed `serde_json::Value`.
fn naive_batch(body: &str, limit: usize) -> Result<(Vec<String>, bool), String> {
    let tree: Value = serde_json::from_str(body).map_err(|error| format!("invalid JSON: {error}"))?;
    let ids = tree.get("model_ids").and_then(Value::as_array).ok_or("model_ids must be an array")?;
    let text = |(index, id): (usize, &Value)| {
        id.as_str().map(String::from).ok_or_else(|| format!("model_ids[{index}] must be a string"))
    };
    let texts: Vec<String> = ids.iter().enumerate().map(text).collect::<Result<_, _>>()?;
    let resolve = match tree.get("resolve_dependencies") {
        None => false,
        Some(value) => value.as_bool().ok_or("resolve_dependencies must be a boolean")?,
    };
    match texts.len() {
        count if count > limit => Err(format!("model_ids has {count} ids, the limit is {limit}: split the request")),
        _ => Ok((texts, resolve)),
    }
}

/// Random bodies, many of them almost a valid batch.
fn body() -> impl Strategy<Value = String> {
    let pieces = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        " ",
        "\n",
        "\"",
        "\\",
        "\"model_ids\"",
        "\"a\"",
        "\"\\u00e4\"",
        "\"\\ud83d\\ude00\"",
        "\"\\n\"",
        "1",
        "-0.5e3",
        "null",
        "true",
        "ä",
        "{\"model_ids\":[",
        "\"model\\u005fids\":",
        "]}",
    ];
    let chaos = prop::collection::vec(select(pieces.to_vec()), 0..8).prop_map(|pieces| pieces.concat());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let tree = leaf.prop_recursive(3, 12, 4, |inner| {
        let key = prop_oneof![4 => Just("model_ids".to_owned()), 1 => Just("resolve_dependencies".to_owned()), 2 => any::<String>()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..3).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    });
    let ids = prop::collection::vec(any::<String>(), 0..8).prop_map(|ids| json!({ "model_ids": ids }).to_string());
    let started = chaos.clone().prop_map(|rest| format!("{{\"model_ids\":[\"a\"{rest}"));
    let pretty = tree.clone().prop_map(|tree| format!("{tree:#}"));
    prop_oneof![chaos, started, ids, tree.prop_map(|tree| tree.to_string()), pretty]
}

/// A catalog and its request handler, without sockets.
struct Catalog {
    rows: BTreeMap<&'static str, Row>,
    handler: Arc<Handler>,
}

impl Catalog {
    fn of(ids: &[&'static str]) -> Self {
        let row = |id: &str| Row {
            name: Some(id.into()),
            size: Some(2380),
            dependencies: vec![id.into()],
            auth_required: false,
            description: None,
        };
        let rows = ids.iter().map(|id| (*id, row(id))).collect();
        let store = Arc::new(Store::default());
        Publisher::new(Arc::clone(&store)).publish(Arc::new(full(&Snapshot::default(), &rows).snapshot));
        let limits = Limits { max_batch_ids: 1000, max_body_bytes: 1 << 20 };
        let metrics = Arc::new(Metrics::new().unwrap());
        let api = Arc::new(Api::new(store, metrics, limits, MemoryBudget::new(1 << 24)));
        let scans = Arc::clone(&api);
        std::thread::spawn(move || scans.scans.run_jobs(0));
        let handler = Arc::new(Handler::new(api, Routes::All));
        Self { rows, handler }
    }

    /// Status and body.
    fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());
        RUNTIME.block_on(async {
            let request = Request::builder().method(method).uri(path).body(Full::from(body.to_owned())).unwrap();
            let response = self.handler.handle::<Full<Bytes>>(request, None, std::time::Instant::now()).await.response;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (status, String::from_utf8(body.to_vec()).unwrap())
        })
    }
}

/// Other connections of the thread get their turn whenever the response is not ready yet.
#[tokio::test]
async fn aria2_file_of_many_models_is_rendered_in_steps() {
    let ids: Vec<&'static str> = (0..201).map(|number| &*format!("m{number}").leak()).collect();
    let catalog = Catalog::of(&ids);
    for (requested, expected) in [(50, 0), (51, 1), (201, 4)] {
        let body = serde_json::json!({"model_ids": ids[..requested]}).to_string();
        let request = Request::post("/api/models/batch?format=aria2").body(Full::from(body)).unwrap();
        let mut handling = Box::pin(catalog.handler.handle::<Full<Bytes>>(request, None, std::time::Instant::now()));
        let mut steps = 0;
        let handled = loop {
            match futures_util::poll!(&mut handling) {
                std::task::Poll::Ready(handled) => break handled,
                std::task::Poll::Pending => steps += 1,
            }
        };
        let text = handled.response.into_body().collect().await.unwrap().to_bytes();
        let models = String::from_utf8_lossy(&text).matches("\n# id: ").count();
        assert_eq!((models, steps), (requested, expected));
    }
}

//! Consistency checks during faults: readers that record every failed, torn or outdated response, and a comparison of
//! the served catalog with the table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::support::{self, Server};

/// Adds `pairs` pairs of models, `pair-N-a` and `pair-N-b`, whose descriptions hold the same counter.
pub async fn add_pairs(client: &Client, pairs: usize) {
    let insert = "INSERT INTO models (id, name, download_url, save_path, description) \
                  SELECT id, id, 'https://example.org/' || id, 'checkpoints/' || id, '0' \
                  FROM generate_series(0, $1::int - 1) number, unnest(ARRAY['a', 'b']) half, \
                  LATERAL (SELECT 'pair-' || number || '-' || half) named (id)";
    client.execute(insert, &[&i32::try_from(pairs).unwrap()]).await.unwrap();
}

/// The statement that increments the counter of one pair, both halves in one transaction.
pub fn bump(pair: usize) -> String {
    format!("UPDATE models SET description = (description::bigint + 1)::text WHERE id LIKE 'pair-{pair}-_'")
}

/// Background tasks that read all pairs and record violations.
pub struct ConsistencyReaders {
    stop: Arc<AtomicBool>,
    responses: Arc<AtomicU64>,
    readers: Vec<JoinHandle<Vec<String>>>,
}

impl ConsistencyReaders {
    /// Starts two readers. `may_go_back` is for faults in which the database itself loses commits.
    pub fn start(server: &Server, pairs: usize, may_go_back: bool) -> Self {
        Self::start_at(&server.address, pairs, may_go_back)
    }

    /// Like [`ConsistencyReaders::start`], for whatever listens at this address.
    pub fn start_at(address: &str, pairs: usize, may_go_back: bool) -> Self {
        let (stop, responses) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let reader = |_| {
            let reader = Reader { address: address.to_owned(), pairs, may_go_back };
            tokio::spawn(reader.read(Arc::clone(&stop), Arc::clone(&responses)))
        };
        let readers = (0..2).map(reader).collect();
        Self { stop, responses, readers }
    }

    /// The number of responses so far.
    pub fn responses(&self) -> u64 {
        self.responses.load(SeqCst)
    }

    /// Stops the readers, and fails if they recorded a violation.
    pub async fn finish(self) {
        let before = self.responses();
        support::until("the readers have received a response", || async { self.responses() > before + 1 }).await;
        self.stop.store(true, SeqCst);
        for reader in self.readers {
            let faults = reader.await.unwrap();
            assert!(
                faults.is_empty(),
                "{} violations in {before} responses: {:#?}",
                faults.len(),
                &faults[..faults.len().min(9)]
            );
        }
    }
}

struct Reader {
    address: String,
    pairs: usize,
    may_go_back: bool,
}

impl Reader {
    async fn read(self, stop: Arc<AtomicBool>, responses: Arc<AtomicU64>) -> Vec<String> {
        let http = HttpClient::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
        let ids: Vec<_> =
            (0..self.pairs).flat_map(|pair| [format!("pair-{pair}-a"), format!("pair-{pair}-b")]).collect();
        let body = json!({ "model_ids": ids }).to_string();
        let (mut faults, mut seen) = (Vec::new(), vec![0; self.pairs]);
        while !stop.load(SeqCst) {
            let request = Request::post(format!("http://{}/api/models/batch", self.address));
            let response = async {
                let response = http.request(request.body(Full::from(body.clone())).unwrap()).await;
                let response = response.map_err(|error| format!("no response: {error:?}"))?;
                let status = response.status();
                let body = response.into_body().collect().await.map_err(|error| format!("truncated: {error}"))?;
                let value: Value = serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())?;
                if status == 200 { Ok(value) } else { Err(format!("{status}: {value}")) }
            };
            match response.await {
                Ok(batch) => self.check(&batch, &mut seen, &mut faults),
                Err(fault) => faults.push(fault),
            }
            responses.fetch_add(1, SeqCst);
            // Leaves CPU time for the server under test.
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        faults
    }

    fn check(&self, batch: &Value, seen: &mut [u64], faults: &mut Vec<String>) {
        let models = batch["models"].as_array().map_or(&[][..], Vec::as_slice);
        if models.len() != 2 * self.pairs {
            return faults.push(format!("missing: {}", batch["not_found"]));
        }
        for (pair, halves) in models.chunks(2).enumerate() {
            let counter = |half: &Value| half["description"].as_str().and_then(|text| text.parse::<u64>().ok());
            let (Some(a), Some(b)) = (counter(&halves[0]), counter(&halves[1])) else {
                return faults.push(format!("no counter: {halves:?}"));
            };
            if a != b {
                faults.push(format!("pair {pair} is torn: {a} and {b}"));
            }
            if a < seen[pair] && !self.may_go_back {
                faults.push(format!("pair {pair} went back from {} to {a}", seen[pair]));
            }
            seen[pair] = a;
        }
    }
}

/// The first difference between the served catalog and the table; `None` if they are equal, model by model.
pub async fn difference(server: &Server, client: &Client) -> Option<String> {
    let rows = "SELECT to_jsonb(e) || jsonb_build_object('file_size_gb', trim_scale(e.file_size_gb)) \
                FROM model_catalog.entries e";
    let rows = client.simple_query(&rows.replace("SELECT ", "SELECT e.id, ")).await.unwrap();
    let mut table = BTreeMap::new();
    for row in rows {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = row {
            let mut json: Value = serde_json::from_str(row.get(1).unwrap()).unwrap();
            // Without mirrors, a model does not have the field.
            json.as_object_mut().unwrap().retain(|column, value| column != "mirrors" || !value.is_null());
            table.insert(row.get(0).unwrap().to_owned(), json);
        }
    }
    let ready = server.get("/readyz").await.json();
    if ready["models"] != table.len() {
        return Some(format!("{} models are served, the table has {}", ready["models"], table.len()));
    }
    for ids in table.keys().collect::<Vec<_>>().chunks(1_000) {
        let batch = server.batch(&json!({ "model_ids": ids }).to_string()).await.json();
        if batch["not_found"] != json!([]) {
            return Some(format!("not served: {}", batch["not_found"]));
        }
        for model in batch["models"].as_array().unwrap() {
            let row = &table[model["id"].as_str().unwrap()];
            if model != row {
                return Some(format!("served: {model}, in the table: {row}"));
            }
        }
    }
    None
}

/// Waits until the served catalog equals the table.
pub async fn in_sync(server: &Server, client: &Client) {
    server.until("the served catalog equals the table", |s| async move { difference(s, client).await.is_none() }).await;
}

/// Waits until the standby has replayed what the primary has written.
pub async fn replayed(primary: &Client, standby: &Client) {
    let written = support::sql(primary, "SELECT pg_current_wal_lsn()").await.unwrap();
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
    let has_replayed = || async { support::sql(standby, &replayed).await.as_deref() == Some("t") };
    support::until("the standby has replayed", has_replayed).await;
}

/// The number of successful full reads. It is incremented just after the result is published, so this waits until it
/// reaches `at_least`.
pub async fn full_reads(server: &Server, at_least: f64) -> f64 {
    let count = async || server.metric("catalog_refreshes_total{kind=\"full\",outcome=\"ok\"}").await;
    support::until("the full reads are counted", || async { count().await >= at_least }).await;
    count().await
}

//! Who watches while something breaks: readers that count every failed, torn or backward answer, and the comparison
//! of what is served with the table.

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

/// The statement that moves one pair on, both halves in one transaction.
pub fn bump(pair: usize) -> String {
    format!("UPDATE models SET description = (description::bigint + 1)::text WHERE id LIKE 'pair-{pair}-_'")
}

/// Readers in the background.
pub struct Witness {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    readers: Vec<JoinHandle<Vec<String>>>,
}

impl Witness {
    /// Two readers of all pairs. `may_go_back` is for faults in which the database itself loses what was committed.
    pub fn start(server: &Server, pairs: usize, may_go_back: bool) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let reader = |_| {
            let reader = Reader { address: server.address.clone(), pairs, may_go_back };
            tokio::spawn(reader.read(Arc::clone(&stop), Arc::clone(&answers)))
        };
        let readers = (0..2).map(reader).collect();
        Self { stop, answers, readers }
    }

    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.answers.load(SeqCst)
    }

    /// Ends the readers; whatever they saw that must not be fails the test.
    pub async fn finish(self) {
        let before = self.answers();
        support::until("the readers had an answer", || async { self.answers() > before + 1 }).await;
        self.stop.store(true, SeqCst);
        for reader in self.readers {
            let faults = reader.await.unwrap();
            assert!(faults.is_empty(), "{} of {before} answers: {:#?}", faults.len(), &faults[..faults.len().min(9)]);
        }
    }
}

struct Reader {
    address: String,
    pairs: usize,
    may_go_back: bool,
}

impl Reader {
    async fn read(self, stop: Arc<AtomicBool>, answers: Arc<AtomicU64>) -> Vec<String> {
        let http = HttpClient::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
        let ids: Vec<_> =
            (0..self.pairs).flat_map(|pair| [format!("pair-{pair}-a"), format!("pair-{pair}-b")]).collect();
        let body = json!({ "model_ids": ids }).to_string();
        let (mut faults, mut seen) = (Vec::new(), vec![0; self.pairs]);
        while !stop.load(SeqCst) {
            let request = Request::post(format!("http://{}/api/models/batch", self.address));
            let answer = async {
                let answer = http.request(request.body(Full::from(body.clone())).unwrap()).await;
                let answer = answer.map_err(|error| format!("no answer: {error:?}"))?;
                let status = answer.status();
                let body = answer.into_body().collect().await.map_err(|error| format!("broken off: {error}"))?;
                let value: Value = serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())?;
                if status == 200 { Ok(value) } else { Err(format!("{status}: {value}")) }
            };
            match answer.await {
                Ok(answer) => self.judge(&answer, &mut seen, &mut faults),
                Err(fault) => faults.push(fault),
            }
            answers.fetch_add(1, SeqCst);
            // A pace that leaves the processor to what is being tested.
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        faults
    }

    fn judge(&self, answer: &Value, seen: &mut [u64], faults: &mut Vec<String>) {
        let models = answer["models"].as_array().map_or(&[][..], Vec::as_slice);
        if models.len() != 2 * self.pairs {
            return faults.push(format!("missing: {}", answer["not_found"]));
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

/// Why what is served is not what the table holds; `None` if it is, model by model.
pub async fn difference(server: &Server, client: &Client) -> Option<String> {
    let rows = "SELECT to_jsonb(e) || jsonb_build_object('file_size_gb', trim_scale(e.file_size_gb)) \
                FROM model_catalog.entries e";
    let rows = client.simple_query(&rows.replace("SELECT ", "SELECT e.id, ")).await.unwrap();
    let mut table = BTreeMap::new();
    for row in rows {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = row {
            let json: Value = serde_json::from_str(row.get(1).unwrap()).unwrap();
            table.insert(row.get(0).unwrap().to_owned(), json);
        }
    }
    let ready = server.get("/readyz").await.json();
    if ready["models"] != table.len() {
        return Some(format!("{} models are served, the table has {}", ready["models"], table.len()));
    }
    for ids in table.keys().collect::<Vec<_>>().chunks(1_000) {
        let answer = server.batch(&json!({ "model_ids": ids }).to_string()).await.json();
        if answer["not_found"] != json!([]) {
            return Some(format!("not served: {}", answer["not_found"]));
        }
        for model in answer["models"].as_array().unwrap() {
            let row = &table[model["id"].as_str().unwrap()];
            if model != row {
                return Some(format!("served is {model}, the table has {row}"));
            }
        }
    }
    None
}

/// Waits until what is served equals the table.
pub async fn in_step(server: &Server, client: &Client) {
    server.until("what is served equals the table", |s| async move { difference(s, client).await.is_none() }).await;
}

/// Full loads that succeeded. They are counted a moment after what they read is served, so more of them than `at_least`
/// show at once, and fewer are waited for.
pub async fn fulls(server: &Server, at_least: f64) -> f64 {
    let count = async || server.metric("catalog_refreshes_total{kind=\"full\",outcome=\"ok\"}").await;
    support::until("a full load is counted", || async { count().await >= at_least }).await;
    count().await
}

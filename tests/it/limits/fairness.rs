//! Long requests of one client do not delay those of others on the same thread.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::raw::{Raw, connect};
use crate::support::{Db, Server};

const MODELS: usize = 1_000;
const LOOKUP: &str = "GET /api/models/m1 HTTP/1.1\r\nhost: x\r\n\r\n";

/// What the other client does.
const OTHERS: [&str; 5] = ["nothing", "1,000 models as aria2", "batches of 1,000", "pipelined lookups", "scrapes"];

async fn serve() -> (Db, Server) {
    let db = Db::new().await;
    db.sql(&format!(
        "INSERT INTO models (id, name, download_url, file_size_gb, hash, save_path, description)
         SELECT 'm' || n, 'model ' || n || '.safetensors', 'https://huggingface.co/someone/model-' || n ||
             '/resolve/main/model.safetensors', 6.9, encode(sha256(n::text::bytea), 'hex'), 'checkpoints/' || n || '.safetensors',
             'A model for tests'
         FROM generate_series(1, {MODELS}) n"
    ))
    .await;
    let server = Server::start_with(&db.url, &[("CATALOG_THREADS", "1"), ("CATALOG_LOG", "info")]).await;
    server.until("all are served", |s| async move { s.get("/readyz").await.json()["models"] == MODELS }).await;
    (db, server)
}

fn batch(path: &str) -> String {
    let ids: Vec<_> = (1..=MODELS).map(|number| format!("\"m{number}\"")).collect();
    let body = format!("{{\"model_ids\":[{}]}}", ids.join(","));
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A client that sends requests without a pause; returns how many got a response.
struct Other {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Other {
    fn start(server: &Server, does: &str) -> Self {
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let request = match does {
            "1,000 models as aria2" => batch("/api/models/batch?format=aria2"),
            "batches of 1,000" => batch("/api/models/batch"),
            "pipelined lookups" => LOOKUP.repeat(256),
            "scrapes" => "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".into(),
            _ => return Self { stop, requests, thread: None },
        };
        let (stopped, answered) = (Arc::clone(&stop), Arc::clone(&requests));
        let (pipelines, address) = (does == "pipelined lookups", server.address.clone());
        let thread = std::thread::spawn(move || {
            if pipelines {
                return pipeline(&address, &request, &stopped, &answered);
            }
            let mut connection = Raw::open(&address);
            while !stopped.load(Relaxed) {
                connection.send(&request);
                assert_eq!(connection.response().status, 200);
                answered.fetch_add(1, Relaxed);
            }
        });
        Self { stop, requests, thread: Some(thread) }
    }

    fn finish(mut self) -> u64 {
        self.stop.store(true, Relaxed);
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
        self.requests.load(Relaxed)
    }
}

/// Keeps the server's receive buffer full of requests, and reads all responses.
fn pipeline(address: &str, requests: &str, stop: &AtomicBool, answered: &AtomicU64) {
    let mut reader = connect(address);
    let mut writer = reader.try_clone().unwrap();
    let requests = requests.to_owned();
    let writing = std::thread::spawn(move || while writer.write_all(requests.as_bytes()).is_ok() {});
    let mut buffer = vec![0; 256 * 1024];
    while !stop.load(Relaxed) {
        let length = reader.read(&mut buffer).unwrap();
        answered.fetch_add(buffer[..length].windows(9).filter(|window| window == b"HTTP/1.1 ").count() as u64, Relaxed);
    }
    reader.shutdown(std::net::Shutdown::Both).unwrap();
    writing.join().unwrap();
}

/// The median and the 99th percentile of lookups on one connection for this long, in microseconds.
fn lookups(server: &Server, time: Duration) -> (u128, u128) {
    let (mut connection, end) = (Raw::open(&server.address), Instant::now() + time);
    let mut times = Vec::new();
    while Instant::now() < end {
        let sent = Instant::now();
        connection.send(LOOKUP);
        assert_eq!(connection.response().status, 200);
        times.push(sent.elapsed().as_micros());
    }
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: make slow-clients"]
async fn measure_lookups_beside_long_requests() {
    let (_db, server) = serve().await;
    for does in OTHERS {
        let other = Other::start(&server, does);
        lookups(&server, Duration::from_millis(200));
        let time = Duration::from_secs(3);
        let (median, p99) = lookups(&server, time);
        println!("beside {does}: median {median} µs, p99 {p99} µs; {} requests of the other", other.finish());
    }
}

/// A pipeline is taken a request at a time: other connections get their turn in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order_and_do_not_hold_up_others() {
    let (_db, server) = serve().await;
    let mut pipelining = Raw::open(&server.address);
    pipelining.send(&(1..=400).map(|number| LOOKUP.replace("m1", &format!("m{number}"))).collect::<String>());
    for number in 1..=400 {
        assert_eq!(pipelining.response().json()["id"], format!("m{number}"));
    }
    let other = Other::start(&server, "pipelined lookups");
    let (median, _) = lookups(&server, Duration::from_secs(1));
    assert!(other.finish() > 0);
    // In a debug build on a busy machine; it was twenty times as long.
    assert!(median < 20_000, "{median} µs");
}

//! What waiting edges cost a replica.
//!
//! The long form: `make edges`.

use std::time::{Duration, Instant};

use super::edges::scaled;
use crate::support::raw::Raw;
use crate::support::tcp_proxy::TcpProxy;
use crate::support::{Db, Server, raise_fd_limit, until};

/// Bytes of a request of an edge and of the response that nothing has changed, which an idle edge exchanges every 30 s.
async fn idle_bytes(db: &Db) -> u64 {
    // Requests may wait on half of the connections. Here that is none, so each gets its response at once.
    let replica = Server::spawn(&db.url, &[("CATALOG_MAX_CONNECTIONS", "1")]).await;
    let proxy = TcpProxy::new(&replica.address).await;
    let edge = Server::edge(&proxy.url(), &[]).await;
    let unchanged = async || edge.metric("catalog_upstream_requests_total{outcome=\"unchanged\"}").await as u64;
    until("the edge is idle", async || unchanged().await > 0).await;
    let (before, bytes) = (unchanged().await, proxy.transferred());
    until("the edge has repeated its request", async || unchanged().await >= before + 10).await;
    (proxy.transferred() - bytes).div_ceil(10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_all_waiting_edges() {
    let waiters = scaled("EDGE_WAITERS", 200);
    raise_fd_limit();
    let db = Db::new().await;
    // The hash is what does not compress.
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path, hash)
         SELECT 'm' || n, 'n', 'https://example.org/' || n, 'x' || n, encode(sha256(n::text::bytea), 'hex')
         FROM generate_series(1, 1000) n",
    )
    .await;
    // Each thread has a share of the allocator's memory.
    let server = Server::start_with(&db.url, &[("CATALOG_THREADS", "2")]).await;
    let tag = server.get("/api/snapshot").await.header("etag").to_owned();
    let request = format!(
        "GET /api/snapshot?wait=30s HTTP/1.1\r\naccept-encoding: gzip\r\nif-none-match: {tag}\r\naccept: */*\r\nuser-agent: model-catalog/0.2.0\r\nhost: {}\r\n\r\n",
        server.address
    );
    let memory = async || server.metric("process_resident_memory_bytes").await;
    let before = memory().await;
    let mut edges: Vec<_> = (0..waiters)
        .map(|_| {
            let mut edge = Raw::open(&server.address);
            edge.send(&request);
            edge
        })
        .collect();
    server.until("all wait", |s| async move { s.metric("catalog_snapshot_waiters").await == waiters as f64 }).await;
    let used = memory().await - before;

    let started = Instant::now();
    db.sql("UPDATE models SET name = 'new' WHERE id = 'm1'").await;
    let reading = tokio::task::spawn_blocking(move || {
        let first = edges[0].response();
        for edge in &mut edges[1..] {
            let response = edge.response();
            assert!(response.body == first.body, "{} with {} bytes", response.status, response.body.len());
        }
        (first, started.elapsed())
    });
    let (first, took) = reading.await.unwrap();
    let after = server.get("/api/snapshot").await.header("etag").to_owned();
    assert_ne!(after, tag);
    assert_eq!((first.status, first.header("etag")), (200, &*after));
    let idle = idle_bytes(&db).await;
    let minute = 2 * idle;
    eprintln!(
        "{waiters} waiting requests: {:.1} MiB, {:.1} KiB each; a change, {} bytes for each, reached all in {took:?}; \
         an idle edge: {idle} bytes every 30 s, {minute} a minute",
        used / 1048576.0,
        used / waiters as f64 / 1024.0,
        first.body.len()
    );
    assert!(minute < 1024, "{minute} bytes a minute");
    let many = waiters >= 2000;
    let in_time = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 1 });
    assert!(!many || took < in_time, "{took:?}");
    // 20 MiB for 2,000. Most of it is hyper's buffers, 8 KiB; with transparent huge pages they would take 16. Futures are
    // larger in debug builds. 200 take 10 to 12 KiB each, because what does not depend on their number is spread over fewer;
    // their limit is for another 8 KiB, be it huge pages or a second buffer.
    let limit = match (many, cfg!(debug_assertions)) {
        (false, _) => 16 * 1024,
        (true, true) => 14 * 1024,
        (true, false) => 20 * 1024 * 1024 / 2000,
    };
    assert!(used < (limit * waiters) as f64, "{used} bytes");
}

//! What waiting edges cost a replica.
//!
//! The long form: `make edges`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::edges::scaled;
use crate::support::raw::Raw;
use crate::support::{Db, Server, raise_fd_limit};

/// Bytes that a request of an edge has, and that it repeats every 30 s.
async fn request_bytes() -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}");
    let edge = Server::edge(&url, &[]);
    let accepted = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = vec![0; 4096];
        let size = stream.read(&mut head).unwrap();
        let text = String::from_utf8_lossy(&head[..size]).into_owned();
        assert!(text.starts_with("GET /api/snapshot HTTP/1.1\r\n") && text.ends_with("\r\n\r\n"), "{text}");
        size
    });
    let (_edge, size) = tokio::join!(edge, accepted);
    // The first request has neither a wait nor a condition.
    size.unwrap() + "?wait=30s".len() + "if-none-match: \"0123456789abcdef\"\r\n".len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_all_waiting_edges() {
    let waiters = scaled("EDGE_WAITERS", 200);
    raise_fd_limit();
    let db = Db::new().await;
    db.sql("INSERT INTO models (id, name, download_url, save_path) SELECT 'm' || n, 'n', 'https://example.org/' || n, 'x' || n FROM generate_series(1, 1000) n").await;
    let server = Server::start(&db).await;
    let tag = server.get("/api/snapshot").await.header("etag").to_owned();
    let request = format!(
        "GET /api/snapshot?wait=30s HTTP/1.1\r\naccept-encoding: gzip\r\nif-none-match: {tag}\r\naccept: */*\r\nuser-agent: model-catalog/0.1.0\r\nhost: {}\r\n\r\n",
        server.address
    );
    let memory = async || server.metric("process_resident_memory_bytes").await;
    let before = memory().await;
    let mut streams: Vec<_> = (0..waiters)
        .map(|_| {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    server.until("all wait", |s| async move { s.metric("catalog_snapshot_waiters").await == waiters as f64 }).await;
    let used = memory().await - before;

    let started = Instant::now();
    db.sql("UPDATE models SET name = 'new' WHERE id = 'm1'").await;
    let reading = std::thread::spawn(move || {
        let mut bytes = 0;
        for stream in &mut streams {
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let mut response = vec![0; 256 * 1024];
            let size = stream.read(&mut response).unwrap();
            assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&response[..size]));
            bytes = bytes.max(size);
        }
        (streams.len(), started.elapsed())
    });
    let (answered, took) = reading.join().unwrap();
    // The same request without a change, to weigh its response.
    let tag = server.get("/api/snapshot").await.header("etag").to_owned();
    let mut idle = Raw::open(&server.address);
    idle.send(&format!("GET /api/snapshot HTTP/1.1\r\nhost: x\r\nif-none-match: {tag}\r\n\r\n"));
    let head = idle.head();
    let response: usize = "HTTP/1.1 304 Not Modified\r\n\r\n".len()
        + head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    let request = request_bytes().await;
    let minute = 2 * (request + response);
    eprintln!(
        "{waiters} waiting requests: {:.1} MiB, {:.1} KiB each; a change reached {answered} in {took:?}; \
         an idle edge: {request} + {response} bytes every 30 s, {minute} a minute",
        used / 1048576.0,
        used / waiters as f64 / 1024.0
    );
    assert!(minute < 1024, "{minute} bytes a minute");
    assert!(took < Duration::from_secs(10), "{took:?}");
    // 20 MiB for 2,000. Most of it is hyper's buffers, 8 KiB; with transparent huge pages they would take 16. Futures are
    // larger in debug builds.
    let limit = if cfg!(debug_assertions) { 14 * 1024 } else { 20 * 1024 * 1024 / 2000 };
    assert!(waiters < 2000 || used < (limit * waiters) as f64, "{used} bytes");
}

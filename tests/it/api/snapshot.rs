//! `GET /api/snapshot`: its formats, conditional requests and waits.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use hyper::header::{ACCEPT_ENCODING, IF_NONE_MATCH};
use socket2::SockRef;

use crate::support::raw::{connect, read_to_close, statuses};
use crate::support::{Response, Server, model_json, start_with_model_a};

async fn get(server: &Server, path: &str, tag: &str, encoding: &str) -> Response {
    let mut request = server.request("GET", path, "");
    request.headers_mut().insert(IF_NONE_MATCH, tag.parse().unwrap());
    request.headers_mut().insert(ACCEPT_ENCODING, encoding.parse().unwrap());
    server.send(request).await
}

#[tokio::test]
async fn snapshot_has_the_format_of_the_snapshot_file_and_is_compressed_on_request() {
    let (db, server) = start_with_model_a(&[]).await;
    db.add("b").await;
    server.until("b is served", |s| async move { s.get("/api/models/b").await.status == 200 }).await;
    let reply = server.get("/api/snapshot").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/x-ndjson"));
    let text = reply.text();
    let mut lines: Vec<_> = text.lines().collect();
    let header: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(
        (&header["format"], &header["models"], &header["revision"]),
        (&"model-catalog snapshot".into(), &2.into(), &reply.revision().into())
    );
    lines[1..3].sort_unstable();
    assert_eq!(lines[1..3], [model_json("a"), model_json("b")]);
    assert!(lines.len() == 4 && lines[3].starts_with(r#"{"checksum":"#), "{text}");
    assert_eq!(reply.header("etag"), format!("\"{}\"", reply.revision()));
    assert_eq!((reply.header("vary"), reply.header("cache-control")), ("accept-encoding", "no-cache"));

    // Twice: rendered, and from memory.
    for _ in 0..2 {
        let compressed = get(&server, "/api/snapshot", "\"x\"", "br, gzip").await;
        assert_eq!((compressed.status, compressed.header("content-encoding")), (200, "gzip"));
        assert_eq!(compressed.header("etag"), reply.header("etag"));
        let mut decoded = String::new();
        GzDecoder::new(&compressed.body[..]).read_to_string(&mut decoded).unwrap();
        assert_eq!(decoded, text);
    }
    let head = server.send(server.request("HEAD", "/api/snapshot", "")).await;
    assert_eq!((head.status, head.header("etag"), head.body.len()), (200, reply.header("etag"), 0));
    assert_eq!(server.send(server.request("POST", "/api/snapshot", "")).await.status, 405);
}

#[tokio::test]
async fn unchanged_snapshot_returns_304_and_a_change_ends_the_wait() {
    let (db, server) = start_with_model_a(&[]).await;
    let tag = server.get("/api/snapshot").await.header("etag").to_owned();
    let unchanged = get(&server, "/api/snapshot", &tag, "gzip").await;
    assert_eq!((unchanged.status, unchanged.body.len(), unchanged.header("etag")), (304, 0, &*tag));
    assert_eq!(unchanged.revision(), tag.trim_matches('"'));

    let started = Instant::now();
    let waited = get(&server, "/api/snapshot?wait=300ms", &tag, "gzip").await;
    assert!(waited.status == 304 && started.elapsed() >= Duration::from_millis(300), "{waited:?}");
    // Nothing to wait for.
    let started = Instant::now();
    assert_eq!(get(&server, "/api/snapshot?wait=30s", "\"x\"", "gzip").await.status, 200);
    assert!(started.elapsed() < Duration::from_secs(10));

    let (changed, ()) = tokio::join!(get(&server, "/api/snapshot?wait=30s", &tag, "gzip"), async {
        server.until("it waits", |s| async move { s.metric("catalog_snapshot_waiters").await == 1.0 }).await;
        db.add("b").await;
    });
    assert_eq!((changed.status, changed.header("content-encoding")), (200, "gzip"));
    assert_ne!(changed.header("etag"), tag);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(server.metric("catalog_snapshot_waiters").await, 0.0);

    let wrong = server.get("/api/snapshot?wait=soon").await;
    assert!(wrong.status == 400 && wrong.text().contains("such as 30s"), "{}", wrong.text());
}

/// Half of the connections may wait, so that the server stays usable for others.
#[tokio::test]
async fn waiting_requests_are_limited_and_end_when_the_drain_begins() {
    let settings = [("CATALOG_MAX_CONNECTIONS", "8"), ("CATALOG_THREADS", "1"), ("CATALOG_DRAIN_GRACE", "10m")];
    let (_db, server) = start_with_model_a(&settings).await;
    let tag = server.get("/api/snapshot").await.header("etag").to_owned();
    let waiting = || get(&server, "/api/snapshot?wait=30s", &tag, "gzip");
    let started = Instant::now();
    let (one, two, three, four, ()) = tokio::join!(waiting(), waiting(), waiting(), waiting(), async {
        server.until("they wait", |s| async move { s.metric("catalog_snapshot_waiters").await == 4.0 }).await;
        let fifth = get(&server, "/api/snapshot?wait=30s", &tag, "gzip").await;
        assert_eq!((fifth.status, fifth.header("connection")), (304, ""));
        server.signal("TERM");
    });
    for reply in [one, two, three, four] {
        assert_eq!((reply.status, reply.header("connection")), (304, "close"));
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // The grace period goes on.
    let reply = get(&server, "/api/snapshot?wait=30s", &tag, "gzip").await;
    assert_eq!((reply.status, reply.header("connection")), (304, "close"));
    assert!(server.exited().is_none());
    server.signal("TERM");
    server.until("it has ended", |s| std::future::ready(s.exited().is_some())).await;
}

/// Half of the connections may wait, and none of these places is kept by a client that is gone.
#[tokio::test]
async fn closed_connections_free_their_places_at_once() {
    const WAITERS: usize = 100;
    let (db, server) = start_with_model_a(&[("CATALOG_MAX_CONNECTIONS", "200")]).await;
    let tag = server.get("/api/snapshot").await.header("etag").to_owned();
    let request = format!("GET /api/snapshot?wait=60s HTTP/1.1\r\nhost: x\r\nif-none-match: {tag}\r\n\r\n");
    let wait = |before: bool| {
        let mut stream = connect(&server.address);
        if before {
            // The socket is registered with the runtime.
            stream.write_all(b"GET /api/models/a HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        }
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let until_waiting = async |count: usize| {
        let what = format!("{count} requests wait");
        server.until(&what, |s| async move { s.metric("catalog_snapshot_waiters").await == count as f64 }).await;
    };
    for reset in [false, true] {
        let clients: Vec<_> = (0..WAITERS).map(|number| wait(number % 2 == 0)).collect();
        until_waiting(WAITERS).await;
        if reset {
            clients.iter().for_each(|client| SockRef::from(client).set_linger(Some(Duration::ZERO)).unwrap());
        }
        drop(clients);
        until_waiting(0).await;
    }
    // A client that has finished sending may still wait for its response, and gets it.
    let mut half_closed = wait(true);
    until_waiting(1).await;
    half_closed.shutdown(Shutdown::Write).unwrap();
    assert_eq!(statuses(&read_to_close(&mut half_closed)), [304]);
    // One that sends its next request meanwhile still waits.
    let mut pipelined = wait(true);
    until_waiting(1).await;
    pipelined.write_all(b"GET /api/models/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    db.add("b").await;
    server.until("b is served", |s| async move { s.get("/api/models/b").await.status == 200 }).await;
    assert_eq!(statuses(&read_to_close(&mut pipelined)), [200, 200]);
    until_waiting(0).await;
}

/// The deadline of a request is extended by its wait.
#[tokio::test]
async fn waits_may_be_longer_than_the_request_timeout() {
    let (_db, server) = start_with_model_a(&[("CATALOG_REQUEST_TIMEOUT", "2s")]).await;
    let tag = server.get("/api/snapshot").await.header("etag").to_owned();
    let started = Instant::now();
    assert_eq!(get(&server, "/api/snapshot?wait=3s", &tag, "gzip").await.status, 304);
    assert!(started.elapsed() >= Duration::from_secs(3));
}

#[tokio::test]
async fn snapshot_returns_503_before_the_first_load() {
    let server = Server::spawn("host=/nonexistent user=nobody dbname=none", &[]).await;
    let reply = server.get("/api/snapshot?wait=30s").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, "1"));
}

//! Requests that two readers might part differently: one answer at most, and nothing behind them is read.

use std::io::Write;
use std::net::Shutdown;

use crate::support::raw::{Raw, connect, read_to_close, statuses};
use crate::support::start_with_model_a;

const BATCH: &str = "POST /api/models/batch HTTP/1.1\r\n";
const SMUGGLED: &str = "GET /api/models/smuggled HTTP/1.1\r\nhost: x\r\n\r\n";

/// Requests that two readers might part differently: head, body, the only answer.
fn shapes() -> Vec<(String, u16)> {
    let body = r#"{"model_ids":["a"]}"#;
    let length = body.len();
    let chunks = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    let batch = |headers: &str, body: &str| format!("{BATCH}host: x\r\n{headers}\r\n{body}");
    let chunked = |body: &str| batch("transfer-encoding: chunked\r\n", body);
    vec![
        // Both lengths: the chunks count, and the connection ends with the answer.
        (batch(&format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"), &chunks), 200),
        (batch(&format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"), &chunks), 200),
        (batch("content-length: 0\r\ntransfer-encoding: chunked\r\n", &chunks), 200),
        // What would be a whole request, were there no chunks.
        (batch(&format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"), body), 400),
        ("GET /api/models/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(), 200),
        // Two lengths, and what is no length.
        (batch(&format!("content-length: 0\r\ncontent-length: {length}\r\n"), body), 400),
        (batch(&format!("content-length: {length}\r\ncontent-length: 0\r\n"), body), 400),
        (batch(&format!("content-length: {length}, 0\r\n"), body), 400),
        (batch(&format!("content-length: +{length}\r\n"), body), 400),
        (batch(&format!("content-length: -{length}\r\n"), body), 400),
        (batch("content-length: 0x13\r\n", body), 400),
        (batch("content-length: 99999999999999999999\r\n", body), 400),
        (batch("content-length: \r\n", body), 400),
        // Codings that are not chunked at their end, or not known.
        (batch("transfer-encoding: chunked, identity\r\n", &chunks), 400),
        (batch("transfer-encoding: identity\r\n", &chunks), 400),
        (batch("transfer-encoding: xchunked\r\n", &chunks), 400),
        (batch("transfer-encoding : chunked\r\n", &chunks), 400),
        (format!("POST /api/models/batch HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"), 400),
        // Chunk sizes.
        (chunked(&format!("0x{length:x}\r\n{body}\r\n0\r\n\r\n")), 400),
        (chunked(&format!("+{length:x}\r\n{body}\r\n0\r\n\r\n")), 400),
        (chunked(&format!("-{length:x}\r\n{body}\r\n0\r\n\r\n")), 400),
        (chunked(&format!("\r\n{length:x}\r\n{body}\r\n0\r\n\r\n")), 400),
        (chunked(&format!("ffffffffffffffff1\r\n{body}\r\n0\r\n\r\n")), 400),
        (chunked(&format!("{length:x}\n{body}\r\n0\r\n\r\n")), 400),
        (chunked(&format!("{length:x};a\n{body}\r\n0\r\n\r\n")), 400),
        (chunked(&format!("{length:x}\r\n{body}0\r\n\r\n")), 400),
        (chunked(&format!("{length:x}\r\n{body}xx0\r\n\r\n")), 400),
        (chunked(&format!("{length:x};{}\r\n{body}\r\n0\r\n\r\n", "x".repeat(20_000))), 400),
        // Lines and names.
        (batch("x: a\r\n folded: b\r\n", ""), 400),
        (batch(" x: a\r\n", ""), 400),
        (batch("x y: a\r\n", ""), 400),
        (batch("x: a\rb\r\n", ""), 400),
        (batch("x: a\0b\r\n", ""), 400),
        (batch(": a\r\n", ""), 400),
        ("GET /api/models/a HTTP/1.1 \r\nhost: x\r\n\r\n".into(), 400),
        ("GET /api/models/a b HTTP/1.1\r\nhost: x\r\n\r\n".into(), 400),
        ("GET /api/models/a HTTP/1.2\r\nhost: x\r\n\r\n".into(), 400),
        ("GET /api/models/a HTTP/2.0\r\nhost: x\r\n\r\n".into(), 400),
        ("G\u{e4}T /api/models/a HTTP/1.1\r\nhost: x\r\n\r\n".into(), 400),
        ("\0\0\0\0\r\n\r\n".into(), 400),
    ]
}

#[tokio::test]
async fn ambiguous_requests_smuggle_nothing() {
    let (_db, server) = start_with_model_a(&[]).await;
    for (shape, status) in shapes() {
        let mut stream = connect(&server.address);
        stream.write_all((shape.clone() + SMUGGLED).as_bytes()).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        let answers = read_to_close(&mut stream);
        // A refusal ends the connection with bytes unread: its reset may overtake the answer.
        let refused = status == 400 && answers.is_empty();
        assert!(refused || statuses(&answers) == [status], "not {status} alone: {answers:?} to {shape:?}");
        assert!(!answers.contains("smuggled"), "{answers:?} to {shape:?}");
    }
    let missing = server.get("/api/catalog").await.json()["not_found"].clone();
    assert_eq!(missing, 0, "somebody looked for what was smuggled");
}

#[tokio::test]
async fn two_host_headers_return_400_and_bare_line_feeds_are_accepted() {
    let (_db, server) = start_with_model_a(&[]).await;
    for (request, status) in [
        ("GET /api/models/a HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n", 400),
        ("GET /api/models/a HTTP/1.1\r\nhost: x\r\nHost: y\r\nte: x\r\n\r\n", 400),
        // RFC 9112 §2.2 allows that, and each line still has one meaning.
        ("GET /api/models/a HTTP/1.1\nhost: x\n\n", 200),
        // Nothing here depends on the host, and health checks leave it out.
        ("GET /api/models/a HTTP/1.1\r\n\r\n", 200),
    ] {
        let mut raw = Raw::open(&server.address);
        raw.send(request);
        assert_eq!(raw.response().status, status, "{request:?}");
    }
}

#[tokio::test]
async fn unread_request_body_closes_the_connection() {
    let (_db, server) = start_with_model_a(&[]).await;
    for (head, status) in [
        ("POST /api/models/a HTTP/1.1\r\nhost: x", 405),
        ("POST /absent HTTP/1.1\r\nhost: x", 404),
        ("GET /api/models/a HTTP/1.1\r\nhost: x", 200),
        ("POST /api/models/batch HTTP/1.1\r\nhost: x\r\nhost: y", 400),
    ] {
        for expect in ["", "expect: 100-continue\r\n"] {
            for next in ["\0", SMUGGLED] {
                let mut stream = connect(&server.address);
                stream.write_all(format!("{head}\r\n{expect}content-length: 3\r\n\r\nabc{next}").as_bytes()).unwrap();
                let answers = read_to_close(&mut stream);
                assert_eq!(statuses(&answers), [status], "{answers:?} to {head:?}, {expect:?}, {next:?}");
                assert!(answers.contains("connection: close\r\n"), "{answers:?}");
            }
        }
    }
}

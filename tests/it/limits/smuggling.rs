//! Request smuggling: a request that two parsers may delimit differently gets one response, and nothing after it is read.

use std::io::Write;
use std::net::Shutdown;

use crate::support::raw::{Raw, connect, read_to_close, statuses};
use crate::support::start_with_model_a;

const BATCH: &str = "POST /api/models/batch HTTP/1.1\r\n";
const SMUGGLED: &str = "GET /api/models/smuggled HTTP/1.1\r\nhost: x\r\n\r\n";

/// Ambiguous requests with the status of their only response.
fn shapes() -> Vec<(String, u16)> {
    let body = r#"{"model_ids":["a"]}"#;
    let length = body.len();
    let chunks = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    let batch = |headers: &str, body: &str| format!("{BATCH}host: x\r\n{headers}\r\n{body}");
    let chunked = |body: &str| batch("transfer-encoding: chunked\r\n", body);
    vec![
        // Both lengths: the chunked one wins, and the connection closes after the response.
        (batch(&format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"), &chunks), 200),
        (batch(&format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"), &chunks), 200),
        (batch("content-length: 0\r\ntransfer-encoding: chunked\r\n", &chunks), 200),
        // A complete request by its content-length, invalid as chunks.
        (batch(&format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"), body), 400),
        ("GET /api/models/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(), 200),
        // Two lengths, and invalid ones.
        (batch(&format!("content-length: 0\r\ncontent-length: {length}\r\n"), body), 400),
        (batch(&format!("content-length: {length}\r\ncontent-length: 0\r\n"), body), 400),
        (batch(&format!("content-length: {length}, 0\r\n"), body), 400),
        (batch(&format!("content-length: +{length}\r\n"), body), 400),
        (batch(&format!("content-length: -{length}\r\n"), body), 400),
        (batch("content-length: 0x13\r\n", body), 400),
        (batch("content-length: 99999999999999999999\r\n", body), 400),
        (batch("content-length: \r\n", body), 400),
        // Codings that do not end with chunked, or are unknown.
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
        // Header lines and names, versions, methods.
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
        let responses = read_to_close(&mut stream);
        // A rejection closes the connection with unread bytes: the reset may overtake the response.
        let reset = status == 400 && responses.is_empty();
        assert!(reset || statuses(&responses) == [status], "not {status} alone: {responses:?} to {shape:?}");
        assert!(!responses.contains("smuggled"), "{responses:?} to {shape:?}");
    }
    let missing = server.get("/api/catalog").await.json()["not_found"].clone();
    assert_eq!(missing, 0, "the smuggled request was handled");
}

#[tokio::test]
async fn two_host_headers_return_400_and_bare_line_feeds_are_accepted() {
    let (_db, server) = start_with_model_a(&[]).await;
    for (request, status) in [
        ("GET /api/models/a HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n", 400),
        ("GET /api/models/a HTTP/1.1\r\nhost: x\r\nHost: y\r\nte: x\r\n\r\n", 400),
        // Allowed by RFC 9112 §2.2, and unambiguous.
        ("GET /api/models/a HTTP/1.1\nhost: x\n\n", 200),
        // No response depends on the host, and some health checks omit it.
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
                let responses = read_to_close(&mut stream);
                assert_eq!(statuses(&responses), [status], "{responses:?} to {head:?}, {expect:?}, {next:?}");
                assert!(responses.contains("connection: close\r\n"), "{responses:?}");
            }
        }
    }
}

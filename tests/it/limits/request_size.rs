//! Bodies and headers over their limits.

use std::io::Write;

use crate::support::raw::{connect, read_to_close, statuses};
use crate::support::start_with_model_a;

#[tokio::test]
async fn endless_chunked_body_returns_413() {
    let (_db, server) = start_with_model_a(&[("CATALOG_MAX_BODY_BYTES", "10000")]).await;
    let mut stream = connect(&server.address);
    stream.write_all(b"POST /api/models/batch HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let chunk = format!("3e8\r\n{}\r\n", "1".repeat(1000));
    // Until it is rejected; the kernel's buffers accept some more.
    let sent = (0..1_000_000).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count();
    assert!(sent < 1_000_000, "the server accepts endless chunks");
    assert_eq!(server.get("/api/models/a").await.status, 200);

    // If the kernel buffers everything at once, the response arrives.
    let mut stream = connect(&server.address);
    let body = format!("3e8\r\n{}\r\n", "1".repeat(1000)).repeat(11);
    let head = "POST /api/models/batch HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all((head.to_owned() + &body).as_bytes()).unwrap();
    assert_eq!(statuses(&read_to_close(&mut stream)), [413]);
}

#[tokio::test]
async fn oversized_headers_return_431() {
    let (_db, server) = start_with_model_a(&[]).await;
    let long = "x".repeat(40_000);
    let many: String = (0..101).map(|number| format!("x-{number}: 1\r\n")).collect();
    for flood in [
        format!("GET /api/models/a HTTP/1.1\r\n{many}\r\n"),
        format!("GET /api/models/a HTTP/1.1\r\nx: {long}\r\n\r\n"),
        format!("GET /api/models/a HTTP/1.1\r\nx: {long}"),
        format!("GET /api/models/a HTTP/1.1\r\n{long}: x"),
        format!("GET /{long} HTTP/1.1\r\n\r\n"),
        format!("POST /api/models/batch HTTP/1.1\r\ncontent-length: 2\r\nx: {long}\r\n\r\n{{}}"),
        format!("DELETE /api/models/a HTTP/1.1\r\n{}", "x: y\r\n".repeat(6_000)),
    ] {
        let mut stream = connect(&server.address);
        let _ = stream.write_all(flood.as_bytes());
        let response = read_to_close(&mut stream);
        // Unread bytes turn the close into a reset, which may overtake the response.
        assert!(statuses(&response) == [431] || response.is_empty(), "{response:?} to {}", &flood[..60]);
    }
    // Without unread bytes the response must arrive.
    let mut stream = connect(&server.address);
    stream.write_all(format!("GET /api/models/a HTTP/1.1\r\n{many}\r\n").as_bytes()).unwrap();
    assert_eq!(statuses(&read_to_close(&mut stream)), [431]);
    assert_eq!(server.get("/api/models/a").await.status, 200);
}

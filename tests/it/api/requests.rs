//! Requests over raw sockets: responses do not depend on how the bytes arrive, and damaged requests get exactly one.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::support::raw::Raw;
use crate::support::{Db, Server, WAIT_LIMIT, until};

async fn server() -> Server {
    let db = Db::new().await;
    for number in 0..60 {
        db.add(&format!("model-{number}")).await;
    }
    db.add("ä/ö").await;
    Server::start(&db).await
}

fn batch(ids: &[&str], headers: &str) -> String {
    let body = serde_json::json!({ "model_ids": ids }).to_string();
    format!("POST /api/models/batch HTTP/1.1\r\nhost: x\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

fn requests() -> Vec<String> {
    let many: Vec<String> = (0..60).map(|number| format!("model-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let get = |path: &str, rest: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n{rest}\r\n");
    vec![
        get("/api/models/model-1", ""),
        get("/api/models/model-1", "Connection: Keep-Alive\r\naccept: */*\r\n"),
        get("/api/models/absent", ""),
        get("/api/models/batch", ""),
        get("/api/models/model-1?x=1", ""),
        get("/api/models/%6dodel-1", ""),
        get("/api/models/%C3%A4%2F%C3%B6", ""),
        get("/api/models/", ""),
        get("/api/models/a/b", ""),
        get("/api/models/model-1", "if-none-match: *\r\n"),
        get("/api/models/model-1", "content-length: 0\r\n"),
        get("/api/models/model-1", "content-length: 3\r\n") + "abc",
        "HEAD /api/models/model-1 HTTP/1.1\r\nhost: x\r\n\r\n".into(),
        "GET /api/models/model-1 HTTP/1.0\r\n\r\n".into(),
        "GET  /api/models/model-1 HTTP/1.1\r\n\r\n".into(),
        "GET /api/models/model-1 HTTP/1.1\r\nbad header\r\n\r\n".into(),
        "GET /api/models/model-1\r\n\r\n".into(),
        batch(&["model-1", "absent", "model-2", "model-1", "absent"], ""),
        batch(&[], "Content-Type: text/plain\r\n"),
        batch(&many, ""),
        batch(&["model-1"], "transfer-encoding: chunked\r\n"),
        batch(&["model-1"], "content-length: 3\r\n"),
        batch(&["model-1"], "expect: 100-continue\r\n"),
        batch(&["ä/ö", "q\"\\\u{1}"], ""),
        batch(&vec!["model-1"; 1001], ""),
        "POST /api/models/batch HTTP/1.1\r\ncontent-length: 1\r\n\r\n{".into(),
        "POST /api/models/batch HTTP/1.1\r\ncontent-length: 0x10\r\n\r\n{\"model_ids\":[]}".into(),
        "POST /api/models/batch HTTP/1.1\r\ncontent-length: +16\r\n\r\n{\"model_ids\":[]}".into(),
        "POST /api/models/batch HTTP/1.1\r\n\r\n".into(),
        "POST /api/models/batch HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n10\r\n{\"model_ids\":[]}\r\n0\r\n\r\n"
            .into(),
        "POST /api/models/model-1 HTTP/1.1\r\ncontent-length: 0\r\n\r\n".into(),
        "OPTIONS * HTTP/1.1\r\n\r\n".into(),
    ]
}

/// All responses to these bytes, sent in parts, up to the end of the connection; without the dates.
fn exchange(address: &str, parts: &[&[u8]]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
    for part in parts {
        // The server closes the connection if it rejected the beginning.
        if stream.write_all(part).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut responses = Vec::new();
    // On a busy machine the last part may be sent when the server no longer waits for it, which resets the connection.
    if let Err(error) = stream.read_to_end(&mut responses)
        && error.kind() != ErrorKind::ConnectionReset
    {
        responses.extend_from_slice(error.to_string().as_bytes());
    }
    let text = String::from_utf8_lossy(&responses);
    text.split("\r\n").filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn responses_do_not_depend_on_how_requests_are_split() {
    let server = server().await;
    for request in requests() {
        let request = request.as_bytes();
        let expected = exchange(&server.address, &[request]);
        let shown = String::from_utf8_lossy(request);
        assert!(expected.starts_with("HTTP/1."), "{expected:?} to {shown}");
        let middle = request.len() / 2;
        assert_eq!(exchange(&server.address, &[&request[..middle], &request[middle..]]), expected, "{shown}");
        let bytes: Vec<&[u8]> = request.chunks(1).take(400).collect();
        if request.len() <= 400 {
            assert_eq!(exchange(&server.address, &bytes), expected, "byte by byte: {shown}");
        }
    }
}

#[tokio::test]
async fn damaged_requests_get_one_response_however_they_are_split() {
    let server = server().await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let requests = requests();
    for _ in 0..800 {
        let mut request = requests[random.usize(0..requests.len())].clone().into_bytes();
        for _ in 0..random.usize(1..4) {
            let index = random.usize(0..request.len());
            match random.u8(0..3) {
                0 => request[index] = random.u8(..),
                1 => drop(request.remove(index)),
                _ => request.insert(index, b" \r\n:/%\"{}[]0aZ\0"[random.usize(0..15)]),
            }
        }
        let shown = String::from_utf8_lossy(&request);
        let middle = random.usize(0..request.len());
        let whole = exchange(&server.address, &[&request]);
        let split = exchange(&server.address, &[&request[..middle], &request[middle..]]);
        // hyper parses a head that arrived in part again only when its end has arrived. A client that stops before that
        // gets no response, though the same bytes in one piece are refused. That head can follow a complete request.
        let unfinished = !shown.ends_with("\r\n\r\n") && !shown.ends_with("\n\n");
        let dropped = unfinished && whole.strip_prefix(&*split).is_some_and(|rest| rest.starts_with("HTTP/1.1 400 "));
        assert!(whole == split || dropped, "seed {seed}: {shown:?} split at {middle}: {whole:?} and {split:?}");
        let after_close = whole.split_once("connection: close").map_or("", |(_, rest)| rest);
        assert!(!after_close.contains("HTTP/1.1 "), "seed {seed}: {shown:?}: {whole}");
    }
}

#[tokio::test]
async fn refusal_after_a_complete_request_does_not_reset_a_client_that_still_sends() {
    let server = server().await;
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
    // Without a length the body is the next request, and refused as soon as its beginning is there.
    stream.write_all(b"POST /api/models/batch HTTP/1.1\r\n\r\n{\"model_ids\":").unwrap();
    let mut responses = String::new();
    stream.read_to_string(&mut responses).unwrap();
    assert_eq!(responses.matches("HTTP/1.1 400 Bad Request\r\n").count(), 2, "{responses}");
    // A closed socket would have been answered with a reset by the second write.
    for part in [&b"[\"model-1\""[..], b"]}"] {
        stream.write_all(part).unwrap();
    }
    assert!(stream.take_error().unwrap().is_none());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = server().await;
    let (many, paths) = (300, ["model-1", "model-2", "absent", "model-3"]);
    let path = |number: usize| paths[number % if number < 200 { 2 } else { 4 }];
    let all: String = (0..many).map(|n| format!("GET /api/models/{} HTTP/1.1\r\n\r\n", path(n))).collect();
    let mut raw = Raw::open(&server.address);
    raw.send(&all);
    for number in 0..many {
        let response = raw.response();
        let (status, id) = (response.status, response.json()["id"].as_str().unwrap_or("absent").to_owned());
        assert_eq!((status == 200, id.as_str()), (path(number) != "absent", path(number)), "response {number}");
    }
}

#[tokio::test]
async fn server_stops_reading_from_a_client_that_does_not_read() {
    let server = server().await;
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_write_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let many: Vec<String> = (0..60).map(|number| format!("model-{number}")).collect();
    let request = batch(&many.iter().map(String::as_str).collect::<Vec<_>>(), "");
    let before = server.metric("process_resident_memory_bytes").await;
    // The buffers of server and kernel fill up, then no more bytes are accepted.
    let accepted = (0..200_000).take_while(|_| stream.write_all(request.as_bytes()).is_ok()).count();
    assert!(accepted < 200_000, "the server accepted everything");
    let grown = server.metric("process_resident_memory_bytes").await - before;
    assert!(grown < 16e6, "{grown} bytes for one client that does not read");
    assert_eq!(server.get("/api/models/model-1").await.status, 200);
}

#[tokio::test]
async fn initially_silent_client_is_accepted() {
    let server = server().await;
    let connections = async || server.metric("catalog_http_connections").await;
    let before = connections().await;
    let mut silent = Raw::open(&server.address);
    // TCP_DEFER_ACCEPT delays it for a second, in which most clients have sent a request.
    until("the silent client is accepted", async || connections().await > before).await;
    assert_eq!(silent.get("/api/models/model-1").status, 200);
    assert_eq!(silent.get("/api/models/absent").status, 404);
}

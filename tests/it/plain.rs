//! Plain requests get, byte for byte, what the HTTP library would answer, however they come in.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::raw::Raw;
use crate::support::{Db, PATIENCE, Server, until};

/// A header that changes nothing but makes a request the library's.
const LIBRARY: &str = "te: trailers\r\n";

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

/// All that a connection answers to these bytes, sent in parts, up to its end; without the dates.
fn conversation(address: &str, parts: &[&[u8]]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for part in parts {
        // A server that has refused the beginning may not take the rest.
        if stream.write_all(part).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    // A reset after a refusal ends the answer, too.
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer);
    text.split("\r\n").filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n")
}

/// The same request with the header that makes it the library's.
fn for_library(request: &[u8]) -> Vec<u8> {
    let line = request.windows(2).position(|two| two == b"\r\n").map_or(request.len(), |end| end + 2);
    [&request[..line], LIBRARY.as_bytes(), &request[line..]].concat()
}

#[tokio::test]
async fn it_answers_as_the_library_does() {
    let server = server().await;
    for request in requests() {
        let request = request.as_bytes();
        let expected = conversation(&server.address, &[&for_library(request)]);
        let shown = String::from_utf8_lossy(request);
        assert_eq!(conversation(&server.address, &[request]), expected, "{shown}");
        let middle = request.len() / 2;
        assert_eq!(conversation(&server.address, &[&request[..middle], &request[middle..]]), expected, "{shown}");
        let bytes: Vec<&[u8]> = request.chunks(1).take(400).collect();
        if request.len() <= 400 {
            assert_eq!(conversation(&server.address, &bytes), expected, "byte by byte: {shown}");
        }
    }
}

#[tokio::test]
async fn it_answers_damaged_requests_as_the_library_does() {
    let server = server().await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let requests = requests();
    for _ in 0..400 {
        let mut request = requests[random.usize(0..requests.len())].clone().into_bytes();
        for _ in 0..random.usize(1..4) {
            let place = random.usize(0..request.len());
            match random.u8(0..3) {
                0 => request[place] = random.u8(..),
                1 => drop(request.remove(place)),
                _ => request.insert(place, b" \r\n:/%\"{}[]0aZ\0"[random.usize(0..15)]),
            }
        }
        let shown = String::from_utf8_lossy(&request);
        // Where the first line is damaged, the header might become a part of it.
        if !shown.split('\n').next().is_some_and(|line| line.ends_with(" HTTP/1.1\r")) {
            continue;
        }
        // A refusal closes on what the client still sends, and the reset may overtake it: only what differs every
        // time differs.
        let mut pairs = (0..5).map(|_| {
            (conversation(&server.address, &[&request]), conversation(&server.address, &[&for_library(&request)]))
        });
        let differing = pairs.by_ref().take_while(|(plain, library)| plain != library).collect::<Vec<_>>();
        assert!(differing.len() < 5, "seed {seed}: {shown:?}: {differing:#?}");
    }
}

#[tokio::test]
async fn requests_that_come_together_are_answered_in_their_order() {
    let server = server().await;
    let (many, paths) = (300, ["model-1", "model-2", "absent", "model-3"]);
    let path = |number: usize| paths[number % if number < 200 { 2 } else { 4 }];
    let all: String = (0..many).map(|n| format!("GET /api/models/{} HTTP/1.1\r\n\r\n", path(n))).collect();
    let mut raw = Raw::open(&server.address);
    raw.send(&all);
    for number in 0..many {
        let reply = raw.answer();
        let (status, id) = (reply.status, reply.json()["id"].as_str().unwrap_or("absent").to_owned());
        assert_eq!((status == 200, id.as_str()), (path(number) != "absent", path(number)), "answer {number}");
    }
}

#[tokio::test]
async fn answers_to_a_client_that_does_not_read_are_held_back() {
    let server = server().await;
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_write_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let many: Vec<String> = (0..60).map(|number| format!("model-{number}")).collect();
    let request = batch(&many.iter().map(String::as_str).collect::<Vec<_>>(), "");
    let before = server.metric("process_resident_memory_bytes").await;
    // Its own buffer and the kernel's fill up, then nothing more is taken.
    let taken = (0..200_000).take_while(|_| stream.write_all(request.as_bytes()).is_ok()).count();
    assert!(taken < 200_000, "the server took everything");
    let grown = server.metric("process_resident_memory_bytes").await - before;
    assert!(grown < 16e6, "{grown} bytes for one client that does not read");
    assert_eq!(server.get("/api/models/model-1").await.status, 200);
}

#[tokio::test]
async fn a_client_that_says_nothing_at_first_is_taken_all_the_same() {
    let server = server().await;
    let connections = async || server.metric("catalog_http_connections").await;
    let before = connections().await;
    let mut silent = Raw::open(&server.address);
    // The kernel holds it back for a second in which most would have asked.
    until("the silent client to be taken", async || connections().await > before).await;
    assert_eq!(silent.get("/api/models/model-1").status, 200);
    assert_eq!(silent.get("/api/models/absent").status, 404);
}

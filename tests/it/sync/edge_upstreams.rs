//! Upstreams that are stale, slow or something else than a catalog.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::tcp_proxy::TcpProxy;
use crate::support::{Db, Server};

/// A server that handles each connection by `handler`, which gets the head of the request; returns its URL.
fn serve(handler: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (handler, mut stream) = (handler.clone(), stream.unwrap());
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte)?;
                    head.push(byte[0]);
                }
                handler(&String::from_utf8_lossy(&head), &mut stream)
            });
        }
    });
    address
}

async fn logs(edge: &Server, message: &str) {
    edge.until(message, |s| std::future::ready(s.logged(message) > 0)).await;
}

/// A server without its database, or two edges that follow each other, would otherwise be followed forever.
#[tokio::test]
async fn upstream_that_was_not_in_sync_for_a_minute_is_followed_by_the_next() {
    let db = Db::new().await;
    db.add("a").await;
    let replica = Server::start(&db).await;
    let old = replica.get("/api/snapshot").await;
    assert!(old.header("age").parse::<u64>().unwrap() < 60, "{}", old.header("age"));
    let (tag, body) = (old.header("etag").to_owned(), old.text());
    let stale = serve(move |head, stream| {
        let (status, body) = if head.contains("if-none-match") { (304, "") } else { (200, &*body) };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status} x\r\nage: 500\r\netag: {tag}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    });
    let proxy = TcpProxy::new(&replica.address).await;
    proxy.point_to(None);
    let upstreams = format!("{stale},{}", proxy.url());
    let edge = Server::edge(&upstreams, &[("CATALOG_UPSTREAM_INTERVAL", "100ms")]).await;
    edge.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
    edge.until("the age is known", |s| async move {
        s.get("/readyz").await.json()["synced_seconds_ago"].as_f64().is_some_and(|seconds| seconds >= 500.0)
    })
    .await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(edge.metric("catalog_last_sync_timestamp_seconds").await <= now - 499.0);
    assert!(edge.get("/api/snapshot").await.header("age").parse::<u64>().unwrap() >= 500);

    db.sql("UPDATE models SET name = 'new'").await;
    replica.until_named("a", "new").await;
    proxy.point_to(Some(&replica.address));
    edge.until_named("a", "new").await;
    edge.until("it is in sync", |s| async move {
        s.get("/readyz").await.json()["synced_seconds_ago"].as_f64().is_some_and(|seconds| seconds < 60.0)
    })
    .await;
}

#[tokio::test]
async fn slow_and_endless_bodies_are_given_up() {
    let slow = serve(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 x\r\ncontent-length: 9999999\r\n\r\n{\"format\":\"model-catalog snapshot\"")?;
        loop {
            stream.write_all(b" ")?;
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let endless = serve(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 x\r\n\r\n")?;
        loop {
            stream.write_all(&[b'x'; 65536])?;
        }
    });
    let edges = [Server::edge(&slow, &[]).await, Server::edge(&endless, &[]).await];
    logs(&edges[1], "it is not a snapshot file").await;
    logs(&edges[0], "it sends less than 16384 bytes per second").await;
}

#[tokio::test]
async fn not_modified_without_a_condition_is_an_error() {
    let upstream = serve(|_, stream| stream.write_all(b"HTTP/1.1 304 x\r\nconnection: close\r\n\r\n"));
    let edge = Server::edge(&upstream, &[]).await;
    logs(&edge, "the response is 304").await;
    assert_eq!((edge.get("/readyz").await.status, edge.metric("catalog_upstream_connected").await), (503, 0.0));
}

/// The target of a redirect receives no secret.
#[tokio::test]
async fn redirects_expose_neither_the_url_nor_the_token() {
    let (sender, heads) = mpsc::channel();
    let other = serve(move |head, _| {
        sender.send(head.to_owned()).unwrap();
        Ok(())
    });
    let (sender, first) = mpsc::channel();
    let upstream = serve(move |head, stream| {
        sender.send(head.to_owned()).unwrap();
        write!(stream, "HTTP/1.1 302 x\r\nlocation: {other}/moved\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    });
    let url = upstream.replace("http://", "http://me:pa55word@") + "/catalog.jsonl?sig=s3cret";
    let edge = Server::edge(&url, &[("CATALOG_UPSTREAM_TOKEN", "t0ken")]).await;
    logs(&edge, "the upstream is unavailable").await;
    let head = first.recv().unwrap().to_lowercase();
    assert!(head.contains("authorization: bearer t0ken") && !head.contains("basic"), "{head}");
    let head = heads.recv().unwrap().to_lowercase();
    assert!(head.contains("get /moved") && !head.contains("s3cret") && !head.contains("authorization"), "{head}");
}

//! Threads that cannot be started, and threads that panic: requests are served, changes arrive, and nothing stays lost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use hyper::Request;

use crate::support::proxy::Proxy;
use crate::support::system_faults::SystemFaults;

use crate::support::{Db, Server, TempFolder, Unwritable, WAIT_LIMIT, migrated, sql, start_postgres};

async fn with_a(faults: &SystemFaults, settings: &[(&str, &str)]) -> (Db, Server) {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::spawn(&db.url, &[&faults.settings(), settings].concat()).await;
    server.until("the catalog is served", |s| async move { s.get("/api/models/a").await.status == 200 }).await;
    (db, server)
}

#[tokio::test]
async fn requests_for_the_whole_catalog_need_no_new_thread() {
    let faults = SystemFaults::new();
    let (db, server) = with_a(&faults, &[]).await;
    faults.begin("no-threads");
    let compressed = || {
        let request = Request::get(format!("http://{}/api/snapshot", server.address));
        server.send(request.header("accept-encoding", "gzip").body(Default::default()).unwrap())
    };
    for round in 0..2 {
        let answers =
            async { (compressed().await, server.get("/api/models").await, server.get("/api/snapshot").await) };
        let answers = tokio::time::timeout(Duration::from_secs(20), answers).await.expect("no request hangs");
        assert_eq!((answers.0.status, answers.1.status, answers.2.status), (200, 200, 200), "round {round}");
        assert_eq!(answers.0.header("content-encoding"), "gzip");
        db.sql("UPDATE models SET name = 'changed'").await;
        server.until_named("a", "changed").await;
    }
    faults.end("no-threads");
    assert_eq!(compressed().await.status, 200);
}

#[tokio::test]
async fn a_reconnect_needs_no_new_thread() {
    let (postgres, faults) = (start_postgres(&[]), SystemFaults::new());
    let client = migrated(&postgres.url("postgres")).await;
    let insert =
        "INSERT INTO models (id, name, download_url, save_path) VALUES ('a', 'a', 'https://example.org/a', 'a')";
    sql(&client, insert).await;
    let proxy = Proxy::before(&postgres).await;
    // By name, which a thread resolves.
    let url = proxy.url("postgres").replace("127.0.0.1", "localhost");
    let server = Server::start_with(&url, &faults.settings()).await;
    faults.begin("no-threads");
    for name in ["b", "c"] {
        proxy.cut();
        sql(&client, &format!("UPDATE models SET name = '{name}'")).await;
        server.until_named("a", name).await;
    }
    assert_eq!(server.metric("catalog_thread_restarts_total{thread=\"loader\"}").await, 0.0);
}

#[tokio::test]
async fn every_thread_that_panics_is_restarted() {
    let (folder, faults) = (TempFolder::new("threads"), SystemFaults::new());
    let file = folder.path("catalog.jsonl");
    let settings = [
        ("CATALOG_THREADS", "1"),
        ("CATALOG_ADMIN_ADDR", "127.0.0.1:0"),
        ("CATALOG_SNAPSHOT_FILE", &*file),
        ("CATALOG_POLL_INTERVAL", "100ms"),
    ];
    let (db, server) = with_a(&faults, &settings).await;
    let admin = server.admin_address();
    for (thread, name) in [("http-0", "b"), ("admin", "c"), ("loader", "d"), ("snapshot-writer", "e")] {
        // The kernel truncates names to 15 bytes.
        let fault = format!("panic-{}", &thread[..thread.len().min(15)]);
        faults.begin(&fault);
        // Each thread waits for I/O again after a request or a change.
        let mut queued = Vec::new();
        server
            .until(&format!("{thread} panics"), |_| {
                queued.extend([&*server.address, &*admin].map(|address| TcpStream::connect(address).unwrap()));
                let change = db.sql("UPDATE models SET name = name || '.'");
                async {
                    change.await;
                    !faults.is_active(&fault)
                }
            })
            .await;
        // The listener is open while the thread is gone, and serves what is queued.
        for address in [&*server.address, &*admin] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
            stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).unwrap();
            assert!(response.starts_with("HTTP/1.1 "), "{thread}: {response}");
        }
        server.until_logged("a thread panicked, restarting it", 1).await;
        server.forget_panics();
        db.sql(&format!("UPDATE models SET name = '{name}'")).await;
        server.until_named("a", name).await;
        let saved = || std::fs::read_to_string(&file).is_ok_and(|text| text.contains(&format!("\"name\":\"{name}\"")));
        server.until("the change is saved", |_| std::future::ready(saved())).await;
        let metrics = server.send(Request::get(format!("http://{admin}/metrics")).body(Default::default()).unwrap());
        let counted = format!("catalog_thread_restarts_total{{thread=\"{thread}\"}} 1");
        let text = metrics.await.text();
        assert!(text.contains(&counted), "{counted}: {text}");
    }
}

#[tokio::test]
async fn the_loader_is_restarted_while_the_log_cannot_be_written() {
    for output in Unwritable::ALL {
        let (db, faults) = (Db::new().await, SystemFaults::new());
        db.add("a").await;
        let (stderr, _reader) = output.open();
        let server = Server::spawn_unlogged(&output.prefix(2), stderr, &db.url, &faults.settings()).await;
        faults.begin("panic-loader");
        db.sql("UPDATE models SET name = 'wakes the loader'").await;
        server.until("the loader panics", |_| std::future::ready(!faults.is_active("panic-loader"))).await;
        db.sql("UPDATE models SET name = 'changed'").await;
        server.until_named("a", "changed").await;
        let restarts = server.metric("catalog_thread_restarts_total{thread=\"loader\"}").await;
        assert_eq!(restarts, 1.0, "{output:?}");
    }
}

//! Exhausted file descriptors and memory: open connections are still served, ops routes respond, Postgres can be
//! reconnected, and the server recovers by itself. A full disk is tested in `sync/snapshot_file.rs`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use hyper::Request;
use socket2::{Domain, Socket, Type};

use crate::support::cgroup::Cgroup;
use crate::support::raw::Raw;
use crate::support::{Db, Server, WAIT_LIMIT, raise_fd_limit, until};

const SETTINGS: [(&str, &str); 3] =
    [("CATALOG_THREADS", "2"), ("CATALOG_POLL_INTERVAL", "200ms"), ("CATALOG_ADMIN_ADDR", "127.0.0.1:0")];
const HALF_A_HEAD: &[u8] = b"GET /api/models/a HTTP/1.1\r\nx: ";

async fn with_a(prefix: &[&str], settings: &[(&str, &str)]) -> (Db, Server) {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::spawn_wrapped(prefix, &db.url, settings).await;
    server.until("the catalog is served", |s| async move { s.get("/api/models/a").await.status == 200 }).await;
    (db, server)
}

/// The status of a route on the admin port.
async fn admin_status(server: &Server, path: &str) -> u16 {
    let admin = server.admin_address();
    server.send(Request::get(format!("http://{admin}{path}")).body(Default::default()).unwrap()).await.status
}

/// Terminates all sessions of the server; a change made afterwards must be served.
async fn assert_reconnects(db: &Db, kept: &mut Raw, name: &str) {
    db.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
    db.sql(&format!("UPDATE models SET name = '{name}'")).await;
    until("the change is served", || std::future::ready(kept.get("/api/models/a").json()["name"] == name)).await;
}

fn is_served(address: &str, timeout: Duration) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(timeout)).unwrap();
    stream.write_all(b"GET /api/models/a HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
    std::io::read_to_string(&mut stream).is_ok_and(|response| response.starts_with("HTTP/1.1 200 "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exhausted_connection_limit_keeps_serving_and_recovers() {
    let (db, server) = with_a(&["/usr/bin/prlimit", "--nofile=128:128"], &SETTINGS).await;
    server.until_logged("serving fewer connections than configured", 1).await;
    let mut kept: Vec<_> = (0..4).map(|_| Raw::open(&server.address)).collect();
    kept.iter_mut().for_each(|kept| assert_eq!(kept.get("/api/models/a").status, 200));
    let greedy: Vec<_> = (0..300)
        .map(|_| {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            stream.write_all(HALF_A_HEAD).unwrap();
            stream
        })
        .collect();
    until("new clients are not served", async || !is_served(&server.address, Duration::from_millis(300))).await;
    kept.iter_mut().for_each(|kept| assert_eq!(kept.get("/api/models/a").status, 200));
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(admin_status(&server, path).await, 200, "{path}");
    }
    assert_reconnects(&db, &mut kept[0], "reconnected").await;
    assert_eq!(
        server.logged("cannot accept a connection"),
        0,
        "connections took the last descriptors: {:#?}",
        server.log()
    );
    drop(greedy);
    assert!(is_served(&server.address, WAIT_LIMIT));
}

#[tokio::test]
async fn too_low_descriptor_limit_fails_at_startup() {
    let mut command = Command::new("/usr/bin/timeout");
    command
        .args(["30", "/usr/bin/prlimit", "--nofile=48:48", env!("CARGO_BIN_EXE_model-catalog"), "serve"])
        .env_clear();
    command.env("DATABASE_URL", "host=/nonexistent user=nobody").env("CATALOG_ADDR", "127.0.0.1:0");
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("only 48 file descriptors are allowed") && stderr.contains("ulimit -n"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exhausted_descriptors_keep_serving_and_recover() {
    // One thread, so that the thread without descriptors is the one that serves.
    let [_, poll, admin] = SETTINGS;
    let (db, server) = with_a(&[], &[("CATALOG_THREADS", "1"), poll, admin]).await;
    let mut kept = Raw::open(&server.address);
    assert_eq!(kept.get("/api/models/a").status, 200);
    let pid = server.pid().to_string();
    let limit = |soft: &str| {
        let nofile = format!("--nofile={soft}:");
        assert!(Command::new("/usr/bin/prlimit").args(["--pid", &pid, &nofile]).status().unwrap().success());
    };
    let soft = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let soft = soft.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let soft = soft.split_whitespace().next().unwrap().to_owned();
    // Open descriptors stay open, none can be opened.
    limit("3");
    db.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
    assert!(!is_served(&server.address, Duration::from_millis(500)));
    server
        .until("the failed accept is logged", |s| std::future::ready(s.logged("cannot accept a connection") > 0))
        .await;
    server
        .until("the lost database is logged", |s| std::future::ready(s.logged("the database is unavailable") > 0))
        .await;
    assert_eq!(kept.get("/api/models/a").status, 200);
    limit(&soft);
    assert!(is_served(&server.address, WAIT_LIMIT));
    assert_reconnects(&db, &mut kept, "back").await;
    assert_eq!(admin_status(&server, "/readyz").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_stay_within_the_memory_budget() {
    const MIB: usize = 1 << 20;
    const FLOOD: usize = 200;
    let (_db, server) = with_a(&[], &[("CATALOG_MAX_BUFFER_BYTES", "8388608")]).await;
    let before = server.metric("process_resident_memory_bytes").await;
    let head = format!("POST /api/models/batch HTTP/1.1\r\nhost: x\r\ncontent-length: {MIB}\r\n\r\n");
    // All but the last byte.
    let body = " ".repeat(MIB - 1);
    let flood: Vec<_> = (0..FLOOD)
        .map(|_| {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            stream.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
            stream.set_write_timeout(Some(WAIT_LIMIT)).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            // A client rejected before it has sent everything may find the connection closed.
            let _ = stream.write_all(body.as_bytes());
            stream
        })
        .collect();
    let rejected_total = r#"catalog_http_requests_total{route="/api/models/batch",status="503"}"#;
    server
        .until("most requests are rejected", |s| async move { s.metric(rejected_total).await >= (FLOOD - 8) as f64 })
        .await;
    let grown = server.metric("process_resident_memory_bytes").await - before;
    // The allocator keeps freed memory for a while, and each connection has buffers of its own.
    assert!(grown < (FLOOD / 2 * MIB) as f64, "{grown} bytes for a flood of {FLOOD} MiB, with a budget of 8 MiB");
    let small = server.batch(r#"{"model_ids":["a"]}"#).await;
    assert_eq!(small.status, 200);
    drop(flood);
    let large = format!(r#"{{"model_ids":["a"],"x":"{}"}}"#, " ".repeat(MIB / 2));
    server
        .until("large requests are accepted again", |s| {
            let large = large.clone();
            async move { s.batch(&large).await.status == 200 }
        })
        .await;
}

#[tokio::test]
async fn responses_over_the_memory_budget_return_503() {
    let (db, server) = with_a(&[], &[("CATALOG_MAX_BUFFER_BYTES", "20000"), ("CATALOG_THREADS", "1")]).await;
    db.add("small").await;
    db.sql("UPDATE models SET description = repeat('x', 30000) WHERE id = 'a'").await;
    server
        .until("the large description is served", |s| async move { s.get("/api/models/a").await.status == 503 })
        .await;
    let mut raw = Raw::open(&server.address);
    let mut send = |method: &str, path: &str, body: &str| {
        let length = body.len();
        raw.send(&format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"));
        raw.response()
    };
    let (batch, body_a) = ("/api/models/batch", r#"{"model_ids":["a"]}"#);
    for (method, path, body) in [
        ("GET", "/api/models/a", ""),
        ("GET", "/api/models", ""),
        ("GET", "/api/snapshot", ""),
        ("POST", batch, body_a),
        ("POST", batch, r#"{"model_ids":["a"],"resolve_dependencies":true}"#),
    ] {
        let response = send(method, path, body);
        assert_eq!((response.status, response.header("retry-after")), (503, "1"), "{path} {body}");
        assert_eq!(response.text(), r#"{"error":"too many large requests: retry in a second"}"#);
    }
    for (method, path, body) in [
        ("GET", "/api/models/small", ""),
        ("GET", "/api/models?q=small", ""),
        ("GET", "/api/catalog", ""),
        ("POST", batch, r#"{"model_ids":["small"]}"#),
        ("POST", "/api/models/batch?format=aria2", body_a),
    ] {
        assert_eq!(send(method, path, body).status, 200, "{path} {body}");
    }
}

fn peak_memory(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn snapshots_rendered_for_many_clients_stay_within_the_memory_budget() {
    const BUDGET: usize = 32 << 20;
    let (db, server) =
        with_a(&[], &[("CATALOG_MAX_BUFFER_BYTES", &BUDGET.to_string()), ("CATALOG_THREADS", "1")]).await;
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path, description) \
            SELECT 'big' || n, 'n', 'https://example.org/', 'big/' || n, repeat('x', 4000) FROM generate_series(1, 2000) n",
    )
    .await;
    server.until("all are served", |s| async move { s.get("/readyz").await.json()["models"] == 2001 }).await;
    let before = peak_memory(&server);
    let mut clients: Vec<_> = (0..100).map(|_| connect(&server.address)).collect();
    for client in &mut clients {
        client.write_all(b"GET /api/snapshot HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    }
    let mut statuses = [0; 2];
    for client in &mut clients {
        let mut start = [0; 12];
        client.read_exact(&mut start).unwrap();
        match &start {
            b"HTTP/1.1 200" => statuses[0] += 1,
            b"HTTP/1.1 503" => statuses[1] += 1,
            _ => panic!("{}", String::from_utf8_lossy(&start)),
        }
    }
    let used = peak_memory(&server) - before;
    assert!(statuses[0] >= 3 && statuses[1] > 0, "200 and 503: {statuses:?}");
    assert!(used < 2 * BUDGET, "{used} bytes for {statuses:?}");
    drop(clients);
    server.until("the memory is free again", |s| async move { s.get("/api/snapshot").await.status == 200 }).await;
}

/// Connects with a small receive buffer.
fn connect(address: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
    socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.into()
}

/// Sends as much as the server accepts, and keeps the connection open.
fn greedy(address: &str, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    let _ = stream.write_all(bytes);
    stream
}

/// The settings that the documentation recommends for a small machine.
const SMALL: [(&str, &str); 5] = [
    ("CATALOG_THREADS", "1"),
    ("CATALOG_IDLE_TIMEOUT", "2m"),
    ("CATALOG_MAX_CONNECTIONS", "1000"),
    ("CATALOG_MAX_BUFFER_BYTES", "67108864"),
    ("CATALOG_REQUEST_TIMEOUT", "2m"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greedy_clients_do_not_trigger_the_oom_killer() {
    const LIMIT: usize = 256 << 20;
    let Some(cgroup) = Cgroup::with_memory_limit(LIMIT) else { return };
    raise_fd_limit();
    let (db, server) = with_a(&["/bin/sh", "-c", &cgroup.exec_command()], &SMALL).await;
    // A page of these is 6 MB.
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path, description) \
         SELECT 'm' || n, 'x', 'https://example.org/x', 'x', repeat('x', 30000) FROM generate_series(1, 200) n",
    )
    .await;
    server.until("all models are served", |s| async move { s.get("/readyz").await.json()["models"] == 201 }).await;
    let mut kept = Raw::open(&server.address);
    assert_eq!(kept.get("/api/models/a").status, 200);
    let address = &*server.address;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nte: trailers\r\n\r\n");

    // One after the other, because concurrent scans are limited; only the beginning of each response is read.
    println!("{} MiB at the start", cgroup.anonymous() >> 20);
    let (mut pages, mut rejected) = (Vec::new(), 0);
    for _ in 0..60 {
        let (mut stream, mut status) = (greedy(address, request("/api/models?limit=200").as_bytes()), [0; 12]);
        stream.read_exact(&mut status).unwrap();
        rejected += usize::from(&status == b"HTTP/1.1 503");
        pages.push(stream);
    }
    assert!((1..60).contains(&rejected), "{rejected} of 60 pages rejected");
    let single: Vec<_> = (0..60).map(|_| greedy(address, request("/api/models/m1").repeat(300).as_bytes())).collect();
    let head = "POST /api/models/batch HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\r\n";
    let large = head.to_owned() + &" ".repeat((1 << 20) - 1);
    let bodies: Vec<_> = (0..200).map(|_| greedy(address, large.as_bytes())).collect();
    let half = [b"GET /api/models/a HTTP/1.1\r\nx: ".as_slice(), &[b'x'; 31_000]].concat();
    let heads: Vec<_> = (0..560).map(|_| greedy(address, &half)).collect();
    assert_eq!(kept.get("/api/models/a").status, 200);
    // Small responses are sent although the budget for large ones is exhausted.
    let small = server.send(server.request("GET", "/api/models/%61", "")).await;
    assert_eq!(small.status, 200);
    let open = server.metric("catalog_http_connections").await;
    assert!(
        is_served(address, WAIT_LIMIT),
        "a new client is not served beside {open} connections, {} bytes",
        cgroup.anonymous()
    );

    let more: Vec<_> = (0..2_000).map(|_| greedy(address, &half)).collect();
    for _ in 0..100 {
        assert_eq!(kept.get("/api/models/a").status, 200);
    }
    assert_eq!((server.exited(), cgroup.oom_kills()), (None, 0));
    println!("{} MiB of {} MiB; {rejected} of 60 pages rejected", cgroup.anonymous() >> 20, LIMIT >> 20);
    drop((pages, single, bodies, heads, more));
    assert!(is_served(address, WAIT_LIMIT));
    server
        .until(
            "large requests are accepted again",
            |s| async move { s.get("/api/models?limit=200").await.status == 200 },
        )
        .await;
    drop(server);
    assert_eq!(cgroup.oom_kills(), 0);
}

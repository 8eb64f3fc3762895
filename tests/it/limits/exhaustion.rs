//! No descriptors left, no memory left: what is open is served on, operators are answered, Postgres is reached again,
//! and all is well by itself when there is room. A full disk is in `snapshot_file.rs`.

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
    server.until("it serves", |s| async move { s.get("/api/models/a").await.status == 200 }).await;
    (db, server)
}

/// What the port for operations answers.
async fn operations(server: &Server, path: &str) -> u16 {
    let line = server.log().into_iter().find(|line| line.contains("serving the admin routes")).unwrap();
    let admin = serde_json::from_str::<serde_json::Value>(&line).unwrap()["address"].as_str().unwrap().to_owned();
    server.send(Request::get(format!("http://{admin}{path}")).body(Default::default()).unwrap()).await.status
}

/// Ends all sessions of the program; a change made after that has to be served.
async fn loses_the_database_and_comes_back(db: &Db, kept: &mut Raw, name: &str) {
    db.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
    db.sql(&format!("UPDATE models SET name = '{name}'")).await;
    until("the change is served", || std::future::ready(kept.get("/api/models/a").json()["name"] == name)).await;
}

fn is_answered(address: &str, patience: Duration) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(b"GET /api/models/a HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
    std::io::read_to_string(&mut stream).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
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
    until("nobody else gets in", async || !is_answered(&server.address, Duration::from_millis(300))).await;
    kept.iter_mut().for_each(|kept| assert_eq!(kept.get("/api/models/a").status, 200));
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(operations(&server, path).await, 200, "{path}");
    }
    loses_the_database_and_comes_back(&db, &mut kept[0], "reached").await;
    assert_eq!(
        server.logged("cannot accept a connection"),
        0,
        "connections took the last descriptors: {:#?}",
        server.log()
    );
    drop(greedy);
    assert!(is_answered(&server.address, WAIT_LIMIT));
}

#[tokio::test]
async fn too_low_descriptor_limit_fails_at_startup() {
    let mut command = Command::new("/usr/bin/timeout");
    command
        .args(["30", "/usr/bin/prlimit", "--nofile=48:48", env!("CARGO_BIN_EXE_model-catalog"), "serve"])
        .env_clear();
    command.env("DATABASE_URL", "host=/nonexistent user=nobody").env("CATALOG_ADDR", "127.0.0.1:0");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("only 48 file descriptors are allowed") && said.contains("ulimit -n"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exhausted_descriptors_keep_serving_and_recover() {
    // One thread, so that it is the one that has none.
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
    // None that is open is lost, none can be opened.
    limit("3");
    db.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
    assert!(!is_answered(&server.address, Duration::from_millis(500)));
    server.until("it has said so", |s| std::future::ready(s.logged("cannot accept a connection") > 0)).await;
    server.until("the database is away", |s| std::future::ready(s.logged("the database is unavailable") > 0)).await;
    assert_eq!(kept.get("/api/models/a").status, 200);
    limit(&soft);
    assert!(is_answered(&server.address, WAIT_LIMIT));
    loses_the_database_and_comes_back(&db, &mut kept, "back").await;
    assert_eq!(operations(&server, "/readyz").await, 200);
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
            // Who is refused in the middle may find the connection ended.
            let _ = stream.write_all(body.as_bytes());
            stream
        })
        .collect();
    let refused = r#"catalog_http_requests_total{route="/api/models/batch",status="503"}"#;
    server.until("most are refused", |s| async move { s.metric(refused).await >= (FLOOD - 8) as f64 }).await;
    let grown = server.metric("process_resident_memory_bytes").await - before;
    // What is freed the allocator keeps for a while, and each connection has its buffers on top.
    assert!(grown < (FLOOD / 2 * MIB) as f64, "{grown} bytes for a flood of {FLOOD} MiB, with 8 MiB allowed");
    let small = server.batch(r#"{"model_ids":["a"]}"#).await;
    assert_eq!(small.status, 200);
    drop(flood);
    let large = format!(r#"{{"model_ids":["a"],"x":"{}"}}"#, " ".repeat(MIB / 2));
    server
        .until("there is room again", |s| {
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
    server.until("both are served", |s| async move { s.metric("catalog_snapshot_bytes").await > 30_000.0 }).await;
    let mut raw = Raw::open(&server.address);
    let mut ask = |method: &str, path: &str, body: &str| {
        let length = body.len();
        raw.send(&format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"));
        raw.response()
    };
    let (batch, asked) = ("/api/models/batch", r#"{"model_ids":["a"]}"#);
    for (method, path, body) in [
        ("GET", "/api/models/a", ""),
        ("GET", "/api/models", ""),
        ("POST", batch, asked),
        ("POST", batch, r#"{"model_ids":["a"],"resolve_dependencies":true}"#),
    ] {
        let response = ask(method, path, body);
        assert_eq!((response.status, response.header("retry-after")), (503, "1"), "{path} {body}");
        assert_eq!(response.text(), r#"{"error":"too many large requests at once: try again in a second"}"#);
    }
    for (method, path, body) in [
        ("GET", "/api/models/small", ""),
        ("GET", "/api/models?q=small", ""),
        ("GET", "/api/catalog", ""),
        ("POST", batch, r#"{"model_ids":["small"]}"#),
        ("POST", "/api/models/batch?format=aria2", asked),
    ] {
        assert_eq!(ask(method, path, body).status, 200, "{path} {body}");
    }
}

/// Connects, with hardly any room for answers on this side.
fn connect(address: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
    socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.into()
}

/// Sends as much as is taken; the connection goes on.
fn greedy(address: &str, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    let _ = stream.write_all(bytes);
    stream
}

/// What the readme gives as an example of a small machine.
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
    // A page of them is 6 MB.
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path, description) \
         SELECT 'm' || n, 'x', 'https://example.org/x', 'x', repeat('x', 30000) FROM generate_series(1, 200) n",
    )
    .await;
    server.until("they are served", |s| async move { s.metric("catalog_models").await == 201.0 }).await;
    let mut kept = Raw::open(&server.address);
    assert_eq!(kept.get("/api/models/a").status, 200);
    let address = &*server.address;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nte: trailers\r\n\r\n");

    // One after the other, for only some may wait for a page at once; of the answer no more than its beginning is read.
    println!("{} MiB at first", cgroup.anonymous() >> 20);
    let (mut pages, mut refused) = (Vec::new(), 0);
    for _ in 0..60 {
        let (mut stream, mut status) = (greedy(address, request("/api/models?limit=200").as_bytes()), [0; 12]);
        stream.read_exact(&mut status).unwrap();
        refused += usize::from(&status == b"HTTP/1.1 503");
        pages.push(stream);
    }
    assert!((1..60).contains(&refused), "{refused} of 60 pages refused");
    let single: Vec<_> = (0..60).map(|_| greedy(address, request("/api/models/m1").repeat(300).as_bytes())).collect();
    let head = "POST /api/models/batch HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\r\n";
    let large = head.to_owned() + &" ".repeat((1 << 20) - 1);
    let bodies: Vec<_> = (0..200).map(|_| greedy(address, large.as_bytes())).collect();
    let half = [b"GET /api/models/a HTTP/1.1\r\nx: ".as_slice(), &[b'x'; 31_000]].concat();
    let heads: Vec<_> = (0..560).map(|_| greedy(address, &half)).collect();
    assert_eq!(kept.get("/api/models/a").status, 200);
    // Small responses are sent though nothing is left for large ones.
    let small = server.send(server.request("GET", "/api/models/%61", "")).await;
    assert_eq!(small.status, 200);
    let open = server.metric("catalog_http_connections").await;
    assert!(is_answered(address, WAIT_LIMIT), "a new client beside {open} connections, {} bytes", cgroup.anonymous());

    let more: Vec<_> = (0..2_000).map(|_| greedy(address, &half)).collect();
    for _ in 0..100 {
        assert_eq!(kept.get("/api/models/a").status, 200);
    }
    assert_eq!((server.exited(), cgroup.oom_kills()), (None, 0));
    println!("{} MiB, {} MiB are the limit; {refused} of 60 pages refused", cgroup.anonymous() >> 20, LIMIT >> 20);
    drop((pages, single, bodies, heads, more));
    assert!(is_answered(address, WAIT_LIMIT));
    server.until("there is room again", |s| async move { s.get("/api/models?limit=200").await.status == 200 }).await;
    drop(server);
    assert_eq!(cgroup.oom_kills(), 0);
}

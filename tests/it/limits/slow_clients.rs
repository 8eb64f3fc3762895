//! Clients that send or read slowly, or not at all: they are disconnected, and others are served meanwhile.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::raw::{Raw, connect, read_to_close};
use crate::support::{Server, WAIT_LIMIT, model_json, raise_fd_limit, start_with_model_a, until};

const HALF_A_HEAD: &str = "GET /api/models/a HTTP/1.1\r\nx: ";
const HALF_A_DELETE: &str = "DELETE /api/models/a HTTP/1.1\r\nx: ";
const HALF_A_BODY: &str = "POST /api/models/batch HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n{";
const HALF_A_CHUNK: &str = "POST /api/models/batch HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2328\r\n";
const NOTHING: &str = "";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_disconnected() {
    let (_db, server) =
        start_with_model_a(&[("CATALOG_REQUEST_TIMEOUT", "600ms"), ("CATALOG_IDLE_TIMEOUT", "1h")]).await;
    let (mut normal, started) = (Raw::open(&server.address), Instant::now());
    let slow: Vec<_> = [NOTHING, HALF_A_HEAD, HALF_A_DELETE, HALF_A_BODY, HALF_A_CHUNK]
        .into_iter()
        // On a new connection, and after a 200 and a 404.
        .flat_map(|part| [None, Some("a"), Some("absent")].map(|before| (part, before)))
        .filter(|(part, before)| before.is_none() || *part != NOTHING)
        .map(|(part, before)| {
            let address = server.address.clone();
            std::thread::spawn(move || {
                let mut stream = connect(&address);
                if let Some(id) = before {
                    stream.write_all(format!("GET /api/models/{id} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
                    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
                }
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                let _ = stream.write_all(part.as_bytes());
                let deadline = Instant::now() + WAIT_LIMIT;
                while Instant::now() < deadline {
                    match stream.read(&mut [0; 4096]) {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Ok(1..) => panic!("response to {part:?}"),
                        _ => return,
                    }
                    // Single bytes must not extend the deadline.
                    if part != NOTHING {
                        let _ = stream.write_all(b"1");
                    }
                }
                panic!("not disconnected in {WAIT_LIMIT:?}: {part:?}, requested before: {before:?}");
            })
        })
        .collect();
    let mut answered = 0;
    while slow.iter().any(|client| !client.is_finished()) || started.elapsed() < Duration::from_secs(2) {
        assert_eq!(normal.get("/api/models/a").status, 200);
        answered += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    slow.into_iter().for_each(|client| client.join().unwrap());
    assert!(answered > 10, "{answered}");
    // Those that sent nothing are idle.
    assert_eq!(server.metric("catalog_http_timeouts_total{incomplete=\"request\"}").await, 12.0);
    assert_eq!(server.metric("catalog_http_timeouts_total{incomplete=\"response\"}").await, 0.0);
}

#[tokio::test]
async fn idle_connections_are_closed_after_the_idle_timeout() {
    let (_db, server) =
        start_with_model_a(&[("CATALOG_REQUEST_TIMEOUT", "100ms"), ("CATALOG_IDLE_TIMEOUT", "1s")]).await;
    for path in ["/api/models/a", "/api/models/absent"] {
        let mut idle = Raw::open(&server.address);
        let started = Instant::now();
        idle.get(path);
        idle.expect_close();
        assert!(started.elapsed() >= Duration::from_secs(1), "{path}: closed after {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn client_that_does_not_read_is_disconnected_with_bounded_memory() {
    let settings = [("CATALOG_REQUEST_TIMEOUT", "1s"), ("CATALOG_IDLE_TIMEOUT", "1s")];
    let (db, server) = start_with_model_a(&settings).await;
    db.sql("UPDATE models SET description = repeat('x', 20000)").await;
    // On new connections: the server may close a pooled one just when it is used.
    let get = |path: &str| Raw::open(&server.address).get(path);
    server
        .until("the large description is served", |_| std::future::ready(get("/api/models/a").body.len() > 20_000))
        .await;
    let metric = |name: &str| {
        let metrics = get("/metrics").text();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0.0)
    };
    let memory = || metric("process_resident_memory_bytes");
    for (header, timeouts) in [("", 1.0), ("te: trailers\r\n", 2.0)] {
        let mut stream = connect(&server.address);
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let before = memory();
        let request = format!("GET /api/models/a HTTP/1.1\r\nhost: x\r\n{header}\r\n");
        let accepted = (0..200_000).take_while(|_| stream.write_all(request.as_bytes()).is_ok()).count();
        assert!(accepted < 200_000, "the server accepted everything");
        let grown = memory() - before;
        assert!(grown < 16e6, "{grown} bytes for one client that does not read");
        // It is disconnected with unsent responses: the stream ends within one, or with a reset.
        let counted = || metric("catalog_http_timeouts_total{incomplete=\"response\"}") == timeouts;
        server.until("its timeout is counted", |_| std::future::ready(counted())).await;
        read_to_close(&mut stream);
    }
    assert_eq!(get("/api/models/a").status, 200);
}

/// Opens connections that each have sent the beginning of a request.
fn open_slow(server: &Server, count: usize) -> Vec<TcpStream> {
    let beginnings = [HALF_A_HEAD, HALF_A_DELETE, HALF_A_BODY, HALF_A_CHUNK];
    let open = |number: usize| {
        let mut stream = connect(&server.address);
        stream.write_all(beginnings[number % beginnings.len()].as_bytes()).unwrap();
        stream
    };
    (0..count).map(open).collect()
}

const SLOW_CLIENTS: usize = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_slow_clients_do_not_block_others() {
    raise_fd_limit();
    let (db, server) = start_with_model_a(&[("CATALOG_REQUEST_TIMEOUT", "1h"), ("CATALOG_IDLE_TIMEOUT", "1h")]).await;
    let slow = open_slow(&server, SLOW_CLIENTS);
    let open = async |server: &Server| server.metric("catalog_http_connections").await;
    until("all slow clients are connected", async || open(&server).await >= SLOW_CLIENTS as f64).await;
    let mut kept = Raw::open(&server.address);
    for _ in 0..200 {
        assert_eq!(kept.get("/api/models/a").text(), model_json("a"));
        assert_eq!(Raw::open(&server.address).get("/api/models/a").status, 200);
    }
    assert!(open(&server).await >= SLOW_CLIENTS as f64, "the slow clients were disconnected before their timeout");
    drop((slow, server));

    // Neither do they when all of them time out at about the same time.
    let server =
        Server::start_with(&db.url, &[("CATALOG_REQUEST_TIMEOUT", "5s"), ("CATALOG_IDLE_TIMEOUT", "1h")]).await;
    let slow = open_slow(&server, SLOW_CLIENTS);
    until("the slow clients are disconnected", async || {
        assert_eq!(Raw::open(&server.address).get("/api/models/a").status, 200);
        open(&server).await <= 10.0
    })
    .await;
    drop(slow);
}

/// The 99th percentile latency on a kept-alive connection, in microseconds.
fn p99(server: &Server, requests: usize) -> u128 {
    let mut kept = Raw::open(&server.address);
    let mut times: Vec<_> = (0..requests)
        .map(|_| {
            let sent = Instant::now();
            assert_eq!(kept.get("/api/models/a").status, 200);
            sent.elapsed().as_micros()
        })
        .collect();
    times.sort_unstable();
    times[requests * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: make slow-clients"]
async fn measure_two_thousand_slow_clients() {
    raise_fd_limit();
    let (_db, server) = start_with_model_a(&[("CATALOG_REQUEST_TIMEOUT", "1h")]).await;
    let memory = async || server.metric("process_resident_memory_bytes").await;
    p99(&server, 5_000);
    let (idle, before) = (p99(&server, 20_000), memory().await);
    let mut slow = open_slow(&server, SLOW_CLIENTS);
    until("all slow clients are connected", async || {
        server.metric("catalog_http_connections").await >= SLOW_CLIENTS as f64
    })
    .await;
    let each = (memory().await - before) / SLOW_CLIENTS as f64;
    // Meanwhile each of them keeps sending single bytes.
    let trickle = std::thread::spawn(move || {
        for _ in 0..8 {
            slow.iter_mut().for_each(|stream| stream.write_all(b"1").unwrap());
            std::thread::sleep(Duration::from_millis(250));
        }
        slow
    });
    let beside = p99(&server, 20_000);
    println!("p99 alone {idle} µs, beside {SLOW_CLIENTS} slow clients {beside} µs, {each:.0} bytes per slow client");
    drop(trickle.join().unwrap());

    // The maximum memory for one connection: heads just below the limit. Another server, because this one would use again
    // what the clients before took.
    let (_db, server) = start_with_model_a(&[("CATALOG_REQUEST_TIMEOUT", "1h")]).await;
    let memory = async || server.metric("process_resident_memory_bytes").await;
    let before = memory().await;
    let heads =
        [(HALF_A_HEAD, 16_300), (HALF_A_DELETE, 32_500)].map(|(head, length)| head.to_owned() + &"x".repeat(length));
    let large: Vec<_> = (0..SLOW_CLIENTS)
        .map(|number| {
            let mut stream = connect(&server.address);
            heads[number % 2].as_bytes().chunks(4_000).for_each(|part| stream.write_all(part).unwrap());
            stream
        })
        .collect();
    until("all heads are buffered", async || server.metric("catalog_http_connections").await >= SLOW_CLIENTS as f64)
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!(
        "{:.0} bytes per connection with a head just below the limit",
        (memory().await - before) / large.len() as f64
    );
}

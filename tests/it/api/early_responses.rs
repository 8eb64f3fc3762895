//! Responses sent before the request body was read must reach the client: the connection is closed only after the body
//! was read and discarded, or the kernel would reset it.

use std::io::Write;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::deploy::rolling::Balancer;
use crate::support::raw::{connect, read_to_close, statuses};
use crate::support::{Server, start_with_model_a, until};

/// Debian's Python, which has the requests module.
const PYTHON: &str = "/usr/bin/python3";
/// Bytes: a fifth over the limit of 1 MiB, and more than the kernel buffers.
const SIZES: [usize; 2] = [1_200_000, 3 * 1024 * 1024];
/// The longest time for which the server reads and discards a body after its response.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// Requests per client and size.
const TIMES: usize = 20;

const HTTP_CLIENT: &str = r#"
import http.client, sys
host, path, size, times = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for _ in range(times):
    connection = http.client.HTTPConnection(host)
    connection.request('POST', path, b' ' * size)
    response = connection.getresponse()
    print(response.status, response.read().decode())
"#;
const REQUESTS: &str = r#"
import requests, sys
host, path, size, times = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for _ in range(times):
    response = requests.post('http://' + host + path, data=b' ' * size)
    print(response.status_code, response.text)
"#;
const NODE_HTTP: &str = r#"
const http = require('http');
const [host, path, size, times] = process.argv.slice(1);
const send = () => new Promise((done, failed) => {
  const [hostname, port] = host.split(':');
  const request = http.request({ hostname, port, path, method: 'POST', headers: { 'content-length': size } }, response => {
    let body = '';
    response.on('data', data => body += data).on('end', () => done(response.statusCode + ' ' + body)).on('error', failed);
  });
  request.on('error', failed);
  request.end(Buffer.alloc(Number(size), ' '));
});
(async () => { for (let i = 0; i < times; i++) console.log(await send()); })();
"#;
const NODE_FETCH: &str = r#"
const [host, path, size, times] = process.argv.slice(1);
(async () => {
  for (let i = 0; i < times; i++) {
    const response = await fetch('http://' + host + path, { method: 'POST', body: Buffer.alloc(Number(size), ' ') });
    console.log(response.status + ' ' + await response.text());
  }
})();
"#;

/// Runs one of the clients above; it prints a line for each response.
fn run(client: &str, address: &str, path: &str, size: usize) -> Output {
    let (size, times) = (size.to_string(), TIMES.to_string());
    let mut command = match client {
        "http.client" => Command::new(PYTHON),
        "requests" => Command::new(PYTHON),
        "node http" | "node fetch" => Command::new("node"),
        _ => Command::new("curl"),
    };
    match client {
        "http.client" => command.args(["-c", HTTP_CLIENT, address, path, &size, &times]),
        "requests" => command.args(["-c", REQUESTS, address, path, &size, &times]),
        "node http" => command.args(["-e", NODE_HTTP, "--", address, path, &size, &times]),
        "node fetch" => command.args(["-e", NODE_FETCH, "--", address, path, &size, &times]),
        // It waits for `100 Continue` before a large body unless it is told not to.
        _ => {
            command.args(["-sS", "-H", "expect:", "-w", "\n", "-d", "@-"]);
            command.args((0..TIMES).map(|_| format!("http://{address}{path}")));
            let input = tempfile(&" ".repeat(size.parse().unwrap_or(0)));
            command.stdin(input)
        }
    };
    command.output().unwrap_or_else(|error| panic!("{client}: {error}: `make test-tools` installs it"))
}

/// An open, unlinked file with this content.
fn tempfile(content: &str) -> std::fs::File {
    let path = std::env::temp_dir().join(format!("request-body-{:x}", fastrand::u64(..)));
    std::fs::write(&path, content).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// Fails unless every client sees every response. The server discards a body for at most [`LINGER_TIME`]: on a busy
/// machine a client may need longer to send it, and then runs again.
async fn every_client_sees(address: &str, path: &str, expected: &str) {
    for client in ["curl", "http.client", "requests", "node http", "node fetch"] {
        for size in SIZES {
            for attempt in 1.. {
                let (address, path, started) = (address.to_owned(), path.to_owned(), Instant::now());
                let output = tokio::task::spawn_blocking(move || run(client, &address, &path, size)).await.unwrap();
                let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
                let seen = stdout.lines().filter(|line| line.contains(expected)).count();
                if seen == TIMES {
                    break;
                }
                let slow = started.elapsed() > LINGER_TIME && attempt < 5;
                assert!(slow, "{client}, {size} bytes: {seen} of {TIMES} responses: {stdout}{stderr}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_before_they_read_see_413() {
    let (_db, server) = start_with_model_a(&[]).await;
    every_client_sees(&server.address, "/api/models/batch", "the limit of 1048576 bytes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_before_they_read_see_404_and_405() {
    let (_db, server) = start_with_model_a(&[]).await;
    every_client_sees(&server.address, "/absent", r#"{"error":"Not found"}"#).await;
    every_client_sees(&server.address, "/api/models/a", r#"{"error":"Method not allowed"}"#).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_behind_haproxy_see_413() {
    let (db, one) = start_with_model_a(&[]).await;
    db.add("b").await;
    let two = Server::start(&db).await;
    let replicas = [one, two];
    let balancer = Balancer::start(&replicas, &[]).await;
    every_client_sees(&balancer.address, "/api/models/batch", "the limit of 1048576 bytes").await;
}

/// Sends a request with an unread body until the connection is closed; returns the number of bytes accepted.
fn send_endless_body(server: &Server) -> usize {
    let mut stream = connect(&server.address);
    let head = "POST /absent HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut sent = 0;
    while let Ok(count) = stream.write(&[b' '; 65_536]) {
        sent += count;
    }
    sent
}

#[tokio::test]
async fn lingering_close_is_bounded_in_bytes_and_time() {
    let (_db, server) = start_with_model_a(&[("CATALOG_REQUEST_TIMEOUT", "1h"), ("CATALOG_IDLE_TIMEOUT", "1h")]).await;
    let started = Instant::now();
    let sent = send_endless_body(&server);
    // The kernel's buffers on both sides add to the 8 MiB that are discarded, which a busy machine may not do in time.
    let least = if started.elapsed() < LINGER_TIME { 8 << 20 } else { 0 };
    assert!((least..64 << 20).contains(&sent), "{sent} bytes were accepted");

    // A client that stays silent after the response: no other timeout would close its connection.
    let mut stream = connect(&server.address);
    stream.write_all(b"POST /absent HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n").unwrap();
    assert_eq!(statuses(&read_to_close(&mut stream)), [404]);
    until("the connection is closed", async || server.metric("catalog_http_connections").await <= 1.0).await;
}

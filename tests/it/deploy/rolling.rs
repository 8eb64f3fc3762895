//! Two replicas behind HAProxy, restarted in turn or killed under constant load, without a failed request.
//!
//! `DEPLOY_RESTARTS` is the number of restarts, 10 by default.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::raw::Raw;
use crate::support::{Db, Server, WAIT_LIMIT, model_json, until};

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/haproxy.cfg");
/// Addresses that nothing else uses, so that a port stays free while its replica restarts.
const HOSTS: [&str; 2] = ["127.77.0.1", "127.77.0.2"];
const FRONTEND: &str = "127.77.0.3";
/// In proportion to the check interval, which is 100 ms instead of 1 s.
const GRACE: &str = "800ms";
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(4);

/// A running HAProxy.
pub struct Balancer {
    child: Child,
    pub address: String,
}

impl Balancer {
    /// Starts HAProxy in front of two replicas. `variables` are further variables of its configuration.
    pub async fn start(replicas: &[Server], variables: &[(&str, &str)]) -> Self {
        Self::start_at([&replicas[0].address, &replicas[1].address], variables).await
    }

    /// Like [`Balancer::start`], by the addresses of the replicas, which serve the models `a` and `b`.
    pub async fn start_at(replicas: [&str; 2], variables: &[(&str, &str)]) -> Self {
        let address = free_frontend();
        let mut command = haproxy(&address, replicas, variables);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let balancer = Self { child, address };
        until("HAProxy forwards requests", async || Client::new(&balancer.address, true).send().is_ok()).await;
        balancer
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_frontend() -> String {
    let port = TcpListener::bind((FRONTEND, 0)).unwrap().local_addr().unwrap().port();
    format!("{FRONTEND}:{port}")
}

/// HAProxy with the shipped configuration.
fn haproxy(frontend: &str, replicas: [&str; 2], variables: &[(&str, &str)]) -> Command {
    let program = ["/usr/sbin/haproxy", "/usr/bin/haproxy"].into_iter().find(|path| std::fs::exists(path).unwrap());
    let mut command = Command::new(program.expect("no haproxy: `make test-tools` installs it"));
    command.args(["-db", "-f", CONFIG]).env("FRONTEND", frontend).env("CHECK_INTERVAL", "100ms");
    command.env("REPLICA_1", replicas[0]).env("REPLICA_2", replicas[1]).envs(variables.iter().copied());
    command
}

/// Without CHECK_PORT, the checks ask the port of the API for /readyz.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_names_the_admin_port_if_its_checks_use_the_other_one() {
    let db = Db::new().await;
    let replica = Server::spawn(&db.url, &[("CATALOG_ADMIN_ADDR", "127.0.0.1:0")]).await;
    let mut command = haproxy(&free_frontend(), [&replica.address, &replica.address], &[]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let line = log.find(|line| line.contains("replica-1 is DOWN"));
    let _ = child.kill();
    let _ = child.wait();
    let line = line.expect("HAProxy ended");
    assert!(line.contains("404 ") && line.contains("admin port (CATALOG_ADMIN_ADDR)"), "{line}");
}

/// Edges wait for 30 s at a time.
#[tokio::test]
async fn haproxy_lets_edges_wait() {
    let db = Db::new().await;
    let replicas = [Server::start(&db).await, Server::start(&db).await];
    for id in ["a", "b"] {
        db.add(id).await;
    }
    for replica in &replicas {
        replica.until("both are served", |s| async move { s.get("/api/models/b").await.status == 200 }).await;
    }
    let balancer = Balancer::start(&replicas, &[]).await;
    let tag = replicas[0].get("/api/snapshot").await.header("etag").to_owned();
    let mut stream = TcpStream::connect(&balancer.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let request =
        format!("GET /api/snapshot?wait=31s HTTP/1.1\r\nhost: x\r\nif-none-match: {tag}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 304 "), "{response}");
}

/// A client that sends one batch and checks the whole response.
struct Client {
    address: String,
    keep_alive: bool,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    fn new(address: &str, keep_alive: bool) -> Self {
        Self { address: address.into(), keep_alive, stream: None }
    }

    fn send(&mut self) -> Result<(), String> {
        let message = |error: std::io::Error| error.to_string();
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(&self.address).map_err(message)?;
                stream.set_read_timeout(Some(WAIT_LIMIT)).map_err(message)?;
                stream.set_nodelay(true).map_err(message)?;
                BufReader::new(stream)
            }
        };
        let body = r#"{"model_ids":["a","b"]}"#;
        let connection = if self.keep_alive { "keep-alive" } else { "close" };
        let request = format!(
            "POST /api/models/batch HTTP/1.1\r\nhost: x\r\nconnection: {connection}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(request.as_bytes()).map_err(message)?;
        let (mut head, mut length, mut closes) = (String::new(), 0, !self.keep_alive);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).map_err(message)?;
            let lower = line.trim_end().to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length: ") {
                length = value.parse().map_err(|_| line.clone())?;
            }
            closes |= lower == "connection: close";
            if lower.is_empty() {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).map_err(message)?;
        let expected = format!(r#"{{"models":[{},{}],"not_found":[]}}"#, model_json("a"), model_json("b"));
        if !head.starts_with("HTTP/1.1 200 ") || body != expected.as_bytes() {
            return Err(format!("{head}{}", String::from_utf8_lossy(&body)));
        }
        self.stream = (!closes).then_some(stream);
        Ok(())
    }
}

/// Clients that send requests all the time, half of them on a new connection each time.
struct Load {
    stop: Arc<AtomicBool>,
    succeeded: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(address: &str) -> Self {
        let (stop, succeeded) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let client = |number: usize| {
            let (stop, succeeded) = (Arc::clone(&stop), Arc::clone(&succeeded));
            let mut client = Client::new(address, number.is_multiple_of(2));
            std::thread::spawn(move || {
                let mut failed = Vec::new();
                while !stop.load(SeqCst) {
                    match client.send() {
                        Ok(()) => drop(succeeded.fetch_add(1, SeqCst)),
                        Err(error) => failed.push(error),
                    }
                    std::thread::sleep(PAUSE);
                }
                failed
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, succeeded, clients }
    }

    /// Stops the clients; returns the number of successful requests and the errors of the others.
    fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, SeqCst);
        let failed = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        (self.succeeded.load(SeqCst), failed)
    }
}

async fn replica(db: &Db, address: &str) -> Server {
    let settings = [("CATALOG_ADDR", address), ("CATALOG_DRAIN_GRACE", GRACE), ("CATALOG_THREADS", "2")];
    Server::start_with(&db.url, &settings).await
}

async fn wait_for_traffic(replica: &Server) {
    let batches = r#"catalog_http_requests_total{route="/api/models/batch",status="200"}"#;
    replica.until("HAProxy sends it requests", |s| async move { s.metric(batches).await > 20.0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restart_fails_no_request() {
    let restarts = std::env::var("DEPLOY_RESTARTS").map_or(10, |text| text.parse().expect("a number of restarts"));
    let db = Db::new().await;
    for id in ["a", "b"] {
        db.add(id).await;
    }
    let mut replicas = Vec::new();
    for host in HOSTS {
        replicas.push(replica(&db, &format!("{host}:0")).await);
    }
    // HAProxy must not retry failed requests on the other replica: retries would hide connections that the drain cuts.
    let balancer = Balancer::start(&replicas, &[("RETRY_ON", "conn-failure")]).await;
    let load = Load::start(&balancer.address);
    for number in 0..restarts {
        let old = &replicas[number % replicas.len()];
        for replica in &replicas {
            wait_for_traffic(replica).await;
        }
        old.signal("TERM");
        old.until("the replica has exited", |s| std::future::ready(s.exited().is_some())).await;
        assert_eq!(
            (old.exited().unwrap().code(), old.logged("with open connections")),
            (Some(0), 0),
            "{:#?}",
            old.log()
        );
        let address = old.address.clone();
        replicas[number % HOSTS.len()] = replica(&db, &address).await;
    }
    let (succeeded, failed) = load.finish();
    println!("{restarts} restarts, {succeeded} requests succeeded, {} failed", failed.len());
    assert!(failed.is_empty(), "{} failed, {succeeded} succeeded: {failed:#?}", failed.len());
    assert!(succeeded > 100 * restarts as u64, "only {succeeded} requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_replica_fails_no_request() {
    let db = Db::new().await;
    for id in ["a", "b"] {
        db.add(id).await;
    }
    // As in the image, /readyz is on an admin port, which is the same for both replicas.
    let port = TcpListener::bind((HOSTS[0], 0)).unwrap().local_addr().unwrap().port().to_string();
    let mut replicas = Vec::new();
    for host in HOSTS {
        let [api, admin] = [format!("{host}:0"), format!("{host}:{port}")];
        let replica = Server::spawn(&db.url, &[("CATALOG_ADDR", &api), ("CATALOG_ADMIN_ADDR", &admin)]).await;
        replica
            .until("the replica serves the catalog", |s| async move { s.get("/api/models/a").await.status == 200 })
            .await;
        replicas.push(replica);
    }
    let balancer = Balancer::start(&replicas, &[("CHECK_PORT", &port)]).await;
    let load = Load::start(&balancer.address);
    let batches = r#"catalog_http_requests_total{route="/api/models/batch",status="200"} "#;
    until("HAProxy sends it requests", async || {
        let metrics = Raw::open(&format!("{}:{port}", HOSTS[0])).get("/metrics").text();
        let count = metrics.lines().find_map(|line| line.strip_prefix(batches)?.parse::<f64>().ok());
        count.is_some_and(|count| count > 100.0)
    })
    .await;
    replicas[0].signal("KILL");
    let before = load.succeeded.load(SeqCst);
    until("the other replica serves all requests", async || load.succeeded.load(SeqCst) > before + 300).await;
    let (succeeded, failed) = load.finish();
    assert!(failed.is_empty(), "{} failed, {succeeded} succeeded: {failed:#?}", failed.len());
}

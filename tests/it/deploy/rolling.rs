//! Two replicas behind HAProxy, restarted in turn or killed under constant load: no request fails.
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
/// Addresses that nobody else uses, so that a port stays free while its replica is away.
const HOSTS: [&str; 2] = ["127.77.0.1", "127.77.0.2"];
const FRONTEND: &str = "127.77.0.3";
/// As long for the check that HAProxy makes ten times a second as the default is for one a second.
const GRACE: &str = "800ms";
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(4);

/// A running HAProxy.
pub struct Balancer {
    child: Child,
    pub address: String,
}

impl Balancer {
    /// With further variables of the configuration.
    pub async fn before(replicas: &[Server], variables: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind((FRONTEND, 0)).unwrap().local_addr().unwrap().port();
        let address = format!("{FRONTEND}:{port}");
        let program = ["/usr/sbin/haproxy", "/usr/bin/haproxy"].into_iter().find(|path| std::fs::exists(path).unwrap());
        let mut command = Command::new(program.expect("no haproxy: `make test-tools` installs it"));
        command.args(["-db", "-f", CONFIG]).env("FRONTEND", &address).env("CHECK_INTERVAL", "100ms");
        command.env("REPLICA_1", &replicas[0].address).env("REPLICA_2", &replicas[1].address);
        command.envs(variables.iter().copied());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let balancer = Self { child, address };
        until("HAProxy answers", async || Client::new(&balancer.address, true).ask().is_ok()).await;
        balancer
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that takes nothing but the right answer.
struct Client {
    address: String,
    keeps: bool,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    fn new(address: &str, keeps: bool) -> Self {
        Self { address: address.into(), keeps, stream: None }
    }

    fn ask(&mut self) -> Result<(), String> {
        let fault = |error: std::io::Error| error.to_string();
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(&self.address).map_err(fault)?;
                stream.set_read_timeout(Some(WAIT_LIMIT)).map_err(fault)?;
                stream.set_nodelay(true).map_err(fault)?;
                BufReader::new(stream)
            }
        };
        let body = r#"{"model_ids":["a","b"]}"#;
        let connection = if self.keeps { "keep-alive" } else { "close" };
        let request = format!(
            "POST /api/models/batch HTTP/1.1\r\nhost: x\r\nconnection: {connection}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(request.as_bytes()).map_err(fault)?;
        let (mut head, mut length, mut closes) = (String::new(), 0, !self.keeps);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).map_err(fault)?;
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
        stream.read_exact(&mut body).map_err(fault)?;
        let expected = format!(r#"{{"models":[{},{}],"not_found":[]}}"#, model_json("a"), model_json("b"));
        if !head.starts_with("HTTP/1.1 200 ") || body != expected.as_bytes() {
            return Err(format!("{head}{}", String::from_utf8_lossy(&body)));
        }
        self.stream = (!closes).then_some(stream);
        Ok(())
    }
}

/// Clients that ask all the time, half of them on a new connection each time.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(address: &str) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let client = |number: usize| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let mut client = Client::new(address, number.is_multiple_of(2));
            std::thread::spawn(move || {
                let mut failed = Vec::new();
                while !stop.load(SeqCst) {
                    match client.ask() {
                        Ok(()) => drop(answered.fetch_add(1, SeqCst)),
                        Err(error) => failed.push(error),
                    }
                    std::thread::sleep(PAUSE);
                }
                failed
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, answered, clients }
    }

    /// Ends it; gives the number of right answers and what went wrong.
    fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, SeqCst);
        let failed = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        (self.answered.load(SeqCst), failed)
    }
}

async fn replica(db: &Db, address: &str) -> Server {
    let settings = [("CATALOG_ADDR", address), ("CATALOG_DRAIN_GRACE", GRACE), ("CATALOG_THREADS", "2")];
    Server::start_with(&db.url, &settings).await
}

async fn until_it_has_its_share(replica: &Server) {
    let batches = r#"catalog_http_requests_total{route="/api/models/batch",status="200"}"#;
    replica.until("HAProxy sends it requests", |s| async move { s.metric(batches).await > 20.0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_restarted_in_turn_without_a_failed_request() {
    let restarts = std::env::var("DEPLOY_RESTARTS").map_or(10, |text| text.parse().expect("a number of restarts"));
    let db = Db::new().await;
    for id in ["a", "b"] {
        db.add(id).await;
    }
    let mut replicas = Vec::new();
    for host in HOSTS {
        replicas.push(replica(&db, &format!("{host}:0")).await);
    }
    // What fails at one replica is not asked again at the other: it would hide that a drain cuts something off.
    let balancer = Balancer::before(&replicas, &[("RETRY_ON", "conn-failure")]).await;
    let load = Load::start(&balancer.address);
    for number in 0..restarts {
        let old = &replicas[number % replicas.len()];
        for replica in &replicas {
            until_it_has_its_share(replica).await;
        }
        old.signal("TERM");
        old.until("it has ended", |s| std::future::ready(s.exited().is_some())).await;
        assert_eq!(
            (old.exited().unwrap().code(), old.logged("with open connections")),
            (Some(0), 0),
            "{:#?}",
            old.log()
        );
        let address = old.address.clone();
        replicas[number % HOSTS.len()] = replica(&db, &address).await;
    }
    let (answered, failed) = load.finish();
    println!("{restarts} restarts, {answered} requests answered, {} failed", failed.len());
    assert!(failed.is_empty(), "{} failed, {answered} did not: {failed:#?}", failed.len());
    assert!(answered > 100 * restarts as u64, "{answered} requests are no load");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_costs_no_request() {
    let db = Db::new().await;
    for id in ["a", "b"] {
        db.add(id).await;
    }
    // As in the image, /readyz stands on a port of its own, the same at both.
    let port = TcpListener::bind((HOSTS[0], 0)).unwrap().local_addr().unwrap().port().to_string();
    let mut replicas = Vec::new();
    for host in HOSTS {
        let [api, admin] = [format!("{host}:0"), format!("{host}:{port}")];
        let replica = Server::spawn(&db.url, &[("CATALOG_ADDR", &api), ("CATALOG_ADMIN_ADDR", &admin)]).await;
        replica.until("it has a catalog", |s| async move { s.get("/api/models/a").await.status == 200 }).await;
        replicas.push(replica);
    }
    let balancer = Balancer::before(&replicas, &[("CHECK_PORT", &port)]).await;
    let load = Load::start(&balancer.address);
    let batches = r#"catalog_http_requests_total{route="/api/models/batch",status="200"} "#;
    until("HAProxy sends it requests", async || {
        let metrics = Raw::open(&format!("{}:{port}", HOSTS[0])).get("/metrics").text();
        let count = metrics.lines().find_map(|line| line.strip_prefix(batches)?.parse::<f64>().ok());
        count.is_some_and(|count| count > 100.0)
    })
    .await;
    replicas[0].signal("KILL");
    let then = load.answered.load(SeqCst);
    until("the other answers alone", async || load.answered.load(SeqCst) > then + 300).await;
    let (answered, failed) = load.finish();
    assert!(failed.is_empty(), "{} failed, {answered} did not: {failed:#?}", failed.len());
}

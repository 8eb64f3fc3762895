//! Servers without a database follow replicas: exactly, through cuts, restarts and outages.
//!
//! The long form: `make edges`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::support::proxy::{Mode, Proxy};
use crate::support::tcp_proxy::TcpProxy;
use crate::support::{Db, Server, TempFolder, migrated, sql, start_postgres, until};

/// A number from the environment, for the long form of a test.
pub fn scaled(variable: &str, short: u64) -> u64 {
    std::env::var(variable).map_or(short, |text| text.parse().unwrap())
}

/// Two models that are always changed in one transaction, to a number that only grows.
const PAIR: &str = r#"{"model_ids":["pair-a","pair-b"]}"#;

async fn pair(server: &Server) -> (u64, u64) {
    let reply = server.batch(PAIR).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let json = reply.json();
    let number = |place: usize| json["models"][place]["description"].as_str().unwrap().parse().unwrap();
    (number(0), number(1))
}

/// Changes the pair and random others until `stop`; returns the number of transactions.
async fn write(db: &Db, writer: u64, stop: &AtomicBool) -> u64 {
    let client = db.connect().await;
    let mut transactions = 0;
    while !stop.load(Relaxed) {
        let id = format!("other-{}", fastrand::u32(..200));
        let other = match fastrand::u32(..4) {
            0 => format!("DELETE FROM models WHERE id = '{id}'"),
            _ => format!(
                "INSERT INTO models (id, name, download_url, save_path) VALUES ('{id}', 'w{writer}', 'https://example.org/x', 'x')
                 ON CONFLICT (id) DO UPDATE SET description = 'at ' || clock_timestamp()"
            ),
        };
        let end = if fastrand::u32(..8) == 0 { "ROLLBACK" } else { "COMMIT" };
        let pair = "UPDATE models SET description = (description::bigint + 1)::text WHERE id";
        client
            .batch_execute(&format!("BEGIN; {pair} = 'pair-a'; {pair} = 'pair-b'; {other}; {end}"))
            .await
            .unwrap_or_else(|error| panic!("{error:?}"));
        transactions += 1;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..60))).await;
    }
    transactions
}

struct Edge {
    server: Server,
    proxies: Vec<TcpProxy>,
    settings: Vec<(String, String)>,
    requests: u64,
}

impl Edge {
    async fn new(upstreams: &[String], folder: &TempFolder, number: u64) -> Self {
        let mut proxies = Vec::new();
        for address in upstreams {
            proxies.push(TcpProxy::new(address).await);
        }
        // Every other one has a file to start from.
        let file =
            number.is_multiple_of(2).then(|| ("CATALOG_SNAPSHOT_FILE".into(), folder.path(&format!("edge-{number}"))));
        let settings: Vec<_> = file.into_iter().collect();
        let server = Self::start(&proxies, &settings).await;
        Self { server, proxies, settings, requests: 0 }
    }

    async fn start(proxies: &[TcpProxy], settings: &[(String, String)]) -> Server {
        let upstreams: Vec<_> = proxies.iter().map(TcpProxy::url).collect();
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let server = Server::edge(&upstreams.join(","), &settings).await;
        server.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
        server
    }

    /// Reads the pair until `stop`, while the connections to the upstreams are cut and the server is restarted.
    async fn run(mut self, upstreams: &[String], stop: &AtomicBool) -> Self {
        let mut last = 0;
        while !stop.load(Relaxed) {
            match fastrand::u32(..6) {
                0 => {
                    let ready = self.proxies.iter().zip(upstreams);
                    ready.for_each(|(proxy, upstream)| proxy.point_to(Some(upstream)));
                    // Dropped first, because two processes must not share a file; killed, not asked to end.
                    let Self { server, proxies, settings, requests } = self;
                    drop(server);
                    let server = Self::start(&proxies, &settings).await;
                    self = Self { server, proxies, settings, requests };
                    // Its file may be older than what the killed process served.
                    last = 0;
                }
                1 | 2 => {
                    let number = fastrand::usize(..self.proxies.len());
                    let target = Some(&*upstreams[number]).filter(|_| fastrand::bool());
                    self.proxies[number].point_to(target);
                }
                3 => self.proxies.iter().zip(upstreams).for_each(|(proxy, target)| proxy.point_to(Some(target))),
                _ => {}
            }
            let until = Instant::now() + Duration::from_millis(fastrand::u64(100..600));
            while Instant::now() < until {
                let (a, b) = pair(&self.server).await;
                assert_eq!(a, b, "a torn transaction");
                assert!(a >= last, "{a} after {last}: {:#?}", self.server.log());
                last = a;
                self.requests += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        self.proxies.iter().zip(upstreams).for_each(|(proxy, upstream)| proxy.point_to(Some(upstream)));
        self
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edges_converge_on_the_primary_through_cuts_and_restarts() {
    let (edges, seconds) = (scaled("EDGES", 4), scaled("EDGE_SECONDS", 5));
    let db = Arc::new(Db::new().await);
    for id in ["pair-a", "pair-b"] {
        db.add(id).await;
    }
    db.sql("UPDATE models SET description = '0'").await;
    let replicas = [Server::start(&db).await, Server::start(&db).await];
    let upstreams = Arc::new(replicas.each_ref().map(|replica| replica.address.clone()).to_vec());
    let (stop, folder) = (Arc::new(AtomicBool::new(false)), Arc::new(TempFolder::new("edges")));
    let transactions = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (db, stop, transactions) = (Arc::clone(&db), Arc::clone(&stop), Arc::clone(&transactions));
            tokio::spawn(async move { transactions.fetch_add(write(&db, writer, &stop).await, Relaxed) })
        })
        .collect();
    let running: Vec<_> = (0..edges)
        .map(|number| {
            let (upstreams, stop, folder) = (Arc::clone(&upstreams), Arc::clone(&stop), Arc::clone(&folder));
            tokio::spawn(async move { Edge::new(&upstreams, &folder, number).await.run(&upstreams, &stop).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.store(true, Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let expected: u64 = db.sql("SELECT description FROM models WHERE id = 'pair-a'").await.unwrap().parse().unwrap();
    for replica in &replicas {
        replica.until("it has the last change", |s| async move { pair(s).await == (expected, expected) }).await;
    }
    let revision = replicas[0].get("/readyz").await.json()["revision"].clone();
    assert_eq!(revision, replicas[1].get("/readyz").await.json()["revision"]);
    let mut requests = 0;
    for edge in running {
        let edge = edge.await.unwrap();
        let revision = &revision;
        edge.server
            .until("it equals the primary", |s| async move { s.get("/readyz").await.json()["revision"] == *revision })
            .await;
        let ready = edge.server.get("/readyz").await.json();
        edge.server
            .until("it is in sync", |s| async move { s.get("/readyz").await.json()["source"] == "upstream" })
            .await;
        assert_eq!(ready["status"], "ready", "{ready}");
        requests += edge.requests;
    }
    let transactions = transactions.load(Relaxed);
    eprintln!("{edges} edges, {transactions} transactions, {requests} reads without a difference");
    assert!(expected > 0 && requests > 0);
}

#[tokio::test]
async fn changes_reach_an_edge_of_an_edge_without_polling() {
    let db = Db::new().await;
    db.add("a").await;
    let replica = Server::start(&db).await;
    let first = Server::edge(&format!("http://{}", replica.address), &[("CATALOG_UPSTREAM_INTERVAL", "1h")]).await;
    let url = format!("http://{}/api/snapshot", first.address);
    let second = Server::edge(&url, &[("CATALOG_UPSTREAM_INTERVAL", "1h")]).await;
    second.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
    let mut times = Vec::new();
    for number in 0..10 {
        let name = format!("name {number}");
        let started = Instant::now();
        db.sql(&format!("UPDATE models SET name = '{name}'")).await;
        second.until_named("a", &name).await;
        times.push(started.elapsed());
    }
    times.sort();
    eprintln!("commit on the primary to served by an edge of an edge: median {:?}, maximum {:?}", times[5], times[9]);
    let ready = second.get("/readyz").await.json();
    assert_eq!((&ready["source"], &ready["follow"]), (&"upstream".into(), &"upstream".into()));
    let catalog = replica.get("/api/catalog").await;
    assert_eq!(second.get("/api/catalog").await.revision(), catalog.revision());
    assert_eq!(second.metric("catalog_upstream_connected").await, 1.0);
    assert!(second.metric("catalog_upstream_requests_total{outcome=\"changed\"}").await >= 10.0);
    assert!(second.metric("catalog_upstream_received_bytes_total").await > 0.0);
    assert!(second.metric("catalog_last_sync_timestamp_seconds").await > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_outage_fails_no_request_and_a_restart_serves_the_file() {
    let outage = Duration::from_secs(scaled("EDGE_OUTAGE_SECONDS", 2));
    let db = Db::new().await;
    db.add("a").await;
    let replica = Server::start(&db).await;
    let (proxy, folder) = (TcpProxy::new(&replica.address).await, TempFolder::new("edges"));
    let settings = [("CATALOG_SNAPSHOT_FILE", &*folder.path("edge"))];
    let edge = Server::edge(&proxy.url(), &settings).await;
    edge.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
    let revision = replica.get("/api/models/a").await.revision();
    let (path, written) = (folder.path("edge"), &revision);
    until("the file is written", || async { std::fs::read_to_string(&path).is_ok_and(|text| text.contains(written)) })
        .await;

    drop(replica);
    proxy.point_to(None);
    let (end, mut requests) = (Instant::now() + outage, 0);
    while Instant::now() < end {
        let reply = edge.get("/api/models/a").await;
        assert_eq!((reply.status, &reply.revision()), (200, &revision));
        assert_eq!(edge.get("/readyz").await.status, 200);
        requests += 1;
    }
    eprintln!("{requests} requests during an outage of {outage:?}, none failed");
    edge.until("the outage is counted", |s| async move { s.metric("catalog_upstream_connected").await == 0.0 }).await;
    assert!(edge.metric("catalog_upstream_requests_total{outcome=\"error\"}").await > 0.0);
    edge.until("the outage is logged", |s| std::future::ready(s.logged("the upstream is unavailable") > 0)).await;

    drop(edge);
    let edge = Server::edge(&proxy.url(), &settings).await;
    edge.until("it serves the file", |s| async move { s.get("/readyz").await.json()["source"] == "file" }).await;
    assert_eq!(edge.get("/api/models/a").await.revision(), revision);
    // It serves others, too, and says that it does not know how old this is.
    let snapshot = edge.get("/api/snapshot").await;
    assert_eq!((snapshot.revision(), snapshot.header("age")), (revision, "2147483648"));

    db.sql("UPDATE models SET name = 'after the outage'").await;
    let replica = Server::start(&db).await;
    proxy.point_to(Some(&replica.address));
    edge.until_named("a", "after the outage").await;
    edge.until("it is in sync", |s| async move { s.get("/readyz").await.json()["source"] == "upstream" }).await;
}

#[tokio::test]
async fn older_state_of_another_upstream_is_refused() {
    let postgres = start_postgres(&[]);
    let client = migrated(&postgres.url("postgres")).await;
    sql(
        &client,
        "INSERT INTO models (id, name, download_url, save_path) VALUES ('a', 'old', 'https://example.org/a', 'a')",
    )
    .await;
    let to_postgres = Proxy::before(&postgres).await;
    let behind = Server::start_with(&to_postgres.url("postgres"), &[]).await;
    let ahead = Server::start_with(&postgres.url("postgres"), &[]).await;
    to_postgres.set(Mode::Refuse).await;
    to_postgres.cut();
    sql(&client, "UPDATE models SET name = 'new'").await;
    ahead.until_named("a", "new").await;
    let (to_behind, to_ahead) = (TcpProxy::new(&behind.address).await, TcpProxy::new(&ahead.address).await);
    to_behind.point_to(None);
    let edge = Server::edge(&format!("{},{}", to_behind.url(), to_ahead.url()), &[]).await;
    edge.until_named("a", "new").await;

    to_behind.point_to(Some(&behind.address));
    to_ahead.point_to(None);
    edge.until("it is refused", |s| async move {
        s.metric("catalog_upstream_requests_total{outcome=\"refused\"}").await >= 2.0
    })
    .await;
    assert_eq!(behind.field("a", "name").await, "old");
    assert_eq!(edge.field("a", "name").await, "new");
    // The second time, only its headers were transferred.
    let refused = edge.metric("catalog_refreshes_total{kind=\"upstream\",outcome=\"error\"}").await;
    assert_eq!(refused, 1.0);
    to_ahead.point_to(Some(&ahead.address));
    edge.until("it is in sync", |s| async move { s.metric("catalog_upstream_connected").await == 1.0 }).await;
    assert_eq!(edge.field("a", "name").await, "new");

    // Once it has caught up, the first one is followed again.
    sql(&client, "UPDATE models SET name = 'newer'").await;
    edge.until_named("a", "newer").await;
    to_postgres.set(Mode::Pass).await;
    behind.until_named("a", "newer").await;
    let errors = "catalog_upstream_requests_total{outcome=\"error\"}";
    let before = edge.metric(errors).await;
    to_ahead.point_to(None);
    edge.until("the second one is missed", |s| async move { s.metric(errors).await > before }).await;
    edge.until("the first one is followed", |s| async move { s.metric("catalog_upstream_connected").await == 1.0 })
        .await;
}

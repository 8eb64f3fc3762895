//! An upgrade from another version of the program under load: the database first, then edges, then replicas, with both
//! versions beside each other; and a step back.
//!
//! `make test-upgrade` builds the other version, and names its program in `UPGRADE_FROM_PROGRAM`.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::rolling::Balancer;
use crate::support::consistency::{ConsistencyReaders, add_pairs, bump, in_sync};
use crate::support::{Db, Server, TempFolder, sql, until};

const PAIRS: usize = 10;
const BATCHES: &str = r#"catalog_http_requests_total{route="/api/models/batch",status="200"}"#;

/// A server that can be replaced by one of another version, with the same address and the same snapshot file.
struct Node {
    url: String,
    settings: Vec<(&'static str, String)>,
    server: Server,
}

impl Node {
    /// Starts a server; `program` is that of the other version.
    async fn start(program: Option<&str>, name: &str, url: &str, upstream: &str, folder: &TempFolder) -> Self {
        let mut settings = vec![
            // Addresses that nothing else uses, so that a port stays free while its server is replaced.
            ("CATALOG_ADDR", format!("{name}:0")),
            ("CATALOG_SNAPSHOT_FILE", folder.join(name).to_str().unwrap().to_owned()),
            // In proportion to the check interval of HAProxy, which is 100 ms.
            ("CATALOG_DRAIN_GRACE", "800ms".to_owned()),
            ("CATALOG_THREADS", "2".to_owned()),
        ];
        if !upstream.is_empty() {
            settings.push(("CATALOG_UPSTREAM", upstream.to_owned()));
        }
        let server = serve(program, url, &settings).await;
        settings[0].1.clone_from(&server.address);
        Self { url: url.to_owned(), settings, server }
    }

    async fn replace(&mut self, program: Option<&str>) {
        let before = self.server.metric(BATCHES).await;
        self.server.until("it serves the load", |s| async move { s.metric(BATCHES).await > before + 20.0 }).await;
        self.server.terminate().await;
        self.server = serve(program, &self.url, &self.settings).await;
        // The file of the other version, unless that version is newer and has another format.
        println!("{}: {} read its snapshot file", self.server.address, self.server.logged("serving from the snapshot"));
    }
}

async fn serve(program: Option<&str>, url: &str, settings: &[(&str, String)]) -> Server {
    let script = program.map(|program| format!("shift; exec '{program}' \"$@\""));
    let prefix = script.as_deref().map_or(vec![], |script| vec!["sh", "-c", script, "sh"]);
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Server::spawn_wrapped(&prefix, url, &settings).await;
    server.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
    server
}

fn migrate(program: &str, url: &str) {
    let output = Command::new(program).arg("migrate").env_clear().env("DATABASE_URL", url).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Changes all pairs in turn until it is stopped.
fn write(
    client: tokio_postgres::Client,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        for pair in (0..PAIRS).cycle() {
            if stop.load(Relaxed) {
                break;
            }
            sql(&client, &bump(pair)).await;
            written.fetch_add(1, Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// Waits until a change of now is served by all, whatever their versions are.
async fn change_arrives(db: &Db, nodes: &[&Node], step: &str) {
    db.sql(&format!("UPDATE models SET name = '{step}' WHERE id = 'pair-0-a'")).await;
    for node in nodes {
        node.server.until_named("pair-0-a", step).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-upgrade builds the other version"]
async fn upgrade_fails_no_request_and_loses_no_change() {
    let old = std::env::var("UPGRADE_FROM_PROGRAM").expect("UPGRADE_FROM_PROGRAM: run `make test-upgrade`");
    let (old, new) = (old.as_str(), env!("CARGO_BIN_EXE_model-catalog"));
    let (db, folder) = (Db::empty().await, TempFolder::new("upgrade"));
    migrate(old, &db.url);
    add_pairs(&db.client, PAIRS).await;
    // Balancers wait for these.
    db.add("a").await;
    db.add("b").await;
    let mut a = Node::start(Some(old), "127.77.1.1", &db.url, "", &folder).await;
    let mut b = Node::start(Some(old), "127.77.1.2", &db.url, "", &folder).await;
    let upstreams = format!("http://{},http://{}", a.server.address, b.server.address);
    let mut c = Node::start(Some(old), "127.77.1.3", "", &upstreams, &folder).await;
    let mut d = Node::start(Some(old), "127.77.1.4", "", &upstreams, &folder).await;
    // Retries would hide requests that fail.
    let no_retries = [("RETRY_ON", "conn-failure")];
    let of_replicas = Balancer::start_at([&a.server.address, &b.server.address], &no_retries).await;
    let of_edges = Balancer::start_at([&c.server.address, &d.server.address], &no_retries).await;
    // Two servers are behind each address, and one may be ahead of the other.
    let readers =
        [&of_replicas, &of_edges].map(|balancer| ConsistencyReaders::start_at(&balancer.address, PAIRS, true));
    let (stop, written) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let writer = write(db.connect().await, Arc::clone(&stop), Arc::clone(&written));

    migrate(new, &db.url);
    change_arrives(&db, &[&a, &b, &c, &d], "old servers on the new schema").await;
    c.replace(None).await;
    change_arrives(&db, &[&a, &b, &c, &d], "a new edge that follows old replicas").await;
    d.replace(None).await;
    a.replace(None).await;
    change_arrives(&db, &[&a, &b, &c, &d], "replicas of both versions").await;
    b.replace(None).await;
    change_arrives(&db, &[&a, &b, &c, &d], "new servers").await;
    a.replace(Some(old)).await;
    change_arrives(&db, &[&a, &b, &c, &d], "one step back").await;
    c.replace(Some(old)).await;
    change_arrives(&db, &[&a, &b, &c, &d], "an old edge that follows new replicas").await;

    let before = written.load(Relaxed);
    until("the writer goes on", || async { written.load(Relaxed) > before + 50 }).await;
    stop.store(true, Relaxed);
    writer.await.unwrap();
    for node in [&a, &b, &c, &d] {
        in_sync(&node.server, &db.client).await;
    }
    let requests: u64 = readers.iter().map(ConsistencyReaders::responses).sum();
    for reader in readers {
        reader.finish().await;
    }
    println!("{requests} requests, {} changes", written.load(Relaxed));
}

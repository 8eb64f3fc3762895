//! Soak test: random writes, random faults and hostile clients for `SOAK_SECONDS` (10 by default, 240 in `make soak`).
//!
//! Postgres, the network, the disk, the name server, the clock, the limit of threads and the reader of the log misbehave,
//! and threads panic.
//!
//! No batch may be torn, no reader may see an older state, no request may fail. After faults a change must be served
//! within [`CATCH_UP`]. At the end the catalog must equal the table, the audits must have found no mismatch, no thread
//! may be missing, and hostile clients must have left no connection, file descriptor or memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use model_catalog::postgres::session;
use tokio_postgres::Client;

use crate::support::consistency::{self, ConsistencyReaders, bump, in_sync};
use crate::support::hostile_clients::HostileClients;
use crate::support::proxy::{Mode, Proxy};
use crate::support::system_faults::SystemFaults;
use crate::support::{self, Server, database, migrated, sql, until};
use crate::sync::snapshot_file::SmallDisk;

const PAIRS: usize = 50;
/// Time within which a change is served when a fault is over: a reconnect and a full read, on a busy machine.
const CATCH_UP: Duration = Duration::from_secs(20);
/// Threads of the server that must run at the end, by the beginning of their names.
const THREADS: [&str; 5] = ["http-0", "http-1", "scans", "snapshot-writer", "loader"];

fn length() -> Duration {
    let seconds = std::env::var("SOAK_SECONDS").map_or(10, |text| text.parse().expect("SOAK_SECONDS must be a number"));
    Duration::from_secs(seconds)
}

/// A random statement or transaction; each keeps the two models of every pair equal.
fn change() -> String {
    let pair = fastrand::usize(..PAIRS);
    let other = fastrand::u32(..500);
    match fastrand::u32(..12) {
        0..5 => bump(pair),
        // Two updates with a pause between them, in one transaction.
        5 => {
            let half =
                |half: &str| bump(pair).replace(&format!("LIKE 'pair-{pair}-_'"), &format!("= 'pair-{pair}-{half}'"));
            format!("BEGIN; {}; SELECT pg_sleep(0.005); {}; COMMIT", half("a"), half("b"))
        }
        6 => format!("BEGIN; {}; ROLLBACK", bump(pair)),
        7 => format!(
            "BEGIN; {}; SAVEPOINT s; DELETE FROM models WHERE id LIKE 'pair-%'; ROLLBACK TO s; COMMIT",
            bump(pair)
        ),
        8 => format!("DELETE FROM models WHERE id = 'other-{other}'"),
        9 => format!("UPDATE models SET id = 'other-{}' WHERE id = 'other-{other}'", 1_000 + fastrand::u32(..500)),
        10 => "UPDATE models SET hash = md5(random()::text) WHERE id LIKE 'other-%'".into(),
        _ => format!(
            "INSERT INTO models (id, name, download_url, save_path) \
             VALUES ('other-{other}', 'other', 'https://example.org/{other}', 'a/b') \
             ON CONFLICT (id) DO UPDATE SET name = excluded.name || random()"
        ),
    }
}

/// Writes until `stop` is set, and reconnects whenever Postgres drops the connection.
async fn write(url: String, stop: Arc<AtomicBool>, changes: Arc<AtomicU64>) {
    while !stop.load(SeqCst) {
        let Ok(client) = session::connect(&database(&url)).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !stop.load(SeqCst) && !client.is_closed() {
            // Deadlocks and duplicate ids are expected.
            if client.batch_execute(&change()).await.is_err() {
                let _ = client.batch_execute("ROLLBACK").await;
            }
            changes.fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..12))).await;
        }
    }
}

/// The parts that faults act on.
struct Environment {
    postgres: EphemeralPostgres,
    /// Between the server and Postgres; faults are injected here.
    proxy: Proxy,
    /// Between the writers and Postgres, so that they follow a failover.
    writers: Proxy,
    /// Disk of the snapshot file; `None` if this process may not mount one.
    disk: Option<SmallDisk>,
    system: SystemFaults,
}

/// Minimum duration for failovers, which take seconds each, and for the check of memory growth.
const LONG_RUN: Duration = Duration::from_secs(60);

impl Environment {
    async fn admin(&self) -> Client {
        session::connect(&database(&self.postgres.url("postgres"))).await.unwrap()
    }

    /// Injects a random fault for a moment and returns its name.
    async fn inject_fault(&mut self, server: &Server) -> &'static str {
        let moment = Duration::from_millis(fastrand::u64(50..1_500));
        let Self { postgres, proxy, system, .. } = self;
        match fastrand::u32(..if length() < LONG_RUN { 17 } else { 18 }) {
            signal @ 0..3 => {
                let names = ["INT", "QUIT", "KILL"];
                postgres.stop(names[signal as usize]).unwrap();
                tokio::time::sleep(moment / 2).await;
                postgres.resume().unwrap();
                ["postgres stopped", "postgres stopped at once", "postgres killed"][signal as usize]
            }
            3 => {
                proxy.cut();
                "connections cut"
            }
            4 => {
                proxy.cut_after(fastrand::i64(1..60_000));
                tokio::time::sleep(moment).await;
                "response cut"
            }
            5 => {
                proxy.set(Mode::Swallow).await;
                tokio::time::sleep(2 * moment).await;
                proxy.set(Mode::Pass).await;
                "network silent"
            }
            6 => {
                proxy.set(Mode::Refuse).await;
                proxy.cut();
                tokio::time::sleep(moment).await;
                proxy.set(Mode::Pass).await;
                "connections refused"
            }
            7 => {
                let admin = self.admin().await;
                sql(&admin, "BEGIN; LOCK models IN ACCESS EXCLUSIVE MODE").await;
                tokio::time::sleep(2 * moment).await;
                sql(&admin, "COMMIT").await;
                "table locked"
            }
            8 => {
                let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                              WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
                let admin = self.admin().await;
                sql(&admin, others).await;
                if fastrand::bool() {
                    sql(&admin, "SELECT model_catalog.reload()").await;
                }
                "sessions terminated"
            }
            9 => {
                let admin = self.admin().await;
                sql(&admin, "ALTER VIEW model_catalog.entries RENAME TO renamed").await;
                tokio::time::sleep(2 * moment).await;
                sql(&admin, "ALTER VIEW model_catalog.renamed RENAME TO entries").await;
                "view renamed"
            }
            10 => {
                let Some(disk) = &self.disk else { return "disk full: skipped" };
                let ballast = disk.fill();
                // Longer than the pause between two writes of the file.
                tokio::time::sleep(Duration::from_secs(2) + moment).await;
                std::fs::remove_file(ballast).unwrap();
                "disk full"
            }
            11 => {
                system.begin("clock-ahead");
                tokio::time::sleep(2 * moment).await;
                system.end("clock-ahead");
                "clock stepped"
            }
            fault @ 12..15 => {
                let fault = ["silent-resolver", "no-threads", "hanging-fsync"][fault as usize - 12];
                system.begin(fault);
                // A reconnect resolves the name of the database, on a thread that tokio starts.
                proxy.cut();
                tokio::time::sleep(2 * moment).await;
                system.end(fault);
                fault
            }
            15 => {
                let fault = ["panic-loader", "panic-snapshot-writer"][fastrand::usize(..2)];
                system.begin(fault);
                tokio::time::sleep(2 * moment).await;
                fault
            }
            16 => {
                server.pause_log(true);
                // The writers' changes fill the pipe in about two seconds.
                tokio::time::sleep(Duration::from_secs(3) + moment).await;
                server.pause_log(false);
                "log not read"
            }
            _ => {
                self.fail_over().await;
                "failover"
            }
        }
    }

    /// Fails over to a synchronous standby, so that no change is lost that a reader has seen: readers must not go back.
    async fn fail_over(&mut self) {
        let standby = EphemeralPostgres::standby_of(&self.postgres).unwrap();
        let admin = self.admin().await;
        sql(&admin, "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
        sql(&admin, "SELECT pg_reload_conf()").await;
        let synchronous = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')";
        until("the standby is synchronous", || async { sql(&admin, synchronous).await.as_deref() == Some("t") }).await;
        // Changes committed before that may not have been replayed yet.
        let sent = sql(&admin, "SELECT pg_current_wal_lsn()").await.unwrap();
        let new = session::connect(&database(&standby.url("postgres"))).await.unwrap();
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{sent}'");
        until("the standby has replayed everything", || async { sql(&new, &replayed).await.as_deref() == Some("t") })
            .await;
        self.postgres.stop(["INT", "QUIT", "KILL"][fastrand::usize(..3)]).unwrap();
        sql(&new, "SELECT pg_promote(true, 30)").await;
        for proxy in [&self.proxy, &self.writers] {
            proxy.point_to(&standby);
            proxy.cut();
        }
        self.postgres = standby;
    }
}

/// Resident memory in megabytes, and numbers of open descriptors and connections.
struct Usage {
    resident: f64,
    descriptors: f64,
    connections: f64,
}

impl Usage {
    /// Medians over two seconds, because a full read needs more memory for a moment.
    async fn median(server: &Server) -> Self {
        let (mut resident, mut descriptors, mut connections) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..20 {
            resident.push(server.metric("process_resident_memory_bytes").await / 1e6);
            descriptors.push(server.metric("process_open_fds").await);
            connections.push(server.metric("catalog_http_connections").await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let median = |mut samples: Vec<f64>| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() / 2]
        };
        Self { resident: median(resident), descriptors: median(descriptors), connections: median(connections) }
    }
}

/// HostileClients clients must leave no connection or descriptor behind; a few of the test itself and of Postgres are tolerated.
async fn assert_no_leak(server: &Server, at_start: &Usage) {
    let connections = at_start.connections + 2.0;
    server
        .until(
            "the connections are closed",
            |s| async move { s.metric("catalog_http_connections").await <= connections },
        )
        .await;
    let (now, before) = (server.metric("process_open_fds").await, at_start.descriptors);
    assert!(now <= before + 4.0, "{before} descriptors at the start, {now} now");
}

/// A change that is made now is served in time.
async fn assert_catches_up(server: &Server, environment: &Environment, fault: &str) {
    let (client, name) = (environment.admin().await, format!("after {:x}", fastrand::u64(..)));
    sql(&client, &format!("UPDATE models SET name = '{name}' WHERE id = 'probe'")).await;
    let committed = Instant::now();
    server.until_named("probe", &name).await;
    assert!(committed.elapsed() < CATCH_UP, "{:?} after {fault}", committed.elapsed());
}

/// Every thread of the server runs, and the server knows of none that is lost.
async fn assert_all_threads_run(server: &Server) {
    let comm = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    let threads: Vec<_> =
        std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten().map(comm).collect();
    for name in THREADS {
        assert!(threads.iter().any(|thread| thread.trim() == name), "no thread {name}: {threads:?}");
    }
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn random_changes_under_random_faults_stay_consistent() {
    let postgres = support::start_postgres(&[("wal_level", "replica"), ("wal_keep_size", "64MB")]);
    let client: Client = migrated(&postgres.url("postgres")).await;
    consistency::add_pairs(&client, PAIRS).await;
    sql(
        &client,
        "INSERT INTO models (id, name, download_url, save_path) VALUES ('probe', 'x', 'https://example.org/x', 'x')",
    )
    .await;
    drop(client);
    let (proxy, writers) = (Proxy::before(&postgres).await, Proxy::before(&postgres).await);
    let mut environment =
        Environment { postgres, proxy, writers, disk: SmallDisk::mount("4m"), system: SystemFaults::new() };
    let fallback = std::env::temp_dir().join(format!("soak-{:x}", fastrand::u64(..))).display().to_string();
    let file = environment.disk.as_ref().map_or(fallback, SmallDisk::file);
    let [preload, directory] = environment.system.settings();
    let (preload, directory) = ((preload.0, preload.1.to_owned()), (directory.0, directory.1.to_owned()));
    let settings = [
        (preload.0, &*preload.1),
        (directory.0, &*directory.1),
        ("CATALOG_THREADS", "2"),
        ("CATALOG_POLL_INTERVAL", "500ms"),
        ("CATALOG_DATABASE_TIMEOUT", "1s"),
        ("CATALOG_AUDIT_INTERVAL", "2s"),
        ("CATALOG_SNAPSHOT_FILE", &file),
    ];
    // By name, so that the name server is needed.
    let url = environment.proxy.url("postgres").replace("127.0.0.1", "localhost");
    assert!(url.contains("localhost"), "{url}");
    let server = Server::start_with(&url, &settings).await;
    let readers = ConsistencyReaders::start(&server, PAIRS, false);
    let at_start = Usage::median(&server).await;
    let (stop, changes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..3)
        .map(|_| tokio::spawn(write(environment.writers.url("postgres"), Arc::clone(&stop), Arc::clone(&changes))))
        .collect();

    let (started, length) = (Instant::now(), length());
    let mut faults = std::collections::BTreeMap::<_, u32>::new();
    let (mut actions, mut thirds) = (std::collections::BTreeMap::<_, u32>::new(), Vec::new());
    for third in 1..=3 {
        let hostile = HostileClients::start(&server.address, 4);
        loop {
            let fault = environment.inject_fault(&server).await;
            *faults.entry(fault).or_default() += 1;
            if fastrand::u32(..4) == 0 {
                assert_catches_up(&server, &environment, fault).await;
            }
            // Sometimes longer than the poll interval, so that the server gets in sync between faults.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..1_500))).await;
            if started.elapsed() >= length * third / 3 {
                break;
            }
        }
        let Usage { resident, descriptors, .. } = Usage::median(&server).await;
        eprintln!("third {third} of {length:?}: {resident:.1} MB resident, {descriptors} descriptors");
        // The memory that they hold while connected varies; what they leave behind must not.
        let finished = tokio::task::spawn_blocking(|| hostile.finish()).await.unwrap();
        finished.into_iter().for_each(|(action, times)| *actions.entry(action).or_default() += times);
        assert_no_leak(&server, &at_start).await;
        let Usage { resident, descriptors, .. } = Usage::median(&server).await;
        eprintln!("    without hostile clients: {resident:.1} MB, {descriptors} descriptors");
        thirds.push(resident);
    }
    // In a short run memory has not reached its level yet.
    assert!(length < LONG_RUN || thirds[2] <= thirds[1] * 1.05, "resident memory grows: {thirds:?} MB");
    stop.store(true, SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }

    let client = environment.admin().await;
    until("the last write is done", || async {
        let others = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() \
                      AND query ILIKE '%UPDATE%'";
        sql(&client, others).await.as_deref() == Some("0")
    })
    .await;
    in_sync(&server, &client).await;
    let audits = server.metric("catalog_refreshes_total{kind=\"audit\",outcome=\"ok\"}").await;
    server
        .until("a final audit is done", |s| async move {
            s.metric("catalog_refreshes_total{kind=\"audit\",outcome=\"ok\"}").await > audits
        })
        .await;
    assert_eq!(server.metric("catalog_audit_mismatches_total").await, 0.0);
    eprintln!(
        "{} changes, {} responses, {} audits; {faults:?}",
        changes.load(SeqCst),
        readers.responses(),
        audits + 1.0
    );
    assert_all_threads_run(&server).await;
    readers.finish().await;
    let provoked = |line: &String| line.contains("runtime/io/driver.rs") || line.contains("a thread panicked");
    let unexpected: Vec<_> =
        server.log().into_iter().filter(|line| line.contains("panicked") && !provoked(line)).collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    server.forget_panics();
    eprintln!("hostile clients: {actions:?}");
    drop(server);
    for suffix in ["", ".lock"] {
        let _ = std::fs::remove_file(format!("{file}{suffix}"));
    }
}

//! The long run: random writers on top of random faults and hostile clients, for `SOAK_SECONDS` (here 10, under
//! `make soak` a few minutes).
//!
//! A batch is never torn, a reader never goes back in time, no request fails; at the end memory equals the table, an
//! audit that ran all along has counted nothing, and nothing is left of the hostile clients: no connection, no
//! descriptor, no memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use model_catalog::postgres::session;
use tokio_postgres::Client;

use crate::support::consistency::{self, ConsistencyReaders, bump, in_sync};
use crate::support::hostile_clients::HostileClients;
use crate::support::proxy::{Mode, Proxy};
use crate::support::{self, Server, database, migrated, sql, until};
use crate::sync::snapshot_file::SmallDisk;

const PAIRS: usize = 50;

fn length() -> Duration {
    let seconds = std::env::var("SOAK_SECONDS").map_or(10, |text| text.parse().expect("SOAK_SECONDS is a number"));
    Duration::from_secs(seconds)
}

/// One statement or transaction of the kinds that a catalog sees; each leaves every pair equal.
fn change() -> String {
    let pair = fastrand::usize(..PAIRS);
    let other = fastrand::u32(..500);
    match fastrand::u32(..12) {
        0..5 => bump(pair),
        // The first update runs alone: the two must not be seen apart.
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

/// Writes until told to stop; its connection goes with the server, and it comes back.
async fn write(url: String, stop: Arc<AtomicBool>, changes: Arc<AtomicU64>) {
    while !stop.load(SeqCst) {
        let Ok(client) = session::connect(&database(&url)).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !stop.load(SeqCst) && !client.is_closed() {
            // A deadlock or a taken id fails alone, as it would for anybody.
            if client.batch_execute(&change()).await.is_err() {
                let _ = client.batch_execute("ROLLBACK").await;
            }
            changes.fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..12))).await;
        }
    }
}

/// What the run is made of.
struct World {
    postgres: EphemeralPostgres,
    /// Between the server and Postgres; this is what breaks.
    proxy: Proxy,
    /// Between the writers and Postgres, so that they follow a failover.
    writers: Proxy,
    /// Where the snapshot file is; none where a disk can't be mounted.
    disk: Option<SmallDisk>,
}

/// Below this length a failover, which takes seconds, is left out.
const LONG: Duration = Duration::from_secs(60);

impl World {
    async fn admin(&self) -> Client {
        session::connect(&database(&self.postgres.url("postgres"))).await.unwrap()
    }

    /// Breaks one thing for a moment and mends it; gives its name.
    async fn fault(&mut self) -> &'static str {
        let moment = Duration::from_millis(fastrand::u64(50..1_500));
        let Self { postgres, proxy, .. } = self;
        match fastrand::u32(..if length() < LONG { 11 } else { 12 }) {
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
                "an answer cut"
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
                sql(&admin, "ALTER VIEW model_catalog.entries RENAME TO mislaid").await;
                tokio::time::sleep(2 * moment).await;
                sql(&admin, "ALTER VIEW model_catalog.mislaid RENAME TO entries").await;
                "view broken"
            }
            10 => {
                let Some(disk) = &self.disk else { return "disk full: not run" };
                let ballast = disk.fill();
                // Longer than the pause between two writes of the file.
                tokio::time::sleep(Duration::from_secs(2) + moment).await;
                std::fs::remove_file(ballast).unwrap();
                "disk full"
            }
            _ => {
                self.fail_over().await;
                "failover"
            }
        }
    }

    /// A standby takes over in the middle of everything. It is a synchronous one, so that nothing is lost that a
    /// reader has seen: that a reader goes back is what this run looks for.
    async fn fail_over(&mut self) {
        let standby = EphemeralPostgres::standby_of(&self.postgres).unwrap();
        let admin = self.admin().await;
        sql(&admin, "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
        sql(&admin, "SELECT pg_reload_conf()").await;
        let synchronous = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')";
        until("the standby is synchronous", || async { sql(&admin, synchronous).await.as_deref() == Some("t") }).await;
        // What was committed before that need not be there yet.
        let sent = sql(&admin, "SELECT pg_current_wal_lsn()").await.unwrap();
        let new = session::connect(&database(&standby.url("postgres"))).await.unwrap();
        let there = format!("SELECT pg_last_wal_replay_lsn() >= '{sent}'");
        until("the standby has it all", || async { sql(&new, &there).await.as_deref() == Some("t") }).await;
        self.postgres.stop(["INT", "QUIT", "KILL"][fastrand::usize(..3)]).unwrap();
        sql(&new, "SELECT pg_promote(true, 30)").await;
        for proxy in [&self.proxy, &self.writers] {
            proxy.point_to(&standby);
            proxy.cut();
        }
        self.postgres = standby;
    }
}

/// Resident memory in megabytes, and what is open.
struct Usage {
    resident: f64,
    descriptors: f64,
    connections: f64,
}

impl Usage {
    /// The medians of a second or two: a reload takes more for a moment.
    async fn typical(server: &Server) -> Self {
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

/// Nothing is left of the clients that were there: as many connections and descriptors as at the start, give or take
/// the harness' own and those to Postgres.
async fn alone_again(server: &Server, at_start: &Usage) {
    let connections = at_start.connections + 2.0;
    server
        .until("all connections are gone", |s| async move { s.metric("catalog_http_connections").await <= connections })
        .await;
    let (now, before) = (server.metric("process_open_fds").await, at_start.descriptors);
    assert!(now <= before + 4.0, "{before} descriptors became {now}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn random_changes_under_random_faults() {
    let postgres = support::start_postgres(&[("wal_level", "replica"), ("wal_keep_size", "64MB")]);
    let client: Client = migrated(&postgres.url("postgres")).await;
    consistency::add_pairs(&client, PAIRS).await;
    drop(client);
    let (proxy, writers) = (Proxy::before(&postgres).await, Proxy::before(&postgres).await);
    let mut world = World { postgres, proxy, writers, disk: SmallDisk::mount("4m") };
    let elsewhere = std::env::temp_dir().join(format!("soak-{:x}", fastrand::u64(..))).display().to_string();
    let file = world.disk.as_ref().map_or(elsewhere, SmallDisk::file);
    let settings = [
        ("CATALOG_POLL_INTERVAL", "500ms"),
        ("CATALOG_DATABASE_TIMEOUT", "1s"),
        ("CATALOG_AUDIT_INTERVAL", "2s"),
        ("CATALOG_SNAPSHOT_FILE", &file),
    ];
    let server = Server::start_with(&world.proxy.url("postgres"), &settings).await;
    let witness = ConsistencyReaders::start(&server, PAIRS, false);
    let at_start = Usage::typical(&server).await;
    let (stop, changes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..3)
        .map(|_| tokio::spawn(write(world.writers.url("postgres"), Arc::clone(&stop), Arc::clone(&changes))))
        .collect();

    let (started, length) = (Instant::now(), length());
    let mut faults = std::collections::BTreeMap::<_, u32>::new();
    let (mut deeds, mut thirds) = (std::collections::BTreeMap::<_, u32>::new(), Vec::new());
    for third in 1..=3 {
        let hostile = HostileClients::start(&server.address, 4);
        loop {
            *faults.entry(world.fault().await).or_default() += 1;
            // Longer than a heartbeat now and then, so that it gets into step in between.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..1_500))).await;
            if started.elapsed() >= length * third / 3 {
                break;
            }
        }
        let Usage { resident, descriptors, .. } = Usage::typical(&server).await;
        eprintln!("third {third} of {length:?}: {resident:.1} MB resident, {descriptors} descriptors");
        // What they hold while they are there goes up and down; what is left of them must not.
        let done = tokio::task::spawn_blocking(|| hostile.finish()).await.unwrap();
        done.into_iter().for_each(|(deed, times)| *deeds.entry(deed).or_default() += times);
        alone_again(&server, &at_start).await;
        let Usage { resident, descriptors, .. } = Usage::typical(&server).await;
        eprintln!("    without hostile clients: {resident:.1} MB, {descriptors} descriptors");
        thirds.push(resident);
    }
    // A short run is over before memory has found its level.
    assert!(length < LONG || thirds[2] <= thirds[1] * 1.05, "resident memory grows: {thirds:?} MB");
    stop.store(true, SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }

    let client = world.admin().await;
    until("nobody writes any more", || async {
        let others = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() \
                      AND query ILIKE '%UPDATE%'";
        sql(&client, others).await.as_deref() == Some("0")
    })
    .await;
    in_sync(&server, &client).await;
    let audits = server.metric("catalog_refreshes_total{kind=\"audit\",outcome=\"ok\"}").await;
    server
        .until("a last audit", |s| async move {
            s.metric("catalog_refreshes_total{kind=\"audit\",outcome=\"ok\"}").await > audits
        })
        .await;
    assert_eq!(server.metric("catalog_audit_mismatches_total").await, 0.0);
    eprintln!("{} changes, {} answers, {} audits; {faults:?}", changes.load(SeqCst), witness.responses(), audits + 1.0);
    witness.finish().await;
    eprintln!("hostile clients: {deeds:?}");
    drop(server);
    for suffix in ["", ".tmp"] {
        let _ = std::fs::remove_file(format!("{file}{suffix}"));
    }
}

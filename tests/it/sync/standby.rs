//! Replicas of a hot standby follow it by deltas, exactly.
//!
//! `STANDBY_STEPS` is the number of steps of the comparison with the table (`make test-standby`: 50,000), and
//! `CATALOG_TEST_SEED` repeats the choices of its writers, but not their timing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fastrand::Rng;
use model_catalog::base::error_chain::chain;
use model_catalog::postgres::ephemeral::EphemeralPostgres;
use model_catalog::postgres::session::STANDBY_DELTA;
use serde_json::Value;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::delta_correctness::from_environment;
use crate::support::consistency::{self, bump, in_sync};
use crate::support::tcp_proxy::TcpProxy;
use crate::support::{Server, WAIT_LIMIT, connect, migrated, sql, start_postgres, until};
use crate::sync::delta_plan;

const PAIRS: usize = 3;
const WRITERS: u64 = 8;
/// Few enough that writers often change the same models.
const IDS: u32 = 40;
const STEPS: u64 = 1_000;
/// More than the 64 subtransactions whose ids Postgres keeps in shared memory for each transaction.
const SUBTRANSACTIONS: u32 = 70;
const POLL: (&str, &str) = ("CATALOG_STANDBY_POLL_INTERVAL", "20ms");

/// A primary with pairs of models, and a streaming standby of it.
struct Pair {
    primary: EphemeralPostgres,
    writer: Client,
    standby: EphemeralPostgres,
    reader: Client,
}

impl Pair {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let settings = [&[("wal_level", "replica"), ("wal_keep_size", "256MB")], settings].concat();
        let primary = start_postgres(&settings);
        let writer = migrated(&primary.url("postgres")).await;
        consistency::add_pairs(&writer, PAIRS).await;
        let standby = EphemeralPostgres::standby_of(&primary).unwrap();
        let reader = connect(&standby.url("postgres")).await;
        assert_eq!(sql(&reader, "SELECT pg_is_in_recovery()").await.as_deref(), Some("t"));
        Self { primary, writer, standby, reader }
    }

    async fn serve(&self, settings: &[(&str, &str)]) -> Server {
        Server::start_with(&self.standby.url("postgres"), &[&[POLL], settings].concat()).await
    }

    /// Waits until the standby has replayed what the primary has written.
    async fn replayed(&self) {
        consistency::replayed(&self.writer, &self.reader).await;
    }
}

/// One statement of a writer.
fn statement(random: &mut Rng) -> String {
    let id = |random: &mut Rng| format!("m{}", random.u32(..IDS));
    let (a, b, name) = (id(random), id(random), random.u32(..));
    let row = format!("'{name}', 'https://example.org/x', 1.5, NULL, false, NULL, 'x/y'");
    match random.u8(..10) {
        0..3 => format!("UPDATE models SET name = '{name}' WHERE id = '{a}'"),
        3..6 => format!(
            "INSERT INTO models SELECT 'm' || n, {row} FROM generate_series({}, {}) n \
             ON CONFLICT (id) DO UPDATE SET name = excluded.name",
            random.u32(..IDS / 2),
            random.u32(IDS / 2..IDS)
        ),
        6 => format!("UPDATE models SET id = '{a}' WHERE id = '{b}'"),
        7 => format!("DELETE FROM models WHERE id IN ('{a}', '{b}')"),
        8 => {
            format!("UPDATE models SET hash = '{name}', mirrors = '[\"https://example.org/{name}\"]' WHERE id <= '{b}'")
        }
        _ => format!("INSERT INTO models SELECT '{a}', {row}"),
    }
}

/// A transaction with savepoints, sometimes with more subtransactions than shared memory holds.
async fn transaction(client: &Client, random: &mut Rng) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    let many = random.u8(..20) == 0;
    for number in 0..if many { SUBTRANSACTIONS } else { random.u32(1..6) } {
        match random.u8(..6) {
            _ if many => {
                let update = format!("UPDATE models SET name = 'sub {number}' WHERE id = 'm{}'", random.u32(..IDS));
                client.batch_execute(&format!("SAVEPOINT s; {update}; RELEASE s")).await?;
            }
            0 => {
                let end = if random.bool() { "ROLLBACK TO" } else { "RELEASE" };
                client.batch_execute(&format!("SAVEPOINT s; {}; {end} s", statement(random))).await?;
            }
            1 => tokio::time::sleep(Duration::from_millis(random.u64(..30))).await,
            _ => client.batch_execute(&statement(random)).await?,
        }
    }
    client.batch_execute(if random.u8(..) < 50 { "ROLLBACK" } else { "COMMIT" }).await
}

/// Writes until told to stop. Conflicts between writers are expected.
async fn write(client: Client, mut random: Rng, stop: Arc<AtomicBool>, committed: Arc<AtomicU32>) {
    while !stop.load(Relaxed) {
        let written = match random.bool() {
            true => client.batch_execute(&statement(&mut random)).await,
            false => transaction(&client, &mut random).await,
        };
        match written {
            Ok(()) => _ = committed.fetch_add(1, Relaxed),
            Err(error) => {
                let expected = [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED];
                assert!(error.code().is_some_and(|code| expected.contains(code)), "{}", chain(&error));
                client.batch_execute("ROLLBACK").await.unwrap();
            }
        }
    }
}

/// One server audits at every read: after its delta it reads the whole table in the same snapshot and counts what
/// differs. Another one only reads deltas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_deltas_equal_the_table_at_every_step() {
    let seed = from_environment("CATALOG_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let steps = from_environment("STANDBY_STEPS").unwrap_or(STEPS);
    println!("CATALOG_TEST_SEED={seed}");
    let pair = Pair::start(&[("deadlock_timeout", "20ms")]).await;
    let info = ("CATALOG_LOG", "info");
    let fast = ("CATALOG_STANDBY_POLL_INTERVAL", "1ms");
    let audited = pair.serve(&[info, fast, ("CATALOG_AUDIT_INTERVAL", "1ms")]).await;
    let plain = pair.serve(&[info]).await;

    let (stop, committed) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let client = connect(&pair.primary.url("postgres")).await;
        let random = Rng::with_seed(seed.wrapping_add(number));
        writers.push(tokio::spawn(write(client, random, Arc::clone(&stop), Arc::clone(&committed))));
    }
    // The deadline is for steps that do not happen; their number is up to the environment.
    let mut progress = (0.0, Instant::now());
    while progress.0 < steps as f64 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let audits = audited.refreshes("audit").await;
        if audits > progress.0 {
            progress = (audits, Instant::now());
        }
        assert!(progress.1.elapsed() < WAIT_LIMIT, "no step within {WAIT_LIMIT:?}");
        assert!(!writers.iter().any(|writer| writer.is_finished()), "a writer ended");
        assert_eq!(audited.metric("catalog_audit_mismatches_total").await, 0.0, "after {audits} steps, seed {seed}");
    }
    stop.store(true, Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    pair.replayed().await;
    for server in [&audited, &plain] {
        in_sync(server, &pair.writer).await;
        assert_eq!(server.refreshes("full").await, 1.0, "a server fell back to full reads");
    }
    let (changes, committed) = (audited.metric("catalog_propagation_seconds_count").await, committed.load(Relaxed));
    println!("{steps} steps without a difference, {changes} changes in deltas, {committed} commits");
    assert!(changes > 500.0, "only {changes} changes");
    assert_eq!(audited.metric("catalog_audit_mismatches_total").await, 0.0);
}

/// The number of rows that each delta read which led to this revision or left it as it was, according to the log.
fn rows_read(server: &Server, revision: &Value) -> Vec<u64> {
    let rows = |line: String| {
        let line: Value = serde_json::from_str(&line).ok()?;
        (line["kind"] == "delta" && line["revision"] == *revision).then(|| line["rows"].as_u64())?
    };
    server.log().into_iter().filter_map(rows).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_transaction_on_the_primary_does_not_repeat_reads() {
    let pair = Pair::start(&[]).await;
    let fill = "INSERT INTO models SELECT 'many-' || n, 'x', 'https://example.org/' || n, 1, NULL, false, NULL, 'x/' || n \
                FROM generate_series(1, 5000) n";
    let forgotten = connect(&pair.primary.url("postgres")).await;
    sql(&forgotten, "BEGIN; UPDATE models SET name = 'never' WHERE id = 'pair-2-a'").await;
    let server = pair.serve(&[]).await;
    sql(&pair.writer, fill).await;
    for _ in 0..5 {
        // Transactions that change no model are between those that do.
        sql(&pair.writer, "SELECT pg_current_xact_id()").await;
        sql(&pair.writer, &bump(0)).await;
    }
    pair.replayed().await;
    in_sync(&server, &pair.writer).await;
    let revision = &server.get("/readyz").await.json()["revision"];
    server.until("ten more deltas", |s| std::future::ready(rows_read(s, revision).len() > 10)).await;
    let rows = rows_read(&server, revision);
    assert!(rows[0] > 0 && rows[1..].iter().all(|rows| *rows == 0), "{rows:?}");
    // Its own change is not missed when it ends at last.
    sql(&forgotten, "COMMIT").await;
    pair.replayed().await;
    in_sync(&server, &pair.writer).await;
    assert_eq!(server.field("pair-2-a", "name").await, "never");
    assert_eq!(server.refreshes("full").await, 1.0);
}

/// With 100,000 rows changed since a transaction began that is still open, a read visits only what it must.
#[tokio::test]
async fn standby_delta_uses_indexes() {
    let pair = Pair::start(&[("autovacuum", "off")]).await;
    let fill = "INSERT INTO models SELECT 'model-' || n, 'name', 'https://example.org/' || n, 1.5, NULL, false, NULL, \
                'checkpoints/' || n FROM generate_series(1, 100000) n";
    sql(&pair.writer, fill).await;
    let forgotten = connect(&pair.primary.url("postgres")).await;
    let open: u64 = sql(&forgotten, "BEGIN; SELECT pg_current_xact_id()").await.unwrap().parse().unwrap();
    sql(&pair.writer, "UPDATE models SET description = 'all'").await;
    let applied = sql(&pair.writer, "SELECT max(xid::text::bigint) FROM model_catalog.changes").await.unwrap();
    let applied: u64 = applied.parse().unwrap();
    for statistics in ["stale", "fresh"] {
        pair.replayed().await;
        let client = connect(&pair.standby.url("postgres")).await;
        client.batch_execute(include_str!("../../../sql/session.sql")).await.unwrap();
        client
            .batch_execute(&format!("PREPARE delta (text, text, text, text, text) AS {STANDBY_DELTA}"))
            .await
            .unwrap();
        let history = sql(&client, "SELECT identity FROM model_catalog.history").await.unwrap();
        let unread = format!("'{{{open},{}}}', '{{{applied},NULL}}', '{history}', '100', 'true'", applied + 1);
        for number in 1..=10 {
            sql(&pair.writer, &format!("UPDATE models SET hash = random() WHERE id = 'model-{number}7'")).await;
        }
        pair.replayed().await;
        for _ in 0..10 {
            client.simple_query(&format!("EXECUTE delta ({unread})")).await.unwrap();
        }
        let plan = delta_plan::explain(&client, "ANALYZE, BUFFERS,", &unread).await;
        for relation in ["changes", "models"] {
            for node in delta_plan::nodes_reading(&plan, relation) {
                let number = |key: &str| node[key].as_f64().unwrap_or(0.0);
                let rows = (number("Actual Rows") + number("Rows Removed by Filter")) * number("Actual Loops");
                let blocks = number("Shared Hit Blocks") + number("Shared Read Blocks");
                assert!(
                    rows <= 20.0 && blocks <= 200.0,
                    "{statistics} statistics: {rows} rows, {blocks} blocks: {plan:#}"
                );
                assert_ne!(node["Node Type"], "Seq Scan", "{statistics} statistics: {plan:#}");
            }
        }
        sql(&pair.writer, "ANALYZE").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edge_refuses_a_standby_that_is_behind_the_primary() {
    let pair = Pair::start(&[]).await;
    let on_primary = Server::start_with(&pair.primary.url("postgres"), &[]).await;
    let on_standby = pair.serve(&[]).await;
    sql(&pair.reader, "SELECT pg_wal_replay_pause()").await;
    let paused = "SELECT pg_get_wal_replay_pause_state()";
    until("replay is paused", || async { sql(&pair.reader, paused).await.as_deref() == Some("paused") }).await;
    sql(&pair.writer, "UPDATE models SET name = 'new' WHERE id = 'pair-0-a'").await;
    let (to_primary, to_standby) = (TcpProxy::new(&on_primary.address).await, TcpProxy::new(&on_standby.address).await);
    to_standby.point_to(None);
    let edge = Server::edge(&format!("{},{}", to_primary.url(), to_standby.url()), &[]).await;
    edge.until_named("pair-0-a", "new").await;

    to_standby.point_to(Some(&on_standby.address));
    to_primary.point_to(None);
    edge.until("the standby is refused", |s| async move {
        s.metric("catalog_upstream_requests_total{outcome=\"refused\"}").await >= 2.0
    })
    .await;
    assert_ne!(on_standby.field("pair-0-a", "name").await, "new");
    assert_eq!(edge.field("pair-0-a", "name").await, "new");
    sql(&pair.reader, "SELECT pg_wal_replay_resume()").await;
    edge.until("the standby is followed", |s| async move { s.metric("catalog_upstream_connected").await == 1.0 }).await;
    assert_eq!(edge.field("pair-0-a", "name").await, "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_a_standby_report_replay_and_are_listed_in_its_fleet() {
    let pair = Pair::start(&[]).await;
    let server = pair.serve(&[("CATALOG_REPLICA_NAME", "follower")]).await;
    let change = format!("BEGIN; {}; SELECT pg_current_xact_id(); COMMIT", bump(0));
    let xid = sql(&pair.writer, &change).await.unwrap();
    pair.replayed().await;
    // On the standby, because that is where the sessions of its replicas are.
    let wait = format!("SELECT model_catalog.wait_for_fleet('{xid}', '20s')");
    assert_eq!(sql(&pair.reader, &wait).await.as_deref(), Some("1"));
    assert_eq!(server.field("pair-0-a", "description").await, "1");
    let fleet = "SELECT concat_ws(' ', name, revision, in_step) FROM model_catalog.fleet";
    let revision = server.get("/readyz").await.json()["revision"].as_str().unwrap().to_owned();
    let expected = format!("follower {revision} t");
    until("the fleet lists it", || async { sql(&pair.reader, fleet).await.as_ref() == Some(&expected) }).await;
    assert_eq!(sql(&pair.writer, "SELECT count(*) FROM model_catalog.fleet").await.as_deref(), Some("0"));

    let ready = server.get("/readyz").await.json();
    assert_eq!(ready["follow"], "standby");
    let lag = ready["replay_lag_seconds"].as_f64().unwrap();
    assert!((0.0..30.0).contains(&lag), "{ready}");
    assert!(server.metric("catalog_replay_lag_seconds").await > 0.0);
    assert_eq!(server.refreshes("full").await, 1.0);
}

#[tokio::test]
async fn changes_of_the_structure_reach_replicas_of_a_standby() {
    let pair = Pair::start(&[]).await;
    let server = pair.serve(&[("CATALOG_POLL_INTERVAL", "100ms")]).await;
    // No trigger records this update.
    let unrecorded = "ALTER TABLE models DISABLE TRIGGER ALL; UPDATE models SET name = 'unrecorded'; \
                      ALTER TABLE models ENABLE TRIGGER ALL";
    sql(&pair.writer, unrecorded).await;
    pair.replayed().await;
    in_sync(&server, &pair.reader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_replay_is_logged_until_it_continues() {
    let pair = Pair::start(&[]).await;
    let server = pair.serve(&[]).await;
    // A standby that has not replayed a transaction since its start cannot tell the age of the last one.
    sql(&pair.writer, &bump(1)).await;
    pair.replayed().await;
    sql(&pair.reader, "SELECT pg_wal_replay_pause()").await;
    let paused = "SELECT pg_get_wal_replay_pause_state()";
    until("replay is paused", || async { sql(&pair.reader, paused).await.as_deref() == Some("paused") }).await;
    sql(&pair.writer, &bump(0)).await;
    server.until("replay is stalled", |s| async move { s.metric("catalog_replay_stalled").await == 1.0 }).await;
    server.until_logged("the standby replays nothing", 1).await;
    assert!(server.get("/readyz").await.json()["replay_lag_seconds"].as_f64().unwrap() > 9.0);
    assert!(server.metric("catalog_replay_lag_seconds").await > 9.0);
    assert_eq!((server.get("/readyz").await.status, server.logged("the standby replays again")), (200, 0));

    sql(&pair.reader, "SELECT pg_wal_replay_resume()").await;
    in_sync(&server, &pair.writer).await;
    server.until_logged("the standby replays again", 1).await;
    server.until("replay is not stalled", |s| async move { s.metric("catalog_replay_stalled").await == 0.0 }).await;
    server.until_logged("the standby replays nothing", 1).await;
    assert_eq!(server.refreshes("full").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_was_rewound_is_read_in_full() {
    let mut pair = Pair::start(&[]).await;
    sql(&pair.writer, &bump(0)).await;
    pair.replayed().await;
    // An older state of the standby, put in the place of the newer one.
    let (data, older) = (pair.standby.data_directory(), pair.standby.socket_directory().join("older"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    pair.standby.stop("INT").unwrap();
    copy(&data, &older);
    pair.standby.resume().unwrap();
    let server = pair.serve(&[]).await;
    for round in 0..3 {
        sql(&pair.writer, &bump(1)).await;
        sql(&pair.writer, &format!("UPDATE models SET name = 'newer {round}' WHERE id LIKE 'pair-0-_'")).await;
    }
    in_sync(&server, &pair.writer).await;

    pair.standby.stop("INT").unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&older, &data);
    // It stays at its older state: nothing streams to it.
    let configuration = data.join("postgresql.auto.conf");
    let settings = std::fs::read_to_string(&configuration).unwrap();
    std::fs::write(&configuration, format!("{settings}\nprimary_conninfo = ''\n")).unwrap();
    pair.standby.resume().unwrap();
    let reader = connect(&pair.standby.url("postgres")).await;
    in_sync(&server, &reader).await;
    assert_eq!(server.field("pair-0-a", "name").await, "pair-0-a");
    assert_eq!(consistency::full_reads(&server, 2.0).await, 2.0);
    // And follows from there.
    sql(&reader, "ALTER SYSTEM RESET primary_conninfo").await;
    let conninfo = format!("ALTER SYSTEM SET primary_conninfo = '{}'", pair.primary.url("postgres"));
    sql(&reader, &conninfo).await;
    sql(&reader, "SELECT pg_reload_conf()").await;
    in_sync(&server, &pair.writer).await;
    assert_eq!(consistency::full_reads(&server, 2.0).await, 2.0);
}

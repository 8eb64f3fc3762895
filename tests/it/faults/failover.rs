//! Histories that fork: a real failover, a standby as the source, a crash that takes back transaction ids.

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use model_catalog::postgres::session;
use tokio_postgres::Client;

use crate::support::proxy::{Mode, Proxy};
use crate::support::witness::{self, Witness, bump, difference, fulls, in_step};
use crate::support::{self, Server, database, migrated, sql, until};

const PAIRS: usize = 3;
const SETTINGS: [(&str, &str); 2] = [("CATALOG_POLL_INTERVAL", "300ms"), ("CATALOG_DATABASE_TIMEOUT", "2s")];

async fn connect(server: &EphemeralPostgres) -> Client {
    session::connect(&database(&server.url("postgres"))).await.unwrap()
}

/// A primary with pairs and a standby that has all of it.
async fn primary_and_standby() -> (EphemeralPostgres, Client, EphemeralPostgres, Client) {
    let primary = support::private(&[("wal_level", "replica"), ("wal_keep_size", "64MB")]);
    let client = migrated(&primary.url("postgres")).await;
    witness::add_pairs(&client, PAIRS).await;
    let standby = EphemeralPostgres::standby_of(&primary).unwrap();
    let standby_client = connect(&standby).await;
    assert_eq!(sql(&standby_client, "SELECT pg_is_in_recovery()").await.as_deref(), Some("t"));
    (primary, client, standby, standby_client)
}

async fn replayed(primary: &Client, standby: &Client) {
    let sent = sql(primary, "SELECT pg_current_wal_lsn()").await.unwrap();
    let there = format!("SELECT pg_last_wal_replay_lsn() >= '{sent}'");
    until("the standby has it", || async { sql(standby, &there).await.as_deref() == Some("t") }).await;
}

async fn promote(standby: &Client) {
    assert_eq!(sql(standby, "SELECT pg_promote(true, 30)").await.as_deref(), Some("t"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_failover_is_followed_though_its_transaction_ids_repeat() {
    let (mut primary, client, standby, standby_client) = primary_and_standby().await;
    let hosts = [primary.socket_directory(), standby.socket_directory()].map(|path| path.display().to_string());
    let url =
        format!("host={} port=5432 user=postgres dbname=postgres target_session_attrs=read-write", hosts.join(","));
    let server = Server::start_with(&url, &SETTINGS).await;
    // What never reached the standby was served, and is gone: the counters do go back, once.
    let witness = Witness::start(&server, PAIRS, true);
    sql(&client, &bump(0)).await;
    replayed(&client, &standby_client).await;

    // The standby gets nothing more; what the primary commits from here on is lost, and was served.
    let reload = "ALTER SYSTEM SET primary_conninfo = ''; SELECT pg_reload_conf()";
    for statement in reload.split("; ") {
        sql(&standby_client, statement).await;
    }
    let alone = "SELECT count(*) FROM pg_stat_replication";
    until("the standby is alone", || async { sql(&client, alone).await.as_deref() == Some("0") }).await;
    let id = "SELECT pg_current_xact_id()";
    let lost: u64 = sql(&client, &format!("{id}; UPDATE models SET name = 'lost' WHERE id = 'pair-0-a'; {id}"))
        .await
        .unwrap()
        .parse()
        .unwrap();
    sql(&client, &bump(1)).await;
    sql(&client, "DELETE FROM models WHERE id = 'pair-2-x'").await;
    in_step(&server, &client).await;
    assert_eq!(server.get("/api/models/pair-0-a").await.json()["name"], "lost");
    drop(client);
    primary.stop("KILL").unwrap();

    promote(&standby_client).await;
    // The new primary gives out the same ids, to other changes, and goes past what the server has seen.
    let mut repeated = Vec::new();
    for round in 0..8 {
        let change = format!("{id}; UPDATE models SET name = 'new {round}' WHERE id = 'pair-1-a'; {id}");
        repeated.push(sql(&standby_client, &change).await.unwrap().parse::<u64>().unwrap());
    }
    assert!(repeated.contains(&lost), "{lost} is not among {repeated:?}");
    in_step(&server, &standby_client).await;
    assert_ne!(server.get("/api/models/pair-0-a").await.json()["name"], "lost");
    sql(&standby_client, &bump(2)).await;
    in_step(&server, &standby_client).await;
    assert_eq!(fulls(&server, 2.0).await, 2.0);
    server.until_logged("the database has another history", 1).await;
    witness.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_standby_is_followed_by_timer_until_it_is_promoted() {
    let (primary, client, standby, standby_client) = primary_and_standby().await;
    let server = Server::start_with(&standby.url("postgres"), &SETTINGS).await;
    let witness = Witness::start(&server, PAIRS, false);
    for pair in 0..PAIRS {
        sql(&client, &bump(pair)).await;
        in_step(&server, &client).await;
    }
    let said = "this is a hot standby";
    let ready = server.get("/readyz").await.json();
    assert_eq!((&ready["follow"], &ready["source"]), (&"standby".into(), &"postgres".into()));
    server.until_logged(said, 1).await;
    assert_eq!(server.metric("catalog_listener_connected").await, 0.0);
    assert!(server.refreshes("delta").await > 0.0);
    assert_eq!(server.refreshes("full").await, 1.0);

    replayed(&client, &standby_client).await;
    drop(client);
    drop(primary);
    promote(&standby_client).await;
    server.until("it is live", |s| async { s.get("/readyz").await.json()["follow"] == "live" }).await;
    server.until("it listens", |s| async { s.metric("catalog_listener_connected").await == 1.0 }).await;
    let rings = server.metric("catalog_notifications_total").await;
    sql(&standby_client, &bump(0)).await;
    in_step(&server, &standby_client).await;
    assert!(server.metric("catalog_notifications_total").await > rings);
    server.until_logged(said, 1).await;
    witness.finish().await;
}

/// A crash forgets the ids of transactions that were rolled back a moment before it: nothing had made their records
/// durable. Postgres gives the same ids out again, on the same timeline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_ids_that_a_crash_took_back_are_not_missed() {
    let mut postgres = support::private(&[("wal_writer_delay", "10s"), ("bgwriter_delay", "10s")]);
    let client = migrated(&postgres.url("postgres")).await;
    witness::add_pairs(&client, PAIRS).await;
    let proxy = Proxy::before(&postgres).await;
    let server = Server::start_with(&proxy.url("postgres"), &SETTINGS).await;
    sql(&client, &bump(0)).await;
    in_step(&server, &client).await;

    let mut forgotten = 0_u64;
    for _ in 0..4 {
        let id = sql(&client, "BEGIN; SELECT pg_current_xact_id()").await.unwrap();
        forgotten = id.parse().unwrap();
        sql(&client, "ROLLBACK").await;
    }
    let synced = server.metric("catalog_last_sync_timestamp_seconds").await;
    server
        .until("a heartbeat has seen them", |s| async move {
            s.metric("catalog_last_sync_timestamp_seconds").await > synced + 0.3
        })
        .await;
    proxy.set(Mode::Refuse).await;
    postgres.stop("KILL").unwrap();
    postgres.resume().unwrap();
    proxy.cut();

    let client = connect(&postgres).await;
    let mut repeated = Vec::new();
    for pair in [0, 1, 2, 0, 0, 0] {
        sql(&client, "BEGIN").await;
        sql(&client, &bump(pair)).await;
        repeated.push(sql(&client, "SELECT pg_current_xact_id()").await.unwrap().parse::<u64>().unwrap());
        sql(&client, "COMMIT").await;
    }
    assert!(repeated.contains(&forgotten) && repeated.last() > Some(&forgotten), "{forgotten} in {repeated:?}");
    proxy.set(Mode::Pass).await;
    let since = server.metric("catalog_last_sync_timestamp_seconds").await;
    server.until("it is back", |s| async move { s.metric("catalog_last_sync_timestamp_seconds").await > since }).await;
    tokio::time::timeout(support::PATIENCE, in_step(&server, &client))
        .await
        .unwrap_or_else(|_| panic!("a change is missed for ever"));
    assert_eq!(difference(&server, &client).await, None);
}

fn kill(signal: &str, pid: &str) {
    assert!(std::process::Command::new("kill").args([signal, pid]).status().unwrap().success());
}

/// A commit that does not wait for its record to be durable can be read, served and then taken back by a crash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_served_that_a_crash_takes_back() {
    let mut postgres = support::private(&[("wal_writer_delay", "10s")]);
    let client = migrated(&postgres.url("postgres")).await;
    witness::add_pairs(&client, PAIRS).await;
    let server = Server::start_with(&postgres.url("postgres"), &SETTINGS).await;
    // The one process that would make them durable by itself.
    let writer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";
    let writer = sql(&client, writer).await.unwrap();
    sql(&client, "CHECKPOINT").await;
    kill("-STOP", &writer);
    sql(&client, "SET synchronous_commit = off").await;
    for _ in 0..5 {
        sql(&client, &bump(0)).await;
    }
    in_step(&server, &client).await;
    assert_eq!(server.get("/api/models/pair-0-a").await.json()["description"], "5");
    // It has to die after the server, and before the server counts as stopped.
    let server_pid = postgres.pid().unwrap();
    let after = format!("while kill -0 {server_pid} 2>/dev/null; do sleep 0.01; done; kill -KILL {writer}");
    let mut killer = std::process::Command::new("/bin/sh").args(["-c", &after]).spawn().unwrap();
    postgres.stop("KILL").unwrap();
    assert!(killer.wait().unwrap().success());
    postgres.resume().unwrap();
    let client = connect(&postgres).await;
    sql(&client, &bump(1)).await;
    tokio::time::timeout(support::PATIENCE, in_step(&server, &client))
        .await
        .unwrap_or_else(|_| panic!("served is what the table never had"));
}

//! Diverging histories: a failover, a standby as the source, a crash after which transaction ids are reused.

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use model_catalog::postgres::session;
use tokio_postgres::Client;

use crate::support::consistency::{self, ConsistencyReaders, bump, difference, full_reads, in_sync};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{self, Server, database, migrated, sql, until};

const PAIRS: usize = 3;
const SETTINGS: [(&str, &str); 2] = [("CATALOG_POLL_INTERVAL", "300ms"), ("CATALOG_DATABASE_TIMEOUT", "2s")];

async fn connect(server: &EphemeralPostgres) -> Client {
    session::connect(&database(&server.url("postgres"))).await.unwrap()
}

/// A primary with pairs of models, and a standby that has replayed them.
async fn primary_and_standby() -> (EphemeralPostgres, Client, EphemeralPostgres, Client) {
    let primary = support::start_postgres(&[("wal_level", "replica"), ("wal_keep_size", "64MB")]);
    let client = migrated(&primary.url("postgres")).await;
    consistency::add_pairs(&client, PAIRS).await;
    let standby = EphemeralPostgres::standby_of(&primary).unwrap();
    let standby_client = connect(&standby).await;
    assert_eq!(sql(&standby_client, "SELECT pg_is_in_recovery()").await.as_deref(), Some("t"));
    (primary, client, standby, standby_client)
}

async fn wait_for_replay(primary: &Client, standby: &Client) {
    let sent = sql(primary, "SELECT pg_current_wal_lsn()").await.unwrap();
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{sent}'");
    until("the standby has replayed it", || async { sql(standby, &replayed).await.as_deref() == Some("t") }).await;
}

async fn promote(standby: &Client) {
    assert_eq!(sql(standby, "SELECT pg_promote(true, 30)").await.as_deref(), Some("t"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn failover_with_reused_transaction_ids_is_followed() {
    let (mut primary, client, standby, standby_client) = primary_and_standby().await;
    let hosts = [primary.socket_directory(), standby.socket_directory()].map(|path| path.display().to_string());
    let url =
        format!("host={} port=5432 user=postgres dbname=postgres target_session_attrs=read-write", hosts.join(","));
    let server = Server::start_with(&url, &SETTINGS).await;
    // Changes that never reach the standby are served and then lost, so the counters may go back.
    let readers = ConsistencyReaders::start(&server, PAIRS, true);
    sql(&client, &bump(0)).await;
    wait_for_replay(&client, &standby_client).await;

    // The standby stops receiving; whatever the primary commits from here on is served and then lost.
    let disconnect = "ALTER SYSTEM SET primary_conninfo = ''; SELECT pg_reload_conf()";
    for statement in disconnect.split("; ") {
        sql(&standby_client, statement).await;
    }
    let connected = "SELECT count(*) FROM pg_stat_replication";
    until("the standby is disconnected", || async { sql(&client, connected).await.as_deref() == Some("0") }).await;
    let id = "SELECT pg_current_xact_id()";
    let lost: u64 = sql(&client, &format!("{id}; UPDATE models SET name = 'lost' WHERE id = 'pair-0-a'; {id}"))
        .await
        .unwrap()
        .parse()
        .unwrap();
    sql(&client, &bump(1)).await;
    sql(&client, "DELETE FROM models WHERE id = 'pair-2-x'").await;
    in_sync(&server, &client).await;
    assert_eq!(server.get("/api/models/pair-0-a").await.json()["name"], "lost");
    drop(client);
    primary.stop("KILL").unwrap();

    promote(&standby_client).await;
    // The new primary assigns the same ids to other changes, and passes the ids that the server has seen.
    let mut reused = Vec::new();
    for round in 0..8 {
        let change = format!("{id}; UPDATE models SET name = 'new {round}' WHERE id = 'pair-1-a'; {id}");
        reused.push(sql(&standby_client, &change).await.unwrap().parse::<u64>().unwrap());
    }
    assert!(reused.contains(&lost), "{lost} is not among {reused:?}");
    in_sync(&server, &standby_client).await;
    assert_ne!(server.get("/api/models/pair-0-a").await.json()["name"], "lost");
    sql(&standby_client, &bump(2)).await;
    in_sync(&server, &standby_client).await;
    assert_eq!(full_reads(&server, 2.0).await, 2.0);
    server.until_logged("the database no longer has what was read from it", 1).await;
    readers.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn standby_is_polled_until_it_is_promoted() {
    let (primary, client, standby, standby_client) = primary_and_standby().await;
    let server = Server::start_with(&standby.url("postgres"), &SETTINGS).await;
    let readers = ConsistencyReaders::start(&server, PAIRS, false);
    for pair in 0..PAIRS {
        sql(&client, &bump(pair)).await;
        in_sync(&server, &client).await;
    }
    let message = "this is a hot standby";
    let ready = server.get("/readyz").await.json();
    assert_eq!((&ready["follow"], &ready["source"]), (&"standby".into(), &"postgres".into()));
    server.until_logged(message, 1).await;
    assert_eq!(server.metric("catalog_listener_connected").await, 0.0);
    assert!(server.refreshes("delta").await > 0.0);
    assert_eq!(server.refreshes("full").await, 1.0);

    wait_for_replay(&client, &standby_client).await;
    drop(client);
    drop(primary);
    promote(&standby_client).await;
    server.until("the sync mode is live", |s| async { s.get("/readyz").await.json()["follow"] == "live" }).await;
    server.until("the server listens", |s| async { s.metric("catalog_listener_connected").await == 1.0 }).await;
    let before = server.metric("catalog_notifications_total").await;
    sql(&standby_client, &bump(0)).await;
    in_sync(&server, &standby_client).await;
    assert!(server.metric("catalog_notifications_total").await > before);
    server.until_logged(message, 1).await;
    readers.finish().await;
}

/// A crash loses the ids of transactions that were rolled back shortly before it, because nothing had flushed their WAL
/// records. Postgres assigns the same ids again, on the same timeline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_under_transaction_ids_reused_after_a_crash_are_served() {
    // Autovacuum would use transaction ids and flush WAL.
    let mut postgres = support::start_postgres(&[("autovacuum", "off"), ("bgwriter_delay", "10s")]);
    let client = migrated(&postgres.url("postgres")).await;
    consistency::add_pairs(&client, PAIRS).await;
    let proxy = Proxy::before(&postgres).await;
    let server = Server::start_with(&proxy.url("postgres"), &SETTINGS).await;
    sql(&client, &bump(0)).await;
    in_sync(&server, &client).await;

    let writer = stop_wal_writer(&client).await;
    let mut lost = 0_u64;
    for _ in 0..4 {
        let id = sql(&client, "BEGIN; SELECT pg_current_xact_id()").await.unwrap();
        lost = id.parse().unwrap();
        sql(&client, "ROLLBACK").await;
    }
    let synced = server.metric("catalog_last_sync_timestamp_seconds").await;
    server
        .until("a poll has read beyond them", |s| async move {
            s.metric("catalog_last_sync_timestamp_seconds").await > synced + 0.3
        })
        .await;
    proxy.set(Mode::Refuse).await;
    kill_postgres(&mut postgres, &writer);
    postgres.resume().unwrap();
    proxy.cut();

    let client = connect(&postgres).await;
    let mut reused = Vec::new();
    for pair in [0, 1, 2, 0, 0, 0] {
        sql(&client, "BEGIN").await;
        sql(&client, &bump(pair)).await;
        reused.push(sql(&client, "SELECT pg_current_xact_id()").await.unwrap().parse::<u64>().unwrap());
        sql(&client, "COMMIT").await;
    }
    assert!(reused.contains(&lost) && reused.last() > Some(&lost), "{lost} in {reused:?}");
    proxy.set(Mode::Pass).await;
    let before = server.metric("catalog_last_sync_timestamp_seconds").await;
    server
        .until("the server is in sync again", |s| async move {
            s.metric("catalog_last_sync_timestamp_seconds").await > before
        })
        .await;
    tokio::time::timeout(support::WAIT_LIMIT, in_sync(&server, &client))
        .await
        .unwrap_or_else(|_| panic!("a change is never served"));
    assert_eq!(difference(&server, &client).await, None);
}

/// Stops the process that would flush WAL on its own, and returns its id.
async fn stop_wal_writer(client: &Client) -> String {
    let writer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";
    let writer = sql(client, writer).await.unwrap();
    assert!(std::process::Command::new("kill").args(["-STOP", &writer]).status().unwrap().success());
    writer
}

/// Kills a server whose WAL writer is stopped. The WAL writer must die after the postmaster, and before `stop` returns.
fn kill_postgres(postgres: &mut EphemeralPostgres, writer: &str) {
    let postmaster = postgres.pid().unwrap();
    let after = format!("while kill -0 {postmaster} 2>/dev/null; do sleep 0.01; done; kill -KILL {writer}");
    let mut killer = std::process::Command::new("/bin/sh").args(["-c", &after]).spawn().unwrap();
    postgres.stop("KILL").unwrap();
    assert!(killer.wait().unwrap().success());
}

/// With `synchronous_commit = off`, a commit is visible before it is durable, so it could be served and then lost in a
/// crash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_lost_in_a_crash_is_never_served() {
    let mut postgres = support::start_postgres(&[("autovacuum", "off")]);
    let client = migrated(&postgres.url("postgres")).await;
    consistency::add_pairs(&client, PAIRS).await;
    let server = Server::start_with(&postgres.url("postgres"), &SETTINGS).await;
    sql(&client, "CHECKPOINT").await;
    let writer = stop_wal_writer(&client).await;
    sql(&client, "SET synchronous_commit = off").await;
    for _ in 0..5 {
        sql(&client, &bump(0)).await;
    }
    in_sync(&server, &client).await;
    assert_eq!(server.get("/api/models/pair-0-a").await.json()["description"], "5");
    kill_postgres(&mut postgres, &writer);
    postgres.resume().unwrap();
    let client = connect(&postgres).await;
    sql(&client, &bump(1)).await;
    tokio::time::timeout(support::WAIT_LIMIT, in_sync(&server, &client))
        .await
        .unwrap_or_else(|_| panic!("a change that the crash lost is served"));
}

//! Transactions are served atomically, and rolled-back changes leave no trace.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::task::JoinHandle;

use crate::support::change_log::{assert_unnoticed, change_log, notifications};
use crate::support::{Db, NOTIFY_ONLY, Server, WAIT_LIMIT, sql};

/// Minimum number of distinct states that readers must have seen.
const MIN_STATES: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_served_atomically() {
    let db = Db::new().await;
    for id in ["left", "right", "heads"] {
        db.add(id).await;
    }
    db.sql("UPDATE models SET name = '0'").await;
    let server = Arc::new(Server::start_with(&db.url, NOTIFY_ONLY).await);
    let seen = Arc::<Mutex<HashSet<String>>>::default();

    let reader = |server: Arc<Server>, seen: Arc<Mutex<HashSet<String>>>| async move {
        loop {
            let response = server.batch(r#"{"model_ids":["left","heads","right","tails","brief"]}"#).await.json();
            let names: Vec<_> = response["models"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
            // left, right and one of heads and tails, all from one transaction; never the row that it added and deleted.
            assert_eq!(names.len(), 3, "{response}");
            assert!(names.iter().all(|name| *name == names[0]), "a torn transaction: {response}");
            seen.lock().unwrap().insert(names[0].to_string());
        }
    };
    let readers: Vec<JoinHandle<()>> =
        (0..4).map(|_| tokio::spawn(reader(Arc::clone(&server), Arc::clone(&seen)))).collect();

    let (mut states, mut progress, mut number) = (0, Instant::now(), 0);
    while states < MIN_STATES {
        let count = seen.lock().unwrap().len();
        if count > states {
            (states, progress) = (count, Instant::now());
        }
        let failed = readers.iter().any(JoinHandle::is_finished);
        assert!(!failed && progress.elapsed() < WAIT_LIMIT, "{states} states seen");
        number += 1;
        let (old, new) = if number % 2 == 1 { ("heads", "tails") } else { ("tails", "heads") };
        db.sql(&format!(
            "BEGIN; UPDATE models SET name = '{number}' WHERE id = 'right'; \
             INSERT INTO models SELECT 'brief', name, download_url, 1, NULL, false, NULL, save_path FROM models LIMIT 1; \
             UPDATE models SET id = '{new}', name = '{number}' WHERE id = '{old}'; \
             DELETE FROM models WHERE id = 'brief'; \
             UPDATE models SET name = '{number}' WHERE id = 'left'; COMMIT"
        ))
        .await;
    }
    server.until_named("left", &number.to_string()).await;
    for reader in readers {
        assert!(!reader.is_finished(), "a torn transaction");
        reader.abort();
    }
}

#[tokio::test]
async fn rolled_back_changes_leave_no_trace() {
    let db = Db::new().await;
    db.add("a").await;
    db.add("b").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let rolled_back = [
        "BEGIN; UPDATE models SET name = 'never' WHERE id = 'a'; DELETE FROM models WHERE id = 'b'; ROLLBACK",
        "BEGIN; SAVEPOINT s; UPDATE models SET name = 'never'; ROLLBACK TO s; COMMIT",
        "BEGIN; TRUNCATE models; ROLLBACK",
        "BEGIN; SELECT model_catalog.reload(); ROLLBACK",
    ];
    assert_unnoticed(&db, &server, &rolled_back).await;

    let before = notifications(&db, &server).await;
    let xid_of_b = db.sql("SELECT xid FROM model_catalog.changes WHERE model_id = 'b'").await;
    db.sql(
        "BEGIN; UPDATE models SET name = 'kept' WHERE id = 'a'; \
         SAVEPOINT s; UPDATE models SET name = 'never' WHERE id = 'b'; DELETE FROM models WHERE id = 'a'; ROLLBACK TO s; \
         SAVEPOINT t; INSERT INTO models SELECT 'c', name, download_url, 1, NULL, false, NULL, save_path FROM models \
         WHERE id = 'b'; RELEASE t; COMMIT",
    )
    .await;
    server.until_named("a", "kept").await;
    assert_eq!(server.field("b", "name").await, "b.safetensors");
    assert_eq!(server.field("c", "name").await, "b.safetensors", "a released savepoint was lost");
    assert_eq!(db.sql("SELECT xid FROM model_catalog.changes WHERE model_id = 'b'").await, xid_of_b);
    assert_eq!(
        notifications(&db, &server).await,
        before + 2.0,
        "expected one from the transaction and one from the marker"
    );
}

#[tokio::test]
async fn long_transaction_is_served_when_it_commits() {
    let db = Db::new().await;
    for id in ["slow", "quick"] {
        db.add(id).await;
    }
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let slow = db.connect().await;
    sql(&slow, "BEGIN; UPDATE models SET name = 'slow 1' WHERE id = 'slow'").await;
    // Later transactions commit and are served while an older one is open.
    for number in 0..5 {
        db.sql(&format!("UPDATE models SET name = 'quick {number}' WHERE id = 'quick'")).await;
        server.until_named("quick", &format!("quick {number}")).await;
        assert_eq!(server.field("slow", "name").await, "slow.safetensors", "an open transaction is visible");
    }
    sql(&slow, "COMMIT").await;
    server.until_named("slow", "slow 1").await;
    assert_eq!(server.field("quick", "name").await, "quick 4");
    assert_eq!(server.refreshes("full").await, 1.0);
    assert!(!change_log(&db).await.is_empty());
}

#[tokio::test]
async fn change_during_the_first_load_is_served_by_a_delta() {
    let db = Db::new().await;
    for id in ["a", "b", "c"] {
        db.add(id).await;
    }
    // Reading the view waits for a lock that the test holds, so the load stops in the middle. The triggers
    // read it, too, and do not wait.
    db.sql(
        "CREATE FUNCTION gate() RETURNS boolean LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7) WHERE pg_trigger_depth() = 0;
             RETURN true; END $$;
         DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT id, name, download_url, file_size_gb::numeric, hash, \
         auth_required, auth_provider, save_path, dependencies, description FROM models WHERE gate()",
    )
    .await;
    let gate = db.connect().await;
    sql(&gate, "SELECT pg_advisory_lock(7)").await;
    let server = Server::spawn(&db.url, NOTIFY_ONLY).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                  AND application_name LIKE 'model-catalog%' AND wait_event = 'advisory'";
    crate::support::until("the load waits for the lock", || async { db.sql(waiting).await.as_deref() == Some("1") })
        .await;
    assert_eq!(server.get("/api/models/a").await.status, 503);

    db.sql("UPDATE models SET name = 'meanwhile' WHERE id = 'a'").await;
    db.sql("DELETE FROM models WHERE id = 'b'").await;
    db.add("d").await;
    sql(&gate, "SELECT pg_advisory_unlock(7)").await;
    server.until("the server is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
    server.until_named("d", "d.safetensors").await;
    server.until_named("a", "meanwhile").await;
    server.until_gone("b").await;
    assert_eq!(server.field("c", "name").await, "c.safetensors");
    assert_eq!(server.refreshes("full").await, 1.0, "the changes caused another full read");
}

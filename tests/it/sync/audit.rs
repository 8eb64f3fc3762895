//! The audit: no mismatches under concurrent writes, and changes that bypassed the triggers are found and corrected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::support::consistency::{self, ConsistencyReaders, bump, difference, in_sync};
use crate::support::{Db, Server, sql, until};

const PAIRS: usize = 10;
const AUDITS: &str = "catalog_refreshes_total{kind=\"audit\",outcome=\"ok\"}";
const MISMATCHES: &str = "catalog_audit_mismatches_total";

async fn start() -> (Db, Server) {
    let db = Db::new().await;
    consistency::add_pairs(&db.client, PAIRS).await;
    let settings = [("CATALOG_AUDIT_INTERVAL", "200ms"), ("CATALOG_POLL_INTERVAL", "100ms")];
    let server = Server::start_with(&db.url, &settings).await;
    (db, server)
}

async fn wait_for_audits(server: &Server, times: f64) {
    let before = server.metric(AUDITS).await;
    server.until("the audits are counted", |s| async move { s.metric(AUDITS).await >= before + times }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writes_are_not_counted_as_mismatches() {
    let (db, server) = start().await;
    let readers = ConsistencyReaders::start(&server, PAIRS, false);
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..3 {
        let (client, stop) = (db.connect().await, Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            while !stop.load(SeqCst) {
                sql(&client, &bump(fastrand::usize(..PAIRS))).await;
                let id = format!("{writer}-{}", fastrand::u32(..5));
                sql(
                    &client,
                    &format!(
                        "BEGIN; DELETE FROM models WHERE id = '{id}'; INSERT INTO models \
                    (id, name, download_url, save_path) VALUES ('{id}', 'x', 'https://example.org', 'a'); COMMIT"
                    ),
                )
                .await;
            }
        }));
    }
    wait_for_audits(&server, 8.0).await;
    stop.store(true, SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    in_sync(&server, &db.client).await;
    wait_for_audits(&server, 1.0).await;
    assert_eq!(server.metric(MISMATCHES).await, 0.0);
    readers.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_change_is_not_counted_as_mismatch() {
    let db = Db::new().await;
    consistency::add_pairs(&db.client, PAIRS).await;
    // The audit interval is shorter than the poll interval, so an audit is the first to see the other history.
    let settings = [("CATALOG_AUDIT_INTERVAL", "1ms"), ("CATALOG_POLL_INTERVAL", "50ms")];
    let server = Server::start_with(&db.url, &settings).await;
    wait_for_audits(&server, 2.0).await;
    db.sql("DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT id, upper(name) AS name, download_url, \
            file_size_gb::numeric, hash, auth_required, auth_provider, save_path, dependencies, description FROM models; \
            SELECT model_catalog.reload()")
        .await;
    in_sync(&server, &db.client).await;
    wait_for_audits(&server, 2.0).await;
    assert_eq!(server.metric(MISMATCHES).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn view_replaced_during_an_audit_is_not_counted_as_mismatch() {
    let db = Db::new().await;
    consistency::add_pairs(&db.client, PAIRS).await;
    let settings = [("CATALOG_AUDIT_INTERVAL", "1ms"), ("CATALOG_POLL_INTERVAL", "50ms")];
    let server = Server::start_with(&db.url, &settings).await;
    wait_for_audits(&server, 1.0).await;
    db.sql("BEGIN; CREATE OR REPLACE VIEW model_catalog.entries AS SELECT id, upper(name) AS name, download_url, \
            file_size_gb::numeric, hash, auth_required, auth_provider, save_path, dependencies, description, mirrors FROM models; \
            SELECT model_catalog.reload()")
        .await;
    // Its transaction has begun, with the old history, and it waits for the view.
    // Databases that are copies of one template have the same ids of relations.
    let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
                   WHERE d.datname = current_database() AND NOT granted AND relation = 'model_catalog.entries'::regclass";
    until("an audit waits for the view", async || {
        db.client.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
    db.sql("COMMIT").await;
    in_sync(&server, &db.client).await;
    wait_for_audits(&server, 2.0).await;
    assert_eq!(server.metric(MISMATCHES).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_bypass_triggers_are_counted_and_corrected() {
    let (db, server) = start().await;
    db.sql("SET session_replication_role = replica").await;
    db.sql("BEGIN; UPDATE models SET name = 'bypassed' WHERE id = 'pair-0-a'; DELETE FROM models WHERE id = 'pair-1-a'; \
            INSERT INTO models (id, name, download_url, save_path) VALUES ('bypassed', 'x', 'https://example.org', 'a'); COMMIT")
        .await;
    in_sync(&server, &db.client).await;
    server.until("the mismatches are counted", |s| async { s.metric(MISMATCHES).await > 0.0 }).await;
    assert_eq!(server.metric(MISMATCHES).await, 3.0);
    server.until_logged("the audit found models that differ", 1).await;
    wait_for_audits(&server, 2.0).await;
    assert_eq!(server.metric(MISMATCHES).await, 3.0, "a corrected row was counted again");
    assert_eq!(difference(&server, &db.client).await, None);
}

//! Lost connections, lost bells, a server that is down: what there is stays served, and what changed arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use model_catalog::postgres::session;
use tokio::task::JoinHandle;

use crate::support::{Db, NOTIFY_ONLY, Server, database, migrated, sql, start_postgres};

const END_THE_LISTENER: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                                WHERE datname = current_database() AND application_name LIKE 'model-catalog%' AND pid <> pg_backend_pid()";
const ADD: &str = "INSERT INTO models (id, name, download_url, save_path) \
                   VALUES ('a', 'first', 'https://example.org/a', 'checkpoints/a')";

#[tokio::test]
async fn a_change_right_after_the_listener_was_ended_arrives() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    for number in 0..5 {
        assert!(db.sql(END_THE_LISTENER).await.is_some(), "there was a listener");
        db.sql(&format!("UPDATE models SET name = '{number}' WHERE id = 'a'")).await;
        server.until_named("a", &number.to_string()).await;
        server.until("it listens again", |s| async move { s.metric("catalog_listener_connected").await == 1.0 }).await;
    }
    assert_eq!(server.refreshes("full").await, 1.0, "a lost connection needs no full load");
    db.sql("UPDATE models SET name = 'by the bell' WHERE id = 'a'").await;
    server.until_named("a", "by the bell").await;
}

#[tokio::test]
async fn a_change_while_the_listener_is_away_arrives_with_it() {
    let db = Db::new().await;
    db.add("a").await;
    db.add("b").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let admin = session::connect(&database(&db.url.replace(&db.name, "postgres"))).await.unwrap();
    sql(&admin, &format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", db.name)).await;
    db.sql(END_THE_LISTENER).await;
    server.until("the loss is noticed", |s| async move { s.metric("catalog_listener_connected").await == 0.0 }).await;

    let bells = server.metric("catalog_notifications_total").await;
    db.sql("UPDATE models SET name = 'while away' WHERE id = 'a'").await;
    db.sql("DELETE FROM models WHERE id = 'b'").await;
    assert_eq!(server.field("a", "name").await, "a.safetensors");
    assert_eq!(server.get("/readyz").await.status, 200, "readiness hangs on the database");
    sql(&admin, &format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", db.name)).await;
    server.until_named("a", "while away").await;
    server.until_gone("b").await;
    assert_eq!(server.metric("catalog_notifications_total").await, bells, "no bell had a part in it");
    assert_eq!(server.refreshes("full").await, 1.0, "nor a full load");
}

#[tokio::test]
async fn the_heartbeat_heals_a_lost_bell() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, &[("CATALOG_POLL_INTERVAL", "100ms")]).await;
    let bells = server.metric("catalog_notifications_total").await;
    // As if the announcement had been lost: the change and its record, and no NOTIFY.
    db.sql(
        "BEGIN; SET LOCAL session_replication_role = replica; UPDATE models SET name = 'unannounced' WHERE id = 'a'; \
         INSERT INTO model_catalog.changes VALUES ('a', pg_current_xact_id(), clock_timestamp()) \
         ON CONFLICT (model_id) DO UPDATE SET xid = excluded.xid, changed_at = excluded.changed_at; COMMIT",
    )
    .await;
    server.until_named("a", "unannounced").await;
    assert_eq!(server.metric("catalog_notifications_total").await, bells);
}

#[tokio::test]
async fn a_start_without_postgres_waits_for_it() {
    let mut cluster = start_postgres(&[]);
    let url = cluster.url("postgres");
    sql(&migrated(&url).await, ADD).await;
    cluster.stop("INT").unwrap();

    let server = Server::spawn(&url, NOTIFY_ONLY).await;
    server.until("it has tried", |s| async move { s.logged("the database is unavailable") > 0 }).await;
    for path in ["/api/models/a", "/readyz"] {
        assert_eq!(server.get(path).await.status, 503, "{path}");
    }
    assert_eq!(server.get("/livez").await.status, 200);
    let batch = server.batch(r#"{"model_ids":["a"]}"#).await;
    assert_eq!((batch.status, batch.header("retry-after")), (503, "1"));
    assert_eq!(batch.json()["error"], "Catalog not loaded yet");

    cluster.resume().unwrap();
    server.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
    assert_eq!(server.field("a", "name").await, "first");
}

/// Asks until told to stop; every answer must be there and be good.
fn hammer(server: &Arc<Server>, stop: &Arc<AtomicBool>, answers: &Arc<AtomicU32>) -> JoinHandle<()> {
    let (server, stop, answers) = (Arc::clone(server), Arc::clone(stop), Arc::clone(answers));
    tokio::spawn(async move {
        while !stop.load(Relaxed) {
            for reply in [server.get("/api/models/a").await, server.get("/readyz").await] {
                assert_eq!(reply.status, 200, "{reply:?}");
            }
            answers.fetch_add(1, Relaxed);
            tokio::task::yield_now().await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_postgres_is_not_noticed_by_clients() {
    let mut cluster = start_postgres(&[]);
    let url = cluster.url("postgres");
    sql(&migrated(&url).await, ADD).await;
    let server = Arc::new(Server::start_with(&url, NOTIFY_ONLY).await);
    let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
    let clients: Vec<_> = (0..2).map(|_| hammer(&server, &stop, &answers)).collect();

    for signal in ["INT", "QUIT", "KILL"] {
        cluster.stop(signal).unwrap();
        server
            .until("the loss is noticed", |s| async move { s.metric("catalog_listener_connected").await == 0.0 })
            .await;
        let before = answers.load(Relaxed);
        server.until("many were answered without", |_| async { answers.load(Relaxed) > before + 50 }).await;
        cluster.resume().unwrap();

        let client = migrated(&url).await;
        sql(&client, &format!("UPDATE models SET name = 'after {signal}'")).await;
        server.until_named("a", &format!("after {signal}")).await;
        server.until("it listens", |s| async move { s.metric("catalog_listener_connected").await == 1.0 }).await;
        sql(&client, &format!("UPDATE models SET name = 'by the bell after {signal}'")).await;
        server.until_named("a", &format!("by the bell after {signal}")).await;
    }
    stop.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(server.refreshes("full").await, 1.0, "a restart of Postgres needs no full load");
}

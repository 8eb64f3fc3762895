//! Lost connections, lost notifications and a stopped Postgres: the catalog stays served and catches up afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use model_catalog::postgres::session;
use tokio::task::JoinHandle;

use crate::support::{Db, NOTIFY_ONLY, Server, database, migrated, sql, start_postgres};

const TERMINATE_LISTENER: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                                WHERE datname = current_database() AND application_name LIKE 'model-catalog%' AND pid <> pg_backend_pid()";
const ADD: &str = "INSERT INTO models (id, name, download_url, save_path) \
                   VALUES ('a', 'first', 'https://example.org/a', 'checkpoints/a')";

#[tokio::test]
async fn change_after_listener_termination_is_served() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    for number in 0..5 {
        assert!(db.sql(TERMINATE_LISTENER).await.is_some(), "no listener to terminate");
        db.sql(&format!("UPDATE models SET name = '{number}' WHERE id = 'a'")).await;
        server.until_named("a", &number.to_string()).await;
        server
            .until("the server listens again", |s| async move { s.metric("catalog_listener_connected").await == 1.0 })
            .await;
    }
    assert_eq!(server.refreshes("full").await, 1.0, "a lost connection caused a full read");
    db.sql("UPDATE models SET name = 'notified' WHERE id = 'a'").await;
    server.until_named("a", "notified").await;
}

#[tokio::test]
async fn change_while_disconnected_is_served_on_reconnect() {
    let db = Db::new().await;
    db.add("a").await;
    db.add("b").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let admin = session::connect(&database(&db.url.replace(&db.name, "postgres"))).await.unwrap();
    sql(&admin, &format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", db.name)).await;
    db.sql(TERMINATE_LISTENER).await;
    server
        .until("the connection is lost", |s| async move { s.metric("catalog_listener_connected").await == 0.0 })
        .await;

    let notifications = server.metric("catalog_notifications_total").await;
    db.sql("UPDATE models SET name = 'while disconnected' WHERE id = 'a'").await;
    db.sql("DELETE FROM models WHERE id = 'b'").await;
    assert_eq!(server.field("a", "name").await, "a.safetensors");
    assert_eq!(server.get("/readyz").await.status, 200, "readiness depends on the database");
    sql(&admin, &format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", db.name)).await;
    server.until_named("a", "while disconnected").await;
    server.until_gone("b").await;
    assert_eq!(server.metric("catalog_notifications_total").await, notifications, "the change came by a notification");
    assert_eq!(server.refreshes("full").await, 1.0, "the change came by a full read");
}

#[tokio::test]
async fn poll_picks_up_a_change_without_notification() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, &[("CATALOG_POLL_INTERVAL", "100ms")]).await;
    let notifications = server.metric("catalog_notifications_total").await;
    // As if the notification had been lost: the change and its row in `changes`, without NOTIFY.
    db.sql(
        "BEGIN; SET LOCAL session_replication_role = replica; UPDATE models SET name = 'not notified' WHERE id = 'a'; \
         INSERT INTO model_catalog.changes VALUES ('a', pg_current_xact_id(), clock_timestamp()); COMMIT",
    )
    .await;
    server.until_named("a", "not notified").await;
    assert_eq!(server.metric("catalog_notifications_total").await, notifications);
}

#[tokio::test]
async fn start_without_postgres_returns_503_until_it_is_up() {
    let mut cluster = start_postgres(&[]);
    let url = cluster.url("postgres");
    sql(&migrated(&url).await, ADD).await;
    cluster.stop("INT").unwrap();

    let server = Server::spawn(&url, NOTIFY_ONLY).await;
    server.until("connecting has failed", |s| async move { s.logged("the database is unavailable") > 0 }).await;
    for path in ["/api/models/a", "/readyz"] {
        assert_eq!(server.get(path).await.status, 503, "{path}");
    }
    assert_eq!(server.get("/livez").await.status, 200);
    let batch = server.batch(r#"{"model_ids":["a"]}"#).await;
    assert_eq!((batch.status, batch.header("retry-after")), (503, "1"));
    assert_eq!(batch.json()["error"], "Catalog not loaded yet");

    cluster.resume().unwrap();
    server.until("the server is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
    assert_eq!(server.field("a", "name").await, "first");
}

/// Sends requests until `stop` is set; every response must be 200.
fn spawn_client(server: &Arc<Server>, stop: &Arc<AtomicBool>, responses: &Arc<AtomicU32>) -> JoinHandle<()> {
    let (server, stop, responses) = (Arc::clone(server), Arc::clone(stop), Arc::clone(responses));
    tokio::spawn(async move {
        while !stop.load(Relaxed) {
            for reply in [server.get("/api/models/a").await, server.get("/readyz").await] {
                assert_eq!(reply.status, 200, "{reply:?}");
            }
            responses.fetch_add(1, Relaxed);
            tokio::task::yield_now().await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_postgres_does_not_affect_clients() {
    let mut cluster = start_postgres(&[]);
    let url = cluster.url("postgres");
    sql(&migrated(&url).await, ADD).await;
    let server = Arc::new(Server::start_with(&url, NOTIFY_ONLY).await);
    let (stop, responses) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
    let clients: Vec<_> = (0..2).map(|_| spawn_client(&server, &stop, &responses)).collect();

    for signal in ["INT", "QUIT", "KILL"] {
        cluster.stop(signal).unwrap();
        server
            .until("the connection is lost", |s| async move { s.metric("catalog_listener_connected").await == 0.0 })
            .await;
        let before = responses.load(Relaxed);
        server.until("requests are served without Postgres", |_| async { responses.load(Relaxed) > before + 50 }).await;
        cluster.resume().unwrap();

        let client = migrated(&url).await;
        sql(&client, &format!("UPDATE models SET name = 'after {signal}'")).await;
        server.until_named("a", &format!("after {signal}")).await;
        server
            .until("the server listens", |s| async move { s.metric("catalog_listener_connected").await == 1.0 })
            .await;
        sql(&client, &format!("UPDATE models SET name = 'notified after {signal}'")).await;
        server.until_named("a", &format!("notified after {signal}")).await;
    }
    stop.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(server.refreshes("full").await, 1.0, "a restart of Postgres caused a full read");
}

//! Rows that could harm a machine are rejected one by one, and each rejection is logged once.

use crate::support::{Db, NOTIFY_ONLY, Server};

const ESCAPING_PATH: &str = "UPDATE models SET save_path = '../../etc/passwd', name = 'evil' WHERE id = 'a'";

async fn wait_for_rejected(server: &Server, number: u64) {
    let reported = |s| async move { Server::get(s, "/readyz").await.json()["rejected"] == number };
    server.until(&format!("{number} rows are rejected"), reported).await;
    let metric = |s| async move { Server::metric(s, "catalog_models_rejected").await == number as f64 };
    server.until("the metric reports them", metric).await;
}

#[tokio::test]
async fn bad_row_is_rejected_alone_and_its_last_good_version_stays_served() {
    let db = Db::lenient().await;
    for id in ["a", "b", "c"] {
        db.add(id).await;
    }
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let good = server.get("/api/models/a").await;

    db.sql(&format!("BEGIN; {ESCAPING_PATH}; UPDATE models SET name = 'fine' WHERE id IN ('b', 'c'); COMMIT")).await;
    wait_for_rejected(&server, 1).await;
    assert_eq!(server.field("b", "name").await, "fine", "a valid row of the same transaction is not served");
    assert_eq!(server.field("c", "name").await, "fine");
    let served = server.get("/api/models/a").await;
    assert_eq!((served.status, &served.body), (200, &good.body), "the last good version is gone");
    server.until_logged("row rejected", 1).await;
    let line = server.log().into_iter().find(|line| line.contains("row rejected")).unwrap();
    assert!(line.contains("\"id\":\"a\"") && line.contains("save_path"), "{line}");

    // Further refreshes, of other rows and of this one with the same fault, do not log it again.
    db.sql("UPDATE models SET description = 'still bad' WHERE id = 'a'; UPDATE models SET name = 'n' WHERE id = 'b'")
        .await;
    server.until_named("b", "n").await;
    db.sql("SELECT model_catalog.reload()").await;
    server.until("a full read is done", |s| async move { s.refreshes("full").await == 2.0 }).await;
    wait_for_rejected(&server, 1).await;
    assert_eq!(server.get("/api/models/a").await.body, good.body, "a full read forgot the last good version");
    assert_eq!(server.logged("row rejected"), 1, "the same rejection was logged twice");

    db.sql("UPDATE models SET save_path = 'checkpoints/a', name = 'fixed' WHERE id = 'a'").await;
    server.until_named("a", "fixed").await;
    wait_for_rejected(&server, 0).await;

    db.sql(ESCAPING_PATH).await;
    wait_for_rejected(&server, 1).await;
    server.until_logged("row rejected", 2).await;
    db.sql("DELETE FROM models WHERE id = 'a'").await;
    server.until_gone("a").await;
    wait_for_rejected(&server, 0).await;
}

#[tokio::test]
async fn row_without_a_good_version_is_not_served() {
    let db = Db::lenient().await;
    db.add("good").await;
    db.add("a").await;
    db.sql(ESCAPING_PATH).await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    wait_for_rejected(&server, 1).await;
    assert_eq!(server.get("/api/models/a").await.status, 404, "served by the first load");

    db.add("late").await;
    server.until_named("late", "late.safetensors").await;
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path) VALUES ('scheme', 'x', 'file:///etc/passwd', 'x'), \
         ('absolute', 'x', 'https://example.org/x', '/etc/passwd'), ('fine', 'x', 'https://example.org/x', 'x')",
    )
    .await;
    server.until_named("fine", "x").await;
    wait_for_rejected(&server, 3).await;
    for id in ["a", "scheme", "absolute"] {
        assert_eq!(server.get(&format!("/api/models/{id}")).await.status, 404, "{id}");
    }
    assert_eq!(server.get("/readyz").await.json()["models"], 3);
}

/// A source table without a primary key, its view and its triggers.
const WITHOUT_PRIMARY_KEY: &str = "
    CREATE TABLE loose (id text, name text, path text DEFAULT 'x');
    DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT id, name, 'https://example.org/x'::text AS download_url,
        NULL::numeric AS file_size_gb, NULL::text AS hash, false AS auth_required, NULL::text AS auth_provider,
        path AS save_path, '[]'::jsonb AS dependencies, NULL::text AS description FROM loose;
    SELECT model_catalog.watch('loose', 'id')";

#[tokio::test]
async fn duplicate_ids_are_resolved_alike_on_every_replica() {
    let db = Db::lenient().await;
    db.sql(WITHOUT_PRIMARY_KEY).await;
    // Two ids are read by the first load and two by a delta, each pair of rows in both orders.
    db.sql(
        "INSERT INTO loose VALUES ('twice', 'x1'), ('twice', 'x2'), ('other', 'x'), ('twice2', 'x2'), ('twice2', 'x1')",
    )
    .await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    wait_for_rejected(&server, 2).await;
    db.sql("INSERT INTO loose VALUES ('later', 'x2'), ('later', 'x1'), ('later2', 'x1'), ('later2', 'x2')").await;
    wait_for_rejected(&server, 4).await;
    let second = Server::start_with(&db.url, NOTIFY_ONLY).await;
    for server in [&server, &second] {
        for id in ["twice", "twice2", "later", "later2"] {
            assert_eq!(server.field(id, "name").await, "x1", "{id}");
        }
    }
    assert_eq!(server.get("/readyz").await.json()["revision"], second.get("/readyz").await.json()["revision"]);
    let reason = "another row has the same id";
    server.until(reason, |s| std::future::ready(s.logged(reason) > 0)).await;

    db.sql("DELETE FROM loose WHERE name = 'x1'").await;
    wait_for_rejected(&server, 0).await;
    server.until_named("later", "x2").await;
    // Of a valid and an invalid row with the same id, the valid one is served.
    db.sql("INSERT INTO loose VALUES ('other', 'evil', '../x'), ('later', 'evil', '../x')").await;
    wait_for_rejected(&server, 2).await;
    assert_eq!((server.field("other", "name").await, server.field("later", "name").await), ("x".into(), "x2".into()));
    db.sql("DELETE FROM loose WHERE path = '../x'; DELETE FROM loose WHERE id = 'other'; INSERT INTO loose VALUES (NULL, 'x')")
        .await;
    server.until_gone("other").await;
    wait_for_rejected(&server, 0).await;
}

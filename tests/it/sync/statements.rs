//! Single statements: every kind is served, and statements without effect send no notification.

use serde_json::json;

use crate::support::change_log::{assert_unnoticed, notifications};
use crate::support::{Db, NOTIFY_ONLY, Server};

#[tokio::test]
async fn insert_update_delete_and_truncate_are_served() {
    let db = Db::new().await;
    db.add("a").await;
    db.add("b").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let empty = {
        let nothing = Db::new().await;
        Server::start(&nothing).await.get("/api/models/x").await.revision()
    };

    db.add("new").await;
    server.until_named("new", "new.safetensors").await;

    db.sql("UPDATE models SET name = 'updated', file_size_gb = 1.50, dependencies = '[\"a\"]' WHERE id = 'new'").await;
    server.until_named("new", "updated").await;
    let reply = server.get("/api/models/new").await.json();
    assert_eq!((&reply["file_size_gb"], &reply["dependencies"]), (&json!(1.5), &json!(["a"])));

    db.sql("UPDATE models SET id = 'moved' WHERE id = 'new'").await;
    server.until_named("moved", "updated").await;
    assert_eq!(server.get("/api/models/new").await.status, 404, "the old id is still served");

    db.sql("UPDATE models SET id = CASE id WHEN 'a' THEN 'b~' ELSE 'a' END WHERE id IN ('a', 'b')").await;
    server.until_named("b~", "a.safetensors").await;
    assert_eq!(server.field("a", "name").await, "b.safetensors", "ids swapped in one statement are not both served");

    db.sql("DELETE FROM models WHERE id = 'moved'").await;
    server.until_gone("moved").await;
    assert_eq!(server.refreshes("full").await, 1.0, "a row change caused a full read");

    db.sql("TRUNCATE models").await;
    server.until("the catalog is empty", |s| async move { s.get("/readyz").await.json()["models"] == 0 }).await;
    assert_eq!(
        server.get("/api/models/a").await.revision(),
        empty,
        "an emptied catalog has another revision than an empty one"
    );
    db.add("after").await;
    server.until_named("after", "after.safetensors").await;
}

#[tokio::test]
async fn statements_without_effect_send_no_notification() {
    let db = Db::new().await;
    db.add("a").await;
    db.add("b").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let upsert = "INSERT INTO models SELECT * FROM models ON CONFLICT (id) DO UPDATE SET name = excluded.name, \
                  download_url = excluded.download_url, dependencies = excluded.dependencies";
    let without_effect = [
        upsert,
        "INSERT INTO models SELECT * FROM models ON CONFLICT DO NOTHING",
        "UPDATE models SET name = name, description = description",
        "UPDATE models SET file_size_gb = NULL, hash = NULL WHERE id = 'a'",
        "UPDATE models SET name = 'none' WHERE id = 'no-such-model'",
        "DELETE FROM models WHERE id = 'no-such-model'",
        "INSERT INTO models SELECT * FROM models WHERE false",
        "BEGIN; UPDATE models SET name = name; COMMIT",
    ];
    assert_unnoticed(&db, &server, &without_effect).await;
    if db.has_merge().await {
        let merge = "MERGE INTO models m USING (SELECT id, name FROM models) s ON m.id = s.id \
                     WHEN MATCHED THEN UPDATE SET name = s.name WHEN NOT MATCHED THEN DO NOTHING";
        assert_unnoticed(&db, &server, &[merge]).await;
    }

    // A statement that leaves most rows unchanged records only the others.
    db.sql("UPDATE models SET description = CASE id WHEN 'b' THEN 'other' END WHERE id <> 'marker'").await;
    server.until("b changed", |s| async move { s.field("b", "description").await == "other" }).await;
    let recorded = "SELECT string_agg(model_id, ' ' ORDER BY model_id) FROM model_catalog.changes \
                    GROUP BY xid ORDER BY xid DESC LIMIT 1";
    assert_eq!(db.sql(recorded).await.as_deref(), Some("b"));
}

#[tokio::test]
async fn transaction_sends_one_notification() {
    let db = Db::new().await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let before = notifications(&db, &server).await;
    db.sql(
        "BEGIN; INSERT INTO models (id, name, download_url, save_path) \
         SELECT n::text, 'x', 'https://example.org/x', 'x' FROM generate_series(1, 500) n; \
         UPDATE models SET name = 'y' WHERE id <> 'marker'; DELETE FROM models WHERE id = '500'; COMMIT",
    )
    .await;
    server.until_named("499", "y").await;
    assert_eq!(
        notifications(&db, &server).await,
        before + 2.0,
        "expected one from the transaction and one from the marker"
    );
}

#[tokio::test]
async fn numeric_scale_does_not_change_the_revision() {
    let db = Db::new().await;
    // A numeric without a scale distinguishes 23.80 from 23.8: the row changes, the response does not.
    db.sql(
        "CREATE TABLE sizes (id text PRIMARY KEY, gb numeric); INSERT INTO sizes VALUES ('a', 23.8), ('b', 1);
         DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT id, id AS name, 'https://example.org/x'::text AS \
         download_url, gb AS file_size_gb, NULL::text AS hash, false AS auth_required, NULL::text AS auth_provider, \
         'x/y'::text AS save_path, '[]'::jsonb AS dependencies, NULL::text AS description FROM sizes;
         SELECT model_catalog.watch('sizes', 'id')",
    )
    .await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let before = server.get("/api/models/a").await;
    let refreshes = server.refreshes("delta").await;
    db.sql("UPDATE sizes SET gb = 23.80 WHERE id = 'a'").await;
    server.until("the delta is read", |s| async move { s.refreshes("delta").await > refreshes }).await;
    let after = server.get("/api/models/a").await;
    assert_eq!((after.revision(), &after.body), (before.revision(), &before.body));
    server.until_logged("\"changed\":0", 1).await;

    db.sql("UPDATE sizes SET gb = 23.81 WHERE id = 'a'").await;
    server.until("a real change is served", |s| async move { s.field("a", "file_size_gb").await == 23.81 }).await;
    assert_ne!(server.get("/api/models/a").await.revision(), before.revision());
}

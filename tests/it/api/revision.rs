//! `Catalog-Revision`: identifies the catalog that a response comes from.

use crate::support::raw::Raw;
use crate::support::{Db, Server};

async fn until_revision(server: &Server, what: &str, condition: impl Fn(&str) -> bool) {
    server.until(what, |s| async { condition(&s.get("/api/models/a").await.revision()) }).await;
}

#[tokio::test]
async fn every_response_carries_the_revision() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start(&db).await;
    let revision = server.get("/readyz").await.json()["revision"].as_str().unwrap().to_owned();
    assert!(revision.len() == 16 && revision.bytes().all(|b| b"0123456789abcdef".contains(&b)), "{revision}");

    let etag = server.get("/api/models/a").await.header("etag").to_owned();
    let batch = "/api/models/batch";
    for (method, path, body, status) in [
        ("GET", "/api/models/a", "", 200),
        ("HEAD", "/api/models/a", "", 200),
        ("GET", "/api/models/nope", "", 404),
        ("GET", "/api/models/%zz", "", 400),
        ("GET", "/nowhere", "", 404),
        ("DELETE", "/api/models/a", "", 405),
        ("GET", batch, "", 404),
        ("POST", batch, r#"{"model_ids":["a","nope"]}"#, 200),
        ("POST", batch, r#"{"model_ids":[]}"#, 200),
        ("POST", batch, "{", 400),
        ("POST", batch, r#"{"model_ids":[0]}"#, 400),
        ("POST", batch, &" ".repeat((1 << 20) + 1), 413),
    ] {
        let response = if status == 413 {
            // The whole body cannot be sent: the server stops reading.
            let mut raw = Raw::open(&server.address);
            raw.send(&format!("POST {batch} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len()));
            raw.response()
        } else {
            server.send(server.request(method, path, body)).await
        };
        assert_eq!((response.status, response.revision()), (status, revision.clone()), "{method} {path} {body}");
    }
    let mut request = server.request("GET", "/api/models/a", "");
    request.headers_mut().insert("if-none-match", etag.parse().unwrap());
    let response = server.send(request).await;
    assert_eq!((response.status, response.revision()), (304, revision));
}

#[tokio::test]
async fn revision_is_equal_on_replicas_and_after_a_restart() {
    let db = Db::new().await;
    for id in ["c", "a", "b"] {
        db.add(id).await;
    }
    let first = Server::start(&db).await;
    let revision = first.get("/api/models/a").await.revision();
    // The second replica reads the rows in another order, and by a full read instead of a delta.
    db.sql("CREATE TABLE again AS SELECT * FROM models ORDER BY id DESC; TRUNCATE models; INSERT INTO models SELECT * FROM again")
        .await;
    let second = Server::start(&db).await;
    assert_eq!(second.get("/api/models/a").await.revision(), revision);

    // A catalog updated by a delta equals one loaded after the change.
    db.sql("UPDATE models SET hash = 'x' WHERE id = 'b'; DELETE FROM models WHERE id = 'c'").await;
    until_revision(&first, "the change is served", |now| now != revision && !now.is_empty()).await;
    until_both_changes(&first).await;
    let changed = first.get("/api/models/a").await.revision();
    until_revision(&second, "the replica serves the same", |now| now == changed).await;
    drop(first);
    let restarted = Server::start(&db).await;
    assert_eq!(restarted.get("/api/models/a").await.revision(), changed);
}

/// Waits until `b` has its hash and `c` is gone.
async fn until_both_changes(server: &Server) {
    server
        .until("both changes are served", |s| async {
            s.get("/api/models/c").await.status == 404 && s.get("/api/models/b").await.json()["hash"] == "x"
        })
        .await;
}

#[tokio::test]
async fn reverted_change_restores_the_revision() {
    let db = Db::new().await;
    for id in ["a", "b"] {
        db.add(id).await;
    }
    let server = Server::start(&db).await;
    let revision = server.get("/api/models/a").await.revision();
    for (change, reverse) in [
        ("UPDATE models SET name = 'new' WHERE id = 'b'", "UPDATE models SET name = 'b.safetensors' WHERE id = 'b'"),
        ("UPDATE models SET id = 'd' WHERE id = 'b'", "UPDATE models SET id = 'b' WHERE id = 'd'"),
        (
            "INSERT INTO models (id, name, download_url, save_path) VALUES ('n', 'n', 'https://n.org', 'n')",
            "DELETE FROM models WHERE id = 'n'",
        ),
    ] {
        db.sql(change).await;
        until_revision(&server, "the revision changes", |now| now != revision).await;
        db.sql(reverse).await;
        until_revision(&server, "the revision is back", |now| now == revision).await;
    }
}

#[tokio::test]
async fn revision_is_stable_without_changes() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, &[("CATALOG_POLL_INTERVAL", "20ms")]).await;
    let revision = server.get("/api/models/a").await.revision();
    let deltas = "catalog_refreshes_total{kind=\"delta\",outcome=\"ok\"}";
    let full = "catalog_refreshes_total{kind=\"full\",outcome=\"ok\"}";

    // Updates that change nothing, a rolled-back delete, and a change reverted within its transaction.
    db.sql("UPDATE models SET name = name; BEGIN; DELETE FROM models; ROLLBACK").await;
    db.sql("BEGIN; UPDATE models SET hash = 'x'; UPDATE models SET hash = NULL; COMMIT").await;
    let before = server.metric(deltas).await;
    server.until("two heartbeats have run", |s| async move { s.metric(deltas).await >= before + 2.0 }).await;
    assert_eq!(server.get("/api/models/a").await.revision(), revision);

    // A full reload.
    let before = server.metric(full).await;
    db.sql("SELECT model_catalog.reload()").await;
    server.until("the full read is done", |s| async move { s.metric(full).await > before }).await;
    assert_eq!(server.get("/api/models/a").await.revision(), revision);
}

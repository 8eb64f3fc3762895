//! The shortest end-to-end test: a row is served, and so is its change.

use crate::support::{Db, Server};

#[tokio::test]
async fn row_and_its_change_are_served() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start(&db).await;
    let response = server.get("/api/models/a").await;
    assert_eq!((response.status, response.json()["id"].as_str()), (200, Some("a")), "{response:?}");

    db.sql("UPDATE models SET name = 'new' WHERE id = 'a'").await;
    server.until("the change is served", |s| async move { s.get("/api/models/a").await.json()["name"] == "new" }).await;
}

//! Notifications received by a server, rows of `model_catalog.changes`, and warnings to writers.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tokio_postgres::{AsyncMessage, NoTls};

use crate::support::{Db, Server};

/// Every row of `model_catalog.changes` with its transaction and position, so that any write changes the result.
pub async fn change_log(db: &Db) -> String {
    let all = "SELECT string_agg(concat_ws(' ', model_id, xid, changed_at, xmin, ctid), ', ' ORDER BY model_id) \
               FROM model_catalog.changes";
    db.sql(all).await.unwrap_or_default()
}

/// Notifications received by the server, including all sent before this call: they arrive in commit order, so this
/// commits a change of its own and waits for it.
pub async fn notifications(db: &Db, server: &Server) -> f64 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("marker {}", NUMBER.fetch_add(1, Relaxed));
    db.sql(&format!(
        "INSERT INTO models (id, name, download_url, save_path) \
         VALUES ('marker', '{name}', 'https://example.org/marker', 'marker') \
         ON CONFLICT (id) DO UPDATE SET name = excluded.name"
    ))
    .await;
    server.until_named("marker", &name).await;
    server.metric("catalog_notifications_total").await
}

/// Runs statements that must record no change, send no notification and keep the revision. A change made afterwards must
/// arrive, which shows that the server was listening.
pub async fn assert_unnoticed(db: &Db, server: &Server, statements: &[&str]) {
    let before = notifications(db, server).await;
    let (log, revision) = (change_log(db).await, server.get("/api/models/marker").await.revision());
    for statement in statements {
        db.sql(statement).await;
        assert_eq!(change_log(db).await, log, "a change was logged by {statement}");
        assert_eq!(server.get("/api/models/marker").await.revision(), revision, "a new revision by {statement}");
    }
    assert_eq!(notifications(db, server).await, before + 1.0, "one of these sent a notification: {statements:#?}");
}

/// The warnings that Postgres sends while it runs these statements.
pub async fn warnings(db: &Db, statements: &str) -> Vec<String> {
    let (client, mut connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
    let received = tokio::spawn(async move {
        let mut notices = Vec::new();
        while let Some(message) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message.unwrap() {
                assert_eq!(notice.severity(), "WARNING");
                notices.push(notice.message().to_owned());
            }
        }
        notices
    });
    client.batch_execute(statements).await.unwrap();
    drop(client);
    received.await.unwrap()
}

//! What is committed is served, soon and exactly, whatever way it was written and whatever breaks meanwhile.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::support::{Db, Server};

/// Every row of the log of changes with its place: no write to it leaves this as it was.
pub async fn logged(db: &Db) -> String {
    let all = "SELECT string_agg(concat_ws(' ', model_id, xid, changed_at, xmin, ctid), ', ' ORDER BY model_id) \
               FROM model_catalog.changes";
    db.sql(all).await.unwrap_or_default()
}

/// Announcements received so far; all that were sent before, because announcements come in the order of commits.
pub async fn bells(db: &Db, server: &Server) -> f64 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("heard {}", NUMBER.fetch_add(1, Relaxed));
    db.sql(&format!(
        "INSERT INTO models (id, name, download_url, save_path) \
         VALUES ('heard', '{name}', 'https://example.org/heard', 'heard') \
         ON CONFLICT (id) DO UPDATE SET name = excluded.name"
    ))
    .await;
    server.until_named("heard", &name).await;
    server.metric("catalog_notifications_total").await
}

/// Runs statements of which nobody may hear anything. That a change after them arrives shows that the silence was
/// no deafness.
pub async fn unheard(db: &Db, server: &Server, statements: &[&str]) {
    let before = bells(db, server).await;
    let (log, revision) = (logged(db).await, server.get("/api/models/heard").await.revision());
    for statement in statements {
        db.sql(statement).await;
        assert_eq!(logged(db).await, log, "a change was logged by {statement}");
        assert_eq!(server.get("/api/models/heard").await.revision(), revision, "a new revision by {statement}");
    }
    assert_eq!(bells(db, server).await, before + 1.0, "one of these rang the bell: {statements:#?}");
}

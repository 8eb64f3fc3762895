//! Concurrent migrations wait for each other, say for whom they wait, and not without end.

use std::io::{BufRead, BufReader};

use super::start;
use crate::support::Db;

/// The lock of `migrate`, taken by a session.
const LOCK: &str = "SELECT pg_advisory_lock(x'6d636174616c6f67'::bigint)";
const UNLOCK: &str = "SELECT pg_advisory_unlock(x'6d636174616c6f67'::bigint)";

#[tokio::test]
async fn migrate_says_for_whom_it_waits_and_continues_when_they_are_done() {
    let db = Db::empty().await;
    db.sql("SET application_name = 'other migration'").await;
    db.sql(LOCK).await;
    let mut child = start(&db.url, &[("CATALOG_LOG_FORMAT", "json")]);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let waiting =
        lines.find_map(|line| line.ok().filter(|line| line.contains("waiting for another migration"))).unwrap();
    let pid = db.sql("SELECT pg_backend_pid()").await.unwrap();
    assert!(waiting.contains(&format!("pid {pid} (other migration, ")), "{waiting}");
    db.sql(UNLOCK).await;
    assert!(child.wait().unwrap().success());
    assert!(lines.any(|line| line.unwrap().contains("the database is migrated")));
}

#[tokio::test]
async fn migrate_waits_for_a_bounded_time() {
    let db = Db::empty().await;
    db.sql(LOCK).await;
    let pid = db.sql("SELECT pg_backend_pid()").await.unwrap();
    let url = format!("{} options='-c lock_timeout=300ms'", db.url);
    let output = start(&url, &[]).wait_with_output().unwrap();
    let message = super::stderr(&output);
    assert!(!output.status.success() && message.contains("did not end within 300ms"), "{message}");
    assert!(message.contains(&format!("pid {pid} (model-catalog, idle since ")), "{message}");
    assert!(message.contains("SELECT pg_terminate_backend(PID)"), "{message}");
    assert_eq!(db.sql("SELECT to_regnamespace('model_catalog')").await, None);
}

#[tokio::test]
async fn migrate_does_not_wait_behind_a_long_transaction_of_a_writer() {
    let db = Db::new().await;
    db.sql("DROP VIEW model_catalog.entries; DROP TRIGGER model_catalog_insert ON models").await;
    db.sql("BEGIN; LOCK TABLE models IN ROW EXCLUSIVE MODE").await;
    let url = format!("{} options='-c lock_timeout=300ms'", db.url);
    let output = start(&url, &[]).wait_with_output().unwrap();
    let message = super::stderr(&output);
    assert!(!output.status.success() && message.contains("lock timeout [55P03]"), "{message}");
    db.sql("ROLLBACK").await;
    super::run(&url, &[]);
}

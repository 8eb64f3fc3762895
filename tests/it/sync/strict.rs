//! Rows that servers reject are reported in the session that writes them, and refused in strict mode.

use crate::support::change_log::warnings;
use crate::support::{Db, NOTIFY_ONLY, Server, sql};

const BAD_PATH: &str = "UPDATE models SET save_path = '../x' WHERE id = 'a'";
const WARNING: &str = "model \"a\" will not be served: save_path escapes the models folder: it must be relative to the models \
                       folder, without `..` and without backslashes";

async fn refusal(db: &Db, statement: &str) -> String {
    let error = db.client.batch_execute(statement).await.expect_err(statement);
    assert_eq!(error.code().unwrap().code(), "23514", "{error:?}");
    let error = error.as_db_error().unwrap();
    assert_eq!(error.detail(), Some("Rows that servers reject are refused in strict mode."));
    assert_eq!(error.hint(), Some("SELECT model_catalog.strict(false) makes this a warning."));
    error.message().to_owned()
}

#[tokio::test]
async fn bad_rows_are_reported_in_the_session_that_writes_them() {
    let db = Db::lenient().await;
    for id in ["a", "b"] {
        db.add(id).await;
    }
    assert_eq!(warnings(&db, BAD_PATH).await, [WARNING]);
    assert_eq!(db.sql("SELECT save_path FROM models WHERE id = 'a'").await.as_deref(), Some("../x"));
    assert_eq!(warnings(&db, "UPDATE models SET description = 'still bad'").await, [WARNING]);
    assert_eq!(warnings(&db, "UPDATE models SET description = 'good' WHERE id = 'b'").await, [""; 0]);
    assert_eq!(warnings(&db, "UPDATE models SET dependencies = '[\"missing\"]' WHERE id = 'b'").await, [""; 0]);
    assert_eq!(warnings(&db, "DELETE FROM models").await, [""; 0]);
    let many = "INSERT INTO models (id, name, download_url, save_path) \
                SELECT n, 'x', 'https://example.org/x', repeat('../', n % 2) || 'x' FROM generate_series(1, 101) n";
    let line = "51 of 101 changed models will not be served: SELECT * FROM model_catalog.problems;";
    assert_eq!(warnings(&db, many).await, [line]);
}

#[tokio::test]
async fn strict_mode_refuses_bad_rows_only() {
    let db = Db::new().await;
    db.add("a").await;
    assert_eq!(refusal(&db, BAD_PATH).await, WARNING.replace("will", "would"));
    assert_eq!(db.sql("SELECT save_path FROM models").await.as_deref(), Some("checkpoints/a"));
    db.sql("UPDATE models SET hash = 'of no known kind', dependencies = '[\"missing\"]'").await;
    let mirror = "UPDATE models SET mirrors = '[\"https://a.example/x\", \"ftp://b.example/x\"]'";
    assert!(refusal(&db, mirror).await.contains("mirrors[1] has the scheme `ftp`"));
    let scheme = "UPDATE models SET download_url = 's3://bucket/a'";
    assert!(refusal(&db, scheme).await.contains("has the scheme `s3`"));
    db.sql("UPDATE model_catalog.state SET url_schemes = '{https,s3}'").await;
    db.sql(scheme).await;
    db.sql("SELECT model_catalog.strict(false)").await;
    db.sql(BAD_PATH).await;
    db.sql("SELECT model_catalog.strict(true); DELETE FROM models").await;
}

/// A transaction with an old snapshot sees a row that another one has renamed since, beside its own new row of that id.
#[tokio::test]
async fn old_snapshot_does_not_make_a_row_look_like_a_second_one() {
    let db = Db::new().await;
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        db.add("a").await;
        let old = db.connect().await;
        sql(&old, &format!("BEGIN ISOLATION LEVEL {isolation}; SELECT count(*) FROM pg_class")).await;
        db.sql("UPDATE models SET id = 'renamed'").await;
        let insert = "INSERT INTO models SELECT 'a', 'new', download_url, 1, NULL, false, NULL, save_path FROM models";
        sql(&old, insert).await;
        sql(&old, "COMMIT").await;
        assert_eq!(db.sql("SELECT count(*) FROM model_catalog.problems").await.as_deref(), Some("0"));
        db.sql("DELETE FROM models").await;
    }
}

#[tokio::test]
async fn unreadable_view_never_fails_a_write() {
    let db = Db::new().await;
    db.add("a").await;
    let view = "DROP VIEW IF EXISTS model_catalog.entries; \
                CREATE VIEW model_catalog.entries AS SELECT id, name, download_url, (1 / (length(name) - 4))::numeric AS \
                file_size_gb, hash, auth_required, auth_provider, save_path, dependencies, description FROM models";
    db.sql(view).await;
    let unchecked = "the changed models could not be checked: ";
    let update = "UPDATE models SET name = 'four' WHERE id = 'a'";
    assert_eq!(warnings(&db, update).await, [format!("{unchecked}division by zero")]);
    db.sql("DROP VIEW model_catalog.entries").await;
    let missing = format!("{unchecked}relation \"model_catalog.entries\" does not exist");
    assert_eq!(warnings(&db, "UPDATE models SET name = 'other'").await, [missing]);
    // The warning itself can't be sent to a client whose encoding lacks a character of the id.
    db.sql(&format!("{}; SELECT model_catalog.strict(false)", view.replace("length(name) - 4", "1"))).await;
    db.sql("UPDATE models SET id = '模型'").await;
    let warned = warnings(&db, "SET client_encoding = 'LATIN1'; UPDATE models SET save_path = '/x'").await;
    assert!(matches!(&warned[..], [text] if text.starts_with(unchecked)), "{warned:?}");
    assert_eq!(db.sql("SELECT save_path FROM models").await.as_deref(), Some("/x"));
}

#[tokio::test]
async fn replicas_differ_after_a_bad_row_and_cannot_in_strict_mode() {
    for strict in [false, true] {
        let db = if strict { Db::new().await } else { Db::lenient().await };
        db.add("a").await;
        let before = Server::start_with(&db.url, NOTIFY_ONLY).await;
        assert_eq!(db.client.batch_execute(BAD_PATH).await.is_err(), strict);
        db.add("b").await;
        before.until_named("b", "b.safetensors").await;
        let later = Server::start_with(&db.url, NOTIFY_ONLY).await;
        let revision = async |server: &Server| server.get("/readyz").await.json()["revision"].clone();
        assert_eq!(revision(&before).await == revision(&later).await, strict);
        let revisions = "SELECT count(DISTINCT revision) FROM model_catalog.fleet";
        let shown = if strict { "1" } else { "2" };
        before.until("the fleet shows both", |_| async { db.sql(revisions).await.as_deref() == Some(shown) }).await;
    }
}

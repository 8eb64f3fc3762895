//! Recorded ids that neither the view nor the catalog has, and ids that are equal to others under the collation of their
//! column.

use tokio_postgres::error::SqlState;

use crate::support::consistency::full_reads;
use crate::support::{Db, NOTIFY_ONLY, Server, skip};

const UNKNOWN: &str = "catalog_unknown_ids_total";
const AUDITS: &str = "catalog_refreshes_total{kind=\"audit\",outcome=\"ok\"}";
const MISMATCHES: &str = "catalog_audit_mismatches_total";

/// The statement that creates the view over `from` with these expressions.
fn view(id: &str, name: &str, from: &str) -> String {
    format!(
        "DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT {id} AS id, {name} AS name, \
         'https://example.org/x'::text AS download_url, NULL::numeric AS file_size_gb, NULL::text AS hash, \
         false AS auth_required, NULL::text AS auth_provider, 'x/y'::text AS save_path, '[]'::jsonb AS dependencies, \
         NULL::text AS description FROM {from};"
    )
}

#[tokio::test]
async fn changes_recorded_under_surrogate_ids_are_found_by_an_audit_at_once() {
    let db = Db::new().await;
    db.sql(&format!(
        "CREATE TABLE parent (id int PRIMARY KEY, slug text UNIQUE, deleted boolean NOT NULL DEFAULT false);
         CREATE TABLE child (parent int REFERENCES parent, name text);
         INSERT INTO parent VALUES (1, 'one', false), (2, 'draft', true); INSERT INTO child VALUES (1, 'first'), (2, 'first'); {}
         SELECT model_catalog.watch('parent', 'slug'); SELECT model_catalog.watch('child', 'parent')",
        view("p.slug", "c.name", "parent p JOIN child c ON c.parent = p.id WHERE NOT p.deleted")
    ))
    .await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    server.until_named("one", "first").await;
    let full = full_reads(&server, 1.0).await;

    db.sql("UPDATE child SET name = 'second' WHERE parent = 1").await;
    server.until_named("one", "second").await;
    assert_eq!((server.metric(UNKNOWN).await, server.metric(MISMATCHES).await), (1.0, 1.0), "{:#?}", server.log());
    server.until_logged("ids were recorded that neither the view nor the catalog has", 1).await;
    db.sql("DELETE FROM child WHERE parent = 1").await;
    server.until_gone("one").await;

    // Rows that the view leaves out: counted and audited, and nothing differs. The log line comes once.
    let (audits, mismatches) = (server.metric(AUDITS).await, server.metric(MISMATCHES).await);
    db.sql("UPDATE parent SET slug = 'draft-2' WHERE id = 2").await;
    server.until("an audit was made", async |s: &Server| s.metric(AUDITS).await > audits).await;
    assert_eq!((server.metric(UNKNOWN).await, server.metric(MISMATCHES).await), (4.0, mismatches));
    server.until_logged("ids were recorded that neither the view nor the catalog has", 1).await;
    assert_eq!(server.refreshes("full").await, full);
}

#[tokio::test]
async fn ids_that_a_collation_calls_equal_are_different_models() {
    let db = Db::new().await;
    let collation = "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    // From version 16 on, pg_collation has ICU's `unicode` in builds without ICU, too.
    if let Err(error) = db.client.batch_execute(collation).await {
        assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{error:?}");
        return skip("this Postgres has no ICU");
    }
    db.sql(&format!(
        "CREATE TABLE named (id text COLLATE any_case PRIMARY KEY, name text); {} SELECT model_catalog.watch('named', 'id')",
        view("id", "name", "named")
    ))
    .await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let full = full_reads(&server, 1.0).await;
    db.sql("INSERT INTO named VALUES ('Foo', 'x')").await;
    server.until_named("Foo", "x").await;
    db.sql("UPDATE named SET id = 'foo'").await;
    server.until_named("foo", "x").await;
    assert_eq!(server.get("/api/models/Foo").await.status, 404);
    assert_eq!(server.refreshes("full").await, full);
}

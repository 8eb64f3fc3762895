//! Changes to what the view depends on that no trigger tells of: its definition, partitions, triggers, swapped tables.
//! They are found at the next heartbeat, without `reload()`, and tables that are not watched are named.

use serde_json::json;

use crate::support::consistency::full_reads;
use crate::support::{Db, Server, TempFolder};

const POLL: &[(&str, &str)] = &[("CATALOG_POLL_INTERVAL", "50ms")];
const UNWATCHED: &str = "catalog_unwatched_tables";

/// The statement that replaces the view by one over `from`, whose columns are `id` and `name`.
fn view(from: &str, description: &str) -> String {
    format!(
        "CREATE OR REPLACE VIEW model_catalog.entries AS SELECT id, name, 'https://example.org/x'::text AS download_url, \
         NULL::numeric AS file_size_gb, NULL::text AS hash, false AS auth_required, NULL::text AS auth_provider, \
         'x/y'::text AS save_path, '[]'::jsonb AS dependencies, {description} AS description FROM {from};"
    )
}

/// A database with a view over a table `parts`, watched by `id`, and a server that polls.
async fn start(settings: &[(&str, &str)]) -> (Db, Server) {
    let db = Db::new().await;
    db.sql(&format!(
        "DROP VIEW model_catalog.entries; DROP TABLE models;
         CREATE TYPE mood AS ENUM ('good', 'bad');
         CREATE TABLE parts (id text, name text, mood mood DEFAULT 'good') PARTITION BY LIST (id);
         CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
         CREATE FUNCTION inner_label() RETURNS text STABLE LANGUAGE sql RETURN 'first';
         CREATE FUNCTION label() RETURNS text STABLE LANGUAGE sql RETURN inner_label();
         CREATE VIEW below AS SELECT id, name, mood::text || label() AS text FROM parts;
         {} INSERT INTO parts VALUES ('a', 'first');
         SELECT model_catalog.watch('parts', 'id')",
        view("below", "text")
    ))
    .await;
    let server = Server::start_with(&db.url, settings).await;
    (db, server)
}

async fn until_described(server: &Server, description: &str) {
    let what = format!("the description is {description}");
    server.until(&what, async |s: &Server| s.field("a", "description").await == description).await;
}

async fn until_unwatched(server: &Server, tables: &[&str]) {
    let listed = async |s: &Server| s.get("/api/catalog").await.json()["unwatched_tables"] == json!(tables);
    server.until(&format!("the unwatched tables are {tables:?}"), listed).await;
    assert_eq!(server.metric(UNWATCHED).await, tables.len() as f64);
}

#[tokio::test]
async fn changes_of_definitions_are_served_without_reload() {
    let (db, server) = start(POLL).await;
    until_described(&server, "goodfirst").await;
    let first = full_reads(&server, 1.0).await;
    for (change, description) in [
        (view("below", "text || '!'"), "goodfirst!"),
        (
            "CREATE OR REPLACE VIEW below AS SELECT id, name, mood || '-' || label() AS text FROM parts".into(),
            "good-first!",
        ),
        (
            "CREATE OR REPLACE FUNCTION label() RETURNS text STABLE LANGUAGE sql RETURN inner_label() || '?'".into(),
            "good-first?!",
        ),
        (
            "CREATE OR REPLACE FUNCTION inner_label() RETURNS text STABLE LANGUAGE sql RETURN 'second'".into(),
            "good-second?!",
        ),
        ("ALTER TYPE mood RENAME VALUE 'good' TO 'fine'".into(), "fine-second?!"),
        (format!("DROP VIEW model_catalog.entries; {}", view("below", "name")), "first"),
    ] {
        db.sql(&change).await;
        until_described(&server, description).await;
    }
    assert_eq!(server.metric("catalog_audit_mismatches_total").await, 0.0);
    assert_eq!(full_reads(&server, first + 6.0).await, first + 6.0, "{:#?}", server.log());
    until_unwatched(&server, &[]).await;
}

#[tokio::test]
async fn maintenance_and_changes_of_rows_do_not_change_the_structure() {
    let (db, server) = start(POLL).await;
    let first = full_reads(&server, 1.0).await;
    for statement in [
        "VACUUM FULL parts_a",
        "VACUUM (FREEZE, ANALYZE)",
        "VACUUM FULL pg_rewrite",
        "VACUUM FULL pg_trigger",
        "CREATE INDEX ON parts (id)",
        "CREATE TABLE other (id int)",
        "ALTER TABLE parts ADD COLUMN extra text",
        "GRANT SELECT ON parts TO PUBLIC",
        "UPDATE parts SET name = 'second'",
    ] {
        db.sql(statement).await;
    }
    server.until_named("a", "second").await;
    let heartbeats = "catalog_refreshes_total{kind=\"delta\",outcome=\"ok\"}";
    let before = server.metric(heartbeats).await;
    server.until("there were some heartbeats", async |s: &Server| s.metric(heartbeats).await > before + 3.0).await;
    assert_eq!(server.refreshes("full").await, first, "{:#?}", server.log());
}

#[tokio::test]
async fn attached_partitions_are_served_and_named_until_they_are_watched() {
    let (db, server) = start(POLL).await;
    until_unwatched(&server, &[]).await;
    db.sql(
        "CREATE TABLE parts_b (LIKE parts); INSERT INTO parts_b VALUES ('b', 'attached');
         ALTER TABLE parts ATTACH PARTITION parts_b FOR VALUES IN ('b')",
    )
    .await;
    server.until_named("b", "attached").await;
    until_unwatched(&server, &["public.parts_b"]).await;
    server.until_logged("tables of the view are not watched", 1).await;
    db.sql("SELECT model_catalog.watch('parts', 'id')").await;
    until_unwatched(&server, &[]).await;
    db.sql("UPDATE parts_b SET name = 'direct'").await;
    server.until_named("b", "direct").await;
    db.sql("ALTER TABLE parts DETACH PARTITION parts_b").await;
    server.until_gone("b").await;
}

#[tokio::test]
async fn changes_while_triggers_are_disabled_are_served() {
    let (db, server) = start(POLL).await;
    db.sql(
        "BEGIN; ALTER TABLE parts_a DISABLE TRIGGER ALL; UPDATE parts_a SET name = 'hidden';
         ALTER TABLE parts_a ENABLE TRIGGER ALL; COMMIT",
    )
    .await;
    server.until_named("a", "hidden").await;
    db.sql("ALTER TABLE parts_a DISABLE TRIGGER model_catalog_update").await;
    until_unwatched(&server, &["public.parts_a"]).await;
    db.sql("ALTER TABLE parts_a ENABLE ALWAYS TRIGGER model_catalog_update").await;
    until_unwatched(&server, &[]).await;
}

#[tokio::test]
async fn swapped_tables_are_named() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, POLL).await;
    db.sql(
        "BEGIN; CREATE TABLE models_new (LIKE models INCLUDING ALL); ALTER TABLE models RENAME TO models_old;
         ALTER TABLE models_new RENAME TO models; COMMIT",
    )
    .await;
    until_unwatched(&server, &["public.models"]).await;
    server.until_named("a", "a.safetensors").await;
}

#[tokio::test]
async fn start_from_a_file_of_another_structure_loads_everything() {
    let folder = TempFolder::new("structure");
    let file = folder.join("catalog");
    let settings = [("CATALOG_SNAPSHOT_FILE", file.to_str().unwrap()), ("CATALOG_POLL_INTERVAL", "1h")];
    let (db, server) = start(&settings).await;
    server.until("the file is written", |_| std::future::ready(file.exists())).await;
    drop(server);
    let server = Server::start_with(&db.url, &settings).await;
    let deltas = "catalog_refreshes_total{kind=\"delta\",outcome=\"ok\"}";
    server.until("a delta was read", async |s: &Server| s.metric(deltas).await > 0.0).await;
    assert_eq!(server.refreshes("full").await, 0.0, "the file belongs to this structure: {:#?}", server.log());
    until_described(&server, "goodfirst").await;
    drop(server);
    db.sql(&view("below", "name")).await;
    let server = Server::start_with(&db.url, &settings).await;
    until_described(&server, "first").await;
}

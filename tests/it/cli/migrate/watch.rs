//! `watch()` and `reload()` with unusual tables, columns, types and views.

use model_catalog::base::error_chain::chain;

use super::{epoch, fingerprint};
use crate::support::consistency::full_reads;
use crate::support::{Db, NOTIFY_ONLY, Server};

/// A view over one table with fixed values except for id and name.
fn view(id: &str, name: &str, from: &str) -> String {
    format!(
        "DROP VIEW model_catalog.entries; \
         CREATE VIEW model_catalog.entries AS SELECT {id}::text AS id, {name}::text AS name, \
         'https://example.org/x'::text AS download_url, NULL::numeric AS file_size_gb, NULL::text AS hash, \
         false AS auth_required, NULL::text AS auth_provider, 'x/y'::text AS save_path, '[]'::jsonb AS dependencies, \
         NULL::text AS description FROM {from};"
    )
}

const TYPES: &str = "CREATE TYPE taste AS ENUM ('sweet', 'sour'); CREATE DOMAIN slug AS varchar CHECK (value ~ '^[a-z/]+$'); \
                     CREATE DOMAIN number AS bigint; CREATE TYPE pair AS (family text, size int);";

/// Watches a table and checks that each kind of change in it is served.
async fn assert_followed(table: &str, column: &str, id_type: &str, ids: [&str; 2]) {
    let db = Db::new().await;
    let [first, second] = ids;
    let quoted = table.replace('\'', "''");
    let name = column.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(column);
    let argument = name.replace("\"\"", "\"").replace('\'', "''");
    // Columns with names that a trigger function might use for its own variables.
    let create = format!("CREATE TABLE {table} ({column} {id_type}, n text, o text, u text, t text, id2 text);");
    db.sql(&format!("CREATE SCHEMA \"Odd Schema; \"\"x\"\"\"; {TYPES} {create}")).await;
    db.sql(&format!("{} SELECT model_catalog.watch('{quoted}', '{argument}')", view(column, "id2", table))).await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;

    db.sql(&format!("INSERT INTO {table} ({column}, id2) VALUES ('{first}', 'inserted')")).await;
    server.until_named(first, "inserted").await;
    db.sql(&format!("UPDATE {table} SET id2 = 'updated'")).await;
    server.until_named(first, "updated").await;
    db.sql(&format!("UPDATE {table} SET {column} = '{second}'")).await;
    server.until_named(second, "updated").await;
    assert!(server.field(first, "id").await.is_null());
    db.sql(&format!("DELETE FROM {table}")).await;
    server.until_gone(second).await;
    assert_eq!(server.refreshes("full").await, 1.0);
    db.sql(&format!("TRUNCATE {table}")).await;
    server.until("TRUNCATE causes a full read", |s| async move { s.refreshes("full").await == 2.0 }).await;
}

#[tokio::test]
async fn table_and_column_names_are_quoted() {
    assert_followed("\"Modèles; DROP TABLE models --\"", "\"Model \"\"Id\"\"\"", "text PRIMARY KEY", ["a", "b"]).await;
    assert_followed("\"Odd Schema; \"\"x\"\"\".\"select\"", "\"user's id\"", "varchar(9)", ["a", "b/c"]).await;
    assert_followed("\"new_rows\"", "\"%I %s\"", "text", ["a%b", "b\"c"]).await;
}

#[tokio::test]
async fn ids_of_any_type_are_followed() {
    assert_followed("numbered", "id", "bigint PRIMARY KEY", ["1", "-20"]).await;
    let ids = ["7f3c0a52-9d1e-4a7b-8f0e-2f6d5b1c9a01", "00000000-0000-4000-8000-000000000000"];
    assert_followed("identified", "uid", "uuid PRIMARY KEY", ids).await;
    assert_followed("tasted", "taste", "taste PRIMARY KEY", ["sweet", "sour"]).await;
    assert_followed("named", "slug", "slug PRIMARY KEY", ["a/b", "c"]).await;
    assert_followed("counted", "number", "number PRIMARY KEY", ["7", "8"]).await;
    assert_followed("padded", "code", "char(4) PRIMARY KEY", ["abcd", "efgh"]).await;
    assert_followed("paired", "pair", "pair", ["(flux,12)", "(sdxl,3)"]).await;
    assert_followed("dated", "day", "date PRIMARY KEY", ["2026-11-22", "2026-11-23"]).await;
    assert_followed("addressed", "host", "inet PRIMARY KEY", ["10.0.0.1/32", "10.0.0.0/8"]).await;
}

#[tokio::test]
async fn case_insensitive_ids_are_compared_by_their_text() {
    let db = Db::new().await;
    let available = db.sql("SELECT name FROM pg_available_extensions WHERE name = 'citext'").await;
    assert!(available.is_some(), "this Postgres lacks its contrib extensions");
    db.sql("CREATE EXTENSION citext; CREATE TABLE loose (id citext PRIMARY KEY, name citext)").await;
    db.sql(&format!("{} SELECT model_catalog.watch('loose', 'id')", view("id", "name", "loose"))).await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    db.sql("INSERT INTO loose VALUES ('Flux', 'first')").await;
    server.until_named("Flux", "first").await;
    // Equal for citext, but the served text changes.
    db.sql("UPDATE loose SET name = 'FIRST'").await;
    server.until_named("Flux", "FIRST").await;
    db.sql("UPDATE loose SET id = 'flux' WHERE id = 'FLUX'").await;
    server.until_named("flux", "FIRST").await;
    server.until_gone("Flux").await;
    assert_eq!(server.refreshes("full").await, 1.0);
}

#[tokio::test]
async fn watch_is_idempotent() {
    let db = Db::new().await;
    db.add("a").await;
    let before = fingerprint(&db).await;
    db.sql("SELECT model_catalog.watch('public.models', 'id')").await;
    db.sql("SET search_path = ''; SELECT model_catalog.watch('public.models', 'id'); RESET search_path").await;
    assert_eq!(fingerprint(&db).await, before);

    // Another column replaces the triggers and causes a full read.
    let before = epoch(&db).await;
    db.sql("SELECT model_catalog.watch('models', 'name')").await;
    assert_ne!(epoch(&db).await, before);
    db.sql("UPDATE models SET hash = 'x'").await;
    let log = "SELECT string_agg(model_id, ' ' ORDER BY model_id) FROM model_catalog.changes";
    assert_eq!(db.sql(log).await.as_deref(), Some("a a.safetensors"));
}

/// The notices that Postgres sends while it runs these statements.
async fn notices(db: &Db, statements: &str) -> Vec<String> {
    let (client, mut connection) = tokio_postgres::connect(&db.url, tokio_postgres::NoTls).await.unwrap();
    let received = tokio::spawn(async move {
        let mut notices = Vec::new();
        while let Some(message) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let tokio_postgres::AsyncMessage::Notice(notice) = message.unwrap() {
                notices.push(notice.message().to_owned());
            }
        }
        notices
    });
    client.batch_execute(statements).await.unwrap();
    drop(client);
    received.await.unwrap()
}

#[tokio::test]
async fn watch_sends_no_notices() {
    let db = Db::new().await;
    assert_eq!(notices(&db, "DO $$ BEGIN RAISE NOTICE 'received'; END $$").await, ["received"]);
    let table = "CREATE TABLE fresh (id text PRIMARY KEY) PARTITION BY HASH (id); \
                 CREATE TABLE fresh_0 PARTITION OF fresh FOR VALUES WITH (MODULUS 1, REMAINDER 0);";
    assert_eq!(notices(&db, &format!("{table} SELECT model_catalog.watch('fresh', 'id')")).await, [""; 0]);
    let later = "SELECT model_catalog.watch('fresh', 'id'); ALTER TABLE fresh ADD uid text; \
                 SELECT model_catalog.watch('fresh', 'uid')";
    assert_eq!(notices(&db, later).await, [""; 0]);
    // The triggers are replaced: they have only the new column, and are enabled.
    let columns = "SELECT string_agg(DISTINCT concat_ws(' ', tgrelid::regclass, encode(tgargs, 'escape'), tgenabled), ', ') \
                   FROM pg_trigger WHERE tgrelid IN ('fresh'::regclass, 'fresh_0'::regclass) AND tgname LIKE 'model_catalog%'";
    assert_eq!(db.sql(columns).await.as_deref(), Some("fresh uid\\000 O, fresh_0 uid\\000 O"));
}

#[tokio::test]
async fn watch_rejects_missing_columns() {
    let db = Db::new().await;
    db.sql("CREATE TABLE other (id text, gone text); ALTER TABLE other DROP COLUMN gone").await;
    let before = fingerprint(&db).await;
    for column in ["uid", "gone", "ctid", "ID", "........pg.dropped.2........"] {
        let error = db.client.batch_execute(&format!("SELECT model_catalog.watch('other', '{column}')")).await;
        let message = chain(&error.unwrap_err());
        assert!(message.contains(&format!("column \"{column}\" of table public.other does not exist")), "{message}");
        assert!(message.contains("The second argument of watch()"), "no hint: {message}");
    }
    assert_eq!(fingerprint(&db).await, before);
}

#[tokio::test]
async fn reload_applies_a_changed_view_on_every_replica() {
    let db = Db::new().await;
    db.add("a").await;
    let fleet = [Server::start_with(&db.url, NOTIFY_ONLY).await, Server::start_with(&db.url, NOTIFY_ONLY).await];
    db.sql(&view("id", "upper(name)", "models WHERE id <> 'hidden'")).await;
    db.add("hidden").await;
    for server in &fleet {
        assert_eq!(server.field("a", "name").await, "a.safetensors", "no notification was sent yet");
    }
    db.sql("SELECT model_catalog.reload()").await;
    for server in &fleet {
        server.until_named("a", "A.SAFETENSORS").await;
        assert!(server.field("hidden", "id").await.is_null());
        assert_eq!(full_reads(server, 2.0).await, 2.0);
    }
    db.sql("UPDATE models SET name = 'after' WHERE id = 'a'").await;
    for server in &fleet {
        server.until_named("a", "AFTER").await;
        assert_eq!(server.refreshes("full").await, 2.0, "one reload, one full read");
    }
}

#[tokio::test]
async fn view_of_the_wrong_types_keeps_the_last_catalog() {
    let db = Db::new().await;
    db.sql("INSERT INTO models (id, name, download_url, save_path) VALUES ('1', 'good', 'https://example.org/x', 'x')")
        .await;
    let server = Server::start_with(&db.url, &[("CATALOG_POLL_INTERVAL", "200ms")]).await;
    // CREATE OR REPLACE VIEW keeps the types, but DROP and CREATE can change them.
    db.sql(&format!(
        "BEGIN; {} SELECT model_catalog.reload(); COMMIT",
        view("id", "name", "models").replace("id::text AS id", "id::int AS id")
    ))
    .await;
    // A server started now has no catalog, rather than an empty one.
    let started = Server::spawn(&db.url, &[("CATALOG_POLL_INTERVAL", "200ms")]).await;
    for server in [&server, &started] {
        server.until("the failed load is logged", |s| async move { s.logged("the catalog can't be read") > 0 }).await;
    }
    assert_eq!(server.field("1", "name").await, "good", "{:#?}", server.log());
    assert_eq!(started.get("/readyz").await.status, 503);

    db.sql(&format!("BEGIN; {} SELECT model_catalog.reload(); COMMIT", view("id", "'fixed'", "models"))).await;
    for server in [&server, &started] {
        server.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
        server.until_named("1", "fixed").await;
    }
}

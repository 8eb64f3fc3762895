//! `migrate --bare`: everything except the default table, and a server that waits for a view.

use super::{fingerprint, start_with, stderr};
use crate::support::{Db, NOTIFY_ONLY, Server, TempFolder};

fn run_bare(db: &Db) -> String {
    let output = start_with(&["--bare"], &db.url, &[]).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output)
}

const MISSING: &str = "there is no view model_catalog.entries";
const TABLE: &str = "CREATE TABLE own (key text PRIMARY KEY, title text); INSERT INTO own VALUES ('a', 'there before')";
const VIEW: &str = "CREATE VIEW model_catalog.entries AS SELECT key AS id, title AS name, 'https://example.org/x'::text AS \
                    download_url, NULL::numeric AS file_size_gb, NULL::text AS hash, false AS auth_required, NULL::text AS \
                    auth_provider, 'x/y'::text AS save_path, '[]'::jsonb AS dependencies, NULL::text AS description FROM own";

#[tokio::test]
async fn bare_migration_creates_no_table_and_the_server_waits_for_a_view() {
    let db = Db::empty().await;
    let message = run_bare(&db);
    assert!(message.contains(&format!("{MISSING} yet: define it, then call model_catalog.watch()")), "{message}");
    let created = "SELECT string_agg(n.nspname || '.' || relname, ' ' ORDER BY 1) FROM pg_class c \
                JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid >= 16384 AND relkind IN ('r', 'v')";
    let created = db.sql(created).await.unwrap();
    for part in ["model_catalog.changes", "model_catalog.state", "model_catalog.history", "model_catalog.fleet"] {
        assert!(created.contains(part), "no {part} in {created}");
    }
    assert!(!created.contains("public.") && !created.contains("entries"), "{created}");

    // A short poll interval keeps the delays between attempts short, too.
    let server = Server::spawn(&db.url, &[("CATALOG_POLL_INTERVAL", "50ms")]).await;
    server.until("several attempts have failed", |s| async move { s.metric(FAILED).await > 5.0 }).await;
    assert_eq!(server.get("/api/models/a").await.status, 503);
    server.until_logged(MISSING, 1).await;
    assert_eq!(server.logged("the database is unavailable"), 0, "{:#?}", server.log());
    for part in ["the catalog can't be read", "call model_catalog.watch() for each table", "model_catalog.reload()"] {
        server.until_logged(part, 1).await;
    }

    db.sql(TABLE).await;
    db.sql(VIEW).await;
    db.sql("SELECT model_catalog.watch('own', 'key'); SELECT model_catalog.reload()").await;
    server.until_named("a", "there before").await;
    let listening = Server::start_with(&db.url, NOTIFY_ONLY).await;
    db.sql("UPDATE own SET title = 'live'").await;
    for server in [&server, &listening] {
        server.until_named("a", "live").await;
    }

    db.sql("CREATE TABLE models (id int)").await;
    let before = fingerprint(&db).await;
    assert!(!run_bare(&db).contains(MISSING));
    super::run(&db.url, &[]);
    assert_eq!(fingerprint(&db).await, before, "with a custom view neither form changes anything");
}

const FAILED: &str = "catalog_refreshes_total{kind=\"full\",outcome=\"error\"}";

#[tokio::test]
async fn migrate_creates_no_table_beside_those_of_others_unless_told_to() {
    let db = Db::empty().await;
    db.sql(
        "CREATE TABLE \"User\" (id int); CREATE TABLE _prisma_migrations (id int); CREATE TABLE orders (id int);
         CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE parts_1 PARTITION OF parts DEFAULT",
    )
    .await;
    let refused = start_with(&[], &db.url, &[]).wait_with_output().unwrap();
    let message = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    for part in [
        "the schema public has other tables (\"User\", _prisma_migrations, orders and 1 more), so nothing was created",
        "`model-catalog migrate --bare`",
        "`model-catalog migrate --with-models-table`",
    ] {
        assert!(message.contains(part), "no {part} in {message}");
    }
    assert_eq!(db.sql("SELECT to_regnamespace('model_catalog')").await, None, "a refusal created something");

    let confirmed = start_with(&["--with-models-table"], &db.url, &[]).wait_with_output().unwrap();
    assert!(confirmed.status.success(), "{}", stderr(&confirmed));
    db.add("a").await;
    // From now on the table is there, so an upgrade needs no flag; nor does a database whose view reads other tables.
    super::run(&db.url, &[]);
    db.sql("ALTER TABLE models RENAME TO renamed").await;
    super::run(&db.url, &[]);
    assert_eq!(db.sql("SELECT to_regclass('public.models')").await, None);

    // Tables of extensions, and those of other schemas.
    let db = Db::empty().await;
    db.sql(
        "CREATE SCHEMA app; CREATE TABLE app.orders (id int); CREATE EXTENSION hstore; CREATE TABLE spatial (id int);
         ALTER EXTENSION hstore ADD TABLE spatial; CREATE VIEW seen AS SELECT 1 AS one",
    )
    .await;
    super::run(&db.url, &[]);
    db.add("a").await;
}

#[tokio::test]
async fn dropped_view_keeps_the_last_catalog_until_recreated() {
    let db = Db::empty().await;
    run_bare(&db);
    db.sql(TABLE).await;
    db.sql(VIEW).await;
    db.sql("SELECT model_catalog.watch('own', 'key')").await;
    let folder = TempFolder::new("bare");
    let file = folder.join("catalog");
    let settings = [("CATALOG_POLL_INTERVAL", "50ms"), ("CATALOG_SNAPSHOT_FILE", file.to_str().unwrap())];
    let server = Server::start_with(&db.url, &settings).await;
    server.until("the snapshot file is written", |_| std::future::ready(file.exists())).await;
    db.sql("DROP VIEW model_catalog.entries").await;
    server.until("the missing view is logged", |s| async move { s.logged(MISSING) == 1 }).await;
    assert_eq!(server.field("a", "name").await, "there before");

    let restarted = Server::spawn(&db.url, &settings).await;
    restarted.until("the missing view is logged", |s| async move { s.logged(MISSING) == 1 }).await;
    assert_eq!(restarted.get("/readyz").await.json()["source"], "file");
    assert_eq!(restarted.field("a", "name").await, "there before");

    db.sql(&format!("UPDATE own SET title = 'changed meanwhile'; {VIEW}; SELECT model_catalog.reload()")).await;
    for server in [&server, &restarted] {
        server.until_named("a", "changed meanwhile").await;
    }
    drop((server, restarted));
}

#[tokio::test]
async fn unmigrated_database_is_logged_and_retried() {
    let db = Db::empty().await;
    let server = Server::spawn(&db.url, &[("CATALOG_POLL_INTERVAL", "50ms")]).await;
    server.until("the missing migration is logged", |s| async move { s.logged("is not migrated") == 1 }).await;
    server.until_logged("run `model-catalog migrate`", 1).await;
    super::run(&db.url, &[]);
    server.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
}

//! Rows that change by other means than a plain statement on the watched table: COPY, MERGE, partitions, cascades.

use crate::support::consistency::full_reads;
use crate::support::{Db, NOTIFY_ONLY, Server};

/// The statement that creates the view over a relation with the columns `id` and `name`.
fn view(from: &str) -> String {
    format!(
        "DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT m.id, m.name, 'https://example.org/x'::text AS \
         download_url, NULL::numeric AS file_size_gb, NULL::text AS hash, false AS auth_required, NULL::text AS \
         auth_provider, 'x/y'::text AS save_path, {from};"
    )
}

const NO_DEPENDENCIES: &str = "'[]'::jsonb AS dependencies, NULL::text AS description FROM";

#[tokio::test]
async fn copy_merge_upsert_and_writable_cte_are_served() {
    let db = Db::new().await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let columns = "(id, name, download_url, save_path)";
    db.sql(&format!(
        "COPY models {columns} FROM PROGRAM $$printf '%s,x,https://example.org/x,x\\n' one two$$ (FORMAT csv)"
    ))
    .await;
    server.until_named("one", "x").await;

    let merge = format!(
        "MERGE INTO models m USING (VALUES ('one', 'merged'), ('two', NULL), ('three', 'new')) s (id, name) ON m.id = s.id \
         WHEN MATCHED AND s.name IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET name = s.name \
         WHEN NOT MATCHED THEN INSERT {columns} VALUES (s.id, s.name, 'https://example.org/x', 'x')"
    );
    let without_merge = format!(
        "DELETE FROM models WHERE id = 'two'; UPDATE models SET name = 'merged' WHERE id = 'one'; \
         INSERT INTO models {columns} VALUES ('three', 'new', 'https://example.org/x', 'x')"
    );
    db.sql(if db.has_merge().await { &merge } else { &without_merge }).await;
    server.until_named("one", "merged").await;
    assert_eq!(
        (server.field("three", "name").await, server.field("two", "id").await),
        ("new".into(), None::<()>.into())
    );

    db.sql(&format!(
        "INSERT INTO models {columns} SELECT id, 'upserted', 'https://example.org/x', 'x' FROM \
         (VALUES ('one'), ('four')) v (id) ON CONFLICT (id) DO UPDATE SET name = excluded.name"
    ))
    .await;
    server.until_named("one", "upserted").await;
    assert_eq!(server.field("four", "name").await, "upserted");

    db.sql(&format!(
        "WITH gone AS (DELETE FROM models WHERE id = 'one' RETURNING *), \
              renamed AS (UPDATE models SET name = 'renamed' WHERE id = 'three') \
         INSERT INTO models {columns} SELECT 'five', name, download_url, save_path FROM gone"
    ))
    .await;
    server.until_named("five", "upserted").await;
    assert_eq!(
        (server.field("three", "name").await, server.field("one", "id").await),
        ("renamed".into(), None::<()>.into())
    );
    assert_eq!(server.refreshes("full").await, 1.0);
}

#[tokio::test]
async fn writes_to_partitioned_tables_are_served() {
    let db = Db::new().await;
    let make = "CREATE TABLE parts (id text, name text, kind text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
        CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
        CREATE TABLE parts_b PARTITION OF parts FOR VALUES IN ('b') PARTITION BY RANGE (id);
        CREATE TABLE parts_b_all PARTITION OF parts_b DEFAULT;";
    db.sql(&format!(
        "{make} {} SELECT model_catalog.watch('parts', 'id')",
        view(&format!("{NO_DEPENDENCIES} parts m"))
    ))
    .await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let full_reads = full_reads(&server, 1.0).await;

    db.sql("INSERT INTO parts VALUES ('1', 'one', 'a'), ('2', 'two', 'b')").await;
    server.until_named("2", "two").await;
    assert_eq!(server.field("1", "name").await, "one");
    db.sql("UPDATE parts SET kind = 'b', name = 'moved' WHERE id = '1'").await;
    server.until_named("1", "moved").await;
    // Directly in a leaf partition.
    db.sql("INSERT INTO parts_b_all VALUES ('3', 'leaf', 'b')").await;
    server.until_named("3", "leaf").await;
    db.sql("UPDATE parts_b SET name = 'middle' WHERE id = '3'").await;
    server.until_named("3", "middle").await;
    db.sql("DELETE FROM parts WHERE id = '2'").await;
    server.until_gone("2").await;
    assert_eq!(server.refreshes("full").await, full_reads);

    // In a partition created later, writes through the root are seen at once, direct writes after another watch().
    db.sql("CREATE TABLE parts_c PARTITION OF parts FOR VALUES IN ('c'); INSERT INTO parts VALUES ('4', 'four', 'c')")
        .await;
    server.until_named("4", "four").await;
    db.sql("SELECT model_catalog.watch('parts', 'id'); UPDATE parts_c SET name = 'direct'").await;
    server.until_named("4", "direct").await;
    db.sql("UPDATE parts_c SET name = 'direct again'").await;
    server.until_named("4", "direct again").await;
    db.sql("TRUNCATE parts_b").await;
    server.until_gone("1").await;
    assert_eq!(server.field("4", "name").await, "direct again");
}

#[tokio::test]
async fn cascades_and_join_table_changes_are_served() {
    let db = Db::new().await;
    let make = "CREATE TABLE families (name text PRIMARY KEY);
        CREATE TABLE members (id text PRIMARY KEY, name text,
            family text REFERENCES families ON DELETE CASCADE ON UPDATE CASCADE);
        CREATE TABLE needs (model text REFERENCES members ON DELETE CASCADE ON UPDATE CASCADE, needed text);
        INSERT INTO families VALUES ('flux'), ('sdxl');
        INSERT INTO members VALUES ('f1', 'x', 'flux'), ('f2', 'x', 'flux'), ('s1', 'x', 'sdxl');
        INSERT INTO needs VALUES ('f1', 'vae');";
    let from = view(
        "(SELECT coalesce(jsonb_agg(n.needed ORDER BY n.needed), '[]') FROM needs n WHERE n.model = m.id) AS \
         dependencies, m.family AS description FROM members m",
    );
    db.sql(&format!(
        "{make} {from} SELECT model_catalog.watch('members', 'id'); SELECT model_catalog.watch('needs', 'model')"
    ))
    .await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    assert_eq!(server.field("f1", "dependencies").await, serde_json::json!(["vae"]));

    db.sql("INSERT INTO needs VALUES ('f1', 't5'), ('s1', 'vae')").await;
    server
        .until("the join table's change is served", |s| async move {
            s.field("s1", "dependencies").await == serde_json::json!(["vae"])
        })
        .await;
    assert_eq!(server.field("f1", "dependencies").await, serde_json::json!(["t5", "vae"]));

    db.sql("UPDATE families SET name = 'flux.1' WHERE name = 'flux'").await;
    server
        .until("the cascaded update is served", |s| async move { s.field("f2", "description").await == "flux.1" })
        .await;
    db.sql("UPDATE members SET id = 'f1b' WHERE id = 'f1'").await;
    server.until_gone("f1").await;
    assert_eq!(server.field("f1b", "dependencies").await, serde_json::json!(["t5", "vae"]));
    db.sql("DELETE FROM families WHERE name = 'flux.1'").await;
    server.until_gone("f1b").await;
    server.until_gone("f2").await;
    assert_eq!(server.field("s1", "description").await, "sdxl");
    assert_eq!(server.refreshes("full").await, 1.0);
}

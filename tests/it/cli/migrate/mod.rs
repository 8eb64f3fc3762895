//! `model-catalog migrate`, and the SQL functions and rights that it creates.

mod bare;
mod lock;
mod rights;
mod watch;

use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use crate::support::{Db, NOTIFY_ONLY, Server, sql, until};

/// The hint in the error about an unusable table.
const HINT: &str = "Run `model-catalog migrate --bare`, define the view model_catalog.entries yourself";

/// Starts `migrate` on a database.
fn start(url: &str, settings: &[(&str, &str)]) -> Child {
    start_with(&[], url, settings)
}

fn start_with(arguments: &[&str], url: &str, settings: &[(&str, &str)]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    command.arg("migrate").args(arguments).env_clear().env("DATABASE_URL", url).envs(settings.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run(url: &str, settings: &[(&str, &str)]) {
    let output = start(url, settings).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

/// All objects of a database and all rows of the program's tables, with the transactions that wrote them, so that any
/// change alters the result.
async fn fingerprint(db: &Db) -> String {
    let parts = [
        "SELECT string_agg(concat_ws(' ', oid, xmin, relname, relfilenode, relacl), E'\\n' ORDER BY oid) \
         FROM pg_class WHERE oid >= 16384",
        "SELECT string_agg(concat_ws(' ', oid, xmin, tgname, tgenabled), E'\\n' ORDER BY oid) FROM pg_trigger",
        "SELECT string_agg(concat_ws(' ', oid, xmin, proname, proacl), E'\\n' ORDER BY oid) FROM pg_proc WHERE oid >= 16384",
        "SELECT string_agg(concat_ws(' ', xmin, s), E'\\n') FROM model_catalog.state s",
        "SELECT string_agg(concat_ws(' ', xmin, m), E'\\n') FROM model_catalog.migrations m",
        "SELECT string_agg(concat_ws(' ', xmin, c), E'\\n') FROM model_catalog.changes c",
        "SELECT string_agg(concat_ws(' ', l.xmin, l), E'\\n') FROM model_catalog.reloads l",
        "SELECT string_agg(concat_ws(' ', xmin, ctid, m), E'\\n') FROM public.models m",
    ];
    let mut all = String::new();
    for part in parts {
        all += &db.sql(part).await.unwrap_or_default();
    }
    all
}

async fn epoch(db: &Db) -> String {
    db.sql("SELECT epoch FROM model_catalog.history").await.unwrap()
}

#[tokio::test]
async fn migrate_prepares_an_empty_database_and_is_idempotent() {
    let db = Db::empty().await;
    run(&db.url, &[]);
    db.add("a").await;
    let before = fingerprint(&db).await;
    assert!(before.contains("model_catalog_truncate") && before.contains("changes_xid_idx"), "{before}");
    run(&db.url, &[]);
    run(&db.url, &[]);
    assert_eq!(fingerprint(&db).await, before);

    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    db.sql("UPDATE models SET name = 'new'").await;
    server.until_named("a", "new").await;
}

#[tokio::test]
async fn triggers_check_by_the_url_schemes_that_migrate_stored() {
    let db = Db::empty().await;
    run(&db.url, &[("CATALOG_URL_SCHEMES", "https,s3")]);
    let insert = async |scheme: &str| {
        let row =
            format!("INSERT INTO models (id, name, download_url, save_path) VALUES ('a', 'x', '{scheme}://b/c', 'd')");
        let written = db.client.batch_execute(&row).await;
        db.sql("DELETE FROM models").await;
        written.map_err(|error| error.as_db_error().unwrap().message().to_owned())
    };
    assert_eq!(insert("s3").await, Ok(()));
    let refused = insert("http").await.unwrap_err();
    assert!(refused.ends_with("has the scheme `http`: allowed are https, s3"), "{refused}");
    run(&db.url, &[]);
    assert_eq!((insert("http").await, insert("s3").await.is_err()), (Ok(()), true));
}

#[tokio::test]
async fn concurrent_migrations_run_once() {
    let db = Db::empty().await;
    let running: Vec<_> = (0..5).map(|_| start(&db.url, &[])).collect();
    for child in running {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let alone = Db::empty().await;
    run(&alone.url, &[]);
    let all = "SELECT string_agg(concat_ws(' ', version, name, checksum), ',') FROM model_catalog.migrations";
    assert_eq!(db.sql(all).await, alone.sql(all).await);
    assert_eq!(epoch(&db).await, epoch(&alone).await, "more than one migration created triggers");
}

/// A database as the versions with three migrations left it, with a watched table.
async fn migrated_to_3() -> Db {
    let (db, newest) = (Db::empty().await, Db::new().await);
    db.sql(
        "CREATE SCHEMA model_catalog; CREATE TABLE model_catalog.migrations (version int4 PRIMARY KEY, \
            name varchar(255), applied_on varchar(255), checksum varchar(255))",
    )
    .await;
    db.sql(include_str!("../../../../migrations/V1__model_catalog.sql")).await;
    db.sql(include_str!("../../../../migrations/V2__fleet.sql")).await;
    db.sql(include_str!("../../../../migrations/V3__problems.sql")).await;
    db.sql(include_str!("../../../../sql/default_models.sql")).await;
    let applied = "SELECT string_agg(format('INSERT INTO model_catalog.migrations VALUES (%L, %L, %L, %L);', \
                   version, name, applied_on, checksum), '') FROM model_catalog.migrations WHERE version <= 3";
    db.sql(&newest.sql(applied).await.unwrap()).await;
    db
}

/// No write fails while the log gets another key, although statements in the old triggers expect the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migration_from_version_3_fails_no_write() {
    let db = migrated_to_3().await;
    for id in ["0", "1", "2", "3"] {
        db.add(id).await;
    }
    let (stop, written) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
    let mut writers = Vec::new();
    for id in 0..4 {
        let (client, stop, written) = (db.connect().await, Arc::clone(&stop), Arc::clone(&written));
        writers.push(tokio::spawn(async move {
            while !stop.load(Relaxed) {
                // The last statement of the transaction comes some time after the first one.
                let update = format!("UPDATE models SET name = random() WHERE id = '{id}'");
                sql(&client, &format!("BEGIN; {update}; SELECT pg_sleep(0.01); {update}; COMMIT")).await;
                written.fetch_add(1, Relaxed);
            }
        }));
    }
    until("the writers write", || async { written.load(Relaxed) > 50 }).await;
    let migrate = start(&db.url, &[]);
    let output = tokio::task::spawn_blocking(|| migrate.wait_with_output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let before = written.load(Relaxed);
    until("the writers go on", || async { written.load(Relaxed) > before + 50 }).await;
    stop.store(true, Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    db.sql("UPDATE models SET name = 'new'").await;
    server.until_named("3", "new").await;
    let rows = "SELECT count(*) || ' ' || count(DISTINCT model_id) FROM model_catalog.changes";
    assert_eq!(db.sql(rows).await.as_deref(), Some("4 4"));
}

#[tokio::test]
async fn migrate_after_a_downgrade_names_the_newer_version_and_servers_keep_serving() {
    let db = Db::new().await;
    db.add("a").await;
    db.sql("INSERT INTO model_catalog.migrations SELECT 999, 'later', applied_on, checksum FROM model_catalog.migrations LIMIT 1")
        .await;
    let before = fingerprint(&db).await;
    let output = start(&db.url, &[]).wait_with_output().unwrap();
    let message = stderr(&output);
    assert!(
        !output.status.success() && message.contains("the database has migration 999, and this version"),
        "{message}"
    );
    assert_eq!(fingerprint(&db).await, before);
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    db.sql("UPDATE models SET name = 'new'").await;
    server.until_named("a", "new").await;
}

/// The migration gives up if a transaction keeps it from the tables, and leaves everything as it was.
#[tokio::test]
async fn migration_gives_up_beside_a_long_transaction() {
    let db = migrated_to_3().await;
    db.add("a").await;
    let version =
        "SELECT max(version) || ' ' || (to_regclass('model_catalog.reloads') IS NULL) FROM model_catalog.migrations";
    let long = db.connect().await;
    sql(&long, "BEGIN; UPDATE models SET name = 'long'").await;
    let output = start(&db.url, &[]).wait_with_output().unwrap();
    let message = stderr(&output);
    assert!(!output.status.success() && message.contains("or by a long transaction"), "{message}");
    assert_eq!(db.sql(version).await.as_deref(), Some("3 true"));
    sql(&long, "COMMIT").await;
    run(&db.url, &[]);
}

#[tokio::test]
async fn table_with_other_columns_is_reported_and_unchanged() {
    let db = Db::empty().await;
    db.sql("CREATE TABLE models (uid int PRIMARY KEY, title text); INSERT INTO models VALUES (1, 'x')").await;
    let table = "SELECT concat_ws(' ', c.oid, c.xmin, relfilenode, m.xmin, m, \
                     (SELECT count(*) FROM pg_trigger WHERE tgrelid = c.oid)) \
                 FROM pg_class c, models m WHERE c.oid = 'models'::regclass";
    let before = db.sql(table).await;
    for _ in 0..2 {
        let output = start(&db.url, &[]).wait_with_output().unwrap();
        let message = stderr(&output);
        assert!(!output.status.success(), "{message}");
        for part in ["public.models has no column id; has no column name; ", "; has no column description", HINT] {
            assert!(message.contains(part), "`{part}` is not reported: {message}");
        }
        assert_eq!(db.sql(table).await, before);
    }

    // Following the hint works.
    db.sql(
        "CREATE VIEW model_catalog.entries AS SELECT uid::text AS id, title AS name, 'https://example.org/x'::text AS \
         download_url, NULL::numeric AS file_size_gb, NULL::text AS hash, false AS auth_required, NULL::text AS \
         auth_provider, 'x/y'::text AS save_path, '[]'::jsonb AS dependencies, NULL::text AS description FROM models;
         SELECT model_catalog.watch('models', 'uid')",
    )
    .await;
    let output = start_with(&["--bare"], &db.url, &[]).wait_with_output().unwrap();
    assert!(output.status.success() && !stderr(&output).contains("WARN"), "{}", stderr(&output));
    run(&db.url, &[]);
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    db.sql("UPDATE models SET title = 'y'").await;
    server.until_named("1", "y").await;
}

#[tokio::test]
async fn unusable_models_relation_is_reported_and_unchanged() {
    let rest = "name text, download_url text, hash text, auth_provider text, save_path text, description text";
    let fits = format!("id text, {rest}, file_size_gb numeric, auth_required boolean, dependencies jsonb");
    for (create, expected) in [
        (
            format!(
                "CREATE TABLE models (id int, {rest}, file_size_gb text, auth_required int, dependencies text, mirrors int)"
            ),
            "the existing table public.models has a column file_size_gb of type text, which cannot be read as numeric; \
             has a column auth_required of type integer, which cannot be read as boolean; \
             has a column dependencies of type text, which cannot be read as jsonb; \
             has a column mirrors of type integer, which cannot be read as jsonb",
        ),
        (
            format!("CREATE TABLE models (uid uuid, {rest}, file_size_gb money, dependencies jsonb)"),
            "public.models has no column id; has a column file_size_gb of type money, which cannot be read as numeric; \
             has no column auth_required",
        ),
        (
            format!("CREATE TABLE t ({fits}); CREATE VIEW models AS SELECT * FROM t"),
            "public.models is a view, not a table",
        ),
        (
            format!("CREATE TABLE t ({fits}); CREATE MATERIALIZED VIEW models AS SELECT * FROM t"),
            "public.models is a materialized view, not a table",
        ),
        (
            format!(
                "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; \
                 CREATE FOREIGN TABLE models ({fits}) SERVER s"
            ),
            "public.models is a foreign table, not a table",
        ),
    ] {
        let db = Db::empty().await;
        db.sql(&create).await;
        let relations = "SELECT string_agg(concat_ws(' ', c.oid, c.xmin, relkind, relhastriggers, \
                             (SELECT string_agg(concat_ws(' ', a.xmin, attname, atttypid), ',' ORDER BY attnum) \
                              FROM pg_attribute a WHERE attrelid = c.oid)), E'\n' ORDER BY c.oid) \
                         FROM pg_class c WHERE relnamespace = 'public'::regnamespace";
        let before = db.sql(relations).await;
        let output = start(&db.url, &[]).wait_with_output().unwrap();
        let message = stderr(&output);
        assert!(
            !output.status.success() && message.contains(expected) && message.contains(HINT),
            "{message}\nfor {create}"
        );
        assert_eq!(db.sql(relations).await, before);
        assert_eq!(db.sql("SELECT to_regclass('model_catalog.entries')").await, None);
        let output = start_with(&["--bare"], &db.url, &[]).wait_with_output().unwrap();
        assert!(output.status.success(), "{create}");
        assert_eq!(db.sql(relations).await, before);
    }
}

#[tokio::test]
async fn partitioned_table_of_unusual_types_is_served_unchanged() {
    let db = Db::empty().await;
    db.sql(
        "CREATE DOMAIN size AS numeric(6, 2) CHECK (value > 0); CREATE DOMAIN needs AS json;
         CREATE TABLE models (description json, dependencies needs, save_path name, auth_provider char(3), \
             auth_required boolean, hash uuid, file_size_gb size, download_url varchar(99), name xml, id bigint NOT NULL) \
             PARTITION BY RANGE (id);
         CREATE TABLE models_low PARTITION OF models FOR VALUES FROM (0) TO (100);
         CREATE TABLE models_high PARTITION OF models FOR VALUES FROM (100) TO (200);
         INSERT INTO models VALUES ('{\"a\": 1}', '[\"x\"]', 'vae/x', 'hf', true, \
             '7f3c0a52-9d1e-4a7b-8f0e-2f6d5b1c9a01', 3.10, 'https://example.org/x', '<b>x</b>', 7)",
    )
    .await;
    let table = "SELECT string_agg(concat_ws(' ', c.oid, relfilenode, relnatts, a.xmin, attname, atttypid), ',' ORDER BY c.oid, attnum) \
                 FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid WHERE relname LIKE 'models%'";
    let before = db.sql(table).await;
    run(&db.url, &[]);
    run(&db.url, &[]);
    assert_eq!(db.sql(table).await, before);
    let triggers = "SELECT string_agg(DISTINCT tgrelid::regclass::text, ' ') FROM pg_trigger WHERE NOT tgisinternal";
    assert_eq!(db.sql(triggers).await.as_deref(), Some("models models_high models_low"));

    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let expected = serde_json::json!({
        "id": "7", "name": "<b>x</b>", "download_url": "https://example.org/x", "file_size_gb": 3.1,
        "hash": "7f3c0a52-9d1e-4a7b-8f0e-2f6d5b1c9a01", "auth_required": true, "auth_provider": "hf",
        "save_path": "vae/x", "dependencies": ["x"], "description": "{\"a\": 1}"
    });
    assert_eq!(server.get("/api/models/7").await.json(), expected);
    db.sql("UPDATE models SET id = 150, name = 'moved'").await;
    server.until_named("150", "moved").await;
    server.until_gone("7").await;
    db.sql("UPDATE models_high SET name = 'direct'").await;
    server.until_named("150", "direct").await;
}

#[tokio::test]
async fn suitable_table_is_served_and_gets_only_triggers() {
    let db = Db::empty().await;
    db.sql(
        "CREATE TABLE models (extra int, mirrors text[], id varchar(40) UNIQUE, name varchar, download_url text, file_size_gb float8, \
         hash char(4), auth_required boolean, auth_provider text, save_path text, dependencies text[], description text); \
         INSERT INTO models VALUES (7, '{https://b.example/a}', 'a', 'mine', 'https://example.org/a', 0.1, 'abcd', true, 'hf', 'x/y', '{\"b c\"}')",
    )
    .await;
    let table = "SELECT string_agg(concat_ws(' ', c.oid, c.relfilenode, c.relnatts, a.attname, a.atttypid, a.attnotnull, \
                     m.xmin, m.ctid, m), E'\\n' ORDER BY attnum) \
                 FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid, models m WHERE c.oid = 'models'::regclass";
    let before = db.sql(table).await;
    run(&db.url, &[]);
    assert_eq!(db.sql(table).await, before);
    let triggers = "SELECT string_agg(tgname, ' ' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = 'models'::regclass";
    let ours = "model_catalog_delete model_catalog_insert model_catalog_truncate model_catalog_update";
    assert_eq!(db.sql(triggers).await.as_deref(), Some(ours));

    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let served = server.get("/api/models/a").await.json();
    let expected = serde_json::json!({
        "id": "a", "name": "mine", "download_url": "https://example.org/a", "file_size_gb": 0.1, "hash": "abcd",
        "auth_required": true, "auth_provider": "hf", "save_path": "x/y", "dependencies": ["b c"], "description": null,
        "mirrors": ["https://b.example/a"]
    });
    assert_eq!(served, expected);
    db.sql("UPDATE models SET name = 'still mine'").await;
    server.until_named("a", "still mine").await;
    let log = "SELECT string_agg(model_id, ' ') FROM model_catalog.changes";
    db.sql("UPDATE models SET extra = 8").await;
    assert_eq!(db.sql(log).await.as_deref(), Some("a"));
}

#[tokio::test]
async fn channel_names_are_quoted() {
    let names =
        ["Upper Case", "a\"b", "quote'; DROP TABLE public.models; --", "\"; SELECT pg_sleep(9); --", "größe", "$1"];
    let db = Db::empty().await;
    for (number, name) in names.into_iter().enumerate() {
        let settings = [("CATALOG_CHANNEL", name), NOTIFY_ONLY[0]];
        run(&db.url, &settings[..1]);
        assert_eq!(db.sql("SELECT channel FROM model_catalog.state").await.as_deref(), Some(name));
        if number == 0 {
            db.add("a").await;
        }
        let server = Server::start_with(&db.url, &settings).await;
        db.sql(&format!("UPDATE models SET name = 'change {number}'")).await;
        server.until_named("a", &format!("change {number}")).await;
        assert_eq!(server.metric("catalog_notifications_total").await, 1.0, "{name}");
    }
}

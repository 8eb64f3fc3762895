//! Reads that could cost more than they should: changes of many models, views without the index that a look-up needs, and
//! roles whose settings stand in the way.

use std::time::Duration;

use crate::cli::import::run;
use crate::support::proxy::{Mode, Proxy};
use crate::support::{Db, NOTIFY_ONLY, Server, migrated, sql, start_postgres, until};

/// Parents and children that a view joins, with nothing that finds the children of one parent.
const FAMILIES: &str = "
    CREATE TABLE parents (pk bigint PRIMARY KEY, slug text UNIQUE, name text, path text);
    CREATE TABLE children (pk bigint PRIMARY KEY, parent bigint REFERENCES parents, needs text);
    CREATE VIEW model_catalog.entries AS
    SELECT p.slug AS id, p.name, 'https://example.org/' || p.pk AS download_url, NULL::numeric AS file_size_gb,
           NULL::text AS hash, false AS auth_required, NULL::text AS auth_provider, p.path AS save_path,
           coalesce(c.needs, '[]'::jsonb) AS dependencies, NULL::text AS description
    FROM parents p
    LEFT JOIN (SELECT parent, jsonb_agg(needs ORDER BY needs) AS needs FROM children GROUP BY parent) c ON c.parent = p.pk;
    CREATE FUNCTION slug_of() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN NEW.slug := (SELECT slug FROM parents WHERE pk = NEW.parent); RETURN NEW; END $$;
    ALTER TABLE children ADD slug text;
    CREATE TRIGGER slug BEFORE INSERT OR UPDATE ON children FOR EACH ROW EXECUTE FUNCTION slug_of();
    SELECT model_catalog.watch('parents', 'slug');
    SELECT model_catalog.watch('children', 'slug');";

async fn without_table() -> Db {
    let db = Db::empty().await;
    crate::support::migrate_without_table(&db.url).await;
    db
}

async fn until_models(server: &Server, number: u32) {
    server
        .until(
            &format!("{number} models are served"),
            |s| async move { s.get("/readyz").await.json()["models"] == number },
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_of_many_models_is_read_as_a_set_without_an_index() {
    let db = without_table().await;
    db.sql(FAMILIES).await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let load = "INSERT INTO parents SELECT n, 'model-' || n, 'name', 'a/' || n FROM generate_series(1, 30000) n";
    db.sql(load).await;
    until_models(&server, 30_000).await;
    // Each look-up would aggregate all children.
    db.sql("INSERT INTO children SELECT n, n, 'needed' FROM generate_series(1, 30000) n").await;
    let needs = serde_json::json!(["needed"]);
    server
        .until("the last child is served", |s| async move {
            s.field("model-30000", "dependencies").await == serde_json::json!(["needed"])
        })
        .await;
    for id in ["model-1", "model-15000"] {
        assert_eq!(server.field(id, "dependencies").await, needs);
    }

    // Some of them, with ids that need quoting, and some that are gone.
    db.sql(
        "UPDATE parents SET name = 'renamed' WHERE pk <= 500; DELETE FROM children WHERE pk > 29000; \
         BEGIN; DELETE FROM parents WHERE pk > 29500; \
         INSERT INTO parents SELECT 40000 + n, E'\"{odd},\\\\ \\'NULL' || n, 'odd', 'b' FROM generate_series(1, 200) n; COMMIT",
    )
    .await;
    until_models(&server, 29_700).await;
    assert_eq!(server.field("model-500", "name").await, "renamed");
    assert_eq!(server.field("\"{odd},\\ 'NULL7", "name").await, "odd");
    assert_eq!(server.field("model-29250", "dependencies").await, serde_json::json!([]));
    assert!(server.field("model-29999", "id").await.is_null());
    assert_eq!(server.metric("catalog_audit_mismatches_total").await, 0.0);
}

/// The number of sessions of others that run a statement of a read.
async fn reading(db: &Db) -> i64 {
    let active = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
                  AND pid <> pg_backend_pid() AND query LIKE '%model_catalog.entries%'";
    db.client.query_one(active, &[]).await.unwrap().get(0)
}

/// How long servers need for each row of [`SLOW_VIEW`]; the triggers, which read it too, do not wait.
fn pace(seconds: &str) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION pace() RETURNS float8 LANGUAGE sql AS \
         $$SELECT CASE WHEN current_setting('application_name') LIKE 'model-catalog %' THEN {seconds} ELSE 0 END::float8$$"
    )
}

const SLOW_VIEW: &str = "
    CREATE OR REPLACE VIEW model_catalog.entries AS
    SELECT id, name, download_url, file_size_gb::numeric, hash, auth_required, auth_provider, save_path, dependencies,
           description || (SELECT coalesce(pg_sleep(pace())::text, '') WHERE id <> '') AS description, mirrors
    FROM models;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_read_whose_rows_trickle_ends_at_its_limit() {
    let db = Db::new().await;
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path, description) \
         SELECT 'm' || n, 'x', 'https://example.org', 'a', repeat('x', 9000) FROM generate_series(1, 400) n",
    )
    .await;
    db.sql(&format!("{}; {SLOW_VIEW}", pace("0.1"))).await;
    // Rows fill a message each, so there is never silence. All of them take 40 s, the limit is 30 times 300 ms.
    let server = Server::spawn(&db.url, &[("CATALOG_DATABASE_TIMEOUT", "300ms")]).await;
    server
        .until("the read has ended", |s| async move {
            s.metric("catalog_refreshes_total{kind=\"full\",outcome=\"error\"}").await >= 1.0
        })
        .await;
    // A statement that needs the table for itself gets it.
    db.sql("SET lock_timeout = '5s'; ALTER TABLE models ADD COLUMN more text").await;
    db.sql(&pace("0")).await;
    until_models(&server, 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_delta_is_cancelled_followed_by_a_full_read_and_logged_once() {
    let db = Db::new().await;
    db.add("a").await;
    db.sql(&format!("{}; {SLOW_VIEW}", pace("0"))).await;
    db.sql("UPDATE models SET description = 'x'").await;
    // At a heartbeat, the server would notice that the function was replaced, and read everything instead.
    let server = Server::start_with(&db.url, &[NOTIFY_ONLY, &[("CATALOG_DATABASE_TIMEOUT", "2s")]].concat()).await;
    db.sql(&pace("600")).await;
    db.sql("UPDATE models SET name = 'new'").await;
    until("the delta reads", async || reading(&db).await == 1).await;
    db.sql(&pace("0")).await;
    // The program keeps the connection until the statement ends, and statement_timeout is 60 s.
    until("the delta was cancelled", async || reading(&db).await == 0).await;
    server.until_named("a", "new").await;
    assert_eq!(server.refreshes("full").await, 2.0);
    server
        .until("it is counted", |s| async { s.metric("catalog_slow_reads_total{kind=\"delta\"}").await == 1.0 })
        .await;

    db.sql(&pace("1.1")).await;
    db.sql("UPDATE models SET name = 'slow'").await;
    server.until_named("a", "slow").await;
    server.until_logged("reading from the database is slow: run `model-catalog check`", 1).await;
}

/// Postgres ignores a cancel request for a session that is idle, even if a statement has been sent to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statement_that_begins_after_the_cancel_request_is_cancelled() {
    let postgres = start_postgres(&[]);
    let client = migrated(&postgres.url("postgres")).await;
    let insert = "INSERT INTO models (id, name, download_url, save_path, description) \
                  VALUES ('a', 'old', 'https://example.org/a', 'checkpoints/a', 'x')";
    sql(&client, &format!("{insert}; {}; {SLOW_VIEW}", pace("0"))).await;
    let proxy = Proxy::before(&postgres).await;
    let settings = [NOTIFY_ONLY, &[("CATALOG_DATABASE_TIMEOUT", "2s")]].concat();
    let server = Server::start_with(&proxy.url("postgres"), &settings).await;
    // After this, and without heartbeats, a delta is what the server sends next.
    sql(&client, "UPDATE models SET name = 'first'").await;
    server.until_named("a", "first").await;
    let session = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'model-catalog %'";
    let pid: i32 = client.query_one(session, &[]).await.unwrap().get(0);
    sql(&client, &pace(&format!("CASE WHEN pg_backend_pid() = {pid} THEN 600 ELSE 0 END"))).await;
    proxy.set(Mode::Hold).await;
    sql(&client, "UPDATE models SET name = 'new'").await;
    // From another connection, after the held one was given up and its statement cancelled.
    server.until_named("a", "new").await;
    proxy.set(Mode::Pass).await;
    until("the statement has ended", async || {
        let left = "SELECT FROM pg_stat_activity WHERE pid = $1";
        client.query_opt(left, &[&pid]).await.unwrap().is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statement_of_a_killed_server_ends() {
    let db = Db::new().await;
    db.add("a").await;
    db.sql(&format!("{}; {SLOW_VIEW}", pace("0"))).await;
    db.sql("UPDATE models SET description = 'x'").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    db.sql(&pace("600")).await;
    db.sql("UPDATE models SET name = 'new'").await;
    until("the delta reads", async || reading(&db).await == 1).await;
    server.signal("KILL");
    until("the statement has ended", async || reading(&db).await == 0).await;
}

/// Settings of a role that would break a session that relies on defaults.
const HOSTILE: &str = "statement_timeout = '5ms', lock_timeout = '1ms', idle_session_timeout = '50ms', \
    idle_in_transaction_session_timeout = '1ms', default_transaction_isolation = 'serializable', \
    default_transaction_deferrable = on, default_transaction_read_only = off, search_path = 'nowhere', \
    DateStyle = 'German, DMY', IntervalStyle = 'iso_8601', TimeZone = 'Asia/Kathmandu', extra_float_digits = -15, \
    bytea_output = 'escape', xmloption = 'document', client_encoding = 'LATIN1', array_nulls = off, \
    standard_conforming_strings = off, backslash_quote = off, escape_string_warning = off, quote_all_identifiers = on, \
    transform_null_equals = on, row_security = off, enable_seqscan = off, enable_indexscan = off, \
    enable_indexonlyscan = off, enable_bitmapscan = off, enable_nestloop = off, enable_hashjoin = off, \
    enable_mergejoin = off, enable_sort = off, enable_hashagg = off, enable_material = off, enable_tidscan = off, \
    from_collapse_limit = 1, join_collapse_limit = 1, geqo_threshold = 2, plan_cache_mode = 'force_generic_plan', \
    cursor_tuple_fraction = 1, jit_above_cost = 0, max_parallel_workers_per_gather = 8, parallel_setup_cost = 0, \
    work_mem = '64kB', temp_buffers = '800kB', client_min_messages = 'debug5', \
    log_statement = 'all', log_min_duration_statement = 0, synchronous_commit = off, application_name = 'hostile', \
    statement_timeout = '5ms', check_function_bodies = off, gin_fuzzy_search_limit = 1, lc_messages = 'C', \
    session_replication_role = 'replica', tcp_user_timeout = 1, tcp_keepalives_idle = 1, \
    client_connection_check_interval = 0, max_stack_depth = '100kB'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_a_role_do_not_stand_in_the_way() {
    let db = Db::new().await;
    let role = format!("hostile_{}", db.name);
    db.sql(&format!("CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA model_catalog TO {role}")).await;
    let rights = "GRANT SELECT ON model_catalog.entries, model_catalog.changes, model_catalog.history TO";
    db.sql(&format!("{rights} {role}")).await;
    let newer = "SELECT string_agg(name || ' = ' || quote_literal(value), ', ') FROM pg_settings \
                 JOIN (VALUES ('transaction_timeout', '5ms'), ('restrict_nonsystem_relation_kind', 'view')) v (name, value) \
                 USING (name)";
    let newer = db.sql(newer).await.map(|newer| format!(", {newer}")).unwrap_or_default();
    for setting in split(&format!("{HOSTILE}{newer}")) {
        db.sql(&format!("ALTER ROLE {role} SET {setting}")).await;
    }
    let fill = "INSERT INTO models (id, name, download_url, file_size_gb, save_path) \
                SELECT 'm' || n, 'first', 'https://example.org', 1.25, 'a' FROM generate_series(1, 20000) n";
    db.sql(fill).await;
    // The view reads 20,000 rows in more than 5 ms.
    let url = db.url.replace("user=postgres", &format!("user={role}"));
    let server = Server::start_with(&url, NOTIFY_ONLY).await;
    assert_eq!(server.get("/readyz").await.json()["models"], 20_000);
    for (changed, name) in [(1, "one"), (30, "few"), (5_000, "many")] {
        // Longer than the timeouts for idle sessions.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let update = format!(
            "UPDATE models SET name = '{name}' WHERE id IN (SELECT 'm' || n FROM generate_series(1, {changed}) n)"
        );
        db.sql(&update).await;
        server.until_named(&format!("m{changed}"), name).await;
    }
    db.sql("SELECT model_catalog.reload()").await;
    server.until("everything is read again", |s| async { s.refreshes("full").await == 2.0 }).await;
    assert_eq!(server.logged("the database is unavailable"), 0, "{:#?}", server.log());
    // Commands that read the view have the same session.
    let exported = run(&["export"], &url, "");
    let lines = exported.stdout.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines, 20_002, "{}", String::from_utf8_lossy(&exported.stderr));
    let probed = run(&["probe", "absent"], &url, "");
    let text = String::from_utf8_lossy(&probed.stdout);
    assert!(
        text.contains("absent") && !text.contains("canceling"),
        "{text}{}",
        String::from_utf8_lossy(&probed.stderr)
    );
    let isolation = "SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock'";
    assert_eq!(sql(&db.client, isolation).await.as_deref(), Some("0"));
}

/// Splits a list of settings at commas outside of quotes.
fn split(settings: &str) -> Vec<String> {
    let (mut parts, mut quoted) = (vec![String::new()], false);
    for c in settings.chars() {
        quoted ^= c == '\'';
        match parts.last_mut() {
            _ if c == ',' && !quoted => parts.push(String::new()),
            Some(last) => last.push(c),
            None => {}
        }
    }
    parts
}

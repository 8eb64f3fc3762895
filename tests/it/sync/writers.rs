//! What writers notice of the triggers: they wait for nobody, they fail for no reason of the triggers, and the log of
//! changes stays small.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use model_catalog::base::error_chain::chain;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::change_log::{assert_unnoticed, notifications, warnings};
use crate::support::{Db, NOTIFY_ONLY, Server, WAIT_LIMIT, sql, until};
use crate::sync::delta_plan;

/// Two tables whose rows belong to the same models, a lookup table, and a view over them.
const TWO_TABLES: &str = "CREATE TABLE files (slug text PRIMARY KEY, name text);
    CREATE TABLE notes (slug text PRIMARY KEY, note text);
    CREATE TABLE kinds (kind text PRIMARY KEY, label json);
    INSERT INTO files SELECT n::text, 'x' FROM generate_series(1, 40) n;
    INSERT INTO notes SELECT n::text, 'x' FROM generate_series(1, 40) n;
    INSERT INTO kinds VALUES ('lora', '\"LoRA\"');
    DROP VIEW model_catalog.entries;
    CREATE VIEW model_catalog.entries AS SELECT f.slug AS id, f.name, 'https://example.org/x'::text AS download_url,
        NULL::numeric AS file_size_gb, NULL::text AS hash, false AS auth_required, NULL::text AS auth_provider,
        'x/y'::text AS save_path, '[]'::jsonb AS dependencies,
        n.note || (SELECT string_agg(k.label #>> '{}', ',') FROM kinds k) AS description
    FROM files f LEFT JOIN notes n USING (slug);
    SELECT model_catalog.watch('files', 'slug'); SELECT model_catalog.watch('notes', 'slug');
    SELECT model_catalog.watch('kinds')";

/// Not in strict mode, in which serializable writers read the view.
async fn two_tables() -> Db {
    let db = Db::lenient().await;
    db.sql(TWO_TABLES).await;
    db
}

/// Begins a transaction that fails as soon as it has to wait for a lock. Commit it with [`COMMIT`].
async fn begin(db: &Db, isolation: &str) -> Client {
    let client = db.connect().await;
    sql(&client, &format!("SET lock_timeout = '1ms'; BEGIN ISOLATION LEVEL {isolation}; SELECT 1")).await;
    client
}

/// The lock that NOTIFY takes at commit is the exception: other tests hold it, too.
const COMMIT: &str = "SET LOCAL lock_timeout = 0; COMMIT";

const ISOLATION_LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];

#[tokio::test]
async fn transactions_on_different_tables_do_not_wait_for_each_other() {
    let db = two_tables().await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    for isolation in ISOLATION_LEVELS {
        // In opposite orders, which was a deadlock. The lock on a row of `changes` of an idle transaction was a wait.
        let (one, other) = (begin(&db, isolation).await, begin(&db, isolation).await);
        sql(&one, &format!("UPDATE files SET name = '{isolation}' WHERE slug = '1'")).await;
        sql(&other, &format!("UPDATE notes SET note = '{isolation}' WHERE slug = '2'")).await;
        sql(&one, &format!("UPDATE files SET name = '{isolation}' WHERE slug = '2'")).await;
        sql(&other, &format!("UPDATE notes SET note = '{isolation}' WHERE slug = '1'")).await;
        sql(&other, COMMIT).await;
        server
            .until(
                "the first one is served",
                |s| async move { s.field("1", "description").await == described(isolation) },
            )
            .await;
        sql(&one, COMMIT).await;
        for id in ["1", "2"] {
            server.until_named(id, isolation).await;
            assert_eq!(server.field(id, "description").await, described(isolation));
        }
    }
}

fn described(note: &str) -> String {
    format!("{note}LoRA")
}

#[tokio::test]
async fn transactions_that_may_change_everything_do_not_wait_for_each_other() {
    let db = two_tables().await;
    let epoch = "SELECT epoch FROM model_catalog.history";
    for isolation in ISOLATION_LEVELS {
        let before: i64 = db.sql(epoch).await.unwrap().parse().unwrap();
        let (one, other) = (begin(&db, isolation).await, begin(&db, isolation).await);
        let reloading = begin(&db, isolation).await;
        sql(&one, "TRUNCATE notes; TRUNCATE notes; INSERT INTO kinds VALUES ('vae', '1')").await;
        sql(&other, "TRUNCATE files").await;
        sql(&reloading, "SELECT model_catalog.reload()").await;
        for client in [&other, &one, &reloading] {
            sql(client, COMMIT).await;
        }
        let after: i64 = db.sql(epoch).await.unwrap().parse().unwrap();
        assert_eq!(after, before + 3, "{isolation}");
        db.sql("DELETE FROM kinds WHERE kind = 'vae'").await;
    }
}

#[tokio::test]
async fn reloads_are_folded_and_the_epoch_never_goes_back() {
    let db = two_tables().await;
    let start: i64 = db.sql("SELECT epoch FROM model_catalog.history").await.unwrap().parse().unwrap();
    let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
    let mut writers = Vec::new();
    for number in 0..4 {
        let (client, stop, done) = (db.connect().await, Arc::clone(&stop), Arc::clone(&done));
        let isolation = ISOLATION_LEVELS[number % 2];
        writers.push(tokio::spawn(async move {
            while !stop.load(Relaxed) {
                sql(
                    &client,
                    &format!("BEGIN ISOLATION LEVEL {isolation}; TRUNCATE notes; SELECT model_catalog.reload()"),
                )
                .await;
                let end = if fastrand::bool() { "COMMIT" } else { "ROLLBACK" };
                sql(&client, end).await;
                done.fetch_add(u32::from(end == "COMMIT"), Relaxed);
            }
        }));
    }
    let (mut last, began) = (start, std::time::Instant::now());
    while done.load(Relaxed) < 500 {
        let epoch = db.sql("SELECT epoch FROM model_catalog.history").await.unwrap().parse().unwrap();
        assert!(epoch >= last, "from {last} to {epoch}");
        last = epoch;
        assert!(began.elapsed() < WAIT_LIMIT * 2, "only {} reloads", done.load(Relaxed));
        assert!(!writers.iter().any(tokio::task::JoinHandle::is_finished), "a writer failed");
    }
    stop.store(true, Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let epoch: i64 = db.sql("SELECT epoch FROM model_catalog.history").await.unwrap().parse().unwrap();
    assert_eq!(epoch - start, i64::from(done.load(Relaxed)));
    let rows: i64 = db.sql("SELECT count(*) FROM model_catalog.reloads").await.unwrap().parse().unwrap();
    assert!(rows <= 105, "{rows} rows in reloads");
}

/// Eight writers change the same models through two tables. Afterwards one change of each model leaves one row of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_log_stays_small() {
    const WRITERS: usize = 8;
    let db = two_tables().await;
    let written = Arc::<AtomicU32>::default();
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let (client, written) = (db.connect().await, Arc::clone(&written));
        let isolation = ISOLATION_LEVELS[number % 2];
        writers.push(tokio::spawn(async move {
            while written.load(Relaxed) < 1_500 {
                let (table, column) = if fastrand::bool() { ("files", "name") } else { ("notes", "note") };
                let statement =
                    format!("UPDATE {table} SET {column} = random() WHERE slug = '{}'", fastrand::u32(1..=40));
                let done =
                    client.batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}; {statement}; COMMIT")).await;
                if let Err(error) = done {
                    // Only two writers of the same row can conflict, as without the triggers.
                    assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{}", chain(&error));
                    assert!(isolation == "REPEATABLE READ", "{}", chain(&error));
                    sql(&client, "ROLLBACK").await;
                }
                written.fetch_add(1, Relaxed);
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let most = "SELECT max(number) FROM (SELECT count(*) AS number FROM model_catalog.changes GROUP BY model_id) n";
    let most: usize = db.sql(most).await.unwrap().parse().unwrap();
    assert!(most <= 5 + WRITERS, "{most} rows of one model");
    db.sql("UPDATE files SET name = 'last'").await;
    let rows = "SELECT count(*) || ' ' || count(DISTINCT model_id) FROM model_catalog.changes";
    assert_eq!(db.sql(rows).await.as_deref(), Some("40 40"));

    // Only serializable writers leave rows, which reload() deletes.
    for number in 0..10 {
        let update = format!("UPDATE files SET name = '{number}' WHERE slug = '1'");
        db.sql(&format!("BEGIN ISOLATION LEVEL SERIALIZABLE; {update}; COMMIT")).await;
    }
    assert_eq!(db.sql(rows).await.as_deref(), Some("50 40"));
    db.sql("SELECT model_catalog.reload()").await;
    assert_eq!(db.sql(rows).await.as_deref(), Some("40 40"));
}

/// Writers in SERIALIZABLE delete nothing, so a server has the log trimmed, although its role has no right to write.
#[tokio::test]
async fn server_trims_the_log_of_serializable_writers() {
    const MODELS: u32 = 2_000;
    let db = Db::lenient().await;
    let role = format!("trims_{}", db.name);
    db.sql(&format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA model_catalog TO {role};
         GRANT SELECT ON model_catalog.entries, model_catalog.changes, model_catalog.history TO {role};
         INSERT INTO models (id, name, download_url, save_path)
         SELECT n, 'x', 'https://example.org/x', 'x' FROM generate_series(1, {MODELS}) n"
    ))
    .await;
    let write = async |round: u32| {
        let update = format!("UPDATE models SET name = 'round {round}'");
        db.sql(&format!("BEGIN ISOLATION LEVEL SERIALIZABLE; {update}; COMMIT")).await;
    };
    let rows = || db.sql("SELECT count(*) FROM model_catalog.changes");
    let url = db.url.replace("user=postgres", &format!("user={role}"));
    let server = Server::start_with(&url, NOTIFY_ONLY).await;
    for round in 1..=4 {
        write(round).await;
        server.until_named("1", &format!("round {round}")).await;
    }
    // Few enough to be left alone.
    assert_eq!(rows().await, Some((5 * MODELS).to_string()));
    for round in 5..=10 {
        write(round).await;
        server.until_named("1", &format!("round {round}")).await;
    }
    // Ten times as many rows as models is the limit.
    write(11).await;
    until("the log is trimmed", async || rows().await == Some(MODELS.to_string())).await;
    server.until("everything is read again", async |s: &Server| s.refreshes("full").await == 2.0).await;
    server.until_named("2000", "round 11").await;

    // What was written while no server ran.
    drop(server);
    for round in 12..=21 {
        write(round).await;
    }
    let _server = Server::start_with(&url, NOTIFY_ONLY).await;
    until("the log is trimmed at the start", async || rows().await == Some(MODELS.to_string())).await;
}

/// Two transactions that ran at the same time each have a row of the same model: a delta returns it once.
#[tokio::test]
async fn delta_returns_a_model_once() {
    let db = two_tables().await;
    let client = delta_plan::prepared(&db.url).await;
    let since = delta_plan::position(&client).await;
    let (one, other) = (db.connect().await, db.connect().await);
    sql(&one, "BEGIN; UPDATE files SET name = 'first' WHERE slug = '1'").await;
    sql(&other, "UPDATE notes SET note = 'second' WHERE slug IN ('1', '2')").await;
    sql(&one, "COMMIT").await;
    let rows = "SELECT count(*) FROM model_catalog.changes WHERE model_id = '1'";
    assert_eq!(db.sql(rows).await.as_deref(), Some("2"));
    let delta = client.simple_query(&format!("EXECUTE delta ({since})")).await.unwrap();
    let mut changed: Vec<_> = (delta.iter())
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((row.get("id")?, row.get("name")?, row.get("description")?)),
            _ => None,
        })
        .collect();
    changed.sort_unstable();
    assert_eq!(changed, [("1", "first", "secondLoRA"), ("2", "x", "secondLoRA")]);
}

/// The time of the triggers, by EXPLAIN ANALYZE, of a statement that writes 40,000 rows. It was eight times as long with
/// one rejected row as without: quadratic.
#[tokio::test]
async fn rejected_rows_do_not_slow_down_a_bulk_write() {
    let db = Db::lenient().await;
    let milliseconds = async |rejected: &str| {
        let insert = format!(
            "EXPLAIN (ANALYZE, FORMAT JSON) INSERT INTO models (id, name, download_url, save_path) SELECT n, 'x', \
             'https://example.org/x', CASE WHEN {rejected} THEN '../x' ELSE 'x' END FROM generate_series(1, 40000) n"
        );
        let plan = db.sql(&insert).await.unwrap();
        db.sql("TRUNCATE models, model_catalog.changes").await;
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        plan[0]["Triggers"][0]["Time"].as_f64().unwrap()
    };
    let mut best = [f64::INFINITY; 3];
    for _ in 0..2 {
        for (place, rejected) in ["false", "n = 7", "n % 2 = 0"].into_iter().enumerate() {
            best[place] = best[place].min(milliseconds(rejected).await);
        }
    }
    let [none, one, half] = best;
    assert!(one < none * 3.0 && half < none * 3.0, "{none} ms without rejected rows, {one} with one, {half} with half");
}

/// A rollback restores the rows that the transaction deleted, and a savepoint those that were deleted after it.
#[tokio::test]
async fn rollback_restores_the_change_log() {
    let db = two_tables().await;
    db.sql("UPDATE files SET name = 'first' WHERE slug IN ('1', '2')").await;
    let log = "SELECT string_agg(concat_ws(' ', model_id, xid), ', ' ORDER BY 1) FROM model_catalog.changes";
    let before = db.sql(log).await;
    db.sql("BEGIN; UPDATE files SET name = 'never'; ROLLBACK").await;
    assert_eq!(db.sql(log).await, before);
    db.sql("BEGIN; UPDATE files SET name = 'second' WHERE slug = '1'; SAVEPOINT s; UPDATE notes SET note = 'never'; ROLLBACK TO s; COMMIT")
        .await;
    let [of_1, of_2] = ["1", "2"].map(|id| {
        format!("SELECT count(*) || ' ' || (array_agg(xid))[1] FROM model_catalog.changes WHERE model_id = '{id}'")
    });
    let (of_1, of_2) = (db.sql(&of_1).await.unwrap(), db.sql(&of_2).await.unwrap());
    assert!(of_1.starts_with("1 ") && of_2.starts_with("1 ") && of_1 != of_2, "{of_1}, {of_2}");
}

/// Serializable transactions that touch different rows commit: the triggers read nothing that the others write.
#[tokio::test]
async fn serializable_writers_of_different_models_do_not_fail() {
    let db = two_tables().await;
    sql(&db.client, "ANALYZE").await;
    for round in 0..10 {
        let (one, other) = (begin(&db, "SERIALIZABLE").await, begin(&db, "SERIALIZABLE").await);
        sql(&one, &format!("INSERT INTO files VALUES ('one {round}', 'x')")).await;
        sql(&other, &format!("INSERT INTO files VALUES ('other {round}', 'x')")).await;
        sql(&one, &format!("INSERT INTO notes VALUES ('one {round}', 'x')")).await;
        sql(&other, &format!("INSERT INTO notes VALUES ('other {round}', 'x')")).await;
        sql(&one, COMMIT).await;
        sql(&other, COMMIT).await;
    }
}

/// The view reads another table that is locked: the write neither waits nor deadlocks.
#[tokio::test]
async fn lock_on_another_table_of_the_view_does_not_stop_a_write() {
    let db = two_tables().await;
    let locking = db.connect().await;
    sql(&locking, "BEGIN; LOCK TABLE notes IN ACCESS EXCLUSIVE MODE").await;
    let written = warnings(&db, "UPDATE files SET name = 'not waited' WHERE slug = '1'").await;
    assert_eq!(written, ["the changed models could not be checked: canceling statement due to lock timeout"]);
    sql(&locking, "COMMIT").await;
    assert_eq!(db.sql("SELECT name FROM files WHERE slug = '1'").await.as_deref(), Some("not waited"));
}

#[tokio::test]
async fn table_without_a_column_is_recorded_only_if_a_row_changes() {
    let db = two_tables().await;
    // The server serves public.models again, for the markers of assert_unnoticed.
    db.sql(
        "DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS
         SELECT m.id, m.name, m.download_url, m.file_size_gb::numeric, m.hash, m.auth_required, m.auth_provider,
                m.save_path, m.dependencies, (SELECT string_agg(k.label #>> '{}', ',') FROM kinds k) AS description
         FROM models m; SELECT model_catalog.reload()",
    )
    .await;
    db.add("a").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let without_effect = [
        "UPDATE kinds SET label = label",
        "UPDATE kinds SET label = '\"Lora\"' WHERE kind = 'none'",
        "DELETE FROM kinds WHERE kind = 'none'",
        "INSERT INTO kinds SELECT * FROM kinds ON CONFLICT (kind) DO UPDATE SET label = excluded.label",
        "INSERT INTO kinds SELECT * FROM kinds WHERE false",
    ];
    assert_unnoticed(&db, &server, &without_effect).await;
    let before = notifications(&db, &server).await;
    db.sql("BEGIN; UPDATE kinds SET label = '\"Lora\"'; INSERT INTO kinds VALUES ('vae', '\"VAE\"'); COMMIT").await;
    server.until("the lookup table is read", |s| async move { s.field("a", "description").await == "Lora,VAE" }).await;
    assert_eq!(server.refreshes("full").await, 2.0);
    assert_eq!(notifications(&db, &server).await, before + 2.0);
    // With a column again.
    db.sql("SELECT model_catalog.watch('kinds', 'kind')").await;
    let arguments =
        "SELECT string_agg(DISTINCT encode(tgargs, 'escape'), ' ') FROM pg_trigger WHERE tgrelid = 'kinds'::regclass";
    assert_eq!(db.sql(arguments).await.as_deref(), Some("kind\\000"));
}

const UNKNOWN: &str = "the models changed in table public.models are unknown, so servers read all models again: ";

/// Whatever keeps the triggers from telling the changed models: the write succeeds, and the change is served.
#[tokio::test]
async fn fault_of_the_triggers_never_fails_a_write() {
    let raises = "CREATE FUNCTION raises(models) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE division_by_zero; END';
                  CREATE TYPE broken AS (id text); CREATE FUNCTION broken_out(m broken) RETURNS text LANGUAGE plpgsql
                  AS 'BEGIN RAISE division_by_zero; END'; CREATE CAST (broken AS text) WITH FUNCTION broken_out(broken);
                  ALTER TABLE models ADD alias broken; UPDATE models SET alias = ROW(id);
                  SELECT model_catalog.watch('models', 'alias')";
    for (name, fault, expected) in [
        ("renamed", "ALTER TABLE models RENAME id TO uid", "column o.id does not exist"),
        (
            "dropped",
            "ALTER TABLE models ADD slug text; UPDATE models SET slug = id; SELECT model_catalog.watch('models', 'slug');
             ALTER TABLE models DROP slug",
            "column o.slug does not exist",
        ),
        ("raising", raises, "division_by_zero"),
        ("Ünicode", "ALTER TABLE models RENAME id TO \"größe\"", "column o.id does not exist"),
        ("revoked", "ALTER FUNCTION model_catalog.log_change() OWNER TO definer", "permission denied for schema model_catalog; "),
    ] {
        let db = Db::new().await;
        db.add("a").await;
        db.sql(&format!("DO $$ BEGIN CREATE ROLE definer; EXCEPTION WHEN OTHERS THEN NULL; END $$; {fault}")).await;
        let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
        let full = server.refreshes("full").await;
        // A client whose encoding lacks the characters of a name gets the warning all the same.
        let update = format!("SET client_encoding = 'SQL_ASCII'; UPDATE models SET name = '{name}'");
        let warned = warnings(&db, &update).await;
        assert!(matches!(&warned[..], [text] if text.starts_with(&format!("{UNKNOWN}{expected}"))), "{name}: {warned:?}");
        assert_eq!(db.sql("SELECT name FROM models").await.as_deref(), Some(name));
        // Without the rights on the log there is nothing that could be recorded.
        if name != "revoked" {
            server.until("everything is read again", |s| async move { s.refreshes("full").await > full }).await;
            server.until_named("a", name).await;
        }
        for statement in ["INSERT INTO models SELECT * FROM models WHERE false", "DELETE FROM models", "TRUNCATE models"] {
            db.sql(statement).await;
        }
    }
}

#[tokio::test]
async fn missing_objects_of_the_schema_do_not_fail_a_write() {
    for fault in [
        "DROP TABLE model_catalog.changes CASCADE",
        "DROP TABLE model_catalog.reloads CASCADE",
        "DROP TABLE model_catalog.state CASCADE",
        "DELETE FROM model_catalog.state",
        "ALTER SCHEMA model_catalog RENAME TO renamed",
        "CREATE PUBLICATION everything FOR ALL TABLES",
    ] {
        let db = Db::new().await;
        db.add("a").await;
        db.sql(fault).await;
        for statement in [
            "UPDATE models SET name = 'b'",
            "INSERT INTO models SELECT 'b', name, download_url, 1, NULL, \
            false, NULL, save_path FROM models",
            "UPDATE models SET hash = 'x'",
            "DELETE FROM models",
            "TRUNCATE models",
        ] {
            let written = db.client.batch_execute(statement).await;
            assert!(written.is_ok(), "{fault}: {statement}: {}", chain(&written.unwrap_err()));
        }
    }
}

/// Triggers cannot read virtual generated columns, which came with Postgres 18: they cannot be watched, and their table can.
#[tokio::test]
async fn table_with_a_virtual_generated_column_is_followed() {
    let db = Db::new().await;
    if db.sql("SELECT current_setting('server_version_num')::int >= 180000").await.as_deref() == Some("f") {
        return;
    }
    db.sql("CREATE TABLE files (slug text, id text GENERATED ALWAYS AS (lower(slug)) VIRTUAL, note json)").await;
    let refused = db.client.batch_execute("SELECT model_catalog.watch('files', 'id')").await.unwrap_err();
    assert!(chain(&refused).contains("is a virtual generated column"), "{}", chain(&refused));
    db.sql("SELECT model_catalog.watch('files', 'slug'); INSERT INTO files (slug, note) VALUES ('A', '1'), ('B', '1')")
        .await;
    let log = "SELECT string_agg(model_id, ' ' ORDER BY model_id) FROM model_catalog.changes \
               GROUP BY xid ORDER BY xid DESC LIMIT 1";
    for (statement, logged) in [
        ("UPDATE files SET note = '2'", "A B"),
        ("UPDATE files SET note = '3' WHERE slug = 'A'", "A"),
        ("UPDATE files SET slug = 'C' WHERE slug = 'B'", "B C"),
        ("UPDATE files SET note = note", "B C"),
    ] {
        assert_eq!(warnings(&db, statement).await.len(), 0, "{statement}");
        assert_eq!(db.sql(log).await.as_deref(), Some(logged), "{statement}");
    }
}

/// An id that is too long for the index of the log, and one that just fits.
#[tokio::test]
async fn ids_of_any_length_are_served() {
    let db = Db::new().await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    // Random text, because Postgres compresses what it puts into an index.
    for (length, full) in [(2_600, 1.0), (2_601, 2.0), (100_000, 3.0)] {
        let id: String = std::iter::repeat_with(fastrand::alphanumeric).take(length).collect();
        let inserted = "INSERT INTO wide VALUES ($1, 'x')";
        if full == 1.0 {
            // public.models has an index on its ids, which could not hold them.
            db.sql(
                "CREATE TABLE wide (id text, name text); DROP VIEW model_catalog.entries;
                 CREATE VIEW model_catalog.entries AS SELECT md5(id) AS id, name, 'https://example.org/x'::text AS
                 download_url, NULL::numeric AS file_size_gb, NULL::text AS hash, false AS auth_required,
                 NULL::text AS auth_provider, 'x/y'::text AS save_path, '[]'::jsonb AS dependencies,
                 NULL::text AS description FROM wide; SELECT model_catalog.watch('wide', 'id')",
            )
            .await;
            server.until("the new view is read", |s| async move { s.refreshes("full").await == 2.0 }).await;
        }
        db.client.execute(inserted, &[&id]).await.unwrap();
        server.until("it is read", |s| async move { s.refreshes("full").await >= full + 1.0 }).await;
        let digest = db.client.query_one("SELECT md5($1)", &[&id]).await.unwrap().get::<_, String>(0);
        if full > 1.0 {
            server.until_named(&digest, "x").await;
        }
    }
}

/// A setting of the writer's session changes neither whether it can write nor what is recorded.
#[tokio::test]
async fn settings_of_the_writer_do_not_matter() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    for (number, setting) in SETTINGS.iter().enumerate() {
        let writer = db.connect().await;
        sql(&writer, &format!("SET {setting}")).await;
        let (name, id) = (format!("name {number}"), format!("id {number}"));
        sql(&writer, &format!("UPDATE public.models SET name = '{name}'")).await;
        sql(&writer, &format!("INSERT INTO public.models (id, name, download_url, save_path) VALUES ('{id}', 'x', 'https://example.org/x', 'x')")).await;
        let refused =
            writer.batch_execute("UPDATE public.models SET save_path = '../x' WHERE id = 'a'").await.unwrap_err();
        let message = refused.as_db_error().unwrap().message();
        assert!(message.starts_with("model \"a\" would not be served: save_path escapes"), "{setting}: {message}");
        sql(
            &writer,
            &format!(
                "UPDATE public.models SET id = 'moved' WHERE id = '{id}'; DELETE FROM public.models WHERE id = 'moved'"
            ),
        )
        .await;
        server.until_named("a", &name).await;
        server.until_gone(&id).await;
        let field = "SELECT field FROM model_catalog.problems";
        db.sql("SELECT model_catalog.strict(false); UPDATE models SET save_path = '../x'").await;
        assert_eq!(sql(&writer, field).await.as_deref(), Some("save_path"), "{setting}");
        db.sql("UPDATE models SET save_path = 'x'; SELECT model_catalog.strict(true)").await;
    }
    assert_eq!(server.refreshes("full").await, 1.0);
}

const SETTINGS: [&str; 24] = [
    "standard_conforming_strings = off",
    "backslash_quote = off",
    "escape_string_warning = off",
    "bytea_output = escape",
    "transform_null_equals = on",
    "array_nulls = off",
    "xmloption = document",
    "default_text_search_config = 'pg_catalog.simple'",
    "search_path = ''",
    "row_security = off",
    "quote_all_identifiers = on",
    "plpgsql.variable_conflict = use_variable",
    "plpgsql.variable_conflict = use_column",
    "plpgsql.extra_errors = 'all'",
    "plan_cache_mode = force_custom_plan",
    "enable_tidscan = off",
    "enable_indexscan = off",
    "enable_seqscan = off",
    "work_mem = '64kB'",
    "default_transaction_isolation = 'repeatable read'",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on",
    "synchronous_commit = off",
    "client_encoding = 'LATIN1'",
];

//! The view, its source tables, their triggers, and the index that a lookup needs.

use super::{NONE, apply_fixes, break_and_fix, check, check_with, fix, view};
use crate::support::Db;

#[tokio::test]
async fn missing_disabled_and_wrong_triggers_are_reported() {
    let db = Db::new().await;
    for (statements, text) in [
        ("DROP TRIGGER model_catalog_update ON models", "public.models has no trigger for UPDATE"),
        ("ALTER TABLE models DISABLE TRIGGER model_catalog_truncate", "the triggers for TRUNCATE are disabled"),
        ("ALTER TABLE models DISABLE TRIGGER ALL", "the triggers for INSERT, UPDATE, DELETE, TRUNCATE are disabled"),
        ("ALTER TABLE models ENABLE REPLICA TRIGGER model_catalog_insert", "the triggers for INSERT are disabled"),
        ("SELECT model_catalog.watch('models', 'name')", "is watched by name, but the id of the view comes from id"),
    ] {
        break_and_fix(&db, statements, "problem", "source", text).await;
    }
    let gone = "DO $$ DECLARE t text; BEGIN FOREACH t IN ARRAY '{insert,update,delete,truncate}'::text[] LOOP \
                EXECUTE 'DROP TRIGGER model_catalog_' || t || ' ON models'; END LOOP; END $$";
    break_and_fix(&db, gone, "problem", "source", "public.models is not watched").await;
    db.sql("ALTER TABLE models ENABLE ALWAYS TRIGGER model_catalog_insert").await;
    check(&db).clean();
    // The trigger argument is text and does not follow a renamed column.
    db.sql("ALTER TABLE models RENAME id TO uid").await;
    let checked = check(&db);
    let finding = checked.only("problem", "source", "a column that does not exist: id");
    assert_eq!(fix(finding), "SELECT model_catalog.watch('public.models', 'uid');");
    apply_fixes(&db, &checked).await;
    check(&db).clean();
}

#[tokio::test]
async fn every_source_table_is_found_with_its_id_column() {
    let db = Db::new().await;
    db.sql(
        "CREATE SCHEMA \"Odd 'S'\";
         CREATE TABLE \"Odd 'S'\".\"Assets\" (\"The Uid\" uuid PRIMARY KEY, family int);
         CREATE TABLE families (number int PRIMARY KEY, name text);
         CREATE TABLE needs (asset uuid, needed uuid, PRIMARY KEY (asset, needed));
         CREATE TABLE labels (model text, label text);
         CREATE TABLE parts (id text PRIMARY KEY) PARTITION BY HASH (id);
         CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         CREATE VIEW assets AS SELECT a.\"The Uid\"::text AS id, f.name AS family, a.\"The Uid\" AS uid
             FROM \"Odd 'S'\".\"Assets\" a LEFT JOIN families f ON f.number = a.family;",
    )
    .await;
    let dependencies = "(SELECT coalesce(jsonb_agg(n.needed), '[]') FROM needs n WHERE n.asset = m.uid)";
    let others = "WHERE EXISTS (SELECT FROM labels l WHERE l.model = m.id) UNION ALL \
                  SELECT p.id, 'x', 'https://example.org/x', NULL, NULL, false, NULL, 'x/y', '[]', NULL FROM parts p";
    db.sql(&view("m.id", dependencies, &format!("assets m {others}"))).await;

    let checked = check(&db);
    assert_eq!(checked.status, 1);
    let fixes = |subject: &str| {
        let bad = checked.bad().into_iter().filter(|finding| finding["subject"] == subject);
        let mut fixes: Vec<_> = bad.map(|finding| fix(finding).to_owned()).collect();
        fixes.sort();
        fixes
    };
    assert_eq!(
        fixes("source"),
        [
            "SELECT model_catalog.watch('\"Odd ''S''\".\"Assets\"', 'The Uid');",
            "SELECT model_catalog.watch('public.families', '<the column with the id of the model>');",
            "SELECT model_catalog.watch('public.labels', 'model');",
            "SELECT model_catalog.watch('public.needs', 'asset');",
            "SELECT model_catalog.watch('public.parts', 'id');",
        ],
        "{checked:#?}"
    );
    assert_eq!(
        fixes("look-up"),
        [
            "CREATE INDEX CONCURRENTLY ON \"Odd 'S'\".\"Assets\" (((\"The Uid\")::text));",
            "CREATE INDEX CONCURRENTLY ON public.labels (model);",
        ],
        "{checked:#?}"
    );
    for finding in checked.bad().into_iter().filter(|finding| !fix(finding).contains('<')) {
        db.sql(fix(finding)).await;
    }
    check(&db).only("problem", "source", "public.families is not watched");
    db.sql("SELECT model_catalog.watch('families', 'number')").await;
    check(&db).clean();

    // A partition added later has no triggers.
    let later = "ALTER TABLE parts DETACH PARTITION parts_1; DROP TABLE parts_1;
                 CREATE TABLE parts_later PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1)";
    break_and_fix(&db, later, "problem", "source", "public.parts_later is not watched").await;
    let child = "CREATE TABLE labels_child () INHERITS (labels); CREATE INDEX ON labels_child (model)";
    break_and_fix(&db, child, "problem", "source", "public.labels_child is not watched").await;
}

#[tokio::test]
async fn tables_watched_by_a_column_without_ids_are_reported() {
    let db = Db::new().await;
    db.sql(
        "CREATE TABLE \"Parent\" (id int PRIMARY KEY, slug text UNIQUE);
         CREATE TABLE \"Child\" (number int PRIMARY KEY, \"parentId\" int, name text);
         CREATE INDEX ON \"Child\" (\"parentId\");",
    )
    .await;
    db.sql(&view("m.slug", NONE, "\"Parent\" m JOIN \"Child\" c ON c.\"parentId\" = m.id")).await;
    db.sql("SELECT model_catalog.watch('\"Parent\"', 'slug'); SELECT model_catalog.watch('\"Child\"', 'parentId')")
        .await;
    // Without rows nothing can be told, and a draft, which the view leaves out, is no problem.
    check(&db).clean();
    db.sql("INSERT INTO \"Parent\" VALUES (1, 'draft')").await;
    check(&db).clean();
    let wrong = "INSERT INTO \"Parent\" VALUES (2, 'two'); INSERT INTO \"Child\" VALUES (1, 2, 'x')";
    let text = "public.\"Child\" is watched by parentId, but of 1 rows there none has the id of a model in it";
    break_and_fix(&db, wrong, "problem", "source", text).await;
}

#[tokio::test]
async fn tables_swapped_by_renaming_are_reported_with_statements_that_follow() {
    let db = Db::new().await;
    let ok = check(&db).findings.into_iter().find(|finding| finding["subject"] == "sources").unwrap();
    assert_eq!(ok["text"], "tables that the view reads: 1, all watched: public.models");
    let swap = |table: &str, old: &str| {
        format!(
            "BEGIN; CREATE TABLE new_one (LIKE {table} INCLUDING ALL); ALTER TABLE {table} RENAME TO {old};
             ALTER TABLE new_one RENAME TO {table}; COMMIT"
        )
    };
    break_and_fix(
        &db,
        &swap("models", "models_old"),
        "problem",
        "source",
        "reads public.models_old, but not public.models",
    )
    .await;
    assert_eq!(
        check(&db).findings.iter().filter(|f| f["text"].as_str().unwrap().ends_with(": public.models")).count(),
        1
    );

    // With aliases, names that must be quoted, and a view in between.
    db.sql(&format!(
        "CREATE TABLE \"Model.s$\" (id text PRIMARY KEY, \"Model.s$\" text);
         CREATE VIEW \"In \"\"between\" AS SELECT x.*, \"Model.s$\".id AS again FROM \"Model.s$\" x JOIN \"Model.s$\" USING (id);
         {} SELECT model_catalog.watch('\"Model.s$\"', 'id')",
        view("m.id", NONE, "\"In \"\"between\" m")
    ))
    .await;
    check(&db).clean();
    let swapped = swap("\"Model.s$\"", "\"2026 Model.s$\"");
    break_and_fix(&db, &swapped, "problem", "source", "reads public.\"2026 Model.s$\", but not").await;
    // A table with fewer columns than the view uses is another one.
    db.sql("CREATE TABLE \"2\" (id text); ALTER TABLE \"Model.s$\" RENAME TO \"2x\"; DROP TABLE \"2026 Model.s$\"")
        .await;
    check(&db).clean();
}

#[tokio::test]
async fn unwatchable_sources_are_reported() {
    let db = Db::new().await;
    db.sql(
        "CREATE MATERIALIZED VIEW copied AS SELECT id FROM models; CREATE UNIQUE INDEX ON copied (id);
         CREATE FUNCTION hidden(text) RETURNS boolean STABLE LANGUAGE sql SET search_path = '' AS 'SELECT true';
         CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
         CREATE FOREIGN TABLE listed (id text) SERVER files OPTIONS (filename '/dev/null');",
    )
    .await;
    let from = "copied m WHERE hidden(m.id) AND NOT EXISTS (SELECT FROM listed l WHERE l.id = m.id)";
    db.sql(&view("m.id", NONE, from)).await;
    let checked = check(&db);
    assert_eq!(checked.status, 0, "{checked:#?}");
    let texts: Vec<_> = checked.bad().iter().map(|finding| finding["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 3, "{checked:#?}");
    for (text, message) in texts.iter().zip([
        "public.copied is a materialized view",
        "public.listed is a foreign table",
        "calls public.hidden(text)",
    ]) {
        assert!(text.contains(message), "no `{message}` in {checked:#?}");
    }
    assert_eq!(fix(checked.bad()[0]), "SELECT model_catalog.reload();");
}

#[tokio::test]
async fn functions_without_a_search_path_are_reported() {
    let db = Db::new().await;
    db.sql(
        "CREATE SCHEMA \"Odd 'S'\"; CREATE FUNCTION \"Odd 'S'\".\"A b\"(text) RETURNS boolean STABLE LANGUAGE sql
             AS 'SELECT true';
         CREATE FUNCTION resolved(text) RETURNS boolean STABLE LANGUAGE sql RETURN true;",
    )
    .await;
    db.sql(&view("m.id", NONE, "models m WHERE \"Odd 'S'\".\"A b\"(m.id) AND resolved(m.id)")).await;
    let checked = check(&db);
    let bad: Vec<_> = checked.bad().into_iter().filter(|finding| finding["subject"] == "function").collect();
    assert_eq!(bad.len(), 1, "{checked:#?}");
    assert!(bad[0]["text"].as_str().unwrap().starts_with("\"Odd 'S'\".\"A b\"(text) has no search_path of its own"));
    db.sql(fix(bad[0])).await;
    assert!(check(&db).bad().iter().all(|finding| finding["subject"] == "source"));
}

#[tokio::test]
async fn lookups_without_an_index_are_reported() {
    let db = Db::new().await;
    let create = "CREATE TABLE assets (uid uuid PRIMARY KEY, title text); SELECT model_catalog.watch('assets', 'uid');";
    let text = "all of public.assets is read";
    break_and_fix(&db, &format!("{create} {}", view("m.uid::text", NONE, "assets m")), "problem", "look-up", text)
        .await;
    let lower = view("lower(m.title)", NONE, "assets m WHERE title <> ''");
    break_and_fix(&db, &format!("{lower} SELECT model_catalog.watch('assets')"), "problem", "look-up", text).await;
    // The title is not what the view calls the model.
    let expression = "is watched by title, but the id of the view is the expression (lower(title))";
    break_and_fix(&db, "SELECT model_catalog.watch('assets', 'title')", "problem", "source", expression).await;

    // Columns of other types, and a partitioned table.
    for (table, id_type) in [("numbers", "bigint"), ("codes", "char(8)"), ("names", "varchar(20)")] {
        let create =
            format!("CREATE TABLE {table} (\"order\" {id_type}); SELECT model_catalog.watch('{table}', 'order');");
        let id = view("(m.\"order\")::text", NONE, &format!("{table} m"));
        break_and_fix(&db, &format!("{create} {id}"), "problem", "look-up", &format!("all of public.{table} is read"))
            .await;
    }
    let parts = "CREATE TABLE p (id int, kind int) PARTITION BY LIST (kind); CREATE TABLE p_1 PARTITION OF p FOR VALUES \
                 IN (1); CREATE TABLE p_2 PARTITION OF p DEFAULT; SELECT model_catalog.watch('p', 'id');";
    break_and_fix(
        &db,
        &format!("{parts} {}", view("m.id::text", NONE, "p m")),
        "problem",
        "look-up",
        "all of public.p is",
    )
    .await;

    // Joined tables that have no rows yet: children of a row, by a subquery and by a join. Lookup tables are found by
    // their keys.
    let family = "CREATE TABLE kinds (kind int PRIMARY KEY); CREATE TABLE settings (host text);
         CREATE TABLE parents (pk int PRIMARY KEY, slug text UNIQUE, kind int REFERENCES kinds);
         CREATE TABLE children (pk int PRIMARY KEY, \"parentId\" int REFERENCES parents, slug text);
         SELECT model_catalog.watch(t, c) FROM (VALUES ('kinds'::regclass, 'kind'), ('settings', 'host'),
                                                ('parents', 'slug'), ('children', 'slug')) v (t, c);";
    let subquery = "(SELECT coalesce(jsonb_agg(c.pk::text), '[]') FROM children c WHERE c.\"parentId\" = m.pk)";
    let tables = "parents m JOIN kinds k USING (kind) CROSS JOIN settings s";
    let children = "all of public.children is read";
    let text = view("m.slug", subquery, tables);
    break_and_fix(&db, &format!("{family} {text}"), "warning", "look-up", children).await;
    let index = "SELECT indexrelid::regclass FROM pg_index WHERE indrelid = 'children'::regclass AND NOT indisprimary";
    let index = db.sql(index).await.expect("the index that check asked for");
    let tables = format!("{tables} LEFT JOIN children c ON c.\"parentId\" = m.pk");
    let joined = view("m.slug", NONE, &tables);
    break_and_fix(&db, &format!("DROP INDEX {index}; {joined}"), "warning", "look-up", children).await;

    // A joined table with enough rows to matter, and a view that does not pass the condition on to its table.
    let many = "CREATE TABLE owners AS SELECT n AS number, md5(n::text) AS name FROM generate_series(1, 5000) n;
                SELECT model_catalog.watch('owners', 'name'); SELECT model_catalog.watch('assets', 'uid');";
    let joined = view("m.uid::text", NONE, "assets m JOIN owners o ON o.name = m.title");
    break_and_fix(&db, &format!("{many} {joined}"), "warning", "look-up", "all of public.owners is read").await;
    db.sql(&view("o.name", NONE, "(SELECT name FROM owners OFFSET 0) o")).await;
    check(&db).only("warning", "look-up", "passes no condition on the id");
}

#[tokio::test]
async fn view_with_wrong_columns_or_types_is_reported() {
    let db = Db::new().await;
    db.add("a").await;
    let role = format!("reader_{}", db.name);
    db.sql(&format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA model_catalog TO {role};
                     GRANT SELECT ON ALL TABLES IN SCHEMA model_catalog TO {role}"
    ))
    .await;
    let url = db.url.replace("user=postgres", &format!("user={role}"));
    let like = "id, name::varchar AS name, download_url, file_size_gb, hash, auth_required, auth_provider, save_path, \
                dependencies, description, mirrors";
    for (from, to, level, text) in [
        ("name::varchar", "length(name)", "problem", "its column name is of type integer and must be text"),
        (
            "auth_required",
            "'yes'::text AS auth_required",
            "problem",
            "auth_required is of type text and must be boolean",
        ),
        (", hash", "", "problem", "it has no column hash of type text"),
        ("file_size_gb", "file_size_gb::float8 AS file_size_gb", "warning", "file_size_gb is of type double precision"),
        ("dependencies", "dependencies::json AS dependencies", "warning", "dependencies is of type json"),
        ("dependencies", "'{}'::text[] AS dependencies", "problem", "dependencies is of type text[]"),
        ("mirrors", "'[\"https://example.org/x\"]'::text AS mirrors", "problem", "mirrors is of type text and must be"),
        ("mirrors", "'[]'::json AS mirrors", "warning", "mirrors is of type json and must be jsonb"),
        ("mirrors", "'{https://example.org/x}'::varchar[] AS mirrors", "warning", "type character varying[]"),
        ("mirrors", "'{https://example.org/x}'::text[] AS mirrors", "ok", "the optional mirrors with their types"),
        (", mirrors", "", "ok", "model_catalog.entries has the ten columns with their types"),
    ] {
        let columns = like.replacen(from, to, 1);
        db.sql(&format!(
            "BEGIN; DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT {columns} FROM models; \
             GRANT SELECT ON model_catalog.entries TO {role}; COMMIT"
        ))
        .await;
        let checked = check_with(&url, &[]);
        let finding = checked.findings.iter().find(|finding| finding["subject"] == "view").unwrap();
        assert!(finding["level"] == level && finding["text"].as_str().unwrap().contains(text), "{checked:#?}");
        assert_eq!(checked.status, i32::from(level == "problem"), "{checked:#?}");
        if level != "ok" {
            db.sql(fix(finding)).await;
        }
        check_with(&url, &[]).clean();
    }
}

#[tokio::test]
async fn view_that_fails_when_read_is_reported() {
    let db = Db::new().await;
    db.add("a").await;
    db.sql(&view("m.id", NONE, "models m").replace("NULL::numeric", "(m.name)::numeric")).await;
    let checked = check(&db);
    checked.only("problem", "view", "invalid input syntax for type numeric");
}
